"""What becomes of bytes on their way: given up, failed, superseded, overtaken by renames and removals."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from fusekit.errors import Aborted, BackendError, Exists, Invalid, NoSpace, NotFound, Stale
from fusekit.journal.journal import Row, State
from fusekit.settings import Consistency, KeepAttributes
from fusekit.testing.driven import ME, Setup, opened
from fusekit.testing.harness import listed
from fusekit.types import Attributes
from fusekit.vfs.filesystem import Changes
from fusekit.vfs.inodes import ROOT
from fusekit.vfs.renames import RENAME_EXCHANGE


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    async with opened(tmp_path) as made:
        yield made


class Gate:
    """Holds a hook up at its ``number``-th call from now until it is told to go on."""

    def __init__(self, setup: Setup, hook: str, number: int = 1, *, after: bool = False) -> None:
        self.reached, self._go_on = trio.Event(), trio.Event()
        self._hook, self._left = hook, number
        if after:
            setup.recorder.after = self._hold
        else:
            setup.recorder.before = self._hold

    async def _hold(self, hook: str, values: dict[str, Any]) -> None:
        if hook == self._hook:
            self._left -= 1
            if self._left == 0:
                self.reached.set()
                await self._go_on.wait()

    def go_on(self) -> None:
        self._go_on.set()


def refusing(*hooks: str) -> Callable[[str, dict[str, Any]], Awaitable[None]]:
    """Return what makes ``hooks`` fail for good, before they act."""

    async def refuse(hook: str, values: dict[str, Any]) -> None:
        if hook in hooks:
            raise Invalid("not today")

    return refuse


async def rows(setup: Setup) -> list[Row]:
    return await setup.volume.journal.rows()


def staged(setup: Setup) -> list[str]:
    return [path.name for path in (setup.volume.journal.directory / "staging").iterdir()]


async def write_failing(setup: Setup, name: str, data: bytes, flags: int = os.O_WRONLY) -> None:
    """Write ``data`` to ``name``, new or at its start, in vain."""
    setup.recorder.before = refusing("write")
    opened, _ = await setup.fs.create(ROOT, name, 0o644, flags | os.O_CREAT, ME)
    await setup.fs.write(opened.handle, 0, data)
    with pytest.raises(Invalid):
        await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    setup.recorder.before = None


async def overwrite(setup: Setup, name: str, data: bytes, flags: int = os.O_TRUNC) -> None:
    opened, _ = await setup.fs.create(ROOT, name, 0o644, flags | os.O_CREAT | os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, data)
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)


async def remote(setup: Setup) -> dict[str, int | None]:
    """Return the sizes of what another client of the service sees, by name."""
    hooks = setup.volume.hooks
    found = await listed(hooks, await hooks.fusekit_root(caller=ME))
    return {name: entry.size for name, entry in found.items()}


# ---- given up ------------------------------------------------------------------------------------------------------


async def torn(error: BaseException) -> AsyncIterator[bytes]:
    yield b"half of "
    raise error


@pytest.mark.parametrize("error", [OSError("the other disk is gone"), Invalid("the other service is"), RuntimeError()])
async def test_a_new_file_whose_pieces_end_in_an_error_never_appears(setup: Setup, error: Exception) -> None:
    with pytest.raises(type(error)):
        await setup.volume.paths.write("f", torn(error))
    assert await remote(setup) == {}
    assert await setup.names() == []
    assert (await rows(setup), staged(setup), setup.calls.get("write", 0)) == ([], [], 0)
    with pytest.raises(NotFound):
        await setup.volume.paths.stat("f")


async def test_a_file_whose_new_pieces_end_in_an_error_keeps_its_content(setup: Setup) -> None:
    await setup.remotely("f", b"as it was")
    with pytest.raises(OSError, match="gone"):
        await setup.volume.paths.write("f", torn(OSError("gone")))
    assert setup.calls.get("write", 0) == 0
    assert await setup.content("f") == b"as it was"
    assert (await setup.volume.paths.stat("f")).size == 9
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_a_write_that_nobody_waits_for_any_more_is_given_up(setup: Setup) -> None:
    arrived = trio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"half of "
        arrived.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.volume.paths.write, "f", pieces())
        await arrived.wait()
        nursery.cancel_scope.cancel()
    assert await remote(setup) == {}
    assert (await rows(setup), staged(setup), await setup.names()) == ([], [], [])


async def test_a_whole_file_that_the_service_refuses_is_kept(setup: Setup) -> None:
    setup.recorder.before = refusing("write")

    async def pieces() -> AsyncIterator[bytes]:
        yield b"precious"

    with pytest.raises(Invalid):
        await setup.volume.paths.write("f", pieces())
    (row,) = await rows(setup)
    assert setup.volume.journal.staging_path(row.staging).read_bytes() == b"precious"


async def test_what_others_write_to_a_file_is_not_given_up_with_it_and_no_torso_is_published(setup: Setup) -> None:
    await setup.remotely("f", b"old")
    attr = await setup.fs.lookup(ROOT, "f", ME)
    other = await setup.fs.open(attr.ino, os.O_WRONLY, ME)
    with pytest.raises(OSError, match="gone"):
        await setup.volume.paths.write("f", torn(OSError("gone")))
    with pytest.raises(Aborted):
        await setup.fs.flush(other.handle)
    assert await remote(setup) == {"f": 3}
    await setup.fs.write(other.handle, 0, b"made good")
    await setup.fs.flush(other.handle)
    await setup.fs.release(other.handle)
    assert await setup.content("f") == b"made good"
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_a_truncate_that_fails_leaves_the_file_as_it_was(setup: Setup) -> None:
    attr = await setup.make("f", b"0123456789")
    setup.recorder.before = refusing("write")
    with pytest.raises(Invalid):
        await setup.fs.setattr(attr.ino, Changes(size=4), None, ME)
    setup.recorder.before = None
    assert (await setup.fs.getattr(attr.ino, ME)).size == 10
    assert await setup.content("f") == b"0123456789"
    assert (await rows(setup), staged(setup)) == ([], [])
    assert (await setup.volume.status())["failed"] == {}


async def test_an_open_for_writing_that_fails_at_its_end_leaves_no_handle_and_the_file_as_it_was(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as setup:
        await setup.make("f", b"as it was")
        real = setup.fs.tree.refresh

        async def fail(*args: Any) -> Any:
            if len(setup.fs.handles):
                raise Invalid("not today")
            return await real(*args)

        setup.fs.tree.refresh = fail  # type: ignore[method-assign, assignment]
        with pytest.raises(Invalid):
            await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY | os.O_TRUNC, ME)
        setup.fs.tree.refresh = real  # type: ignore[method-assign]
        assert (len(setup.fs.handles), setup.fs.unsent(), await rows(setup)) == (0, [], [])
        assert await setup.content("f") == b"as it was"


async def test_an_empty_file_that_mknod_cannot_make_is_an_error_and_leaves_nothing(setup: Setup) -> None:
    setup.recorder.before = refusing("write")
    with pytest.raises(Invalid):
        await setup.fs.mknod(ROOT, "f", stat.S_IFREG | 0o644, 0, ME)
    setup.recorder.before = None
    assert (await setup.names(), await rows(setup), staged(setup), len(setup.fs.handles)) == ([], [], [], 0)
    attr = await setup.fs.mknod(ROOT, "f", stat.S_IFREG | 0o644, 0, ME)
    assert (await remote(setup), attr.size) == ({"f": 0}, 0)


# ---- what status says ----------------------------------------------------------------------------------------------


async def test_a_file_counts_as_unsent_until_the_remote_side_has_it(setup: Setup) -> None:
    opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"data")
    gate = Gate(setup, "write")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.fs.flush, opened.handle)
        await gate.reached.wait()
        assert (await setup.volume.status())["unsent"] == ["/f"]
        gate.go_on()
    assert (await setup.volume.status())["unsent"] == []
    await setup.fs.release(opened.handle)


async def test_a_directory_is_synced_only_when_what_is_being_sent_has_arrived(setup: Setup) -> None:
    opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"data")
    directory = await setup.fs.opendir(ROOT, ME)
    gate = Gate(setup, "write", after=True)
    synced = trio.Event()

    async def sync() -> None:
        await setup.fs.fsyncdir(directory)
        synced.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.fs.flush, opened.handle)
        await gate.reached.wait()
        nursery.start_soon(sync)
        await trio.testing.wait_all_tasks_blocked()
        assert not synced.is_set()
        gate.go_on()
    setup.fs.releasedir(directory)
    await setup.fs.release(opened.handle)


async def test_status_says_which_file_failed_why_and_where_its_bytes_are(setup: Setup) -> None:
    await write_failing(setup, "f", b"precious")
    status = await setup.volume.status()
    assert status["failed"] == {"/f": "not today"}
    (row,) = status["journal"]
    assert (row["path"], row["state"], row["error"], row["size"]) == ("/f", "failed", "not today", 8)
    assert await trio.Path(row["staging"]).read_bytes() == b"precious"


# ---- superseded ----------------------------------------------------------------------------------------------------


async def test_a_later_whole_commit_supersedes_what_failed_and_not_before_it_is_confirmed(setup: Setup) -> None:
    await setup.make("f", b"first")
    await write_failing(setup, "f", b"second", os.O_WRONLY | os.O_TRUNC)
    gate = Gate(setup, "write")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(overwrite, setup, "f", b"third")
        await gate.reached.wait()
        assert "failed" in {row.state.value for row in await rows(setup)}
        assert (await setup.volume.status())["failed"] == {"/f": "not today"}
        gate.go_on()
    assert (await rows(setup), staged(setup)) == ([], [])
    assert (await setup.volume.status())["failed"] == {}
    assert await setup.content("f") == b"third"


async def test_a_commit_that_fails_again_supersedes_nothing(setup: Setup) -> None:
    for data in (b"second", b"third"):
        await write_failing(setup, "f", data, os.O_WRONLY | os.O_TRUNC)
    kept = {setup.volume.journal.staging_path(row.staging).read_bytes() for row in await rows(setup)}
    assert kept == {b"second", b"third"}


async def test_a_commit_that_changes_only_a_part_replaces_nothing_of_what_failed(setup: Setup) -> None:
    await setup.make("log", b"one\n")
    attr = await setup.fs.lookup(ROOT, "log", ME)

    async def append(line: bytes) -> None:
        opened = await setup.fs.open(attr.ino, os.O_WRONLY | os.O_APPEND, ME)
        try:
            await setup.fs.write(opened.handle, 0, line)
            await setup.fs.flush(opened.handle)
        finally:
            await setup.fs.release(opened.handle)

    setup.recorder.before = refusing("write")
    with pytest.raises(Invalid):
        await append(b"two\n")
    setup.recorder.before = None
    await append(b"three\n")
    assert await setup.content("log") == b"one\nthree\n"
    (row,) = await rows(setup)
    assert setup.volume.journal.staging_path(row.staging).read_bytes() == b"one\ntwo\n"
    await overwrite(setup, "log", b"one\ntwo\nthree\n")
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_a_commit_of_the_same_open_file_supersedes_whatever_it_was_made_from(setup: Setup) -> None:
    await setup.make("f", b"0123456789")
    attr = await setup.fs.lookup(ROOT, "f", ME)
    opened = await setup.fs.open(attr.ino, os.O_RDWR, ME)
    setup.recorder.before = refusing("write")
    for at in (0, 2, 4):
        await setup.fs.write(opened.handle, at, b"x")
        with pytest.raises(Invalid):
            await setup.fs.fsync(opened.handle)
    assert len(await rows(setup)) == 3
    setup.recorder.before = None
    await setup.fs.fsync(opened.handle)
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("f") == b"x1x3x56789"
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_what_the_user_removes_supersedes_what_failed_once_it_is_gone(setup: Setup) -> None:
    await setup.make("f", b"first")
    await write_failing(setup, "f", b"second", os.O_WRONLY | os.O_TRUNC)
    setup.recorder.before = refusing("remove")
    with pytest.raises(Invalid):
        await setup.fs.unlink(ROOT, "f", ME)
    assert len(await rows(setup)) == 1
    setup.recorder.before = None
    await setup.fs.unlink(ROOT, "f", ME)
    assert (await rows(setup), staged(setup), (await setup.volume.status())["failed"]) == ([], [], {})


async def test_a_rename_over_a_name_supersedes_what_failed_there(setup: Setup) -> None:
    await setup.make("f", b"first")
    await write_failing(setup, "f", b"second", os.O_WRONLY | os.O_TRUNC)
    await write_failing(setup, "new", b"never there")
    for name in ("f", "new"):
        await setup.make("other", b"other")
        setup.recorder.before = refusing("rename")
        with pytest.raises(Invalid):
            await setup.fs.rename(ROOT, "other", ROOT, name, 0, ME)
        assert f"/{name}" in {row.path for row in await rows(setup)}
        setup.recorder.before = None
        await setup.fs.rename(ROOT, "other", ROOT, name, 0, ME)
        assert f"/{name}" not in {row.path for row in await rows(setup)}
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_an_editor_that_saves_by_rename_supersedes_what_failed_at_the_name(setup: Setup) -> None:
    await setup.make("f", b"first")
    await write_failing(setup, "f", b"second", os.O_WRONLY | os.O_TRUNC)
    opened, _ = await setup.fs.create(ROOT, ".f.swp", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"third")
    await setup.fs.rename(ROOT, ".f.swp", ROOT, "f", 0, ME)  # while it is open: it is sent under the new name
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("f") == b"third"
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_a_temporary_file_of_the_same_name_supersedes_the_one_that_failed_although_it_moves_on(
    setup: Setup,
) -> None:
    await write_failing(setup, "temp", b"first try")
    opened, _ = await setup.fs.create(ROOT, "temp", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"second try")
    await setup.fs.rename(ROOT, "temp", ROOT, "final", 0, ME)
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("final") == b"second try"
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_what_failed_follows_the_name_that_is_renamed_and_the_directory_above_it(setup: Setup) -> None:
    made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
    await setup.make("f", b"first", made.ino)
    setup.recorder.before = refusing("write")
    attr = await setup.fs.lookup(made.ino, "f", ME)
    opened = await setup.fs.open(attr.ino, os.O_WRONLY | os.O_TRUNC, ME)
    await setup.fs.write(opened.handle, 0, b"second")
    with pytest.raises(Invalid):
        await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    setup.recorder.before = None
    await setup.fs.rename(ROOT, "d", ROOT, "e", 0, ME)
    (row,) = await rows(setup)
    assert (row.path, row.directory, row.name) == ("/e/f", "/e", "f")
    await setup.fs.rename(made.ino, "f", ROOT, "g", 0, ME)
    (row,) = await rows(setup)
    assert (row.path, row.directory, row.name) == ("/g", "", "g")
    await setup.make("h", b"h")
    await setup.fs.rename(ROOT, "h", ROOT, "g", RENAME_EXCHANGE, ME)
    (row,) = await rows(setup)
    assert (row.path, row.directory, row.name) == ("/h", "", "h")
    await overwrite(setup, "g", b"another file")
    assert len(await rows(setup)) == 1
    await overwrite(setup, "h", b"third")
    assert await rows(setup) == []


async def test_what_failed_below_a_directory_renamed_meanwhile_is_kept_where_it_is_now(setup: Setup) -> None:
    made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
    opened, _ = await setup.fs.create(made.ino, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"precious")
    await setup.fs.rename(ROOT, "d", ROOT, "e", 0, ME)
    setup.recorder.before = refusing("write")
    await setup.fs.release(opened.handle)
    (row,) = await rows(setup)
    assert (row.path, row.directory, row.name) == ("/e/f", "/e", "f")
    assert (await setup.volume.status())["failed"] == {"/e/f": "not today"}


async def test_what_an_earlier_run_left_is_superseded_by_the_same_rule(tmp_path: Path) -> None:
    async with opened(tmp_path) as setup:
        await write_failing(setup, "f", b"second")
        journal = setup.volume.journal
        await journal.begin(principal="other", path="/f", directory="", name="f", replacing=None, key="theirs")
        journal.staging_path("theirs").write_bytes(b"theirs")
        journal.staging_path("nobodys").write_bytes(b"of a file that was removed while it was open")
    async with opened(tmp_path) as setup:
        assert {row.principal for row in await rows(setup)} == {"", "other"}
        assert (await setup.volume.status())["failed"] == {"/f": "not today"}
        assert "nobodys" not in staged(setup)
        await overwrite(setup, "f", b"third")
        assert [row.principal for row in await rows(setup)] == ["other"], "it is somebody else's"
        assert staged(setup) == ["theirs"]


# ---- ended in the middle -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("acted", [False, True])
async def test_a_close_that_is_cancelled_loses_nothing(setup: Setup, acted: bool) -> None:
    opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"precious")
    gate = Gate(setup, "write", after=acted)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(setup.fs.flush, opened.handle)
            await gate.reached.wait()
            scope.cancel()
    assert (await setup.volume.status())["unsent"] == ["/f"]
    setup.recorder.before = setup.recorder.after = None
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("f") == b"precious"
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_what_was_written_after_a_cancelled_close_supersedes_what_was_on_its_way(setup: Setup) -> None:
    opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"precious")
    gate = Gate(setup, "write")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(setup.fs.flush, opened.handle)
            await gate.reached.wait()
            scope.cancel()
    setup.recorder.before = None
    await setup.fs.write(opened.handle, 8, b" more")
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("f") == b"precious more"
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_what_a_drain_has_no_time_for_is_kept_and_the_other_files_have_their_turn(tmp_path: Path) -> None:
    async with opened(tmp_path) as setup:
        for name in "ab":
            opened_, _ = await setup.fs.create(ROOT, name, 0o644, os.O_WRONLY, ME)
            await setup.fs.write(opened_.handle, 0, b"precious")
        gate = Gate(setup, "write")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(setup.fs.drain)
                await gate.reached.wait()
                scope.cancel()
        kept = {row.path: row.staging for row in await rows(setup)}
        assert set(kept) == {"/a", "/b"}
        for key in kept.values():
            assert setup.volume.journal.staging_path(key).read_bytes() == b"precious"


async def test_a_file_whose_last_close_nobody_waited_for_is_sent_by_the_drain(setup: Setup) -> None:
    opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"precious")
    gate = Gate(setup, "write")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.fs.fsync, opened.handle)
        await gate.reached.wait()
        await setup.fs.write(opened.handle, 8, b" more")
        with trio.CancelScope() as scope:
            scope.cancel()
            await setup.fs.release(opened.handle)
        gate.go_on()
    assert (await setup.volume.status())["unsent"] == ["/f"]
    await setup.fs.drain()
    assert await remote(setup) == {"f": 13}
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_a_bug_while_one_file_is_drained_does_not_keep_the_others_from_it(setup: Setup) -> None:
    for name in "ab":
        opened, _ = await setup.fs.create(ROOT, name, 0o644, os.O_WRONLY, ME)
        await setup.fs.write(opened.handle, 0, b"precious")
    original = setup.volume.journal.sending
    broken = iter([ZeroDivisionError("a bug"), ZeroDivisionError("a bug")])

    async def sending(row: int) -> None:
        for error in broken:
            raise error
        await original(row)

    setup.volume.journal.sending = sending  # type: ignore[method-assign]
    await setup.fs.send_all()
    assert (await setup.volume.status())["unsent"] == ["/a", "/b"]
    await setup.fs.drain()
    assert await remote(setup) == {"a": 8, "b": 8}


async def test_a_full_disk_of_this_machine_is_an_error_of_the_close_and_loses_nothing(setup: Setup) -> None:
    opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"precious")
    original = setup.volume.journal.flushed

    async def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    setup.volume.journal.flushed = full  # type: ignore[method-assign]
    with pytest.raises(NoSpace):
        await setup.fs.flush(opened.handle)
    setup.volume.journal.flushed = original  # type: ignore[method-assign]
    await setup.fs.fsync(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("f") == b"precious"


# ---- overtaken -----------------------------------------------------------------------------------------------------


async def test_the_last_close_waits_for_a_rename_that_is_sending_the_file(setup: Setup) -> None:
    opened, _ = await setup.fs.create(ROOT, "temp", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"precious")
    gate = Gate(setup, "write")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.fs.rename, ROOT, "temp", ROOT, "final", 0, ME)
        await gate.reached.wait()
        nursery.start_soon(setup.fs.release, opened.handle)
        await trio.testing.wait_all_tasks_blocked()
        gate.go_on()
    assert await setup.names() == ["final"]
    assert await setup.content("final") == b"precious"
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_the_last_close_during_a_rename_that_fails_sends_the_file_where_it_was(setup: Setup) -> None:
    opened, _ = await setup.fs.create(ROOT, "temp", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"precious")
    reached, go_on = trio.Event(), trio.Event()

    async def fail_once(hook: str, values: dict[str, Any]) -> None:
        if hook == "write" and values["name"] == "final":
            reached.set()
            await go_on.wait()
            raise Invalid("not under this name")

    setup.recorder.before = fail_once

    async def rename() -> None:
        with pytest.raises(Invalid):
            await setup.fs.rename(ROOT, "temp", ROOT, "final", 0, ME)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rename)
        await reached.wait()
        nursery.start_soon(setup.fs.release, opened.handle)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert await setup.content("temp") == b"precious"
    assert await setup.names() == ["temp"]
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_a_failed_rename_of_an_unsent_file_is_not_told_by_its_close(setup: Setup) -> None:
    await setup.make("target", b"old")
    opened, _ = await setup.fs.create(ROOT, "temp", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"new")
    setup.recorder.before = refusing("write")
    with pytest.raises(Invalid):
        await setup.fs.rename(ROOT, "temp", ROOT, "target", 0, ME)
    setup.recorder.before = None
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert (await setup.content("temp"), await setup.content("target")) == (b"new", b"old")
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_an_empty_file_renamed_over_another_before_it_is_written_replaces_it(setup: Setup) -> None:
    await setup.make("target", b"old content")
    opened, _ = await setup.fs.create(ROOT, "temp", 0o644, os.O_WRONLY, ME)
    await setup.fs.rename(ROOT, "temp", ROOT, "target", 0, ME)
    await setup.fs.release(opened.handle)
    assert await setup.content("target") == b""


@pytest.mark.parametrize("unsent", [False, True])
async def test_a_rename_that_fails_takes_nothing_from_an_unsent_file_in_its_way(setup: Setup, unsent: bool) -> None:
    source = None
    if unsent:
        source, _ = await setup.fs.create(ROOT, "source", 0o644, os.O_WRONLY, ME)
        await setup.fs.write(source.handle, 0, b"source")
    else:
        await setup.make("source", b"source")
    target, _ = await setup.fs.create(ROOT, "target", 0o644, os.O_WRONLY, ME)
    await setup.fs.write(target.handle, 0, b"precious")
    setup.recorder.before = refusing("rename", "write")
    with pytest.raises(Invalid):
        await setup.fs.rename(ROOT, "source", ROOT, "target", 0, ME)
    setup.recorder.before = None
    for file in filter(None, (source, target)):
        await setup.fs.flush(file.handle)
        await setup.fs.release(file.handle)
    assert (await setup.content("source"), await setup.content("target")) == (b"source", b"precious")
    assert (await rows(setup), staged(setup)) == ([], [])


@pytest.mark.parametrize("hook", ["remove", "rename"])
async def test_a_file_whose_removal_fails_can_be_written_on(setup: Setup, hook: str) -> None:
    await setup.make("f", b"0123456789")
    await setup.make("g", b"g")
    attr = await setup.fs.lookup(ROOT, "f", ME)
    opened = await setup.fs.open(attr.ino, os.O_RDWR, ME)
    setup.recorder.before = refusing(hook)
    removal = setup.fs.unlink(ROOT, "f", ME) if hook == "remove" else setup.fs.rename(ROOT, "g", ROOT, "f", 0, ME)
    with pytest.raises(Invalid):
        await removal
    setup.recorder.before = None
    await setup.fs.write(opened.handle, 0, b"x")
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("f") == b"x123456789"
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_a_removal_waits_for_the_upload_and_takes_the_file_away(setup: Setup) -> None:
    opened, attr = await setup.fs.create(ROOT, "f", 0o644, os.O_RDWR, ME)
    await setup.fs.write(opened.handle, 0, b"data")
    gate = Gate(setup, "write")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.fs.fsync, opened.handle)
        await gate.reached.wait()
        nursery.start_soon(setup.fs.unlink, ROOT, "f", ME)
        await trio.testing.wait_all_tasks_blocked()
        assert "remove" not in setup.calls
        gate.go_on()
    assert await remote(setup) == {}
    assert bytes(await setup.fs.read(opened.handle, 0, 10)) == b"data"
    await setup.fs.write(opened.handle, 4, b" more")
    assert (await setup.fs.getattr(attr.ino, ME)).size == 9
    assert await rows(setup) == [], "what is removed needs no row: a crash would show it again"
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert (await remote(setup), staged(setup)) == ({}, [])


async def test_a_removal_that_waited_removes_what_has_the_name_then(setup: Setup) -> None:
    await setup.make("a", b"keep me")
    gate = Gate(setup, "rename")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.fs.rename, ROOT, "a", ROOT, "b", 0, ME)
        await gate.reached.wait()

        async def remove() -> None:
            with pytest.raises(NotFound):
                await setup.fs.unlink(ROOT, "a", ME)

        nursery.start_soon(remove)
        await trio.testing.wait_all_tasks_blocked()
        gate.go_on()
    assert await setup.content("b") == b"keep me"


async def test_what_is_made_in_a_directory_that_is_being_renamed_is_made_where_it_is_then(setup: Setup) -> None:
    made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
    gate = Gate(setup, "rename")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.fs.rename, ROOT, "d", ROOT, "e", 0, ME)
        await gate.reached.wait()
        nursery.start_soon(setup.fs.mkdir, made.ino, "sub", 0o755, ME)
        nursery.start_soon(setup.fs.symlink, made.ino, "link", "target", ME)
        await trio.testing.wait_all_tasks_blocked()
        gate.go_on()
    assert await setup.names(made.ino) == ["link", "sub"]
    assert await setup.names() == ["e"]


async def test_a_file_moved_into_a_directory_that_is_being_renamed_gets_where_it_is_then(setup: Setup) -> None:
    made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
    await setup.make("f", b"data")
    gate = Gate(setup, "rename")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.fs.rename, ROOT, "d", ROOT, "e", 0, ME)
        await gate.reached.wait()
        nursery.start_soon(setup.fs.rename, ROOT, "f", made.ino, "f", 0, ME)
        await trio.testing.wait_all_tasks_blocked()
        gate.go_on()
    assert await setup.content("f", made.ino) == b"data"
    assert await setup.names() == ["e"]


async def test_two_directories_that_move_into_each_other_do_not_wait_for_ever(setup: Setup) -> None:
    a, b = await setup.fs.mkdir(ROOT, "a", 0o755, ME), await setup.fs.mkdir(ROOT, "b", 0o755, ME)
    refused: list[str] = []

    async def move(name: str, into: int) -> None:
        try:
            await setup.fs.rename(ROOT, name, into, name, 0, ME)
        except (Invalid, NotFound, Stale):
            refused.append(name)

    gate = Gate(setup, "rename")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(move, "a", b.ino)
        await gate.reached.wait()
        nursery.start_soon(move, "b", a.ino)
        await trio.testing.wait_all_tasks_blocked()
        gate.go_on()
    assert refused == ["b"]
    assert await setup.names() == ["b"]
    assert await setup.names(b.ino) == ["a"]


async def test_a_listing_during_an_upload_does_not_take_the_file_for_another(setup: Setup) -> None:
    await setup.remotely("f", b"old")
    attr = await setup.fs.lookup(ROOT, "f", ME)
    opened = await setup.fs.open(attr.ino, os.O_WRONLY, ME)
    await setup.fs.write(opened.handle, 0, b"new")
    gate = Gate(setup, "write")

    async def flush() -> None:
        with pytest.raises(Stale):  # the guard of the write finds out what somebody else did
            await setup.fs.flush(opened.handle)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flush)
        await gate.reached.wait()
        await setup.remotely_removed("f")
        setup.fs.tree.metadata.expire(ROOT)
        assert await setup.names() == ["f"], "what is being sent is not given up for what a listing says"
        gate.go_on()
    await setup.fs.release(opened.handle)
    (row,) = await rows(setup)
    assert row.state is State.FAILED


async def test_truncate_during_an_upload_is_of_the_next_generation(setup: Setup) -> None:
    opened, attr = await setup.fs.create(ROOT, "f", 0o644, os.O_RDWR, ME)
    await setup.fs.write(opened.handle, 0, b"first")
    gate = Gate(setup, "write")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.fs.fsync, opened.handle)
        await gate.reached.wait()
        await setup.fs.setattr(attr.ino, Changes(size=2), opened.handle, ME)
        gate.go_on()
    assert await remote(setup) == {"f": 5}
    assert (await setup.fs.getattr(attr.ino, ME)).size == 2
    await setup.fs.flush(opened.handle)
    await setup.fs.release(opened.handle)
    assert await setup.content("f") == b"fi"
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_a_close_that_waited_for_one_that_failed_tells_the_same_and_sends_nothing(setup: Setup) -> None:
    one, attr = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
    two = await setup.fs.open(attr.ino, os.O_WRONLY, ME)
    await setup.fs.write(one.handle, 0, b"data")
    reached, go_on = trio.Event(), trio.Event()

    async def fail(hook: str, values: dict[str, Any]) -> None:
        if hook == "write":
            reached.set()
            await go_on.wait()
            raise Invalid("not today")

    setup.recorder.before = fail
    setup.reset()

    async def close(handle: int) -> None:
        with pytest.raises(Invalid):
            await setup.fs.flush(handle)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close, one.handle)
        await reached.wait()
        nursery.start_soon(close, two.handle)
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert setup.calls["write"] == 1
    await setup.fs.release(one.handle)
    await setup.fs.release(two.handle)
    assert len(await rows(setup)) == 1


async def test_attributes_set_while_the_file_is_sent_in_vain_go_with_its_content(tmp_path: Path) -> None:
    async with opened(tmp_path, attributes=KeepAttributes.REJECT) as setup:
        opened_, attr = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await setup.fs.write(opened_.handle, 0, b"data")
        reached, go_on = trio.Event(), trio.Event()

        async def fail(hook: str, values: dict[str, Any]) -> None:
            if hook == "write":
                reached.set()
                await go_on.wait()
                raise Invalid("not today")

        setup.recorder.before = fail

        async def flush() -> None:
            with pytest.raises(Invalid):
                await setup.fs.flush(opened_.handle)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            await reached.wait()
            changes = Changes(attributes=Attributes(mode=0o600))
            nursery.start_soon(setup.fs.setattr, attr.ino, changes, opened_.handle, ME)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        setup.recorder.before = None
        await setup.fs.fsync(opened_.handle)
        await setup.fs.release(opened_.handle)
        assert (await setup.fs.getattr(attr.ino, ME)).mode & 0o777 == 0o600


async def test_an_open_that_asks_while_another_begins_to_write_hides_nobodys_change(tmp_path: Path) -> None:
    async with opened(tmp_path, consistency=Consistency.STRICT) as setup:
        await setup.remotely("f", b"mine?")
        attr = await setup.fs.lookup(ROOT, "f", ME)
        one = await setup.fs.open(attr.ino, os.O_RDWR, ME)
        await setup.remotely("f", b"yours")
        gate = Gate(setup, "stat", 2, after=True)

        async def open_again() -> None:
            two = await setup.fs.open(attr.ino, os.O_WRONLY, ME)
            await setup.fs.release(two.handle)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_again)
            await gate.reached.wait()
            await setup.fs.write(one.handle, 0, b"M")
            gate.go_on()
        with pytest.raises(Stale):
            await setup.fs.flush(one.handle)
        await setup.fs.release(one.handle)
        assert await setup.content("f") == b"yours"


async def test_two_that_make_the_same_file_at_once_share_it(setup: Setup) -> None:
    gate = Gate(setup, "stat", after=False)
    made: list[int] = []

    async def make(flags: int) -> None:
        opened, attr = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY | flags, ME)
        made.append(attr.ino)
        await setup.fs.release(opened.handle)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make, 0)
        await gate.reached.wait()
        nursery.start_soon(make, 0)
        await trio.testing.wait_all_tasks_blocked()
        gate.go_on()
    assert len(set(made)) == 1
    assert await setup.names() == ["f"]
    with pytest.raises(Exists):
        await make(os.O_EXCL)
    assert (await rows(setup), staged(setup)) == ([], [])


async def test_a_file_replaced_by_somebody_else_while_open_is_kept_with_the_reason(setup: Setup) -> None:
    await setup.remotely("f", b"one")
    attr = await setup.fs.lookup(ROOT, "f", ME)
    reader = await setup.fs.open(attr.ino, os.O_RDONLY, ME)
    await setup.fs.read(reader.handle, 0, 10)
    writer = await setup.fs.open(attr.ino, os.O_WRONLY, ME)
    await setup.remotely("f", b"three")
    with pytest.raises(Stale):
        await setup.fs.open(attr.ino, os.O_RDONLY, ME)
    await setup.fs.write(writer.handle, 0, b"X")
    with pytest.raises(Stale):
        await setup.fs.flush(writer.handle)
    await setup.fs.release(writer.handle)
    await setup.fs.release(reader.handle)
    (row,) = await rows(setup)
    assert (row.state, "somebody else" in (row.error or "")) == (State.FAILED, True)
    assert (await setup.volume.status())["failed"].keys() == {"/f"}
    assert await setup.content("f") == b"three"


# ---- hooks that fail -----------------------------------------------------------------------------------------------


@attrs.frozen
class _Step:
    """Something that a program does to the file ``f``, which it has open with unsent bytes."""

    hook: str
    do: Callable[[Setup, int, int], Awaitable[object]]


_STEPS = [
    _Step("write", lambda setup, ino, handle: setup.fs.fsync(handle)),
    _Step("write", lambda setup, ino, handle: setup.fs.rename(ROOT, "f", ROOT, "new", 0, ME)),
    _Step("rename", lambda setup, ino, handle: setup.fs.rename(ROOT, "f", ROOT, "new", 0, ME)),
    _Step("rename", lambda setup, ino, handle: setup.fs.rename(ROOT, "g", ROOT, "f", 0, ME)),
    _Step("rename", lambda setup, ino, handle: setup.fs.rename(ROOT, "g", ROOT, "f", RENAME_EXCHANGE, ME)),
    _Step("remove", lambda setup, ino, handle: setup.fs.unlink(ROOT, "f", ME)),
    _Step("link", lambda setup, ino, handle: setup.fs.link(ino, ROOT, "new", ME)),
    _Step("setxattr", lambda setup, ino, handle: setup.fs.setxattr(ino, "user.x", b"1", ME)),
    _Step(
        "setattr", lambda setup, ino, handle: setup.fs.setattr(ino, Changes(attributes=Attributes(mode=0)), handle, ME)
    ),
    _Step("write", lambda setup, ino, handle: setup.fs.setattr(ino, Changes(size=3), None, ME)),
    _Step("list", lambda setup, ino, handle: setup.names()),
]


@pytest.mark.parametrize("error", [Invalid("no"), ZeroDivisionError("a bug")], ids=["refused", "bug"])
@pytest.mark.parametrize("acted", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("sent", [False, True], ids=["never-sent", "sent-before"])
@pytest.mark.parametrize("step", range(len(_STEPS)))
async def test_a_hook_that_fails_anywhere_loses_no_byte(
    setup: Setup, step: int, sent: bool, acted: bool, error: Exception
) -> None:
    """Whatever fails, before or after it acted, the bytes are at the remote side or in the journal at the end."""
    hook, do = _STEPS[step].hook, _STEPS[step].do
    await setup.make("g", b"g")
    if sent:
        await setup.make("f", b"old")
    opened, attr = await setup.fs.create(ROOT, "f", 0o644, os.O_RDWR, ME)
    await setup.fs.write(opened.handle, 0, b"precious")

    async def fail(name: str, values: dict[str, Any]) -> None:
        if name == hook:
            raise error

    if acted:
        setup.recorder.after = fail
    else:
        setup.recorder.before = fail
    failed = False
    try:
        await do(setup, attr.ino, opened.handle)
    except BackendError:
        failed = True
    setup.recorder.before = setup.recorder.after = None
    if failed:
        assert bytes(await setup.fs.read(opened.handle, 0, 20)) in {b"precious", b"pre"}
    try:
        await setup.fs.flush(opened.handle)
    except BackendError:
        assert failed
    await setup.fs.release(opened.handle)
    kept = {setup.volume.journal.staging_path(row.staging).read_bytes() for row in await rows(setup)}
    setup.fs.tree.metadata.expire(ROOT)
    for name in await setup.names():
        kept.add(await setup.content(name))
    unlinked = hook in {"remove", "rename"} and not failed
    assert kept & {b"precious", b"pre"} or unlinked, (kept, failed)
    assert len(staged(setup)) == len(await rows(setup))
