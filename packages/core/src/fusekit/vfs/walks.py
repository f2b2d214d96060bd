"""Walks through a tree (``ls -R``, ``find``, ``du``): recognised by the directories opened, and listed ahead.

Vfs layer, above `listings`. A walk reads one directory after the other, each a round trip. Who opens a second
directory of one that it opened before is taken for a walk; from then on the directories that a walk in depth comes to
next are listed in parallel: one call each, none for a file, as who opened. What is fresh is not asked again. It goes
only so far ahead of the last directory opened, so a walk that stops costs no more than that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

import attrs

from fusekit.cache.metadata import View
from fusekit.errors import BackendError
from fusekit.types import Caller, Kind
from fusekit.vfs.inodes import ROOT, Ino, Node
from fusekit.vfs.listings import Listing
from fusekit.vfs.tree import Tree

# Listings at once, where the place does not allow fewer.
AT_ONCE: Final = 16

# How many directories may be listed and not yet opened: what a walk that stops has cost in vain at most.
AHEAD_MAX: Final = 64

# And how many names may be in those: they are in memory before anybody asks for them.
AHEAD_NAMES_MAX: Final = 50_000

# How many programs are looked at, the last ones that opened a directory.
_WALKERS_MAX: Final = 64

# Of the directories that one program opened, the last ones: a walk in depth comes back to the others by its parents.
_OPENED_MAX: Final = 256


@attrs.define(eq=False)
class _Walker:
    """One program: the directories that it opened, oldest first, and whether it walks."""

    opened: OrderedDict[Ino, None] = attrs.field(factory=OrderedDict)
    walking: bool = False
    here: Ino = ROOT
    top: Ino = ROOT
    by_name: bool = False
    last: dict[Ino, str] = attrs.field(factory=dict)  # of a directory, the child opened last
    children: dict[Ino, tuple[float | None, list[Node]]] = attrs.field(factory=dict)


class Walks:
    """The walks of one mount."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._names_max = min(AHEAD_NAMES_MAX, tree.entries_max // 4)
        self._walkers: OrderedDict[tuple[str, int | None], _Walker] = OrderedDict()
        self._ahead: set[tuple[int, Ino]] = set()
        self.prefetched = 0

    def opened(self, node: Node, caller: Caller) -> None:
        """Take note that ``caller`` opened the directory ``node``, and list ahead if that is part of a walk."""
        if self._tree.metadata.ttl_s <= 0:  # nothing would be believed by the time it is asked for
            return
        walker = self._walkers.setdefault((caller.principal, caller.pid), _Walker())
        self._walkers.move_to_end((caller.principal, caller.pid))
        while len(self._walkers) > _WALKERS_MAX:
            self._walkers.popitem(last=False)
        parent = node.parent
        if node.ino in walker.opened or (walker.walking and parent not in walker.opened):
            walker.walking = False  # it begins again, or elsewhere
            walker.opened.clear()
            walker.last.clear()
            walker.children.clear()
        if not walker.opened:
            walker.top = node.ino
        elif parent in walker.opened:
            before = walker.last.get(parent)
            if before is not None and before != node.name and not walker.walking:
                self._learn_order(walker, parent, before, node.name, caller)
                walker.walking = True
            walker.last[parent] = node.name
        walker.opened[node.ino] = None
        while len(walker.opened) > _OPENED_MAX:
            left, _ = walker.opened.popitem(last=False)
            walker.last.pop(left, None)
            walker.children.pop(left, None)
            walker.top = next(iter(walker.opened)) if left == walker.top else walker.top
        walker.here = node.ino
        if walker.walking:
            self._go_on(walker, caller)

    def _learn_order(self, walker: _Walker, parent: Ino, before: str, now: str, caller: Caller) -> None:
        """See whether a directory's children are taken as they are listed, or by name (as ls does)."""
        walker.by_name = False
        children = [child.name for child in self._children(walker, self._tree.view(caller), parent)]
        if before not in children or now not in children:
            return
        listed = children.index(now) - children.index(before) == 1
        children.sort()
        by_name = children.index(now) - children.index(before) == 1
        walker.by_name = by_name and not listed
        walker.children.clear()

    def _go_on(self, walker: _Walker, caller: Caller) -> None:
        """List what comes next, as many at once as may be."""
        view = self._tree.view(caller)
        ahead, names = 0, 0
        for node in self._next(walker, view):
            record = view.directories.get(node.ino)
            if record is None or not self._tree.metadata.fresh(record.listed_at):
                entry = self._tree.fact(node, caller)
                if entry is None:
                    continue
                at_once = min(AT_ONCE, self._tree.calls.capabilities(entry.entry).requests_max)
                if len(self._ahead) >= max(1, at_once - 1):  # one is for who does not wait for these
                    return
                if self._tree.listings.current(view, node) is None and (id(view), node.ino) not in self._ahead:
                    self._ahead.add((id(view), node.ino))
                    self._tree.listings.spawn(self._list, walker, view, node, caller)
            if node.ino not in walker.opened:
                ahead += 1
                names += len(record.names) if record is not None else 0
            if ahead >= AHEAD_MAX or names > self._names_max:
                return

    async def _list(self, walker: _Walker, view: View, node: Node, caller: Caller) -> None:
        listing: Listing | None = None
        try:
            listing = await self._tree.to_read(node, caller)
            self.prefetched += 1
            await listing.finish()
        except BackendError:
            return  # whoever opens it asks again, and hears why
        finally:
            self._ahead.discard((id(view), node.ino))
            if listing is not None:
                listing.leave()
        if walker.walking:
            self._go_on(walker, caller)

    def _next(self, walker: _Walker, view: View) -> Iterator[Node]:
        """Go over the directories from here on in the order of a walk in depth, as far as they are known."""
        inodes = self._tree.inodes
        here = inodes.get(walker.here)
        if here is None:
            return
        yield here
        yield from self._below(walker, view, here)
        while here.ino != walker.top and here.ino != ROOT:
            above = inodes.get(here.parent)
            if above is None or above.ino not in walker.opened:
                return
            siblings = self._children(walker, view, above.ino)
            try:
                at = siblings.index(here) + 1
            except ValueError:
                at = 0
            for sibling in siblings[at : at + 2 * AHEAD_MAX]:
                if sibling.ino not in walker.opened:
                    yield sibling
                    yield from self._below(walker, view, sibling)
            here = above

    def _below(self, walker: _Walker, view: View, node: Node) -> Iterator[Node]:
        for child in self._children(walker, view, node.ino)[: 2 * AHEAD_MAX]:
            if child.ino not in walker.opened:
                yield child
                yield from self._below(walker, view, child)

    def _children(self, walker: _Walker, view: View, ino: Ino) -> list[Node]:
        """Return the directories in a directory whose listing is whole, in the order in which the walk takes them."""
        record = view.directories.get(ino)
        if record is None or record.listed_at is None:
            return []
        kept = walker.children.get(ino)
        if kept is None or kept[0] != record.listed_at:
            found = (self._tree.inodes.get(number) for number in record.names.values())
            children = [node for node in found if node is not None and node.kind is Kind.DIRECTORY]
            if walker.by_name:
                children.sort(key=lambda node: node.name)
            kept = walker.children[ino] = (record.listed_at, children)
        return kept[1]
