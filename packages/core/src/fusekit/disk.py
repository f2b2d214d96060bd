"""Disk I/O that never blocks the loop: every call that may wait for a disk runs in a thread of one small pool.

A base module. A read first asks for what the kernel has in memory (``RWF_NOWAIT``) and goes to a thread only for the
rest, because a thread costs a hundred microseconds and most reads find their bytes in memory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import trio

T = TypeVar("T")

# Reads of this size and more use buffers again, so many of them.
_REUSED_FROM: Final = 128 << 10
_BUFFERS_KEPT: Final = 4

# Enough to keep a disk queue busy; more threads only fight for the interpreter's lock.
THREADS: Final = 8

# What the kernel answers where the file system has no non-blocking reads (overlayfs, some network file systems).
_NO_NOWAIT: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


class Disk:
    """Runs blocking file calls; one a mount."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(THREADS)
        self._buffers: list[bytearray] = []
        self._nowait = hasattr(os, "preadv") and hasattr(os, "RWF_NOWAIT")

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """Return ``call(*args)`` from a thread; not cancellable, so the call is always whole."""
        return await trio.to_thread.run_sync(call, *args, limiter=self._threads)

    async def read(self, fd: int, start: int, stop: int) -> bytes | memoryview:
        """Return the bytes of ``fd`` from ``start`` to ``stop``, fewer at its end."""
        buffer = self._buffer(stop - start)
        view = memoryview(buffer)
        done = self._read_now(fd, view, start) if self._nowait else 0
        if done < len(buffer):
            done = await self.run(_read_all, fd, view, start, done)
        return view[:done]

    def _buffer(self, size: int) -> bytearray:
        """Return a buffer, one that was used before if nobody has a view of it any more.

        Memory that is fresh from the kernel costs as much as the read itself.
        """
        if size < _REUSED_FROM:
            return bytearray(size)
        for buffer in self._buffers:
            if len(buffer) == size and not viewed(buffer):
                return buffer
        buffer = bytearray(size)
        if len(self._buffers) >= _BUFFERS_KEPT:
            self._buffers.pop(0)
        self._buffers.append(buffer)
        return buffer

    def _read_now(self, fd: int, view: memoryview, start: int) -> int:
        try:
            return os.preadv(fd, [view], start, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in _NO_NOWAIT:
                raise
            self._nowait = False
            return 0

    async def write(self, fd: int, data: bytes | memoryview, at: int) -> None:
        """Write all of ``data`` at offset ``at``."""
        await self.run(_write_all, fd, data, at)


def viewed(buffer: bytearray) -> bool:
    """Return whether anybody has a view of ``buffer``, which is not empty.

    Asked of the buffer itself, which refuses to change its size then. Counts of references would not tell: how many a
    variable or a call holds differs between versions of Python, and one too few is somebody else's bytes.
    """
    try:
        buffer.append(buffer.pop())
    except BufferError:
        return True
    return False


def _read_all(fd: int, view: memoryview, start: int, done: int) -> int:
    while done < len(view):
        count = os.preadv(fd, [view[done:]], start + done)
        if count == 0:
            break
        done += count
    return done


def _write_all(fd: int, data: bytes | memoryview, at: int) -> None:
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, at)
        rest, at = rest[count:], at + count


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names in the directory ``path`` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Make ``path``, private, and what is missing above it, so that a power loss takes none of it."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    for one in {path, *missing}:  # also one that a run made which ended before it had synced this
        sync_directory(one.parent)
