"""The limit for a file system in Python: one local file through pyfuse3, with nothing in between.

Run as ``python passthrough.py FILE DIR``; prints "ready" when mounted and ends with its standard input. It reads with
`pread` in the loop, which only a file that is in memory can afford: just that is what it is for.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pyfuse3
import trio

FILE_INO = pyfuse3.InodeT(pyfuse3.ROOT_INODE + 1)
NAME = b"file"


class Passthrough(pyfuse3.Operations):
    """A directory with one file in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = os.open(path, os.O_RDONLY)
        self._size = os.fstat(self._file).st_size

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        """Return the attributes, which the kernel may keep."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = 0o100444 if inode == FILE_INO else 0o040555
        entry.st_size = self._size if inode == FILE_INO else 0
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.attr_timeout = entry.entry_timeout = 3600
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Return the file."""
        if name != NAME:
            raise pyfuse3.FUSEError(2)
        return await self.getattr(FILE_INO)

    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open the file."""
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(self._file), keep_cache=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Return bytes of the file."""
        return os.pread(fh, size, off)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Keep the file open for the next."""


def read_ahead(directory: str, kib: int) -> None:
    """Let the kernel read as far ahead as in a mount of fusekit, where that is permitted."""
    device = os.stat(directory).st_dev
    with contextlib.suppress(OSError):
        Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(str(kib))


async def main(path: Path, directory: str) -> None:
    """Serve until standard input ends."""
    pyfuse3.init(Passthrough(path), directory, {"fsname=passthrough", "ro"})
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            await trio.to_thread.run_sync(read_ahead, directory, 1024)
            print("ready", flush=True)
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), sys.argv[2])
