"""Blocks on disk: one sparse file for each object and version, with a record of what is in it and a checksum a record.

Cache layer, blocking calls: whoever uses them does so from a thread (`fusekit.disk.Disk`). A file has the object's
bytes at their offsets and behind them, at the next page, a log: a header, then a record for each range that was
stored, with the checksum of its bytes. Nothing is ever synced. After a power loss a record may be there without its
bytes, or half of it: the checksums tell, and what they do not vouch for is fetched again. So a block of zeros that the
file system left is never taken for data. What is trusted without a look is only what this process has written or
checked.

A pinned file has the sticky bit set, which survives like the name does.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs
import xxhash

from fusekit.ranges import Ranges

_PAGE: Final = 4096
_MAGIC: Final = b"fusekit\x01"
# Magic, size of the object, check of these.
_HEADER: Final = struct.Struct("<8sQQ")
# Start, stop, checksum of the bytes, check of these. A record with no checksum (0) takes the range away again.
_RECORD: Final = struct.Struct("<QQQQ")
_LOG_BYTES_MAX: Final = 256 << 20

_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2

# What one vectored call takes.
_IOV_MAX: Final = 1024

TRASH: Final = "."

_PRIVATE: Final = 0o600
_PINNED: Final = _PRIVATE | stat.S_ISVTX


@attrs.frozen
class Record:
    """A range of the object that was stored in one go, and the checksum of its bytes."""

    start: int
    stop: int
    checksum: int


@attrs.frozen
class Found:
    """A file of an earlier run: its name, the disk space that it takes in bytes, when it was last used, whether it is pinned."""

    name: str
    allocated: int
    used_at: float
    pinned: bool


def checksum(data: bytes | bytearray | memoryview) -> int:
    """Return the checksum of ``data``, never 0."""
    return xxhash.xxh3_64_intdigest(data) or 1


class CutShort(OSError):
    """Somebody else cut the file: behind its new end there would be zeros."""


class ObjectFile:
    """The file of one object. ``size`` is the object's in bytes, None before it is known, when there can be no log.

    ``records`` are those that an earlier run left.
    """

    def __init__(self, path: Path, fd: int, size: int | None) -> None:
        self.path = path
        self.size = size
        self.records: list[Record] = []
        self._fd = fd
        self._log_at = 0
        self._logging = threading.Lock()  # calls come from several threads

    @classmethod
    def open(cls, path: Path, size: int | None) -> ObjectFile:
        """Open or make the file at ``path``, and read its log; one of another size or make is emptied."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _PRIVATE)
        file = cls(path, fd, size)
        try:
            if size is None:
                os.ftruncate(fd, 0)
            elif not file._load(size):
                os.ftruncate(fd, 0)
                file._begin(size)
        except BaseException:
            file.close()
            raise
        return file

    @classmethod
    def take(cls, path: Path, source: Path, size: int) -> ObjectFile:
        """Make ``source``, which has exactly the object's bytes, the file at ``path``, and record its content."""
        os.rename(source, path)
        file = cls(path, os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), size)
        try:
            file._begin(size)
        except BaseException:
            file.close()
            raise
        return file

    @property
    def fd(self) -> int:
        """Return the descriptor, for reading."""
        return self._fd

    def close(self) -> None:
        """Close the file, which is used now for the last time."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.utime(self._fd)
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def put(self, pieces: Sequence[tuple[memoryview, int]]) -> list[Record]:
        """Write each of ``pieces`` at its offset and return their records, which are not in the log yet.

        What lies together is written together: a thread that holds up the loop costs more than the call.

        Raises:
            CutShort: somebody cut the file; nothing is written, since that would make zeros of what was cut off.
        """
        self._check_whole()
        for views, at in _together(pieces):
            _write_whole(self._fd, views, at)
        return [Record(at, at + len(data), checksum(data)) for data, at in pieces]

    def settle(self, size: int) -> None:
        """Begin the log behind the ``size`` bytes of the object, if that was not known before."""
        if self.size is None:
            self.size = size
            self._begin(size)

    def record(self, records: Iterable[Record]) -> None:
        """Add ``records`` to the log; the size is known."""
        log = b"".join(_packed(record) for record in records)
        with self._logging:
            self._check_whole()
            # Where the disk is full, part of a record is none: the next goes over it, else all behind it were lost.
            self._log_at += os.pwrite(self._fd, log, self._log_at) // _RECORD.size * _RECORD.size

    def _check_whole(self) -> None:
        if os.fstat(self._fd).st_size < self._log_at:
            raise CutShort(errno.ESTALE, os.strerror(errno.ESTALE), str(self.path))

    def verify(self, records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
        """Return those of ``records`` whose bytes are what was stored, and the others."""
        good: list[Record] = []
        bad: list[Record] = []
        for record in records:
            buffer = bytearray(record.stop - record.start)
            try:
                whole = _read_whole(self._fd, memoryview(buffer), record.start)
            except OSError:
                whole = False
            (good if whole and checksum(buffer) == record.checksum else bad).append(record)
        if bad:
            # On a full disk, or in a file that somebody cut, the log stays as it is: it will be found out again.
            with contextlib.suppress(OSError):
                self.record(Record(record.start, record.stop, 0) for record in bad)
        return good, bad

    def describe(self, start: int, stop: int, step: int) -> list[Record]:
        """Return records, of ``step`` bytes each, of bytes that are here and known to be right; not in the log yet."""
        found = []
        for at in range(start, stop, step):
            buffer = memoryview(bytearray(min(step, stop - at)))
            if not _read_whole(self._fd, buffer, at):
                break
            found.append(Record(at, at + len(buffer), checksum(buffer)))
        return found

    def punch(self, start: int, stop: int) -> None:
        """Give the disk space of ``start`` to ``stop`` back, and take the range out of the log."""
        self.record([Record(start, stop, 0)])
        low, high = -(-start // _PAGE) * _PAGE, stop // _PAGE * _PAGE
        if low < high:
            _punch_hole(self._fd, low, high - low)

    def allocated(self) -> int:
        """Return the disk space that the file takes, in bytes."""
        return os.fstat(self._fd).st_blocks * 512

    def pin(self, pinned: bool) -> None:
        """Keep the file whatever else must go, or no longer."""
        os.fchmod(self._fd, _PINNED if pinned else _PRIVATE)

    def _load(self, size: int) -> bool:
        at = _header_at(size)
        if os.pread(self._fd, _HEADER.size, at) != _header(size):
            return False
        length = min(os.fstat(self._fd).st_size - at - _HEADER.size, _LOG_BYTES_MAX)
        log = os.pread(self._fd, max(length, 0), at + _HEADER.size)
        self._log_at = at + _HEADER.size
        for start, stop, value, check in _RECORD.iter_unpack(log[: len(log) // _RECORD.size * _RECORD.size]):
            # The rest was not written to its end; what comes next goes over it.
            if check != _check(start, stop, value) or not start < stop <= size:
                break
            self._log_at += _RECORD.size
            self.records.append(Record(start, stop, value))
        return True

    def _begin(self, size: int) -> None:
        at = _header_at(size)
        os.ftruncate(self._fd, at)
        self._log_at = at + os.pwrite(self._fd, _header(size), at)


def _header_at(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _header(size: int) -> bytes:
    return _HEADER.pack(_MAGIC, size, xxhash.xxh3_64_intdigest(_MAGIC + size.to_bytes(8, "little")))


def standing(records: Iterable[Record]) -> list[Record]:
    """Return those of a log's records that nothing later took away, in the order of their starts."""
    # From the last to the first: what is taken away then is one set of ranges, and each record one bisection.
    taken = Ranges()
    found: dict[tuple[int, int], Record] = {}
    for record in reversed(list(records)):
        if not record.checksum:
            taken.add(record.start, record.stop)
        elif (record.start, record.stop) not in found and not taken.within(record.start, record.stop):
            found[record.start, record.stop] = record
    return sorted(found.values(), key=_start_of)


def _start_of(record: Record) -> int:
    return record.start


def throw_away(path: Path, number: int) -> Path:
    """Take the file at ``path`` out of the cache at once, and return where it can be deleted at leisure."""
    trash = path.with_name(f"{TRASH}{number}-{path.name}")
    os.rename(path, trash)
    return trash


def scan(directory: Path) -> Iterator[Found]:
    """Yield what an earlier run left in ``directory``; what it threw away is deleted."""
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.startswith(TRASH):
                    os.unlink(entry.path)
                    continue
                facts = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(facts.st_mode):
                    pinned = bool(facts.st_mode & stat.S_ISVTX)
                    yield Found(entry.name, facts.st_blocks * 512, facts.st_mtime, pinned)


def _together(pieces: Sequence[tuple[memoryview, int]]) -> Iterator[tuple[list[memoryview], int]]:
    """Yield what of ``pieces`` lies one behind the other, with the offset of the first."""
    views: list[memoryview] = []
    begin = end = 0
    for data, at in sorted(pieces, key=lambda piece: piece[1]):
        if views and at != end:
            yield views, begin
            views = []
        if not views:
            begin = at
        views.append(data)
        end = at + len(data)
    if views:
        yield views, begin


def _write_whole(fd: int, views: list[memoryview], at: int) -> None:
    while views:
        count = os.pwritev(fd, views[:_IOV_MAX], at)
        at += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]


def _packed(record: Record) -> bytes:
    return _RECORD.pack(record.start, record.stop, record.checksum, _check(record.start, record.stop, record.checksum))


def _check(start: int, stop: int, value: int) -> int:
    return xxhash.xxh3_64_intdigest(struct.pack("<QQQ", start, stop, value), seed=1)


def _read_whole(fd: int, into: memoryview, at: int) -> bool:
    while into:
        count = os.preadv(fd, [into], at)
        if count == 0:
            return False
        into, at = into[count:], at + count
    return True


def _punch_hole(fd: int, offset: int, length: int) -> None:
    """Free the space of a range (fallocate(2), which Python has in its posix form only); best effort."""
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(AttributeError):
        libc.fallocate64(
            fd,
            _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE,
            ctypes.c_int64(offset),
            ctypes.c_int64(length),
        )
