"""One inode: its number, its place, and what few inodes have besides.

Vfs layer, below `inodes`, which keeps all of them. A tree may have a million, so what only some have at a time (open
files, attributes kept here, second names) is in an object of its own that the others do without, and a key that
follows from the place is not stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NewType

import attrs

from fusekit.types import Attributes, Kind

if TYPE_CHECKING:
    from fusekit.vfs.file import File

Ino = NewType("Ino", int)

ROOT: Final = Ino(1)  # the kernel's number for the top of every FUSE mount

Place = tuple[Ino, str]
"""A directory's number and a name in it."""

Key = tuple[str, ...] | Place


@attrs.define(eq=False, weakref_slot=False)
class _Rare:
    """What an inode has while it is in use, or after this mount changed it."""

    opens: int = 0
    gone: bool = False
    unlinked: bool = False
    pages: str | None = None
    asked_again: bool = False
    kept: tuple[str, Attributes] | None = None
    links: set[Place] | None = None
    file: File | None = None


_NOTHING: Final = _Rare()  # read in place of one that is not there, never written


@attrs.define(eq=False, weakref_slot=False, init=False)
class Node:
    """One inode.

    ``parent`` and ``name`` are its place (of several hard links one of them); ``gone`` after its last name went, and
    ``unlinked`` where it was this mount that took it away: what is written then has no place to go to any more.
    ``lookups`` counts the kernel's references, ``opens`` our handles. ``told`` is the content version whose attributes
    the kernel was last given, ``pages`` the one of which it may hold pages. ``kept`` are attributes that the service
    cannot store, with the version they belong to.
    """

    ino: Ino
    kind: Kind
    parent: Ino
    name: str
    lookups: int
    told: str | None
    # True: the place is the key. A string: the object's id is. Both follow from what is here anyway.
    _key: Key | str | Literal[True] | None
    _rare: _Rare | None

    def __init__(self, ino: Ino, kind: Kind, parent: Ino, name: str, key: Key | None) -> None:
        self.ino = ino
        self.kind = kind
        self.parent = parent
        self.name = name
        self.lookups = 0
        self.told = None
        self._rare = None
        self.key = key

    @property
    def key(self) -> Key | None:
        """What identifies this inode: its place, or what the service calls the object."""
        key = self._key
        if key is True:
            return (self.parent, self.name)
        return ("id", key) if isinstance(key, str) else key

    @key.setter
    def key(self, key: Key | None) -> None:
        if key is not None and len(key) == 2:
            if key[0] == "id":
                self._key = key[1]
                return
            if key == (self.parent, self.name):
                self._key = True
                return
        self._key = key

    @property
    def in_use(self) -> bool:
        """Return whether there is more to it than its number, its place and what the kernel was told."""
        return self._rare is not None

    @property
    def by_place(self) -> bool:
        """Return whether the place is what identifies this inode."""
        return self._key is True

    def put(self, place: Place) -> None:
        """Be at ``place`` from now on; the key stays."""
        self._key = self.key if self._key is True else self._key
        self.parent, self.name = place

    @property
    def referenced(self) -> bool:
        """Return whether the kernel, a handle or unsent data refers to this inode."""
        rare = self._rare
        return self.lookups > 0 or self.ino == ROOT or (rare is not None and (rare.opens > 0 or rare.file is not None))

    @property
    def plain(self) -> bool:
        """Return whether there is nothing about this inode that could not be learned again from the service."""
        return self._rare is None or (self._rare.kept is None and self._rare.links is None)

    def _own(self) -> _Rare:
        if self._rare is None:
            self._rare = _Rare()
        return self._rare

    @property
    def opens(self) -> int:
        return (self._rare or _NOTHING).opens

    @opens.setter
    def opens(self, value: int) -> None:
        self._own().opens = value

    @property
    def gone(self) -> bool:
        return (self._rare or _NOTHING).gone

    @gone.setter
    def gone(self, value: bool) -> None:
        self._own().gone = value

    @property
    def unlinked(self) -> bool:
        return (self._rare or _NOTHING).unlinked

    @unlinked.setter
    def unlinked(self, value: bool) -> None:
        self._own().unlinked = value

    @property
    def pages(self) -> str | None:
        return (self._rare or _NOTHING).pages

    @pages.setter
    def pages(self, value: str | None) -> None:
        self._own().pages = value

    @property
    def asked_again(self) -> bool:
        return (self._rare or _NOTHING).asked_again

    @asked_again.setter
    def asked_again(self, value: bool) -> None:
        if value or self._rare is not None:
            self._own().asked_again = value

    @property
    def kept(self) -> tuple[str, Attributes] | None:
        return (self._rare or _NOTHING).kept

    @kept.setter
    def kept(self, value: tuple[str, Attributes] | None) -> None:
        if value is not None or self._rare is not None:
            self._own().kept = value

    @property
    def links(self) -> set[Place] | None:
        return (self._rare or _NOTHING).links

    @links.setter
    def links(self, value: set[Place] | None) -> None:
        self._own().links = value

    @property
    def file(self) -> File | None:
        return (self._rare or _NOTHING).file

    @file.setter
    def file(self, value: File | None) -> None:
        self._own().file = value
