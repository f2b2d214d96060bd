"""What the remote side told about names and attributes, and when; one view for each principal.

Cache layer. Keyed by inode number and, inside a directory, by folded name; knows nothing of handles, local changes
waiting to be sent, or the kernel. Nothing here asks the remote side: the vfs does and puts the answers in. Times are
trio's clock, in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs
import trio

from fusekit.types import Entry, Io, Kind

# Files of a tree differ in name, size, time and version; what else there is comes in few combinations, of which each
# is kept once. Beyond this many they are no few, and the table would only cost.
_TRAITS_MAX: Final = 4096

_Traits = tuple[Kind, int | None, int | None, int | None, int, int, Io, bool]
"""Kind, mode, uid, gid, nlink, rdev, io, and whether the time of the last change is that of the content."""

_More = tuple[str, str | None, str | None, int | None, int | None, str | None, Mapping[str, bytes] | None]
"""Address, id, blob, ctime, atime, target, xattrs."""

_SUSPECT: Final = 1
_PLACED: Final = 2

_NO_MORE: Final[_More] = ("", None, None, None, None, None, None)
_traits: dict[_Traits, _Traits] = {}


@attrs.define(eq=False, weakref_slot=False, init=False)
class Fact:
    """What was told about one inode, and when. ``suspect``: its address may have changed, ask by name before use.

    The `Entry` is taken apart and put together again where it is asked for: so it takes half the memory, and there may
    be a million. ``placed``: the service told an address, which is the one of the directory with the name; it is not
    stored, but it may change with the place like any that was told.
    """

    name: str
    at: float
    version: str | None
    size: int | None
    mtime_ns: int | None
    _like: _Traits
    _more: _More
    _flags: int  # one field for two: an object of eight fits into 96 bytes

    def __init__(self, entry: Entry, at: float, suspect: bool = False) -> None:
        self.at = at
        self._flags = _SUSPECT if suspect else 0
        self.entry = entry

    @property
    def suspect(self) -> bool:
        return bool(self._flags & _SUSPECT)

    @suspect.setter
    def suspect(self, value: bool) -> None:
        self._flags = self._flags | _SUSPECT if value else self._flags & ~_SUSPECT

    @property
    def placed(self) -> bool:
        return bool(self._flags & _PLACED)

    @property
    def entry(self) -> Entry:
        """What was told; without an address where it is ``placed``."""
        kind, mode, uid, gid, nlink, rdev, io, same_time = self._like
        ref, identity, blob, ctime_ns, atime_ns, target, xattrs = self._more
        return Entry(
            self.name,
            kind,
            ref,
            identity,
            self.version,
            blob,
            self.size,
            self.mtime_ns,
            self.mtime_ns if same_time else ctime_ns,
            atime_ns,
            mode,
            uid,
            gid,
            nlink,
            rdev,
            target,
            xattrs,
            io,
        )

    @entry.setter
    def entry(self, entry: Entry) -> None:
        self._like, self._more = _apart(entry)
        if entry.ref:
            self._flags &= ~_PLACED
        self.name, self.version, self.size, self.mtime_ns = entry.name, entry.version, entry.size, entry.mtime_ns

    @property
    def ref(self) -> str:
        """The address that was told and is not ``placed``."""
        return self._more[0]

    @property
    def mode(self) -> int | None:
        return self._like[1]

    @property
    def uid(self) -> int | None:
        return self._like[2]

    @property
    def gid(self) -> int | None:
        return self._like[3]

    @property
    def nlink(self) -> int:
        return self._like[4]

    @property
    def rdev(self) -> int:
        return self._like[5]

    @property
    def ctime_ns(self) -> int | None:
        return self.mtime_ns if self._like[7] else self._more[3]

    @property
    def atime_ns(self) -> int | None:
        return self._more[4]

    @property
    def target(self) -> str | None:
        return self._more[5]

    @property
    def addressed(self) -> bool:
        """Return whether the service told an address, which may change when the place does."""
        return self.placed or bool(self._more[0])

    def place(self, directory_ref: str) -> None:
        """Leave the address out if it is the one that core gives to a name in the directory ``directory_ref``."""
        ref = self._more[0]
        if len(ref) == len(directory_ref) + 1 + len(self.name) and ref == f"{directory_ref}/{self.name}":
            more = ("", *self._more[1:])
            self._more = _NO_MORE if more == _NO_MORE else more
            self._flags |= _PLACED

    def says(self, entry: Entry, directory_ref: str | None) -> bool:
        """Return whether ``entry``, found in the directory ``directory_ref``, is what was told before."""
        if (entry.name, entry.version, entry.size, entry.mtime_ns) != (
            self.name,
            self.version,
            self.size,
            self.mtime_ns,
        ):
            return False
        like, more = _apart(entry)
        if self.placed:
            return like == self._like and more[1:] == self._more[1:] and more[0] == f"{directory_ref}/{self.name}"
        return like == self._like and more == self._more


def _apart(entry: Entry) -> tuple[_Traits, _More]:
    same_time = entry.ctime_ns is not None and entry.ctime_ns == entry.mtime_ns
    like = (entry.kind, entry.mode, entry.uid, entry.gid, entry.nlink, entry.rdev, entry.io, same_time)
    known = _traits.get(like)
    if known is None:
        known = like
        if len(_traits) < _TRAITS_MAX:
            _traits[like] = like
    ctime_ns = None if same_time else entry.ctime_ns
    more = (entry.ref, entry.id, entry.blob, ctime_ns, entry.atime_ns, entry.target, entry.xattrs)
    return known, (_NO_MORE if more == _NO_MORE else more)


@attrs.define(eq=False)
class Directory:
    """What is known of the names in one directory.

    ``names`` maps a folded name to its inode number; ``misses`` a folded name to when it was told not to exist.
    ``listed_at`` is when a listing was last complete. ``local`` holds the names changed by this mount with the
    number of the change, so that an answer which was under way meanwhile does not undo them. ``cold_at`` is when a
    name was last asked for one by one. ``names_only``: the names stand, but of what they name nothing is fresh.
    ``remembered``: it was looked for in what the last mount knew; ``before`` is then the version of the directory with
    which its names would stand, asked for once. ``long``: it was said that this directory is long.
    ``losses`` counts the names that were dropped for want of memory, ``expired`` how often it was said that what is
    known does not stand: a listing that began before does not either.
    """

    names: dict[str, int] = attrs.field(factory=dict)
    misses: dict[str, float] = attrs.field(factory=dict)
    listed_at: float | None = None
    local: dict[str, int] = attrs.field(factory=dict)
    changes: int = 0
    cold_at: float | None = None
    names_only: bool = False
    remembered: bool = False
    before: str | None = None
    long: bool = False
    losses: int = 0
    expired: int = 0

    def changed(self, key: str) -> None:
        """Note that this mount changed the name."""
        self.changes += 1
        self.local[key] = self.changes

    def changed_since(self, key: str, changes: int) -> bool:
        """Return whether this mount changed the name after its change number ``changes``."""
        return self.local.get(key, 0) > changes


class View:
    """Everything known under one principal."""

    def __init__(self, principal: str = "") -> None:
        self.principal = principal
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

    def lose(self, directory: int, key: str, ino: int) -> None:
        """Drop what is known of ``ino``, and with it that the listing of ``directory``, where it is ``key``, is whole."""
        self.forget(ino)
        record = self.directories.get(directory)
        if record is not None and record.names.get(key) == ino:
            del record.names[key]
            record.listed_at = None
            record.losses += 1

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
            found = self._views[principal] = View(principal)
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
                record.expired += 1
                record.misses.clear()
