"""Whose turn it is to change an inode at the remote side.

Vfs layer. A commit, a rename, a removal and a change of attributes of one inode take turns, each over its whole call,
because each uses the name and the address that another one changes. A directory that is renamed waits for everything
under way in and below it, and holds up what would begin there: addresses below it change with it. A turn is taken for
all inodes and directories it concerns at once, so two of them never wait for each other; none is asked for inside
another. Whoever waited for a turn looks again whether names and addresses are still what they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

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

    @asynccontextmanager
    async def take(self, *nodes: Node | None, inside: tuple[Node, ...] = ()) -> AsyncIterator[None]:
        """Wait for a turn at each of ``nodes`` and hold all of them, and keep the directories ``inside`` where they are.

        Any number of those who take turns may be inside a directory at once.
        """
        mine = {node for node in nodes if node is not None}
        while mine & self._held or self._under_a_move(mine.union(inside)):
            await self._over.wait()
        with self._holding(mine, inside):
            yield

    @asynccontextmanager
    async def move(self, directory: Node, *others: Node | None, inside: tuple[Node, ...] = ()) -> AsyncIterator[None]:
        """Wait until nothing is under way in or below ``directory``, and let nothing begin there; as `take` for the rest."""
        mine = {node for node in (directory, *others) if node is not None}
        directories = list(mine)  # of an exchange the other one moves as well
        while mine & self._held or self._under_a_move(mine.union(inside)) or self._busy_below(directories):
            await self._over.wait()
        with self._holding(mine, inside):
            self._moving += directories
            try:
                yield
            finally:
                for node in directories:
                    self._moving.remove(node)

    @contextmanager
    def _holding(self, nodes: set[Node], inside: tuple[Node, ...]) -> Iterator[None]:
        self._held |= nodes
        self._inside.update(inside)
        try:
            yield
        finally:
            self._held -= nodes
            self._inside.subtract(inside)
            self._inside += Counter()  # without those at zero
            self._over.set()
            self._over = trio.Event()

    def _under_a_move(self, nodes: set[Node]) -> bool:
        return any(self._inodes.below(node, moving) for moving in self._moving for node in nodes)

    def _busy_below(self, directories: list[Node]) -> bool:
        busy = [*self._held, *self._inside]
        return any(self._inodes.below(node, directory) for directory in directories for node in busy)
