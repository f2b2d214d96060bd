"""What a remount knows of the mount before: names with their versions, and sizes that only reading told."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from fusekit.api import hookimpl
from fusekit.backends.memory import MemoryBackend, Options
from fusekit.cache.listings import NAME, Remembered, packed, unpacked
from fusekit.errors import NotFound
from fusekit.settings import Consistency
from fusekit.testing.driven import ME, Setup
from fusekit.testing.driven import opened as driven
from fusekit.types import Entry, Io, Kind, Mount, Page
from fusekit.vfs.inodes import ROOT


class Store:
    """A service that outlives its mounts: every backend that it makes is the same one."""

    def __init__(self, backend: type[MemoryBackend] = MemoryBackend) -> None:
        self._class = backend
        self._made: MemoryBackend | None = None

    def __call__(self, options: Options, mount: Mount) -> MemoryBackend:
        self._made = self._made or self._class(options, mount)
        return self._made

    @asynccontextmanager
    async def mounted(self, directory: Path, **options: Any) -> AsyncIterator[Setup]:
        async with driven(directory, self, **options) as setup:
            yield setup


def kept_in(directory: Path) -> Path:
    (found,) = directory.glob(f"cache/*/{NAME}")
    return found


async def seen(setup: Setup, ino: int = ROOT) -> list[str]:
    return await setup.names(ino)


async def filled(store: Store, directory: Path, *names: str) -> None:
    """Let the service have ``names`` in its directory ``d`` and at its top, by a mount that lists nothing."""
    async with store.mounted(directory) as setup:
        made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
        for name in names:
            await setup.make(name, b"one", made.ino)
            await setup.make(name, b"one")


async def test_an_unchanged_directory_costs_no_listing_after_a_remount(tmp_path: Path) -> None:
    store = Store()
    await filled(store, tmp_path, "a", "b")
    async with store.mounted(tmp_path) as setup:
        assert await seen(setup) == ["a", "b", "d"]
        before = (await setup.fs.lookup(ROOT, "d", ME)).ino
        assert await seen(setup, before) == ["a", "b"]
    async with store.mounted(tmp_path) as setup:
        assert await seen(setup) == ["a", "b", "d"]
        assert setup.calls == {}, "the version of the root was told at the start"
        attr = await setup.fs.lookup(ROOT, "d", ME)
        assert attr.ino == before
        setup.reset()
        assert await seen(setup, attr.ino) == ["a", "b"]
        assert setup.calls == {}, "and that of a directory by its lookup"
        with pytest.raises(NotFound):
            await setup.fs.lookup(attr.ino, "missing", ME)
        assert setup.calls == {}
        await setup.fs.lookup(attr.ino, "a", ME)
        await setup.fs.lookup(attr.ino, "b", ME)
        assert setup.calls == {"list": 1}, "what the names stand for is asked at once"


async def test_a_directory_whose_version_is_old_is_asked_about_and_not_listed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    store = Store()
    await filled(store, tmp_path, "a")
    async with store.mounted(tmp_path) as setup:
        await seen(setup)
        await seen(setup, (await setup.fs.lookup(ROOT, "d", ME)).ino)
    async with store.mounted(tmp_path) as setup:
        attr = await setup.fs.lookup(ROOT, "d", ME)
        await trio.sleep(60)
        setup.reset()
        assert await seen(setup, attr.ino) == ["a"]
        assert setup.calls == {"stat": 1}


async def test_a_directory_that_changed_is_listed_again(tmp_path: Path) -> None:
    store = Store()
    async with store.mounted(tmp_path) as setup:
        await setup.remotely("old", b"x")
        assert await seen(setup) == ["old"]
    async with store.mounted(tmp_path) as setup:
        await setup.remotely("new", b"y")
        setup.fs.tree.metadata.expire(ROOT)
        assert await seen(setup) == ["new", "old"]
        assert setup.calls["list"] == 1


async def test_attributes_from_before_are_compared_with_and_not_believed(tmp_path: Path) -> None:
    store = Store()
    async with store.mounted(tmp_path) as setup:
        await setup.remotely("f", b"one")
        await seen(setup)
    async with store.mounted(tmp_path) as setup:
        known: list[Entry | None] = []

        async def note(hook: str, values: dict[str, Any]) -> None:
            if hook == "stat":
                known.append(values["known"])

        setup.recorder.before = note
        setup.reset()
        assert (await setup.fs.lookup(ROOT, "f", ME)).size == 3
        assert setup.calls == {"stat": 1}
        assert known[0] is not None
        assert (known[0].size, known[0].version is None) == (3, False)


@pytest.mark.parametrize("mode", [Consistency.RELAXED, Consistency.SNAPSHOT])
async def test_modes_that_believe_for_long_go_on_after_a_remount(tmp_path: Path, mode: Consistency) -> None:
    store = Store(Versionless)
    await filled(store, tmp_path, "f")
    async with store.mounted(tmp_path, consistency=mode) as setup:
        await seen(setup)
    async with store.mounted(tmp_path, consistency=mode) as setup:
        assert await seen(setup) == ["d", "f"]
        assert (await setup.fs.lookup(ROOT, "f", ME)).valid_s > 0
        with pytest.raises(NotFound):
            await setup.fs.lookup(ROOT, "g", ME)
        assert setup.calls == {}


async def test_a_directory_that_is_known_to_have_changed_is_not_believed_by_its_age(tmp_path: Path) -> None:
    store = Store()
    await filled(store, tmp_path, "f")
    async with store.mounted(tmp_path, consistency=Consistency.RELAXED) as setup:
        await seen(setup)
        await setup.remotely("new", b"x")
    async with store.mounted(tmp_path, consistency=Consistency.RELAXED) as setup:
        assert await seen(setup) == ["d", "f", "new"]


async def test_what_this_mount_changed_is_not_believed_by_the_next(tmp_path: Path) -> None:
    store = Store()
    async with store.mounted(tmp_path, consistency=Consistency.SNAPSHOT) as setup:
        made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
        await setup.make("inside", b"x", made.ino)
        setup.fs.tree.metadata.expire(ROOT)
        setup.fs.tree.metadata.expire(made.ino)
        await seen(setup)
        await seen(setup, made.ino)
        await setup.make("mine", b"x")
        await setup.fs.rename(ROOT, "d", ROOT, "e", 0, ME)
    async with store.mounted(tmp_path, consistency=Consistency.SNAPSHOT) as setup:
        assert await seen(setup) == ["e", "mine"]
        attr = await setup.fs.lookup(ROOT, "e", ME)
        assert await seen(setup, attr.ino) == ["inside"]


async def test_a_mount_that_was_killed_leaves_nothing_to_believe_by_its_age(tmp_path: Path) -> None:
    store = Store(Versionless)
    async with store.mounted(tmp_path, consistency=Consistency.SNAPSHOT) as setup:
        await setup.remotely("f", b"one")
        await seen(setup)
    db = sqlite3.connect(kept_in(tmp_path))
    with db:
        db.execute("UPDATE about SET clean = 0")
    db.close()
    for _ in range(2):  # nor does the mount after the next take it for good
        async with store.mounted(tmp_path, consistency=Consistency.SNAPSHOT) as setup:
            await setup.fs.lookup(ROOT, "f", ME)
            assert setup.calls == {"stat": 1}


class Versionless(MemoryBackend):
    """Has no versions for directories."""

    @hookimpl
    async def fusekit_root(self) -> Entry:
        return attrs.evolve(await super().fusekit_root(), version=None)


async def test_a_directory_without_a_version_is_listed_again(tmp_path: Path) -> None:
    store = Store(Versionless)
    for _ in range(2):
        async with store.mounted(tmp_path) as setup:
            await seen(setup)
            assert setup.calls == {"list": 1}


@pytest.mark.parametrize("damage", ["cut", "noise", "foreign", "open to all", "a link"])
async def test_a_damaged_or_foreign_file_is_dropped_without_a_word(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    async with store.mounted(tmp_path, consistency=Consistency.SNAPSHOT) as setup:
        await setup.remotely("f", b"one")
        await seen(setup)
    path = kept_in(tmp_path)
    if damage == "cut":
        os.truncate(path, 5000)
    elif damage == "noise":
        path.write_bytes(os.urandom(20_000))
    elif damage == "foreign":
        db = sqlite3.connect(path)
        with db:
            db.execute("UPDATE about SET identity = 'other'")
        db.close()
    elif damage == "open to all":
        path.chmod(0o644)
    else:
        os.rename(path, tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    caplog.clear()
    async with store.mounted(tmp_path, consistency=Consistency.SNAPSHOT) as setup:
        assert await seen(setup) == ["f"]
        assert setup.calls == {"list": 1}
    assert not [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
    assert kept_in(tmp_path).lstat().st_mode & 0o777 == 0o600
    assert not kept_in(tmp_path).is_symlink()


@pytest.mark.parametrize(
    "blob", [b"", b"x", b"{}", b"[1]", b'[["a",99,1,1,"v"]]', b'[["a",0,-1,1,"v"]]', b'[["a",0,1,1,7]]']
)
async def test_a_damaged_row_is_a_listing_that_was_not_kept(tmp_path: Path, blob: bytes) -> None:
    import zlib

    store = Store()
    async with store.mounted(tmp_path, consistency=Consistency.SNAPSHOT) as setup:
        await setup.remotely("f", b"one")
        await seen(setup)
    db = sqlite3.connect(kept_in(tmp_path))
    with db:
        db.execute("UPDATE listing SET entries = ?", (zlib.compress(blob) if blob else b"",))
    db.close()
    async with store.mounted(tmp_path, consistency=Consistency.SNAPSHOT) as setup:
        assert await seen(setup) == ["f"]
        assert setup.calls == {"list": 1}


class Unsized(MemoryBackend):
    """Tells no sizes."""

    def _entry(self, name: str, node: Any) -> Entry:
        entry = super()._entry(name, node)
        return attrs.evolve(entry, size=None) if entry.kind is Kind.FILE else entry

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        await super().fusekit_list(directory, page)


async def test_a_measured_size_outlives_the_mount_with_its_version(tmp_path: Path) -> None:
    store = Store(Unsized)
    async with store.mounted(tmp_path) as setup:
        await setup.remotely("f", b"twelve bytes")
        assert (await setup.fs.lookup(ROOT, "f", ME)).size == 12
        assert setup.calls["read"] == 1
    async with store.mounted(tmp_path) as setup:
        assert (await setup.fs.lookup(ROOT, "f", ME)).size == 12
        assert "read" not in setup.calls
        await setup.remotely("f", b"more")
        setup.fs.tree.metadata.expire(setup.fs.tree.inodes.root.ino)
        setup.fs.tree.metadata.expire((await setup.fs.lookup(ROOT, "f", ME)).ino)
        assert (await setup.fs.lookup(ROOT, "f", ME)).size == 4


async def test_each_principal_gets_back_its_own_names(tmp_path: Path) -> None:
    keeper = await Remembered.open(tmp_path, "store")
    keeper.keep("one", "/d", "v", 0.0, [Entry.file("mine", size=1)])
    await keeper.close()
    keeper = await Remembered.open(tmp_path, "store")
    assert await keeper.recall("two", "/d") is None
    found = await keeper.recall("one", "/d")
    assert found is not None
    assert [entry.name for entry in found.entries] == ["mine"]
    await keeper.close()


async def test_a_clock_that_went_back_makes_nothing_young(tmp_path: Path) -> None:
    keeper = await Remembered.open(tmp_path, "store", lambda: 1000.0)
    keeper.keep("", "/d", "v", 0.0, [])
    await keeper.close()
    for now, age_s in ((1010.0, 10.0), (900.0, float("inf"))):
        keeper = await Remembered.open(tmp_path, "store", lambda now=now: now)  # type: ignore[misc]
        found = await keeper.recall("", "/d")
        assert found is not None
        assert found.age_s == age_s
        await keeper.close()


async def test_a_directory_that_goes_takes_what_is_kept_below_it_along(tmp_path: Path) -> None:
    keeper = await Remembered.open(tmp_path, "store")
    for ref in ("/d", "/d/e", "/d/e/f", "/d0", "/d-e"):
        keeper.keep("", ref, "v", 0.0, [])
    await keeper._flush()
    keeper.drop("/d", below=True)
    for ref in ("/d", "/d/e", "/d/e/f"):
        assert await keeper.recall("", ref) is None, "before it is written"
    await keeper.close()
    keeper = await Remembered.open(tmp_path, "store")
    there = [ref for ref in ("/d", "/d/e", "/d/e/f", "/d0", "/d-e") if await keeper.recall("", ref) is not None]
    assert there == ["/d0", "/d-e"]
    await keeper.close()


async def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusekit.cache.listings.BYTES_MAX", 20_000)
    monkeypatch.setattr("fusekit.cache.listings._BYTES_AFTER", 10_000)
    keeper = await Remembered.open(tmp_path, "store")
    for number in range(200):
        names = [os.urandom(16).hex() for _ in range(10)]
        keeper.keep("", f"/{number}", "v", 1000.0 - number, [Entry.file(name, size=1) for name in names])
    await keeper._flush()
    assert await keeper.recall("", "/0") is None
    assert await keeper.recall("", "/199") is not None
    await keeper.close()


def test_entries_come_back_as_they_were() -> None:
    entries = [
        Entry.file("plain", "/d/plain", size=1, mtime_ns=5, version="v"),
        Entry.file("not utf-8 \udcff", size=None),
        Entry.file("all", "ref", id="i", version="v", blob="b", size=9, mtime_ns=1, ctime_ns=2, atime_ns=3, mode=0o600,
                   uid=1, gid=2, nlink=3, io=Io.DIRECT),
        Entry.symlink("link", "target"),
        Entry("device", Kind.BLOCK, rdev=259),
    ]  # fmt: skip
    back = unpacked(packed(entries, "/d"))
    assert back == [attrs.evolve(entries[0], ref=""), *entries[1:]]


async def test_an_idle_mount_writes_nothing(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with Store().mounted(tmp_path) as setup:
        await seen(setup)
        await trio.sleep(10)
        flushes = 0
        keeper = setup.fs.tree.remembered
        assert keeper is not None
        real = keeper._flush

        async def counted() -> None:
            nonlocal flushes
            flushes += 1
            await real()

        keeper._flush = counted  # type: ignore[method-assign]
        await trio.sleep(3600)
        assert flushes == 0
