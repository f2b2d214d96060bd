"""What a stat shows of an inode now: what the remote side told, what is kept here, and what a program just wrote.

Vfs layer. From memory only; what is too old to be shown is asked for before.
"""

from __future__ import annotations

import attrs

from fusekit.cache.metadata import Fact
from fusekit.settings import Settings
from fusekit.types import Kind
from fusekit.vfs.attributes import Attr, Shape, Told, token
from fusekit.vfs.inodes import Node
from fusekit.vfs.tree import Tree


class Shown:
    """Attributes of inodes, by the options of one mount."""

    def __init__(self, tree: Tree, settings: Settings) -> None:
        self._tree = tree
        self._shape = Shape(settings)

    def attr(self, node: Node, fact: Fact | None, *, named: bool = True) -> Attr:
        """Return the attributes from what is known, local changes on top.

        ``named`` False: the name under which they are handed out is not this inode's any more, and nobody is to
        believe it.
        """
        if not node.in_use and fact is not None:
            known_s = self._tree.metadata.remaining_s(fact.at) if named and self._tree.one_view else 0.0
            return self._shape.attr(node, fact, valid_s=0.0 if unmeasured(node, fact) else known_s)
        file = node.file
        local = file is not None and file.local
        entry = file.as_entry(fact.entry if fact is not None else None) if file is not None and local else None
        if entry is None:
            assert fact is not None, "an inode is known, or has local content"
            entry = fact.entry
        kept = None
        if node.kept is not None and fact is not None and node.kept[0] == token(fact.entry):
            kept = node.kept[1]
        if local and kept is not None and file is not None:
            kept = file.attributes.over(attrs.evolve(kept, mtime_ns=None))
        valid_s = 0.0
        if fact is not None and named and self._tree.one_view and not local:
            valid_s = self._tree.metadata.remaining_s(fact.at)
        if unmeasured(node, entry):
            valid_s = 0.0
        return self._shape.attr(node, entry, valid_s=valid_s, kept=kept, nlink=0 if node.gone else None)


def unmeasured(node: Node, told: Told) -> bool:
    """Return whether only reading tells the size, and nobody read it yet."""
    return told.size is None and node.kind is Kind.FILE
