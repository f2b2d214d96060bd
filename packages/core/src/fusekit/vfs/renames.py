"""Renaming: a name moves, over another or in exchange with it, whatever is open or unsent at either.

Vfs layer. The remote side is asked first and what is known follows, in one step. A file that was never sent has no
name there to move: it is sent under the new one.
"""

from __future__ import annotations

import errno
from typing import Final

import attrs
import trio

from fusekit.errors import Exists, Invalid, IsDirectory, NotDirectory, NotEmpty, NotFound, NotSupported
from fusekit.journal import steps
from fusekit.journal.kept import Moved
from fusekit.journal.uploader import version_of
from fusekit.transfer.calls import Calls
from fusekit.types import Caller, Capabilities, Entry, Kind, Rename
from fusekit.vfs.attributes import token
from fusekit.vfs.files import Files
from fusekit.vfs.inodes import Node
from fusekit.vfs.places import Places
from fusekit.vfs.tree import Tree

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


@attrs.frozen
class _Move:
    """One rename: ``node`` from ``name`` in ``old`` to ``new_name`` in ``new``, where ``replaced`` is."""

    node: Node
    old: Node
    name: str
    new: Node
    new_name: str
    replaced: Node | None
    exchange: bool


class Renames:
    """Renames of one mount."""

    def __init__(self, tree: Tree, files: Files, places: Places, calls: Calls) -> None:
        self._tree = tree
        self._files = files
        self._places = places
        self._calls = calls

    async def rename(self, old: Node, name: str, new: Node, new_name: str, flags: int, caller: Caller) -> None:
        """Move ``name`` of ``old`` to ``new_name`` of ``new``."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise Invalid("rename: unknown flags")
        exchange = bool(flags & RENAME_EXCHANGE)
        turns = self._files.turns
        while True:
            node = await self._files.find(old, name, caller)
            try:
                there: Node | None = await self._files.find(new, new_name, caller)
            except NotFound:
                there = None
            if there is not None and flags & RENAME_NOREPLACE:
                raise Exists(f"{new_name!r} exists")
            if there is None and exchange:
                raise NotFound(f"{new_name!r} does not exist")
            if there is node and (node.links is not None or exchange or (old is new and name == new_name)):
                return  # two names of one inode, or one: POSIX says that nothing happens
            # Where it is the same inode only the case, or the form of the letters, changes.
            replaced = there if there is not node else None
            move = _Move(node, old, name, new, new_name, replaced, exchange)
            self._check(move)
            moving = Kind.DIRECTORY in {node.kind, replaced.kind if replaced is not None else None}
            turn = turns.move if moving else turns.take
            async with turn(node, replaced, inside=(old, new)):
                if self._tree.at(old, name, caller) is node and self._tree.at(new, new_name, caller) is there:
                    self._check(move)  # the directories may have moved as well
                    await self._move(move, caller)
                    return

    def _check(self, move: _Move) -> None:
        node, replaced = move.node, move.replaced
        if node.kind is Kind.DIRECTORY and self._tree.inodes.below(move.new, node):
            raise Invalid("a directory cannot move into itself")
        if replaced is None:
            return
        if move.exchange:
            if replaced.kind is Kind.DIRECTORY and self._tree.inodes.below(move.old, replaced):
                raise Invalid("a directory cannot move into itself")
        elif replaced.kind is Kind.DIRECTORY and node.kind is not Kind.DIRECTORY:
            raise IsDirectory(f"{move.new_name!r} is a directory")
        elif replaced.kind is not Kind.DIRECTORY and node.kind is Kind.DIRECTORY:
            raise NotDirectory(f"{move.new_name!r} is not a directory")
        elif any(place[0] == replaced.ino for place in self._tree.pending):
            raise NotEmpty(f"{move.new_name!r} has files in it that the remote side does not have yet")

    async def _move(self, move: _Move, caller: Caller) -> None:
        node, replaced = move.node, move.replaced
        source, capabilities = await self._tree.directory(move.old, caller)
        target, _ = await self._places.to_make(move.new, move.new_name, "fusekit_rename", caller, missing=errno.EXDEV)
        _can_rename(move, capabilities)
        if move.exchange:
            for unsent in (node, replaced):
                if unsent is not None and unsent.file is not None and unsent.file.entry is None:
                    await self._files.commits.commit_in_turn(unsent.file, caller)
        elif replaced is not None:
            await self._files.outlive(replaced, caller)
        waits = self._files.commits.waits
        if node.file is not None and node.file.entry is None and node.file.tried:
            # It may be there under the name that it had: then it is renamed like any other.
            await self._files.commits.commit_in_turn(node.file, caller)
        if node.file is not None and node.file.entry is None:
            await (self._move_unsent(move, caller) if waits else self._move_here(move, caller))
            return
        for waiting in (node, replaced if move.exchange else None):
            if waiting is not None and waiting.file is not None:
                # A crash between the rename there and the rows here would leave them what they cannot find.
                await self._files.commits.send_waiting(waiting.file, caller)
        entry = await self._tree.entry_at(move.old, move.name, node, caller)
        over = None
        never = False
        if replaced is not None:
            never = _never_sent(replaced)
            at = self._files.there(move.new, replaced, caller) if never else None
            over = await (at or self._tree.entry_at(move.new, move.new_name, replaced, caller))
        path, new_path = self._path(move.old, move.name), self._path(move.new, move.new_name)
        moved = await self._calls.rename(entry, source, target, move.new_name, over, move.exchange, caller)
        steps.reached("name-changed")
        # Nothing was taken from what is replaced before the remote side had agreed.
        if replaced is not None and never:
            self._files.withdraw(replaced)
        self._carry_over(node, moved, caller)
        gone = None if never else replaced
        self._tree.renamed(node, move.old, move.name, move.new, move.new_name, gone, move.exchange, moved, caller)
        if node.file is not None:
            node.file.entry = moved.within(target)
        moves = [Moved(path, new_path, entry.ref, moved.within(target).ref, target.ref)]
        if move.exchange and over is not None:
            by_path = over.ref == f"{target.ref}/{move.new_name}"
            moves.append(Moved(new_path, path, over.ref, entry.ref if by_path else over.ref, source.ref))
        elif replaced is not None:
            await self._files.removed(replaced, new_path, caller)
            self._tree.release(replaced)
        else:
            await self._files.replaced(new_path, caller)
        await self._files.moved(*moves)

    def _path(self, directory: Node, name: str) -> str:
        return f"{self._tree.inodes.path(directory).rstrip('/')}/{name}"

    def _carry_over(self, node: Node, moved: Entry, caller: Caller) -> None:
        """Let what is kept for the version before a rename be kept for the one after it: the content is the same."""
        fact = self._tree.fact(node, caller)
        if fact is None:
            return
        if node.kept is not None and node.kept[0] == token(fact.entry):
            node.kept = (token(moved), node.kept[1])
        before, after = version_of(fact.entry), version_of(moved)
        node.told = after if node.told == before else node.told
        node.pages = after if node.pages == before else node.pages

    async def _move_here(self, move: _Move, caller: Caller) -> None:
        """Give a file its new name before it was ever sent, where that only waits for the journal."""
        tree, node, replaced = self._tree, move.node, move.replaced
        file = node.file
        assert file is not None
        await self._files.commits.acknowledge(file, caller)
        over = None
        if replaced is not None and not _never_sent(replaced):
            over = await tree.entry_at(move.new, move.new_name, replaced, caller)
        elif replaced is not None:
            over = await self._files.there(move.new, replaced, caller)
        if (there := await self._files.there(move.old, node, caller)) is not None:
            # What it was to replace under the name that it had is gone with that name.
            await self._calls.remove(await tree.entry(move.old, caller), there, caller)
            tree.gone_below(move.old, move.name, caller)
        if replaced is not None and _never_sent(replaced):
            self._files.withdraw(replaced)
        elif replaced is not None:
            tree.disappeared(move.new, move.new_name, replaced, caller)
        key = tree.key(tree.capabilities_of(move.old, caller), move.name)
        new_key = tree.key(tree.capabilities_of(move.new, caller), move.new_name)
        tree.sent(node)
        tree.inodes.move(node, (move.old.ino, move.name), (move.new.ino, move.new_name))
        tree.pending[move.new.ino, new_key] = node
        tree.changed(move.old, key)
        tree.changed(move.new, new_key)
        file.over = over
        with trio.CancelScope(shield=True):
            await self._files.commits.renamed(file)
        path, new_path = self._path(move.old, move.name), self._path(move.new, move.new_name)
        if replaced is not None:
            await self._files.removed(replaced, new_path, caller)
            tree.release(replaced)
        else:
            await self._files.replaced(new_path, caller)
        ref = (await tree.entry(move.new, caller)).ref
        await self._files.moved(Moved(path, new_path, f"{ref}/{move.name}", f"{ref}/{move.new_name}", ref))

    async def _move_unsent(self, move: _Move, caller: Caller) -> None:
        """Give a file its new name before it was ever sent: it is sent there, over what the name held."""
        tree, node, replaced = self._tree, move.node, move.replaced
        file = node.file
        assert file is not None
        async with file.changing:
            await self._files.contents.changeable(file, caller)  # else an empty one would be laid over what it replaces
        row = file.row
        over = None
        if replaced is not None and not _never_sent(replaced):
            over = await tree.entry_at(move.new, move.new_name, replaced, caller)
        here = (move.old.ino, tree.key(tree.capabilities_of(move.old, caller), move.name))
        there = (move.new.ino, tree.key(tree.capabilities_of(move.new, caller), move.new_name))
        waiting = tree.pending.get(there)
        tree.pending.pop(here, None)
        tree.pending[there] = node
        places = (move.old.ino, move.name), (move.new.ino, move.new_name)
        tree.inodes.move(node, *places)
        file.entry, file.dirty = over, True
        try:
            await self._files.commits.commit_in_turn(file, caller)
        except BaseException:
            # It stays where it was, to be sent there: that it could not be sent here is not its own failure.
            self._files.commits.retract(file)
            file.entry = None
            tree.pending.pop(there, None)
            if waiting is not None:
                tree.pending[there] = waiting
            tree.pending[here] = node
            tree.inodes.move(node, *reversed(places))
            raise
        if replaced is not None:
            if over is None:
                self._files.withdraw(replaced)
            replaced.unlinked = replaced.gone  # its name went with the commit
            await self._files.removed(replaced, self._path(move.new, move.new_name), caller)
            tree.release(replaced)
        # What was kept for the name that it had has been replaced by it as well, before it moved on.
        await self._files.replaced(self._path(move.old, move.name), caller, by=row)


def _never_sent(node: Node) -> bool:
    return node.file is not None and node.file.entry is None


def _can_rename(move: _Move, capabilities: Capabilities) -> None:
    if move.exchange and not capabilities.rename & Rename.EXCHANGE:
        raise NotSupported("two names cannot be exchanged here", errno=errno.EINVAL)
    wanted = Rename.DIRECTORIES if move.node.kind is Kind.DIRECTORY else Rename.FILES
    if move.replaced is not None and not move.exchange:
        wanted |= Rename.REPLACE
    if not capabilities.has("fusekit_rename") or wanted & ~capabilities.rename:
        raise NotSupported("cannot be renamed here", errno=errno.EXDEV)
