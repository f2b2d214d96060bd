"""Mounts whose `close` waits for this disk alone, as programs and commands meet them: crash, drain, journal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fusekit.control.client import wait_for_end
from fusekit.errors import MountError
from fusekit.journal.steps import VARIABLE
from fusekit.testing.cli_mount import CliMount, cli_mount

pytestmark = pytest.mark.fuse

END_TIMEOUT_S = 60.0


@pytest.fixture
def behind(tmp_path: Path) -> Path:
    made = tmp_path / "behind"
    made.mkdir()
    return made


def killed(there: CliMount) -> None:
    os.kill(there.pid, signal.SIGKILL)
    assert wait_for_end(there.pid, END_TIMEOUT_S)
    there.pid = 0


def again(there: CliMount, *arguments: str) -> subprocess.CompletedProcess[str]:
    return there.fusekit("mount", *arguments, "--log-file", str(there.log), "--", there.source, str(there.path))


def entries(there: CliMount) -> dict[str, tuple[str, str]]:
    """Return what the journal has: by path, the entry and its state."""
    listed = json.loads(there.fusekit("journal", "list", "--json").stdout)
    return {row["path"]: (row["entry"], row["state"]) for row in listed}


def test_closed_files_survive_a_killed_mount_and_the_next_one_sends_them(tmp_path: Path, behind: Path) -> None:
    with cli_mount(f"local:{behind}", tmp_path, "--write", "async") as there:
        for number in range(20):
            (there.path / f"f{number}").write_bytes(b"%d" % number * 5000)
        killed(there)
        assert again(there, "--write", "async").returncode == 0
        for number in range(20):
            assert (there.path / f"f{number}").read_bytes() == b"%d" % number * 5000
        assert there.fusekit("flush", "--wait", str(there.path)).returncode == 0
        assert {path.name: path.read_bytes() for path in behind.iterdir()} == {
            f"f{number}": b"%d" % number * 5000 for number in range(20)
        }
        assert entries(there) == {}


@pytest.mark.parametrize("step", ["row-flushed", "row-sending", "remote-committed", "row-settled", "bytes-settled"])
def test_a_crash_at_each_step_of_an_upload_loses_nothing_and_doubles_nothing(
    tmp_path: Path, behind: Path, step: str
) -> None:
    environment = {VARIABLE: step}
    with cli_mount(f"local:{behind}", tmp_path, "--write", "async", environment=environment) as there:
        closed = True
        try:
            (there.path / "f").write_bytes(b"precious")
        except OSError:
            closed = False
        there.fusekit("flush", "--wait", str(there.path))
        assert wait_for_end(there.pid, END_TIMEOUT_S), "it ended where it was told to"
        there.pid = 0
        assert closed == (step != "row-flushed")
        there.environment = {name: value for name, value in there.environment.items() if name != VARIABLE}
        assert again(there, "--write", "async").returncode == 0
        assert os.listdir(there.path) == ["f"]
        assert (there.path / "f").read_bytes() == b"precious"
        there.unmount()
        assert [path.name for path in behind.iterdir()] == ["f"]
        assert (behind / "f").read_bytes() == b"precious"


def test_unmount_drains_and_a_flush_of_a_directory_sends_what_is_in_it(tmp_path: Path, behind: Path) -> None:
    with cli_mount(f"local:{behind}", tmp_path, "--write", "async") as there:
        (there.path / "d").mkdir()
        (there.path / "d" / "in").write_bytes(b"in")
        done = there.fusekit("flush", "--wait", str(there.path / "d"))
        assert (done.returncode, done.stderr) == (0, "")
        assert (behind / "d" / "in").read_bytes() == b"in"
        for number in range(50):
            (there.path / f"f{number}").write_bytes(b"x")
        there.unmount()
        assert len(list(behind.iterdir())) == 51


def test_after_a_plain_umount_the_process_sends_what_waits(tmp_path: Path, behind: Path) -> None:
    with cli_mount(f"local:{behind}", tmp_path, "--write", "async") as there:
        for number in range(50):
            (there.path / f"f{number}").write_bytes(b"x")
        subprocess.run(
            ["umount" if os.getuid() == 0 else "fusermount3", *(["-u"] * (os.getuid() != 0)), there.path], check=True
        )
        assert wait_for_end(there.pid, END_TIMEOUT_S)
        there.pid = 0
        assert len(list(behind.iterdir())) == 50


@pytest.fixture
def refusing(behind: Path) -> Callable[[bool], None]:
    """Make the service refuse new files, or take them again."""
    if os.getuid() == 0:
        blocker = behind / "d"

        def refuse(on: bool) -> None:
            if on:
                blocker.rename(behind.parent / "away")
            else:
                (behind.parent / "away").rename(blocker)

        return refuse
    return lambda on: behind.joinpath("d").chmod(0o500 if on else 0o700)


def test_what_cannot_be_sent_is_told_by_unmount_and_settled_by_journal(
    tmp_path: Path, behind: Path, refusing: Callable[[bool], None]
) -> None:
    (behind / "d").mkdir()
    with cli_mount(f"local:{behind}", tmp_path, "--write", "async", "-o", "drain_timeout=500ms") as there:
        os.listdir(there.path / "d")
        refusing(True)
        for name in "abc":
            (there.path / "d" / name).write_bytes(b"precious")
        done = there.fusekit("flush", "--wait", str(there.path))
        assert done.returncode == 1
        assert re.findall("not sent: (/d/.)", done.stderr) == ["/d/a", "/d/b", "/d/c"]
        known = entries(there)
        assert {path: state for path, (_, state) in known.items()} == {f"/d/{name}": "flushed" for name in "abc"}
        assert os.getxattr(there.path / "d" / "a", "user.fusekit.state") == b"failed"
        with pytest.raises(MountError, match="not sent: /d/a"):
            there.unmount()
        assert wait_for_end(there.pid, END_TIMEOUT_S)
        there.pid = 0
        assert entries(there) == known, "the same without a mount"
        assert there.fusekit("journal", "export", known["/d/b"][0], str(tmp_path / "exported")).returncode == 0
        assert (tmp_path / "exported").read_bytes() == b"precious"
        assert there.fusekit("journal", "discard", known["/d/b"][0]).returncode == 0
        refused = there.fusekit("journal", "discard", known["/d/b"][0])
        assert (refused.returncode, "there is no entry" in refused.stderr) == (1, True)
        assert there.fusekit("journal", "retry", known["/d/a"][0]).returncode == 0
        refusing(False)
        assert again(there, "--write", "async").returncode == 0
        there.unmount()
        assert sorted(path.name for path in (behind / "d").iterdir()) == ["a", "c"]
        assert entries(there) == {}


def test_a_mount_finds_the_one_before_still_draining(tmp_path: Path, behind: Path) -> None:
    (behind / "d").mkdir()
    with cli_mount(f"local:{behind}", tmp_path, "--write", "async", "-o", "drain_timeout=8s", environment={}) as there:
        os.listdir(there.path / "d")
        (there.path / "d" / "f").write_bytes(b"x")
        os.kill(there.pid, signal.SIGSTOP)  # as slow as a service can be
        subprocess.run(
            ["umount", "--lazy", there.path] if os.getuid() == 0 else ["fusermount3", "-uz", there.path], check=True
        )
        refused = again(there)
        os.kill(there.pid, signal.SIGCONT)
        assert refused.returncode == 1
        assert f"in use by the mount of local:{behind}" in refused.stderr
        assert wait_for_end(there.pid, END_TIMEOUT_S)
        there.pid = 0
        assert (behind / "d" / "f").read_bytes() == b"x"
        assert again(there).returncode == 0
        there.unmount()


GIT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
       "GIT_COMMITTER_EMAIL": "a@b"}  # fmt: skip


def test_git_works_in_it_and_what_arrives_is_a_sound_repository(tmp_path: Path, behind: Path) -> None:
    environment = {**os.environ, **GIT}

    def git(*words: str, at: Path) -> str:
        return subprocess.run(
            ["git", "-C", at, *words], env=environment, capture_output=True, text=True, check=True
        ).stdout

    with cli_mount(f"local:{behind}", tmp_path, "--write", "async") as there:
        repository = there.path / "r"
        repository.mkdir()
        git("init", "-q", at=repository)
        for number in range(30):
            (repository / f"f{number}").write_text(f"{number}\n")
        git("add", ".", at=repository)
        git("commit", "-qm", "one", at=repository)
        git("mv", "f0", "g0", at=repository)
        git("commit", "-qam", "two", at=repository)
        git("gc", "-q", at=repository)
        assert git("status", "--porcelain", at=repository) == ""
        there.unmount()
    assert git("-c", f"safe.directory={behind / 'r'}", "fsck", "--strict", at=behind / "r") == ""
    assert git("-c", f"safe.directory={behind / 'r'}", "log", "--format=%s", at=behind / "r") == "two\none\n"
