"""Writes that wait for this disk alone: what is safe when, what is sent when, and what everybody sees meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from fusekit.errors import BackendError, Denied, Exists, NotEmpty, NotFound, Stale, Unavailable
from fusekit.journal.journal import State, boot_id
from fusekit.settings import OnConflict, Write
from fusekit.testing.driven import ME, Held, Setup, failing, opened
from fusekit.testing.harness import listed, read
from fusekit.types import Attributes
from fusekit.vfs.filesystem import Changes
from fusekit.vfs.inodes import ROOT


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    async with opened(tmp_path, write=Write.ASYNC) as made:
        yield made


async def remote(setup: Setup) -> dict[str, bytes]:
    """Return what another client of the service sees at its top."""
    hooks = setup.volume.hooks
    found = await listed(hooks, await hooks.fusekit_root(caller=ME))
    return {name: await read(hooks, entry) for name, entry in found.items()}


async def drain(setup: Setup) -> None:
    await setup.fs.files.uploads.drain()


async def rows(setup: Setup) -> list[tuple[str, State]]:
    return [(row.path, row.state) for row in await setup.volume.journal.rows()]


def staged(setup: Setup) -> list[str]:
    return [path.name for path in (setup.volume.journal.directory / "staging").iterdir()]


async def save(setup: Setup, name: str, data: bytes) -> None:
    """Write ``name`` anew, as a program does that saves a file."""
    await setup.make(name, data, flags=os.O_WRONLY | os.O_TRUNC)


async def state(setup: Setup, name: str) -> str:
    attr = await setup.fs.lookup(ROOT, name, ME)
    return (await setup.fs.getxattr(attr.ino, "user.fusekit.state", ME)).decode()


# ---- what close means ----------------------------------------------------------------------------------------------


async def test_a_close_returns_when_the_file_is_durable_here_and_nothing_was_sent(setup: Setup) -> None:
    said: list[str] = []
    setup.volume.journal._connection.set_trace_callback(said.append)
    opened_, attr = await setup.fs.create(ROOT, "f", 0o640, os.O_WRONLY, ME)
    await setup.fs.write(opened_.handle, 0, b"precious")
    await setup.fs.flush(opened_.handle)
    setup.volume.journal._connection.set_trace_callback(None)
    full = said.index("PRAGMA synchronous=FULL")
    assert any(one.startswith("UPDATE") for one in said[full:])
    assert said[-1] == "COMMIT"
    (row,) = await setup.volume.journal.rows()
    assert (row.state, row.trusted, row.boot, row.size) == (State.FLUSHED, True, "", 8)
    assert setup.volume.journal._content(row.id) == b"precious"
    assert "write" not in setup.calls
    assert (await setup.fs.getattr(attr.ino, ME)).size == 8
    await setup.fs.release(opened_.handle)
    assert setup.fs.unsent() == ["/f"]
    await drain(setup)
    assert await remote(setup) == {"f": b"precious"}
    assert (await rows(setup), staged(setup), setup.fs.unsent()) == ([], [], [])


async def test_a_large_file_is_synced_with_its_directory_before_its_row_says_so(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        said.append("directory" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        real(fd)

    opened_, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened_.handle, 0, bytes(200_000))
    monkeypatch.setattr(os, "fsync", fsync)
    setup.volume.journal._connection.set_trace_callback(
        lambda one: said.append("row") if one == "COMMIT" else None
    )  # the staging file and its name first: a row that is there after a power loss names bytes that are
    await setup.fs.flush(opened_.handle)
    setup.volume.journal._connection.set_trace_callback(None)
    assert said == ["file", "directory", "row"]
    await setup.fs.release(opened_.handle)


async def test_fsync_waits_for_the_remote_side(setup: Setup) -> None:
    opened_, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened_.handle, 0, b"precious")
    await setup.fs.fsync(opened_.handle)
    assert await remote(setup) == {"f": b"precious"}
    setup.recorder.before = failing("write", Denied("not today"))
    await setup.fs.write(opened_.handle, 0, b"P")
    with pytest.raises(Denied):
        await setup.fs.fsync(opened_.handle)
    await setup.fs.flush(opened_.handle)
    setup.recorder.before = None
    await setup.fs.fsync(opened_.handle)
    await setup.fs.release(opened_.handle)
    assert await remote(setup) == {"f": b"Precious"}


async def test_fsync_of_a_directory_drains_what_is_below_and_nothing_else(setup: Setup) -> None:
    inside = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
    for name in "abc":
        await setup.make(name, b"in", parent=inside.ino)
    await setup.make("beside", b"out")
    handle = await setup.fs.opendir(inside.ino, ME)
    await setup.fs.fsyncdir(handle)
    setup.fs.releasedir(handle)
    assert setup.fs.unsent() == ["/beside"]
    assert setup.calls["write"] == 3


async def test_repeated_saves_of_one_file_are_one_upload(setup: Setup) -> None:
    for number in range(10):
        await save(setup, "f", b"version %d" % number)
    assert len(await rows(setup)) == 1, "the one before is replaced in the same step"
    await drain(setup)
    assert setup.calls["write"] == 1
    assert await remote(setup) == {"f": b"version 9"}
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_a_second_session_of_writing_is_not_published_before_it_is_closed(setup: Setup) -> None:
    await save(setup, "f", b"whole")
    attr = await setup.fs.lookup(ROOT, "f", ME)
    opened_ = await setup.fs.open(attr.ino, os.O_RDWR, ME)
    await setup.fs.write(opened_.handle, 0, b"HALF")
    await drain(setup)
    assert await remote(setup) == {"f": b"whole"}
    assert bytes(await setup.fs.read(opened_.handle, 0, 10)) == b"HALFe"
    await setup.fs.flush(opened_.handle)
    await setup.fs.release(opened_.handle)
    await drain(setup)
    assert await remote(setup) == {"f": b"HALFe"}
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_what_is_saved_while_it_is_on_its_way_goes_next_over_what_arrived(setup: Setup) -> None:
    await save(setup, "f", b"first")
    sending = setup.recorder.before = Held("write")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain, setup)
        await sending.reached.wait()
        await save(setup, "f", b"second")
        await save(setup, "f", b"third")
        assert await setup.content("f") == b"third"
        assert await state(setup, "f") == "uploading"
        assert len(await rows(setup)) == 2
        sending.go_on.set()
    await drain(setup)
    assert setup.calls["write"] == 2
    assert await remote(setup) == {"f": b"third"}, "no conflict with our own first one"
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_uploads_are_parallel_up_to_a_limit(setup: Setup) -> None:
    now = most = 0
    full = trio.Event()

    async def slow(hook: str, values: dict[str, Any]) -> None:
        nonlocal now, most
        if hook == "write":
            now += 1
            most = max(most, now)
            if now == 16:
                full.set()
            await full.wait()
            now -= 1

    for number in range(40):
        await setup.make(f"f{number}", b"x")
    setup.recorder.before = slow
    await drain(setup)
    assert most == 16
    assert len(await remote(setup)) == 40


async def test_an_empty_file_is_sent_once_it_is_closed_for_good(setup: Setup) -> None:
    opened_, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.flush(opened_.handle)  # a duplicate was closed: `echo x > f` does so
    await drain(setup)
    assert "write" not in setup.calls
    assert await rows(setup) == [("/f", State.FLUSHED)]
    await setup.fs.write(opened_.handle, 0, b"x\n")
    await setup.fs.flush(opened_.handle)
    await setup.fs.release(opened_.handle)
    await drain(setup)
    assert setup.calls["write"] == 1
    await setup.make("touched", b"")
    await drain(setup)
    assert await remote(setup) == {"f": b"x\n", "touched": b""}


async def test_attributes_set_after_the_close_go_with_the_content(setup: Setup) -> None:
    await setup.make("f", b"x")
    attr = await setup.fs.lookup(ROOT, "f", ME)
    await setup.fs.setattr(attr.ino, Changes(attributes=Attributes(mode=0o600, mtime_ns=10**18)), None, ME)
    assert (await setup.fs.getattr(attr.ino, ME)).mtime_ns == 10**18
    await drain(setup)
    assert setup.calls["write"] == 1
    assert "setattr" not in setup.calls
    attr = await setup.fs.lookup(ROOT, "f", ME)
    assert (attr.mode & 0o777, attr.mtime_ns) == (0o600, 10**18)


async def test_the_time_of_a_directory_is_set_after_what_waits_in_it_was_sent(setup: Setup) -> None:
    inside = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
    await setup.make("f", b"x", parent=inside.ino)
    await setup.make("beside", b"x")
    await setup.fs.setattr(inside.ino, Changes(attributes=Attributes(mtime_ns=10**18)), None, ME)
    assert setup.fs.unsent() == ["/beside"]
    await drain(setup)
    assert (await setup.fs.getattr(inside.ino, ME)).mtime_ns == 10**18


async def test_a_truncate_by_path_waits_for_the_journal_alone(setup: Setup) -> None:
    await setup.remotely("f", b"0123456789")
    attr = await setup.fs.lookup(ROOT, "f", ME)
    await setup.fs.setattr(attr.ino, Changes(size=4), None, ME)
    assert await remote(setup) == {"f": b"0123456789"}
    assert await setup.content("f") == b"0123"
    await drain(setup)
    assert await remote(setup) == {"f": b"0123"}


# ---- names ---------------------------------------------------------------------------------------------------------


async def test_listings_and_lookups_show_what_waits_on_top_of_what_is_there(setup: Setup) -> None:
    await setup.remotely("old", b"old")
    await setup.remotely("both", b"there")
    await setup.make("new", b"new")
    await save(setup, "both", b"here")
    assert await setup.names() == ["both", "new", "old"]
    assert [await setup.content(name) for name in await setup.names()] == [b"here", b"new", b"old"]
    assert [await state(setup, name) for name in await setup.names()] == ["queued", "queued", "clean"]
    await setup.remotely_removed("both")
    setup.fs.tree.metadata.expire(ROOT)
    assert await setup.names() == ["both", "new", "old"], "what waits is there whatever the remote side says"


async def test_a_file_renamed_before_it_is_sent_is_sent_once_under_its_last_name(setup: Setup) -> None:
    await setup.make("a", b"data")
    setup.reset()
    for old, new in ("ab", "bc"):
        await setup.fs.rename(ROOT, old, ROOT, new, 0, ME)
    assert await setup.names() == ["c"]
    assert await rows(setup) == [("/c", State.FLUSHED)]
    assert "rename" not in setup.calls
    await drain(setup)
    assert (setup.calls["write"], await remote(setup)) == (1, {"c": b"data"})


async def test_saving_by_rename_over_the_file_is_one_upload_that_replaces_it(setup: Setup) -> None:
    await setup.remotely("f", b"before")
    before = await setup.fs.lookup(ROOT, "f", ME)
    reader = await setup.fs.open(before.ino, os.O_RDONLY, ME)
    await setup.make("f.tmp", b"after")
    await setup.fs.rename(ROOT, "f.tmp", ROOT, "f", 0, ME)
    assert await setup.names() == ["f"]
    assert await setup.content("f") == b"after"
    assert bytes(await setup.fs.read(reader.handle, 0, 10)) == b"before", "who has it open reads on"
    await drain(setup)
    assert await remote(setup) == {"f": b"after"}
    assert setup.calls["write"] == 1
    assert not {"rename", "remove"} & set(setup.calls)
    await setup.fs.release(reader.handle)
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_what_was_to_be_replaced_goes_when_the_file_moves_on_or_is_removed(setup: Setup) -> None:
    for name in "fg":
        await setup.remotely(name, b"before")
    for name in "fg":
        await setup.make("tmp", b"after")
        await setup.fs.rename(ROOT, "tmp", ROOT, name, 0, ME)
    await setup.fs.rename(ROOT, "f", ROOT, "moved", 0, ME)
    await setup.fs.unlink(ROOT, "g", ME)
    assert await setup.names() == ["moved"]
    await drain(setup)
    assert await remote(setup) == {"moved": b"after"}
    assert await setup.names() == ["moved"]


async def test_a_file_that_is_removed_before_it_is_sent_was_never_there(setup: Setup) -> None:
    await setup.make("f", b"x")
    await setup.fs.unlink(ROOT, "f", ME)
    assert (await rows(setup), staged(setup), await setup.names()) == ([], [], [])
    await drain(setup)
    assert await remote(setup) == {}
    assert not {"write", "remove"} & set(setup.calls)


async def test_a_file_removed_after_an_attempt_that_may_have_arrived_is_removed_there(setup: Setup) -> None:
    for name in "fg":
        await setup.make(name, b"x")
    setup.recorder.after = failing("write", Unavailable("the answer was lost"))
    setup.recorder.before = failing("stat", Unavailable("and nobody can look"))
    with trio.move_on_after(3):
        await setup.fs.files.commits.commit((await node(setup, "f")).file, ME)
    with trio.move_on_after(3):
        await setup.fs.files.commits.commit((await node(setup, "g")).file, ME)
    setup.recorder.after = setup.recorder.before = None
    await setup.fs.unlink(ROOT, "f", ME)
    await setup.fs.rename(ROOT, "g", ROOT, "moved", 0, ME)
    await drain(setup)
    assert await remote(setup) == {"moved": b"x"}
    assert await setup.names() == ["moved"]
    assert await rows(setup) == []


async def node(setup: Setup, name: str) -> Any:
    return setup.fs.tree.node((await setup.fs.lookup(ROOT, name, ME)).ino)


async def test_a_directory_renamed_above_what_waits_takes_it_along(tmp_path: Path) -> None:
    async with opened(tmp_path, write=Write.ASYNC) as setup:
        inside = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
        await setup.make("f", b"x", parent=inside.ino)
        await setup.fs.rename(ROOT, "d", ROOT, "e", 0, ME)
        (row,) = await setup.volume.journal.rows()
        assert (row.path, row.directory, row.name) == ("/e/f", "/e", "f")
        assert await setup.content("f", parent=inside.ino) == b"x"
        await drain(setup)
        assert [row async for row in _paths(setup, "e")] == ["f"]


async def _paths(setup: Setup, path: str) -> AsyncIterator[str]:
    for name, _ in await setup.volume.paths.list(path):
        yield name


async def test_a_directory_with_a_file_that_waits_is_not_empty(setup: Setup) -> None:
    inside = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
    await setup.make("f", b"x", parent=inside.ino)
    with pytest.raises(BackendError, match="being written"):
        await setup.fs.rmdir(ROOT, "d", ME)
    await setup.fs.unlink(inside.ino, "f", ME)
    await setup.fs.rmdir(ROOT, "d", ME)
    await drain(setup)
    assert await remote(setup) == {}


async def test_no_directory_takes_the_place_of_one_with_a_file_that_waits(setup: Setup) -> None:
    full, _ = await setup.fs.mkdir(ROOT, "full", 0o755, ME), await setup.fs.mkdir(ROOT, "empty", 0o755, ME)
    await setup.make("f", b"x", parent=full.ino)
    with pytest.raises(NotEmpty):
        await setup.fs.rename(ROOT, "empty", ROOT, "full", 0, ME)
    assert await setup.content("f", parent=full.ino) == b"x"
    await setup.fs.rename(ROOT, "full", ROOT, "empty", 0, ME)
    await drain(setup)
    assert [name async for name in _paths(setup, "empty")] == ["f"]


async def test_a_removed_file_that_is_open_stays_readable_and_is_never_sent(setup: Setup) -> None:
    opened_, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_RDWR, ME)
    await setup.fs.write(opened_.handle, 0, b"precious")
    await setup.fs.flush(opened_.handle)
    await setup.fs.unlink(ROOT, "f", ME)
    await setup.fs.write(opened_.handle, 8, b" more")
    await setup.fs.flush(opened_.handle)
    await drain(setup)
    assert bytes(await setup.fs.read(opened_.handle, 0, 99)) == b"precious more"
    await setup.fs.release(opened_.handle)
    assert (await rows(setup), staged(setup), await remote(setup)) == ([], [], {})


async def test_pages_that_arrive_after_the_last_flush_are_sent_too(setup: Setup) -> None:
    opened_, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_RDWR, ME)
    await setup.fs.write(opened_.handle, 0, b"mapped")
    await setup.fs.flush(opened_.handle)
    await setup.fs.write(opened_.handle, 0, b"M")  # the kernel writes back a page of a mapping
    await setup.fs.release(opened_.handle)
    await drain(setup)
    assert await remote(setup) == {"f": b"Mapped"}


async def test_an_append_to_a_version_that_is_there_fetches_what_it_keeps(setup: Setup) -> None:
    await setup.remotely("f", b"there ")
    attr = await setup.fs.lookup(ROOT, "f", ME)
    opened_ = await setup.fs.open(attr.ino, os.O_WRONLY | os.O_APPEND, ME)
    await setup.fs.write(opened_.handle, 0, b"and here")
    await setup.fs.flush(opened_.handle)
    await setup.fs.release(opened_.handle)
    assert await setup.content("f") == b"there and here"
    await drain(setup)
    assert await remote(setup) == {"f": b"there and here"}


# ---- conflicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("choice", list(OnConflict))
async def test_a_conflict_is_settled_as_it_was_said_and_never_silently(
    tmp_path: Path, choice: OnConflict, new: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path, write=Write.ASYNC, on_conflict=choice) as setup:
        if not new:
            await setup.remotely("f", b"before")
        await save(setup, "f", b"mine")
        await setup.remotely("f", b"theirs")
        await drain(setup)
        there = await remote(setup)
        assert "/f" in caplog.text
        if choice is OnConflict.OVERWRITE:
            assert there == {"f": b"mine"}
        elif choice is OnConflict.KEEP_BOTH:
            assert there.pop("f") == b"theirs"
            ((name, data),) = there.items()
            assert (name.startswith("f (conflict "), data) == (True, b"mine")
            setup.fs.tree.metadata.expire(ROOT)
            assert await setup.names() == ["f", name]
            assert await setup.content("f") == b"theirs"
            assert await setup.content(name) == b"mine"
        else:
            assert there == {"f": b"theirs"}
            (row,) = await setup.volume.journal.rows()
            assert (row.state, setup.volume.journal.staging_path(row.staging).read_bytes()) == (State.FAILED, b"mine")
            assert await setup.content("f") == b"theirs"
            assert list((await setup.volume.status())["failed"]) == ["/f"]
        if choice is not OnConflict.FAIL:
            assert (await rows(setup), staged(setup)) == ([], [])


async def test_a_sync_close_keeps_both_where_that_was_said(tmp_path: Path) -> None:
    async with opened(tmp_path, on_conflict=OnConflict.KEEP_BOTH) as setup:
        opened_, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await setup.fs.write(opened_.handle, 0, b"mine")
        await setup.remotely("f", b"theirs")
        await setup.fs.flush(opened_.handle)
        await setup.fs.write(opened_.handle, 4, b" too")
        await setup.fs.flush(opened_.handle)
        await setup.fs.release(opened_.handle)
        assert sorted((await remote(setup)).values()) == [b"mine too", b"theirs"], "what is open goes on beside it"
        assert await rows(setup) == []


# ---- failures ------------------------------------------------------------------------------------------------------


async def later(clock: trio.testing.MockClock, setup: Setup, seconds: float, steps: int = 300) -> None:
    """Let virtual time pass, and with each step of it everything happen that is due, threads at the disk included."""
    for _ in range(steps):
        clock.jump(seconds / steps)
        threads = setup.volume.journal._thread, setup.fs.recovery._disk._threads
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if not any(one.borrowed_tokens for one in threads):
                break


async def test_an_hour_without_the_service_delays_uploads_and_loses_nothing(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path, write=Write.ASYNC) as setup:
        back = trio.current_time() + 3600

        async def down(hook: str, values: dict[str, Any]) -> None:
            if hook == "write" and trio.current_time() < back:
                raise Unavailable("the service is down")

        setup.recorder.before = down
        for name in "abc":
            await save(setup, name, b"first")
        await later(mock_clock, setup, 1800)
        assert await state(setup, "a") == "failed"
        assert "down" in (await setup.volume.status())["journal"][0]["error"]
        await save(setup, "a", b"second")
        assert await setup.content("a") == b"second"
        tried = setup.calls["write"]
        await later(mock_clock, setup, 2200)
        assert setup.calls["write"] < tried + 200
        assert await remote(setup) == {"a": b"second", "b": b"first", "c": b"first"}
        assert (await rows(setup), staged(setup)) == ([], [])
        assert await state(setup, "a") == "clean"


async def test_a_file_that_is_refused_is_in_nobodys_way_and_tried_for_ever(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path, write=Write.ASYNC) as setup:
        allowed = False

        async def refuse(hook: str, values: dict[str, Any]) -> None:
            if hook == "write" and values["name"].startswith("secret") and not allowed:
                raise Denied("you may not")

        setup.recorder.before = refuse
        for number in range(17):  # more than there are places
            await save(setup, f"secret{number}", b"x")
        await save(setup, "plain", b"y")
        await later(mock_clock, setup, 30)
        assert await remote(setup) == {"plain": b"y"}
        await drain(setup)  # returns: waiting longer would not help
        assert len(setup.fs.unsent()) == 17
        await later(mock_clock, setup, 600)
        allowed = True
        await later(mock_clock, setup, 301)
        assert len(await remote(setup)) == 18
        assert await rows(setup) == []


async def test_a_wall_clock_that_jumps_changes_nothing_about_when_what_is_sent(
    tmp_path: Path, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, write=Write.ASYNC) as setup:
        monkeypatch.setattr("time.time_ns", lambda: 1_000)  # back to 1970
        await save(setup, "f", b"first")
        monkeypatch.setattr("time.time_ns", lambda: 4_000_000_000 * 10**9)  # and on to 2096
        await save(setup, "f", b"second")
        await save(setup, "g", b"other")
        await later(mock_clock, setup, 1)
        monkeypatch.undo()
        assert await remote(setup) == {"f": b"second", "g": b"other"}


async def test_a_bug_in_a_backend_is_an_error_of_that_file(setup: Setup) -> None:
    setup.recorder.before = failing("write", ZeroDivisionError("a bug"))
    await save(setup, "f", b"x")
    await drain(setup)
    assert await state(setup, "f") == "failed"
    setup.recorder.before = None
    await drain(setup)
    assert await remote(setup) == {"f": b"x"}


# ---- after a crash -------------------------------------------------------------------------------------------------


def crash(directory: Path) -> Path:
    """Return a copy of what a volume has on disk now: what the next one finds after a kill -9."""
    after = directory.parent / "after" / directory.name
    for part in ("state",):
        shutil.copytree(directory / part, after / part)
    return after


async def crashed(tmp_path: Path, setup: Setup) -> Path:
    return await trio.to_thread.run_sync(crash, tmp_path / "before")


@pytest.mark.parametrize("write", [Write.ASYNC, Write.SYNC])
async def test_what_was_flushed_is_there_after_a_crash_and_goes_on_its_way(tmp_path: Path, write: Write) -> None:
    before = tmp_path / "before"
    async with opened(before, write=Write.ASYNC, drain_timeout_s=0.1) as setup:
        await setup.remotely("f", b"old")
        await save(setup, "f", b"saved")
        await setup.make("big", bytes(100_000))
        open_, _ = await setup.fs.create(ROOT, "open", 0o644, os.O_WRONLY, ME)
        await setup.fs.write(open_.handle, 0, b"half")
        after = await crashed(tmp_path, setup)
        old = setup.backend
        async with opened(after, lambda options, mount: old, write=write) as again:
            assert await again.names() == ["big", "f"]
            assert await again.content("f") == b"saved"
            assert (await again.content("big")) == bytes(100_000)
            assert sorted(again.fs.unsent()) == ["/big", "/f"]
            await drain(again)
            assert await remote(again) == {"big": bytes(100_000), "f": b"saved"}
            assert await rows(again) == [("/open", State.OPEN)]
            with pytest.raises(BackendError, match="never closed"):
                await again.fs.recovery.retry([row.id for row in await again.volume.journal.rows()], ME)


async def test_what_arrived_just_before_the_crash_is_no_conflict(tmp_path: Path) -> None:
    before = tmp_path / "before"
    async with opened(before, write=Write.ASYNC, drain_timeout_s=0.1) as setup:
        await setup.remotely("f", b"old")
        await save(setup, "f", b"first")
        arrived = setup.recorder.after = Held("write")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, setup)
            await arrived.reached.wait()
            await save(setup, "f", b"second")
            assert await remote(setup) == {"f": b"first"}
            after = await crashed(tmp_path, setup)
            arrived.go_on.set()
            nursery.cancel_scope.cancel()
        old = setup.backend
        setup.recorder.before = failing("write", Unavailable("this mount is dead"))
        async with opened(after, lambda options, mount: old, write=Write.ASYNC) as again:
            assert await again.content("f") == b"second"
            await drain(again)
            assert await remote(again) == {"f": b"second"}
            assert await rows(again) == []


async def test_bytes_that_may_have_gone_with_the_power_are_kept_and_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tmp_path / "before"
    async with opened(before) as setup:  # sync: nobody was told that they are safe
        opened_, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await setup.fs.write(opened_.handle, 0, b"perhaps")
        held = setup.recorder.before = Held("write")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(setup.fs.flush, opened_.handle)
            await held.reached.wait()
            after = await crashed(tmp_path, setup)
            held.go_on.set()
        await setup.fs.release(opened_.handle)
        await setup.fs.unlink(ROOT, "f", ME)
        boot_id.cache_clear()
        monkeypatch.setattr("fusekit.journal.journal.boot_id", lambda: "another boot")
        old = setup.backend
        async with opened(after, lambda options, mount: old) as again:
            assert await again.names() == []
            (row,) = await again.volume.journal.rows()
            assert (row.state, "safe on the disk" in (row.error or "")) == (State.FAILED, True)
            await again.fs.recovery.retry([row.id], ME)
            await drain(again)
            assert await remote(again) == {"f": b"perhaps"}, "by the user's word"


async def test_what_has_no_directory_any_more_is_kept_until_the_user_decides(tmp_path: Path) -> None:
    before = tmp_path / "before"
    async with opened(before, write=Write.ASYNC, drain_timeout_s=0.1) as setup:
        inside = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
        for name in "fg":
            await setup.make(name, b"x", parent=inside.ino)
        after = await crashed(tmp_path, setup)
        for name in "fg":
            await setup.fs.unlink(inside.ino, name, ME)
        await setup.remotely_removed("d")
        old = setup.backend
        async with opened(after, lambda options, mount: old, write=Write.ASYNC) as again:
            kept = await again.volume.journal.rows()
            assert [(row.path, row.state) for row in kept] == [("/d/f", State.FAILED), ("/d/g", State.FAILED)]
            assert "gone" in (kept[0].error or "")
            with pytest.raises(NotFound):
                await again.fs.recovery.retry([kept[0].id], ME)
            made = await again.fs.mkdir(ROOT, "d", 0o755, ME)
            await again.fs.recovery.retry([kept[0].id], ME)
            await again.fs.recovery.discard([kept[1].id], ME)
            await drain(again)
            assert await again.names(made.ino) == ["f"]
            assert (await rows(again), staged(again)) == ([], [])


async def test_a_file_that_waits_is_given_up_by_the_users_word_alone(setup: Setup) -> None:
    await setup.remotely("f", b"there")
    await save(setup, "f", b"here")
    await setup.make("new", b"new")
    kept = [row.id for row in await setup.volume.journal.rows()]
    await setup.fs.recovery.discard(kept, ME)
    assert await setup.content("f") == b"there"
    assert await setup.names() == ["f"]
    await drain(setup)
    assert (await rows(setup), staged(setup), setup.calls.get("write", 0)) == ([], [], 0)


async def test_no_mount_that_cannot_write_sends_what_is_left(tmp_path: Path) -> None:
    before = tmp_path / "before"
    async with opened(before, write=Write.ASYNC, drain_timeout_s=0.1) as setup:
        await setup.make("f", b"x")
        after = await crashed(tmp_path, setup)
        await setup.fs.unlink(ROOT, "f", ME)
        old = setup.backend
        async with opened(after, lambda options, mount: old, write=Write.OFF) as again:
            assert await again.names() == []
            assert await rows(again) == [("/f", State.FLUSHED)]


async def test_a_second_session_cut_short_by_a_full_disk_falls_back_to_what_was_closed(setup: Setup) -> None:
    await save(setup, "f", b"closed")
    attr = await setup.fs.lookup(ROOT, "f", ME)
    opened_ = await setup.fs.open(attr.ino, os.O_WRONLY, ME)
    await setup.fs.write(opened_.handle, 0, b"torso")
    original = setup.volume.journal.flushed

    async def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    setup.volume.journal.flushed = full  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="No space"):
        await setup.fs.flush(opened_.handle)
    await setup.fs.release(opened_.handle)
    setup.volume.journal.flushed = original  # type: ignore[method-assign]
    assert await setup.content("f") == b"closed"
    await drain(setup)
    assert await remote(setup) == {"f": b"closed"}
    (row,) = await setup.volume.journal.rows()
    assert setup.volume.journal.staging_path(row.staging).read_bytes() == b"torsod"


async def test_exclusive_creation_sees_what_waits(setup: Setup) -> None:
    await setup.make("f", b"x")
    with pytest.raises(Exists):
        await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY | os.O_EXCL, ME)
    with pytest.raises((NotFound, Stale)):
        await setup.fs.lookup(ROOT, "g", ME)
