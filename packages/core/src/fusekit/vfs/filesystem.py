"""Every operation of the file system, on inode numbers and handles, as the kernel asks for them.

Vfs layer, its upper side: the adapter (or a test, or `fusekit.vfs.paths`) calls `Filesystem` and catches
`BackendError`. What is asked of the remote side and when is decided in `tree`, what becomes of bytes in `files`; here
it is put together in the order that keeps names, inodes and open files right at every checkpoint.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import attrs
import trio

from fusekit.cache.blocks import Blocks
from fusekit.cache.listings import Remembered
from fusekit.cache.metadata import Fact
from fusekit.disk import Disk
from fusekit.errors import (
    Aborted,
    BackendError,
    Exists,
    Invalid,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotSupported,
    Stale,
)
from fusekit.journal import steps
from fusekit.journal.journal import Journal
from fusekit.journal.uploader import version_of
from fusekit.metrics import Metrics
from fusekit.settings import Consistency, KeepAttributes, Settings
from fusekit.transfer.calls import Calls
from fusekit.types import Attributes, Caller, Capabilities, Entry, Io, Kind, Space, Want
from fusekit.vfs.attributes import KINDS, Attr, token
from fusekit.vfs.directories import Directories
from fusekit.vfs.file import File, block_key
from fusekit.vfs.files import Files
from fusekit.vfs.handles import FileHandle, HandleId, Handles
from fusekit.vfs.inodes import ROOT, Node
from fusekit.vfs.places import Places
from fusekit.vfs.recovery import Recovery
from fusekit.vfs.renames import Renames
from fusekit.vfs.shown import Shown
from fusekit.vfs.tree import Tree
from fusekit.vfs.xattrs import Xattrs

logger = logging.getLogger(__name__)

# Shown where the service tells nothing: large, so that no program refuses to write for want of space.
SPACE_UNKNOWN: Final = Space(total_bytes=1 << 50, free_bytes=1 << 50)


# How long giving a file up may wait for somebody who is sending it; beyond that it is kept, and never published.
ABANDON_S: Final = 5.0


@attrs.frozen
class Opened:
    """What open returns: the handle, and what the kernel may do with its pages."""

    handle: HandleId
    keep_cache: bool
    direct_io: bool


@attrs.frozen
class Changes:
    """What a setattr asks for; ``size`` in bytes, the rest as in `Attributes`."""

    size: int | None = None
    attributes: Attributes = Attributes()


class Filesystem:
    """The operations of one mount."""

    def __init__(
        self, calls: Calls, blocks: Blocks, journal: Journal, disk: Disk, settings: Settings, metrics: Metrics, identity: str,
        remembered: Remembered | None = None,
    ) -> None:  # fmt: skip
        self.tree = Tree(calls, settings, metrics, identity, remembered)
        self.handles = Handles()
        self.files = Files(self.tree, calls, blocks, journal, disk, settings)
        self._calls = calls
        self._blocks = blocks
        self._settings = settings
        self._shown = Shown(self.tree, settings)
        self._principals = calls.implements("fusekit_principal")
        self._places = Places(self.tree, calls, settings)
        self.recovery = Recovery(self.tree, self.files, calls, journal, disk)
        self._renames = Renames(self.tree, self.files, self._places, calls)
        self._xattrs = Xattrs(self.tree, self.files, self._places, calls, blocks)
        self.directories = Directories(self.tree, self.files, self.handles, self._places, self._shown)

    def running(self) -> AbstractAsyncContextManager[None]:
        """Own what goes on beside the operations, from before the first of them until after the last."""
        return self._running()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        async with self.tree.listings.running(), self.files.uploads.running():
            yield

    async def recover(self, caller: Caller) -> None:
        """Go on with what an earlier run left in the journal; what it cannot go on with is kept."""
        await self.files.uploads.spawn(self.recovery.begin, caller)

    async def caller(self, uid: int, gid: int, pid: int) -> Caller:
        """Return who asks, with the name under which the backend knows them.

        Raises:
            Denied: the user is not signed in.
        """
        principal = await self._calls.principal(uid, gid, pid) if self._principals else ""
        return Caller(uid, gid, pid, principal)

    # ---- names and attributes ----------------------------------------------------------------------------------

    async def start(self, caller: Caller) -> Attr:
        """Ask for the root, so that a mount which cannot work says so at once."""
        await self.tree.recall_sizes()
        await self.tree.ask(self.tree.inodes.root, caller)
        return await self.getattr(ROOT, caller)

    async def lookup(self, parent: int, name: str, caller: Caller) -> Attr:
        """Return the attributes of ``name``; the kernel gets one reference to its inode.

        Raises:
            NotFound: there is none.
        """
        directory = self.tree.node(parent)
        if name in {".", ".."}:
            node = directory if name == "." else self.tree.node(directory.parent)
        else:
            node = await self.files.find(directory, name, caller)
        attr = await self._attr(node, caller)
        self.tree.inodes.looked_up(node)
        return attr

    def missing_s(self, parent: int, caller: Caller) -> float:
        """Return for how long the kernel may believe that a name is missing in ``parent``."""
        record = self.tree.view(caller).directories.get(parent)
        if record is None or not self.tree.one_view or record.listed_at is None:
            return 0.0 if not self.tree.one_view else min(1.0, self.tree.metadata.ttl_s)
        return self.tree.metadata.remaining_s(record.listed_at)

    def forget(self, references: Sequence[tuple[int, int]]) -> None:
        """Take back references of the kernel: pairs of inode number and count."""
        for ino, count in references:
            self.tree.forget(ino, count)

    async def getattr(self, ino: int, caller: Caller) -> Attr:
        """Return the attributes of an inode."""
        return await self._attr(self.tree.node(ino), caller)

    async def setattr(self, ino: int, changes: Changes, handle: int | None, caller: Caller) -> Attr:
        """Change size, mode, owner or times, and return the attributes as they are then."""
        node = self.tree.node(ino)
        if changes.size is not None:
            await self._truncate(node, changes.size, handle, caller)
        if changes.attributes:
            await self._set_attributes(node, changes.attributes, caller)
        return await self._attr(node, caller)

    async def readlink(self, ino: int, caller: Caller) -> str:
        """Return the target of a symbolic link."""
        node = self.tree.node(ino)
        entry = (await self.tree.refresh(node, caller)).entry
        if node.kind is not Kind.SYMLINK:
            raise Invalid("not a symbolic link")
        return entry.target or ""

    async def access(self, ino: int, want: Want, caller: Caller) -> None:
        """Raise `Denied` if the caller may not do ``want``."""
        await self._places.allowed(self.tree.node(ino), want, caller)

    async def statfs(self, ino: int, caller: Caller) -> Space:
        """Return the space around an inode."""
        node = self.tree.node(ino)
        if node.kind is not Kind.DIRECTORY:
            node = self.tree.node(node.parent)
        directory, capabilities = await self.tree.directory(node, caller)
        if not capabilities.has("fusekit_statfs"):
            return SPACE_UNKNOWN
        return await self._calls.statfs(directory, caller)

    # ---- directories -------------------------------------------------------------------------------------------

    async def opendir(self, ino: int, caller: Caller) -> HandleId:
        """Open a directory for reading its names."""
        return await self.directories.open(ino, caller)

    async def readdir(self, handle: int, start: int) -> list[tuple[str, Attr]]:
        """Return names from position ``start`` on, ``.`` and ``..`` first, as soon as there are any; none at the end.

        Position 0 reads afresh. Whoever hands an entry on to the kernel with its attributes says so with `listed`.
        """
        return await self.directories.read(handle, start)

    def more(self, handle: int, start: int) -> bool:
        """Return whether `readdir` from position ``start`` on would not have to wait."""
        return self.directories.more(handle, start)

    def listed(self, handle: int, attr: Attr) -> None:
        """Count a reference that the kernel was given with a directory entry, and what it was told with it."""
        self.directories.listed(handle, attr)

    def releasedir(self, handle: int) -> None:
        """Close a directory."""
        self.directories.release(handle)

    async def fsyncdir(self, handle: int) -> None:
        """Return when the remote side has every change of names below the directory, and what was written there."""
        await self.directories.sync(handle)

    async def mkdir(self, parent: int, name: str, mode: int, caller: Caller) -> Attr:
        """Make a directory; the kernel gets one reference."""
        directory = self.tree.node(parent)
        async with self.files.turns.take(inside=(directory,)):
            entry, capabilities = await self._places.to_make(directory, name, "fusekit_mkdir", caller)
            attributes = self._owned(directory, Kind.DIRECTORY, mode, caller)
            made = await self._calls.mkdir(entry, name, _asked(attributes, mode), caller)
            return await self._appeared(directory, name, made, attributes, capabilities, caller)

    async def symlink(self, parent: int, name: str, target: str, caller: Caller) -> Attr:
        """Make a symbolic link; the kernel gets one reference."""
        directory = self.tree.node(parent)
        async with self.files.turns.take(inside=(directory,)):
            entry, capabilities = await self._places.to_make(directory, name, "fusekit_symlink", caller)
            attributes = attrs.evolve(self._owned(directory, Kind.SYMLINK, 0, caller), mode=None)
            made = await self._calls.symlink(entry, name, target, caller)
            return await self._appeared(directory, name, made, attributes, capabilities, caller)

    async def mknod(self, parent: int, name: str, mode: int, rdev: int, caller: Caller) -> Attr:
        """Make a FIFO, socket or device, or an empty regular file; the kernel gets one reference."""
        kind = KINDS.get(stat.S_IFMT(mode), Kind.FILE)
        if kind is Kind.FILE:
            opened, attr = await self.create(parent, name, mode, os.O_WRONLY, caller)
            try:
                # Nobody closes it who could be told later; what only waits for the journal tells no more then either.
                await (self.fsync(opened.handle) if self.files.commits.waits else self.flush(opened.handle))
            except BaseException:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + ABANDON_S):
                    await self.abandon(opened.handle, failed=True)
                raise
            await self.release(opened.handle)
            return attr
        directory = self.tree.node(parent)
        async with self.files.turns.take(inside=(directory,)):
            entry, capabilities = await self._places.to_make(directory, name, "fusekit_mknod", caller)
            attributes = attrs.evolve(self._owned(directory, kind, mode, caller), rdev=rdev)
            made = await self._calls.mknod(entry, name, kind, _asked(attributes, mode), caller)
            return await self._appeared(directory, name, made, attributes, capabilities, caller)

    async def link(self, ino: int, parent: int, name: str, caller: Caller) -> Attr:
        """Give an inode a second name; the kernel gets one reference."""
        node, directory = self.tree.node(ino), self.tree.node(parent)
        async with self.files.turns.take(node, inside=(directory,)):
            entry, _ = await self._places.to_make(directory, name, "fusekit_link", caller)
            if node.gone:
                raise NotFound(f"{node.name!r} was removed")
            if node.file is not None and node.file.entry is None:
                await self.files.commits.commit_in_turn(node.file, caller)
            linked = await self._calls.link(await self.tree.entry(node, caller), entry, name, caller)
            if linked.id is None:
                raise NotSupported("the backend gave a link no identity")
            self.tree.appeared(directory, name, linked, caller)
        attr = await self._attr(node, caller)
        self.tree.inodes.looked_up(node)
        return attr

    async def unlink(self, parent: int, name: str, caller: Caller) -> None:
        """Remove a name that is no directory; open handles keep what it named."""

        def check(node: Node) -> None:
            if node.kind is Kind.DIRECTORY:
                raise IsDirectory(f"{name!r} is a directory")

        await self._remove(self.tree.node(parent), name, check, caller)

    async def rmdir(self, parent: int, name: str, caller: Caller) -> None:
        """Remove an empty directory."""

        def check(node: Node) -> None:
            if node.kind is not Kind.DIRECTORY:
                raise NotDirectory(f"{name!r} is not a directory")
            if any(place[0] == node.ino for place in self.tree.pending):
                raise NotEmpty(f"{name!r} has files in it that are being written")

        await self._remove(self.tree.node(parent), name, check, caller)

    async def rename(self, source: int, name: str, target: int, new_name: str, flags: int, caller: Caller) -> None:
        """Move a name; ``flags`` are RENAME_NOREPLACE and RENAME_EXCHANGE of renameat2(2)."""
        await self._renames.rename(self.tree.node(source), name, self.tree.node(target), new_name, flags, caller)

    # ---- files -------------------------------------------------------------------------------------------------

    async def open(self, ino: int, flags: int, caller: Caller) -> Opened:
        """Open a file as open(2) does with ``flags``.

        Raises:
            Stale: the remote side has another version than the kernel was told; it looks up and opens again.
        """
        node = self.tree.node(ino)
        await self.files.finished(node)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        want = (Want.WRITE if writes else Want(0)) | (Want.READ if flags & os.O_ACCMODE != os.O_WRONLY else Want(0))
        await self._places.allowed(node, want, caller)
        if writes:
            self._places.to_write(node, caller)
        unmeasured = False
        entry: Entry | None
        if node.file is None or not (node.file.local or node.gone):
            entry = await self._version_to_open(node, caller, reads=not flags & os.O_TRUNC)
            unmeasured = entry.size is None
            if node.file is not None and not node.file.local:  # else somebody began to write over the one before
                node.file.entry = entry
        else:
            entry = None  # it has a file, which keeps its own
        file = self.files.open(node, entry, caller)
        handle = self.handles.add(FileHandle(file, flags, caller))
        try:
            if flags & os.O_TRUNC:
                await self.files.contents.truncate(file, 0, caller)
            elif unmeasured:
                await self.files.contents.measure(file, caller)
        except BaseException:
            self.handles.remove(handle)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await self.files.release(file)
            raise
        return self._opened(handle, file, unmeasured=unmeasured)

    def _opened(self, handle: HandleId, file: File, *, unmeasured: bool) -> Opened:
        node = file.node
        version = version_of(file.entry) if file.entry is not None else None
        keep = file.local or (version is not None and node.pages == version and _tells(file.entry))
        if not file.local:
            node.pages = version
        special = file.entry is not None and file.entry.io is not Io.CACHED
        return Opened(handle, keep_cache=keep, direct_io=unmeasured or special or self._settings.direct_io)

    async def create(self, parent: int, name: str, mode: int, flags: int, caller: Caller) -> tuple[Opened, Attr]:
        """Make and open a regular file; the kernel gets one reference."""
        directory = self.tree.node(parent)
        while True:
            try:
                found = await self.files.find(directory, name, caller)
            except NotFound:
                pass
            else:
                if flags & os.O_EXCL:
                    raise Exists(f"{name!r} exists")
                if found.kind is Kind.DIRECTORY:
                    raise IsDirectory(f"{name!r} is a directory")
                try:
                    opened = await self.open(found.ino, flags, caller)
                except Stale:
                    # The version moved, and with it perhaps the number; no kernel looks up again behind a create.
                    found = await self.files.find(directory, name, caller)
                    opened = await self.open(found.ino, flags, caller)
                try:
                    attr = await self._attr(found, caller)
                except BaseException:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + ABANDON_S):
                        await self.abandon(opened.handle)
                    raise
                self.tree.inodes.looked_up(found)
                return opened, attr
            _, capabilities = await self._places.to_make(directory, name, "fusekit_write", caller)
            if self.tree.at(directory, name, caller) is None:  # else somebody made it meanwhile
                break
        key = self.tree.key(capabilities, name)
        node = self.tree.inodes.place(directory, name, Entry.file(name))
        self.tree.pending[(directory.ino, key)] = node
        self.tree.changed(directory, key)
        file = self.files.open(node, None, caller)
        file.dirty, file.filled = True, False
        owned = self._owned(directory, Kind.FILE, mode, caller)
        file.attributes, file.group = _asked(owned, mode), owned.gid
        file.written_ns = time.time_ns()
        handle = self.handles.add(FileHandle(file, flags, caller))
        self.tree.inodes.looked_up(node)
        attr = await self._attr(node, caller)
        return self._opened(handle, file, unmeasured=False), attr

    async def read(self, handle: int, start: int, size: int) -> bytes | memoryview:
        """Return ``size`` bytes from offset ``start``, fewer only at the end of the file."""
        opened = self.handles.file(handle)
        if not opened.reads:
            raise Invalid("not open for reading", errno=errno.EBADF)
        return await self.files.contents.read(opened.file, opened.reader, start, start + size, opened.caller)

    async def write(self, handle: int, start: int, data: bytes | memoryview) -> int:
        """Put ``data`` at offset ``start`` (at the end for O_APPEND) and return its length."""
        opened = self.handles.file(handle)
        if not opened.writes:
            raise Invalid("not open for writing", errno=errno.EBADF)
        try:
            self._places.fits(opened.file, (opened.file.size if opened.appends else start) + len(data), opened.caller)
        except BackendError as error:
            self.files.contents.refuse(opened.file, error)
            raise
        if opened.appends:
            await self.files.contents.append(opened.file, data, opened.caller)
        else:
            await self.files.contents.write(opened.file, data, start, opened.caller)
        return len(data)

    async def flush(self, handle: int) -> None:
        """Answer the close of one descriptor: with what was written on the remote side, or with why it is not."""
        opened = self.handles.file(handle)
        if opened.writes:
            await self.files.commits.flush(opened.file, opened.caller)
            if (
                opened.file.filled and opened.file.acknowledged
            ):  # an empty one waits for what comes, or for the last close
                self.files.uploads.soon(opened.file)

    async def fsync(self, handle: int) -> None:
        """Return when the remote side has what was written."""
        opened = self.handles.file(handle)
        await self.files.commits.commit(opened.file, opened.caller)

    async def release(self, handle: int) -> None:
        """Close a handle for good; what is dirty with the last one is sent."""
        opened = self.handles.file(handle)
        self.handles.remove(handle)
        await self.files.release(opened.file)

    async def abandon(self, handle: int, *, failed: bool = False) -> None:
        """Close a handle for good and publish nothing of what was written through it.

        The file is again as the last commit left it; a new one is gone. Where others have it open for writing, the
        content is theirs as well: it stays here, and is kept in the journal unless one of them makes it good.
        ``failed``: also what a commit of the caller's failed to send is given up.
        """
        opened = self.handles.file(handle)
        self.handles.remove(handle)
        # Refused first: what cannot be discarded in time is at least never sent.
        self.files.contents.refuse(
            opened.file, Aborted("given up by who wrote it; it is only a part of what it was to be")
        )
        try:
            if not self._writers(opened.file.node):
                await self.files.discard(opened.file, failed=failed)
        finally:
            await self.files.release(opened.file)

    def _writers(self, node: Node) -> bool:
        return any(other.file.node is node and other.writes for _, other in self.handles.files())

    async def send_all(self) -> None:
        """Send what is dirty, of every open file, and what waits; failures are logged and kept in the journal."""
        for _, opened in self.handles.files():
            try:
                await self.files.commits.commit(opened.file, opened.caller)
            except BackendError as error:
                logger.error("%s: not sent: %s", self.tree.inodes.path(opened.file.node), error)
            except Exception:
                logger.exception("%s: not sent", self.tree.inodes.path(opened.file.node))
        await self.files.uploads.drain()

    async def drain(self) -> None:
        """Release every handle that is still open: the kernel is gone and will not."""
        for number, opened in self.handles.files():
            try:
                await self.release(number)
            except Exception:  # the other files must have their turn
                logger.exception("%s: not closed in order", self.tree.inodes.path(opened.file.node))
        await self.files.uploads.drain()
        for node in self.tree.inodes:
            if (
                node.file is not None and node.file.handles == 0 and not node.file.acknowledged
            ):  # nobody waited for the end of its release
                await self.files.finish(node.file)

    async def flush_below(self, path: str, caller: Caller, *, wait: bool) -> None:
        """Hurry what was closed and waits at or below ``path``; ``wait`` returns when it is sent, or cannot be for now."""
        node = self.tree.inodes.root
        for name in (part for part in path.split("/") if part):
            node = await self.files.find(node, name, caller)
        if wait:
            await self.files.uploads.drain(node)
        else:
            self.files.uploads.hurry_below(node)

    def refuse_writers(self) -> None:
        """Let nobody begin to write any more: the mount is ending. Who has a file open goes on."""
        self._places.ending = True

    def unsent(self) -> list[str]:
        """Return the paths of files with content that the remote side is not known to have."""
        return sorted(self.tree.inodes.path(node) for node in self.tree.inodes if node.file and node.file.unsent)

    # ---- extended attributes -----------------------------------------------------------------------------------

    async def getxattr(self, ino: int, name: str, caller: Caller) -> bytes:
        """Return the value of an extended attribute."""
        return await self._xattrs.get(self.tree.node(ino), name, caller)

    async def listxattr(self, ino: int, caller: Caller) -> list[str]:
        """Return the names of the service's extended attributes; fusekit's own are there but not listed."""
        return await self._xattrs.list(self.tree.node(ino), caller)

    async def setxattr(self, ino: int, name: str, value: bytes | None, caller: Caller) -> None:
        """Set an extended attribute; None removes it."""
        await self._xattrs.set(self.tree.node(ino), name, value, caller)

    # ---- how ---------------------------------------------------------------------------------------------------

    async def _attr(self, node: Node, caller: Caller) -> Attr:
        file = node.file
        if file is not None and file.entry is None and node.kind is Kind.FILE:
            return self._attr_known(node, None)
        fact = await self.tree.refresh(node, caller)
        if fact.entry.size is None and node.kind is Kind.FILE and fact.entry.io is Io.CACHED:
            await self._measure(node, caller)
            fact = self.tree.fact(node, caller) or fact
        attr = self._attr_known(node, fact)
        if attr.valid_s > 0 and (file is None or not file.local):
            node.told = version_of(fact.entry)
        return attr

    async def _measure(self, node: Node, caller: Caller) -> None:
        file = self.files.open(node, await self.tree.entry(node, caller), caller)
        try:
            await self.files.contents.measure(file, caller)
        finally:
            await self.files.release(file)

    def _attr_known(self, node: Node, fact: Fact | None) -> Attr:
        return self._shown.attr(node, fact)

    async def _version_to_open(self, node: Node, caller: Caller, *, reads: bool) -> Entry:
        """Return the version that an open gets, by the consistency mode; at most one call."""
        fact = await self.tree.refresh(node, caller) if not node.gone else self.tree.fact(node, caller)
        if fact is None:
            raise Stale(f"{node.name!r} is no longer known")
        if node.gone:
            return await self.tree.entry(node, caller)
        asked_again, node.asked_again = node.asked_again, False
        mode = self._settings.consistency
        if not asked_again and mode in {Consistency.CLOSE_TO_OPEN, Consistency.STRICT}:
            entry = await self.tree.entry(node, caller)
            unproven = not reads or node.pages is not None or self._blocks.cached(block_key(entry), entry) > 0
            if mode is Consistency.STRICT or unproven or not self.tree.metadata.fresh(fact.at):
                await self._ask(node, caller)
        entry = await self.tree.entry(node, caller)
        unseen = node.told is not None and node.told != version_of(entry) and not asked_again
        # Older handles keep their version, also where the kernel has heard of the new one since they were opened.
        # What somebody began to write is one content for all of them.
        file = node.file
        held = node.opens > 0 and file is not None and not file.local and not _same(file, entry)
        if reads and (unseen or held):
            if mode is Consistency.SNAPSHOT:
                raise Stale(f"{node.name!r} changed since it was first seen")
            # The kernel has attributes of another version, and opens do not carry any: it must look up again. While
            # older handles are open, the new version gets a number of its own, so that pages never mix.
            if node.opens > 0:
                self.tree.supersede(node, entry, caller)
            else:
                node.asked_again = True
            raise Stale(f"{node.name!r} changed at the remote side")
        return entry

    async def _ask(self, node: Node, caller: Caller) -> None:
        try:
            await self.tree.ask(node, caller)
        except NotFound as error:
            raise Stale(f"{node.name!r} is gone at the remote side") from error

    async def _truncate(self, node: Node, size: int, handle: int | None, caller: Caller) -> None:
        await self.files.finished(node)
        if handle is not None:
            opened = self.handles.file(handle)
            self._places.fits(opened.file, size, caller)
            await self.files.contents.truncate(opened.file, size, opened.caller)
            return
        if node.kind is not Kind.FILE:
            raise Invalid("only regular files have a size to change")
        self._places.to_write(node, caller)
        await self._places.allowed(node, Want.WRITE, caller)
        entry = None if node.file is not None and node.file.local else await self.tree.entry(node, caller)
        file = self.files.open(node, entry, caller)
        try:
            self._places.fits(file, size, caller)
            if size == file.size:
                return
            failed_before = file.failed
            await self.files.contents.truncate(file, size, caller)
            if self._writers(node):
                return
            try:
                if not self.files.commits.waits:
                    await self.files.commits.acknowledge(file, caller)
                    self.files.uploads.soon(file)
                    return
                await self.files.commits.commit(file, caller)
            except BackendError:
                if failed_before is None and not self._writers(node):
                    await self.files.discard(file, failed=True)  # the caller is told, and the file is as it was
                raise
        finally:
            await self.files.release(file)

    async def _set_attributes(self, node: Node, changes: Attributes, caller: Caller) -> None:
        self._places.writable_mount()
        file = node.file
        if file is not None and (file.local or node.gone):
            file.attributes = changes.over(file.attributes)
            if node.gone or file.dirty or await self._sent_with(node, file, changes):
                return
        if node.kind is Kind.DIRECTORY and changes.mtime_ns is not None:
            # Each file that arrives in it moves the time on: what waits goes first, as long as somebody would wait.
            with trio.move_on_after(self._settings.metadata_timeout_s):
                await self.files.uploads.drain(node)
        parent = self.tree.node(node.parent)
        if self._places.around(node, caller).has("fusekit_setattr"):
            async with self.files.turns.take(node):
                if node.file is None:
                    await self._store_attributes(node, parent, changes, caller)
                    return
                # Nobody begins to write over the version before, while it is replaced by the one after.
                async with node.file.changing:
                    if not (node.gone or node.file.dirty):  # else they go with the content: a commit failed
                        await self._store_attributes(node, parent, changes, caller)
            return
        if self._settings.attributes is KeepAttributes.REJECT:
            raise NotSupported("modes, owners and times cannot be changed here", errno=errno.EPERM)
        if self._settings.attributes is KeepAttributes.IGNORE:
            return
        async with self.files.turns.take(node):
            if node.file is not None and node.file.dirty:
                return
            fact = await self.tree.refresh(node, caller)
            older = node.kept[1] if node.kept is not None and node.kept[0] == token(fact.entry) else Attributes()
            node.kept = (token(fact.entry), changes.over(older))

    async def _sent_with(self, node: Node, file: File, changes: Attributes) -> bool:
        """Let ``changes`` go with content that waits to be sent; return whether there is any."""
        if not file.acknowledged:
            return False
        async with self.files.turns.take(node):
            if file.dirty:
                return True
            if not file.acknowledged:
                return False
            last = file.acknowledged[-1]
            last.attributes = changes.over(last.attributes)
            await self.files.commits.store_with(last)
            return True

    async def _store_attributes(self, node: Node, parent: Node, changes: Attributes, caller: Caller) -> None:
        entry = await self.tree.entry(node, caller)
        directory = await self.tree.entry(parent, caller)
        changed = await self._calls.setattr(directory, entry, changes, caller)
        self._changed_attributes(node, parent, changed, caller)
        if node.file is not None and node.file.entry is not None:
            node.file.entry = await self.tree.entry(node, caller)

    def _changed_attributes(self, node: Node, parent: Node, entry: Entry, caller: Caller) -> None:
        fact = self.tree.fact(node, caller)
        self.tree.unsaved(self.tree.address(parent, self.tree.view(caller)))
        if fact is not None:
            fact.entry, fact.at = attrs.evolve(entry, name=fact.entry.name, ref=fact.entry.ref), trio.current_time()
        if parent is not node:
            node.kept = None

    async def _appeared(
        self,
        directory: Node,
        name: str,
        made: Entry,
        attributes: Attributes,
        capabilities: Capabilities,
        caller: Caller,
    ) -> Attr:
        """Take over what was made, keep what the service cannot store of it, and give the kernel a reference."""
        node = self.tree.appeared(directory, name, made, caller)
        if node.kind is Kind.DIRECTORY:
            self.tree.empty(node, caller)
        if self._settings.attributes is KeepAttributes.LOCAL and not capabilities.has("fusekit_setattr"):
            node.kept = (token(made), attributes)
        self.tree.inodes.looked_up(node)
        return await self._attr(node, caller)

    def _owned(self, directory: Node, kind: Kind, mode: int, caller: Caller) -> Attributes:
        """Return mode and owner of something new in ``directory``, as a local disk would give them."""
        above = self._attr_known(directory, self.tree.fact(directory, caller))
        inherits = bool(above.mode & stat.S_ISGID)
        bit = stat.S_ISGID if inherits and kind is Kind.DIRECTORY else 0
        return Attributes(mode=stat.S_IMODE(mode) | bit, uid=caller.uid, gid=above.gid if inherits else caller.gid)

    async def _remove(self, directory: Node, name: str, check: Callable[[Node], None], caller: Caller) -> None:
        while True:
            node = await self.files.find(directory, name, caller)
            check(node)
            async with self.files.turns.take(node, inside=(directory,)):
                if self.tree.at(directory, name, caller) is node:
                    await self._remove_in_turn(directory, name, node, caller)
                    return

    async def _remove_in_turn(self, directory: Node, name: str, node: Node, caller: Caller) -> None:
        entry = await self._places.to_remove(directory, caller)
        path = f"{self.tree.inodes.path(directory).rstrip('/')}/{name}"
        if node.file is not None and node.file.entry is None:
            if (there := await self.files.there(directory, node, caller)) is not None:
                await self._calls.remove(entry, there, caller)
                steps.reached("name-changed")
                self.tree.gone_below(directory, name, caller)
            self.files.withdraw(node)
        else:
            if node.links is None or len(node.links) < 2:
                await self.files.outlive(node, caller)
            await self._calls.remove(entry, await self.tree.entry_at(directory, name, node, caller), caller)
            steps.reached("name-changed")
            self.tree.disappeared(directory, name, node, caller)
        await self.files.removed(node, path, caller)
        self.tree.release(node)


def _asked(owned: Attributes, mode: int) -> Attributes:
    """Return what a hook is asked to give to something new: which group it gets, the place decides by what it is now."""
    return attrs.evolve(owned, mode=stat.S_IMODE(mode), gid=None)


def _same(file: File, entry: Entry) -> bool:
    """Return whether ``entry`` is the version that ``file`` is open at, as far as the service tells."""
    held = file.entry
    if held is None or held.io is not Io.CACHED or entry.io is not Io.CACHED:
        return True
    if held.version is None and entry.version is None and None in {held.size, entry.size}:
        return held.mtime_ns == entry.mtime_ns  # one of them was measured
    return version_of(held) == version_of(entry)


def _tells(entry: Entry | None) -> bool:
    """Return whether the service tells when the content of ``entry`` changed."""
    return entry is not None and (entry.version is not None or entry.mtime_ns is not None)
