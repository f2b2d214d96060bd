"""``memory:``, a complete tree in the memory of the mounting process, gone with the mount.

A backend. It implements every operation but exchange and principals, so it is the smallest place to see what each
hook promises, and the one to test an engine against. Each hook has one checkpoint, before it does anything: what
follows is atomic, so its guard against lost races is a real one.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Mapping
from typing import ClassVar, Final

import attrs
import trio

from fusekit.api import (
    Attributes,
    Caller,
    Capabilities,
    Content,
    Denied,
    Entry,
    Exists,
    Invalid,
    IsDirectory,
    Kind,
    Mount,
    NoSpace,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotSupported,
    Page,
    Rename,
    Sink,
    Space,
    Stale,
    hookimpl,
    names,
    option,
    parse_size,
)

PART_BYTES: Final = 1 << 20
READ_BYTES: Final = 4 << 20  # what one write to the sink holds: enough that the call costs nothing beside the copy


@attrs.frozen
class Options:
    """What ``memory:`` can be told."""

    path: str = option(default="", help="nothing, or a name for show: each mount has a tree of its own")
    size: int = option(default=1 << 30, converter=parse_size, help="bytes that contents and attributes may take")
    files: int = option(default=1 << 20, converter=int, help="how many files and directories there may be")
    page_size: int = option(default=1000, converter=int, help="entries that a listing hands over at once")
    stable_refs: bool = option(
        default=False, help="address entries by number, which renames do not change, not by path"
    )


@attrs.define(eq=False)
class _Node:
    """A file, directory or link. ``change`` counts contents: those of a directory are its names."""

    number: int
    kind: Kind
    mode: int
    uid: int | None  # None: core shows it as the mounting user's
    gid: int | None
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    rdev: int = 0
    target: str | None = None
    data: bytes | bytearray = b""  # never altered once here: a write puts another buffer in its place
    change: int = 0
    nlink: int = 1
    xattrs: dict[str, bytes] = attrs.field(factory=dict)
    children: dict[str, _Node] = attrs.field(factory=dict)
    parent: _Node | None = None  # of directories, to see whether one is inside another

    @property
    def is_directory(self) -> bool:
        return self.kind is Kind.DIRECTORY

    @property
    def id(self) -> str:
        return str(self.number)

    @property
    def version(self) -> str:
        return f"{self.number}.{self.change}"

    def touched(self) -> None:
        """Note that the content changed, now."""
        self.change += 1
        self.mtime_ns = self.ctime_ns = time.time_ns()


class MemoryBackend:
    """The hooks of ``memory:``."""

    scheme: ClassVar[str] = "memory"
    options: ClassVar[type] = Options

    def __init__(self, options: Options, mount: Mount) -> None:
        self._options = options
        # Two stores in memory are not one, though both are called `memory:`: neither ids nor versions may be the same.
        self._numbers = int.from_bytes(os.urandom(5), "big")
        self._nodes: dict[int, _Node] = {}
        self._used_bytes = 0  # contents, those still on their way, link targets and extended attributes
        self._root = self._make(Kind.DIRECTORY, Attributes(mode=0o755), None)
        self._capabilities = Capabilities(
            rename=Rename.FILES | Rename.DIRECTORIES | Rename.REPLACE | Rename.EXCHANGE,
            guarded=True,
            utf8_names=False,
        )

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        return self._capabilities

    @hookimpl
    async def fusekit_root(self) -> Entry:
        return self._entry("", self._root)

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        await trio.lowlevel.checkpoint()
        there = self._directory(directory)
        entries = [self._entry(name, node) for name, node in there.children.items()]
        for start in range(0, len(entries), self._options.page_size):
            await page(entries[start : start + self._options.page_size])

    @hookimpl
    async def fusekit_stat(self, directory: Entry, name: str) -> Entry:
        await trio.lowlevel.checkpoint()
        return self._entry(name, self._child(directory, name))

    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
        await trio.lowlevel.checkpoint()
        node = self._known(entry)
        if node.kind is not Kind.FILE:
            raise IsDirectory(f"{entry.ref} is a {node.kind.value}") if node.is_directory else Invalid("not a file")
        data = memoryview(node.data)
        stop = len(data) if stop is None else min(stop, len(data))
        for offset in range(start, stop, READ_BYTES):
            await sink.write(data[offset : min(offset + READ_BYTES, stop)], at=offset)

    @hookimpl
    async def fusekit_write(
        self, directory: Entry | None, name: str, replacing: Entry | None, content: Content, caller: Caller
    ) -> Entry:
        """Store ``content``; a file that is written again stays the same object, with all its names."""
        await trio.lowlevel.checkpoint()
        if directory is None:
            raise NotSupported("memory keeps no bytes without a name")
        self._writable(directory, name, replacing)
        data = bytearray()
        try:
            while (part := await content.next(PART_BYTES)) is not None:
                piece = await part.read()
                self._take(len(piece))
                data += piece
                part.done()
            # From here to the end nothing waits, so what is checked is what is replaced.
            node = self._writable(directory, name, replacing)
            if node is None:
                node = self._make(Kind.FILE, content.attributes, caller)
                _inherit(node, self._directory(directory), content.attributes)
                self._put(self._directory(directory), name, node)
            else:
                _apply(node, content.attributes)
        except BaseException:
            self._used_bytes -= len(data)
            raise
        self._used_bytes -= len(node.data)
        node.data = data
        node.touched()
        if content.attributes.mtime_ns is not None:
            node.mtime_ns = content.attributes.mtime_ns
        return self._entry(name, node)

    @hookimpl
    async def fusekit_mkdir(self, directory: Entry, name: str, attributes: Attributes, caller: Caller) -> Entry:
        await trio.lowlevel.checkpoint()
        return self._new(directory, name, Kind.DIRECTORY, attributes, caller)

    @hookimpl
    async def fusekit_symlink(self, directory: Entry, name: str, target: str, caller: Caller) -> Entry:
        await trio.lowlevel.checkpoint()
        return self._new(directory, name, Kind.SYMLINK, Attributes(mode=0o777), caller, target)

    @hookimpl
    async def fusekit_mknod(
        self, directory: Entry, name: str, kind: Kind, attributes: Attributes, caller: Caller
    ) -> Entry:
        await trio.lowlevel.checkpoint()
        if kind not in {Kind.FIFO, Kind.SOCKET, Kind.BLOCK, Kind.CHAR}:
            raise Invalid(f"a {kind.value} is not made by mknod")
        return self._new(directory, name, kind, attributes, caller)

    @hookimpl
    async def fusekit_link(self, entry: Entry, directory: Entry, name: str) -> Entry:
        await trio.lowlevel.checkpoint()
        node = self._known(entry)
        if node.is_directory:
            raise Denied("a directory has one name only", errno=errno.EPERM)
        parent = self._free(directory, name)
        node.nlink += 1
        node.ctime_ns = time.time_ns()
        self._put(parent, name, node)
        return self._entry(name, node)

    @hookimpl
    async def fusekit_copy(self, entry: Entry, directory: Entry, name: str, caller: Caller) -> Entry:
        await trio.lowlevel.checkpoint()
        node = self._known(entry)
        if node.kind is not Kind.FILE:
            raise NotSupported(f"a {node.kind.value} is not copied")
        parent = self._free(directory, name)
        extra = sum(map(len, node.xattrs.values()))
        self._take(len(node.data) + extra)
        try:
            copy = self._make(Kind.FILE, Attributes(mode=node.mode, mtime_ns=node.mtime_ns), caller)
        except NoSpace:
            self._used_bytes -= len(node.data) + extra
            raise
        _inherit(copy, parent, Attributes())
        copy.data, copy.xattrs = node.data, dict(node.xattrs)
        self._put(parent, name, copy)
        return self._entry(name, copy)

    @hookimpl
    async def fusekit_rename(
        self, entry: Entry, source: Entry, target: Entry, name: str, replacing: Entry | None, exchange: bool
    ) -> Entry:
        await trio.lowlevel.checkpoint()
        _check_name(name)
        leaving, entering = self._directory(source), self._directory(target)
        node = self._child(source, entry.name)
        _check(node, entry)
        there = entering.children.get(name)
        if there is not None and replacing is None:
            raise Exists(f"{name!r} is taken")
        if replacing is not None:
            if there is None:
                raise NotFound(f"{name!r} is gone") if exchange else Stale(f"{name!r} is gone")
            _check(there, replacing)
        elif exchange:
            raise NotFound(f"there is no {name!r} to exchange with")
        if _inside(entering, node) or (exchange and there is not None and _inside(leaving, there)):
            raise Invalid("a directory cannot move into itself")
        if there is node:
            return self._entry(name, node)  # two names of one file: POSIX has both stay
        if there is not None and not exchange:
            _check_replaceable(node, there)
        self._unput(leaving, entry.name)
        if there is not None:
            self._unput(entering, name)
            if exchange:
                self._put(leaving, entry.name, there)
            else:
                self._drop(there)
        self._put(entering, name, node)
        node.ctime_ns = time.time_ns()
        return self._entry(name, node)

    @hookimpl
    async def fusekit_remove(self, directory: Entry, entry: Entry) -> None:
        await trio.lowlevel.checkpoint()
        node = self._child(directory, entry.name)
        _check(node, entry)
        if node.children:
            raise NotEmpty(f"{entry.name!r} still has {len(node.children)} entries")
        self._unput(self._directory(directory), entry.name)
        self._drop(node)

    @hookimpl
    async def fusekit_setattr(self, directory: Entry, entry: Entry, changes: Attributes) -> Entry:
        await trio.lowlevel.checkpoint()
        node = self._known(entry)
        _apply(node, changes)
        return self._entry(entry.name, node)

    @hookimpl
    async def fusekit_getxattrs(self, entry: Entry) -> Mapping[str, bytes]:
        await trio.lowlevel.checkpoint()
        return dict(self._known(entry).xattrs)

    @hookimpl
    async def fusekit_setxattr(self, entry: Entry, name: str, value: bytes | None) -> None:
        await trio.lowlevel.checkpoint()
        node = self._known(entry)
        old = node.xattrs.get(name)
        if value is None:
            if old is None:
                raise NotFound(f"no extended attribute {name!r}", errno=errno.ENODATA)
            del node.xattrs[name]
        else:
            self._take(len(value))
            node.xattrs[name] = value
        self._used_bytes -= len(old or b"")
        node.ctime_ns = time.time_ns()

    @hookimpl
    async def fusekit_statfs(self) -> Space:
        await trio.lowlevel.checkpoint()
        options = self._options
        free_bytes, free_files = options.size - self._used_bytes, options.files - len(self._nodes)
        return Space(options.size, free_bytes, free_bytes, total_files=options.files, free_files=free_files)

    def _entry(self, name: str, node: _Node) -> Entry:
        size = len(node.data) if node.kind is Kind.FILE else len(names.encode(node.target or ""))
        return Entry(
            name=name,
            kind=node.kind,
            ref=f"#{node.number}" if self._options.stable_refs else "",
            id=node.id,
            version=node.version,
            size=None if node.is_directory else size,
            mtime_ns=node.mtime_ns,
            ctime_ns=node.ctime_ns,
            atime_ns=node.atime_ns,
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            nlink=node.nlink,
            rdev=node.rdev,
            target=node.target,
        )

    def _find(self, entry: Entry) -> _Node:
        if entry.ref.startswith("#"):
            found = self._nodes.get(int(entry.ref[1:]))
        else:
            found = self._root
            for name in entry.ref.split("/")[1:]:
                found = found.children.get(name) if found is not None else None
        if found is None:
            raise NotFound(f"{entry.name or '/'!r} is gone")
        return found

    def _known(self, entry: Entry) -> _Node:
        node = self._find(entry)
        _check(node, entry)
        return node

    def _directory(self, entry: Entry) -> _Node:
        node = self._find(entry)
        if not node.is_directory:
            raise NotDirectory(f"{entry.name!r} is a {node.kind.value}")
        if entry.id is not None and entry.id != node.id:
            raise Stale(f"{entry.name!r} is another directory now")
        return node

    def _child(self, directory: Entry, name: str) -> _Node:
        found = self._directory(directory).children.get(name)
        if found is None:
            raise NotFound(f"no {name!r} in {directory.name or '/'!r}")
        return found

    def _free(self, directory: Entry, name: str) -> _Node:
        """Return the directory in which ``name`` may be made."""
        _check_name(name)
        parent = self._directory(directory)
        if name in parent.children:
            raise Exists(f"{name!r} is taken")
        return parent

    def _writable(self, directory: Entry, name: str, replacing: Entry | None) -> _Node | None:
        """Return the file to write over, None to make one, after checking that it is as core believes."""
        if replacing is None:
            self._free(directory, name)
            return None
        node = self._directory(directory).children.get(name)
        if node is None:
            raise Stale(f"{name!r} was removed meanwhile")
        if node.is_directory:
            raise IsDirectory(f"{name!r} is a directory")
        _check(node, replacing)
        if node.kind is not Kind.FILE:
            raise Invalid(f"{name!r} is a {node.kind.value}")
        return node

    def _new(
        self, directory: Entry, name: str, kind: Kind, attributes: Attributes, caller: Caller, target: str | None = None
    ) -> Entry:
        parent = self._free(directory, name)
        room = len(names.encode(target or ""))
        self._take(room)
        try:
            node = self._make(kind, attributes, caller)
        except NoSpace:
            self._used_bytes -= room
            raise
        _inherit(node, parent, attributes)
        node.target = target
        self._put(parent, name, node)
        return self._entry(name, node)

    def _make(self, kind: Kind, attributes: Attributes, caller: Caller | None) -> _Node:
        if len(self._nodes) >= self._options.files:
            raise NoSpace(f"this mount holds at most {self._options.files} files (option files)")
        self._numbers += 1
        now = time.time_ns()
        mode = 0o755 if kind is Kind.DIRECTORY else 0o644
        uid, gid = (caller.uid, caller.gid) if caller is not None else (None, None)
        node = _Node(self._numbers, kind, mode, uid, gid, now, now, now)
        if node.is_directory:
            node.nlink = 2
        _apply(node, attributes)
        node.rdev = attributes.rdev or 0
        self._nodes[node.number] = node
        return node

    def _put(self, parent: _Node, name: str, node: _Node) -> None:
        parent.children[name] = node
        parent.touched()
        if node.is_directory:
            node.parent = parent
            parent.nlink += 1

    def _unput(self, parent: _Node, name: str) -> None:
        node = parent.children.pop(name)
        parent.touched()
        if node.is_directory:
            node.parent = None
            parent.nlink -= 1

    def _drop(self, node: _Node) -> None:
        """Forget one name of ``node``, and the node with the last."""
        node.nlink -= 1
        node.ctime_ns = time.time_ns()
        if node.nlink == 0 or node.is_directory:
            del self._nodes[node.number]
            self._used_bytes -= len(node.data) + len(names.encode(node.target or ""))
            self._used_bytes -= sum(map(len, node.xattrs.values()))

    def _take(self, room: int) -> None:
        if self._used_bytes + room > self._options.size:
            raise NoSpace(f"this mount holds at most {self._options.size} bytes (option size)")
        self._used_bytes += room


def _check(node: _Node, entry: Entry) -> None:
    """Refuse to act on something else than what core believes ``entry`` to be."""
    if entry.id is not None and entry.id != node.id:
        raise Stale(f"{entry.name!r} is another object now")
    if entry.version is not None and entry.version != node.version and not node.is_directory:
        raise Stale(f"{entry.name!r} changed meanwhile")


def _check_name(name: str) -> None:
    reason = names.problem(name)
    if reason:
        raise Invalid(f"the name {name!r} {reason}")


def _check_replaceable(node: _Node, there: _Node) -> None:
    """Apply the rules of rename(2) on what may take the place of what."""
    if there.is_directory and not node.is_directory:
        raise IsDirectory("a file cannot replace a directory")
    if node.is_directory and not there.is_directory:
        raise NotDirectory("a directory cannot replace a file")
    if there.children:
        raise NotEmpty("the directory to replace is not empty")


def _inside(directory: _Node, ancestor: _Node) -> bool:
    at: _Node | None = directory
    while at is not None:
        if at is ancestor:
            return True
        at = at.parent
    return False


def _inherit(node: _Node, parent: _Node, attributes: Attributes) -> None:
    """Give something new the group of a directory with the set-group-ID bit, and a directory the bit."""
    if not parent.mode & stat.S_ISGID:
        return
    if attributes.gid is None:
        node.gid = parent.gid
    if node.is_directory:
        node.mode |= stat.S_ISGID


def _apply(node: _Node, changes: Attributes) -> None:
    if changes.mode is not None:
        node.mode = changes.mode
    if changes.uid is not None:
        node.uid = changes.uid
    if changes.gid is not None:
        node.gid = changes.gid
    if changes.atime_ns is not None:
        node.atime_ns = changes.atime_ns
    if changes.mtime_ns is not None:
        node.mtime_ns = changes.mtime_ns
    node.ctime_ns = time.time_ns()


@hookimpl
def fusekit_backends() -> list[type]:
    return [MemoryBackend]
