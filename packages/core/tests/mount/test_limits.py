"""What a mount deliberately does not do, as programs meet it: each of these has an answer, and it is always the same."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from fusekit.backends.memory import MemoryBackend, Options
from fusekit.plugins.specs import hookimpl
from fusekit.testing.cli_mount import cli_mount
from fusekit.testing.mounts import Mounted, memory, mounted

pytestmark = pytest.mark.fuse


def test_a_file_is_always_ready_for_poll(there: Mounted) -> None:
    with open(there.path / "f", "w+b", buffering=0) as file:
        for _ in range(3):
            poll = select.poll()
            poll.register(file, select.POLLIN | select.POLLOUT)
            assert poll.poll(0) == [(file.fileno(), select.POLLIN | select.POLLOUT)]


def test_a_directory_has_one_link_whatever_is_in_it(there: Mounted) -> None:
    (there.path / "d" / "below").mkdir(parents=True)
    assert {os.stat(path).st_nlink for path in (there.path, there.path / "d", there.path / "d" / "below")} == {1}


def test_room_is_not_reserved_and_holes_are_not_told(there: Mounted) -> None:
    (there.path / "f").write_bytes(b"x")
    done = subprocess.run(["fallocate", "-l", "100", there.path / "f"], capture_output=True, text=True, check=False)
    assert (done.returncode, "not supported" in done.stderr) == (1, True)
    with open(there.path / "f", "r+b", buffering=0) as file:
        file.truncate(1 << 20)
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 1 << 20


def test_a_file_without_a_name_cannot_be_made(there: Mounted) -> None:
    with pytest.raises(OSError) as refused:
        os.open(there.path, os.O_TMPFILE | os.O_RDWR)
    assert refused.value.errno == errno.EOPNOTSUPP


def told(path: Path) -> tuple[set[str], set[str]]:
    """Return the options of the mount at ``path``, and those of its file system, as the kernel tells them."""
    (fields,) = [
        line.split(" ")
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split(" ")[4] == str(path)
    ]
    return set(fields[5].split(",")), set(fields[-1].split(","))


def test_set_user_id_bits_and_devices_have_no_effect(there: Mounted) -> None:
    assert {"nosuid", "nodev"} <= told(there.path)[0]


class Personal(MemoryBackend):
    """Shows each user something else, perhaps."""

    @hookimpl
    async def fusekit_principal(self, uid: int) -> str:
        return f"user {uid}"


def test_the_kernel_checks_modes_for_the_owner_of_the_mount_alone_unless_users_have_views(tmp_path: Path) -> None:
    with mounted(memory, tmp_path) as there:
        assert told(there.path)[1] & {"default_permissions", "allow_other"} == {"default_permissions"}
    with mounted(lambda mount: Personal(Options(), mount), tmp_path) as there:
        assert told(there.path)[1] & {"default_permissions", "allow_other"} == set()


def test_flags_and_sizes_of_extended_attributes_are_obeyed(there: Mounted) -> None:
    path = there.path / "f"
    path.write_bytes(b"x")
    with pytest.raises(OSError) as missing:
        os.setxattr(path, "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"1" * 500, os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)
    assert missing.value.errno == errno.ENODATA
    code = "import ctypes, sys; libc = ctypes.CDLL(None, use_errno=True); value = ctypes.create_string_buffer(10)"
    ask = "print(libc.getxattr(sys.argv[1].encode(), b'user.a', value, 10), ctypes.get_errno())"
    done = subprocess.run([sys.executable, "-c", f"{code}; {ask}", path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["-1", str(errno.ERANGE)]
    os.removexattr(path, "user.a")
    with pytest.raises(OSError) as gone:
        os.removexattr(path, "user.a")
    assert gone.value.errno == errno.ENODATA


LOCK = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_lock_holds_on_one_mount_and_is_unknown_on_another(tmp_path: Path) -> None:
    behind = tmp_path / "behind"
    behind.mkdir()
    (behind / "f").write_text("x")
    source = f"local:{behind}"
    with cli_mount(source, tmp_path / "one") as one, cli_mount(source, tmp_path / "two") as two:
        hold = subprocess.Popen(
            [sys.executable, "-c", LOCK, one.path / "f"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert hold.stdout is not None
            assert hold.stdout.readline() == b"locked\n"
            for mount, expected in ((one, 1), (two, 0)):
                tried = subprocess.run(
                    [sys.executable, "-c", LOCK, mount.path / "f"],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    check=False,
                    timeout=60,
                )
                assert tried.returncode == expected
        finally:
            hold.communicate()
