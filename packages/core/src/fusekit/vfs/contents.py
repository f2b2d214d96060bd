"""The bytes of open files: read from what is staged or cached, changed in staging files.

Vfs layer, below `commits`. Reads come from the staging file where there is one, else from the block store. A write
makes the staging file, laid over the version that was there, with its row in the journal; one that is frozen, because
it is on its way to the remote side, is copied first.
"""

from __future__ import annotations

import functools
import time
import uuid
from typing import Final

import attrs

from fusekit.cache.blocks import Blocks, Window
from fusekit.cache.objects import Object
from fusekit.cache.readahead import Reader
from fusekit.disk import Disk
from fusekit.errors import BackendError, Stale
from fusekit.journal.journal import Journal
from fusekit.journal.staging import Staging
from fusekit.journal.uploader import version_of
from fusekit.transfer.calls import Calls
from fusekit.types import Caller, Entry, Io
from fusekit.vfs.file import File, block_key
from fusekit.vfs.tree import Tree

# How much of the version below is copied into a staging file at a time.
_FILL_BYTES: Final = 8 << 20


class Contents:
    """Reads and changes the content of open files."""

    def __init__(self, tree: Tree, calls: Calls, blocks: Blocks, journal: Journal, disk: Disk) -> None:
        self._tree = tree
        self._calls = calls
        self._blocks = blocks
        self._journal = journal
        self._disk = disk

    # ---- reading -----------------------------------------------------------------------------------------------

    async def read(self, file: File, reader: Reader, start: int, stop: int, caller: Caller) -> bytes | memoryview:
        """Return the bytes of the content from ``start`` to ``stop``, fewer at its end; ``reader`` is the handle's."""
        staging = file.staging
        if staging is not None:
            await self.fill(file, staging, start, stop, caller)
            return await staging.read(start, stop)
        if file.entry is None:
            return b""
        if file.entry.io is Io.DIRECT:
            return await self._direct(await self.addressed(file, file.entry, caller), start, stop, caller)
        try:
            return await self._cached(file, file.entry, reader, start, stop, caller)
        except Stale:
            self._tree.metadata.expire(file.node.ino)
            raise

    async def _cached(
        self, file: File, entry: Entry, reader: Reader, start: int, stop: int, caller: Caller
    ) -> bytes | memoryview:
        """Return bytes of the version ``entry`` through the block cache."""
        item = await self._object(file, entry)
        # Held for as long as this takes: the file may go over to another version, and let go of this one.
        item.users += 1
        try:
            return await self._blocks.read(
                item,
                reader,
                start,
                stop,
                functools.partial(self.addressed, file, entry, caller),
                caller,
                ranges=self._ranges(file, caller),
            )
        finally:
            self._blocks.release(item)

    async def _object(self, file: File, entry: Entry) -> Object:
        """Return the block cache's object for ``entry``, which ``file`` holds until `let_go` or another version."""
        if file.cached is None or file.cached[0] is not entry:
            item = await self._blocks.hold(block_key(entry), entry)
            self.let_go(file)
            file.cached = (entry, item)
        return file.cached[1]

    def let_go(self, file: File) -> None:
        """Give back what ``file`` holds of the block cache."""
        if file.cached is not None:
            self._blocks.release(file.cached[1])
            file.cached = None

    def _ranges(self, file: File, caller: Caller) -> bool:
        above = self._tree.inodes.get(file.node.parent)
        return above is None or self._tree.capabilities_of(above, caller).ranges

    async def measure(self, file: File, caller: Caller) -> None:
        """Learn the size of a file that only reading tells."""
        entry = file.entry
        if entry is None or entry.size is not None or entry.io is not Io.CACHED:
            return
        item = await self._object(file, entry)
        size = await self._blocks.measure(item, functools.partial(self.addressed, file, entry, caller), caller)
        if file.entry is not None and version_of(file.entry) == version_of(entry):
            file.entry = attrs.evolve(entry, size=size)
        self._tree.measured(file.node, entry, size, caller)

    async def addressed(self, file: File, entry: Entry, caller: Caller) -> Entry:
        """Return ``entry``, a version of the file, with the address that it has now: names above it may have moved."""
        if file.node.gone or self._tree.fact(file.node, caller) is None:
            return entry
        now = await self._tree.entry(file.node, caller)
        return attrs.evolve(entry, name=now.name, ref=now.ref)

    async def _direct(self, entry: Entry, start: int, stop: int, caller: Caller) -> bytes:
        sink = Window(start, stop)
        await self._calls.read(entry, start, stop, sink, caller)
        return sink.taken()

    # ---- changing ----------------------------------------------------------------------------------------------

    async def write(self, file: File, data: bytes | memoryview, at: int, caller: Caller) -> None:
        """Put ``data`` at offset ``at``."""
        await self.measure(file, caller)
        async with file.changing:
            staging = await self.changeable(file, caller)
            await staging.write(data, at)
            self._changed(file, filled=True)

    async def append(self, file: File, data: bytes | memoryview, caller: Caller) -> None:
        """Put ``data`` at the end, wherever that is now."""
        await self.measure(file, caller)
        async with file.changing:
            staging = await self.changeable(file, caller)
            await staging.write(data, staging.size)
            self._changed(file, filled=True)

    async def truncate(self, file: File, size: int, caller: Caller) -> None:
        """Cut or extend the content to ``size`` bytes."""
        if size:
            await self.measure(file, caller)
        async with file.changing:
            staging = await self.changeable(file, caller, keep=size > 0)
            await staging.truncate(size)
            self._changed(file, filled=file.filled and size > 0)

    def refuse(self, file: File, error: BackendError) -> None:
        """Take note that a write to ``file`` fails with ``error``: what came before it is not to be published alone."""
        if file.dirty:
            file.refused = error

    async def make_local(self, file: File, caller: Caller) -> None:
        """Bring the whole content here: its name is about to go while the file is open."""
        async with file.changing:
            if file.staging is None:
                key = uuid.uuid4().hex
                fresh = await Staging.create(self._disk, self._journal.staging_path(key), file.size)
                try:
                    await self.fill(file, fresh, 0, fresh.size, caller, locked=True)
                except BaseException:
                    await fresh.discard()
                    raise
                file.staging, file.key = fresh, key
            else:
                await self.fill(file, file.staging, 0, file.staging.size, caller, locked=True)

    async def changeable(self, file: File, caller: Caller, *, keep: bool = True) -> Staging:
        """Return the staging file to change, made or thawed where needed; hold ``changing``."""
        staging = file.staging
        if staging is not None and not staging.frozen:
            if file.row is None:  # made to outlive a name that then did not go
                file.row = await self._begin(file, file.key)
            return staging
        key = uuid.uuid4().hex
        path = self._journal.staging_path(key)
        if staging is None:
            fresh = await Staging.create(self._disk, path, file.size if keep else 0)
        else:
            await self.fill(file, staging, 0, staging.size, caller, locked=True)
            fresh = await staging.thaw(path)
        try:
            row = await self._begin(file, key)
        except BaseException:
            await fresh.discard()
            raise
        before = file.row
        file.staging, file.key, file.row = fresh, key, row
        if before is not None:
            file.older_rows.add(before)
        elif staging is not None:  # its name is gone, so no row will ever take it away
            await staging.discard()
        return fresh

    async def fill(
        self, file: File, staging: Staging, start: int, stop: int, caller: Caller, *, locked: bool = False
    ) -> None:
        """Bring what ``staging`` lacks between ``start`` and ``stop`` from the version below it."""
        reader = Reader()
        for low, high in staging.missing(start, stop):
            assert file.entry is not None, "only a version below can have what is missing"
            for at in range(low, high, _FILL_BYTES):
                part = min(at + _FILL_BYTES, high)
                data = await self._cached(file, file.entry, reader, at, part, caller)
                if locked:
                    await staging.fill(data, at)
                else:
                    async with file.changing:
                        await staging.fill(data, at)

    def _changed(self, file: File, *, filled: bool) -> None:
        file.changes += 1
        file.dirty = True
        file.refused = None
        file.filled = filled
        file.written_ns = time.time_ns()
        file.attributes = attrs.evolve(file.attributes, mtime_ns=None)

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
