"""Commits: what was changed in an open file on its way to the remote side, and what becomes of it when that fails.

Vfs layer, above `contents`. A commit freezes the staging file as a generation and hands it to the journal's uploader;
what is written meanwhile goes to the next one. Whatever ends a commit (an error of the service or of this machine's
disk, a cancelled wait), the bytes are in one of three places: at the remote side, in the open file as dirty, or in the
journal.

Where a close only waits for the journal (`acknowledge`), the generation is sent later, by `uploads` or by whoever needs
the remote side to have it. Those that were never tried are replaced by the next one; one whose fate is unknown is
settled first, because the next one replaces whatever it left there.

Locks, in this order: a turn at the inode (one commit, rename, removal or change of attributes at a time, held over the
network), then ``File.changing`` (one change of the staging file at a time).
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterable

import attrs
import trio

from fusekit.cache.blocks import Blocks
from fusekit.errors import BackendError, Exists, Stale
from fusekit.journal import steps
from fusekit.journal.journal import INLINE_MAX, Journal
from fusekit.journal.kept import Kept
from fusekit.journal.staging import Staging
from fusekit.journal.uploader import Generation, Uploader, version_of
from fusekit.settings import KeepAttributes, Settings, Write
from fusekit.transfer.calls import Calls
from fusekit.transfer.retry import RETRIABLE
from fusekit.types import Attributes, Caller, Entry
from fusekit.vfs.attributes import token
from fusekit.vfs.conflicts import Conflicts
from fusekit.vfs.contents import Contents
from fusekit.vfs.file import File, Frozen, block_key, of_this_disk
from fusekit.vfs.inodes import Node
from fusekit.vfs.tree import Tree
from fusekit.vfs.turns import Turns

logger = logging.getLogger(__name__)


class Commits:
    """Sends what is dirty in open files."""

    def __init__(
        self,
        tree: Tree,
        contents: Contents,
        turns: Turns,
        calls: Calls,
        blocks: Blocks,
        journal: Journal,
        settings: Settings,
    ) -> None:
        self._tree = tree
        self._contents = contents
        self._turns = turns
        self._blocks = blocks
        self._journal = journal
        self._settings = settings
        self._uploader = Uploader(calls, journal)
        self._conflicts = Conflicts(tree, calls, self._uploader, settings.conflicts)
        self.waits = settings.write is not Write.ASYNC  # whether a close waits for the remote side
        self.kept = Kept(journal)

    async def flush(self, file: File, caller: Caller) -> None:
        """Answer a close of one descriptor: the remote side (or the journal) has what was written when this returns.

        A file that is empty since its create or truncate is only kept in the journal; a close cannot be told from
        the first of two, and an overwrite would publish an empty version.
        """
        _tell_again(file)
        if not self.waits:
            await self.acknowledge(file, caller)
            return
        async with self._turns.take(file.node):
            _tell_again(file)  # this close waited for another one, which failed
            if file.dirty and not file.filled and not file.node.unlinked and file.refused is None:
                async with file.changing:
                    staging = await self._contents.changeable(file, caller)
                if file.dirty and not file.filled and file.row is not None:
                    await self._note_flushed(file, staging, file.row, self._to_store(file), durable=True)
                    return
            await self.commit_in_turn(file, caller)

    async def commit(self, file: File, caller: Caller) -> None:
        """Send what is dirty; return when the remote side has it."""
        async with self._turns.take(file.node):
            await self.commit_in_turn(file, caller)

    async def commit_in_turn(self, file: File, caller: Caller) -> None:
        """As `commit`, for one who has a turn at the inode."""
        if file.node.unlinked:
            return
        if not self.waits:
            await self.acknowledge(file, caller)
        await self.send_waiting(file, caller)
        if not file.dirty:
            return
        node, changes, row = file.node, file.changes, file.row
        file.sending = True
        try:
            _can_be_sent(file)
            parent = self._tree.node(node.parent)
            frozen = await self._freeze(file, caller)
            changes, row = frozen.changes, frozen.row
            await self._note_flushed(file, frozen.staging, frozen.row, frozen.attributes, durable=False)
            directory, entry = await self._send(file, frozen, parent, caller)
        except (BackendError, OSError) as error:
            failed = error if isinstance(error, BackendError) else of_this_disk(error)
            await self._failed(file, failed, changes, row)
            if failed is error:
                raise
            raise failed from error
        except BaseException:
            # Cancelled while nobody knows what arrived: the file is as dirty as before, and its row still there.
            file.dirty = True
            raise
        finally:
            file.sending = False
        steps.reached("remote-committed")
        await self._committed(file, frozen, parent, directory, entry, caller)

    async def acknowledge(self, file: File, caller: Caller) -> None:
        """Have what is dirty in the journal, so that neither a killed process nor a power loss takes it."""
        _tell_again(file)
        try:
            while file.dirty and not file.node.unlinked:
                _can_be_sent(file)
                async with file.changing:
                    if file.staging is None or file.row is None:
                        await self._contents.changeable(file, caller)
                    staging, row = file.staging, file.row
                    assert staging is not None, "what is dirty has a staging file"
                    assert row is not None, "what has a name has a row"
                    if not staging.missing(0, staging.size):
                        staging.frozen = True
                        frozen = Frozen(staging, file.key, row, file.changes, self._to_store(file))
                        with trio.CancelScope(shield=True):  # the disk of this machine, which nothing could hurry
                            await self._keep_durably(file, frozen)
                        return
                await self._contents.fill(file, staging, 0, staging.size, caller)
        except OSError as error:
            raise of_this_disk(error) from error

    async def _keep_durably(self, file: File, frozen: Frozen) -> None:
        """Put ``frozen`` into the journal in the place of those that nobody began to send; hold ``changing``."""
        before = [older for older in file.acknowledged if not older.unsure]
        file.acknowledged = deque(older for older in file.acknowledged if older.unsure)
        file.dirty = False
        try:
            small = frozen.staging.size <= INLINE_MAX
            content = bytes(await frozen.staging.read(0, frozen.staging.size)) if small else None
            await self._note_flushed(
                file, frozen.staging, frozen.row, frozen.attributes, durable=True, content=content, instead=before
            )
        except BaseException:
            file.acknowledged.extend(before)
            file.dirty = True
            raise
        file.acknowledged.append(frozen)
        file.trouble = None
        file.older_rows -= {older.row for older in before}
        await self._journal.discard(older.key for older in before if older.staging is not frozen.staging)

    async def send_next(self, file: File, caller: Caller) -> None:
        """Send the oldest generation that the journal has of ``file``; hold a turn at the inode."""
        frozen = file.acknowledged.popleft()
        row, frozen.unsure = frozen.row, True
        file.sending = True
        sure = False
        try:
            _has_a_name(file)
            parent = self._tree.node(file.node.parent)
            directory, entry = await self._send(file, frozen, parent, caller)
        except (Stale, Exists) as error:
            # Nobody can decide but the user: both versions are there, one of them in the journal.
            sure = True
            logger.error("%s: not sent, kept in the journal: %s", self._tree.inodes.path(file.node), error)
            await self._failed(file, error, frozen.changes, row)
            raise
        except (BackendError, OSError) as error:
            failed = error if isinstance(error, BackendError) else of_this_disk(error)
            file.trouble = failed
            frozen.unsure = isinstance(failed, RETRIABLE)
            with contextlib.suppress(BackendError):
                await self._journal.waiting([row], str(failed))
            if failed is error:
                raise
            raise failed from error
        else:
            sure = True
        finally:
            file.sending = False
            if not sure and not file.node.unlinked:
                await self._back(file, frozen)
        steps.reached("remote-committed")
        file.trouble = None
        await self._committed(file, frozen, parent, directory, entry, caller)

    async def send_waiting(self, file: File, caller: Caller) -> None:
        """Send what the journal has of ``file``, and nothing that was not flushed; hold a turn at the inode."""
        while file.acknowledged:
            await self.send_next(file, caller)

    async def renamed(self, file: File) -> None:
        """Note the name that the generations which wait belong to now, and what they are to replace there."""
        parent = await self._tree.entry(self._tree.node(file.node.parent), file.caller)
        await self._journal.renamed(
            [frozen.row for frozen in file.acknowledged],
            path=self._tree.inodes.path(file.node),
            directory=parent.ref,
            name=file.node.name,
            replacing=file.entry or file.over,
        )

    async def store_with(self, frozen: Frozen) -> None:
        """Note the attributes that are to be stored with a generation that waits."""
        with trio.CancelScope(shield=True):
            await self._journal.store_with(frozen.row, frozen.attributes)

    async def _back(self, file: File, frozen: Frozen) -> None:
        """Let ``frozen`` wait again, unless it is known not to have arrived and there is a newer one."""
        if frozen.unsure or not file.acknowledged:
            file.tried = file.tried or frozen.unsure
            file.acknowledged.appendleft(frozen)
            return
        file.older_rows.discard(frozen.row)
        with trio.CancelScope(shield=True), contextlib.suppress(BackendError):
            await self._journal.drop([frozen.row])

    async def _send(self, file: File, frozen: Frozen, parent: Node, caller: Caller) -> tuple[Entry, Entry]:
        """Send ``frozen`` and return the directory that it went to and what is there now."""
        generation = Generation(
            frozen.staging, frozen.attributes, frozen.key, frozen.row, self._journal, note=frozen.note
        )
        directory = await self._tree.entry(parent, caller)
        replacing = file.over
        if file.entry is not None:
            replacing = await self._contents.addressed(file, file.entry, caller)
        try:
            try:
                entry = await self._uploader.commit(directory, file.node.name, replacing, generation, caller)
            except (Exists, Stale) as error:
                entry = await self._conflicts.settle(file.node, parent, directory, generation, error, caller)
        finally:
            frozen.note = generation.note
        return directory, entry

    def retract(self, file: File) -> None:
        """Take back that a commit failed: what was tried was not what the program asked of its file."""
        self.kept.forget(file.failed_rows)
        file.failed = None

    async def _freeze(self, file: File, caller: Caller) -> Frozen:
        while True:
            async with file.changing:
                if file.staging is None or file.row is None:  # created and never written, or made for another reason
                    await self._contents.changeable(file, caller)
                staging, row = file.staging, file.row
                assert staging is not None, "a dirty file has a staging file"
                assert row is not None, "what has a name has a row"
                if not staging.missing(0, staging.size):
                    staging.frozen = True
                    file.dirty = False
                    return Frozen(staging, file.key, row, file.changes, self._to_store(file))
            await self._contents.fill(file, staging, 0, staging.size, caller)

    async def _failed(self, file: File, error: BackendError, changes: int, row: int | None) -> None:
        node = file.node
        file.dirty = True
        file.failed, file.failed_at = error, changes
        if isinstance(error, Exists | Stale):
            self._tree.metadata.expire(node.ino)
            if (parent := self._tree.inodes.get(node.parent)) is not None:
                self._tree.doubt(parent, node.name, file.caller)
        if row is None:
            return  # nothing was ever written
        file.failed_rows.add(row)
        self.kept.failed(row, file.caller.principal, self._tree.inodes.path(node), str(error))
        try:
            await self._journal.failed(row, str(error))
        except BackendError as trouble:
            logger.error("%s: not sent, and %s", self._tree.inodes.path(node), trouble)

    async def _note_flushed(
        self, file: File, staging: Staging, row: int, attributes: Attributes, *, durable: bool,
        content: bytes | None = None, instead: Iterable[Frozen] = (),
    ) -> None:  # fmt: skip
        if durable and content is None:
            await staging.sync()
            steps.reached("staging-synced")
        parent = await self._tree.entry(self._tree.node(file.node.parent), file.caller)
        await self._journal.flushed(
            row,
            path=self._tree.inodes.path(file.node),
            directory=parent.ref,
            name=file.node.name,
            replacing=file.entry or file.over,
            size=staging.size,
            attributes=attributes,
            durable=durable,
            content=content,
            instead=[older.row for older in instead],
        )

    def _to_store(self, file: File) -> Attributes:
        """Return the attributes to store with the content: what was set, and when it was last changed."""
        if file.attributes.mtime_ns is None and file.written_ns is not None:
            return attrs.evolve(file.attributes, mtime_ns=file.written_ns)
        return file.attributes

    async def _committed(
        self, file: File, frozen: Frozen, parent: Node, directory: Entry, entry: Entry, caller: Caller
    ) -> None:
        """Take over what the remote side has now: at once in memory, then, whoever stops waiting, on this disk."""
        node, before, staging = file.node, file.entry, frozen.staging
        self._tree.sent(node)
        self._tree.appeared(parent, node.name, entry, caller, node)
        stored = self._tree.capabilities_of(parent, caller).has("fusekit_setattr")
        self._keep(file, before, entry, frozen.attributes, stored=stored)
        file.entry = entry.within(directory)
        file.failed, file.over, file.tried = None, None, False
        exact = entry.size == staging.size
        node.told = node.pages = version_of(entry) if exact else None
        if before is not None:
            self._blocks.drop(block_key(before), before)
        # What was begun later is newer: it waits for its own turn.
        older = {row for row in file.failed_rows | file.older_rows if row < frozen.row}
        file.failed_rows, file.older_rows = set(), {row for row in file.older_rows if row > frozen.row}
        self.kept.forget({frozen.row, *older})
        last = file.staging is staging
        if last:
            file.staging, file.row = None, None
            file.attributes = Attributes() if not file.dirty else file.attributes
            file.written_ns = None
        # Without a deadline: this is the disk of this machine, which a deadline could not hurry.
        with trio.CancelScope(shield=True):
            await self._settle(file, frozen, older, file.entry if exact and last else None)

    async def _settle(self, file: File, frozen: Frozen, older: set[int], whole: Entry | None) -> None:
        """Put the journal right after a commit; the staged bytes are cached as ``whole`` unless that is None.

        The row goes first: a crash after it leaves bytes that the next start sweeps, one before it a row whose bytes
        the remote side has.
        """
        path = self._tree.inodes.path(file.node)
        try:
            if self.waits and not file.acknowledged:
                await self._journal.remove(frozen.row)
            else:
                assert file.entry is not None, "it was just sent"
                # One that is just being acknowledged (the row that the file has now) was told what to replace before this.
                newer = {one.row for one in file.acknowledged} | ({file.row} if file.row is not None else set())
                await self._journal.committed(frozen.row, file.entry, sorted(newer - {frozen.row}))
            await self._journal.drop(older)
            if not frozen.staging.mixed:
                await self.kept.replaced(file.caller.principal, path, by=frozen.row)
            steps.reached("row-settled")
        except BackendError as error:
            logger.error("%s is sent, but its row stays: %s", path, error)
        try:
            if whole is not None:
                await self._blocks.adopt(block_key(whole), whole, frozen.staging.path)
            else:
                await frozen.staging.discard()
            steps.reached("bytes-settled")
        except OSError as error:
            logger.warning("%s is sent, but not cached: %s", path, error)

    def _keep(self, file: File, before: Entry | None, entry: Entry, sent: Attributes, *, stored: bool) -> None:
        """Remember the attributes that the service cannot store, for as long as this version stands."""
        node = file.node
        if self._settings.attributes is not KeepAttributes.LOCAL or stored:
            node.kept = None
            return
        kept = Attributes(gid=file.group)
        if before is not None and node.kept is not None and node.kept[0] == token(before):
            kept = attrs.evolve(node.kept[1], mtime_ns=None, atime_ns=None)
        node.kept = (token(entry), sent.over(kept))


def _has_a_name(file: File) -> None:
    if file.node.gone:
        raise Stale(f"{file.node.name!r} was removed or replaced by somebody else while it was open")


def _can_be_sent(file: File) -> None:
    _has_a_name(file)
    if file.refused is not None:
        raise file.refused


def _tell_again(file: File) -> None:
    """Raise why the last commit failed, where nothing was changed since: each close tells, and none tries again."""
    if file.failed is not None and file.failed_at == file.changes:
        raise file.failed
