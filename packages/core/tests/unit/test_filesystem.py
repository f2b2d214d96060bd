"""The vfs over a backend in memory: what is asked of the remote side, when, and what a program sees."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from fusekit.backends.local import LocalBackend
from fusekit.backends.local import Options as LocalOptions
from fusekit.backends.memory import MemoryBackend, Options
from fusekit.errors import (
    BackendError,
    Exists,
    Invalid,
    NotFound,
    NotSupported,
    PluginError,
    ReadOnly,
    Stale,
    Unavailable,
)
from fusekit.plugins.specs import OPERATIONS, hookimpl
from fusekit.settings import Consistency, Write
from fusekit.testing.driven import ME, Setup, opened
from fusekit.testing.harness import listed
from fusekit.testing.volumes import Recorder, open_backend
from fusekit.types import Attributes, Caller, Capabilities, Entry
from fusekit.vfs.filesystem import Changes
from fusekit.vfs.inodes import ROOT
from fusekit.vfs.renames import RENAME_EXCHANGE, RENAME_NOREPLACE


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    async with opened(tmp_path) as made:
        yield made


# ---- what is asked of the remote side ------------------------------------------------------------------------------


async def test_a_listed_directory_answers_names_attributes_and_misses(setup: Setup) -> None:
    await setup.remotely("a", b"one")
    assert await setup.names() == ["a"]
    assert setup.calls == {"list": 1}
    attr = await setup.fs.lookup(ROOT, "a", ME)
    assert attr.size == 3
    with pytest.raises(NotFound):
        await setup.fs.lookup(ROOT, "missing", ME)
    assert await setup.names() == ["a"]
    assert setup.calls == {"list": 1}


async def test_what_was_told_is_asked_again_after_the_ttl(setup: Setup, autojump_clock: trio.testing.MockClock) -> None:
    await setup.remotely("a", b"one")
    await setup.names()
    await trio.sleep(5.1)
    await setup.fs.lookup(ROOT, "a", ME)
    assert setup.calls == {"list": 1, "stat": 1}


async def test_a_second_cold_name_lists_the_directory(setup: Setup) -> None:
    for name in "abcdef":
        await setup.remotely(name, b"x")
    for name in "abcdef":
        await setup.fs.lookup(ROOT, name, ME)
    assert setup.calls == {"stat": 1, "list": 1}


async def test_a_missing_name_is_remembered(setup: Setup) -> None:
    for _ in range(3):
        with pytest.raises(NotFound):
            await setup.fs.lookup(ROOT, "missing", ME)
    assert setup.calls == {"stat": 1}


async def test_only_not_found_makes_a_negative(setup: Setup) -> None:
    await setup.remotely("a", b"x")

    async def deny(hook: str, values: dict[str, Any]) -> None:
        raise Invalid("no")

    setup.recorder.before = deny
    with pytest.raises(Invalid):
        await setup.fs.lookup(ROOT, "a", ME)
    setup.recorder.before = None
    assert (await setup.fs.lookup(ROOT, "a", ME)).size == 1


async def test_a_directory_just_made_answers_misses(setup: Setup) -> None:
    made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
    with pytest.raises(NotFound):
        await setup.fs.lookup(made.ino, "x", ME)
    assert await setup.names(made.ino) == []
    assert setup.calls == {"mkdir": 1}


async def test_strict_asks_each_time(tmp_path: Path) -> None:
    async with opened(tmp_path, consistency=Consistency.STRICT) as setup:
        await setup.remotely("a", b"x")
        for _ in range(3):
            await setup.fs.lookup(ROOT, "a", ME)
        assert setup.calls["stat"] >= 3


async def test_relaxed_opens_from_the_cache(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with opened(tmp_path, consistency=Consistency.RELAXED) as setup:
        await setup.remotely("a", b"one")
        assert await setup.content("a") == b"one"
        await setup.remotely("a", b"two!")
        await trio.sleep(200)
        assert await setup.content("a") == b"one"
        assert setup.calls == {}
        await trio.sleep(200)
        assert await setup.content("a") == b"two!"


async def test_a_snapshot_never_changes(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with opened(tmp_path, consistency=Consistency.SNAPSHOT) as setup:
        await setup.remotely("a", b"one")
        assert await setup.content("a") == b"one"
        await setup.remotely("a", b"two!")
        await trio.sleep(50_000)
        assert await setup.content("a") == b"one"


async def test_reading_a_just_listed_file_costs_one_call_and_the_second_time_one_stat(setup: Setup) -> None:
    await setup.remotely("a", b"one")
    await setup.names()
    setup.reset()
    assert await setup.content("a") == b"one"
    assert setup.calls == {"read": 1}
    assert await setup.content("a") == b"one"
    assert setup.calls == {"read": 1, "stat": 1}


async def test_a_new_file_in_a_listed_directory_costs_one_write(setup: Setup) -> None:
    await setup.names()
    setup.reset()
    await setup.make("f", b"x")
    assert setup.calls == {"write": 1}
    assert await setup.content("f") == b"x"


async def test_concurrent_listings_share_one_call(setup: Setup) -> None:
    await setup.remotely("a", b"x")
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(setup.names)
    assert setup.calls == {"list": 1}


async def test_numbers_are_the_same_after_a_remount(tmp_path: Path) -> None:
    backend: list[MemoryBackend] = []

    def make(mount: Any) -> MemoryBackend:
        if not backend:
            backend.append(MemoryBackend(Options(), mount))
        return backend[0]

    numbers: list[tuple[int, int]] = []
    for _ in range(2):
        async with open_backend(make, tmp_path) as volume:
            fs = volume.filesystem
            if not numbers:
                await fs.mkdir(ROOT, "d", 0o755, ME)
                opened, _ = await fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
                await fs.release(opened.handle)
        async with open_backend(make, tmp_path) as volume:
            fs = volume.filesystem
            numbers.append(((await fs.lookup(ROOT, "d", ME)).ino, (await fs.lookup(ROOT, "f", ME)).ino))
    assert numbers[0] == numbers[1]
    assert all(1 < number < 1 << 63 for pair in numbers for number in pair)


# ---- versions ------------------------------------------------------------------------------------------------------


async def test_open_answers_stale_once_when_the_version_moved(setup: Setup) -> None:
    await setup.remotely("a", b"one")
    assert await setup.content("a") == b"one"
    attr = await setup.fs.lookup(ROOT, "a", ME)
    await setup.remotely("a", b"twice")
    with pytest.raises(Stale):
        await setup.fs.open(attr.ino, os.O_RDONLY, ME)
    attr = await setup.fs.lookup(ROOT, "a", ME)
    assert attr.size == 5
    opened = await setup.fs.open(attr.ino, os.O_RDONLY, ME)
    assert not opened.keep_cache
    assert bytes(await setup.fs.read(opened.handle, 0, 100)) == b"twice"
    assert setup.calls == {"stat": 1, "read": 1}


async def test_a_new_version_gets_its_own_inode_while_the_old_one_is_open(setup: Setup) -> None:
    await setup.remotely("a", b"one")
    attr = await setup.fs.lookup(ROOT, "a", ME)
    old = await setup.fs.open(attr.ino, os.O_RDONLY, ME)
    assert bytes(await setup.fs.read(old.handle, 0, 100)) == b"one"
    await setup.remotely("a", b"twice")
    with pytest.raises(Stale):
        await setup.fs.open(attr.ino, os.O_RDONLY, ME)
    fresh = await setup.fs.lookup(ROOT, "a", ME)
    assert fresh.ino != attr.ino
    new = await setup.fs.open(fresh.ino, os.O_RDONLY, ME)
    assert bytes(await setup.fs.read(new.handle, 0, 100)) == b"twice"
    assert bytes(await setup.fs.read(old.handle, 0, 100)) == b"one"
    assert (await setup.fs.getattr(attr.ino, ME)).size == 3


async def test_pages_are_kept_while_the_version_stands(setup: Setup) -> None:
    await setup.remotely("a", b"one")
    attr = await setup.fs.lookup(ROOT, "a", ME)
    keeps = []
    for _ in range(2):
        opened = await setup.fs.open(attr.ino, os.O_RDONLY, ME)
        await setup.fs.read(opened.handle, 0, 100)
        keeps.append(opened.keep_cache)
        await setup.fs.release(opened.handle)
    assert keeps == [False, True]


async def test_an_unreachable_service_empties_no_cache(setup: Setup, autojump_clock: trio.testing.MockClock) -> None:
    await setup.remotely("a", b"one")
    await setup.names()

    async def down(hook: str, values: dict[str, Any]) -> None:
        raise Unavailable("down")

    setup.recorder.before = down
    await trio.sleep(6)
    with pytest.raises(Unavailable):
        await setup.fs.lookup(ROOT, "a", ME)
    setup.recorder.before = None
    assert await setup.names() == ["a"]


# ---- writing -------------------------------------------------------------------------------------------------------


async def test_writes_anywhere_truncate_and_append(setup: Setup) -> None:
    await setup.remotely("a", b"0123456789")
    attr = await setup.fs.lookup(ROOT, "a", ME)
    opened = await setup.fs.open(attr.ino, os.O_RDWR, ME)
    await setup.fs.write(opened.handle, 3, b"xyz")
    assert bytes(await setup.fs.read(opened.handle, 0, 100)) == b"012xyz6789"
    await setup.fs.setattr(attr.ino, Changes(size=5), opened.handle, ME)
    await setup.fs.setattr(attr.ino, Changes(size=8), opened.handle, ME)
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("a") == b"012xy\0\0\0"
    opened = await setup.fs.open(attr.ino, os.O_WRONLY | os.O_APPEND, ME)
    await setup.fs.write(opened.handle, 0, b"end")
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("a") == b"012xy\0\0\0end"


async def test_only_what_is_missing_is_fetched_for_a_write_over_a_version(setup: Setup) -> None:
    await setup.remotely("a", b"x" * 10)
    attr = await setup.fs.lookup(ROOT, "a", ME)
    setup.reset()
    opened = await setup.fs.open(attr.ino, os.O_WRONLY | os.O_TRUNC, ME)
    await setup.fs.write(opened.handle, 0, b"new")
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert "read" not in setup.calls


async def test_a_file_is_complete_at_the_remote_side_when_flush_returns(setup: Setup) -> None:
    opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"data")
    assert "write" not in setup.calls
    await setup.fs.flush(opened.handle)
    assert setup.calls["write"] == 1
    await setup.fs.release(opened.handle)
    assert setup.calls["write"] == 1


async def test_an_empty_flush_is_not_an_upload_of_its_own(setup: Setup) -> None:
    opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.flush(opened.handle)  # the shell closes a duplicate before the program writes
    assert "write" not in setup.calls
    rows = await setup.volume.journal.rows()
    assert [(row.path, row.size) for row in rows] == [("/f", 0)]
    await setup.fs.write(opened.handle, 0, b"x")
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert setup.calls["write"] == 1
    assert await setup.volume.journal.rows() == []


async def test_touch_makes_an_empty_file_at_release(setup: Setup) -> None:
    await setup.make("f", b"")
    assert setup.calls["write"] == 1
    assert await setup.content("f") == b""


async def test_a_failed_commit_is_reported_and_kept_until_one_succeeds(setup: Setup) -> None:
    async def refuse(hook: str, values: dict[str, Any]) -> None:
        if hook == "write":
            raise Invalid("quota rules")

    setup.recorder.before = refuse
    opened, attr = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"precious")
    for again in range(2):
        with pytest.raises(Invalid):
            await setup.fs.flush(opened.handle)
        assert setup.calls["write"] == 1, f"close {again} tells, and does not try by itself"
    with pytest.raises(Invalid):
        await setup.fs.fsync(opened.handle)
    assert await setup.fs.getxattr(attr.ino, "user.fusekit.state", ME) == b"failed"
    assert await setup.fs.getxattr(attr.ino, "user.fusekit.error", ME) == b"quota rules"
    setup.recorder.before = None
    await setup.fs.fsync(opened.handle)
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("f") == b"precious"
    assert await setup.volume.journal.rows() == []


async def test_bytes_that_could_not_be_sent_stay_in_the_journal(setup: Setup) -> None:
    async def refuse(hook: str, values: dict[str, Any]) -> None:
        if hook == "write":
            raise Invalid("no")

    setup.recorder.before = refuse
    opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"precious")
    with pytest.raises(Invalid):
        await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    setup.recorder.before = None
    with pytest.raises(NotFound):
        await setup.fs.lookup(ROOT, "f", ME)
    (row,) = await setup.volume.journal.rows()
    assert (row.path, row.state.value, row.error) == ("/f", "failed", "no")
    assert setup.volume.journal.staging_path(row.staging).read_bytes() == b"precious"


async def test_a_lost_answer_is_settled_by_looking(setup: Setup, autojump_clock: trio.testing.MockClock) -> None:
    async def lose(hook: str, values: dict[str, Any]) -> None:
        if hook == "write" and setup.recorder.calls["write"] == 1:
            raise Unavailable("the answer was lost")

    setup.recorder.after = lose
    await setup.make("f", b"data")
    assert setup.calls["write"] == 1, "it had arrived, so it was not sent again"
    assert await setup.content("f") == b"data"


async def test_a_write_over_somebody_elses_version_is_refused(setup: Setup) -> None:
    await setup.remotely("a", b"mine?")
    attr = await setup.fs.lookup(ROOT, "a", ME)
    opened = await setup.fs.open(attr.ino, os.O_RDWR, ME)
    await setup.fs.write(opened.handle, 0, b"M")
    await setup.remotely("a", b"yours")
    with pytest.raises(Stale):
        await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("a") == b"yours"
    assert len(await setup.volume.journal.rows()) == 1


async def test_two_writes_in_one_tick_are_two_versions(setup: Setup) -> None:
    await setup.make("f", b"one")
    assert await setup.content("f") == b"one"
    attr = await setup.fs.lookup(ROOT, "f", ME)
    opened = await setup.fs.open(attr.ino, os.O_WRONLY | os.O_TRUNC, ME)
    await setup.fs.write(opened.handle, 0, b"two")
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("f") == b"two"


async def test_writes_during_an_upload_go_to_the_next_generation(setup: Setup) -> None:
    started, go_on = trio.Event(), trio.Event()

    async def slow(hook: str, values: dict[str, Any]) -> None:
        if hook == "write" and setup.recorder.calls["write"] == 1:
            started.set()
            await go_on.wait()

    setup.recorder.before = slow
    opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_RDWR, ME)
    await setup.fs.write(opened.handle, 0, b"first")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.fs.fsync, opened.handle)
        await started.wait()
        await setup.fs.write(opened.handle, 0, b"SECOND")
        go_on.set()
    root = await setup.volume.hooks.fusekit_root(caller=ME)
    entry = (await listed(setup.volume.hooks, root))["f"]
    assert entry.size == 5, "the upload was of the frozen generation"
    assert bytes(await setup.fs.read(opened.handle, 0, 100)) == b"SECOND"
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("f") == b"SECOND"


# ---- names ---------------------------------------------------------------------------------------------------------


async def test_an_unlinked_open_file_stays_readable_and_writable(setup: Setup) -> None:
    await setup.remotely("a", b"still here")
    attr = await setup.fs.lookup(ROOT, "a", ME)
    opened = await setup.fs.open(attr.ino, os.O_RDWR, ME)
    await setup.fs.unlink(ROOT, "a", ME)
    assert bytes(await setup.fs.read(opened.handle, 0, 100)) == b"still here"
    await setup.fs.write(opened.handle, 0, b"STILL")
    assert bytes(await setup.fs.read(opened.handle, 0, 100)) == b"STILL here"
    assert (await setup.fs.getattr(attr.ino, ME)).nlink == 0
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.names() == []
    assert await setup.volume.journal.rows() == []


async def test_unlink_of_a_file_never_sent_asks_nothing(setup: Setup) -> None:
    await setup.names()
    opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    setup.reset()
    await setup.fs.unlink(ROOT, "f", ME)
    await setup.fs.write(opened.handle, 0, b"x")
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert setup.calls == {}
    assert await setup.names() == []


async def test_rename_keeps_the_number_and_replaces(setup: Setup) -> None:
    one, two = await setup.make("one", b"1"), await setup.make("two", b"2")
    await setup.fs.rename(ROOT, "one", ROOT, "two", 0, ME)
    assert (await setup.fs.lookup(ROOT, "two", ME)).ino == one.ino != two.ino
    assert await setup.content("two") == b"1"
    assert await setup.names() == ["two"]


async def test_rename_of_a_file_that_is_being_written(setup: Setup) -> None:
    await setup.make("target", b"old")
    opened, _ = await setup.fs.create(ROOT, "temp", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"new")
    await setup.fs.rename(ROOT, "temp", ROOT, "target", 0, ME)
    assert await setup.names() == ["target"]
    await setup.fs.write(opened.handle, 3, b"er")
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("target") == b"newer"
    assert await setup.volume.journal.rows() == []


async def test_rename_flags(setup: Setup) -> None:
    await setup.make("one", b"1")
    await setup.make("two", b"2")
    with pytest.raises(Exists):
        await setup.fs.rename(ROOT, "one", ROOT, "two", RENAME_NOREPLACE, ME)
    await setup.fs.rename(ROOT, "one", ROOT, "two", RENAME_EXCHANGE, ME)
    assert await setup.content("one") == b"2"
    assert await setup.content("two") == b"1"
    with pytest.raises(NotFound):
        await setup.fs.rename(ROOT, "one", ROOT, "three", RENAME_EXCHANGE, ME)


async def test_a_renamed_directory_brings_its_files(setup: Setup) -> None:
    made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
    await setup.make("f", b"inside", made.ino)
    await setup.fs.rename(ROOT, "d", ROOT, "e", 0, ME)
    moved = await setup.fs.lookup(ROOT, "e", ME)
    assert moved.ino == made.ino
    assert await setup.content("f", moved.ino) == b"inside"
    with pytest.raises(Invalid):
        await setup.fs.rename(ROOT, "e", moved.ino, "inside-itself", 0, ME)


async def test_a_directory_that_vanished_remotely_is_stale_and_not_empty(setup: Setup) -> None:
    made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
    setup.volume.filesystem.tree.metadata.expire(made.ino)
    handle = await setup.fs.opendir(made.ino, ME)
    await setup.remotely_removed("d")
    with pytest.raises(Stale):
        await setup.fs.readdir(handle, 0)
    setup.fs.releasedir(handle)
    with pytest.raises(NotFound):
        await setup.fs.lookup(ROOT, "d", ME)


async def test_a_directory_that_was_removed_here_just_ends(setup: Setup) -> None:
    made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
    handle = await setup.fs.opendir(made.ino, ME)
    await setup.fs.rmdir(ROOT, "d", ME)
    assert [name for name, _ in await setup.fs.readdir(handle, 0)] == [".", ".."]
    setup.fs.releasedir(handle)


class Limited(MemoryBackend):
    """Takes files of at most 2 MiB."""

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        return attrs.evolve(super().fusekit_capabilities(), file_bytes_max=2 << 20)


async def test_a_file_with_a_refused_write_is_not_published_as_a_torso(tmp_path: Path) -> None:
    recorder = Recorder()
    async with open_backend(lambda mount: Limited(Options(), mount), tmp_path, recorder=recorder) as volume:
        setup = Setup(volume, recorder, MemoryBackend(Options(), volume.mount))
        await setup.remotely("old", b"old")
        old = await setup.fs.lookup(ROOT, "old", ME)
        new, _ = await setup.fs.create(ROOT, "new", 0o644, os.O_WRONLY, ME)
        over = await setup.fs.open(old.ino, os.O_WRONLY | os.O_TRUNC, ME)
        for handle in (new.handle, over.handle):
            await setup.fs.write(handle, 0, bytes(2 << 20))
            for call in (
                lambda handle=handle: setup.fs.write(handle, 2 << 20, b"x"),
                lambda handle=handle: setup.fs.fsync(handle),
                lambda handle=handle: setup.fs.flush(handle),
            ):
                with pytest.raises(Invalid) as failed:
                    await call()
                assert failed.value.errno == errno.EFBIG
            await setup.fs.release(handle)
        assert await setup.names() == ["old"]
        assert await setup.content("old") == b"old"
        assert setup.calls.get("write", 0) == 0
        kept = {row.path: row for row in await volume.journal.rows()}
        assert {path: row.state.value for path, row in kept.items()} == {"/old": "failed", "/new": "failed"}
        assert volume.journal.staging_path(kept["/new"].staging).stat().st_size == 2 << 20


async def test_after_a_refused_write_a_program_may_make_it_good(tmp_path: Path) -> None:
    recorder = Recorder()
    async with open_backend(lambda mount: Limited(Options(), mount), tmp_path, recorder=recorder) as volume:
        setup = Setup(volume, recorder, MemoryBackend(Options(), volume.mount))
        opened, attr = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY | os.O_APPEND, ME)
        await setup.fs.write(opened.handle, 0, bytes(2 << 20))
        with pytest.raises(Invalid):
            await setup.fs.write(opened.handle, 0, b"x")  # an offset that the kernel guessed: it is an append
        with pytest.raises(Invalid):
            await setup.fs.setattr(attr.ino, Changes(size=3 << 20), opened.handle, ME)
        await setup.fs.setattr(attr.ino, Changes(size=0), opened.handle, ME)
        await setup.fs.write(opened.handle, 0, b"less")
        with pytest.raises(Invalid):
            await setup.fs.setattr(attr.ino, Changes(size=3 << 20), opened.handle, ME)
        await setup.fs.flush(opened.handle)
        await setup.fs.release(opened.handle)
        assert await setup.content("f") == b"less"


async def test_files_open_below_a_renamed_directory_are_read_and_written_where_they_are_now(tmp_path: Path) -> None:
    # The local backend addresses by path, so every address below changes.
    behind = tmp_path / "behind"
    (behind / "d" / "deeper").mkdir(parents=True)
    (behind / "d" / "deeper" / "f").write_bytes(b"before")
    (behind / "d" / "g").write_bytes(b"read")
    async with open_backend(lambda mount: LocalBackend(LocalOptions(behind), mount), tmp_path) as volume:
        fs = volume.filesystem
        d = await fs.lookup(ROOT, "d", ME)
        deeper = await fs.lookup(d.ino, "deeper", ME)
        writing = (await fs.open((await fs.lookup(deeper.ino, "f", ME)).ino, os.O_WRONLY | os.O_APPEND, ME)).handle
        reading = (await fs.open((await fs.lookup(d.ino, "g", ME)).ino, os.O_RDONLY, ME)).handle
        await fs.rename(ROOT, "d", ROOT, "e", 0, ME)
        assert bytes(await fs.read(reading, 0, 100)) == b"read"
        await fs.write(writing, 0, b" and after")
        await fs.flush(writing)
        assert (behind / "e" / "deeper" / "f").read_bytes() == b"before and after"
        await fs.rename(ROOT, "e", ROOT, "d", 0, ME)
        await fs.write(writing, 0, b" again")
        await fs.flush(writing)
        await fs.release(writing)
        await fs.release(reading)
        assert (behind / "d" / "deeper" / "f").read_bytes() == b"before and after again"


async def test_a_renamed_directory_waits_for_what_is_being_sent_below_it(setup: Setup) -> None:
    made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
    opened, _ = await setup.fs.create(made.ino, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"sent")
    sending, go_on = trio.Event(), trio.Event()
    done: list[str] = []

    async def hold(hook: str, values: dict[str, Any]) -> None:
        if hook == "write":
            sending.set()
            await go_on.wait()
        done.append(hook)

    setup.recorder.before = hold
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.fs.flush, opened.handle)
        await sending.wait()
        nursery.start_soon(setup.fs.rename, ROOT, "d", ROOT, "e", 0, ME)
        await trio.testing.wait_all_tasks_blocked()
        assert "rename" not in done
        go_on.set()
    await setup.fs.release(opened.handle)
    assert done.index("write") < done.index("rename")
    assert await setup.content("f", made.ino) == b"sent"


async def test_a_listing_under_way_does_not_undo_a_local_change(setup: Setup) -> None:
    await setup.remotely("old", b"x")
    reached, go_on = trio.Event(), trio.Event()

    async def hold(hook: str, values: dict[str, Any]) -> None:
        if hook == "list":
            reached.set()
            await go_on.wait()

    setup.recorder.after = hold
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.names)
        await reached.wait()
        await setup.make("new", b"y")
        await setup.fs.unlink(ROOT, "old", ME)
        go_on.set()
    assert await setup.names() == ["new"]


async def test_a_listing_survives_changes_between_two_reads(setup: Setup) -> None:
    for number in range(20):
        await setup.make(f"f{number:02}", b"")
    handle = await setup.fs.opendir(ROOT, ME)
    first = [name for name, _ in (await setup.fs.readdir(handle, 0))[:7]]
    for number in range(0, 20, 2):
        await setup.fs.unlink(ROOT, f"f{number:02}", ME)
    rest = [name for name, _ in await setup.fs.readdir(handle, 7)]
    assert len(set(first + rest)) == len(first + rest) == 22


async def test_hard_links_are_one_inode(setup: Setup) -> None:
    attr = await setup.make("a", b"shared")
    linked = await setup.fs.link(attr.ino, ROOT, "b", ME)
    assert (linked.ino, linked.nlink) == (attr.ino, 2)
    opened = await setup.fs.open(attr.ino, os.O_WRONLY | os.O_TRUNC, ME)
    await setup.fs.write(opened.handle, 0, b"changed")
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("b") == b"changed"
    await setup.fs.unlink(ROOT, "a", ME)
    assert (await setup.fs.lookup(ROOT, "b", ME)).nlink == 1


# ---- attributes ----------------------------------------------------------------------------------------------------


async def test_attributes_that_cannot_be_stored_are_kept_while_the_version_stands(setup: Setup) -> None:
    node = await setup.make("f", b"x")
    await setup.fs.setattr(node.ino, Changes(attributes=Attributes(mode=0o600, mtime_ns=1_000)), None, ME)
    attr = await setup.fs.getattr(node.ino, ME)
    assert (attr.mode & 0o7777, attr.mtime_ns) == (0o600, 1_000)


class Picky(MemoryBackend):
    """Has no names with a tab or a colon."""

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        return attrs.evolve(super().fusekit_capabilities(), forbidden="\t:")


@pytest.mark.parametrize("name", ["a\tb", ":", "b:"])
async def test_a_name_that_the_place_cannot_have_is_refused_at_once_and_without_asking(
    tmp_path: Path, name: str
) -> None:
    async with opened(tmp_path, Picky) as setup:
        attr = await setup.make("f", b"x")
        setup.reset()
        with pytest.raises(NotFound):
            await setup.fs.lookup(ROOT, name, ME)
        makes = [
            lambda: setup.fs.create(ROOT, name, 0o644, os.O_WRONLY, ME),
            lambda: setup.fs.mkdir(ROOT, name, 0o755, ME),
            lambda: setup.fs.mknod(ROOT, name, stat.S_IFIFO | 0o644, 0, ME),
            lambda: setup.fs.mknod(ROOT, name, stat.S_IFREG | 0o644, 0, ME),
            lambda: setup.fs.symlink(ROOT, name, "target:\t", ME),
            lambda: setup.fs.link(attr.ino, ROOT, name, ME),
            lambda: setup.fs.rename(ROOT, "f", ROOT, name, 0, ME),
        ]
        for make in makes:
            with pytest.raises(Invalid, match=r"U\+00(09|3A)") as refused:
                await make()  # type: ignore[no-untyped-call]
            assert refused.value.errno == errno.EINVAL
        assert setup.calls == {}
        await setup.fs.symlink(ROOT, "link", "target:\t", ME)
        assert await setup.names() == ["f", "link"]


def test_forbidden_characters_are_one_string() -> None:
    with pytest.raises(PluginError, match="one string of characters, not list"):
        Capabilities(forbidden=["a", "b"])  # type: ignore[arg-type]


class Forgetful(MemoryBackend):
    """Keeps no modes, owners or times."""

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        return attrs.evolve(super().fusekit_capabilities(), hooks=frozenset(OPERATIONS) - {"fusekit_setattr"})

    def _entry(self, name: str, node: Any) -> Entry:
        return attrs.evolve(super()._entry(name, node), mode=None, uid=None, gid=None)


@pytest.mark.parametrize("backend", [MemoryBackend, Forgetful])
async def test_a_set_group_id_directory_hands_its_group_down(tmp_path: Path, backend: type[MemoryBackend]) -> None:
    other = Caller(uid=4321, gid=4322, pid=1)
    async with opened(tmp_path, backend) as setup:
        above = await setup.fs.mkdir(ROOT, "plain", 0o755, other)
        shared = await setup.fs.mkdir(ROOT, "shared", 0o755, other)
        await setup.fs.setattr(shared.ino, Changes(attributes=Attributes(mode=0o2775, gid=4444)), None, ME)
        for directory, group, bit in ((above, 4322, 0), (shared, 4444, stat.S_ISGID)):
            sub = await setup.fs.mkdir(directory.ino, "sub", 0o755, other)
            assert (sub.uid, sub.gid, stat.S_IMODE(sub.mode)) == (4321, group, 0o755 | bit)
            link = await setup.fs.symlink(directory.ino, "link", "target", other)
            fifo = await setup.fs.mknod(directory.ino, "fifo", stat.S_IFIFO | 0o640, 0, other)
            file, attr = await setup.fs.create(directory.ino, "file", 0o640, os.O_WRONLY, other)
            await setup.fs.write(file.handle, 0, b"x")
            await setup.fs.flush(file.handle)
            await setup.fs.release(file.handle)
            sent = await setup.fs.getattr(attr.ino, other)
            for made in (link, fifo, attr, sent):
                assert (made.uid, made.gid) == (4321, group)
            for made in (fifo, attr, sent):
                assert stat.S_IMODE(made.mode) == 0o640
            again = await setup.fs.mkdir(sub.ino, "deeper", 0o700, other)
            assert (again.gid, stat.S_IMODE(again.mode)) == (group, 0o700 | bit)


async def test_a_group_given_before_the_file_is_sent_is_kept(setup: Setup) -> None:
    shared = await setup.fs.mkdir(ROOT, "shared", 0o2775, ME)
    file, attr = await setup.fs.create(shared.ino, "file", 0o640, os.O_WRONLY, ME)
    await setup.fs.write(file.handle, 0, b"x")
    await setup.fs.setattr(attr.ino, Changes(attributes=Attributes(gid=7777)), file.handle, ME)
    await setup.fs.flush(file.handle)
    await setup.fs.release(file.handle)
    assert (await setup.fs.getattr(attr.ino, ME)).gid == 7777


async def test_a_read_only_mount_refuses_every_change(tmp_path: Path) -> None:
    async with opened(tmp_path, write=Write.OFF) as setup:
        await setup.remotely("a", b"x")
        attr = await setup.fs.lookup(ROOT, "a", ME)
        changes = [
            lambda: setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME),
            lambda: setup.fs.open(attr.ino, os.O_WRONLY, ME),
            lambda: setup.fs.mkdir(ROOT, "d", 0o755, ME),
            lambda: setup.fs.unlink(ROOT, "a", ME),
            lambda: setup.fs.rename(ROOT, "a", ROOT, "b", 0, ME),
            lambda: setup.fs.setattr(attr.ino, Changes(size=0), None, ME),
            lambda: setup.fs.setattr(attr.ino, Changes(attributes=Attributes(mode=0)), None, ME),
            lambda: setup.fs.setxattr(attr.ino, "user.x", b"y", ME),
        ]
        for change in changes:
            with pytest.raises(ReadOnly):
                await change()  # type: ignore[no-untyped-call]


async def test_xattr_spellings_are_one_attribute_and_the_kernels_own_never_arrive(setup: Setup) -> None:
    attr = await setup.make("f", b"x")
    setup.reset()
    await setup.fs.setxattr(attr.ino, "user.prop.a", b"1", ME)
    assert await setup.fs.getxattr(attr.ino, "prop.a", ME) == b"1"
    assert await setup.fs.listxattr(attr.ino, ME) == ["user.prop.a"]
    setup.reset()
    with pytest.raises(NotSupported) as foreign:
        await setup.fs.getxattr(attr.ino, "security.capability", ME)
    assert foreign.value.errno == errno.EOPNOTSUPP, "with ENODATA `ls -l` would ask for each file"
    with pytest.raises(NotSupported):
        await setup.fs.setxattr(attr.ino, "system.posix_acl_access", b"", ME)
    with pytest.raises(Invalid):
        await setup.fs.setxattr(attr.ino, "user.fusekit.state", b"", ME)
    assert setup.calls == {}


async def test_every_hook_may_fail_in_any_way_and_the_next_call_works(setup: Setup) -> None:
    await setup.remotely("a", b"x")
    broken = {"hook": "stat"}

    async def explode(hook: str, values: dict[str, Any]) -> None:
        if hook == broken["hook"]:
            raise ZeroDivisionError("a bug")

    setup.recorder.before = explode
    with pytest.raises(BackendError, match="ZeroDivisionError"):
        await setup.fs.lookup(ROOT, "a", ME)
    broken["hook"] = ""
    assert (await setup.fs.lookup(ROOT, "a", ME)).size == 1
