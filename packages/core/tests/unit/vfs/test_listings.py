"""Reading directories: pages as they come, what a reader sees of changes meanwhile, failures, and walks listed ahead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from fusekit.api import hookimpl
from fusekit.backends.memory import MemoryBackend, Options
from fusekit.errors import Denied, Unavailable
from fusekit.settings import Consistency
from fusekit.testing.driven import ME, Setup, failing
from fusekit.testing.driven import opened as driven
from fusekit.testing.harness import NO_ATTRIBUTES
from fusekit.types import Caller, Capabilities, Entry, Mount, Page
from fusekit.vfs.attributes import Attr
from fusekit.vfs.inodes import ROOT

Names = Sequence[str]


class Paged(MemoryBackend):
    """Lists at its top entries of the test's making, page by page; a page with a gate waits for it.

    ``pages`` are handed over at every listing; ``fails`` is raised after the last one.
    """

    def __init__(self, options: Options, mount: Mount) -> None:
        super().__init__(options, mount)
        self.pages: list[list[Entry]] = []
        self.gates: dict[int, trio.Event] = {}
        self.fails: Exception | None = None
        self.cancelled = 0

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        try:
            for number, entries in enumerate(self.pages if not directory.name else []):
                if number in self.gates:
                    await self.gates[number].wait()
                await page(entries)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.fails is not None:
            raise self.fails

    @hookimpl
    async def fusekit_stat(self, directory: Entry, name: str) -> Entry:
        return await super().fusekit_stat(directory, name)


def files(*names: str) -> list[Entry]:
    return [Entry.file(name, size=len(name), version="1") for name in names]


def paged(setup: Setup, *pages: Names) -> Paged:
    backend = setup.backend
    assert isinstance(backend, Paged)
    backend.pages = [files(*names) for names in pages]
    return backend


async def rest(setup: Setup, handle: int, start: int) -> list[str]:
    """Return the names from position ``start`` to the end, in order."""
    found: list[str] = []
    while chunk := await setup.fs.readdir(handle, start + len(found)):
        found.extend(name for name, _ in chunk)
    return found


async def test_the_first_page_is_read_while_the_second_is_on_its_way(tmp_path: Path) -> None:
    async with driven(tmp_path, Paged) as setup:
        backend = paged(setup, ["a", "b"], ["c"])
        gate = backend.gates[1] = trio.Event()
        handle = await setup.fs.opendir(ROOT, ME)
        assert [name for name, _ in await setup.fs.readdir(handle, 0)] == [".", "..", "a", "b"]
        assert not setup.fs.more(handle, 4)
        record = setup.fs.tree.view(ME).directory(ROOT)
        assert record.listed_at is None, "half a listing says nothing about what is missing"
        gate.set()
        assert await rest(setup, handle, 4) == ["c"]
        assert record.listed_at is not None
        setup.fs.releasedir(handle)
        assert setup.calls == {"list": 1}


async def test_readers_share_a_listing_under_way(tmp_path: Path) -> None:
    async with driven(tmp_path, Paged) as setup:
        backend = paged(setup, ["a"], ["b"])
        gate = backend.gates[1] = trio.Event()
        handles = [await setup.fs.opendir(ROOT, ME) for _ in range(3)]
        for handle in handles:
            assert [name for name, _ in await setup.fs.readdir(handle, 0)] == [".", "..", "a"]
        gate.set()
        for handle in handles:
            assert await rest(setup, handle, 3) == ["b"]
            setup.fs.releasedir(handle)
        assert setup.calls == {"list": 1}


async def test_strict_does_not_share_a_listing_that_began_before(tmp_path: Path) -> None:
    async with driven(tmp_path, Paged, consistency=Consistency.STRICT) as setup:
        backend = paged(setup, ["a"], ["b"])
        gate = backend.gates[1] = trio.Event()
        first, second = [await setup.fs.opendir(ROOT, ME) for _ in range(2)]
        await setup.fs.readdir(first, 0)
        found: list[str] = []
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                found.extend(await rest(setup, second, 0))

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            assert setup.calls == {"list": 1}, "one listing of a directory at a time"
            gate.set()
        assert found == [".", "..", "a", "b"]
        assert setup.calls == {"list": 2}


async def test_a_failure_in_mid_listing_is_an_error_and_not_a_short_directory(tmp_path: Path) -> None:
    async with driven(tmp_path, Paged) as setup:
        backend = paged(setup, ["a", "b"])
        backend.fails = Denied("no more for you")
        handle = await setup.fs.opendir(ROOT, ME)
        shown = await setup.fs.readdir(handle, 0)
        assert [name for name, _ in shown] == [".", "..", "a", "b"]
        for _ in range(2):
            with pytest.raises(Denied):
                await setup.fs.readdir(handle, 4)
        assert setup.fs.tree.view(ME).directory(ROOT).listed_at is None
        backend.fails = None
        assert await rest(setup, handle, 0) == [".", "..", "a", "b"], "from the start it is read afresh"
        setup.fs.releasedir(handle)


async def test_a_directory_that_cannot_be_listed_is_no_empty_one(tmp_path: Path) -> None:
    async with driven(tmp_path, Paged) as setup:
        paged(setup).fails = Denied("not for you")
        handle = await setup.fs.opendir(ROOT, ME)
        with pytest.raises(Denied):
            await setup.fs.readdir(handle, 0)


async def test_names_made_and_removed_while_a_listing_comes_neither_repeat_nor_hide_others(tmp_path: Path) -> None:
    async with driven(tmp_path, Paged) as setup:
        backend = paged(setup, [f"old{n:03}" for n in range(100)], [f"late{n:03}" for n in range(100)])
        gate = backend.gates[1] = trio.Event()
        handle = await setup.fs.opendir(ROOT, ME)
        found = [name for name, _ in await setup.fs.readdir(handle, 0)]
        for number in range(40, 60):
            node = setup.fs.tree.at(setup.fs.tree.node(ROOT), f"old{number:03}", ME)
            assert node is not None
            setup.fs.tree.disappeared(setup.fs.tree.node(ROOT), f"old{number:03}", node, ME)
        made = await setup.make("late050", b"mine")
        gate.set()
        found += await rest(setup, handle, len(found))
        assert len(found) == len(set(found))
        kept = {f"old{n:03}" for n in range(100)} - {f"old{n:03}" for n in range(40, 60)}
        assert kept | {f"late{n:03}" for n in range(100)} <= set(found)
        setup.fs.releasedir(handle)
        assert (await setup.fs.lookup(ROOT, "late050", ME)).size >= made.size
        again = await setup.fs.opendir(ROOT, ME)
        assert not {f"old{n:03}" for n in range(40, 60)} & set(await rest(setup, again, 0))


async def test_a_name_removed_while_it_is_handed_out_is_not_believed_by_the_kernel(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        for name in ("a", "b", "c"):
            await setup.make(name, b"x")
        handle = await setup.fs.opendir(ROOT, ME)
        await setup.fs.readdir(handle, 0)
        await setup.fs.unlink(ROOT, "b", ME)
        await setup.fs.rename(ROOT, "c", ROOT, "d", 0, ME)
        valid = {name: attr.valid_s for name, attr in await setup.fs.readdir(handle, 2)}
        assert valid["b"] == valid["c"] == 0 < valid["a"]


async def test_a_listing_that_nobody_reads_any_more_ends_with_the_next_page(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, Paged) as setup:
        backend = paged(setup, ["a"], ["b"], ["c"])
        gate = backend.gates[1] = trio.Event()
        handle = await setup.fs.opendir(ROOT, ME)
        await setup.fs.readdir(handle, 0)
        setup.fs.releasedir(handle)
        gate.set()
        await trio.sleep(1)
        assert backend.cancelled == 1
        assert await setup.names() == ["a", "b", "c"]
        assert setup.calls == {"list": 2}


async def test_who_comes_when_a_listing_is_being_given_up_gets_one_of_its_own(tmp_path: Path) -> None:
    async with driven(tmp_path, Paged) as setup:
        backend = paged(setup, ["a"], ["b"])
        gate = backend.gates[1] = trio.Event()
        handle = await setup.fs.opendir(ROOT, ME)
        await setup.fs.readdir(handle, 0)
        listing = setup.fs.tree.listings.current(setup.fs.tree.view(ME), setup.fs.tree.inodes.root)
        setup.fs.releasedir(handle)
        assert listing is not None
        listing.go_on()  # its next page, when nobody reads
        gate.set()
        assert await setup.names() == ["a", "b"]
        assert setup.calls == {"list": 2}


async def test_a_listing_under_way_when_the_directory_changed_is_not_shared_or_believed(tmp_path: Path) -> None:
    async with driven(tmp_path, Paged, ttl_s=60.0) as setup:
        backend = paged(setup, ["old"], ["b"])
        gate = backend.gates[1] = trio.Event()
        handle = await setup.fs.opendir(ROOT, ME)
        await setup.fs.readdir(handle, 0)
        setup.volume.mount.changed("")
        gate.set()
        backend.pages = [files("new")]
        assert await setup.names() == ["new"]
        assert setup.calls == {"list": 2}


async def test_the_end_of_a_mount_ends_its_listings(tmp_path: Path) -> None:
    async with driven(tmp_path, Paged) as setup:
        backend = paged(setup, ["a"], ["b"])
        backend.gates[1] = trio.Event()
        await setup.fs.readdir(await setup.fs.opendir(ROOT, ME), 0)
    assert backend.cancelled == 1


async def test_a_listing_tried_again_shows_each_name_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, Paged) as setup:
        backend = paged(setup, ["a", "b"], ["c"])
        tries = []

        async def cut(hook: str, values: dict[str, object]) -> None:
            tries.append(hook)
            backend.fails = Unavailable("cut") if len(tries) == 1 else None

        setup.recorder.before = cut
        handle = await setup.fs.opendir(ROOT, ME)
        assert await rest(setup, handle, 0) == [".", "..", "a", "b", "c"]
        assert setup.calls == {"list": 2}


async def test_a_long_directory_is_said_to_be_long_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fusekit.vfs.listings.LONG_FROM", 10)
    async with driven(tmp_path, Paged, consistency=Consistency.STRICT) as setup:
        paged(setup, [f"f{n}" for n in range(11)])
        assert len(await setup.names()) == len(await setup.names()) == 11
        assert setup.volume.info()["long_directories"] == 1
    assert sum("has 11 names" in record.getMessage() for record in caplog.records) == 1


# ---- walks -------------------------------------------------------------------------------------------------------

DELAY_S = 0.02


@attrs.define(eq=False)
class Slow:
    """Lets each hook take a round trip, and counts those under way."""

    running: int = 0
    most: int = 0
    times: int = 0

    async def __call__(self, hook: str, values: dict[str, object]) -> None:
        if hook != "list":
            return
        self.running += 1
        self.most = max(self.most, self.running)
        await trio.sleep(DELAY_S)
        self.running -= 1


async def grown(setup: Setup, dirs: int, files: int = 0) -> None:
    """Make ``dirs`` directories at the service, past the engine."""
    hooks = setup.volume.hooks
    root = await hooks.fusekit_root(caller=ME)
    for number in range(dirs):
        await hooks.fusekit_mkdir(
            directory=root, name=f"d{number:03}", attributes=attrs.evolve(NO_ATTRIBUTES, mode=0o755), caller=ME
        )
    setup.fs.tree.metadata.expire(ROOT)
    setup.reset()


async def walked(setup: Setup, ino: int = ROOT, caller: Caller = ME, *, stop: int | None = None) -> int:
    """Read directories as ``ls -R`` does, each with what is in it, and return how many; ``stop`` after that many."""
    handle = await setup.fs.opendir(ino, caller)
    found: list[tuple[str, int]] = []
    at = 0
    while chunk := await setup.fs.readdir(handle, at):
        at += len(chunk)
        found += [(name, attr.ino) for name, attr in chunk if attr.mode & 0o40000 and name not in {".", ".."}]
    setup.fs.releasedir(handle)
    count = 1
    for _, child in sorted(found):
        if stop is not None and count >= stop:
            break
        count += await walked(setup, child, caller)
    return count


async def test_a_walk_lists_what_comes_next_in_parallel_and_nothing_twice(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, ttl_s=60.0) as setup:
        await grown(setup, 100)
        setup.recorder.before = slow = Slow()
        began = trio.current_time()
        assert await walked(setup) == 101
        took = trio.current_time() - began
        assert setup.calls == {"list": 101}
        assert took <= DELAY_S * (3 + 100 / 16 + 1)
        assert 15 <= slow.most <= 16
        began = trio.current_time()
        assert await walked(setup) == 101
        assert setup.calls == {"list": 101}
        assert trio.current_time() == began


async def test_a_walk_that_stops_has_listed_a_bounded_number_ahead(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, ttl_s=60.0) as setup:
        await grown(setup, 300)
        setup.recorder.before = Slow()
        await walked(setup, stop=4)
        await trio.sleep(10)
        assert 4 <= setup.calls["list"] <= 4 + 64 + 1


async def test_one_directory_opened_is_no_walk(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with driven(tmp_path, ttl_s=60.0) as setup:
        await grown(setup, 20)
        await walked(setup, stop=2)
        for pid in range(5):  # five programs, each of which opens one
            attr = await setup.fs.lookup(ROOT, f"d{10 + pid:03}", ME)
            await walked(setup, attr.ino, attrs.evolve(ME, pid=pid))
        await trio.sleep(10)
        assert setup.calls == {"list": 2 + 5}


class Shy(MemoryBackend):
    """Takes three requests at once."""

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        return attrs.evolve(super().fusekit_capabilities(), requests_max=3)


async def test_a_walk_keeps_to_what_the_place_allows_at_once(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, Shy, ttl_s=60.0) as setup:
        await grown(setup, 40)
        setup.recorder.before = slow = Slow()
        assert await walked(setup) == 41
        assert (slow.most, setup.calls) == (3, {"list": 41})


async def test_a_walk_in_the_order_of_the_listing_is_followed_as_well(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, Paged, ttl_s=60.0) as setup:
        backend = setup.backend
        assert isinstance(backend, Paged)
        order = [f"d{number * 37 % 200:03}" for number in range(200)]
        backend.pages = [[Entry.directory(name) for name in order]]
        tree = setup.fs.tree
        numbers = [attr.ino for name, attr in await all_of(setup, ROOT) if name in order]
        for number in numbers[:3]:
            await all_of(setup, number)
        await trio.sleep(1)
        ahead = [ino for ino in numbers if tree.view(ME).directory(ino).listed_at is not None]
        assert ahead == numbers[: len(ahead)]
        assert len(ahead) > 16


async def all_of(setup: Setup, ino: int) -> list[tuple[str, Attr]]:
    handle = await setup.fs.opendir(ino, ME)
    found: list[tuple[str, Attr]] = []
    while chunk := await setup.fs.readdir(handle, len(found)):
        found += chunk
    setup.fs.releasedir(handle)
    return found


async def test_strict_walks_list_nothing_ahead(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with driven(tmp_path, consistency=Consistency.STRICT) as setup:
        await grown(setup, 20)
        setup.recorder.before = slow = Slow()
        await walked(setup)
        assert slow.most == 1


async def test_a_listing_ahead_that_fails_is_tried_for_who_opens_it(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, ttl_s=60.0) as setup:
        await grown(setup, 10)
        await walked(setup, stop=3)
        await trio.sleep(1)
        setup.fs.tree.metadata.expire(ROOT)
        setup.recorder.before = failing("list", Denied("not now"))
        with pytest.raises(Denied):
            await walked(setup)
        setup.recorder.before = None
        assert await walked(setup) == 11
