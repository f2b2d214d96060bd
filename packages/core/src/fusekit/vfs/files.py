"""Open files: what their content is at this moment, and its way to the remote side.

Vfs layer. A `File` belongs to an inode, not to a handle, and lives while the inode is open or has something unsent.
Reads come from its staging file where there is one, else from the block store; a write makes the staging file, laid
over the version that was there. A commit freezes the staging file as a generation and hands it to the journal's
uploader; what is written meanwhile goes to the next one.

Locks, in this order: a turn at the inode (one commit, rename, removal or change of attributes at a time, held over the
network), then ``File.changing`` (one change of the staging file at a time).
"""

from __future__ import annotations

import errno
import logging
import time
import uuid
from typing import Final

import attrs
import trio

from fusekit import names
from fusekit.cache.blocks import Blocks
from fusekit.disk import Disk
from fusekit.errors import BackendError, Invalid, Stale
from fusekit.journal.journal import Journal
from fusekit.journal.staging import Staging
from fusekit.journal.uploader import Generation, Uploader, version_of
from fusekit.settings import KeepAttributes, Settings
from fusekit.transfer.calls import Calls
from fusekit.types import Attributes, Caller, Entry, Io
from fusekit.vfs.attributes import token
from fusekit.vfs.inodes import Node
from fusekit.vfs.tree import Tree
from fusekit.vfs.turns import Turns

logger = logging.getLogger(__name__)

# How much of the version below is copied into a staging file at a time.
_FILL_BYTES: Final = 8 << 20


@attrs.define(eq=False)
class File:
    """The content of one open inode.

    ``entry`` is the version that the remote side has (with its address), None for a file that was never sent.
    ``attributes`` were set by the program since then, ``written_ns`` is when it last changed the content. ``filled``
    is False while the file is empty since its create or truncate: such a flush is not worth an upload of its own.
    ``failed`` is why the last commit did not succeed, ``failed_at`` how many ``changes`` there were then. ``refused``
    is why a write was not taken: until the next change, what is here is a torso, kept in the journal and never sent.
    ``finishing`` is set while the last handle's release commits.
    """

    node: Node
    entry: Entry | None
    caller: Caller
    staging: Staging | None = None
    key: str = ""
    row: int | None = None
    dirty: bool = False
    filled: bool = True
    attributes: Attributes = Attributes()
    written_ns: int | None = None
    failed: BackendError | None = None
    failed_at: int = 0
    refused: BackendError | None = None
    changes: int = 0
    failed_rows: list[int] = attrs.field(factory=list)
    handles: int = 0
    finishing: trio.Event | None = None
    changing: trio.Lock = attrs.field(factory=trio.Lock)

    @property
    def local(self) -> bool:
        """Return whether the content here is not, or not only, what the remote side has."""
        return self.staging is not None or self.entry is None or self.dirty

    @property
    def size(self) -> int:
        """Return the size of the content in bytes."""
        if self.staging is not None:
            return self.staging.size
        return (self.entry.size or 0) if self.entry is not None else 0

    def as_entry(self, told: Entry | None) -> Entry:
        """Return the entry that a stat of the local content shows; ``told`` is what the remote side said last."""
        base = told or self.entry or Entry.file(self.node.name)
        mtime_ns = self.attributes.mtime_ns or self.written_ns or base.mtime_ns
        return attrs.evolve(
            base,
            size=self.size,
            mtime_ns=mtime_ns,
            ctime_ns=max(mtime_ns or 0, base.ctime_ns or 0) or None,
            atime_ns=self.attributes.atime_ns or base.atime_ns,
            mode=_set(self.attributes.mode, base.mode),
            uid=_set(self.attributes.uid, base.uid),
            gid=_set(self.attributes.gid, base.gid),
        )


class Files:
    """Reads, changes and commits open files."""

    def __init__(
        self, tree: Tree, calls: Calls, blocks: Blocks, journal: Journal, disk: Disk, settings: Settings
    ) -> None:
        self._tree = tree
        self._calls = calls
        self._blocks = blocks
        self._journal = journal
        self._disk = disk
        self._settings = settings
        self._uploader = Uploader(calls, journal)
        self.turns = Turns(tree.inodes)
        self.failures: dict[str, str] = {}

    # ---- life --------------------------------------------------------------------------------------------------

    def open(self, node: Node, entry: Entry | None, caller: Caller) -> File:
        """Return the file of ``node`` with one handle more; ``entry`` is the version that it has."""
        file = node.file
        if file is None:
            file = node.file = File(node, entry, caller)
        file.handles += 1
        node.opens += 1
        return file

    async def release(self, file: File) -> None:
        """Take a handle back; with the last one, commit what is dirty."""
        file.handles -= 1
        file.node.opens -= 1
        if file.handles > 0:
            return
        file.finishing = trio.Event()
        try:
            if file.dirty and file.failed is None:
                await self.commit(file, file.caller)
        except BackendError as error:
            logger.error("%s: not sent, kept in the journal: %s", self._tree.inodes.path(file.node), error)
        finally:
            file.finishing.set()
            file.finishing = None
            if file.handles == 0:
                await self._close(file)

    async def _close(self, file: File) -> None:
        node, staging = file.node, file.staging
        if file.dirty:
            node.pages = None  # the kernel has pages of what was not sent
        file.staging = node.file = None
        key = next((key for key, pending in self._tree.pending.items() if pending is node), None)
        if key is not None:  # never sent: with the handle the name goes, the bytes stay in the journal
            del self._tree.pending[key]
            self._tree.inodes.detach(node)
        self._tree.release(node)
        if staging is not None and (node.unlinked or not file.dirty):
            await self._forget(file, staging)

    async def _forget(self, file: File, staging: Staging) -> None:
        await staging.discard()
        if file.row is not None:
            await self._journal.remove(file.row)
            file.row = None

    async def find(self, directory: Node, name: str, caller: Caller) -> Node:
        """Return the inode at ``name``, once the last handle's release of it, which the kernel does not wait for, is done.

        Raises:
            NotFound: there is none.
        """
        if len(name) > 1 and names.problem(name) is not None:
            raise Invalid(f"the name is longer than {names.NAME_BYTES_MAX} bytes", errno=errno.ENAMETOOLONG)
        while True:
            node = await self._tree.lookup(directory, name, caller)
            if node.file is None or node.file.finishing is None:
                return node
            await self.finished(node)

    async def finished(self, node: Node) -> None:
        """Wait until the last handle's release of the file is done."""
        while node.file is not None and node.file.finishing is not None:
            await node.file.finishing.wait()

    async def outlive(self, node: Node, caller: Caller) -> None:
        """Bring what open handles may still ask for here, before the remote side forgets it."""
        if node.file is not None and node.file.handles > 0 and node.file.entry is not None:
            await self.make_local(node.file, caller)

    def withdraw(self, node: Node) -> None:
        """Take the name of a file away that was never sent."""
        for place in [place for place, other in self._tree.pending.items() if other is node]:
            del self._tree.pending[place]
            parent = self._tree.inodes.get(place[0])
            if parent is not None:
                self._tree.changed(parent, place[1])
        node.unlinked = True
        self._tree.inodes.detach(node)

    # ---- bytes -------------------------------------------------------------------------------------------------

    async def read(self, file: File, start: int, stop: int, caller: Caller) -> bytes | memoryview:
        """Return the bytes of the content from ``start`` to ``stop``, fewer at its end."""
        staging = file.staging
        if staging is not None:
            await self._fill(file, staging, start, stop, caller)
            return await staging.read(start, stop)
        if file.entry is None:
            return b""
        entry = await self._addressed(file, file.entry, caller)
        if entry.io is Io.DIRECT:
            return await self._direct(entry, start, stop, caller)
        try:
            return await self._blocks.read(block_key(entry), entry, start, stop, caller)
        except Stale:
            self._tree.metadata.expire(file.node.ino)
            raise

    async def measure(self, file: File, caller: Caller) -> None:
        """Learn the size of a file that only reading tells."""
        entry = file.entry
        if entry is None or entry.size is not None or entry.io is not Io.CACHED:
            return
        entry = await self._addressed(file, entry, caller)
        size = await self._blocks.measure(block_key(entry), entry, caller)
        file.entry = attrs.evolve(entry, size=size)
        fact = self._tree.fact(file.node, caller)
        if fact is not None and version_of(fact.entry) == version_of(entry):
            fact.entry = attrs.evolve(fact.entry, size=size)

    async def write(self, file: File, data: bytes | memoryview, at: int, caller: Caller) -> None:
        """Put ``data`` at offset ``at``."""
        await self.measure(file, caller)
        async with file.changing:
            staging = await self._changeable(file, caller)
            await staging.write(data, at)
            self._changed(file, filled=True)

    async def append(self, file: File, data: bytes | memoryview, caller: Caller) -> None:
        """Put ``data`` at the end, wherever that is now."""
        await self.measure(file, caller)
        async with file.changing:
            staging = await self._changeable(file, caller)
            await staging.write(data, staging.size)
            self._changed(file, filled=True)

    async def truncate(self, file: File, size: int, caller: Caller) -> None:
        """Cut or extend the content to ``size`` bytes."""
        if size:
            await self.measure(file, caller)
        async with file.changing:
            staging = await self._changeable(file, caller, keep=size > 0)
            await staging.truncate(size)
            self._changed(file, filled=file.filled and size > 0)

    def refuse(self, file: File, error: BackendError) -> None:
        """Take note that a write to ``file`` fails with ``error``: what came before it is not to be published alone."""
        if file.dirty:
            file.refused = error

    def _changed(self, file: File, *, filled: bool) -> None:
        file.changes += 1
        file.dirty = True
        file.refused = None
        file.filled = filled
        file.written_ns = time.time_ns()
        file.attributes = attrs.evolve(file.attributes, mtime_ns=None)

    async def _changeable(self, file: File, caller: Caller, *, keep: bool = True) -> Staging:
        """Return the staging file to change, made or thawed where needed; hold ``changing``."""
        staging = file.staging
        if staging is not None and not staging.frozen:
            return staging
        key = uuid.uuid4().hex
        path = self._journal.staging_path(key)
        if staging is None:
            size = file.size if keep else 0
            fresh = await Staging.create(self._disk, path, size)
        else:
            await self._fill(file, staging, 0, staging.size, caller, locked=True)
            fresh = await staging.thaw(path)
        file.row = await self._begin(file, key)
        file.staging, file.key = fresh, key
        return fresh

    async def _begin(self, file: File, key: str) -> int | None:
        if file.node.unlinked:
            return None
        parent = await self._tree.entry(self._tree.node(file.node.parent), file.caller)
        return await self._journal.begin(
            principal=file.caller.principal,
            path=self._tree.inodes.path(file.node),
            directory=parent.ref,
            name=file.node.name,
            replacing=file.entry,
            key=key,
        )

    async def _fill(
        self, file: File, staging: Staging, start: int, stop: int, caller: Caller, *, locked: bool = False
    ) -> None:
        """Bring what ``staging`` lacks between ``start`` and ``stop`` from the version below it."""
        for low, high in staging.missing(start, stop):
            assert file.entry is not None, "only a version below can have what is missing"
            entry = await self._addressed(file, file.entry, caller)
            for at in range(low, high, _FILL_BYTES):
                part = min(at + _FILL_BYTES, high)
                data = await self._blocks.read(block_key(entry), entry, at, part, caller)
                if locked:
                    await staging.fill(data, at)
                else:
                    async with file.changing:
                        await staging.fill(data, at)

    async def _addressed(self, file: File, entry: Entry, caller: Caller) -> Entry:
        """Return ``entry``, a version of the file, with the address that it has now: names above it may have moved."""
        if file.node.gone or self._tree.fact(file.node, caller) is None:
            return entry
        now = await self._tree.entry(file.node, caller)
        return attrs.evolve(entry, name=now.name, ref=now.ref)

    async def _direct(self, entry: Entry, start: int, stop: int, caller: Caller) -> bytes:
        sink = _Window(start, stop)
        await self._calls.read(entry, start, stop, sink, caller)
        return sink.taken()

    async def make_local(self, file: File, caller: Caller) -> None:
        """Bring the whole content here: its name is about to go while the file is open."""
        async with file.changing:
            if file.staging is None:
                key = uuid.uuid4().hex
                fresh = await Staging.create(self._disk, self._journal.staging_path(key), file.size)
                await self._fill(file, fresh, 0, fresh.size, caller, locked=True)
                file.staging, file.key = fresh, key
            else:
                await self._fill(file, file.staging, 0, file.staging.size, caller, locked=True)

    # ---- commit ------------------------------------------------------------------------------------------------

    async def flush(self, file: File, caller: Caller) -> None:
        """Answer a close of one descriptor: the remote side has what was written when this returns.

        A file that is empty since its create or truncate is only kept in the journal; a close cannot be told from
        the first of two, and an overwrite would publish an empty version.
        """
        if file.failed is not None and file.failed_at == file.changes:
            raise file.failed
        if file.dirty and not file.filled and not file.node.unlinked:
            async with self.turns.take(file.node):
                async with file.changing:
                    staging = await self._changeable(file, caller)
                if file.dirty and not file.filled:
                    await self._note_flushed(file, staging, self._to_store(file), durable=True)
                    return
        await self.commit(file, caller)

    async def commit(self, file: File, caller: Caller) -> None:
        """Send what is dirty; return when the remote side has it."""
        async with self.turns.take(file.node):
            await self.commit_in_turn(file, caller)

    async def commit_in_turn(self, file: File, caller: Caller) -> None:
        """As `commit`, for one who has a turn at the inode."""
        if not file.dirty or file.node.unlinked:
            return
        if file.node.gone:
            raise Stale(f"{file.node.name!r} was removed or replaced by somebody else while it was open")
        if file.staging is None:  # created and never written
            async with file.changing:
                await self._changeable(file, caller)
        changes, row = file.changes, file.row
        assert row is not None, "a staging file of a name has its row"
        node, parent = file.node, self._tree.node(file.node.parent)
        try:
            if file.refused is not None:
                raise file.refused
            staging = await self._freeze(file, caller)
            changes, row = file.changes, file.row or row
            attributes = self._to_store(file)
            await self._note_flushed(file, staging, attributes, durable=False)
            generation = Generation(staging, attributes, file.key, row, self._journal)
            directory = await self._tree.entry(parent, caller)
            replacing = await self._addressed(file, file.entry, caller) if file.entry is not None else None
            entry = await self._uploader.commit(directory, node.name, replacing, generation, caller)
        except BackendError as error:
            file.dirty = True
            file.failed, file.failed_at = error, changes
            file.failed_rows.append(row)
            self.failures[self._tree.inodes.path(node)] = str(error)
            await self._journal.failed(row, str(error))
            if isinstance(error, Stale):
                self._tree.metadata.expire(node.ino)
            raise
        await self._committed(file, staging, row, parent, entry, attributes, caller)

    async def _freeze(self, file: File, caller: Caller) -> Staging:
        while True:
            assert file.staging is not None, "a dirty file has a staging file"
            await self._fill(file, file.staging, 0, file.staging.size, caller)
            async with file.changing:
                if not file.staging.missing(0, file.staging.size):
                    file.staging.frozen = True
                    file.dirty = False
                    return file.staging

    async def _note_flushed(self, file: File, staging: Staging, attributes: Attributes, *, durable: bool) -> None:
        assert file.row is not None
        if durable:
            await staging.sync()
        parent = await self._tree.entry(self._tree.node(file.node.parent), file.caller)
        await self._journal.flushed(
            file.row,
            path=self._tree.inodes.path(file.node),
            directory=parent.ref,
            name=file.node.name,
            replacing=file.entry,
            size=staging.size,
            attributes=attributes,
            durable=durable,
        )

    def _to_store(self, file: File) -> Attributes:
        """Return the attributes to store with the content: what was set, and when it was last changed."""
        if file.attributes.mtime_ns is None and file.written_ns is not None:
            return attrs.evolve(file.attributes, mtime_ns=file.written_ns)
        return file.attributes

    async def _committed(
        self,
        file: File,
        staging: Staging,
        row: int,
        parent: Node,
        entry: Entry,
        attributes: Attributes,
        caller: Caller,
    ) -> None:
        node = file.node
        before = file.entry
        sent = staging.size
        self._tree.pending = {place: other for place, other in self._tree.pending.items() if other is not node}
        self._tree.appeared(parent, node.name, entry, caller, node)
        self._keep(node, before, entry, attributes, self._tree.capabilities_of(parent, caller).has("fusekit_setattr"))
        file.entry = await self._tree.entry(node, caller)
        file.failed = None
        self.failures.pop(self._tree.inodes.path(node), None)
        exact = entry.size == sent
        node.told = node.pages = version_of(entry) if exact else None
        if before is not None:
            self._blocks.drop(block_key(before), before)
        if file.staging is staging:
            file.staging, file.row = None, None
            file.attributes = Attributes() if not file.dirty else file.attributes
            file.written_ns = None
        if exact and file.staging is None:
            await self._blocks.adopt(block_key(file.entry), file.entry, staging.path)
        else:
            await staging.discard()
        for number in (row, *file.failed_rows):
            await self._journal.remove(number)
        file.failed_rows.clear()

    def _keep(self, node: Node, before: Entry | None, entry: Entry, sent: Attributes, stored: bool) -> None:
        """Remember the attributes that the service cannot store, for as long as this version stands."""
        if self._settings.attributes is not KeepAttributes.LOCAL or stored:
            node.kept = None
            return
        kept = Attributes()
        if before is not None and node.kept is not None and node.kept[0] == token(before):
            kept = attrs.evolve(node.kept[1], mtime_ns=None, atime_ns=None)
        node.kept = (token(entry), sent.over(kept))


def block_key(entry: Entry) -> str:
    """Return what names the object of ``entry`` in the block store."""
    return entry.id if entry.id is not None else entry.ref


def _set(first: int | None, second: int | None) -> int | None:
    return first if first is not None else second


class _Window:
    """A sink that keeps just the bytes asked for."""

    def __init__(self, start: int, stop: int) -> None:
        self._start = start
        self._stop = stop
        self._next = start
        self._buffer = bytearray()

    async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
        at = self._next if at is None else at
        self._next = at + len(data)
        low, high = max(at, self._start), min(self._next, self._stop)
        if low < high:
            self._buffer[low - self._start : high - self._start] = memoryview(data)[low - at : high - at]

    def taken(self) -> bytes:
        return bytes(self._buffer)
