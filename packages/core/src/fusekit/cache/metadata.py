"""What the remote side told about names and attributes, and when; one view for each principal.

Cache layer. Keyed by inode number and, inside a directory, by folded name; knows nothing of handles, local changes
waiting to be sent, or the kernel. Nothing here asks the remote side: the vfs does and puts the answers in. Times are
trio's clock, in seconds.
"""

from __future__ import annotations

import attrs
import trio

from fusekit.types import Entry


@attrs.define(eq=False)
class Fact:
    """What was told about one inode, and when. ``suspect``: its address may have changed, ask by name before use."""

    entry: Entry
    at: float
    suspect: bool = False


@attrs.define(eq=False)
class Directory:
    """What is known of the names in one directory.

    ``names`` maps a folded name to its inode number; ``misses`` a folded name to when it was told not to exist.
    ``listed_at`` is when a listing was last complete. ``local`` holds the names changed by this mount with the
    number of the change, so that an answer which was under way meanwhile does not undo them. ``cold_at`` is when a
    name was last asked for one by one.
    """

    names: dict[str, int] = attrs.field(factory=dict)
    misses: dict[str, float] = attrs.field(factory=dict)
    listed_at: float | None = None
    local: dict[str, int] = attrs.field(factory=dict)
    changes: int = 0
    cold_at: float | None = None

    def changed(self, key: str) -> None:
        """Note that this mount changed the name."""
        self.changes += 1
        self.local[key] = self.changes

    def changed_since(self, key: str, changes: int) -> bool:
        """Return whether this mount changed the name after its change number ``changes``."""
        return self.local.get(key, 0) > changes


class View:
    """Everything known under one principal."""

    def __init__(self) -> None:
        self.facts: dict[int, Fact] = {}
        self.directories: dict[int, Directory] = {}

    def directory(self, ino: int) -> Directory:
        """Return the record of directory ``ino``, made empty at first."""
        record = self.directories.get(ino)
        if record is None:
            record = self.directories[ino] = Directory()
        return record

    def learn(self, ino: int, entry: Entry) -> Fact:
        """Keep what was just told about ``ino``."""
        fact = self.facts[ino] = Fact(entry, trio.current_time())
        return fact

    def forget(self, ino: int) -> None:
        """Drop what is known of ``ino``, as an inode and as a directory."""
        self.facts.pop(ino, None)
        self.directories.pop(ino, None)


class Metadata:
    """The views of a mount, by principal."""

    def __init__(self, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self._views: dict[str, View] = {}

    def view(self, principal: str) -> View:
        """Return the view of ``principal``, made empty at first."""
        found = self._views.get(principal)
        if found is None:
            found = self._views[principal] = View()
        return found

    def views(self) -> list[View]:
        """Return all views; a change by this mount concerns each."""
        return list(self._views.values())

    def fresh(self, at: float | None) -> bool:
        """Return whether something told at ``at`` may still be believed."""
        return at is not None and trio.current_time() - at < self.ttl_s

    def remaining_s(self, at: float) -> float:
        """Return for how much longer something told at ``at`` may be believed."""
        return max(0.0, at + self.ttl_s - trio.current_time())

    def forget(self, ino: int) -> None:
        """Drop what every view knows of ``ino``."""
        for view in self._views.values():
            view.forget(ino)

    def expire(self, ino: int) -> None:
        """Ask again before ``ino`` is believed, in every view; what it held is kept for comparison."""
        for view in self._views.values():
            if (fact := view.facts.get(ino)) is not None:
                fact.at = float("-inf")
            if (record := view.directories.get(ino)) is not None:
                record.listed_at = None
                record.misses.clear()
