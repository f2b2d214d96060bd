"""A real mount by the command line, in a process of its own, for tests that run programs in it.

Outside the layers. `cli_mount` mounts with ``python -m fusekit mount`` as a user would, with directories of its own for
cache, state and sockets, and takes the mount away at the end, however the test ended: with ``fusekit unmount``, and
where that fails by force. What the mount logged goes to standard error then, which pytest shows for tests that failed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from fusekit.control import client
from fusekit.control.registry import endpoints, runtime_directory
from fusekit.errors import MountError
from fusekit.fuse.mounts import detach, mounted_at, real_path

# A mount takes a second or two; this is for a machine that is busy with something else.
_COMMAND_TIMEOUT_S: Final = 60.0
_END_TIMEOUT_S: Final = 15.0

# How the adapter logs an exception that it did not expect; it must not happen, whatever a program does.
_UNFORESEEN: Final = "in a way that nobody foresaw"


@attrs.frozen
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """Return what was said, which must be one line."""
        assert self.err.count("\n") == 1, self.err
        return self.err.strip()


@attrs.define(eq=False)
class CliMount:
    """A mount that runs: ``path`` is its directory, ``pid`` the process that serves it, ``log`` its log.

    ``environment`` is what its commands ran with, and what programs in it are run with.
    """

    source: str
    path: Path
    log: Path
    environment: Mapping[str, str]
    pid: int = 0

    def fusekit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of fusekit that concerns this mount, and return how it ended."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "fusekit", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )

    @property
    def alive(self) -> bool:
        """Return whether the process runs and its root answers."""
        try:
            os.kill(self.pid, 0)
            os.statvfs(self.path)
        except OSError:
            return False
        return mounted_at(self.path) is not None

    def told(self) -> str:
        """Return all that the mount logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def unforeseen(self) -> list[str]:
        """Return the lines of the log about exceptions that nobody expected."""
        return [line for line in self.told().splitlines() if _UNFORESEEN in line]

    def unmount(self) -> None:
        """Leave the mount as a user does, and return when its process has ended.

        Raises:
            MountError: ``fusekit unmount`` failed; the message is what it said.
        """
        done = self.fusekit("unmount", str(self.path))
        if done.returncode != 0:
            raise MountError(done.stderr.strip() or f"fusekit unmount ended with status {done.returncode}")


@contextmanager
def cli_mount(
    source: str, directory: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[CliMount]:
    """Mount ``source`` on a new directory below ``directory``; ``arguments`` are more words of ``fusekit mount``.

    ``environment`` is added to a small environment of its own, in which nothing of the user's is found.

    Raises:
        MountError: it does not mount, or ``fusekit unmount`` fails at the end.
    """
    mountpoint = directory / "mnt"
    mountpoint.mkdir(parents=True)
    there = CliMount(source, real_path(mountpoint), directory / "mount.log", surroundings(directory, environment or {}))
    try:
        done = there.fusekit("mount", *arguments, "--log-file", str(there.log), "--", source, str(mountpoint))
        if done.returncode != 0:
            raise MountError(done.stderr.strip())
        there.pid = _serving(there)
        yield there
        if mounted_at(there.path) is not None:
            there.unmount()
    finally:
        _clear(there)
        print(f"--- log of {source}\n{there.told()}---", file=sys.stderr)


def surroundings(directory: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a mount finds nothing of the user's, and make the directories that it names."""
    home = directory / "home"
    home.mkdir()
    (directory / "run").mkdir(mode=0o700)
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in {"PATH", "PYTHONPATH", "TMPDIR", "VIRTUAL_ENV"} or name.startswith("COVERAGE")
    }
    return {
        **kept,
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm",
        "FUSEKIT_STATE_DIR": str(directory / "state"),
        "FUSEKIT_CACHE_DIR": str(directory / "cache"),
        "XDG_RUNTIME_DIR": str(directory / "run"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        **more,
    }


def _serving(there: CliMount) -> int:
    found = endpoints(runtime_directory(there.environment), there.path)
    if not found:
        raise MountError(f"{there.path}: no process says that it serves this mount")
    return found[-1].pid


def _clear(there: CliMount) -> None:
    """Leave neither a mount nor a process behind; nothing to do where the mount was left in order."""
    if there.pid == 0:
        with contextlib.suppress(MountError):
            there.pid = _serving(there)
    while mounted_at(there.path) is not None:
        detach(there.path, lazy=True)
    if there.pid == 0:
        return
    for number, wait_s in ((0, 0.0), (signal.SIGTERM, _END_TIMEOUT_S), (signal.SIGKILL, _END_TIMEOUT_S)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(there.pid, number)
        if client.wait_for_end(there.pid, wait_s):
            return
