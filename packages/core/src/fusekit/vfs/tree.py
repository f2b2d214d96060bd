"""The tree: which names there are and what they stand for, asked of the remote side as seldom as the mode allows.

Vfs layer. Owns the inode table and puts what the remote side tells into the metadata cache. Names of files that this
mount created and has not sent yet (``pending``) come before anything that is cached.

Between two checkpoints everything here is consistent. An answer that was under way while this mount changed the same
name does not undo the change: each directory counts its local changes.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Sequence
from typing import Final

import attrs
import trio

from fusekit import names
from fusekit.cache.metadata import Directory, Fact, Metadata, View
from fusekit.errors import Invalid, NotDirectory, NotFound, Stale
from fusekit.metrics import Metrics
from fusekit.settings import Consistency, Settings
from fusekit.transfer.calls import Calls
from fusekit.types import Caller, Capabilities, Entry, Kind
from fusekit.vfs.inodes import ROOT, Ino, Inodes, Node

logger = logging.getLogger(__name__)

# A second cold name in a directory lists it whole instead of asking for one name after the other; directories known
# to be longer than this are asked name by name, because a listing of them costs more than it saves.
LIST_MAX: Final = 5_000


class Tree:
    """Names, inodes and what is known of them."""

    def __init__(self, calls: Calls, settings: Settings, metrics: Metrics, identity: str) -> None:
        self.calls = calls
        self.inodes = Inodes(identity)
        self.metadata = Metadata(settings.ttl)
        self.pending: dict[tuple[Ino, str], Node] = {}
        self._strict = settings.consistency is Consistency.STRICT
        self._metrics = metrics
        self._listings: dict[tuple[int, Ino], trio.Event] = {}
        self._one_view = not calls.implements("fusekit_principal")

    @property
    def one_view(self) -> bool:
        """Return whether all users see the same, so that the kernel may answer one with what another asked."""
        return self._one_view

    # ---- from inode to entry -----------------------------------------------------------------------------------

    def node(self, ino: int) -> Node:
        """Return the inode ``ino``.

        Raises:
            Stale: it is not known (any more).
        """
        node = self.inodes.get(ino)
        if node is None:
            raise Stale(f"inode {ino} is no longer known")
        return node

    def view(self, caller: Caller) -> View:
        """Return what ``caller`` is known to see."""
        return self.metadata.view(caller.principal)

    def fact(self, node: Node, caller: Caller) -> Fact | None:
        """Return what is known of ``node``, however old."""
        return self.view(caller).facts.get(node.ino)

    async def entry(self, node: Node, caller: Caller) -> Entry:
        """Return the entry of ``node`` with its address, as a hook wants it; old knowledge will do."""
        view = self.view(caller)
        fact = view.facts.get(node.ino)
        if fact is None or fact.suspect:
            await self.ask(node, caller)
            fact = view.facts[node.ino]
        if node.ino == ROOT:
            return fact.entry
        if fact.entry.ref:  # learned, perhaps, under another of its names
            return fact.entry if fact.entry.name == node.name else attrs.evolve(fact.entry, name=node.name)
        above = await self.entry(self.node(node.parent), caller)
        return attrs.evolve(fact.entry, name=node.name, ref=f"{above.ref}/{node.name}")

    async def entry_at(self, parent: Node, name: str, node: Node, caller: Caller) -> Entry:
        """Return the entry of ``node`` under one of its names; they differ for hard links only."""
        if node.links is None or (node.parent, node.name) == (parent.ino, name):
            return await self.entry(node, caller)
        above = await self.entry(parent, caller)
        return (await self.calls.find(above, name, None, caller)).within(above)

    def address(self, node: Node, view: View) -> str | None:
        """Return the address of ``node`` as far as it is known, without asking."""
        fact = view.facts.get(node.ino)
        if fact is None:
            return None
        if node.ino == ROOT or fact.entry.ref:
            return fact.entry.ref
        above = self.inodes.get(node.parent)
        ref = self.address(above, view) if above is not None else None
        return None if ref is None else f"{ref}/{node.name}"

    async def directory(self, node: Node, caller: Caller) -> tuple[Entry, Capabilities]:
        """Return the entry of a directory and what can be done in it.

        Raises:
            NotDirectory: it is something else.
        """
        if node.kind is not Kind.DIRECTORY:
            raise NotDirectory(f"{self.inodes.path(node)} is not a directory")
        entry = await self.entry(node, caller)
        return entry, self.calls.capabilities(entry)

    def key(self, capabilities: Capabilities, name: str) -> str:
        """Return what stands for ``name`` in its directory: names with equal folds are one."""
        return capabilities.fold(name) if capabilities.fold is not None else name

    def at(self, parent: Node, name: str, caller: Caller) -> Node | None:
        """Return the inode that ``name`` of ``parent`` was last found to stand for, without asking."""
        key = self.key(self.capabilities_of(parent, caller), name)
        if (made := self.pending.get((parent.ino, key))) is not None:
            return made
        record = self.view(caller).directories.get(parent.ino)
        return self.inodes.get(record.names.get(key, 0)) if record is not None else None

    # ---- asking ------------------------------------------------------------------------------------------------

    async def lookup(self, parent: Node, name: str, caller: Caller) -> Node:
        """Return the inode that ``name`` of ``parent`` stands for.

        Raises:
            NotFound: there is none.
        """
        _, capabilities = await self.directory(parent, caller)
        key = self.key(capabilities, name)
        while True:
            known = self._known(parent, key, capabilities, caller)
            if known is not None:
                return known
            found = await self._ask_name(parent, name, key, capabilities, caller)
            if found is not None:
                return found

    def _known(self, parent: Node, key: str, capabilities: Capabilities, caller: Caller) -> Node | None:
        """Answer from memory: the inode, `NotFound`, or None where the remote side must be asked."""
        if (made := self.pending.get((parent.ino, key))) is not None:
            return made
        view = self.view(caller)
        record = view.directories.get(parent.ino)
        if record is None:
            return None
        node = self.inodes.get(record.names.get(key, 0))
        listed = self.metadata.fresh(record.listed_at)
        if node is not None:
            fact = view.facts.get(node.ino)
            if node.file is not None and node.file.local:
                return node
            # Of several hard links each name is as fresh as its own listing, not as the inode.
            if (
                fact is not None
                and not fact.suspect
                and self.metadata.fresh(fact.at)
                and (listed or node.links is None)
            ):
                return node
            return None
        if (listed and not capabilities.unlisted_names) or self.metadata.fresh(record.misses.get(key)):
            raise NotFound(f"no {key!r} in {self.inodes.path(parent)}")
        return None

    async def _ask_name(
        self, parent: Node, name: str, key: str, capabilities: Capabilities, caller: Caller
    ) -> Node | None:
        """Ask the remote side for one name, or for all of its directory; None where it must be thought over again."""
        view = self.view(caller)
        record = view.directory(parent.ino)
        if key not in record.names and names.problem(name, forbidden=capabilities.forbidden) is not None:
            # The service would refuse the question; what asks before it makes something is to hear why from the making.
            raise NotFound(f"no {name!r} in {self.inodes.path(parent)}, where no name can be like that")
        if self._lists_for(record, capabilities):
            changes = record.changes
            await self.list(parent, caller)
            ino = record.names.get(key)
            if ino is not None and (node := self.inodes.get(ino)) is not None:
                return node
            if capabilities.has("fusekit_stat") and capabilities.unlisted_names:
                return await self._stat_name(parent, name, key, record, caller)
            if (parent.ino, key) in self.pending or record.changed_since(key, changes):
                return None
            raise NotFound(f"no {name!r} in {self.inodes.path(parent)}")
        return await self._stat_name(parent, name, key, record, caller)

    async def _stat_name(self, parent: Node, name: str, key: str, record: Directory, caller: Caller) -> Node | None:
        directory = await self.entry(parent, caller)
        view, changes = self.view(caller), record.changes
        known: Entry | None = None
        if (ino := record.names.get(key)) is not None and (node := self.inodes.get(ino)) is not None:
            known = await self._believed(node, caller)
        try:
            entry = await self.calls.find(directory, name, known, caller)
        except NotFound:
            if record.changed_since(key, changes):
                return None
            self._lost(view, record, parent, key)
            record.misses[key] = trio.current_time()
            raise
        if record.changed_since(key, changes):
            return None
        return self.learn(view, parent, record, key, entry)

    async def _believed(self, node: Node, caller: Caller) -> Entry | None:
        fact = self.view(caller).facts.get(node.ino)
        return None if fact is None or fact.suspect else await self.entry(node, caller)

    def _lists_for(self, record: Directory, capabilities: Capabilities) -> bool:
        """Decide whether a cold name is worth a listing of its whole directory."""
        if not capabilities.has("fusekit_stat"):
            return True
        if self._strict or not capabilities.has("fusekit_list"):
            return False
        now = trio.current_time()
        again = record.cold_at is not None and now - record.cold_at < max(self.metadata.ttl_s, 1.0)
        record.cold_at = now
        return again and len(record.names) <= LIST_MAX

    async def ask(self, node: Node, caller: Caller) -> Entry:
        """Return what the remote side says of ``node`` now, without regard to age.

        Raises:
            NotFound: its name is gone. Stale: its name stands for something else now.
        """
        view = self.view(caller)
        if node.ino == ROOT:
            entry = await self.calls.root(caller)
            if entry.kind is not Kind.DIRECTORY:
                raise NotDirectory("what is to be mounted is not a directory")
            view.learn(ROOT, entry)
            return entry
        if node.gone:
            raise NotFound(f"{node.name!r} was removed")
        parent = self.node(node.parent)
        _, capabilities = await self.directory(parent, caller)
        key = self.key(capabilities, node.name)
        found: Node | None = None
        while found is None:
            found = await self._stat_name(parent, node.name, key, view.directory(parent.ino), caller)
        if found is not node:
            raise Stale(f"{node.name!r} is another file now")
        return await self.entry(node, caller)

    async def refresh(self, node: Node, caller: Caller) -> Fact:
        """Return what is known of ``node``, asked again if it is older than the mode allows.

        An inode whose name is gone, or stands for something else, keeps what was known: it is still open somewhere.
        """
        view = self.view(caller)
        fact = view.facts.get(node.ino)
        if fact is not None and (node.gone or (self.metadata.fresh(fact.at) and not fact.suspect)):
            return fact
        if node.gone:
            raise Stale(f"{node.name!r} was removed")
        if node.ino == ROOT:
            await self.ask(node, caller)
            return view.facts[ROOT]
        try:
            found = await self.lookup(self.node(node.parent), node.name, caller)
        except NotFound:
            found = None
        fact = view.facts.get(node.ino, fact)
        if fact is None:
            raise Stale(f"{node.name!r} is no longer there")
        if found is not node and not node.gone and self._one_view and not _unsent(node):
            self.inodes.detach(node)
        return fact

    # ---- listings ----------------------------------------------------------------------------------------------

    async def list(self, node: Node, caller: Caller) -> Directory:
        """Return the record of directory ``node`` with a listing that is fresh; one call for all who wait."""
        view = self.view(caller)
        record = view.directory(node.ino)
        flight = (id(view), node.ino)
        while (waiting := self._listings.get(flight)) is not None:
            await waiting.wait()
            if self.metadata.fresh(record.listed_at):
                return record
        done = self._listings[flight] = trio.Event()
        try:
            await self._list(view, node, record, caller)
        finally:
            del self._listings[flight]
            done.set()
        return record

    async def _list(self, view: View, node: Node, record: Directory, caller: Caller) -> None:
        directory, capabilities = await self.directory(node, caller)
        began, changes = trio.current_time(), record.changes
        seen: dict[str, Node] = {}

        async def page(entries: Sequence[Entry]) -> None:
            for entry in entries:
                if (reason := names.problem(entry.name, bytes_max=names.NAME_BYTES_MAX)) is not None:
                    self._metrics.skipped_names += 1
                    logger.warning("%s: left out %r, which %s", self.inodes.path(node), entry.name, reason)
                    continue
                key = self.key(capabilities, entry.name)
                if record.changed_since(key, changes):
                    continue
                try:
                    seen[key] = self.learn(view, node, record, key, entry)
                except Invalid as error:
                    self._metrics.skipped_names += 1
                    logger.warning("%s: left out %r: %s", self.inodes.path(node), entry.name, error)
            await trio.lowlevel.checkpoint()

        await self.calls.list(directory, page, caller)
        for key in [key for key in record.names if key not in seen and not record.changed_since(key, changes)]:
            self._lost(view, record, node, key)
        record.misses.clear()
        record.cold_at = None
        record.listed_at = began
        record.local = {key: change for key, change in record.local.items() if change > changes}

    # ---- what changed ------------------------------------------------------------------------------------------

    def learn(self, view: View, parent: Node, record: Directory, key: str, entry: Entry) -> Node:
        """Keep what the remote side told about a name and return its inode."""
        if self.inodes.loops(parent, entry):
            raise Invalid(f"{entry.name!r} is one of the directories above it", errno=errno.ELOOP)
        node = self.inodes.place(parent, entry.name, entry)
        before = record.names.get(key)
        if before is not None and before != node.ino and self._one_view:
            older = self.inodes.get(before)
            if older is not None and (parent.ino, entry.name) in (older.links or {(older.parent, older.name)}):
                if _unsent(older):
                    self.pending[(parent.ino, key)] = older  # what the program wrote is not given up for it
                else:
                    self.inodes.unlink(older, parent, entry.name)
        record.names[key] = node.ino
        record.misses.pop(key, None)
        fact = view.facts.get(node.ino)
        if (
            fact is not None
            and entry.size is None
            and entry.version is not None
            and entry.version == fact.entry.version
        ):
            entry = attrs.evolve(entry, size=fact.entry.size)  # measured before, and it is the same content
        if fact is not None and fact.entry == entry:
            fact.at, fact.suspect = trio.current_time(), False
        else:
            view.learn(node.ino, entry)
        return node

    def _lost(self, view: View, record: Directory, parent: Node, key: str) -> None:
        """Take a name away that the remote side no longer has."""
        ino = record.names.pop(key, None)
        node = self.inodes.get(ino) if ino is not None else None
        if node is None:
            return
        if _unsent(node):
            self.pending[(parent.ino, key)] = node
        elif self._one_view:
            self.inodes.unlink(node, parent, node.name if node.parent == parent.ino else key)
            if self.inodes.get(node.ino) is None:
                self.metadata.forget(node.ino)
        elif not node.referenced:
            view.forget(node.ino)

    def appeared(self, parent: Node, name: str, entry: Entry, caller: Caller, node: Node | None = None) -> Node:
        """Take over what this mount made at ``name``; ``node`` is the inode that it had here all the time."""
        capabilities = self.capabilities_of(parent, caller)
        key = self.key(capabilities, name)
        view = self.view(caller)
        record = view.directory(parent.ino)
        if node is not None:
            self.inodes.identify(node, parent, entry.name, entry)
        node = self.learn(view, parent, record, key, entry)
        self.changed(parent, key)
        return node

    def empty(self, node: Node, caller: Caller) -> None:
        """Take a directory that this mount just made as listed: it is known to hold nothing."""
        if not self.capabilities_of(node, caller).unlisted_names:
            self.view(caller).directories[node.ino] = Directory(listed_at=trio.current_time())

    def disappeared(self, parent: Node, name: str, node: Node, caller: Caller) -> None:
        """Take away what this mount removed at ``name``."""
        key = self.key(self.capabilities_of(parent, caller), name)
        for view in self.metadata.views():
            if (record := view.directories.get(parent.ino)) is not None:
                record.names.pop(key, None)
            fact = view.facts.get(node.ino)
            if fact is not None and fact.entry.nlink > 1:
                fact.entry = attrs.evolve(fact.entry, nlink=fact.entry.nlink - 1)
        self.view(caller).directory(parent.ino).misses[key] = trio.current_time()
        self.changed(parent, key)
        self.inodes.unlink(node, parent, name)
        node.unlinked = node.gone
        for view in self.metadata.views():
            if not node.gone and (fact := view.facts.get(node.ino)) is not None and fact.entry.ref:
                fact.suspect = True  # the address may be that of the name that went

    def renamed(
        self, node: Node, old: Node, name: str, new: Node, new_name: str, replaced: Node | None, exchange: bool,
        moved: Entry, caller: Caller,
    ) -> None:  # fmt: skip
        """Take over what the remote side renamed: ``moved`` is what stands at ``new_name`` now."""
        key = self.key(self.capabilities_of(old, caller), name)
        new_key = self.key(self.capabilities_of(new, caller), new_name)
        if exchange and replaced is not None:
            self.inodes.swap(node, (old.ino, name), replaced, (new.ino, new_name))
            for view in self.metadata.views():
                if (record := view.directories.get(old.ino)) is not None:
                    record.names[key] = replaced.ino
                if (record := view.directories.get(new.ino)) is not None:
                    record.names[new_key] = node.ino
                if (fact := view.facts.get(replaced.ino)) is not None:
                    # An explicit address may have changed with the place: it is asked for by name before use.
                    fact.entry = attrs.evolve(fact.entry, name=name)
                    fact.suspect = bool(fact.entry.ref)
            self.changed(old, key)
            self._suspect_below(replaced)
        else:
            if replaced is not None:
                self.disappeared(new, new_name, replaced, caller)
            for view in self.metadata.views():
                if (record := view.directories.get(old.ino)) is not None:
                    record.names.pop(key, None)
            self.view(caller).directory(old.ino).misses[key] = trio.current_time()
            self.changed(old, key)
            self.inodes.move(node, (old.ino, name), (new.ino, moved.name))
        self.appeared(new, new_name, moved, caller, node)
        self._suspect_below(node)

    def changed(self, parent: Node, key: str) -> None:
        """Note in all views that this mount changed a name, and the directory's time with it."""
        now = time.time_ns()
        for view in self.metadata.views():
            if (record := view.directories.get(parent.ino)) is not None:
                record.changed(key)
            fact = view.facts.get(parent.ino)
            if fact is not None and fact.entry.mtime_ns is not None:
                fact.entry = attrs.evolve(fact.entry, mtime_ns=now, ctime_ns=now)
        if parent.kept is not None:
            parent.kept = (parent.kept[0], attrs.evolve(parent.kept[1], mtime_ns=now))

    def supersede(self, node: Node, entry: Entry, caller: Caller) -> Node:
        """Give ``entry``, a new version at the name of ``node``, an inode of its own; the old one has no name now."""
        parent, view = self.node(node.parent), self.view(caller)
        key = self.key(self.capabilities_of(parent, caller), node.name)
        before = node.file.entry if node.file is not None else None
        self.inodes.detach(node)
        if before is not None:
            view.learn(node.ino, before)
        return self.learn(view, parent, view.directory(parent.ino), key, entry)

    def _suspect_below(self, node: Node) -> None:
        """Ask again, by name, for everything below a directory that was renamed, before its address is used."""
        if node.kind is not Kind.DIRECTORY:
            return
        for child in self.inodes:
            if child is node or child.ino == ROOT or not self.inodes.below(child, node):
                continue
            for view in self.metadata.views():
                fact = view.facts.get(child.ino)
                if fact is not None and fact.entry.ref:
                    fact.suspect = True

    def capabilities_of(self, parent: Node, caller: Caller) -> Capabilities:
        """Return what can be done in a directory whose entry is known already."""
        fact = self.view(caller).facts.get(parent.ino)
        return self.calls.capabilities(fact.entry if fact is not None else Entry.directory(parent.name))

    def forget(self, ino: int, count: int) -> None:
        """Take back references of the kernel."""
        if self.inodes.forget(ino, count) is not None:
            self.metadata.forget(ino)

    def release(self, node: Node) -> None:
        """Drop an inode without a name that nothing refers to any more."""
        if node.gone and self.inodes.drop(node):
            self.metadata.forget(node.ino)


def _unsent(node: Node) -> bool:
    """Return whether an inode has content that the remote side may lack: no news from there takes its name away."""
    return node.file is not None and node.file.unsent
