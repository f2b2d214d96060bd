"""Handles: what an open file descriptor or directory of a program refers to.

Vfs layer. A handle keeps who opened it, because the kernel's reads, writes, flushes and releases come without a
caller. A directory handle keeps the listing that it began with, which only grows, so that names which come and go
between two calls neither repeat nor hide others.
"""

from __future__ import annotations

import os
from typing import Final, NewType

import attrs

from fusekit.cache.readahead import Reader
from fusekit.errors import Invalid
from fusekit.types import Caller
from fusekit.vfs.file import File
from fusekit.vfs.inodes import Node
from fusekit.vfs.listings import Listing

HandleId = NewType("HandleId", int)

_BAD_HANDLE: Final = "this handle is not open"


@attrs.define(eq=False)
class FileHandle:
    """An open file: its flags as given to open(2), who opened it, and how it is read."""

    file: File
    flags: int
    caller: Caller
    reader: Reader = attrs.field(factory=Reader)

    @property
    def reads(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writes(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def appends(self) -> bool:
        return bool(self.flags & os.O_APPEND)


@attrs.define(eq=False)
class DirectoryHandle:
    """An open directory and the names that it began to read, which may still be coming."""

    node: Node
    caller: Caller
    listing: Listing | None = None


class Handles:
    """All open handles of a mount."""

    def __init__(self) -> None:
        self._next = 1
        self._open: dict[HandleId, FileHandle | DirectoryHandle] = {}

    def __len__(self) -> int:
        return len(self._open)

    def files(self) -> list[tuple[HandleId, FileHandle]]:
        """Return the open files."""
        return [(number, handle) for number, handle in self._open.items() if isinstance(handle, FileHandle)]

    def add(self, handle: FileHandle | DirectoryHandle) -> HandleId:
        """Take ``handle`` in and return its number."""
        number = HandleId(self._next)
        self._next += 1
        self._open[number] = handle
        return number

    def file(self, number: int) -> FileHandle:
        """Return an open file."""
        handle = self._open.get(HandleId(number))
        if not isinstance(handle, FileHandle):
            raise Invalid(_BAD_HANDLE)
        return handle

    def directory(self, number: int) -> DirectoryHandle:
        """Return an open directory."""
        handle = self._open.get(HandleId(number))
        if not isinstance(handle, DirectoryHandle):
            raise Invalid(_BAD_HANDLE)
        return handle

    def remove(self, number: int) -> None:
        """Take a handle out."""
        self._open.pop(HandleId(number), None)
