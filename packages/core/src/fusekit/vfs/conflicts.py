"""Conflicts: somebody else changed a file while it was written here, and only one version can have the name.

Vfs layer, below `commits`. The remote side (or the look just before a commit) said that what was to be replaced is not
what is there, and that it is not our own work either. What becomes of it is the user's choice, and never silent: an
error, a second file beside the first, or the last word.
"""

from __future__ import annotations

import logging
import re
import socket
import time
from typing import Final

from fusekit import names
from fusekit.errors import BackendError, Exists, NotFound, Stale
from fusekit.journal.uploader import Generation, Uploader
from fusekit.settings import OnConflict
from fusekit.transfer.calls import Calls
from fusekit.types import Caller, Entry, Kind
from fusekit.vfs.inodes import Node
from fusekit.vfs.tree import Tree

logger = logging.getLogger(__name__)

# Others may go on writing while we want the last word, or take the very name that was free.
_TRIES: Final = 5


class Conflicts:
    """Decides conflicts as the mount was told to."""

    def __init__(self, tree: Tree, calls: Calls, uploader: Uploader, choice: OnConflict) -> None:
        self._tree = tree
        self._calls = calls
        self._uploader = uploader
        self._choice = choice

    async def settle(
        self, node: Node, parent: Node, directory: Entry, generation: Generation, error: BackendError, caller: Caller
    ) -> Entry:
        """Send ``generation`` of ``node`` all the same and return what is there now; raise ``error`` where it must not.

        With a second file the inode goes to that name: what is open here stays what it is.
        """
        if self._choice is OnConflict.OVERWRITE:
            return await self._overwrite(node, directory, generation, error, caller)
        if self._choice is OnConflict.KEEP_BOTH:
            return await self._beside(node, parent, directory, generation, error, caller)
        raise error

    async def _overwrite(
        self, node: Node, directory: Entry, generation: Generation, error: BackendError, caller: Caller
    ) -> Entry:
        path = self._tree.inodes.path(node)
        for _ in range(_TRIES):
            try:
                there: Entry | None = (await self._calls.find(directory, node.name, None, caller)).within(directory)
            except NotFound:
                there = None
            if there is not None and there.kind is not Kind.FILE:
                raise error
            generation.rewind()
            try:
                entry = await self._uploader.commit(directory, node.name, there, generation, caller)
            except (Exists, Stale) as again:
                error = again
                continue
            logger.warning("%s was changed by somebody else meanwhile, and is overwritten (--on-conflict)", path)
            return entry
        raise error

    async def _beside(
        self, node: Node, parent: Node, directory: Entry, generation: Generation, error: BackendError, caller: Caller
    ) -> Entry:
        path, name = self._tree.inodes.path(node), node.name
        bytes_max = min(self._calls.capabilities(directory).name_bytes_max, names.NAME_BYTES_MAX)
        for number in range(_TRIES):
            other = conflict_name(name, bytes_max, number)
            generation.rewind()
            try:
                entry = await self._uploader.commit(directory, other, None, generation, caller)
            except (Exists, Stale):
                continue
            logger.warning("%s was changed by somebody else meanwhile; what was written here is in %r", path, other)
            self._tree.stepped_aside(node, parent, entry.name, caller)
            return entry
        raise error


def conflict_name(name: str, bytes_max: int, number: int = 0) -> str:
    """Return the name for the version of this host beside ``name``, of at most ``bytes_max`` bytes."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:64] or "here"
    when = time.strftime("%Y-%m-%d %H.%M.%S", time.localtime())
    tail = f" (conflict {host} {when}{f' {number + 1}' if number else ''})"
    room = max(1, bytes_max - len(names.encode(tail)))
    while len(names.encode(name)) > room:
        name = name[:-1]
    return name + tail
