"""The inode table: numbers, identity, the place of each inode in the tree, and the kernel's references.

Vfs layer. A number is a 63-bit hash of the mount and the object's ``id``, or without one of the parent's number and
the name, so that the same file has the same number after a remount. A number is not reused while anything refers to
it: an inode that lost its name keeps it until the kernel forgets, and whoever comes to that name gets the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

from fusekit.types import Entry, Kind
from fusekit.vfs.node import ROOT, Ino, Key, Node, Place

__all__ = ["ROOT", "Ino", "Inodes", "Key", "Node", "Place"]

# SQLite keeps signed 64-bit integers, and 0 and 1 mean "none" and the root to the kernel.
_NUMBER_MASK: Final = (1 << 63) - 1


class Inodes:
    """All inodes of a mount."""

    def __init__(self, identity: str) -> None:
        self._identity = blake2b(identity.encode()).digest()
        self._nodes: dict[Ino, Node] = {ROOT: Node(ROOT, Kind.DIRECTORY, ROOT, "", ("root",))}
        # Inodes whose number is not the hash of their key: renamed, or given a new object by a write.
        self._elsewhere: dict[Key, Ino] = {}
        self._children: dict[Ino, int] = {}
        # All numbers, those first that were met or last considered the longest ago. A number that was dropped stays
        # in it until its turn comes.
        self._ages: deque[Ino] = deque()

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    def get(self, ino: int) -> Node | None:
        """Return the inode ``ino``, None where it is not known (any more)."""
        return self._nodes.get(Ino(ino))

    @property
    def root(self) -> Node:
        return self._nodes[ROOT]

    def place(self, parent: Node, name: str, entry: Entry) -> Node:
        """Return the inode for ``entry`` at ``name`` of ``parent``, made where there is none yet."""
        key = self._key(parent, name, entry)
        number, node, step = self._find(key)
        if node is not None and node.kind is not entry.kind:
            self.detach(node)  # another kind of thing came to the same place
            number, node, step = self._find(key)
        if node is None:
            node = Node(number, entry.kind, parent.ino, name, key)
            if step:
                self._elsewhere[key] = number
            self._enter(node)
            return node
        if (node.parent, node.name) != (parent.ino, name):
            if entry.kind is Kind.DIRECTORY:
                self.move(node, (node.parent, node.name), (parent.ino, name))
            else:
                self._link(node, parent, name)
        return node

    def same(self, ino: int, parent: Node, entry: Entry) -> Node | None:
        """Return the inode ``ino`` if plainly ``entry`` in ``parent`` is what it stood for before; None: find out."""
        node = self._nodes.get(Ino(ino))
        if node is None or entry.id is not None or node.kind is not entry.kind or not node.by_place:
            return None
        return node if node.name == entry.name and node.parent == parent.ino and node.links is None else None

    def loops(self, parent: Node, entry: Entry) -> bool:
        """Return whether ``entry`` is a directory that ``parent`` lies in."""
        if entry.id is None or entry.kind is not Kind.DIRECTORY:
            return False
        node = self._find(("id", entry.id))[1]
        return node is not None and self.below(parent, node)

    def move(self, node: Node, here: Place, there: Place) -> None:
        """Take ``node`` from one of its places to another; its number stays."""
        if node.links is not None:
            node.links = (node.links - {here}) | {there}
        keyed = node.key == here
        if (node.parent, node.name) == here:
            self._count(here[0], -1)
            self._count(there[0], 1)
            node.put(there)
        if keyed:
            self.rekey(node, there)

    def identify(self, node: Node, parent: Node, name: str, entry: Entry) -> None:
        """Let ``node`` stand for the object ``entry``, which a write or rename of this mount put there."""
        self.rekey(node, self._key(parent, name, entry))

    def rekey(self, node: Node, key: Key | None) -> None:
        """Find ``node`` by ``key`` from now on; None: by its number only."""
        if node.key is not None and self._elsewhere.get(node.key) == node.ino:
            del self._elsewhere[node.key]
        node.key = key
        if key is not None:
            other = self._find(key)[1]
            if other is not None and other is not node:
                self.rekey(other, None)
            if self._hash(key, 0) != node.ino:
                self._elsewhere[key] = node.ino

    def swap(self, one: Node, here: Place, other: Node, there: Place) -> None:
        """Let ``one`` at ``here`` and ``other`` at ``there`` change places; their numbers stay."""
        keys = [(one, there if one.key == here else one.key), (other, here if other.key == there else other.key)]
        for node, _ in keys:
            if node.key is not None and self._elsewhere.get(node.key) == node.ino:
                del self._elsewhere[node.key]
        for node, key in keys:
            node.key = key
            if key is not None and self._hash(key, 0) != node.ino:
                self._elsewhere[key] = node.ino
        self.move(one, here, there)
        self.move(other, there, here)

    def detach(self, node: Node) -> None:
        """Take the names of ``node`` away; it lives on by its number while something refers to it."""
        self.rekey(node, None)
        node.gone = True
        self.drop(node)

    def unlink(self, node: Node, parent: Node, name: str) -> None:
        """Take one name of ``node`` away, and the inode with the last one."""
        if node.links:
            node.links.discard((parent.ino, name))
            if node.links:
                if (node.parent, node.name) == (parent.ino, name):
                    self._count(node.parent, -1)
                    node.put(next(iter(node.links)))
                    self._count(node.parent, 1)
                return
        self.detach(node)

    def looked_up(self, node: Node) -> None:
        """Count a reference that the kernel was just given."""
        self.present(node).lookups += 1

    def present(self, node: Node) -> Node:
        """Return the inode that has the number of ``node``: itself, back in the table if it was evicted meanwhile."""
        there = self._nodes.get(node.ino)
        if there is None:
            self._enter(node)
        return there or node

    def forget(self, ino: int, count: int) -> Node | None:
        """Take ``count`` of the kernel's references back, and return the inode."""
        node = self._nodes.get(Ino(ino))
        if node is not None:
            node.lookups = max(0, node.lookups - count)
        return node

    def evict(self, node: Node) -> bool:
        """Take an inode out that has its name and nothing else; return whether it went.

        The next who meets the name finds the same number again. What would not be found again stays: a number that is
        no hash of the key, kept attributes, second names.
        """
        if node.referenced or not node.plain or node.gone or node.key is None or self._children.get(node.ino):
            return False
        if self._nodes.get(node.ino) is not node or (self._elsewhere and node.key in self._elsewhere):
            return False
        del self._nodes[node.ino]
        self._count(node.parent, -1)
        return True

    def oldest(self, count: int) -> Iterator[Node]:
        """Go over the ``count`` inodes whose turn it is, each of which then gets to the end of the row."""
        ages = self._ages
        if len(ages) > 2 * len(self._nodes) + 1024:  # mostly numbers that were dropped
            self._ages = ages = deque(ino for ino in dict.fromkeys(ages) if ino in self._nodes)
        for _ in range(min(count, len(ages))):
            node = self._nodes.get(ages.popleft())
            if node is not None:
                yield node
                if self._nodes.get(node.ino) is node:
                    ages.append(node.ino)

    def drop(self, node: Node) -> bool:
        """Drop ``node`` if nothing refers to it any more, neither children; return whether it is gone."""
        if node.referenced or self._children.get(node.ino) or self._nodes.get(node.ino) is not node:
            return False
        self.rekey(node, None)
        del self._nodes[node.ino]
        self._count(node.parent, -1)
        return True

    def path(self, node: Node) -> str:
        """Return the path of ``node`` below the mount point, starting with a slash; for people, not for decisions."""
        parts: list[str] = []
        while node.ino != ROOT:
            parts.append(node.name)
            parent = self._nodes.get(node.parent)
            if parent is None:
                break
            node = parent
        return "/" + "/".join(reversed(parts))

    def below(self, node: Node, ancestor: Node) -> bool:
        """Return whether ``node`` is ``ancestor`` or lies below it."""
        while node is not ancestor:
            above = self._nodes.get(node.parent)
            if node.ino == ROOT or above is None:
                return False
            node = above
        return True

    def _key(self, parent: Node, name: str, entry: Entry) -> Key:
        if entry.id is None:
            return (parent.ino, name)
        if entry.kind is not Kind.DIRECTORY:
            return ("id", entry.id)
        # A directory has one number a path: the same object met at a second path is a second directory, unless the
        # first place is no longer taken (it was renamed by somebody else).
        key: Key = ("id", entry.id)
        node = self._find(key)[1]
        if node is None or (node.parent, node.name) == (parent.ino, name) or not node.referenced:
            return key
        return ("id", entry.id, str(parent.ino), name)

    def _find(self, key: Key) -> tuple[Ino, Node | None, int]:
        """Return the number for ``key``, the inode that has it (None where it is free), and how many were taken before."""
        moved = self._elsewhere.get(key) if self._elsewhere else None
        if moved is not None:
            return moved, self._nodes[moved], 0
        step = 0
        while True:
            number = self._hash(key, step)
            node = self._nodes.get(number)
            if node is None or node.key == key:
                return number, node, step
            step += 1

    def _hash(self, key: Key, step: int) -> Ino:
        text = "\0".join(map(str, (*key, step) if step else key)).encode("utf-8", "surrogateescape")
        while True:
            number = int.from_bytes(blake2b(text, digest_size=8, key=self._identity).digest(), "big") & _NUMBER_MASK
            if number > ROOT:
                return Ino(number)
            text += b"\0"

    def _enter(self, node: Node) -> None:
        self._nodes[node.ino] = node
        self._ages.append(node.ino)
        self._count(node.parent, 1)

    def _link(self, node: Node, parent: Node, name: str) -> None:
        if node.links is None:
            node.links = {(node.parent, node.name)}
        node.links.add((parent.ino, name))

    def _count(self, ino: Ino, by: int) -> None:
        """Count the children of a directory: it stays in the table while it has any, so that paths stay whole."""
        left = self._children.get(ino, 0) + by
        if left > 0:
            self._children[ino] = left
        else:
            self._children.pop(ino, None)
