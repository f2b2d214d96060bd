"""What is left of files when a program or the mount itself is killed while they are written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusekit.control.client import wait_for_end
from fusekit.errors import MountError
from fusekit.testing.cli_mount import cli_mount

pytestmark = pytest.mark.fuse

END_TIMEOUT_S = 60.0

WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(fd, b"half")
print("wrote", flush=True)
sys.stdin.read()
"""


@contextmanager
def writing(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that has written to ``path`` and not closed it."""
    program = subprocess.Popen([sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == b"wrote\n"
        yield program
    finally:
        program.kill()
        program.communicate()


def test_what_a_killed_program_had_written_is_sent(tmp_path: Path) -> None:
    behind = tmp_path / "behind"
    behind.mkdir()
    with cli_mount(f"local:{behind}", tmp_path) as there:
        with writing(there.path / "f") as program:
            assert list(behind.iterdir()) == [], "not before it is closed"
            program.kill()
            program.wait()
        assert (there.path / "f").read_bytes() == b"half"
        assert (behind / "f").read_bytes() == b"half"


def test_a_mount_with_an_open_file_cannot_be_unmounted(tmp_path: Path) -> None:
    command = ["umount"] if os.getuid() == 0 else ["fusermount3", "-u"]
    with cli_mount("memory:", tmp_path) as there, writing(there.path / "f"):
        done = subprocess.run([*command, there.path], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "busy" in done.stderr


def test_a_mount_that_is_told_to_end_sends_what_is_open(tmp_path: Path) -> None:
    behind = tmp_path / "behind"
    behind.mkdir()
    with cli_mount(f"local:{behind}", tmp_path) as there, writing(there.path / "f"):
        os.kill(there.pid, signal.SIGTERM)
        assert wait_for_end(there.pid, END_TIMEOUT_S)
        assert (behind / "f").read_bytes() == b"half"


def test_when_the_mount_is_killed_closed_files_are_there_and_open_ones_are_kept(tmp_path: Path) -> None:
    behind = tmp_path / "behind"
    behind.mkdir()
    source = f"local:{behind}"
    with cli_mount(source, tmp_path) as there:
        (there.path / "closed").write_bytes(b"whole")
        with writing(there.path / "open"):
            os.kill(there.pid, signal.SIGKILL)
            assert wait_for_end(there.pid, END_TIMEOUT_S)
        there.pid = 0
        again = there.fusekit("mount", "--log-file", str(there.log), "--", source, str(there.path))
        assert again.returncode == 0, again.stderr
        assert (there.path / "closed").read_bytes() == b"whole"
        assert os.listdir(there.path) == ["closed"], "what was not closed is sent by nobody"
        status = json.loads(there.fusekit("status", "--json", str(there.path)).stdout)
        assert [(row["path"], row["state"]) for row in status["journal"]] == [("/open", "open")]
        (kept,) = (tmp_path / "state").glob("*/staging/*")
        assert kept.read_bytes() == b"half"
        assert "/open was not closed when the last mount ended" in there.told()
        with pytest.raises(MountError, match="not sent: /open"):
            there.unmount()
