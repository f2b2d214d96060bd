"""Which mounts of this user run: one Unix socket for each, found by its file name.

Control layer. A socket is called ``<hash of the mount point>.<pid>.sock``: the hash finds the mount of a directory,
the process keeps a mount that still drains apart from the new one at the same place. Whether one is alive is told by
connecting to it, so nothing here has to be trusted after a crash.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs
import platformdirs

from fusekit.errors import MountError

_NAME = re.compile(r"(?P<key>[0-9a-f]{16})\.(?P<pid>[0-9]+)\.sock")
_CONNECT_TIMEOUT_S: Final = 5.0


@attrs.frozen
class Endpoint:
    """The socket of one mount process."""

    directory: Path
    key: str
    pid: int

    @property
    def name(self) -> str:
        return f"{self.key}.{self.pid}.sock"

    @property
    def path(self) -> Path:
        return self.directory / self.name


def runtime_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the private directory of the sockets, made if need be.

    ``XDG_RUNTIME_DIR`` counts only where it is ours: ``sudo -E`` and ``su`` leave that of another user.

    Raises:
        MountError: it belongs to somebody else, who could listen in our place.
    """
    base = environment.get("XDG_RUNTIME_DIR")
    directory = Path(base) / "fusekit" if base and _is_ours(base) else platformdirs.user_state_path("fusekit") / "run"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = directory.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            raise MountError(f"{directory} must be a directory of yours; remove it or set XDG_RUNTIME_DIR")
        if facts.st_mode & 0o077:
            directory.chmod(0o700)
    except OSError as error:
        raise MountError(
            f"cannot use {directory} for control sockets: {error.strerror}; set XDG_RUNTIME_DIR"
        ) from error
    return directory


def _is_ours(directory: str) -> bool:
    try:
        return os.stat(directory).st_uid == os.geteuid()
    except OSError:
        return False


def endpoint(directory: Path, mountpoint: Path, pid: int) -> Endpoint:
    """Return the endpoint of the process ``pid`` that serves ``mountpoint``."""
    return Endpoint(directory, key(mountpoint), pid)


def endpoints(directory: Path, mountpoint: Path | None = None) -> list[Endpoint]:
    """Return the endpoints there, of one mount point or all; the newest process last."""
    found = [
        Endpoint(directory, match["key"], int(match["pid"]))
        for match in map(_NAME.fullmatch, os.listdir(directory))
        if match and (mountpoint is None or match["key"] == key(mountpoint))
    ]
    return sorted(found, key=lambda one: one.pid)


def key(mountpoint: Path) -> str:
    """Return the part of a socket's name that stands for a mount point."""
    return hashlib.blake2b(os.fsencode(mountpoint), digest_size=8).hexdigest()


@contextlib.contextmanager
def claimed(directory: Path, mountpoint: Path) -> Iterator[None]:
    """Keep other processes of this user from mounting on ``mountpoint``; waits while one of them is about to."""
    descriptor = os.open(directory / f"{key(mountpoint)}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # the file stays: removing it, one would lock what another has just opened


@contextlib.contextmanager
def short_path(directory: Path, name: str) -> Iterator[str]:
    """Give a path to ``name`` that fits a socket address: those end after 107 bytes, directories do not."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def connect(one: Endpoint) -> socket.socket | None:
    """Return a connection, or None where nobody listens any more; then what was left behind is removed."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(_CONNECT_TIMEOUT_S)
    try:
        with short_path(one.directory, one.name) as path:
            connection.connect(path)
    except OSError as error:
        connection.close()
        if error.errno == errno.ECONNREFUSED:
            one.path.unlink(missing_ok=True)
            return None
        if error.errno == errno.ENOENT:
            return None
        raise MountError(f"the mount process {one.pid} does not answer: {error}") from error
    return connection
