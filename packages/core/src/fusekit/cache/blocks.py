"""The block store: bytes of remote files in sparse local files, one for each object and version.

Cache layer. Its simple form: whole ranges, one fetch at a time for an object, what is here known in memory only, so
the directory starts empty. Knows entries and callers, not inodes. A fetch goes through `Calls`, so it is retried and
bounded there; bytes that come besides those asked for are kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path
from typing import Final

import trio

from fusekit.disk import Disk
from fusekit.errors import Corrupt, Stale
from fusekit.journal.journal import lock_directory
from fusekit.journal.uploader import version_of
from fusekit.ranges import Ranges
from fusekit.transfer.calls import Calls
from fusekit.types import Caller, Entry

# What one fetch brings at least, clipped by the file: the kernel asks for 128 KiB at a time, and a request costs a
# round trip whatever its size.
FETCH_BYTES: Final = 1 << 20


class Blocks:
    """All cached bytes of a mount, bounded by ``bytes_max`` of what is not in use."""

    def __init__(self, directory: Path, lock: int, calls: Calls, disk: Disk, bytes_max: int) -> None:
        self._directory = directory
        self._lock = lock
        self._calls = calls
        self._disk = disk
        self._bytes_max = bytes_max
        self._objects: OrderedDict[str, Object] = OrderedDict()

    @classmethod
    async def open(cls, directory: Path, owner: str, calls: Calls, disk: Disk, bytes_max: int) -> Blocks:
        """Take ``directory`` for this process and empty it.

        Raises:
            MountError: another process has it.
        """

        def prepare() -> int:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = lock_directory(directory, owner, "--cache-dir")
            shutil.rmtree(directory / "blocks", ignore_errors=True)
            (directory / "blocks").mkdir(mode=0o700)
            return lock

        return cls(directory / "blocks", await disk.run(prepare), calls, disk, bytes_max)

    async def close(self) -> None:
        """Close all files and give the lock back."""
        for item in self._objects.values():
            item.close()
        self._objects.clear()
        await self._disk.run(lambda: shutil.rmtree(self._directory, ignore_errors=True))
        os.close(self._lock)

    @property
    def bytes_used(self) -> int:
        """Return how many bytes are here."""
        return sum(item.present.total for item in self._objects.values())

    def cached(self, key: str, entry: Entry) -> int:
        """Return how many bytes of ``entry`` are here."""
        item = self._objects.get(_name(key, entry))
        return item.present.total if item is not None else 0

    async def read(self, key: str, entry: Entry, start: int, stop: int, caller: Caller) -> bytes | memoryview:
        """Return the bytes of ``entry`` from ``start`` to ``stop``, fewer at its end; ``key`` names the object.

        Raises:
            Stale: the remote side no longer has this version. Corrupt: it sent other bytes than it announced.
        """
        if entry.size is not None:
            stop = min(stop, entry.size)
        if start >= stop:
            return b""
        item = await self._object(key, entry)
        item.users += 1
        try:
            await item.bring(entry, start, stop, caller)
            if item.size is not None:
                stop = min(stop, item.size)
            return await item.read(start, stop)
        finally:
            item.users -= 1

    async def measure(self, key: str, entry: Entry, caller: Caller) -> int:
        """Return the size of a file that only reading tells; its bytes are here afterwards."""
        item = await self._object(key, entry)
        item.users += 1
        try:
            if item.size is None:
                await item.bring(entry, 0, None, caller)
            assert item.size is not None
            return item.size
        finally:
            item.users -= 1

    async def adopt(self, key: str, entry: Entry, path: Path) -> None:
        """Take the file at ``path`` as the whole content of ``entry``; whatever was cached for it goes."""
        name = _name(key, entry)
        self._discard(name)
        size = entry.size or 0

        def take() -> int:
            target = self._directory / name
            try:
                os.rename(path, target)
            except OSError:  # another file system: a copy would cost more than it saves
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                return -1
            return os.open(target, os.O_RDWR | os.O_CLOEXEC)

        fd = await self._disk.run(take)
        if fd < 0:
            return
        item = Object(self._calls, self._disk, fd)
        item.present.add(0, size)
        item.size = size
        self._objects[name] = item
        await self._shrink()

    def drop(self, key: str, entry: Entry) -> None:
        """Forget what is cached of ``entry``."""
        self._discard(_name(key, entry))

    async def _object(self, key: str, entry: Entry) -> Object:
        name = _name(key, entry)
        item = self._objects.get(name)
        if item is None:
            await self._shrink()
            path = self._directory / name
            fd = await self._disk.run(os.open, path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if (item := self._objects.get(name)) is not None:  # somebody else was faster
                os.close(fd)
            else:
                item = self._objects[name] = Object(self._calls, self._disk, fd)
                item.size = entry.size
        self._objects.move_to_end(name)
        return item

    def _discard(self, name: str) -> None:
        item = self._objects.pop(name, None)
        if item is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._directory / name)
            if item.users == 0:
                item.close()

    async def _shrink(self) -> None:
        """Let the least recently used files go that nobody reads, until the rest fits."""
        used = self.bytes_used
        for name, item in list(self._objects.items()):
            if used <= self._bytes_max:
                return
            if item.users == 0:
                used -= item.present.total
                self._discard(name)


class Object:
    """The bytes of one version of one object."""

    def __init__(self, calls: Calls, disk: Disk, fd: int) -> None:
        self._calls = calls
        self._disk = disk
        self._fd = fd
        self._fetching = trio.Lock()
        self.present = Ranges()
        self.size: int | None = None
        self.users = 0

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def read(self, start: int, stop: int) -> bytes | memoryview:
        """Return bytes that are here."""
        return await self._disk.read(self._fd, start, stop)

    async def bring(self, entry: Entry, start: int, stop: int | None, caller: Caller) -> None:
        """Fetch what is missing from ``start`` to ``stop`` (None: the end, wherever it is)."""
        if stop is not None and self.present.covers(start, self._clip(stop)):
            return
        async with self._fetching:
            if stop is None or self.size is None:
                if self.size is None:
                    await self._fetch(entry, 0, None, caller)
                return
            for low, high in self.present.missing(start, self._clip(stop)):
                begin = low - low % FETCH_BYTES
                end = min(self.size, -(-high // FETCH_BYTES) * FETCH_BYTES)
                for gap in self.present.missing(begin, end):
                    await self._fetch(entry, *gap, caller)

    def _clip(self, stop: int) -> int:
        return stop if self.size is None else min(stop, self.size)

    async def _fetch(self, entry: Entry, start: int, stop: int | None, caller: Caller) -> None:
        sink = _Into(self, start)
        await self._calls.read(entry, start, stop, sink, caller)
        # Only now: a hook may find out at the end that what it brought is of another version.
        for low, high in sink.came:
            self.present.add(low, high)
        if stop is None:
            self.size = sink.end
            if not self.present.covers(0, sink.end):
                raise Corrupt(f"{entry.name}: bytes are missing in the middle of what was read")
        elif not self.present.covers(start, stop):
            lacking = sum(high - low for low, high in self.present.missing(start, stop))
            raise Corrupt(f"{entry.name}: {lacking} of {stop - start} bytes from {start} on did not come")

    async def put(self, data: bytes | memoryview, at: int) -> None:
        """Write bytes that came to their place, which is not yet known to hold them."""
        if self.size is not None and at + len(data) > self.size:
            raise Stale(f"the file is longer than the {self.size} bytes that were announced")
        await self._disk.write(self._fd, data, at)


class _Into:
    """The sink of one fetch."""

    def __init__(self, item: Object, start: int) -> None:
        self._item = item
        self._next = start
        self.end = start
        self.came = Ranges()

    async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
        at = self._next if at is None else at
        self._next = at + len(data)
        self.end = max(self.end, self._next)
        await self._item.put(data, at)
        self.came.add(at, self._next)


def _name(key: str, entry: Entry) -> str:
    version = version_of(entry)
    return blake2b(f"{entry.blob or key}\0{version}".encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()
