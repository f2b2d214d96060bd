"""The reference: a filesystem in plain Python that answers as Linux does, and the calls it is compared by.

Outside the layers, standard library and attrs only. `Subject` is what a filesystem under test offers; `Model` is the
reference and `OsSubject` the real one below a directory, be it a disk or a mount. Random sequences and the comparison
are in `fusekit.testing.sequences`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn, Protocol

import attrs

LINKS_MAX: Final = 40  # symbolic links that one path may go through, in Linux
NOREPLACE: Final = 1
EXCHANGE: Final = 2
_ACCESS: Final = os.O_RDONLY | os.O_WRONLY | os.O_RDWR

_RENAMEAT2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


@attrs.frozen
class Facts:
    """What stat tells; None where filesystems differ or where it is the time of the call, and nothing is compared."""

    kind: str
    size: int | None
    mode: int
    nlink: int | None
    mtime_ns: int | None


@attrs.frozen
class Node:
    """One name of a whole tree: facts and all that belongs to it. ``content`` is bytes, or the target of a link."""

    facts: Facts
    content: bytes
    xattrs: tuple[tuple[str, bytes], ...]


class Subject(Protocol):
    """Calls on paths below a root and on open files in numbered slots. Each returns a value or raises `OSError`.

    Paths are relative and without dots. A slot that holds no file is EBADF, and opening into one closes what it held.
    ``fill`` and ``size`` stand for the bytes of `pattern`.
    """

    def open(self, slot: int, path: str, flags: int, mode: int) -> None: ...
    def close(self, slot: int) -> None: ...
    def pread(self, slot: int, offset: int, size: int) -> bytes: ...
    def pwrite(self, slot: int, offset: int, fill: int, size: int) -> int: ...
    def write(self, slot: int, fill: int, size: int) -> int: ...
    def ftruncate(self, slot: int, size: int) -> None: ...
    def fsync(self, slot: int) -> None: ...
    def fstat(self, slot: int) -> Facts: ...
    def stat(self, path: str) -> Facts: ...
    def lstat(self, path: str) -> Facts: ...
    def read(self, path: str) -> bytes: ...
    def listdir(self, path: str) -> list[str]: ...
    def truncate(self, path: str, size: int) -> None: ...
    def mkdir(self, path: str, mode: int) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rename(self, path: str, new: str) -> None: ...
    def rename_noreplace(self, path: str, new: str) -> None: ...
    def exchange(self, path: str, new: str) -> None: ...
    def link(self, path: str, new: str) -> None: ...
    def symlink(self, target: str, path: str) -> None: ...
    def readlink(self, path: str) -> str: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def utime(self, path: str, mtime_ns: int) -> None: ...
    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None: ...
    def getxattr(self, path: str, name: str) -> bytes: ...
    def removexattr(self, path: str, name: str) -> None: ...
    def listxattr(self, path: str) -> list[str]: ...
    def tree(self) -> dict[str, Node]: ...


def pattern(fill: int, size: int) -> bytes:
    """Return ``size`` bytes in which every place looks different from its neighbours and from another ``fill``."""
    line = bytes((fill + number * 7) % 256 for number in range(251))
    return (line * (size // len(line) + 1))[:size]


def process_umask() -> int:
    """Return the umask of this process without setting it, which would be for all threads."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def fail(number: int) -> NoReturn:
    """Raise the `OSError` of ``number``."""
    raise OSError(number, os.strerror(number))


@attrs.define(eq=False)
class Inode:
    """A file, directory or symbolic link of the model."""

    kind: str
    mode: int
    data: bytearray = attrs.field(factory=bytearray)
    children: dict[str, Inode] = attrs.field(factory=dict)
    target: str = ""
    xattrs: dict[str, bytes] = attrs.field(factory=dict)
    nlink: int = 1
    mtime_ns: int | None = None  # None: the time of the call that changed it last
    # What somebody behind the filesystem may have of a file, for who compares under faults: contents, None for no file.
    stored: list[bytes | None] = attrs.field(factory=lambda: [None])

    @property
    def is_directory(self) -> bool:
        return self.kind == "directory"

    def facts(self) -> Facts:
        size = None if self.is_directory else len(self.data) if self.kind == "file" else len(os.fsencode(self.target))
        return Facts(self.kind, size, self.mode, None if self.is_directory else self.nlink, self.mtime_ns)


@attrs.define(eq=False)
class _Open:
    inode: Inode
    flags: int
    position: int = 0


@attrs.frozen
class _Found:
    """Where a path leads: the directory of its last name, that name, and what has it."""

    parent: Inode
    name: str
    inode: Inode | None


class Model:
    """The reference `Subject`. Permissions are not checked: sequences leave the owner's rights alone."""

    def __init__(self, umask: int | None = None) -> None:
        self._umask = process_umask() if umask is None else umask
        self._root = Inode("directory", 0o755)
        self._slots: dict[int, _Open] = {}

    def open(self, slot: int, path: str, flags: int, mode: int) -> None:
        self._slots.pop(slot, None)
        exclusive = bool(flags & os.O_CREAT and flags & os.O_EXCL)
        found = self._walk(path, follow=not exclusive)
        inode = found.inode
        if inode is None:
            if not flags & os.O_CREAT:
                fail(errno.ENOENT)
            inode = Inode("file", mode & ~self._umask)
            self._put(found, inode)
        elif exclusive:
            fail(errno.EEXIST)
        elif inode.is_directory and (flags & os.O_CREAT or flags & _ACCESS != os.O_RDONLY):
            fail(errno.EISDIR)
        elif flags & os.O_TRUNC:
            inode.data.clear()
            inode.mtime_ns = None
        self._slots[slot] = _Open(inode, flags)

    def close(self, slot: int) -> None:
        self._slot(slot)
        del self._slots[slot]

    def pread(self, slot: int, offset: int, size: int) -> bytes:
        opened = self._slot(slot)
        if opened.flags & _ACCESS == os.O_WRONLY:
            fail(errno.EBADF)
        if opened.inode.is_directory:
            fail(errno.EISDIR)
        return bytes(opened.inode.data[offset : offset + size])

    def pwrite(self, slot: int, offset: int, fill: int, size: int) -> int:
        opened = self._writable(slot)
        # Linux appends with pwrite too where the file is open for appending, against what POSIX says.
        self._store(opened, len(opened.inode.data) if opened.flags & os.O_APPEND else offset, fill, size)
        return size

    def write(self, slot: int, fill: int, size: int) -> int:
        opened = self._writable(slot)
        start = len(opened.inode.data) if opened.flags & os.O_APPEND else opened.position
        self._store(opened, start, fill, size)
        opened.position = start + size
        return size

    def ftruncate(self, slot: int, size: int) -> None:
        opened = self._slot(slot)
        if opened.flags & _ACCESS == os.O_RDONLY:
            fail(errno.EINVAL)
        _resize(opened.inode, size)

    def fsync(self, slot: int) -> None:
        self._slot(slot)

    def fstat(self, slot: int) -> Facts:
        return self._slot(slot).inode.facts()

    def stat(self, path: str) -> Facts:
        return self._at(path).facts()

    def lstat(self, path: str) -> Facts:
        return self._at(path, follow=False).facts()

    def read(self, path: str) -> bytes:
        inode = self._at(path)
        if inode.is_directory:
            fail(errno.EISDIR)
        return bytes(inode.data)

    def listdir(self, path: str) -> list[str]:
        inode = self._at(path)
        if not inode.is_directory:
            fail(errno.ENOTDIR)
        return sorted(inode.children)

    def truncate(self, path: str, size: int) -> None:
        inode = self._at(path)
        if inode.is_directory:
            fail(errno.EISDIR)
        _resize(inode, size)

    def mkdir(self, path: str, mode: int) -> None:
        self._make(path, Inode("directory", mode & ~self._umask))

    def symlink(self, target: str, path: str) -> None:
        self._make(path, Inode("symlink", 0o777, target=target))

    def rmdir(self, path: str) -> None:
        found = self._walk(path, follow=False)
        if found.inode is None:
            fail(errno.ENOENT)
        if not found.inode.is_directory:
            fail(errno.ENOTDIR)
        if found.inode.children:
            fail(errno.ENOTEMPTY)
        self._take(found)

    def unlink(self, path: str) -> None:
        found = self._walk(path, follow=False)
        if found.inode is None:
            fail(errno.ENOENT)
        if found.inode.is_directory:
            fail(errno.EISDIR)
        self._take(found)

    def rename(self, path: str, new: str) -> None:
        self._rename(path, new, 0)

    def rename_noreplace(self, path: str, new: str) -> None:
        self._rename(path, new, NOREPLACE)

    def exchange(self, path: str, new: str) -> None:
        self._rename(path, new, EXCHANGE)

    def _rename(self, path: str, new: str, flags: int) -> None:
        """Check in the order in which the kernel does, so that of two reasons the same one is given."""
        old, target = self._walk(path, follow=False), self._walk(new, follow=False)
        if old.inode is None:
            fail(errno.ENOENT)
        if target.inode is not None and flags == NOREPLACE:
            fail(errno.EEXIST)
        if target.inode is None and flags == EXCHANGE:
            fail(errno.ENOENT)
        if _contains(old.inode, target.parent):
            fail(errno.EINVAL)
        if target.inode is not None and _contains(target.inode, old.parent):
            fail(errno.EINVAL if flags == EXCHANGE else errno.ENOTEMPTY)
        if old.inode is target.inode:
            return
        if target.inode is not None and flags != EXCHANGE:
            if old.inode.is_directory and not target.inode.is_directory:
                fail(errno.ENOTDIR)
            if not old.inode.is_directory and target.inode.is_directory:
                fail(errno.EISDIR)
            if target.inode.children:
                fail(errno.ENOTEMPTY)
            self._take(target)
        if flags == EXCHANGE:
            assert target.inode is not None
            old.parent.children[old.name] = target.inode
        else:
            del old.parent.children[old.name]
        target.parent.children[target.name] = old.inode
        old.parent.mtime_ns = target.parent.mtime_ns = None

    def link(self, path: str, new: str) -> None:
        inode = self._at(path, follow=False)
        found = self._walk(new, follow=False)
        if found.inode is not None:
            fail(errno.EEXIST)
        if inode.is_directory:
            fail(errno.EPERM)
        self._put(found, inode)
        inode.nlink += 1

    def readlink(self, path: str) -> str:
        inode = self._at(path, follow=False)
        if inode.kind != "symlink":
            fail(errno.EINVAL)
        return inode.target

    def chmod(self, path: str, mode: int) -> None:
        self._at(path).mode = mode

    def utime(self, path: str, mtime_ns: int) -> None:
        self._at(path).mtime_ns = mtime_ns

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        there = self._at(path).xattrs
        if flags == os.XATTR_CREATE and name in there:
            fail(errno.EEXIST)
        if flags == os.XATTR_REPLACE and name not in there:
            fail(errno.ENODATA)
        there[name] = value

    def getxattr(self, path: str, name: str) -> bytes:
        there = self._at(path).xattrs
        if name not in there:
            fail(errno.ENODATA)
        return there[name]

    def removexattr(self, path: str, name: str) -> None:
        there = self._at(path).xattrs
        if name not in there:
            fail(errno.ENODATA)
        del there[name]

    def listxattr(self, path: str) -> list[str]:
        return sorted(self._at(path).xattrs)

    def find(self, path: str) -> Inode | None:
        """Return what has the name, a symbolic link not followed."""
        try:
            return self._walk(path, follow=False).inode
        except OSError:
            return None

    def held(self, slot: int) -> Inode | None:
        """Return what is open in ``slot``."""
        opened = self._slots.get(slot)
        return opened.inode if opened is not None else None

    def adopt(self, path: str, content: bytes | None) -> None:
        """Let the file ``path`` have another content, or let it be gone: what a failure leaves of it."""
        found = self._walk(path, follow=False)
        assert found.inode is not None
        if content is None:
            self._take(found)
        else:
            found.inode.data[:] = content

    def kinds(self) -> dict[str, str]:
        """Return what every path is, symbolic links not followed; for who draws the next step."""
        found: dict[str, str] = {}

        def visit(above: str, directory: Inode) -> None:
            for name, inode in directory.children.items():
                found[above + name] = inode.kind
                visit(f"{above}{name}/", inode)

        visit("", self._root)
        return found

    def slots(self) -> list[int]:
        """Return the slots that hold an open file."""
        return list(self._slots)

    def tree(self) -> dict[str, Node]:
        found: dict[str, Node] = {}

        def visit(above: str, directory: Inode) -> None:
            for name, inode in directory.children.items():
                content = os.fsencode(inode.target) if inode.kind == "symlink" else bytes(inode.data)
                found[above + name] = Node(inode.facts(), content, tuple(sorted(inode.xattrs.items())))
                visit(f"{above}{name}/", inode)

        visit("", self._root)
        return found

    def _walk(self, path: str, *, follow: bool) -> _Found:
        parts, directory, links = path.split("/"), self._root, 0
        while True:
            name = parts.pop(0)
            inode = directory.children.get(name)
            if inode is not None and inode.kind == "symlink" and (parts or follow):
                links += 1
                if links > LINKS_MAX:
                    fail(errno.ELOOP)
                parts[:0] = inode.target.split("/")
            elif not parts:
                return _Found(directory, name, inode)
            elif inode is None:
                fail(errno.ENOENT)
            elif not inode.is_directory:
                fail(errno.ENOTDIR)
            else:
                directory = inode

    def _at(self, path: str, *, follow: bool = True) -> Inode:
        if not path:
            return self._root
        inode = self._walk(path, follow=follow).inode
        if inode is None:
            fail(errno.ENOENT)
        return inode

    def _make(self, path: str, inode: Inode) -> None:
        found = self._walk(path, follow=False)
        if found.inode is not None:
            fail(errno.EEXIST)
        self._put(found, inode)

    def _put(self, found: _Found, inode: Inode) -> None:
        found.parent.children[found.name] = inode
        found.parent.mtime_ns = None

    def _take(self, found: _Found) -> None:
        assert found.inode is not None
        del found.parent.children[found.name]
        found.parent.mtime_ns = None
        found.inode.nlink -= 1

    def _slot(self, slot: int) -> _Open:
        if slot not in self._slots:
            fail(errno.EBADF)
        return self._slots[slot]

    def _writable(self, slot: int) -> _Open:
        opened = self._slot(slot)
        if opened.flags & _ACCESS == os.O_RDONLY:
            fail(errno.EBADF)
        return opened

    def _store(self, opened: _Open, offset: int, fill: int, size: int) -> None:
        if not size:
            return
        data = opened.inode.data
        data.extend(bytes(max(0, offset - len(data))))
        data[offset : offset + size] = pattern(fill, size)
        opened.inode.mtime_ns = None


def _resize(inode: Inode, size: int) -> None:
    del inode.data[size:]
    inode.data.extend(bytes(size - len(inode.data)))
    inode.mtime_ns = None


def _contains(ancestor: Inode, directory: Inode) -> bool:
    return ancestor is directory or any(
        _contains(child, directory) for child in ancestor.children.values() if child.is_directory
    )


class OsSubject:
    """The `Subject` below ``root``, an empty directory of a real filesystem or of a mount."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._slots: dict[int, int] = {}

    def finish(self) -> None:
        """Close what is open."""
        for slot in list(self._slots):
            self.close(slot)

    def open(self, slot: int, path: str, flags: int, mode: int) -> None:
        if slot in self._slots:
            self.close(slot)
        self._slots[slot] = os.open(self._root / path, flags | os.O_CLOEXEC, mode)

    def close(self, slot: int) -> None:
        descriptor = self._slot(slot)
        del self._slots[slot]
        os.close(descriptor)

    def pread(self, slot: int, offset: int, size: int) -> bytes:
        return os.pread(self._slot(slot), size, offset)

    def pwrite(self, slot: int, offset: int, fill: int, size: int) -> int:
        return os.pwrite(self._slot(slot), pattern(fill, size), offset)

    def write(self, slot: int, fill: int, size: int) -> int:
        return os.write(self._slot(slot), pattern(fill, size))

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._slot(slot), size)

    def fsync(self, slot: int) -> None:
        os.fsync(self._slot(slot))

    def fstat(self, slot: int) -> Facts:
        return _facts(os.fstat(self._slot(slot)))

    def stat(self, path: str) -> Facts:
        return _facts(os.stat(self._root / path))

    def lstat(self, path: str) -> Facts:
        return _facts(os.lstat(self._root / path))

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(self._root / path))

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self._root / path, size)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._root / path, mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._root / path)

    def unlink(self, path: str) -> None:
        os.unlink(self._root / path)

    def rename(self, path: str, new: str) -> None:
        os.rename(self._root / path, self._root / new)

    def rename_noreplace(self, path: str, new: str) -> None:
        self._rename2(path, new, NOREPLACE)

    def exchange(self, path: str, new: str) -> None:
        self._rename2(path, new, EXCHANGE)

    def _rename2(self, path: str, new: str, flags: int) -> None:
        if _RENAMEAT2 is None:
            fail(errno.ENOSYS)
        here = -100  # AT_FDCWD: the paths are absolute
        old, target = os.fsencode(self._root / path), os.fsencode(self._root / new)
        if _RENAMEAT2(here, old, here, target, ctypes.c_uint(flags)) != 0:
            fail(ctypes.get_errno())

    def link(self, path: str, new: str) -> None:
        os.link(self._root / path, self._root / new, follow_symlinks=False)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._root / path)

    def readlink(self, path: str) -> str:
        return os.readlink(self._root / path)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._root / path, mode)

    def utime(self, path: str, mtime_ns: int) -> None:
        os.utime(self._root / path, ns=(mtime_ns, mtime_ns))

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self._root / path, name, value, flags)

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self._root / path, name)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self._root / path, name)

    def listxattr(self, path: str) -> list[str]:
        return sorted(_shown(os.listxattr(self._root / path)))

    def tree(self) -> dict[str, Node]:
        found = {}
        for above, directories, files in os.walk(self._root):
            for name in directories + files:
                path = Path(above, name)
                facts = _facts(os.lstat(path))
                if facts.kind == "symlink":
                    content, extra = os.fsencode(os.readlink(path)), {}
                else:
                    content = path.read_bytes() if facts.kind == "file" else b""
                    extra = {one: os.getxattr(path, one) for one in _shown(os.listxattr(path))}
                found[str(path.relative_to(self._root))] = Node(facts, content, tuple(sorted(extra.items())))
        return found

    def _slot(self, slot: int) -> int:
        if slot not in self._slots:
            fail(errno.EBADF)
        return self._slots[slot]


_KINDS: Final[Mapping[int, str]] = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


def _facts(found: os.stat_result) -> Facts:
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "other")
    size = None if kind == "directory" else found.st_size
    return Facts(kind, size, stat.S_IMODE(found.st_mode), None if size is None else found.st_nlink, found.st_mtime_ns)


def _shown(attributes: list[str]) -> list[str]:
    """Return those that users set: security labels and what fusekit itself tells about a file come and go."""
    return [name for name in attributes if name.startswith("user.") and not name.startswith("user.fusekit.")]
