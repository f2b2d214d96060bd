"""Staging files: the bytes of one file while a program changes it, laid over the version that it had.

Journal layer. A staging file is sparse. What the program wrote, or what was filled in from the version below, is
`present`; other bytes come from the version below up to ``base_stop`` and are zero after it; once some did it is
``mixed``. A frozen staging file is
one generation: uploads read only frozen ones, and the next write goes to a copy (a reflink where the file system can).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

import trio

from fusekit.disk import Disk
from fusekit.ranges import Ranges

# ioctl FICLONE of linux/fs.h: share the blocks of another file, copied on write.
_FICLONE: Final = 0x40049409
_COPY_BLOCK: Final = 8 << 20


class Staging:
    """One generation of one file; open from `create` or `thaw` until `close`."""

    def __init__(self, disk: Disk, path: Path, fd: int, size: int, base_stop: int) -> None:
        self._disk = disk
        self.path = path
        self._fd = fd
        self.size = size
        self.base_stop = base_stop
        self.present = Ranges()
        self.frozen = False
        self.mixed = False

    @classmethod
    async def create(cls, disk: Disk, path: Path, size: int) -> Staging:
        """Make an empty staging file over a version of ``size`` bytes, none of which is here yet."""

        def make() -> int:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.ftruncate(fd, size)
            return fd

        return cls(disk, path, await disk.run(make), size, size)

    @classmethod
    async def kept(cls, disk: Disk, path: Path, size: int) -> Staging:
        """Open a generation that an earlier process froze.

        Raises:
            OSError: they are not all here.
        """

        def take() -> int:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if os.fstat(fd).st_size != size:
                os.close(fd)
                raise OSError(errno.EIO, "the bytes that were kept are not all here")
            return fd

        found = cls(disk, path, await disk.run(take), size, 0)
        found.present.add(0, size)
        found.frozen = True
        return found

    async def thaw(self, path: Path) -> Staging:
        """Return an unfrozen copy of this generation at ``path``."""

        def clone() -> int:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.ioctl(fd, _FICLONE, self._fd)
            except OSError:
                _copy(self._fd, fd, self.size)
            return fd

        twin = Staging(self._disk, path, await self._disk.run(clone), self.size, self.base_stop)
        twin.present = self.present.copy()
        twin.mixed = self.mixed
        return twin

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the ranges that must come from the version below before they can be read here."""
        return self.present.missing(start, min(stop, self.base_stop))

    async def read(self, start: int, stop: int) -> bytes | memoryview:
        """Return the bytes from ``start`` to ``stop``, fewer at the end; nothing of them may be `missing`."""
        return await self._disk.read(self._fd, start, min(stop, self.size)) if start < self.size else b""

    async def write(self, data: bytes | memoryview, at: int) -> None:
        """Put ``data`` at offset ``at``."""
        assert not self.frozen, "a frozen generation never changes"
        await self._disk.write(self._fd, data, at)
        self.size = max(self.size, at + len(data))
        self.present.add(at, at + len(data))

    async def fill(self, data: bytes | memoryview, at: int) -> None:
        """Put bytes of the version below into the holes that they belong to."""
        view = memoryview(data)
        for start, stop in self.missing(at, at + len(view)):
            await self._disk.write(self._fd, view[start - at : stop - at], start)
            self.present.add(start, stop)
            self.mixed = True

    async def truncate(self, size: int) -> None:
        """Cut or extend to ``size``; what is beyond the old end is zero."""
        assert not self.frozen, "a frozen generation never changes"
        await self._disk.run(os.ftruncate, self._fd, size)
        self.present.remove(size, max(size, self.size))
        self.base_stop = min(self.base_stop, size)
        self.size = size
        self.mixed = self.mixed and size > 0

    async def sync(self) -> None:
        """Make bytes and name durable."""

        def sync() -> None:
            os.fsync(self._fd)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

        await self._disk.run(sync)

    async def discard(self) -> None:
        """Delete the file; whoever still reads it reads on."""
        # Shielded without a deadline, which could not end a call to the disk anyway.
        with trio.CancelScope(shield=True), contextlib.suppress(FileNotFoundError):
            await self._disk.run(os.unlink, self.path)

    def __del__(self) -> None:
        # Reads may be under way in threads when the last commit is done with the file: only the collector knows
        # when nobody has it any more.
        os.close(self._fd)


def _copy(source: int, target: int, size: int) -> None:
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:
            return  # nothing but a hole from here on
        end = min(os.lseek(source, at, os.SEEK_HOLE), size)
        while at < end:
            data = os.pread(source, min(_COPY_BLOCK, end - at), at)
            if not data:
                return
            os.pwrite(target, data, at)
            at += len(data)
