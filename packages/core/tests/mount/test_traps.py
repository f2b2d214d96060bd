"""What the kernel and pyfuse3 are known to do to a file system that does not expect it, one test each."""

from __future__ import annotations

import errno
import fcntl
import inspect
import os
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pyfuse3
import pytest
import trio

from fusekit.backends.memory import MemoryBackend, Options
from fusekit.errors import BackendError, Invalid, MountError, NotFound
from fusekit.fuse.adapter import Adapter
from fusekit.fuse.errno import TABLE, number
from fusekit.fuse.session import serve
from fusekit.plugins.specs import OPERATIONS
from fusekit.settings import Consistency, Settings
from fusekit.testing.harness import listed, written
from fusekit.testing.mounts import Mounted, memory, mounted
from fusekit.types import Caller
from fusekit.vfs.inodes import ROOT

pytestmark = pytest.mark.fuse

ME = Caller(os.getuid(), os.getgid(), None)


def remotely(there: Mounted, name: str, data: bytes) -> None:
    """Write ``name`` at the service, as another client would."""

    async def write() -> None:
        hooks = there.volume.hooks
        root = await hooks.fusekit_root(caller=ME)
        await written(hooks, root, name, data, (await listed(hooks, root)).get(name))

    there.run(write)
    there.recorder.calls.clear()


def counting(there: Mounted, *operations: str) -> Counter[str]:
    """Count the calls of the vfs's ``operations``: what really arrives from the kernel."""
    calls: Counter[str] = Counter()
    for name in operations:
        original = getattr(there.volume.filesystem, name)

        def counted(*args: Any, _name: str = name, _call: Callable[..., Any] = original) -> Any:
            calls[_name] += 1
            return _call(*args)

        setattr(there.volume.filesystem, name, counted)
    return calls


def act(path: Path, code: str) -> str:
    """Run Python ``code`` in another process, in the directory ``path``."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=path, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


HOOKS = [hook.removeprefix("fusekit_") for hook in OPERATIONS]
ACTS: dict[str, Callable[[Path], object]] = {
    "list": lambda path: os.listdir(path / "d"),
    "stat": lambda path: os.stat(path / "d" / "cold"),
    "read": lambda path: (path / "file").read_bytes(),
    "write": lambda path: (path / "new").write_bytes(b"x"),
    "mkdir": lambda path: os.mkdir(path / "made"),
    "symlink": lambda path: os.symlink("x", path / "link"),
    "mknod": lambda path: os.mkfifo(path / "fifo"),
    "link": lambda path: os.link(path / "file", path / "second"),
    "rename": lambda path: os.rename(path / "file", path / "other"),
    "remove": lambda path: os.unlink(path / "file"),
    "setattr": lambda path: os.chmod(path / "file", 0o600),
    "getxattrs": lambda path: os.listxattr(path / "file"),
    "setxattr": lambda path: os.setxattr(path / "file", "user.a", b"b"),
    "statfs": os.statvfs,
}


@pytest.mark.parametrize("hook", ACTS)
def test_01_an_exception_in_a_hook_is_an_error_for_one_caller_only(there: Mounted, hook: str) -> None:
    (there.path / "d").mkdir()
    remotely(there, "file", b"content")
    os.listdir(there.path)

    async def explode(called: str, values: dict[str, Any]) -> None:
        if called == hook:
            raise ZeroDivisionError("planted")

    there.run_sync(there.volume.filesystem.tree.metadata.expire, os.stat(there.path / "d").st_ino)
    there.recorder.before = explode
    with pytest.raises(OSError) as failed:
        ACTS[hook](there.path)
    assert failed.value.errno == errno.EIO
    there.recorder.before = None
    assert (there.path / "file").read_bytes() == b"content"
    (there.path / "afterwards").write_bytes(b"works")
    assert (there.path / "afterwards").read_bytes() == b"works"


@pytest.mark.parametrize("hook", ["root", "access", "principal", "capabilities"])
def test_01_the_other_hooks_do_not_end_a_mount_either(tmp_path: Path, hook: str) -> None:
    broken = {"now": False}

    class Fragile(MemoryBackend):
        pass

    original = getattr(MemoryBackend, f"fusekit_{hook}", None)
    if original is None:

        async def failing(self: Any) -> Any:
            if broken["now"]:
                raise ZeroDivisionError("planted")
            return "" if hook == "principal" else None

        failing.__name__ = f"fusekit_{hook}"
        from fusekit.api import hookimpl

        setattr(Fragile, f"fusekit_{hook}", hookimpl(failing))
    elif hook == "root":

        async def root(self: Any) -> Any:
            if broken["now"]:
                raise ZeroDivisionError("planted")
            return await original(self)

        from fusekit.api import hookimpl

        Fragile.fusekit_root = hookimpl(root)  # type: ignore[method-assign]  # the point of the test
    else:

        def capabilities(self: Any) -> Any:
            if broken["now"]:
                raise ZeroDivisionError("planted")
            return original(self)

        from fusekit.api import hookimpl

        Fragile.fusekit_capabilities = hookimpl(capabilities)  # type: ignore[method-assign]  # the point of the test
    with mounted(lambda mount: Fragile(Options(), mount), tmp_path) as there:
        (there.path / "file").write_bytes(b"content")
        there.run_sync(there.volume.filesystem.tree.metadata.expire, ROOT)
        broken["now"] = True
        failures = []
        for operation in (os.listdir, os.stat, os.statvfs, lambda path: os.mkdir(path / "d")):
            try:
                operation(there.path)
            except OSError as error:
                failures.append(error.errno)
        assert set(failures) == {errno.EIO}
        broken["now"] = False
        assert (there.path / "file").read_bytes() == b"content"


def test_02_a_change_told_from_inside_a_handler_empties_the_kernel_without_a_deadlock(tmp_path: Path) -> None:
    settings = attrs.evolve(Settings(), consistency=Consistency.RELAXED)
    with mounted(memory, tmp_path, settings) as there:
        remotely(there, "a", b"old")
        assert (there.path / "a").read_bytes() == b"old"
        remotely(there, "a", b"newer")
        assert (there.path / "a").read_bytes() == b"old"

        async def tell(hook: str, values: dict[str, Any]) -> None:
            if hook == "mkdir":
                there.volume.mount.changed("", "a")
                there.volume.mount.changed("/a")

        there.recorder.before = tell
        os.mkdir(there.path / "d")
        for _ in range(200):
            if act(there.path, "print(open('a').read())").strip() == "newer":
                break
        assert act(there.path, "print(open('a').read())").strip() == "newer"


def test_03_directory_entries_count_as_lookups_but_not_dot_and_dot_dot(there: Mounted) -> None:
    for name in "abc":
        (there.path / name).write_bytes(b"x")
    inodes = there.volume.filesystem.tree.inodes
    Path("/proc/sys/vm/drop_caches").write_text("2") if os.access("/proc/sys/vm/drop_caches", os.W_OK) else None
    before = {node.name: node.lookups for node in inodes}
    os.listdir(there.path)
    after = {node.name: node.lookups for node in inodes}
    assert {after[name] - before[name] for name in "abc"} == {1}
    assert after[""] == before[""]


def test_03_a_listing_survives_changes_between_two_reads(there: Mounted) -> None:
    names = {f"{number:04}-{'x' * 60}" for number in range(1500)}

    async def fill() -> None:
        hooks = there.volume.hooks
        root = await hooks.fusekit_root(caller=ME)
        for name in names:
            await written(hooks, root, name, b"")

    there.run(fill)
    removed: set[str] = set()
    with os.scandir(there.path) as entries:
        seen = [next(entries).name]
        for name in sorted(names)[::2]:
            if name not in seen:
                os.unlink(there.path / name)
                removed.add(name)
        seen += [entry.name for entry in entries]
    assert len(seen) == len(set(seen))
    assert names - removed <= set(seen)


def test_04_every_handler_is_there_and_only_poll_says_enosys(there: Mounted) -> None:
    theirs = {
        name
        for name, member in vars(pyfuse3.Operations).items()
        if inspect.isfunction(member) and not name.startswith("_") and name != "init"
    }
    ours = {name for name in vars(Adapter) if not name.startswith("_")}
    assert theirs <= ours
    assert errno.ENOSYS not in TABLE.values()
    assert number(Invalid("x", errno=errno.ENOSYS)) == errno.EIO
    assert number(OSError(errno.ENOSYS, "x")) == errno.EIO


def test_04_an_operation_that_failed_is_asked_again(there: Mounted) -> None:
    calls = counting(there, "fsync", "flush", "open")

    async def refuse(hook: str, values: dict[str, Any]) -> None:
        if hook == "write":
            raise Invalid("no such thing", errno=errno.ENOSYS)

    there.recorder.before = refuse
    fd = os.open(there.path / "f", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"x")
    for _ in range(3):
        with pytest.raises(OSError) as failed:
            os.fsync(fd)
        assert failed.value.errno == errno.EIO
    assert calls["fsync"] == 3
    there.recorder.before = None
    os.fsync(fd)
    assert calls["fsync"] == 4
    os.close(fd)
    assert calls["flush"] == 1


def test_05_flush_comes_for_each_descriptor_and_each_shell_write_is_one_upload(there: Mounted) -> None:
    calls = counting(there, "flush", "release")
    fd = os.open(there.path / "f", os.O_CREAT | os.O_WRONLY)
    twin = os.dup(fd)
    os.close(twin)
    os.write(fd, b"data")
    os.close(fd)
    assert calls["flush"] == 2
    assert there.recorder.calls["write"] == 1
    there.recorder.calls.clear()
    subprocess.run(["sh", "-c", "echo x > g; touch h; echo y > g"], cwd=there.path, check=True)
    assert (there.path / "g").read_bytes() == b"y\n"
    assert (there.path / "h").read_bytes() == b""
    assert there.recorder.calls["write"] == 3


def test_06_one_session_a_process_and_locks_work_on_this_host(there: Mounted) -> None:
    async def again() -> None:
        await serve(there.volume, there.path, stopping=trio.Event())

    with pytest.raises(MountError):
        there.run(again)
    (there.path / "lock").write_bytes(b"")
    with open(there.path / "lock", "wb") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        code = (
            "import fcntl; f = open('lock', 'wb')\ntry: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB); print('got')\n"
        )
        assert "held" in act(there.path, code + "except BlockingIOError: print('held')")
    assert "got" in act(there.path, code + "except BlockingIOError: print('held')")


def test_07_a_missing_name_is_remembered_by_the_kernel(there: Mounted) -> None:
    os.listdir(there.path)
    calls = counting(there, "lookup")
    for _ in range(50):
        assert not os.path.exists(there.path / "missing")
    assert calls["lookup"] <= 2


def test_08_size_and_mtime_are_ours_not_the_kernels(there: Mounted) -> None:
    assert Adapter.enable_writeback_cache is False
    with open(there.path / "f", "wb", buffering=0) as file:
        calls = counting(there, "write")
        file.write(b"x" * 10)
        assert calls["write"] == 1, "a write arrives when it is made"
        assert os.fstat(file.fileno()).st_size == 10
    there.run_sync(lambda: None)
    os.utime(there.path / "f", ns=(5, 7))
    assert os.stat(there.path / "f").st_mtime_ns == 7


def test_09_getcwd_works_in_new_directories(there: Mounted) -> None:
    said = subprocess.run(
        ["bash", "-c", "mkdir -p a/b/c && cd a/b/c && /bin/pwd && git init -q . && ls -a"],
        cwd=there.path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.splitlines()[0] == str(there.path / "a" / "b" / "c")
    assert ".git" in said


def test_12_a_slow_disk_stalls_no_other_reader(there: Mounted) -> None:
    (there.path / "cached").write_bytes(b"here")
    assert (there.path / "cached").read_bytes() == b"here"
    reached, go_on = threading.Event(), threading.Event()
    journal = there.volume.journal
    original = journal._connection

    class Slow:
        def execute(self, *args: Any) -> Any:
            reached.set()
            go_on.wait(30)
            return original.execute(*args)

    journal._connection = Slow()  # type: ignore[assignment]
    writer = threading.Thread(target=lambda: (there.path / "new").write_bytes(b"x"))
    writer.start()
    try:
        assert reached.wait(30)
        os.listdir(there.path)
        assert (there.path / "cached").read_bytes() == b"here"
        assert writer.is_alive()
    finally:
        journal._connection = original
        go_on.set()
        writer.join(30)


def test_13_a_write_asks_the_backend_for_no_attribute_and_names_need_no_namespace(there: Mounted) -> None:
    fd = os.open(there.path / "f", os.O_CREAT | os.O_WRONLY)
    there.recorder.calls.clear()
    os.write(fd, b"x")
    assert there.recorder.calls == {}
    os.close(fd)
    os.setxattr(there.path / "f", "user.prop.a", b"1")
    assert os.getxattr(there.path / "f", "user.prop.a") == b"1"
    assert os.listxattr(there.path / "f") == ["user.prop.a"]
    for name in ("security.capability", "system.posix_acl_access", "trusted.x"):
        with pytest.raises(OSError) as failed:
            os.getxattr(there.path / "f", name)
        assert failed.value.errno in {errno.ENODATA, errno.EOPNOTSUPP}


@pytest.mark.skipif(os.getuid() != 0, reason="making a device needs root")
def test_14_special_files_have_the_bare_spelling_only(there: Mounted) -> None:
    os.mknod(there.path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.setxattr(there.path / "device", "prop.x", b"y")
    assert os.getxattr(there.path / "device", "prop.x") == b"y"
    assert os.listxattr(there.path / "device") == ["prop.x"]
    with pytest.raises(PermissionError):
        os.setxattr(there.path / "device", "user.prop.x", b"z")


def test_16_what_comes_without_a_caller_is_done_as_the_one_who_opened(there: Mounted) -> None:
    callers: list[Caller] = []

    async def note(hook: str, values: dict[str, Any]) -> None:
        callers.append(values["caller"])

    there.recorder.before = note
    (there.path / "f").write_bytes(b"x")
    assert callers
    assert {(caller.uid, caller.gid) for caller in callers} == {(os.getuid(), os.getgid())}


def test_18_many_stuck_operations_do_not_starve_the_others(there: Mounted) -> None:
    stuck = 130
    for number_ in range(stuck):
        (there.path / f"d{number_}").mkdir()
    (there.path / "cached").write_bytes(b"here")
    metadata = there.volume.filesystem.tree.metadata
    for number_ in range(stuck):
        there.run_sync(metadata.expire, os.stat(there.path / f"d{number_}").st_ino)
    waiting, go_on = threading.Semaphore(0), trio.Event()

    async def hold(hook: str, values: dict[str, Any]) -> None:
        if hook == "stat" and values["name"] == "stuck":
            waiting.release()
            await go_on.wait()

    there.recorder.before = hold
    threads = [
        threading.Thread(target=os.path.exists, args=(there.path / f"d{number_}" / "stuck",))
        for number_ in range(stuck)
    ]
    for thread in threads:
        thread.start()
    try:
        assert all(waiting.acquire(timeout=30) for _ in range(stuck))
        assert (there.path / "cached").read_bytes() == b"here"
    finally:
        there.run_sync(go_on.set)
        for thread in threads:
            thread.join(30)


def test_19_an_append_lands_after_what_somebody_else_appended(there: Mounted) -> None:
    (there.path / "log").write_bytes(b"one\n")
    assert (there.path / "log").read_bytes() == b"one\n"
    remotely(there, "log", b"one\ntwo\n")
    with open(there.path / "log", "ab") as log:
        log.write(b"three\n")
    assert (there.path / "log").read_bytes() == b"one\ntwo\nthree\n"


def test_20_what_is_unsent_at_umount_is_sent_afterwards(tmp_path: Path) -> None:
    started, go_on = threading.Event(), trio.Event()

    async def slow(hook: str, values: dict[str, Any]) -> None:
        if hook == "write":
            started.set()
            await go_on.wait()

    backend: list[MemoryBackend] = []

    def make(mount: Any) -> MemoryBackend:
        backend.append(MemoryBackend(Options(), mount))
        return backend[0]

    with mounted(make, tmp_path) as there:
        there.recorder.before = slow
        os.close(os.open(there.path / "f", os.O_CREAT | os.O_WRONLY))  # empty: sent at release, which nobody waits for
        assert started.wait(30)
        subprocess.run(["umount", there.path] if os.getuid() == 0 else ["fusermount3", "-u", there.path], check=True)
        assert not os.path.ismount(there.path)
        there.run_sync(go_on.set)

    async def names() -> set[str]:
        root = await backend[0].fusekit_root()
        found: set[str] = set()

        async def page(entries: Any) -> None:
            found.update(entry.name for entry in entries)

        await backend[0].fusekit_list(root, page)
        return found

    assert trio.run(names) == {"f"}


def test_21_reads_of_cached_pages_cost_no_getattr(there: Mounted) -> None:
    (there.path / "f").write_bytes(os.urandom(1 << 20))
    with open(there.path / "f", "rb", buffering=0) as file:
        file.read()
        os.stat(there.path / "f")
        calls = counting(there, "getattr", "read")
        for offset in range(0, 1 << 20, 4096):
            os.pread(file.fileno(), 4096, offset)
        assert calls["getattr"] <= 2
        assert calls["read"] == 0


def test_errors_become_their_numbers(there: Mounted) -> None:
    for cls, expected in TABLE.items():

        async def refuse(hook: str, values: dict[str, Any], cls: type[BackendError] = cls) -> None:
            if hook == "mkdir":
                raise cls("planted")

        there.recorder.before = refuse
        if issubclass(cls, NotFound):
            continue
        with pytest.raises(OSError) as failed:
            os.mkdir(there.path / f"d-{cls.__name__}")
        assert failed.value.errno in {expected, errno.EIO if expected == errno.ENOSYS else expected}, cls
