"""Recovery: what an earlier run left in the journal becomes files of this mount again, and goes on its way.

Vfs layer. What was flushed is a local version of its file from the first lookup on, and is sent like any other. Where
its directory is not at its path any more, it is sent to the directory's address; where there is none either, or where
the bytes may not be whole (never flushed, or flushed before the power went), it stays in the journal for the user.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import groupby
from typing import Final

import attrs
import trio

from fusekit.disk import Disk
from fusekit.errors import BackendError, Busy, FusekitError, Invalid, NotDirectory, NotFound
from fusekit.journal import steps
from fusekit.journal.journal import Journal, Row, State
from fusekit.journal.staging import Staging
from fusekit.journal.uploader import Generation, Uploader
from fusekit.transfer.calls import Calls
from fusekit.transfer.retry import RETRIABLE, Patience
from fusekit.types import Caller, Entry, Kind
from fusekit.vfs.file import File, Frozen
from fusekit.vfs.files import Files
from fusekit.vfs.inodes import Node
from fusekit.vfs.tree import Tree

logger = logging.getLogger(__name__)

_GOES_ON: Final = frozenset({State.FLUSHED, State.SENDING})


class Recovery:
    """Takes rows of the journal up again, at mount and when the user says so."""

    def __init__(self, tree: Tree, files: Files, calls: Calls, journal: Journal, disk: Disk) -> None:
        self._tree = tree
        self._files = files
        self._journal = journal
        self._disk = disk
        self._uploader = Uploader(calls, journal)

    async def begin(self, caller: Caller, nursery: trio.Nursery) -> None:
        """Take up what the journal had when it was opened; what cannot be found yet is looked for in the background."""
        rows = [row for row in self._journal.left if row.state in _GOES_ON]
        if rows:
            steps.reached("recovery-begun")
        for _, group in groupby(sorted(rows, key=_place), key=_place):
            mine = list(group)
            for row in (row for row in mine if not row.trusted):
                await self._leave(row, "the machine stopped before its bytes were safe on the disk")
            if good := [row for row in mine if row.trusted]:
                try:
                    await self.take_up(good, _as(caller, good[0]))
                except RETRIABLE as error:
                    logger.warning("%s: looked for again later: %s", good[0].path, error)
                    nursery.start_soon(self._later, good, _as(caller, good[0]))
                except (BackendError, OSError) as error:
                    for row in good:
                        await self._leave(row, str(error))

    async def _later(self, rows: list[Row], caller: Caller) -> None:
        patience = Patience()
        while True:
            try:
                await self.take_up(rows, caller)
            except RETRIABLE as error:
                await trio.sleep(patience.wait_s(error))
            except (BackendError, OSError) as error:
                for row in rows:
                    await self._leave(row, str(error))
                return
            else:
                return

    async def take_up(self, rows: list[Row], caller: Caller) -> None:
        """Make ``rows``, generations of one file, the local version of that file, and send them.

        Raises:
            Busy: the file is being written. NotFound: there is no place for it.
        """
        last = rows[-1]
        try:
            parent = await self._directory(last.path, caller)
            directory, capabilities = await self._tree.directory(parent, caller)
        except (NotFound, NotDirectory):
            await self._by_address(rows, caller)
            return
        key = self._tree.key(capabilities, last.name)
        try:
            node: Node | None = await self._files.find(parent, last.name, caller)
        except NotFound:
            node = None
        if node is not None and node.kind is not Kind.FILE:
            node = None  # a conflict, and told as one when it is sent
        if node is not None and node.file is not None:
            raise Busy(f"{last.path} is open; close it first")
        frozen = [await self._frozen(row) for row in rows]
        if node is None or node.file is not None:
            node = self._tree.inodes.place(parent, last.name, Entry.file(last.name))
        file = node.file = File(node, None, caller)
        file.acknowledged.extend(frozen)
        file.staging, file.row, file.key = frozen[-1].staging, frozen[-1].row, frozen[-1].key
        file.older_rows = {one.row for one in frozen[:-1]}
        file.attributes, file.written_ns = frozen[-1].attributes, last.updated_ns
        file.over, file.tried = rows[0].replacing, True
        self._tree.pending[parent.ino, key] = node
        self._tree.changed(parent, key)
        self._files.commits.kept.forget([row.id for row in rows])
        if last.directory != directory.ref or last.state is State.FAILED:
            await self._files.commits.renamed(file)
        steps.reached("row-adopted")
        self._files.uploads.soon(file)

    async def _frozen(self, row: Row) -> Frozen:
        staging = await Staging.kept(self._disk, self._journal.staging_path(row.staging), row.size)
        unsure = row.state is State.SENDING
        return Frozen(staging, row.key, row.id, 0, row.attributes, unsure=unsure, note=row.note)

    async def _directory(self, path: str, caller: Caller) -> Node:
        node = self._tree.inodes.root
        for name in path.strip("/").split("/")[:-1]:
            node = await self._tree.lookup(node, name, caller)
        return node

    async def _by_address(self, rows: list[Row], caller: Caller) -> None:
        """Send ``rows`` to where their directory is by its address: it was renamed, or is not shown here any more."""
        replacing = rows[0].replacing
        for row in rows:
            above = row.path.rpartition("/")[0].rpartition("/")[2]
            directory = Entry.directory(above, ref=row.directory)
            frozen = await self._frozen(row)
            generation = Generation(
                frozen.staging, frozen.attributes, frozen.key, frozen.row, self._journal, note=frozen.note
            )
            try:
                sent = await self._uploader.commit(directory, row.name, replacing, generation, caller)
            except NotFound as error:
                raise NotFound(f"its directory is gone: {error}") from error
            replacing = sent.within(directory)
            await self._journal.committed(row.id, replacing, [later.id for later in rows if later.id > row.id])
            self._files.commits.kept.forget([row.id])
            await frozen.staging.discard()
            logger.warning("%s: sent to where its directory is now", row.path)

    async def _leave(self, row: Row, why: str) -> None:
        logger.error("%s: not sent, kept in the journal: %s", row.path, why)
        await self._journal.failed(row.id, why)
        self._files.commits.kept.left(row, why)

    # ---- by the user's word ------------------------------------------------------------------------------------

    async def retry(self, wanted: Iterable[int], caller: Caller) -> None:
        """Send generations again that failed or were left, or at once what waits for its next attempt.

        Raises:
            Invalid: one was never whole. Busy: its file is being written. NotFound: there is no such row, or no place.
        """
        rows = {row.id: row for row in await self._journal.rows()}
        waiting = {frozen.row: file for file in self._waiting() for frozen in file.acknowledged}
        for number in wanted:
            row = rows.get(number)
            if row is None:
                raise NotFound(f"the journal has no entry {number}")
            if number in waiting:
                self._files.uploads.hurry(waiting[number])
                continue
            if not row.whole:
                raise Invalid(f"{row.path} was never closed; export it, or discard it")
            # What is there now is what the user means to replace.
            await self._journal.waiting([number], None)
            try:
                await self.take_up([attrs.evolve(row, state=State.FAILED)], _as(caller, row))
            except (FusekitError, OSError) as error:
                await self._leave(row, str(error))
                raise

    async def discard(self, wanted: Iterable[int], caller: Caller) -> None:
        """Forget generations and their bytes for good.

        Raises:
            Busy: its file is open. NotFound: there is no such row.
        """
        rows = {row.id: row for row in await self._journal.rows()}
        for number in wanted:
            if number not in rows:
                raise NotFound(f"the journal has no entry {number}")
            file = next((file for file in self._waiting() if number in file.rows()), None)
            if file is None:
                self._files.commits.kept.forget([number])
                await self._journal.drop([number])
            elif file.handles:
                raise Busy(f"{rows[number].path} is open; close it first")
            else:
                await self._files.give_up(file)

    def _waiting(self) -> list[File]:
        return [node.file for node in self._tree.inodes if node.file is not None and node.file.rows()]


def _place(row: Row) -> tuple[str, str]:
    return (row.principal, row.path)


def _as(caller: Caller, row: Row) -> Caller:
    return attrs.evolve(caller, pid=None, principal=row.principal)
