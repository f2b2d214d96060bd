"""The tree: which names there are and what they stand for, asked of the remote side as seldom as the mode allows.

Vfs layer. Owns the inode table and puts what the remote side tells into the metadata cache. Names of files that this
mount created and has not sent yet (``pending``) come before anything that is cached.

Between two checkpoints everything here is consistent. An answer that was under way while this mount changed the same
name does not undo the change: each directory counts its local changes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Container, Iterable
from typing import Final, Protocol

import attrs
import trio

from fusekit import names
from fusekit.cache.listings import Remembered
from fusekit.cache.metadata import Directory, Fact, Metadata, View
from fusekit.errors import Invalid, NotDirectory, NotFound, Stale
from fusekit.journal.uploader import version_of
from fusekit.metrics import Metrics
from fusekit.settings import Consistency, Settings
from fusekit.transfer.calls import Calls
from fusekit.types import Caller, Capabilities, Entry, Kind
from fusekit.vfs.inodes import ROOT, Ino, Inodes, Node
from fusekit.vfs.listings import STRIDE, Listing, Listings

logger = logging.getLogger(__name__)

# A second cold name in a directory lists it whole instead of asking for one name after the other; directories known
# to be longer than this are asked name by name, because a listing of them costs more than it saves.
LIST_MAX: Final = 5_000

# Sizes that only reading told and that outlive what else was known of their files.
_MEASURED_MAX: Final = 16_384


class Kernel(Protocol):
    """What a tree tells the kernel, if there is one; neither waits."""

    def changed(self, ino: int, name: str | None) -> None:
        """Let it forget the entry ``name`` of directory ``ino``, or the attributes and pages of ``ino``."""

    def disown(self, ino: int, name: str) -> None:
        """Let it forget the entry ``name`` some time, to save memory; it may be busy, and then nothing comes of it."""


class Tree:
    """Names, inodes and what is known of them."""

    def __init__(
        self, calls: Calls, settings: Settings, metrics: Metrics, identity: str, remembered: Remembered | None = None
    ) -> None:
        self.calls = calls
        self.inodes = Inodes(identity)
        self.metadata = Metadata(settings.ttl)
        self.pending: dict[tuple[Ino, str], Node] = {}
        self.listings = Listings(self)
        self.reading: Counter[Ino] = Counter()  # directories that handles read just now
        self.kernel: Kernel | None = None
        self.remembered = remembered
        self._strict = settings.consistency is Consistency.STRICT
        # What was listed before the last unmount is believed by its age where that may be minutes, or any.
        self._by_age = settings.consistency in {Consistency.RELAXED, Consistency.SNAPSHOT}
        self._trimming = False
        self._pinned = settings.consistency is Consistency.SNAPSHOT
        self.entries_max = settings.entries_max
        self._metrics = metrics
        self._idle: deque[tuple[float, Ino]] = (
            deque()
        )  # forgotten by the kernel, and to be dropped when no longer fresh
        self._measured: OrderedDict[tuple[str, str], int] = OrderedDict()
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
        if fact.ref:  # learned, perhaps, under another of its names
            return fact.entry if fact.name == node.name else attrs.evolve(fact.entry, name=node.name)
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
        if node.ino == ROOT or fact.ref:
            return fact.ref
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
        ino = record.names.get(key)
        node = self.inodes.get(ino) if ino is not None else None
        listed = self.metadata.fresh(record.listed_at)
        if node is None and ino is not None:
            return None
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
        if not record.remembered and await self._recall(parent, view, record, caller):
            return None
        if self._lists_for(record, capabilities):
            if record.before is not None and await self._validate(parent, view, record, caller):
                return None
            changes, losses = record.changes, record.losses
            await self.listings.whole(parent, caller, until=lambda: self._came(view, record, key))
            ino = record.names.get(key)
            if ino is not None and (node := self.inodes.get(ino)) is not None:
                return node
            if record.losses != losses or (capabilities.has("fusekit_stat") and capabilities.unlisted_names):
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
            self.lost(view, record, parent, key)
            record.misses[key] = trio.current_time()
            raise
        if record.changed_since(key, changes):
            return None
        return self.learn(view, parent, record, key, entry, directory.ref)

    async def _believed(self, node: Node, caller: Caller) -> Entry | None:
        fact = self.view(caller).facts.get(node.ino)
        return None if fact is None or fact.suspect else await self.entry(node, caller)

    def _came(self, view: View, record: Directory, key: str) -> bool:
        """Return whether a listing under way brought a name already."""
        fact = view.facts.get(record.names.get(key, 0))
        return fact is not None and not fact.suspect and self.metadata.fresh(fact.at)

    def _lists_for(self, record: Directory, capabilities: Capabilities) -> bool:
        """Decide whether a cold name is worth a listing of its whole directory."""
        if not capabilities.has("fusekit_stat"):
            return True
        if self._strict or not capabilities.has("fusekit_list"):
            return False
        now = trio.current_time()
        again = record.names_only or (
            record.cold_at is not None and now - record.cold_at < max(self.metadata.ttl_s, 1.0)
        )
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
        if found.ino != node.ino:  # by number: it may have been dropped and met again meanwhile
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
        same = found is not None and found.ino == node.ino
        if not same and not node.gone and self._one_view and not _unsent(node):
            self.inodes.detach(node)
        return fact

    # ---- listings ----------------------------------------------------------------------------------------------

    async def to_read(self, node: Node, caller: Caller) -> Listing:
        """Return the names of ``node`` to read, which may still be coming; the caller leaves it some time.

        Raises:
            BackendError: the directory cannot be listed.
        """
        view = self.view(caller)
        record = view.directory(node.ino)
        if not self.metadata.fresh(record.listed_at):
            if not record.remembered:
                await self._recall(node, view, record, caller)
            if record.before is not None:
                await self._validate(node, view, record, caller)
            if not self.metadata.fresh(record.listed_at):
                return await self.listings.begin(view, node, caller)
        shown = self.names_in(node, record, self.capabilities_of(node, caller))
        listing = Listing(
            trio.current_time(),
            record.expired,
            [".", "..", *(name for name, _ in shown)],
            [node, self.node(node.parent), *(child for _, child in shown)],
            done=True,
        )
        listing.join()
        return listing

    def names_in(
        self, node: Node, record: Directory, capabilities: Capabilities, without: Container[str] = ()
    ) -> list[tuple[str, Node]]:
        """Return the names that are known in a directory with what they stand for, as the service spells them."""
        found: dict[str, Node] = {}
        for key, ino in record.names.items():
            if key not in without and (child := self.inodes.get(ino)) is not None:
                found[key] = child
        for (ino, key), made in self.pending.items():
            if ino == node.ino and key not in without:
                found[key] = made
        if capabilities.fold is None:
            return list(found.items())
        # What a name is found by may have lost its case.
        return [(child.name if child.parent == node.ino else key, child) for key, child in found.items()]

    def listed(self, view: View, directory: Entry, record: Directory, entries: Iterable[Entry] | None) -> None:
        """Take note that a listing is complete; ``directory`` is as it was before it began, None where nobody kept it."""
        record.before = None
        if self.remembered is None or record.listed_at is None:
            return
        if entries is None or record.local:
            self.remembered.drop(directory.ref)
            return
        age_s = trio.current_time() - record.listed_at
        self.remembered.keep(view.principal, directory.ref, directory.version, age_s, entries)

    async def _recall(self, node: Node, view: View, record: Directory, caller: Caller) -> bool:
        """Take in what the last mount knew of a directory, as old as it is; return whether there was anything.

        It is believed as anything of that age. What is too old is still good to be compared with: the names, if the
        directory's version is the one that it had then.
        """
        record.remembered = True
        if self.remembered is None or self._strict:
            return False
        directory, capabilities = await self.directory(node, caller)
        changes = record.changes
        saved = await self.remembered.recall(view.principal, directory.ref)
        if saved is None or record.listed_at is not None:
            return False
        at = trio.current_time() - saved.age_s
        now = view.facts.get(node.ino)
        changed = now is not None and None not in {now.version, saved.version} and now.version != saved.version
        fresh = self._by_age and not changed and self.metadata.fresh(at)
        losses = record.losses
        for start in range(0, len(saved.entries), STRIDE):
            for entry in saved.entries[start : start + STRIDE]:
                key = self.key(capabilities, entry.name)
                unknown = key not in record.names and key not in record.misses
                if unknown and not record.changed_since(key, changes) and names.problem(entry.name) is None:
                    with contextlib.suppress(Invalid):
                        self.learn(view, node, record, key, entry, directory.ref, at if fresh else float("-inf"))
            await trio.lowlevel.checkpoint()
        if record.losses != losses or record.listed_at is not None:
            return True
        if fresh:
            record.listed_at = at
        elif (not changed and capabilities.has("fusekit_stat")) or node.ino == ROOT:
            record.before = saved.version
        return True

    async def _validate(self, node: Node, view: View, record: Directory, caller: Caller) -> bool:
        """Ask whether the names from before stand: the directory has the version that it had. At most one call."""
        before, record.before = record.before, None
        fact = view.facts.get(node.ino)
        losses = record.losses
        if fact is None or fact.suspect or not self.metadata.fresh(fact.at):
            await self.ask(node, caller)
            fact = view.facts.get(node.ino)
        if fact is None or fact.version != before or record.losses != losses or not self.metadata.fresh(fact.at):
            return False
        if record.listed_at is None:
            record.listed_at, record.names_only = fact.at, True
        return True

    def unsaved(self, ref: str | None, *, below: bool = False) -> None:
        """Take note that what is kept for the next mount of the directory at ``ref`` does not stand."""
        if self.remembered is not None and ref is not None:
            self.remembered.drop(ref, below=below)

    async def recall_sizes(self) -> None:
        """Take in the sizes that reading told in mounts before."""
        if self.remembered is not None:
            self._measured.update(await self.remembered.measured())

    def left_out(self, node: Node, name: str, why: str) -> None:
        """Count a name of a listing that no file can have here."""
        self._metrics.skipped_names += 1
        logger.warning("%s: left out %r, %s", self.inodes.path(node), name, why)

    # ---- what changed ------------------------------------------------------------------------------------------

    def learn(
        self,
        view: View,
        parent: Node,
        record: Directory,
        key: str,
        entry: Entry,
        directory_ref: str | None = None,
        now: float | None = None,
    ) -> Node:
        """Keep what the remote side told about a name and return its inode.

        ``directory_ref`` is the address of the directory, ``now`` the time, where the caller has them already.
        """
        before = record.names.get(key)
        node = self.inodes.same(before, parent, entry) if before is not None else None
        if node is None:
            if self.inodes.loops(parent, entry):
                raise Invalid(f"{entry.name!r} is one of the directories above it", errno=errno.ELOOP)
            node = self.inodes.place(parent, entry.name, entry)
            if before is not None and before != node.ino and self._one_view:
                self._replaced(parent, key, entry.name, before)
            record.names[key] = node.ino
        if record.misses:
            record.misses.pop(key, None)
        fact = view.facts.get(node.ino)
        version = entry.version
        if entry.size is None and version is not None:
            # Measured before, and it is the same content.
            known = fact.size if fact is not None and version == fact.version else None
            if known is None:
                if directory_ref is None:
                    directory_ref = self.address(parent, view)
                known = self._measured.get((_object(entry, directory_ref), version))
            entry = attrs.evolve(entry, size=known)
        if now is None:
            now = trio.current_time()
        elif fact is not None and fact.at > now:
            return node  # more is known than what was remembered
        if fact is not None and fact.says(entry, directory_ref):
            fact.at, fact.suspect = now, False
            return node
        if node.pages not in {None, version_of(entry)} and node.file is None and self.kernel is not None:
            self.kernel.changed(node.ino, None)  # else its pages would lie there until somebody opens it
        fact = view.facts[node.ino] = Fact(entry, now)
        if fact.name == node.name:
            fact.name = node.name  # the same string, not an equal one
        if directory_ref is not None and entry.nlink == 1:
            fact.place(directory_ref)
        return node

    def _replaced(self, parent: Node, key: str, name: str, before: int) -> None:
        """Take the name from the inode that had it before; what a program wrote to it is not given up for that."""
        older = self.inodes.get(before)
        if older is not None and (parent.ino, name) in (older.links or {(older.parent, older.name)}):
            if _unsent(older):
                self.pending[(parent.ino, key)] = older
            else:
                self.inodes.unlink(older, parent, name)

    def measured(self, node: Node, entry: Entry, size: int, caller: Caller) -> None:
        """Keep the size of ``entry``, which reading it told; it belongs to that version."""
        fact = self.fact(node, caller)
        if fact is not None and version_of(fact) == version_of(entry):
            fact.size = size
        if entry.version is not None:
            self._measured[_object(entry, None), entry.version] = size
            if self.remembered is not None:
                self.remembered.measure(_object(entry, None), entry.version, size)
            if len(self._measured) > _MEASURED_MAX:
                self._measured.popitem(last=False)

    def lost(self, view: View, record: Directory, parent: Node, key: str) -> None:
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

    def sent(self, node: Node) -> None:
        """Take note that the name of ``node`` is at the remote side now, or nowhere."""
        if self.pending.get((node.parent, node.name)) is node:  # nearly always
            del self.pending[node.parent, node.name]
        elif self.pending:
            for place in [place for place, other in self.pending.items() if other is node]:
                del self.pending[place]

    def gone_below(self, parent: Node, name: str, caller: Caller) -> None:
        """Take away what the remote side had under the name of a file that waits to be sent, and has no more."""
        key = self.key(self.capabilities_of(parent, caller), name)
        for view in self.metadata.views():
            record = view.directories.get(parent.ino)
            ino = record.names.pop(key, None) if record is not None else None
            node = self.inodes.get(ino) if ino is not None else None
            if node is not None and self.pending.get((parent.ino, key)) is not node:
                self.inodes.unlink(node, parent, name)
        self.changed(parent, key)

    def doubt(self, parent: Node, name: str, caller: Caller) -> None:
        """Believe nothing about ``name`` before it is asked for: somebody else has just changed it."""
        key = self.key(self.capabilities_of(parent, caller), name)
        for view in self.metadata.views():
            if (record := view.directories.get(parent.ino)) is not None:
                record.misses.pop(key, None)
                record.listed_at = None
                if (fact := view.facts.get(record.names.get(key, 0))) is not None:
                    fact.at = float("-inf")

    def stepped_aside(self, node: Node, parent: Node, name: str, caller: Caller) -> None:
        """Give ``node`` the name ``name`` of its directory: its own is somebody else's now, and is asked for afresh."""
        key = self.key(self.capabilities_of(parent, caller), node.name)
        old = node.name
        self.sent(node)
        self.doubt(parent, old, caller)
        for view in self.metadata.views():
            record = view.directories.get(parent.ino)
            if record is not None and record.names.get(key) == node.ino:
                del record.names[key]
            view.forget(node.ino)
        self.inodes.move(node, (parent.ino, old), (parent.ino, name))
        self.changed(parent, key)
        if self.kernel is not None:
            self.kernel.changed(parent.ino, old)

    def empty(self, node: Node, caller: Caller) -> None:
        """Take a directory that this mount just made as listed: it is known to hold nothing."""
        if not self.capabilities_of(node, caller).unlisted_names:
            self.view(caller).directories[node.ino] = Directory(listed_at=trio.current_time(), remembered=True)
        self.unsaved(self.address(node, self.view(caller)), below=True)

    def disappeared(self, parent: Node, name: str, node: Node, caller: Caller) -> None:
        """Take away what this mount removed at ``name``."""
        key = self.key(self.capabilities_of(parent, caller), name)
        for view in self.metadata.views():
            if node.kind is Kind.DIRECTORY:
                self.unsaved(self.address(node, view), below=True)
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
            if not node.gone and (fact := view.facts.get(node.ino)) is not None and fact.addressed:
                fact.suspect = True  # the address may be that of the name that went

    def renamed(
        self, node: Node, old: Node, name: str, new: Node, new_name: str, replaced: Node | None, exchange: bool,
        moved: Entry, caller: Caller,
    ) -> None:  # fmt: skip
        """Take over what the remote side renamed: ``moved`` is what stands at ``new_name`` now."""
        key = self.key(self.capabilities_of(old, caller), name)
        new_key = self.key(self.capabilities_of(new, caller), new_name)
        for view in self.metadata.views():
            for directory in (node, replaced):
                if directory is not None and directory.kind is Kind.DIRECTORY:
                    self.unsaved(self.address(directory, view), below=True)
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
                    fact.suspect = fact.addressed
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
            self.unsaved(self.address(parent, view))
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
                if fact is not None and fact.addressed:
                    fact.suspect = True

    def capabilities_of(self, parent: Node, caller: Caller) -> Capabilities:
        """Return what can be done in a directory whose entry is known already."""
        fact = self.view(caller).facts.get(parent.ino)
        return self.calls.capabilities(fact.entry if fact is not None else Entry.directory(parent.name))

    # ---- what is dropped ---------------------------------------------------------------------------------------

    def forget(self, ino: int, count: int) -> None:
        """Take back references of the kernel.

        What nothing refers to any more and is not fresh is dropped, at once or when its time is over: it would be
        asked for again anyway. Over the budget it is dropped while it is fresh.
        """
        node = self.inodes.forget(ino, count)
        if node is None or node.referenced:
            return
        if node.gone:
            self.release(node)
        elif len(self.inodes) > self.entries_max and not self._pinned:
            self._evict(node)
            self.trim(1)  # so it goes on until enough are gone, or the kernel lets no more go
        else:
            self._drop_later(node)
        self._drop_idle()

    def trim(self, count: int) -> None:
        """Over the budget, look at twice as many of the oldest names as ``count`` came, and drop what can be dropped.

        What the kernel refers to it is asked to forget. Not directories: a program may be in one, and would find
        itself in none. Names that a program reads just now stay until it has them.
        """
        self._drop_idle()
        if len(self.inodes) <= self.entries_max or self._pinned or self._trimming:
            return
        self._trimming = True  # what is forgotten at once comes back here
        try:
            self._trim(2 * count)
        finally:
            self._trimming = False

    def _trim(self, count: int) -> None:
        for node in self.inodes.oldest(count):
            if not node.referenced:
                if not self.reading[node.parent]:
                    self._evict(node)
            elif node.kind is not Kind.DIRECTORY and node.lookups and not node.opens and self.kernel is not None:
                self.kernel.disown(node.parent, node.name)

    def _drop_later(self, node: Node) -> None:
        facts = [fact for view in self.metadata.views() if (fact := view.facts.get(node.ino)) is not None]
        ends = max((fact.at for fact in facts), default=float("-inf")) + self.metadata.ttl_s
        if ends <= trio.current_time():
            self._evict(node)
        elif ends < float("inf"):
            self._idle.append((ends, node.ino))

    def _drop_idle(self) -> None:
        now = trio.current_time()
        while self._idle and self._idle[0][0] <= now:
            node = self.inodes.get(self._idle.popleft()[1])
            if node is not None and not node.referenced and not node.gone:
                self._drop_later(node)

    def _evict(self, node: Node) -> None:
        """Drop an inode with its name, and with it that its directory is wholly known."""
        if not self.inodes.evict(node):
            return
        parent = self.inodes.get(node.parent)
        for view in self.metadata.views():
            record, above = view.directories.get(node.parent), view.facts.get(node.parent)
            key = node.name
            if record is not None and above is not None and record.names.get(key) != node.ino:
                key = self.key(self.calls.capabilities(above.entry), key)
            view.lose(node.parent, key, node.ino)
        if parent is not None and not parent.referenced and not parent.gone:
            self._idle.append((trio.current_time(), parent.ino))

    def release(self, node: Node) -> None:
        """Drop an inode without a name that nothing refers to any more."""
        if node.gone and self.inodes.drop(node):
            self.metadata.forget(node.ino)


def _object(entry: Entry, directory_ref: str | None) -> str:
    """Return what names the object of ``entry``, wherever it turns up."""
    return entry.id if entry.id is not None else entry.ref or f"{directory_ref}/{entry.name}"


def _unsent(node: Node) -> bool:
    """Return whether an inode has content that the remote side may lack: no news from there takes its name away."""
    return node.file is not None and node.file.unsent
