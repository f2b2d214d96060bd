"""Reading directories: handles, the names they show, and the references that the kernel takes with them.

Vfs layer, part of the upper side that `filesystem` puts together. Which names there are is `tree`'s and `listings`'
affair; here is what a program that reads them gets, call by call.
"""

from __future__ import annotations

from typing import Final

import trio

from fusekit.cache.metadata import Fact
from fusekit.errors import BackendError, NotFound, Stale
from fusekit.journal.uploader import version_of
from fusekit.types import Caller, Entry, Want
from fusekit.vfs.attributes import Attr
from fusekit.vfs.file import File
from fusekit.vfs.files import Files
from fusekit.vfs.handles import DirectoryHandle, HandleId, Handles
from fusekit.vfs.places import Places
from fusekit.vfs.shown import Shown
from fusekit.vfs.tree import Tree
from fusekit.vfs.uploads import UPLOADS_MAX
from fusekit.vfs.walks import Walks

# How many entries one call of `readdir` returns. The kernel's buffer holds two dozen with their attributes, or some
# hundreds (from Linux 6.16 on); what is made beyond its end is thrown away and made again.
READDIR_CHUNK: Final = 64

# How many names are looked at, when one opens, of those that are over the budget.
TRIM_AT_OPEN: Final = 64


class Directories:
    """The directory handles of one mount, and what is read through them."""

    def __init__(self, tree: Tree, files: Files, handles: Handles, places: Places, shown: Shown) -> None:
        self._tree = tree
        self._files = files
        self._handles = handles
        self._places = places
        self._shown = shown
        self.walks = Walks(tree)

    async def open(self, ino: int, caller: Caller) -> HandleId:
        """Open a directory for reading its names."""
        node = self._tree.node(ino)
        await self._tree.directory(node, caller)
        await self._places.allowed(node, Want.LIST, caller)
        self._tree.trim(TRIM_AT_OPEN)
        self.walks.opened(node, caller)
        return self._handles.add(DirectoryHandle(node, caller))

    async def read(self, handle: int, start: int) -> list[tuple[str, Attr]]:
        """Return names from position ``start`` on, ``.`` and ``..`` first, as soon as there are any; none at the end.

        Position 0 reads afresh.
        """
        opened = self._handles.directory(handle)
        try:
            if opened.listing is None or start == 0:
                self._leave(opened)
                opened.listing = await self._tree.to_read(opened.node, opened.caller)
                self._tree.reading[opened.node.ino] += 1
            if not await opened.listing.reach(start):
                return []
        except NotFound as error:
            if opened.node.gone:
                raise
            # ENOENT from readdir is the end of the directory to glibc: right for one that was removed here, but
            # one that vanished at the remote side would look empty, and `rsync --delete` would believe it.
            self._tree.metadata.expire(opened.node.ino)
            raise Stale(f"{self._tree.inodes.path(opened.node)} is gone at the remote side") from error
        return self._attributes(opened, start)

    def _attributes(self, opened: DirectoryHandle, start: int) -> list[tuple[str, Attr]]:
        tree, listing, caller = self._tree, opened.listing, opened.caller
        assert listing is not None
        view = tree.view(caller)
        record = view.directory(opened.node.ino)
        fold = tree.capabilities_of(opened.node, caller).fold
        found: list[tuple[str, Attr]] = []
        for at in range(start, min(start + READDIR_CHUNK, len(listing.names))):
            name, node = listing.names[at], listing.nodes[at]
            if not node.gone:
                node = tree.inodes.present(node)
            fact = view.facts.get(node.ino)
            if fact is None and node.file is None:
                # Gone from memory meanwhile: the name stays at its position, to be asked for when it is used.
                fact = Fact(Entry(name, node.kind), float("-inf"))
            named = at < 2 or record.names.get(name if fold is None else fold(name)) == node.ino
            found.append((name, self._shown.attr(node, fact, named=named)))
        return found

    def more(self, handle: int, start: int) -> bool:
        """Return whether there are names from position ``start`` on that need not be waited for."""
        listing = self._handles.directory(handle).listing
        return listing is not None and listing.has(start)

    def listed(self, handle: int, attr: Attr) -> None:
        """Count a reference that the kernel was given with a directory entry, and what it was told with it."""
        node = self._tree.inodes.get(attr.ino)
        if node is None:
            return
        node.lookups += 1
        if attr.valid_s > 0:
            fact = self._tree.fact(node, self._handles.directory(handle).caller)
            if fact is not None:
                node.told = version_of(fact)

    def release(self, handle: int) -> None:
        """Close a directory."""
        self._leave(self._handles.directory(handle))
        self._handles.remove(handle)

    def _leave(self, opened: DirectoryHandle) -> None:
        listing, opened.listing = opened.listing, None
        if listing is None:
            return
        listing.leave()
        self._tree.reading[opened.node.ino] -= 1
        if not self._tree.reading[opened.node.ino]:
            del self._tree.reading[opened.node.ino]

    async def sync(self, handle: int) -> None:
        """Return when the remote side has every change of names below the directory, and what was written there."""
        opened = self._handles.directory(handle)
        inodes = self._tree.inodes
        places = trio.CapacityLimiter(UPLOADS_MAX)
        failed: list[BackendError] = []

        async def commit(file: File) -> None:
            try:
                async with places:
                    await self._files.commits.commit(file, opened.caller)
            except BackendError as error:
                failed.append(error)

        async with trio.open_nursery() as nursery:
            for node in inodes:
                if node.file is not None and node.file.unsent and not node.gone and inodes.below(node, opened.node):
                    nursery.start_soon(commit, node.file)
        if failed:
            raise failed[0]
