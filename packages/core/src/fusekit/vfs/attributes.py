"""What a stat shows: the attributes of an inode, shaped by the mount's options.

Vfs layer. `Attr` is what the adapter turns into the kernel's structure; the rest decides what is shown where the
service says nothing, and for how long the kernel may believe it.
"""

from __future__ import annotations

import stat
import time
from typing import Final, Protocol

import attrs

from fusekit.journal.uploader import version_of
from fusekit.settings import Settings
from fusekit.types import Attributes, Entry, Kind
from fusekit.vfs.inodes import Ino, Node

FILE_TYPES: Final = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.CHAR: stat.S_IFCHR,
}
KINDS: Final = {bits: kind for kind, bits in FILE_TYPES.items()}

# The kernel takes seconds as a 64-bit number; "for ever" is a year.
TIMEOUT_MAX_S: Final = 365 * 86400.0


@attrs.frozen
class Attr:
    """The attributes of one inode: ``mode`` with the file type, sizes in bytes, times in nanoseconds.

    ``valid_s`` is how long the kernel may keep the attributes and the name.
    """

    ino: Ino
    kind: Kind
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    valid_s: float


class Told(Protocol):
    """What is shown of an entry: an `Entry`, or what a cache keeps of one."""

    @property
    def size(self) -> int | None: ...
    @property
    def mtime_ns(self) -> int | None: ...
    @property
    def ctime_ns(self) -> int | None: ...
    @property
    def atime_ns(self) -> int | None: ...
    @property
    def mode(self) -> int | None: ...
    @property
    def uid(self) -> int | None: ...
    @property
    def gid(self) -> int | None: ...
    @property
    def nlink(self) -> int: ...
    @property
    def rdev(self) -> int: ...
    @property
    def target(self) -> str | None: ...


_NOTHING: Final = Attributes()


class Shape:
    """Turns an entry into attributes by the mount's options."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._born_ns = time.time_ns()

    def attr(
        self, node: Node, entry: Told, *, valid_s: float, kept: Attributes | None = None, nlink: int | None = None
    ) -> Attr:
        """Return what a stat of ``node`` shows; ``kept`` goes over what the service told."""
        over = _NOTHING if kept is None else kept
        kind = node.kind
        mtime_ns = _first(over.mtime_ns, entry.mtime_ns, self._born_ns)
        return Attr(  # by position: this is most of what an entry of a listing costs
            node.ino,
            kind,
            FILE_TYPES[kind] | self._mode(kind, _first_or_none(over.mode, entry.mode)),
            _nlink(kind, entry) if nlink is None else nlink,
            _first(over.uid, entry.uid, self._settings.uid),
            _first(over.gid, entry.gid, self._settings.gid),
            entry.rdev,
            _size(kind, entry),
            _first(over.atime_ns, entry.atime_ns, mtime_ns),
            mtime_ns,
            _first(None, entry.ctime_ns, mtime_ns),
            min(valid_s, TIMEOUT_MAX_S),
        )

    def _mode(self, kind: Kind, told: int | None) -> int:
        if kind is Kind.SYMLINK:
            return 0o777
        forced = self._settings.dir_mode if kind is Kind.DIRECTORY else self._settings.file_mode
        if told is not None:
            return told
        if forced is not None:
            return forced
        return (0o777 if kind is Kind.DIRECTORY else 0o666) & ~self._settings.umask


def token(entry: Entry) -> str:
    """Return what locally kept attributes of ``entry`` belong to: a file's content version, else the thing itself."""
    return version_of(entry) if entry.kind is Kind.FILE else ""


def _nlink(kind: Kind, entry: Told) -> int:
    # Tools that walk trees take a directory's count as the number of its children unless it is 1: "not told".
    return 1 if kind is Kind.DIRECTORY else entry.nlink


def _size(kind: Kind, entry: Told) -> int:
    if kind is Kind.SYMLINK:
        return len((entry.target or "").encode("utf-8", "surrogateescape"))
    return entry.size or 0 if kind is Kind.FILE else 0


def _first(first: int | None, second: int | None, default: int) -> int:
    return first if first is not None else second if second is not None else default


def _first_or_none(first: int | None, second: int | None) -> int | None:
    return first if first is not None else second
