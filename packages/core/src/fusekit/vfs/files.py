"""Open files: how they come and go with handles and names.

Vfs layer. A `File` belongs to an inode, not to a handle, and lives while the inode is open or has something unsent.
What its bytes are is in `contents`, how they reach the remote side in `commits`. What is put right in the journal
after the remote side agreed is shielded, without a deadline: a deadline could not hurry the disk of this machine.
"""

from __future__ import annotations

import errno
import logging

import trio

from fusekit import names
from fusekit.cache.blocks import Blocks
from fusekit.disk import Disk
from fusekit.errors import BackendError, Invalid, NotFound
from fusekit.journal.journal import Journal
from fusekit.journal.kept import Moved
from fusekit.settings import Settings
from fusekit.transfer.calls import Calls
from fusekit.types import Attributes, Caller, Entry
from fusekit.vfs.commits import Commits
from fusekit.vfs.contents import Contents
from fusekit.vfs.file import File
from fusekit.vfs.inodes import Node
from fusekit.vfs.tree import Tree
from fusekit.vfs.turns import Turns
from fusekit.vfs.uploads import Uploads

logger = logging.getLogger(__name__)


class Files:
    """The open files of a mount."""

    def __init__(
        self, tree: Tree, calls: Calls, blocks: Blocks, journal: Journal, disk: Disk, settings: Settings
    ) -> None:
        self._tree = tree
        self._journal = journal
        self._calls = calls
        self.turns = Turns(tree.inodes)
        self.contents = Contents(tree, calls, blocks, journal, disk)
        self.commits = Commits(tree, self.contents, self.turns, calls, blocks, journal, settings)
        self.uploads = Uploads(tree.inodes, self.commits, self.turns, settings, self.sent)

    # ---- handles -----------------------------------------------------------------------------------------------

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
        if file.handles == 0:
            await self.finish(file)

    async def finish(self, file: File) -> None:
        """Commit what is dirty in a file without handles, and close it; once more where that was cancelled."""
        node = file.node
        finishing = file.finishing = trio.Event()
        try:
            if not self.commits.waits and await self._finish_here(file):
                return
            # In a turn also where nothing is dirty: a rename may be sending this file, or have only just begun to.
            async with self.turns.take(node):
                if file.handles == 0 and node.file is file:
                    await self._finish(file)
        finally:
            finishing.set()
            if file.finishing is finishing:
                file.finishing = None

    async def _finish_here(self, file: File) -> bool:
        """Have what is dirty in the journal, to be sent in the background; return whether there is anything to send."""
        try:
            await self.commits.acknowledge(file, file.caller)
        except BackendError as error:
            logger.error("%s: kept in the journal, and not to be sent: %s", self._tree.inodes.path(file.node), error)
            await self._fall_back(file)
        if file.handles or file.node.file is not file or not (file.acknowledged or file.sending):
            return False
        self.uploads.soon(file)
        return True

    async def _fall_back(self, file: File) -> None:
        """Let a file that cannot be acknowledged be again what it was when it last could; what came since is kept."""
        if file.handles or not file.acknowledged or not file.dirty:
            return
        rows = {row for row in (file.row,) if row is not None}
        path, principal, directory = self._tree.inodes.path(file.node), file.caller.principal, self._directory(file)
        self._resume(file)
        await self._keep(rows, principal, path, directory)

    def _resume(self, file: File) -> None:
        """Make the last acknowledged generation the content of the file again."""
        last = file.acknowledged[-1]
        file.staging, file.row, file.key = last.staging, last.row, last.key
        file.older_rows.discard(last.row)
        file.dirty, file.filled, file.refused, file.failed = False, True, None, None
        file.attributes, file.node.pages = last.attributes, None

    async def sent(self, file: File) -> None:
        """Close a file that was sent in the background, if it has no handles."""
        async with self.turns.take(file.node):
            if file.handles == 0 and file.node.file is file and not file.acknowledged and file.finishing is None:
                await self._close(file)

    async def _finish(self, file: File) -> None:
        try:
            if file.dirty and (file.failed is None or file.failed_at != file.changes):
                await self.commits.commit_in_turn(file, file.caller)
        except BackendError as error:
            logger.error("%s: not sent, kept in the journal: %s", self._tree.inodes.path(file.node), error)
        finally:
            if file.handles == 0 and file.acknowledged and not file.node.unlinked:
                self.uploads.soon(file)
            elif file.handles == 0:
                await self._close(file)

    async def _close(self, file: File) -> None:
        node, staging, rows = file.node, file.staging, file.rows()
        path, principal, directory = self._tree.inodes.path(node), file.caller.principal, self._directory(file)
        if file.dirty:
            node.pages = None  # the kernel has pages of what was not sent
        file.staging = node.file = None
        self.contents.let_go(file)
        keep = file.dirty and not node.unlinked
        if node in self._tree.pending.values():  # never sent: with the handle the name goes, the bytes stay
            self._take_out(node)
            self._tree.inodes.detach(node)
        self._tree.release(node)
        if keep:
            await self._keep(rows, principal, path, directory)
            return
        if staging is not None:
            await staging.discard()
        await self._drop(rows)

    async def discard(self, file: File, *, failed: bool = False) -> None:
        """Forget what was changed and not sent: the content is again what the last commit left.

        ``failed`` says that what a commit failed to store is the caller's as well; otherwise it is kept.
        """
        async with self.turns.take(file.node), file.changing:
            if not file.dirty:
                return
            node, staging, path = file.node, file.staging, self._tree.inodes.path(file.node)
            if file.acknowledged:
                rows, unwanted = {row for row in (file.row,) if row is not None}, staging
                self._resume(file)
                if unwanted is not None:
                    await unwanted.discard()
                await self._drop(rows)
                return
            kept = set() if failed else file.failed_rows
            rows, ours = file.rows() - kept, file.row not in kept
            node.pages = None
            file.staging, file.row, file.dirty, file.filled = None, None, False, True
            file.failed, file.refused, file.written_ns = None, None, None
            file.failed_rows, file.older_rows = set(), set()
            file.attributes = Attributes()
            directory = self._directory(file)
            if file.entry is None:
                self.withdraw(node)
            if staging is not None and ours:
                await staging.discard()
            await self._drop(rows)
            await self._keep(kept, file.caller.principal, path, directory)

    async def give_up(self, file: File) -> None:
        """Forget what waits to be sent of a file without handles, by the user's word."""
        async with self.turns.take(file.node):
            node, staging, rows = file.node, file.staging, file.rows()
            if file.handles or node.file is not file:
                return
            node.pages = None
            file.acknowledged.clear()
            file.staging = node.file = None
            self.contents.let_go(file)
            for parent, key in self._take_out(node):
                if parent is not None:
                    self._tree.changed(parent, key)
                    self._tree.metadata.expire(parent.ino)
            if file.entry is None:
                self._tree.inodes.detach(node)
            self._tree.release(node)
            if staging is not None:
                await staging.discard()
            await self._drop(rows)

    def _directory(self, file: File) -> str | None:
        parent = self._tree.inodes.get(file.node.parent)
        return self._tree.address(parent, self._tree.view(file.caller)) if parent is not None else None

    async def _keep(self, rows: set[int], principal: str, path: str, directory: str | None) -> None:
        try:
            with trio.CancelScope(shield=True):
                await self.commits.kept.closed(rows, principal, path, directory)
        except BackendError as error:
            logger.error("%s: kept under the path that it had: %s", path, error)

    async def _drop(self, rows: set[int]) -> None:
        self.commits.kept.forget(rows)
        with trio.CancelScope(shield=True):
            await self._journal.drop(rows)

    # ---- names -------------------------------------------------------------------------------------------------

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
            await self.contents.make_local(node.file, caller)

    def withdraw(self, node: Node) -> None:
        """Take the name of a file away that was never sent."""
        for parent, key in self._take_out(node):
            if parent is not None:
                self._tree.changed(parent, key)
        node.unlinked = True
        self._tree.inodes.detach(node)

    async def there(self, directory: Node, node: Node, caller: Caller) -> Entry | None:
        """Return what the remote side has under the name of a file that this mount never knew to be there."""
        file = node.file
        if file is None or file.entry is not None or (file.over is None and not file.tried):
            return None
        entry = await self._tree.entry(directory, caller)
        try:
            return (await self._calls.find(entry, node.name, None, caller)).within(entry)
        except NotFound:
            return None

    def _take_out(self, node: Node) -> list[tuple[Node | None, str]]:
        places = [place for place, other in self._tree.pending.items() if other is node]
        for place in places:
            del self._tree.pending[place]
        return [(self._tree.inodes.get(ino), key) for ino, key in places]

    async def removed(self, node: Node, path: str, caller: Caller) -> None:
        """Let the journal forget what it has for a name that the user removed or replaced, and that is gone now.

        Bytes that open handles still read stay where they are; without a row, the next start would sweep them.
        """
        file = node.file
        if file is not None and node.unlinked:
            rows, current = file.rows(), file.row
            file.row, file.failed_rows, file.older_rows = None, set(), set()
            file.acknowledged.clear()
            self.commits.kept.forget(rows)
            with trio.CancelScope(shield=True):
                if current is not None:
                    await self._journal.remove(current)
                await self._journal.drop(rows - {current})
        await self.replaced(path, caller)

    async def replaced(self, path: str, caller: Caller, *, by: int | None = None) -> None:
        """Let the journal forget what it keeps for ``path``, as `Kept.replaced` says."""
        with trio.CancelScope(shield=True):
            await self.commits.kept.replaced(caller.principal, path, by=by)

    async def moved(self, *moves: Moved) -> None:
        """Let what the journal keeps, or is yet to send, follow the names that were renamed."""
        with trio.CancelScope(shield=True):
            await self.commits.kept.moved(*moves)
            for node in self._tree.inodes:
                if node.file is not None and node.file.acknowledged and not node.gone:
                    path = self._tree.inodes.path(node)
                    if any(path == move.new_path or path.startswith(f"{move.new_path}/") for move in moves):
                        await self.commits.renamed(node.file)
