"""Copy files and trees between this machine and sources: what `fusekit cp` does.

Cli layer. Both ends are a `Side`, so each direction, also from source to source, is the same few lines. A local file
appears whole or not at all, as one in a source does.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from fusekit.cli.output import complain
from fusekit.errors import Exists, IsDirectory, NotFound
from fusekit.types import Kind
from fusekit.vfs.attributes import KINDS

if TYPE_CHECKING:
    from fusekit.vfs.paths import Paths

PIECE_BYTES: Final = 1 << 20
# Pieces between the reading and the writing end: enough that neither waits for the other's every step.
PIECES_MAX: Final = 4

Out = Callable[[bytes | memoryview], Awaitable[None]]


@attrs.frozen
class Facts:
    """What copying needs to know of a name; ``mode`` has permission bits only."""

    kind: Kind
    mode: int


class Side(Protocol):
    """One end of a copy. Paths are its own; errors are fusekit's or the system's."""

    async def facts(self, path: str) -> Facts | None: ...
    async def names(self, path: str) -> list[str]: ...
    async def read(self, path: str, out: Out) -> None: ...
    async def write(self, path: str, pieces: AsyncGenerator[bytes, None], mode: int) -> None: ...
    async def mkdir(self, path: str) -> None: ...
    def join(self, path: str, name: str) -> str: ...


async def copy(source: Side, path: str, target: Side, target_path: str, *, recursive: bool) -> bool:
    """Copy ``path`` to ``target_path``, which is its new name; return False where something was left out.

    Raises:
        NotFound: there is no ``path``. IsDirectory: it is one and ``recursive`` is not set.
        Exists: a file is where a directory has to be made.
    """
    found = await source.facts(path)
    if found is None:
        raise NotFound(f"{path} does not exist")
    if found.kind is Kind.FILE:
        await _copy_file(source, path, target, target_path, found.mode)
        return True
    if found.kind is not Kind.DIRECTORY:
        complain(f"{path} is left out: it is a {found.kind.value}, and only files and directories are copied")
        return False
    if not recursive:
        raise IsDirectory(f"{path} is a directory; to copy it with all that is in it add -r")
    there = await target.facts(target_path)
    if there is None:
        await target.mkdir(target_path)
    elif there.kind is not Kind.DIRECTORY:
        raise Exists(f"{target_path} is no directory; a directory cannot take its place")
    whole = True
    for name in await source.names(path):
        inner = source.join(path, name), target, target.join(target_path, name)
        whole = await copy(source, *inner, recursive=True) and whole
    return whole


async def _copy_file(source: Side, path: str, target: Side, target_path: str, mode: int) -> None:
    sending, receiving = trio.open_memory_channel[bytes](PIECES_MAX)

    async def read() -> None:
        async with sending:
            await source.read(path, lambda data: sending.send(bytes(data)))

    async def pieces() -> AsyncGenerator[bytes, None]:
        async for piece in receiving:
            yield piece

    # A failing reader cancels the writer, which then drops what it has: half a file never appears.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async with receiving, contextlib.aclosing(pieces()) as stream:
            await target.write(target_path, stream, mode)


class Remote:
    """An open source."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    async def facts(self, path: str) -> Facts | None:
        try:
            attr = await self._paths.stat(path)
        except NotFound:
            return None
        return Facts(attr.kind, stat.S_IMODE(attr.mode))

    async def names(self, path: str) -> list[str]:
        return [name for name, _ in await self._paths.list(path)]

    async def read(self, path: str, out: Out) -> None:
        await self._paths.read(path, out)

    async def write(self, path: str, pieces: AsyncGenerator[bytes, None], mode: int) -> None:
        await self._paths.write(path, pieces, mode=mode)

    async def mkdir(self, path: str) -> None:
        await self._paths.mkdir(path)

    def join(self, path: str, name: str) -> str:
        return f"{path}/{name}" if path else name


class Local:
    """This machine. Links that are named are followed, those met on the way are not."""

    def __init__(self, named: str) -> None:
        self._named = named

    async def facts(self, path: str) -> Facts | None:
        look = os.stat if path == self._named else os.lstat
        try:
            found = await trio.to_thread.run_sync(look, path)
        except FileNotFoundError:
            return None
        return Facts(KINDS.get(stat.S_IFMT(found.st_mode), Kind.FIFO), stat.S_IMODE(found.st_mode) & 0o777)

    async def names(self, path: str) -> list[str]:
        return sorted(await trio.to_thread.run_sync(os.listdir, path))

    async def read(self, path: str, out: Out) -> None:
        async with await trio.open_file(path, "rb") as file:
            while data := await file.read(PIECE_BYTES):
                await out(data)

    async def write(self, path: str, pieces: AsyncGenerator[bytes, None], mode: int) -> None:
        there = await self.facts(path)
        if there is not None and there.kind is not Kind.FILE:
            async with await trio.open_file(path, "wb") as device:  # a FIFO or /dev/stdout
                async for piece in pieces:
                    await device.write(piece)
            return
        # Through links, so that the file that a link names is replaced and not the link.
        final = await trio.to_thread.run_sync(os.path.realpath, path)
        descriptor, early = await trio.to_thread.run_sync(_temporary, final)
        try:
            async with trio.wrap_file(os.fdopen(descriptor, "wb")) as file:
                async for piece in pieces:
                    await file.write(piece)
            await trio.to_thread.run_sync(_settle, early, final, there.mode if there else mode & ~_umask())
        except BaseException:
            os.unlink(early)
            raise

    async def mkdir(self, path: str) -> None:
        await trio.to_thread.run_sync(os.mkdir, path)

    def join(self, path: str, name: str) -> str:
        return os.path.join(path, name)


def _temporary(final: str) -> tuple[int, str]:
    return tempfile.mkstemp(prefix=f".{os.path.basename(final)[:100]}.", dir=os.path.dirname(final))


def _settle(early: str, final: str, mode: int) -> None:
    os.chmod(early, mode)
    os.replace(early, final)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
