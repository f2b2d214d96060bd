"""The file system by path, for programs without a kernel between: `fusekit ls`, `cat`, `cp`, `rm`, `stat`.

Vfs layer, on top of `Filesystem`, so that names, cache and errors are exactly those of a mount. Paths are relative to
the root of the source, with or without a leading slash; symbolic links are not followed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Final

import trio

from fusekit.errors import BackendError
from fusekit.types import Attributes, Caller, Kind
from fusekit.vfs.attributes import Attr
from fusekit.vfs.filesystem import ABANDON_S, Changes, Filesystem
from fusekit.vfs.inodes import ROOT

# One piece of a file on its way: large enough to make the calls cheap, small against the memory budget.
PIECE_BYTES: Final = 1 << 20


class Paths:
    """The operations of one mount on paths, as one caller."""

    def __init__(self, filesystem: Filesystem, caller: Caller) -> None:
        self._fs = filesystem
        self._caller = caller

    async def stat(self, path: str) -> Attr:
        """Return the attributes of what is at ``path``."""
        ino = ROOT
        for name in _parts(path):
            attr = await self._fs.lookup(ino, name, self._caller)
            ino = attr.ino
        return await self._fs.getattr(ino, self._caller)

    async def list(self, path: str) -> list[tuple[str, Attr]]:
        """Return names and attributes of what is in the directory ``path``, sorted by name."""
        attr = await self.stat(path)
        handle = await self._fs.opendir(attr.ino, self._caller)
        try:
            found: list[tuple[str, Attr]] = []
            while chunk := await self._fs.readdir(handle, len(found)):
                found.extend(chunk)
        finally:
            self._fs.releasedir(handle)
        return sorted(item for item in found if item[0] not in {".", ".."})

    async def read(self, path: str, sink: Callable[[bytes | memoryview], Awaitable[None]]) -> int:
        """Hand the bytes of the file ``path`` to ``sink``, in order, and return how many there were."""
        attr = await self.stat(path)
        opened = await self._fs.open(attr.ino, os.O_RDONLY, self._caller)
        try:
            at = 0
            while data := await self._fs.read(opened.handle, at, PIECE_BYTES):
                await sink(data)
                at += len(data)
            return at
        finally:
            await self._fs.release(opened.handle)

    async def write(self, path: str, pieces: AsyncIterable[bytes], attributes: Attributes = Attributes()) -> int:
        """Make or replace the file ``path`` with what ``pieces`` brings, and return its size.

        ``attributes`` are stored with the content, as far as the service keeps such things. Where ``pieces`` raises, or
        nobody waits for the end any more, nothing is published: what was there stays.
        """
        parent, name = await self._parent(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        mode = 0o644 if attributes.mode is None else attributes.mode
        opened, attr = await self._fs.create(parent, name, mode, flags, self._caller)
        at, complete = 0, False
        try:
            async for data in pieces:
                at += await self._fs.write(opened.handle, at, data)
            complete = True
            if attributes:  # after the last byte, which sets the time of change
                await self._fs.setattr(attr.ino, Changes(attributes=attributes), opened.handle, self._caller)
            await self._fs.fsync(opened.handle)
        except BaseException as error:
            if complete and isinstance(error, BackendError):
                await self._fs.release(opened.handle)  # whole, but refused: the journal keeps it
            else:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + ABANDON_S):
                    await self._fs.abandon(opened.handle)
            raise
        await self._fs.release(opened.handle)
        return at

    async def mkdir(self, path: str, *, mode: int = 0o755) -> Attr:
        """Make the directory ``path``."""
        parent, name = await self._parent(path)
        return await self._fs.mkdir(parent, name, mode, self._caller)

    async def remove(self, path: str) -> None:
        """Remove the file or the empty directory ``path``."""
        parent, name = await self._parent(path)
        attr = await self._fs.lookup(parent, name, self._caller)
        if attr.kind is Kind.DIRECTORY:
            await self._fs.rmdir(parent, name, self._caller)
        else:
            await self._fs.unlink(parent, name, self._caller)

    async def rename(self, old: str, new: str) -> None:
        """Move ``old`` to ``new``, over what is there."""
        source, name = await self._parent(old)
        target, new_name = await self._parent(new)
        await self._fs.rename(source, name, target, new_name, 0, self._caller)

    async def readlink(self, path: str) -> str:
        """Return the target of the symbolic link ``path``."""
        return await self._fs.readlink((await self.stat(path)).ino, self._caller)

    async def symlink(self, path: str, target: str) -> Attr:
        """Make the symbolic link ``path`` to ``target``."""
        parent, name = await self._parent(path)
        return await self._fs.symlink(parent, name, target, self._caller)

    async def set_attributes(self, path: str, attributes: Attributes) -> Attr:
        """Change mode, owner or times of what is at ``path``."""
        ino = (await self.stat(path)).ino
        return await self._fs.setattr(ino, Changes(attributes=attributes), None, self._caller)

    async def held(self, path: str) -> tuple[Attr, Attributes]:
        """As `stat`, and what of it the service itself tells; None is what it does not keep."""
        attr = await self.stat(path)
        fact = self._fs.tree.fact(self._fs.tree.node(attr.ino), self._caller)
        if fact is None:
            return attr, Attributes()
        entry = fact.entry
        return attr, Attributes(entry.mode, entry.uid, entry.gid, entry.atime_ns, entry.mtime_ns)

    async def _parent(self, path: str) -> tuple[int, str]:
        *above, name = _parts(path)
        return (await self.stat("/".join(above))).ino, name


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in {"", "."}]
