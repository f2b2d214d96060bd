"""What others see of a file that is being written, and what becomes of it when something is in the way."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from fusekit.backends.memory import MemoryBackend
from fusekit.cache.store import ObjectFile, Record
from fusekit.disk import Disk
from fusekit.errors import Denied, Exists, NotEmpty, NotSupported, Stale, TimedOut
from fusekit.plugins.specs import hookimpl
from fusekit.testing.driven import ME, Held, failing
from fusekit.testing.driven import opened as driven
from fusekit.types import Capabilities
from fusekit.vfs.filesystem import Changes
from fusekit.vfs.inodes import ROOT


async def test_a_file_being_written_is_complete_here_and_absent_there(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        opened, attr = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await setup.fs.write(opened.handle, 0, b"abc")
        beside = await setup.fs.open(attr.ino, os.O_RDONLY, ME)
        assert bytes(await setup.fs.read(beside.handle, 0, 10)) == b"abc"
        assert (await setup.fs.getattr(attr.ino, ME)).size == 3
        assert await setup.names() == ["f"]
        assert await setup.there() == {}
        await setup.fs.release(beside.handle)
        await setup.fs.flush(opened.handle)
        await setup.fs.release(opened.handle)
        assert (await setup.there())["f"].size == 3


async def test_replacing_a_content_never_publishes_an_empty_one(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        attr = await setup.make("f", b"old")
        opened = await setup.fs.open(attr.ino, os.O_WRONLY | os.O_TRUNC, ME)
        await setup.fs.flush(opened.handle)
        assert (await setup.there())["f"].size == 3
        await setup.fs.write(opened.handle, 0, b"newer")
        await setup.fs.flush(opened.handle)
        await setup.fs.release(opened.handle)
        assert (await setup.there())["f"].size == 5


async def test_an_empty_file_is_sent_by_fsync_and_by_the_last_close(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        for name, last in (("synced", setup.fs.fsync), ("closed", setup.fs.release)):
            opened, _ = await setup.fs.create(ROOT, name, 0o644, os.O_WRONLY, ME)
            await setup.fs.flush(opened.handle)
            assert name not in await setup.there()
            await last(opened.handle)
            assert (await setup.there())[name].size == 0


async def test_an_empty_flush_is_on_disk_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with driven(tmp_path) as setup:
        said: list[str] = []
        real = os.fsync

        def fsync(fd: int) -> None:
            said.append("fsync")
            real(fd)

        monkeypatch.setattr(os, "fsync", fsync)
        setup.volume.journal._connection.set_trace_callback(said.append)
        opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await setup.fs.flush(opened.handle)
        setup.volume.journal._connection.set_trace_callback(None)
        full, update = said.index("PRAGMA synchronous=FULL"), max(n for n, one in enumerate(said) if "UPDATE" in one)
        assert said.index("fsync") < full < update, "the file, then the row that names it"
        await setup.fs.release(opened.handle)


async def test_who_asks_for_a_file_waits_for_the_upload_of_its_last_close(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        sending = setup.recorder.before = Held("write")
        found: list[bool] = []

        async def look_up() -> None:
            await setup.fs.lookup(ROOT, "f", ME)
            found.append(sending.go_on.is_set())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(setup.fs.release, opened.handle)
            await sending.reached.wait()
            nursery.start_soon(look_up)
            await trio.testing.wait_all_tasks_blocked()
            sending.go_on.set()
        assert found == [True]


async def test_a_rename_waits_for_the_upload_of_the_file(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        attr = await setup.make("f", b"old")
        opened = await setup.fs.open(attr.ino, os.O_WRONLY | os.O_TRUNC, ME)
        await setup.fs.write(opened.handle, 0, b"newer")
        sending = setup.recorder.before = Held("write")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(setup.fs.flush, opened.handle)
            await sending.reached.wait()
            nursery.start_soon(setup.fs.rename, ROOT, "f", ROOT, "g", 0, ME)
            await trio.testing.wait_all_tasks_blocked()
            assert "rename" not in setup.calls
            sending.go_on.set()
        await setup.fs.release(opened.handle)
        assert {name: entry.size for name, entry in (await setup.there()).items()} == {"g": 5}


async def test_fsync_of_a_directory_sends_what_is_below_it(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        made = await setup.fs.mkdir(ROOT, "d", 0o755, ME)
        inside, _ = await setup.fs.create(made.ino, "f", 0o644, os.O_WRONLY, ME)
        beside, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        for opened in (inside, beside):
            await setup.fs.write(opened.handle, 0, b"x")
        handle = await setup.fs.opendir(made.ino, ME)
        await setup.fs.fsyncdir(handle)
        assert setup.calls["write"] == 1
        assert setup.fs.unsent() == ["/f"]
        setup.fs.releasedir(handle)
        for opened in (inside, beside):
            await setup.fs.release(opened.handle)


async def test_a_service_that_is_silent_ends_a_close_and_the_bytes_are_kept(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path) as setup:
        opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await setup.fs.write(opened.handle, 0, b"precious")

        async def silent(hook: str, values: dict[str, Any]) -> None:
            if hook == "write":
                await trio.sleep_forever()

        setup.recorder.before = silent
        autojump_clock.autojump_threshold = 0.1  # not while threads are at the disk
        began = trio.current_time()
        with pytest.raises(TimedOut):
            await setup.fs.flush(opened.handle)
        assert trio.current_time() - began < 3 * setup.volume.settings.idle_timeout_s
        await setup.fs.release(opened.handle)
        (row,) = await setup.volume.journal.rows()
        assert setup.volume.journal.staging_path(row.staging).read_bytes() == b"precious"


async def test_a_truncate_by_path_is_sent_at_once(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        attr = await setup.make("f", b"0123456789")
        await setup.fs.setattr(attr.ino, Changes(size=4), None, ME)
        assert (await setup.there())["f"].size == 4
        assert await setup.content("f") == b"0123"


async def test_a_name_taken_by_somebody_else_in_the_meantime_stays_theirs(tmp_path: Path) -> None:
    async with driven(tmp_path, ttl_s=0.0) as setup:
        opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await setup.fs.write(opened.handle, 0, b"mine")
        await setup.remotely("f", b"theirs")
        with pytest.raises(Exists):
            await setup.fs.flush(opened.handle)
        await setup.fs.release(opened.handle)
        assert await setup.content("f") == b"theirs"
        (row,) = await setup.volume.journal.rows()
        assert setup.volume.journal.staging_path(row.staging).read_bytes() == b"mine"


class Unguarded(MemoryBackend):
    """Has no precondition to write under."""

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        return attrs.evolve(super().fusekit_capabilities(), guarded=False)


async def test_without_preconditions_core_looks_just_before_it_writes(tmp_path: Path) -> None:
    async with driven(tmp_path, Unguarded) as setup:
        await setup.remotely("f", b"old")
        opened = await setup.fs.open((await setup.fs.lookup(ROOT, "f", ME)).ino, os.O_WRONLY | os.O_TRUNC, ME)
        await setup.fs.write(opened.handle, 0, b"mine")
        await setup.remotely("f", b"theirs")
        with pytest.raises(Stale):
            await setup.fs.flush(opened.handle)
        assert "write" not in setup.calls
        await setup.fs.release(opened.handle)
        assert await setup.content("f") == b"theirs"


@pytest.mark.parametrize("backend", [MemoryBackend, Unguarded])
async def test_a_file_removed_by_somebody_else_while_it_is_replaced(
    tmp_path: Path, backend: type[MemoryBackend]
) -> None:
    async with driven(tmp_path, backend) as setup:
        await setup.remotely("f", b"old")
        opened = await setup.fs.open((await setup.fs.lookup(ROOT, "f", ME)).ino, os.O_WRONLY | os.O_TRUNC, ME)
        await setup.fs.write(opened.handle, 0, b"new")
        await setup.remotely_removed("f")
        if backend is Unguarded:
            await setup.fs.flush(opened.handle)
            assert "f" in await setup.there()
        else:
            with pytest.raises(Stale):
                await setup.fs.flush(opened.handle)
            assert await setup.there() == {}
            assert len(await setup.volume.journal.rows()) == 1
        await setup.fs.release(opened.handle)


async def test_a_remove_or_rename_the_service_does_not_guard_is_not_looked_up_first(tmp_path: Path) -> None:
    async with driven(tmp_path, Unguarded) as setup:
        await setup.make("a", b"x")
        await setup.names()
        setup.reset()
        await setup.fs.rename(ROOT, "a", ROOT, "b", 0, ME)
        await setup.fs.unlink(ROOT, "b", ME)
        assert setup.calls == {"rename": 1, "remove": 1}


class Final(MemoryBackend):
    """A file that was closed stays as it is."""

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        return attrs.evolve(super().fusekit_capabilities(), replace=False)


async def test_where_closed_files_are_final_opening_one_for_writing_is_refused(tmp_path: Path) -> None:
    async with driven(tmp_path, Final) as setup:
        attr = await setup.make("f", b"x")
        with pytest.raises(NotSupported) as refused:
            await setup.fs.open(attr.ino, os.O_WRONLY, ME)
        assert refused.value.errno == errno.EPERM
        assert await setup.content("f") == b"x"


def filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every write to the local disk fail, as on a full one."""

    async def write(self: Disk, fd: int, data: bytes | memoryview, at: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Disk, "write", write)


async def test_a_full_disk_is_told_at_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with driven(tmp_path) as setup:
        opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        with monkeypatch.context() as full:
            filled(full)
            with pytest.raises(OSError, match="No space") as failed:
                await setup.fs.write(opened.handle, 0, b"part")
            assert failed.value.errno == errno.ENOSPC
        await setup.fs.write(opened.handle, 0, b"whole")
        await setup.fs.flush(opened.handle)
        await setup.fs.release(opened.handle)
        assert await setup.content("f") == b"whole"


async def test_a_full_cache_disk_is_read_past_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(self: ObjectFile, pieces: object) -> list[Record]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with driven(tmp_path) as setup:
        await setup.remotely("a", b"content")
        with monkeypatch.context() as full:
            full.setattr(ObjectFile, "put", put)
            assert await setup.content("a") == b"content"
            await setup.volume.blocks.settled()
        assert setup.volume.blocks.facts.not_kept == len(b"content")
        assert await setup.content("a") == b"content"


async def test_what_fusekit_keeps_on_disk_is_its_owners_alone(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        await setup.remotely("a", b"x")
        await setup.content("a")
        opened, _ = await setup.fs.create(ROOT, "f", 0o644, os.O_WRONLY, ME)
        await setup.fs.write(opened.handle, 0, b"private")
        kept = [path for top in ("cache", "state") for path in (tmp_path / top).rglob("*")]
        assert {"journal.db", "lock", "staging", "blocks"} <= {path.name for path in kept}
        open_to_others = []
        for path in kept:
            inside = any(stat.S_IMODE(above.stat().st_mode) & 0o077 == 0 for above in (path, path.parent))
            open_to_others += [] if inside else [path]
        assert open_to_others == []
        await setup.fs.flush(opened.handle)
        await setup.fs.release(opened.handle)


async def test_who_may_not_write_is_told_before_a_byte_is_taken(tmp_path: Path) -> None:
    class Guarding(MemoryBackend):
        @hookimpl
        async def fusekit_access(self) -> None:
            """Let everybody in; the test refuses."""

    async with driven(tmp_path, Guarding) as setup:
        await setup.remotely("f", b"x")
        attr = await setup.fs.lookup(ROOT, "f", ME)
        setup.recorder.before = failing("access", Denied("not yours"))
        tries: list[Any] = [
            lambda: setup.fs.open(attr.ino, os.O_RDONLY, ME),
            lambda: setup.fs.open(attr.ino, os.O_WRONLY, ME),
            lambda: setup.fs.create(ROOT, "new", 0o644, os.O_WRONLY, ME),
            lambda: setup.fs.mkdir(ROOT, "d", 0o755, ME),
            lambda: setup.fs.unlink(ROOT, "f", ME),
            lambda: setup.fs.opendir(ROOT, ME),
        ]
        for attempt in tries:
            with pytest.raises(Denied):
                await attempt()
        assert setup.calls.keys() <= {"access", "stat", "list"}


async def test_a_directory_with_nothing_but_unsent_files_is_not_replaced(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        await setup.fs.mkdir(ROOT, "a", 0o755, ME)
        there = await setup.fs.mkdir(ROOT, "b", 0o755, ME)
        opened, _ = await setup.fs.create(there.ino, "f", 0o644, os.O_WRONLY, ME)
        await setup.fs.write(opened.handle, 0, b"abc")
        with pytest.raises(NotEmpty):
            await setup.fs.rename(ROOT, "a", ROOT, "b", 0, ME)
        await setup.fs.flush(opened.handle)
        await setup.fs.release(opened.handle)
        assert (await setup.names()) == ["a", "b"]
