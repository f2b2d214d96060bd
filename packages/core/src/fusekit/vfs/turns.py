"""Whose turn it is to change an inode at the remote side.

Vfs layer. A commit, a rename, a removal and a change of attributes of one inode take turns, each over its whole call,
because each uses the name and the address that another one changes. A directory that is renamed waits for everything
under way below it, and holds up what would begin there: addresses below it change with it. A turn is taken for all
inodes it concerns at once, so two of them never wait for each other; none is asked for inside another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from fusekit.vfs.inodes import Inodes, Node


class Turns:
    """The turns of one mount."""

    def __init__(self, inodes: Inodes) -> None:
        self._inodes = inodes
        self._held: set[Node] = set()
        self._inside: Counter[Node] = Counter()
        self._moving: list[Node] = []
        self._over = trio.Event()

    def taken(self, node: Node) -> bool:
        """Return whether somebody has a turn at ``node``."""
        return node in self._held

    @asynccontextmanager
    async def take(self, *nodes: Node | None) -> AsyncIterator[None]:
        """Wait for a turn at each of ``nodes`` and hold all of them."""
        mine = {node for node in nodes if node is not None}
        while mine & self._held or self._under_a_move(mine):
            await self._over.wait()
        self._held |= mine
        try:
            yield
        finally:
            self._held -= mine
            self._wake()

    @asynccontextmanager
    async def inside(self, directory: Node) -> AsyncIterator[None]:
        """Keep ``directory`` where it is while something is made in it; any number of these at once."""
        while self._under_a_move({directory}):
            await self._over.wait()
        self._inside[directory] += 1
        try:
            yield
        finally:
            self._inside[directory] -= 1
            if not self._inside[directory]:
                del self._inside[directory]
                self._wake()

    @asynccontextmanager
    async def move(self, directory: Node, *others: Node | None) -> AsyncIterator[None]:
        """Wait until nothing is under way in or below ``directory``, and let nothing begin there; as `take` for the rest."""
        mine = {node for node in (directory, *others) if node is not None}
        directories = list(mine)  # of an exchange the other one moves as well
        while mine & self._held or self._under_a_move(mine) or self._busy_below(directories):
            await self._over.wait()
        self._held |= mine
        self._moving += directories
        try:
            yield
        finally:
            self._held -= mine
            for node in directories:
                self._moving.remove(node)
            self._wake()

    def _under_a_move(self, nodes: set[Node]) -> bool:
        return any(self._inodes.below(node, moving) for moving in self._moving for node in nodes)

    def _busy_below(self, directories: list[Node]) -> bool:
        busy = [*self._held, *self._inside]
        return any(self._inodes.below(node, directory) for directory in directories for node in busy)

    def _wake(self) -> None:
        self._over.set()
        self._over = trio.Event()
