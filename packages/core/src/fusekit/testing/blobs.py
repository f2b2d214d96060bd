"""Bytes that an emulator stores: immutable, in memory or in a file, taken in and handed out in blocks.

Part of the emulator base. A store keeps small content in memory and larger content in files of its own temporary
directory, so that an upload of any size costs one block of memory and a download is `sendfile`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import attrs

IN_MEMORY_MAX: Final = 1 << 20
"""Content up to this size stays in memory: a file costs two system calls more than it saves."""

SPARE_BYTES_MAX: Final = 2 << 30
"""Files of forgotten blobs are written over, up to so many bytes of them: fresh pages cost more than all the rest of an
upload (measured: 3.2 CPU-seconds a GiB into a new file, 0.1 into one that is there)."""


class TooLarge(Exception):
    """More bytes arrived than the taker wanted; what came so far is dropped."""


@attrs.frozen(eq=False)
class Blob:
    """Content that never changes. ``number`` is unique in its store, so it serves as an ETag."""

    size: int
    data: bytes = b""
    path: Path | None = None
    number: int = 0

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Return the bytes ``start`` to ``stop`` (None: the end)."""
        stop = self.size if stop is None else min(stop, self.size)
        if self.path is None:
            return self.data[start:stop]
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(max(0, stop - start))


@attrs.frozen(eq=False)
class Stretch:
    """The bytes ``start`` to ``stop`` of a blob, as the body of an answer."""

    blob: Blob
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class BlobStore:
    """Makes blobs and owns the directory of those that are files; `close` deletes it."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="fusekit-emulator-", ignore_cleanup_errors=True)
        self._lock = threading.Lock()
        self._last = 0
        # No lock: a finalizer can run in the middle of anything, and these operations of a deque are atomic.
        self._spare: deque[tuple[int, Path]] = deque()

    def close(self) -> None:
        """Delete the files; blobs that are files can no longer be read."""
        self._directory.cleanup()

    def keep(self, data: bytes) -> Blob:
        """Return a blob of ``data``."""
        return Blob(size=len(data), data=data, number=self._number())

    def adopt(self, path: Path) -> Blob:
        """Return a blob of the file at ``path``, which stays where it is and must not change; not deleted at the end."""
        return Blob(size=path.stat().st_size, path=path, number=self._number())

    def receive(self, blocks: Iterable[memoryview], bytes_max: int | None = None) -> Blob:
        """Return a blob of all ``blocks``; each is used before the next is asked for.

        Raises:
            TooLarge: there are more than ``bytes_max`` bytes.
        """
        number, size, head = self._number(), 0, bytearray()
        path = Path(self._directory.name) / f"{number:x}"
        file = None
        try:
            for block in blocks:
                size += len(block)
                if bytes_max is not None and size > bytes_max:
                    raise TooLarge  # noqa: TRY301 - the handler below cleans up, whatever ended it
                if file is None and size > IN_MEMORY_MAX:
                    file = self._file(path)
                    _write(file, memoryview(head))
                    head = bytearray()
                if file is None:
                    head += block
                else:
                    _write(file, block)
            if file is not None:
                os.ftruncate(file, size)
        except BaseException:
            if file is not None:
                self._forget(path, size)
            raise
        finally:
            if file is not None:
                os.close(file)
        if file is None:
            return Blob(size=size, data=bytes(head), number=number)
        blob = Blob(size=size, path=path, number=number)
        weakref.finalize(blob, self._forget, path, size).atexit = False  # `close` has deleted it by then
        return blob

    def _file(self, path: Path) -> int:
        """Return a descriptor to write a file at ``path`` from its start; what it holds already is to be cut off."""
        with contextlib.suppress(IndexError, FileNotFoundError):
            self._spare.pop()[1].rename(path)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _forget(self, path: Path, size: int) -> None:
        if sum(spare for spare, _ in tuple(self._spare)) + size <= SPARE_BYTES_MAX:
            self._spare.append((size, path))
        else:
            with contextlib.suppress(OSError):
                path.unlink()

    def _number(self) -> int:
        with self._lock:
            self._last += 1
            return self._last


def _write(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]
