"""The directory that ``local:`` serves, as blocking calls that `local.py` makes in threads.

Part of a backend. Every path is walked from the root's descriptor, one component at a time and never through a
symbolic link, so nothing outside the directory can be reached, whoever changes it meanwhile. Metadata is changed
through ``/proc/self/fd`` of an object opened without following, so what was checked is what is changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

import attrs

from fusekit.api import (
    Attributes,
    BackendError,
    Busy,
    Caller,
    Denied,
    Entry,
    Exists,
    Invalid,
    IsDirectory,
    Kind,
    NoSpace,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotSupported,
    ReadOnly,
    Stale,
    TooLarge,
    names,
)

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

_HIDDEN_PREFIX: Final = b".fusekit-"
_HIDDEN_SUFFIX: Final = b".tmp"

_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFCHR: Kind.CHAR,
}

# What the C library has and Python has not. None on a library that is older.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_RENAMEAT2: Final = getattr(_LIBC, "renameat2", None)
_NAME_TO_HANDLE_AT: Final = getattr(_LIBC, "name_to_handle_at", None)
_FSTATFS: Final = getattr(_LIBC, "fstatfs", None)

# Filesystems whose file handles hold inode and generation, and stay the same for the life of the file: ext2 to ext4, XFS,
# btrfs, tmpfs, f2fs. Not so FUSE (a number that is forgotten), NFS (the server's own) and overlayfs (often none).
_STEADY_HANDLES: Final = frozenset({0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0xF2F52010})
_HANDLE_BYTES_MAX: Final = 128
_AT_EMPTY_PATH: Final = 0x1000

_ERRORS: Final[dict[int, type[BackendError]]] = {
    errno.ENOENT: NotFound,
    errno.ENODATA: NotFound,
    errno.EEXIST: Exists,
    errno.ENOTEMPTY: NotEmpty,
    errno.ENOTDIR: NotDirectory,
    errno.EISDIR: IsDirectory,
    errno.EACCES: Denied,
    errno.EPERM: Denied,
    errno.EROFS: ReadOnly,
    errno.EINVAL: Invalid,
    errno.ENAMETOOLONG: Invalid,
    errno.EILSEQ: Invalid,
    errno.ELOOP: Invalid,
    errno.EMLINK: Invalid,
    errno.ERANGE: TooLarge,
    errno.E2BIG: TooLarge,
    errno.EFBIG: TooLarge,
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: NoSpace,
    errno.EBUSY: Busy,
    errno.ETXTBSY: Busy,
    errno.ESTALE: Stale,
    errno.EXDEV: NotSupported,
    errno.ENOTSUP: NotSupported,
    errno.ENOSYS: NotSupported,
}


def translated(error: OSError) -> BackendError:
    """Return what a hook raises for ``error``; the number goes along, for the finer ones among them."""
    number = error.errno or errno.EIO
    return _ERRORS.get(number, BackendError)(os.strerror(number), errno=number)


def is_hidden(name: bytes) -> bool:
    """Return whether ``name`` is that of an unfinished file, which nobody sees."""
    return name.startswith(_HIDDEN_PREFIX) and name.endswith(_HIDDEN_SUFFIX)


def hidden_name(word: str) -> bytes:
    """Return the name of the unfinished file for ``word``, hexadecimal digits."""
    return _HIDDEN_PREFIX + word.encode() + _HIDDEN_SUFFIX


def checked_name(name: str) -> bytes:
    """Return ``name`` for a system call.

    Raises:
        Invalid: it is no name of a file, or one of those that are hidden.
    """
    reason = names.problem(name)
    encoded = names.encode(name)
    if reason is None and is_hidden(encoded):
        reason = "is kept for unfinished files"
    if reason is not None:
        raise Invalid(f"the name {name!r} {reason}")
    return encoded


def at(descriptor: int) -> str:
    """Return a path that leads to the object itself that ``descriptor`` was opened for, be it a symbolic link."""
    return f"/proc/self/fd/{descriptor}"


def rename2(source: int, name: bytes, target: int, new_name: bytes, flags: int) -> None:
    """Call renameat2(2); where library or filesystem lack it that is an `OSError` of EINVAL or ENOSYS."""
    if _RENAMEAT2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _RENAMEAT2(source, name, target, new_name, ctypes.c_uint(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * _HANDLE_BYTES_MAX),
    )


@attrs.define(eq=False)
class Disk:
    """One directory and all below it, from `open` to `close`. Its calls may overlap and raise `OSError` as they come."""

    path: os.PathLike[str]
    _root: int = attrs.field(init=False, default=-1)
    _device: int = attrs.field(init=False, default=0)
    _steady: dict[int, bool] = attrs.field(init=False, factory=dict)  # device: its file handles tell files apart

    def open(self) -> None:
        """Open the root; what the path leads to later does not matter any more."""
        self._root = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._device = os.stat(self._root).st_dev

    def close(self) -> None:
        """Close the root."""
        os.close(self._root)
        self._root = -1

    def name_bytes_max(self) -> int:
        """Return how long a name may be."""
        with self.directory("", readable=True) as root:
            return min(255, os.fpathconf(root, "PC_NAME_MAX"))

    @contextlib.contextmanager
    def directory(self, ref: str, *, readable: bool = False) -> Iterator[int]:
        """Give a descriptor of the directory at ``ref``; ``readable`` where it is listed or synced."""
        found = os.dup(self._root)
        try:
            for part in ref.split("/")[1:]:
                above, found = found, _open_directory(found, checked_name(part))
                os.close(above)
            if readable:
                above, found = found, _open_directory(found, b".", os.O_RDONLY)
                os.close(above)
            yield found
        finally:
            os.close(found)

    @contextlib.contextmanager
    def parent(self, entry: Entry) -> Iterator[tuple[int, bytes]]:
        """Give the directory that holds ``entry`` and its name there; the root is "." in itself."""
        above, _, name = entry.ref.rpartition("/")
        with self.directory(above) as directory:
            yield directory, checked_name(name) if name else b"."

    @contextlib.contextmanager
    def known(self, entry: Entry) -> Iterator[int]:
        """Give a descriptor of ``entry`` itself, of any kind, for calls by `at`.

        Raises:
            Stale: there is another object at its place.
        """
        with self.parent(entry) as (directory, name):
            found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            if entry.id is not None and entry.id != self.identity(os.stat(found), found):
                raise Stale(f"{entry.name!r} is another object now")
            yield found
        finally:
            os.close(found)

    def identity(self, facts: os.stat_result, directory: int, name: bytes = b"") -> str:
        """Return what tells this file from every other one, those that had its inode number before included.

        A hard link has the identity of the file. Inode numbers alone come again: ext4 gives the number of a removed
        file to the next one made. The device is named only where it is not the root's, because its number may differ
        after a restart.
        """
        device = "" if facts.st_dev == self._device else f"{facts.st_dev:x}:"
        if self._steady.get(facts.st_dev) is None:
            self._steady[facts.st_dev] = _has_steady_handles(directory, name)
        if self._steady[facts.st_dev] and _NAME_TO_HANDLE_AT is not None:
            handle = _FileHandle(handle_bytes=_HANDLE_BYTES_MAX)
            mount = ctypes.c_int()
            flags = 0 if name else _AT_EMPTY_PATH
            if _NAME_TO_HANDLE_AT(directory, name, ctypes.byref(handle), ctypes.byref(mount), flags) == 0:
                return f"{device}{bytes(handle.f_handle[: handle.handle_bytes]).hex()}"
            number = ctypes.get_errno()
            if number in {errno.ENOENT, errno.ESTALE}:
                raise OSError(number, os.strerror(number))  # removed since `facts` were asked
            self._steady[facts.st_dev] = False  # forbidden (seccomp): then for every file, so that identities agree
        return f"{device}{facts.st_ino:x}"

    def entry(self, shown: str, directory: int, name: bytes = b"") -> Entry:
        """Return all about ``name`` in ``directory``, or about the object that ``directory`` is where it is empty."""
        facts = os.stat(name, dir_fd=directory, follow_symlinks=False) if name else os.stat(directory)
        identity = self.identity(facts, directory, name)
        kind = _KINDS[stat.S_IFMT(facts.st_mode)]
        target = names.decode(os.readlink(name or b"", dir_fd=directory)) if kind is Kind.SYMLINK else None
        return Entry(
            name=shown,
            kind=kind,
            id=identity,
            version=version(facts, identity),
            size=facts.st_size if kind in {Kind.FILE, Kind.SYMLINK} else None,
            mtime_ns=facts.st_mtime_ns,
            ctime_ns=facts.st_ctime_ns,
            atime_ns=facts.st_atime_ns,
            mode=stat.S_IMODE(facts.st_mode),
            uid=facts.st_uid,
            gid=facts.st_gid,
            nlink=facts.st_nlink,
            rdev=facts.st_rdev if kind in {Kind.BLOCK, Kind.CHAR} else 0,
            target=target,
        )

    def check(self, directory: int, name: bytes, believed: Entry) -> os.stat_result:
        """Return the facts about ``name`` if it is what core believes it to be.

        Raises:
            Stale: it is another object, or a file with another content.
        """
        facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
        identity = self.identity(facts, directory, name)
        if believed.id is not None and believed.id != identity:
            raise Stale(f"{believed.name!r} is another object now")
        is_directory = stat.S_ISDIR(facts.st_mode)
        if believed.version is not None and not is_directory and believed.version != version(facts, identity):
            raise Stale(f"{believed.name!r} changed meanwhile")
        return facts

    def open_file(self, entry: Entry, flags: int) -> int:
        """Open the regular file ``entry`` and return its descriptor.

        Raises:
            Stale: it has another content than ``entry.version``.
        """
        with self.parent(entry) as (directory, name):
            # Without O_NONBLOCK a FIFO that took the name would hold the thread until somebody opens its other end.
            opened = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=directory)
        try:
            self.check_open(opened, entry)
        except BaseException:
            os.close(opened)
            raise
        return opened

    def check_open(self, descriptor: int, entry: Entry) -> None:
        """Raise `Stale` unless the open file still has the content that ``entry`` names."""
        facts = os.stat(descriptor)
        if stat.S_ISDIR(facts.st_mode):
            raise IsDirectory(f"{entry.name!r} is a directory")
        if not stat.S_ISREG(facts.st_mode):
            raise Invalid(f"{entry.name!r} is no regular file")
        if entry.version is not None and entry.version != version(facts, self.identity(facts, descriptor)):
            raise Stale(f"{entry.name!r} changed meanwhile")


def version(facts: os.stat_result, identity: str) -> str:
    """Return what names the content: the file, when it was written, and its size.

    The time of the last change of attributes (ctime) would see more, but a chmod would then be a new content. For a
    directory the count of its subdirectories helps against two changes within one tick of the clock.
    """
    links = f".{facts.st_nlink:x}" if stat.S_ISDIR(facts.st_mode) else ""
    return f"{identity}.{facts.st_mtime_ns:x}.{facts.st_size:x}{links}"


def apply(descriptor: int, changes: Attributes) -> None:
    """Change attributes of the object that ``descriptor`` was opened for; a symbolic link itself, not its target."""
    path, facts = at(descriptor), os.stat(descriptor)
    uid = facts.st_uid if changes.uid is None else changes.uid
    gid = facts.st_gid if changes.gid is None else changes.gid
    changes_hands = (uid, gid) != (facts.st_uid, facts.st_gid)
    if changes_hands:
        os.chown(path, uid, gid)
    # The mode comes after, because the kernel takes the set-user-ID bits away from what changes hands. What stays as it
    # is, is not set: a program that copies modes would fail on files which it may write but does not own.
    if changes.mode is not None and (changes_hands or changes.mode != stat.S_IMODE(facts.st_mode)):
        os.chmod(path, changes.mode)
    if changes.atime_ns is not None or changes.mtime_ns is not None:
        atime_ns = facts.st_atime_ns if changes.atime_ns is None else changes.atime_ns
        mtime_ns = facts.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns
        os.utime(path, ns=(atime_ns, mtime_ns))


def owned(attributes: Attributes, caller: Caller, directory: int) -> Attributes:
    """Return ``attributes`` with the owner that a new object in ``directory`` gets.

    A mount that the administrator made for others makes files as the one who asks, as a local directory would: with
    the directory's group where that has the set-group-ID bit. Everybody else can only make files of their own.
    """
    if os.geteuid() != 0:
        return attributes
    inherits = os.stat(directory).st_mode & stat.S_ISGID
    return attributes.over(Attributes(uid=caller.uid, gid=None if inherits else caller.gid))


def xattrs(path: str | int) -> dict[str, bytes]:
    """Return the extended attributes of the user namespace, by name without it."""
    found = {}
    for name in os.listxattr(path):
        if name.startswith("user."):
            with contextlib.suppress(OSError):  # removed since, or not for us to read
                found[names.decode(os.fsencode(name[5:]))] = os.getxattr(path, name)
    return found


def copy_xattrs(source: int, target: int) -> None:
    """Give ``target`` the extended attributes of ``source``, access lists and labels as far as we may set them.

    Not the file capabilities: the kernel takes them away from a file that is written to, and so do we.
    """
    try:
        found = os.listxattr(source)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return
        raise
    for name in found:
        if name == "security.capability":
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError:
            if name.startswith("user."):
                raise


def _open_directory(directory: int, name: bytes, access: int = os.O_PATH) -> int:
    return os.open(name, access | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def _has_steady_handles(directory: int, name: bytes) -> bool:
    if _NAME_TO_HANDLE_AT is None or _FSTATFS is None:
        return False
    facts = (ctypes.c_long * 64)()  # struct statfs begins with the type; the rest is room for what follows
    try:
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory) if name else os.dup(directory)
    except OSError:
        return False
    try:
        return _FSTATFS(found, facts) == 0 and facts[0] in _STEADY_HANDLES
    finally:
        os.close(found)
