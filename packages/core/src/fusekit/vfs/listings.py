"""Listings under way: one for a directory and a view, read by any number while its pages still come.

Vfs layer, beside `tree`, whose names and inodes the pages go into. A `Listing` is what its readers see: an order of
names that only grows, so that none repeats or vanishes between two calls, whatever becomes of the names meanwhile.
It is made by a task of its own, because a reader gets the first page while the rest is on its way, and ends with the
last who wants it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from fusekit import names
from fusekit.cache.listings import ENTRIES_MAX
from fusekit.cache.metadata import Directory, View
from fusekit.errors import Aborted, BackendError, Invalid
from fusekit.types import Caller, Capabilities, Entry
from fusekit.vfs.node import Node

if TYPE_CHECKING:
    from fusekit.vfs.tree import Tree

logger = logging.getLogger(__name__)

# Entries that are taken in without a break: a page may be a whole directory, and the loop serves others meanwhile.
STRIDE: Final = 500

# A directory of more names is listed like any other, and named in the log: programs that sort, and people, suffer.
LONG_FROM: Final = 100_000


@attrs.define(eq=False)
class Listing:
    """The names of one directory in the order in which they became known, ``.`` and ``..`` first.

    ``began`` is on trio's clock. ``ending``: it was given up, and has not noticed yet. ``done``: no more will come, and
    ``error`` is why if that is not all.
    """

    began: float
    expired: int
    names: list[str]
    nodes: list[Node]
    done: bool = False
    error: BaseException | None = None
    users: int = 0
    ending: bool = False
    _moved: trio.Event = attrs.field(init=False, factory=trio.Event)
    _scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)

    @property
    def under_way(self) -> bool:
        return not self.done

    def has(self, start: int) -> bool:
        """Return whether there is a name at position ``start`` and, of those on their way, a first one as well."""
        return len(self.names) > max(start, 2) or (self.done and self.error is None and len(self.names) > start)

    async def reach(self, start: int) -> bool:
        """Wait for the name at position ``start`` and return whether there is one.

        Raises:
            BackendError: the listing failed before it came so far.
        """
        while not self.has(start):
            if self.done:
                self.check()
                return False
            await self.next()
        return True

    async def finish(self) -> None:
        """Wait for the end.

        Raises:
            BackendError: it failed.
        """
        while not self.done:
            await self.next()
        self.check()

    async def next(self) -> None:
        """Wait until more came, or the end."""
        await self._moved.wait()

    def check(self) -> None:
        """Raise what ended the listing before its time."""
        if self.done and self.error is not None:
            raise self.error

    def join(self) -> None:
        """Count one more who wants this listing."""
        self.users += 1

    def leave(self) -> None:
        """Want it no more; without anybody who does it ends, unless the page on its way is the last."""
        self.users -= 1

    def go_on(self) -> None:
        """Take another page, if anybody wants it."""
        if not self.users:
            self.ending = True
            self._scope.cancel()
        self.moved()

    def moved(self) -> None:
        """Wake those who wait."""
        self._moved.set()
        self._moved = trio.Event()


class Listings:
    """The listings under way of one mount."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._under_way: dict[tuple[int, int], Listing] = {}
        self._nursery: trio.Nursery | None = None
        self.long_directories = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Be the owner of the tasks that list; they end with the block, and what the block raises leaves it as it is."""
        failed: BaseException | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self._tree.remembered is not None:
                nursery.start_soon(self._tree.remembered.write)
            try:
                yield
            except (trio.Cancelled, GeneratorExit):
                raise
            except BaseException as error:  # noqa: BLE001 - raised below; a nursery would put it into a group
                failed = error
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed

    def current(self, view: View, node: Node) -> Listing | None:
        """Return the listing of ``node`` that is under way."""
        return self._under_way.get((id(view), node.ino))

    async def whole(self, node: Node, caller: Caller, until: Callable[[], bool] = lambda: False) -> Directory:
        """List ``node``, or wait for who does, and return its record: when it is whole, or ``until`` says true.

        The listing then goes on to its end, whoever waits for it: what it brings is what was to be saved.
        """
        view = self._tree.view(caller)
        listing = await self.begin(view, node, caller)  # never left: it goes on to its end
        while listing.under_way and not until():
            await listing.next()
        listing.check()
        return view.directory(node.ino)

    async def begin(self, view: View, node: Node, caller: Caller) -> Listing:
        """Return a listing of ``node``, which the caller leaves some time; the one that is under way if there is one.

        Where nothing that is known may be believed, or since it was said that the directory changed, one that began
        before does not answer the question.
        """
        while (listing := self.current(view, node)) is not None:
            listing.join()
            stands = listing.expired == view.directory(node.ino).expired
            if self._tree.metadata.ttl_s > 0 and stands and not listing.ending:
                return listing
            try:
                await listing.finish()
            except BackendError:
                pass
            finally:
                listing.leave()
        return self.start(view, node, caller)

    def start(self, view: View, node: Node, caller: Caller) -> Listing:
        """Begin to list ``node``; nobody must be at it."""
        if self._nursery is None:
            raise Aborted("the mount is ending")
        expired = view.directory(node.ino).expired
        listing = Listing(trio.current_time(), expired, [".", ".."], [node, self._tree.node(node.parent)])
        listing.join()
        self._under_way[id(view), node.ino] = listing
        self._nursery.start_soon(self._run, view, node, caller, listing)
        return listing

    def spawn(self, call: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run ``call(*args)``, which lets no error out, beside everything else until the mount ends."""
        if self._nursery is not None:
            self._nursery.start_soon(call, *args)

    async def _run(self, view: View, node: Node, caller: Caller, listing: Listing) -> None:
        listing.error = Aborted("the listing was given up")
        try:
            with listing._scope:
                await self._list(view, node, caller, listing)
                listing.error = None
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            listing.error = error
        finally:
            del self._under_way[id(view), node.ino]
            listing.done = True
            listing.moved()

    async def _list(self, view: View, node: Node, caller: Caller, listing: Listing) -> None:
        tree = self._tree
        directory, capabilities = await tree.directory(node, caller)
        record = view.directory(node.ino)
        taking = _Taking(tree, view, node, record, directory, capabilities, listing)
        await tree.calls.list(directory, taking.page, caller)
        taking.finish()
        self._measure(node, record)
        tree.listed(view, directory, record, taking.entries)

    def _measure(self, node: Node, record: Directory) -> None:
        if len(record.names) > LONG_FROM and not record.long:
            record.long = True
            self.long_directories += 1
            path = self._tree.inodes.path(node)
            logger.warning("%s has %d names: programs that sort or show them all are slow", path, len(record.names))


class _Taking:
    """Takes the pages of one listing in."""

    def __init__(
        self, tree: Tree, view: View, node: Node, record: Directory, directory: Entry, capabilities: Capabilities,
        listing: Listing,
    ) -> None:  # fmt: skip
        self._tree = tree
        self._view = view
        self._node = node
        self._record = record
        self._directory = directory
        self._capabilities = capabilities
        self._listing = listing
        self._began = trio.current_time()
        self._changes, self._losses = record.changes, record.losses
        self._seen: dict[str, int] = {}  # by key, the position in the listing
        self._entries: dict[str, Entry] | None = {} if tree.remembered is not None else None

    @property
    def entries(self) -> Iterable[Entry] | None:
        """What came, to be kept for the next mount; None where it is too much."""
        return self._entries.values() if self._entries is not None else None

    async def page(self, entries: Sequence[Entry]) -> None:
        """Take the next entries, a stride at a time, and let readers go on with them."""
        for start in range(0, len(entries), STRIDE):
            self._take(entries[start : start + STRIDE])
            self._listing.go_on()
            self._tree.trim(min(STRIDE, len(entries) - start))
            await trio.lowlevel.checkpoint()

    def _take(self, entries: Sequence[Entry]) -> None:
        fold, record, listing = self._capabilities.fold, self._record, self._listing
        now = trio.current_time()
        for entry in entries:
            name = entry.name
            reason = names.problem(name, bytes_max=names.NAME_BYTES_MAX)
            if reason is not None:
                self._tree.left_out(self._node, name, f"which {reason}")
                continue
            key = name if fold is None else fold(name)
            if record.local and record.changed_since(key, self._changes):
                continue
            try:
                child = self._tree.learn(self._view, self._node, record, key, entry, self._directory.ref, now)
            except Invalid as error:
                self._tree.left_out(self._node, name, str(error))
                continue
            if self._entries is not None:
                self._entries[key] = entry
            at = self._seen.get(key)
            if at is None:
                self._seen[key] = len(listing.names)
                listing.names.append(child.name if child.name == name else name)
                listing.nodes.append(child)
            else:
                listing.nodes[at] = child
        if self._entries is not None and len(self._entries) > ENTRIES_MAX:
            self._entries = None

    def finish(self) -> None:
        """Take the names away that did not come, and add those that this mount made meanwhile."""
        tree, record, seen = self._tree, self._record, self._seen
        for key in [key for key in record.names if key not in seen]:
            if not record.changed_since(key, self._changes):
                tree.lost(self._view, record, self._node, key)
        whole = record.losses == self._losses and record.expired == self._listing.expired
        record.misses.clear()
        record.cold_at = None
        record.names_only = False
        record.listed_at = self._began if whole else None
        record.local = {key: change for key, change in record.local.items() if change > self._changes}
        shown = tree.names_in(self._node, record, self._capabilities, without=seen)
        self._listing.names.extend(name for name, _ in shown)
        self._listing.nodes.extend(child for _, child in shown)
