"""What the local backend promises beyond the contract: whole files, safe paths, identities, clean-up."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from fusekit.backends import local_disk, local_staging
from fusekit.backends.local import LocalBackend, Options
from fusekit.backends.local_staging import hidden_for
from fusekit.errors import (
    BackendError,
    Busy,
    ConfigError,
    Denied,
    Exists,
    Invalid,
    NotDirectory,
    NotFound,
    NotSupported,
    Stale,
)
from fusekit.testing.harness import ME, Place, PlainMount, Upload, listed, looked_up, made, moved, opened, read, written
from fusekit.types import Attributes, Caller, Entry, Kind

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="acts as two users, which only the administrator can")


@asynccontextmanager
async def local(root: Path) -> AsyncIterator[Place]:
    async with opened(LocalBackend(Options(root), PlainMount())) as place:
        yield place


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with local(tmp_path) as place:
        yield place


def on_disk(root: Path) -> set[str]:
    return set(os.listdir(root))


# --- what is on the disk


async def test_what_is_written_is_a_plain_file(place: Place, tmp_path: Path) -> None:
    await written(place.hooks, place.directory, "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert on_disk(tmp_path) == {"file"}


async def test_what_others_write_is_seen(place: Place, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"theirs")
    folder = await looked_up(place.hooks, place.directory, "folder")
    file = (await listed(place.hooks, folder))["file"]
    assert await read(place.hooks, file) == b"theirs"
    (tmp_path / "folder/file").write_bytes(b"changed")
    with pytest.raises(Stale):
        await read(place.hooks, file)


async def test_all_attributes_are_told_as_they_are(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    os.chmod(tmp_path / "file", 0o4751)
    os.utime(tmp_path / "file", ns=(1_000_000_001, 2_000_000_002))
    entry, facts = await looked_up(place.hooks, place.directory, "file"), os.stat(tmp_path / "file")
    assert (entry.size, entry.mode, entry.nlink) == (5, 0o4751, 1)
    assert (entry.atime_ns, entry.mtime_ns, entry.ctime_ns) == (1_000_000_001, 2_000_000_002, facts.st_ctime_ns)
    assert (entry.uid, entry.gid) == (facts.st_uid, facts.st_gid)


async def test_every_kind_is_told(place: Place, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.symlink("nowhere", tmp_path / "link")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(tmp_path):
        server.bind("socket")
        found = await listed(place.hooks, place.directory)
    kinds = {name: entry.kind for name, entry in found.items()}
    assert kinds == {"fifo": Kind.FIFO, "link": Kind.SYMLINK, "folder": Kind.DIRECTORY, "socket": Kind.SOCKET}


async def test_a_fifo_is_not_read_from(place: Place, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Invalid), trio.fail_after(30):
        await read(place.hooks, await looked_up(place.hooks, place.directory, "fifo"))


async def test_names_that_are_not_text_come_through(place: Place, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9\xff")).write_bytes(b"x")
    (name,) = await listed(place.hooks, place.directory)
    assert name == "caf\udce9\udcff"
    assert await read(place.hooks, await looked_up(place.hooks, place.directory, name)) == b"x"
    entry = await looked_up(place.hooks, place.directory, name)
    await moved(place.hooks, entry, place.directory, place.directory, "\udc80")
    assert os.listdir(os.fsencode(tmp_path)) == [b"\x80"]


async def test_modes_do_not_depend_on_the_umask(place: Place, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        await made(place.hooks, place.directory, "folder", Attributes(mode=0o777))
        await written(place.hooks, place.directory, "file", Upload(b"", attributes=Attributes(mode=0o666)))
        await written(place.hooks, place.directory, "default", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "folder").st_mode) == 0o777
    assert stat.S_IMODE(os.stat(tmp_path / "file").st_mode) == 0o666
    assert stat.S_IMODE(os.stat(tmp_path / "default").st_mode) == 0o600, "where no mode is given the umask counts"


# --- identity and version


async def test_hard_links_are_one_object(place: Place, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x")
    os.link(tmp_path / "one", tmp_path / "two")
    found = await listed(place.hooks, place.directory)
    assert found["one"].id == found["two"].id
    assert found["one"].nlink == 2


async def test_an_inode_number_that_comes_again_is_another_object(place: Place, tmp_path: Path) -> None:
    seen: dict[int, str] = {}
    for number in range(50):
        (tmp_path / "file").write_bytes(b"x")
        entry = await looked_up(place.hooks, place.directory, "file")
        inode = os.stat(tmp_path / "file").st_ino
        assert entry.id is not None
        if entry.id == f"{inode:x}":
            pytest.skip("this filesystem does not tell the generation of an inode")
        assert entry.id not in seen.values(), f"file {number} looks like one that is gone"
        seen[inode] = entry.id
        os.unlink(tmp_path / "file")


async def test_reading_and_attributes_are_no_new_version(place: Place, tmp_path: Path) -> None:
    first = await written(place.hooks, place.directory, "file", b"content")
    os.chmod(tmp_path / "file", 0o600)
    os.setxattr(tmp_path / "file", "user.x", b"1")
    os.link(tmp_path / "file", tmp_path / "other")
    await read(place.hooks, first)
    assert (await looked_up(place.hooks, place.directory, "file")).version == first.version


async def test_the_same_time_and_size_written_anew_is_a_new_version(place: Place) -> None:
    attributes = Attributes(mtime_ns=10**18)
    one = await written(place.hooks, place.directory, "file", Upload(b"one", attributes=attributes))
    two = await written(place.hooks, place.directory, "file", Upload(b"two", attributes=attributes), replacing=one)
    assert one.mtime_ns == two.mtime_ns
    assert one.version != two.version


async def test_identities_survive_a_remount(tmp_path: Path) -> None:
    async with local(tmp_path) as place:
        before = await written(place.hooks, place.directory, "file", b"x")
    async with local(tmp_path) as place:
        after = await looked_up(place.hooks, place.directory, "file")
    assert (after.id, after.version) == (before.id, before.version)


async def test_files_written_within_a_tick_of_the_clock_have_times_in_order(place: Place, tmp_path: Path) -> None:
    entry = await written(place.hooks, place.directory, "file", b"x")
    for _ in range(5):
        soon = time.time_ns() + 5_000_000
        os.utime(tmp_path / "file", ns=(soon, soon))
        entry = await looked_up(place.hooks, place.directory, "file")
        entry = await written(place.hooks, place.directory, "file", b"y", replacing=entry)
        assert (entry.mtime_ns or 0) > soon


async def test_a_time_in_the_future_does_not_stay_with_new_content(place: Place, tmp_path: Path) -> None:
    await written(place.hooks, place.directory, "file", b"x")
    os.utime(tmp_path / "file", ns=(4 * 10**18, 4 * 10**18))
    entry = await looked_up(place.hooks, place.directory, "file")
    entry = await written(place.hooks, place.directory, "file", b"y", replacing=entry)
    assert (entry.mtime_ns or 0) < 4 * 10**18


# --- whole or not at all


async def test_the_old_content_stays_readable_until_the_new_one_is_whole(place: Place, tmp_path: Path) -> None:
    old = await written(place.hooks, place.directory, "file", b"old")
    upload = Upload(b"n" * 5_000, step=1_000, hang_at=4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(written, place.hooks, place.directory, "file", upload, old)
        await upload.reached.wait()
        assert (tmp_path / "file").read_bytes() == b"old"
        assert len(on_disk(tmp_path)) == 2, "the new content is in a file beside it"
        assert set(await listed(place.hooks, place.directory)) == {"file"}, "which is not shown"
        upload.release.set()
    assert (tmp_path / "file").read_bytes() == b"n" * 5_000
    assert on_disk(tmp_path) == {"file"}


async def test_a_program_that_has_the_old_file_open_keeps_it(place: Place, tmp_path: Path) -> None:
    old = await written(place.hooks, place.directory, "file", b"old")
    with (tmp_path / "file").open("rb") as reader:
        await written(place.hooks, place.directory, "file", b"new", replacing=old)
        assert reader.read() == b"old"


async def test_a_replaced_file_passes_on_what_belongs_to_it(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    os.chmod(tmp_path / "file", 0o640)
    os.setxattr(tmp_path / "file", "user.color", b"red")
    old = await looked_up(place.hooks, place.directory, "file")
    new = await written(place.hooks, place.directory, "file", b"new", replacing=old)
    assert new.mode == 0o640
    assert os.getxattr(tmp_path / "file", "user.color") == b"red"
    given = Upload(b"newer", attributes=Attributes(mode=0o600))
    assert (await written(place.hooks, place.directory, "file", given, replacing=new)).mode == 0o600


async def test_a_file_with_two_names_keeps_both(place: Place, tmp_path: Path) -> None:
    one = await written(place.hooks, place.directory, "one", b"a longer content than the next")
    os.link(tmp_path / "one", tmp_path / "two")
    one = await looked_up(place.hooks, place.directory, "one")
    new = await written(place.hooks, place.directory, "one", b"short", replacing=one)
    assert (new.id, new.nlink, new.size) == (one.id, 2, 5)
    assert (tmp_path / "two").read_bytes() == b"short"
    assert on_disk(tmp_path) == {"one", "two"}


async def test_writing_in_place_is_a_new_version_within_a_tick(place: Place, tmp_path: Path) -> None:
    entry = await written(place.hooks, place.directory, "one", b"content 0")
    os.link(tmp_path / "one", tmp_path / "two")
    versions = set()
    for number in range(1, 20):
        entry = await looked_up(place.hooks, place.directory, "one")
        versions.add(entry.version)
        await written(place.hooks, place.directory, "one", f"content {number % 10}".encode(), replacing=entry)
    assert len(versions) == 19


async def test_a_change_during_the_upload_is_not_overwritten(place: Place, tmp_path: Path) -> None:
    old = await written(place.hooks, place.directory, "file", b"old")
    upload = Upload(b"n" * 5_000, step=1_000, hang_at=4)

    async def write() -> None:
        with pytest.raises(Stale):
            await written(place.hooks, place.directory, "file", upload, replacing=old)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await upload.reached.wait()
        (tmp_path / "file").write_bytes(b"theirs, meanwhile")
        upload.release.set()
    assert (tmp_path / "file").read_bytes() == b"theirs, meanwhile"
    assert on_disk(tmp_path) == {"file"}


async def test_a_name_that_others_took_during_the_upload_is_theirs(place: Place, tmp_path: Path) -> None:
    upload = Upload(b"n" * 5_000, step=1_000, hang_at=4)

    async def write() -> None:
        with pytest.raises(Exists):
            await written(place.hooks, place.directory, "file", upload)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await upload.reached.wait()
        (tmp_path / "file").write_bytes(b"theirs")
        upload.release.set()
    assert (tmp_path / "file").read_bytes() == b"theirs"
    assert on_disk(tmp_path) == {"file"}


# --- what a crash leaves


def leave(directory: Path, key: str = "key", name: str = "file") -> Path:
    """Leave an unfinished file as kill -9 does."""
    left = directory / os.fsdecode(hidden_for(key, name))
    left.write_bytes(b"half a fi")
    return left


async def test_what_a_crash_left_is_swept_when_its_directory_is_listed(place: Place, tmp_path: Path) -> None:
    left = leave(tmp_path)
    assert await listed(place.hooks, place.directory) == {}
    assert not left.exists()


async def test_what_somebody_is_writing_is_not_swept(place: Place, tmp_path: Path) -> None:
    left = leave(tmp_path)
    with left.open("r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert await listed(place.hooks, place.directory) == {}
        assert left.exists()
        with pytest.raises(Busy):
            await written(place.hooks, place.directory, "file", Upload(b"x", key="key"))


async def test_the_next_attempt_takes_the_place_of_what_a_crash_left(place: Place, tmp_path: Path) -> None:
    leave(tmp_path)
    await written(place.hooks, place.directory, "file", Upload(b"whole", key="key"))
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert on_disk(tmp_path) == {"file"}


async def test_the_note_leads_to_what_was_left_elsewhere(place: Place, tmp_path: Path) -> None:
    await made(place.hooks, place.directory, "before")
    left = leave(tmp_path / "before", name="other")
    upload = Upload(b"x", key="key", note={"unfinished": f"/before/{left.name}"})
    await written(place.hooks, place.directory, "file", upload)
    assert not left.exists()


async def test_a_note_cannot_remove_anything_else(place: Place, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"x")
    for note in ("/kept", "/../kept", "/", "", "kept", "/.fusekit-/x.tmp/../../kept"):
        upload = Upload(b"x", note={"unfinished": note})
        entry = await written(place.hooks, place.directory, "file", upload)
        await place.hooks.fusekit_remove(directory=place.directory, entry=entry, caller=ME)
    assert on_disk(tmp_path) == {"kept"}


async def test_a_directory_that_looks_empty_can_be_removed_and_replaced(place: Place, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        await made(place.hooks, place.directory, name)
    leave(tmp_path / "one")
    leave(tmp_path / "two")
    one, two, three = [await looked_up(place.hooks, place.directory, name) for name in ("one", "two", "three")]
    await place.hooks.fusekit_remove(directory=place.directory, entry=one, caller=ME)
    await moved(place.hooks, three, place.directory, place.directory, "two", replacing=two)
    assert on_disk(tmp_path) == {"two"}


async def test_the_names_of_unfinished_files_are_not_there_and_not_free(place: Place, tmp_path: Path) -> None:
    name = leave(tmp_path).name
    entry = await written(place.hooks, place.directory, "file", b"x")
    with pytest.raises(NotFound):
        await looked_up(place.hooks, place.directory, name)
    with pytest.raises(Invalid, match="unfinished"):
        await written(place.hooks, place.directory, name, b"x")
    with pytest.raises(Invalid, match="unfinished"):
        await made(place.hooks, place.directory, name)
    with pytest.raises(Invalid, match="unfinished"):
        await moved(place.hooks, entry, place.directory, place.directory, name)


# --- nothing outside


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a directory beside the one that is served, with a file that nobody may touch."""
    beside = tmp_path_factory.mktemp("outside")
    (beside / "secret").write_bytes(b"secret")
    yield beside
    assert (beside / "secret").read_bytes() == b"secret"
    assert on_disk(beside) == {"secret"}


@pytest.mark.parametrize("ref", ["/..", "/folder/..", "/folder/../..", "/.", "//"])
async def test_a_ref_does_not_lead_upwards(place: Place, tmp_path: Path, ref: str) -> None:
    (tmp_path / "folder").mkdir()
    for entry in (Entry.directory("x", ref), Entry.directory("x", f"{ref}/x")):
        with pytest.raises(Invalid):
            await listed(place.hooks, entry)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../a", "a\0b", "n" * 256])
async def test_a_name_does_not_lead_elsewhere(place: Place, name: str) -> None:
    with pytest.raises(Invalid):
        await looked_up(place.hooks, place.directory, name)
    with pytest.raises(Invalid):
        await written(place.hooks, place.directory, name, b"x")
    with pytest.raises(Invalid):
        await made(place.hooks, place.directory, name)


async def test_symbolic_links_are_shown_and_never_followed(place: Place, tmp_path: Path, outside: Path) -> None:
    os.symlink(outside, tmp_path / "folder")
    os.symlink(outside / "secret", tmp_path / "file")
    folder, file = [await looked_up(place.hooks, place.directory, name) for name in ("folder", "file")]
    assert (folder.kind, folder.target) == (Kind.SYMLINK, str(outside))
    posing = attrs.evolve(folder, kind=Kind.DIRECTORY)
    with pytest.raises(NotDirectory):
        await listed(place.hooks, posing)
    with pytest.raises(NotDirectory):
        await written(place.hooks, posing, "new", b"x")
    with pytest.raises(NotDirectory):
        await looked_up(place.hooks, posing, "secret")
    with pytest.raises((Invalid, NotDirectory)):
        await read(place.hooks, attrs.evolve(file, kind=Kind.FILE))
    with pytest.raises(Invalid):
        await written(place.hooks, place.directory, "file", b"x", replacing=file)
    changes = Attributes(mtime_ns=10**18)
    await place.hooks.fusekit_setattr(directory=place.directory, entry=file, changes=changes, caller=ME)
    assert os.lstat(tmp_path / "file").st_mtime_ns == 10**18
    assert os.stat(outside / "secret").st_mtime_ns != 10**18
    with pytest.raises(BackendError):
        await place.hooks.fusekit_setxattr(entry=file, name="x", value=b"1", caller=ME)
    assert os.listxattr(outside / "secret") == []


async def test_a_directory_that_was_swapped_for_a_link_leads_nowhere(
    place: Place, tmp_path: Path, outside: Path
) -> None:
    folder = await made(place.hooks, place.directory, "folder")
    inner = await made(place.hooks, folder, "inner")
    os.rename(tmp_path / "folder", tmp_path / "moved")
    os.symlink(outside, tmp_path / "folder")
    for entry in (folder, inner):
        with pytest.raises(NotDirectory):
            await listed(place.hooks, entry)
        with pytest.raises(NotDirectory):
            await written(place.hooks, entry, "new", b"x")


async def test_a_root_that_moves_stays_the_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").write_bytes(b"ours")
    async with local(tmp_path / "root") as place:
        os.rename(tmp_path / "root", tmp_path / "elsewhere")
        (tmp_path / "root").mkdir()
        assert set(await listed(place.hooks, place.directory)) == {"file"}


async def test_another_directory_at_the_same_place_is_stale(place: Place, tmp_path: Path) -> None:
    folder = await made(place.hooks, place.directory, "folder")
    os.rename(tmp_path / "folder", tmp_path / "away")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Stale):
        await listed(place.hooks, folder)
    with pytest.raises(Stale):
        await made(place.hooks, folder, "x")


# --- what a filesystem may lack, and errors


def lacking(*number: int) -> object:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EINVAL, "no such flag")

    return refuse


async def test_without_noreplace_a_taken_name_is_still_safe(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_staging, "rename2", lacking())
    file = await written(place.hooks, place.directory, "file", b"x")
    folder = await made(place.hooks, place.directory, "folder")
    with pytest.raises(Exists):
        await moved(place.hooks, file, place.directory, place.directory, "folder")
    with pytest.raises(Exists):
        await moved(place.hooks, folder, place.directory, place.directory, "file")
    with pytest.raises(Exists):
        await written(place.hooks, place.directory, "file", b"y")
    await moved(place.hooks, file, place.directory, place.directory, "moved")
    await moved(place.hooks, folder, place.directory, place.directory, "away")
    assert on_disk(tmp_path) == {"moved", "away"}


async def test_without_file_handles_the_inode_number_is_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_disk, "_NAME_TO_HANDLE_AT", None)
    async with local(tmp_path) as place:
        entry = await written(place.hooks, place.directory, "file", b"x")
        assert entry.id == f"{os.stat(tmp_path / 'file').st_ino:x}"


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOENT, NotFound),
        (errno.EPERM, Denied),
        (errno.EACCES, Denied),
        (errno.EXDEV, NotSupported),
        (errno.EIO, BackendError),
        (None, BackendError),
    ],
)
def test_errors_keep_their_number(number: int | None, error: type[BackendError]) -> None:
    found = local_disk.translated(OSError(number, "x"))
    assert type(found) is error
    assert found.errno == (number or errno.EIO)


def test_a_root_that_is_no_directory_is_refused_in_words(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", Path(__file__)):
        with pytest.raises(ConfigError, match="is not a directory"):
            LocalBackend(Options(path), PlainMount())


async def test_a_full_name_is_as_long_as_the_filesystem_says(place: Place, tmp_path: Path) -> None:
    assert place.capabilities.name_bytes_max == os.pathconf(tmp_path, "PC_NAME_MAX")


async def test_the_disk_is_only_touched_in_threads_of_its_own(tmp_path: Path) -> None:
    backend = LocalBackend(Options(tmp_path, threads=3), PlainMount())
    async with opened(backend) as place:
        running: list[int] = []

        async def one(number: int) -> None:
            await written(place.hooks, place.directory, str(number), Upload(bytes(100), step=10))
            running.append(backend._threads.borrowed_tokens)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, number)
        assert max(running) <= 3
        assert place.capabilities.requests_max == 3
        assert backend._threads.borrowed_tokens == 0


async def test_descriptors_are_all_closed(tmp_path: Path) -> None:
    before = on_disk(Path("/proc/self/fd"))
    async with local(tmp_path) as place:
        file = await written(place.hooks, place.directory, "file", b"x")
        with pytest.raises(Stale):
            await written(place.hooks, place.directory, "file", b"y", replacing=attrs.evolve(file, version="other"))
        with pytest.raises(NotDirectory):
            await listed(place.hooks, file)
        with pytest.raises(Exists):
            await made(place.hooks, place.directory, "file")
        await read(place.hooks, file)
        await moved(place.hooks, file, place.directory, place.directory, "moved")
    assert on_disk(Path("/proc/self/fd")) - before == set()


# --- users


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Let all threads of this process act as another user for a while."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def shared() -> Iterator[Path]:
    """Return a directory that other users reach: pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@ROOT_ONLY
async def test_the_administrator_makes_files_for_who_asks(shared: Path) -> None:
    other = Caller(uid=4321, gid=4322, pid=None)
    (shared / "group").mkdir()
    os.chown(shared / "group", 0, 4444)
    os.chmod(shared / "group", 0o2777)
    async with local(shared) as place:
        folder = await looked_up(place.hooks, place.directory, "group")
        call = place.hooks.fusekit_mkdir
        one = await call(directory=place.directory, name="one", attributes=Attributes(), caller=other)
        two = await call(directory=folder, name="two", attributes=Attributes(), caller=other)
        three = await call(directory=place.directory, name="three", attributes=Attributes(uid=5, gid=6), caller=other)
        file = await place.hooks.fusekit_write(
            directory=folder, name="file", replacing=None, content=Upload(b"x"), caller=other
        )
    assert (one.uid, one.gid) == (4321, 4322)
    assert (two.uid, two.gid) == (4321, 4444), "the directory hands its group down"
    assert (three.uid, three.gid) == (5, 6)
    assert (file.uid, file.gid) == (4321, 4444)


@ROOT_ONLY
@pytest.mark.parametrize("uid", [0, 4321])
async def test_a_set_group_id_directory_hands_down_group_and_bit(shared: Path, uid: int) -> None:
    caller = Caller(uid=uid, gid=4322, pid=None)
    (shared / "group").mkdir()
    os.chown(shared / "group", 0, 4444)
    os.chmod(shared / "group", 0o2777)
    async with local(shared) as place:
        folder = await looked_up(place.hooks, place.directory, "group")
        for directory, group, bit in ((place.directory, 4322, 0), (folder, 4444, stat.S_ISGID)):
            made = await place.hooks.fusekit_mkdir(
                directory=directory, name="made", attributes=Attributes(mode=0o750, uid=uid), caller=caller
            )
            assert (made.uid, made.gid, made.mode) == (uid, group, 0o750 | bit)
            file = await place.hooks.fusekit_write(
                directory=directory,
                name="file",
                replacing=None,
                content=Upload(b"x", attributes=Attributes(mode=0o640, uid=uid)),
                caller=caller,
            )
            assert (file.uid, file.gid, file.mode) == (uid, group, 0o640)


@ROOT_ONLY
async def test_a_file_of_somebody_else_is_written_in_place(shared: Path) -> None:
    (shared / "file").write_bytes(b"before")
    os.chmod(shared / "file", 0o666)
    os.chmod(shared, 0o777)
    inode = os.stat(shared / "file").st_ino
    with acting_as(4321):
        async with local(shared) as place:
            old = await looked_up(place.hooks, place.directory, "file")
            await written(place.hooks, place.directory, "file", b"now", replacing=old)
    facts = os.stat(shared / "file")
    assert (facts.st_uid, facts.st_ino) == (0, inode)
    assert (shared / "file").read_bytes() == b"now"
    assert on_disk(shared) == {"file"}


@ROOT_ONLY
async def test_a_file_in_a_directory_that_takes_no_names_is_written_in_place(shared: Path) -> None:
    (shared / "file").write_bytes(b"before, and longer")
    os.chown(shared / "file", 4321, 4321)
    with acting_as(4321):
        async with local(shared) as place:
            old = await looked_up(place.hooks, place.directory, "file")
            new = await written(place.hooks, place.directory, "file", b"now", replacing=old)
            assert await read(place.hooks, new) == b"now"
            with pytest.raises(Denied):
                await written(place.hooks, place.directory, "new", b"x")
    assert on_disk(shared) == {"file"}


@ROOT_ONLY
async def test_an_owner_that_we_may_not_give_leaves_nothing_behind(shared: Path) -> None:
    os.chmod(shared, 0o777)
    with acting_as(4321):
        async with local(shared) as place:
            wanted = Attributes(uid=5)
            with pytest.raises(Denied):
                await made(place.hooks, place.directory, "folder", wanted)
            with pytest.raises(Denied):
                await written(place.hooks, place.directory, "file", Upload(b"x", attributes=wanted))
    assert on_disk(shared) == set()
