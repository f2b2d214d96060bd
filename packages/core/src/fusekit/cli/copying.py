"""Copy files and trees between this machine and sources: what `fusekit cp` does.

Cli layer. Both ends are a `Side`, so each direction, also from source to source, is the same few lines. A local file
appears whole or not at all, as one in a source does.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from fusekit.cli.output import complain
from fusekit.errors import Denied, Exists, IsDirectory, NotFound, NotSupported, ReadOnly
from fusekit.types import Attributes, Kind
from fusekit.vfs.attributes import KINDS

if TYPE_CHECKING:
    from fusekit.vfs.paths import Paths

PIECE_BYTES: Final = 1 << 20
# Pieces between the reading and the writing end: enough that neither waits for the other's every step.
PIECES_MAX: Final = 4

Out = Callable[[bytes | memoryview], Awaitable[None]]


@attrs.frozen
class Facts:
    """What copying needs to know of a name; ``keep`` is what goes with the copy, as far as this side keeps it."""

    kind: Kind
    keep: Attributes = Attributes()


class Side(Protocol):
    """One end of a copy. Paths are its own; errors are fusekit's or the system's.

    ``symlink`` takes the place of a file or link that is there. ``settle`` gives a directory its attributes when all
    is in it, as far as this side can.
    """

    async def facts(self, path: str) -> Facts | None: ...
    async def names(self, path: str) -> list[str]: ...
    async def read(self, path: str, out: Out) -> None: ...
    async def readlink(self, path: str) -> str: ...
    async def write(self, path: str, pieces: AsyncGenerator[bytes, None], keep: Attributes) -> None: ...
    async def symlink(self, path: str, target: str) -> None: ...
    async def mkdir(self, path: str) -> None: ...
    async def settle(self, path: str, keep: Attributes) -> None: ...
    def join(self, path: str, name: str) -> str: ...


async def copy(source: Side, path: str, target: Side, target_path: str, *, recursive: bool) -> bool:
    """Copy ``path`` to ``target_path``, which is its new name; return False where something was left out.

    Raises:
        NotFound: there is no ``path``. IsDirectory: it is one and ``recursive`` is not set, or stands in the way.
        Exists: a file is where a directory has to be made.
    """
    found = await source.facts(path)
    if found is None:
        raise NotFound(f"{path} does not exist")
    if found.kind is Kind.FILE:
        await _copy_file(source, path, target, target_path, found.keep)
        return True
    if found.kind is Kind.SYMLINK:
        return await _copy_link(source, path, target, target_path)
    if found.kind is not Kind.DIRECTORY:
        complain(f"{path} is left out: it is a {found.kind.value}, which is not copied")
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
    await target.settle(target_path, found.keep)
    return whole


async def _copy_link(source: Side, path: str, target: Side, target_path: str) -> bool:
    there = await target.facts(target_path)
    if there is not None and there.kind is Kind.DIRECTORY:
        raise IsDirectory(f"{target_path} is a directory; a symbolic link cannot take its place")
    try:
        await target.symlink(target_path, await source.readlink(path))
    except (NotSupported, Denied) as error:
        complain(f"{path} is left out: it is a symbolic link, and the target takes none ({error})")
        return False
    return True


async def _copy_file(source: Side, path: str, target: Side, target_path: str, keep: Attributes) -> None:
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
            await target.write(target_path, stream, keep)


class Remote:
    """An open source."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    async def facts(self, path: str) -> Facts | None:
        try:
            attr, held = await self._paths.held(path)
        except NotFound:
            return None
        return Facts(attr.kind, attrs.evolve(held, uid=None, gid=None))

    async def names(self, path: str) -> list[str]:
        return [name for name, _ in await self._paths.list(path)]

    async def read(self, path: str, out: Out) -> None:
        await self._paths.read(path, out)

    async def readlink(self, path: str) -> str:
        return await self._paths.readlink(path)

    async def write(self, path: str, pieces: AsyncGenerator[bytes, None], keep: Attributes) -> None:
        await self._paths.write(path, pieces, keep)

    async def symlink(self, path: str, target: str) -> None:
        try:
            await self._paths.symlink(path, target)
        except Exists:
            is_link = (await self._paths.stat(path)).kind is Kind.SYMLINK
            if not is_link or await self._paths.readlink(path) != target:
                await self._paths.remove(path)
                await self._paths.symlink(path, target)

    async def mkdir(self, path: str) -> None:
        await self._paths.mkdir(path)

    async def settle(self, path: str, keep: Attributes) -> None:
        if keep:
            with contextlib.suppress(NotSupported, Denied, ReadOnly):
                await self._paths.set_attributes(path, keep)

    def join(self, path: str, name: str) -> str:
        return f"{path}/{name}" if path else name


class Local:
    """This machine. Links that are named are followed, those met on the way are not.

    Neither are they when a file is written: one that was copied from a source may name any file here.
    """

    def __init__(self, named: str) -> None:
        self._named = named

    async def facts(self, path: str) -> Facts | None:
        look = os.stat if path == self._named else os.lstat
        try:
            found = await trio.to_thread.run_sync(look, path)
        except FileNotFoundError:
            return None
        mode, times = stat.S_IMODE(found.st_mode) & 0o777, (found.st_atime_ns, found.st_mtime_ns)
        kind = KINDS.get(stat.S_IFMT(found.st_mode), Kind.FIFO)
        return Facts(kind, Attributes(mode=mode, atime_ns=times[0], mtime_ns=times[1]))

    async def names(self, path: str) -> list[str]:
        return sorted(await trio.to_thread.run_sync(os.listdir, path))

    async def read(self, path: str, out: Out) -> None:
        async with await trio.open_file(path, "rb") as file:
            while data := await file.read(PIECE_BYTES):
                await out(data)

    async def readlink(self, path: str) -> str:
        return await trio.to_thread.run_sync(os.readlink, path)

    async def write(self, path: str, pieces: AsyncGenerator[bytes, None], keep: Attributes) -> None:
        there = await self.facts(path)
        if there is not None and there.kind not in {Kind.FILE, Kind.SYMLINK}:
            async with await trio.open_file(path, "wb") as device:  # a FIFO or /dev/stdout
                async for piece in pieces:
                    await device.write(piece)
            return
        final = await trio.to_thread.run_sync(os.path.realpath, path) if path == self._named else path
        descriptor, early = await trio.to_thread.run_sync(_temporary, final)
        try:
            async with trio.wrap_file(os.fdopen(descriptor, "wb")) as file:
                async for piece in pieces:
                    await file.write(piece)
            mode = there.keep.mode if there is not None and there.kind is Kind.FILE else 0o666 & ~_umask()
            await trio.to_thread.run_sync(_set, early, keep.over(Attributes(mode=mode)))
            await trio.to_thread.run_sync(os.replace, early, final)
        except BaseException:
            os.unlink(early)
            raise

    async def symlink(self, path: str, target: str) -> None:
        await trio.to_thread.run_sync(_link, path, target)

    async def mkdir(self, path: str) -> None:
        await trio.to_thread.run_sync(os.mkdir, path)

    async def settle(self, path: str, keep: Attributes) -> None:
        await trio.to_thread.run_sync(_set, path, keep)

    def join(self, path: str, name: str) -> str:
        return os.path.join(path, name)


def _temporary(final: str) -> tuple[int, str]:
    return tempfile.mkstemp(prefix=f".{os.path.basename(final)[:100]}.", dir=os.path.dirname(final))


def _set(path: str, keep: Attributes) -> None:
    """Give ``path`` a mode and times, as far as its file system keeps them: on a FAT stick a copy is one without."""
    if keep.mode is not None:
        with contextlib.suppress(PermissionError):
            os.chmod(path, keep.mode)
    if keep.mtime_ns is not None:
        read_ns = keep.mtime_ns if keep.atime_ns is None else keep.atime_ns
        with contextlib.suppress(PermissionError):
            os.utime(path, ns=(read_ns, keep.mtime_ns))


def _link(path: str, target: str) -> None:
    """Make a symbolic link in the place of whatever file is there."""
    directory, name = os.path.split(path)
    for attempt in itertools.count():
        early = os.path.join(directory, f".{name[:100]}.{os.getpid()}.{attempt}")
        with contextlib.suppress(FileExistsError):
            os.symlink(target, early)
            break
    try:
        os.replace(early, path)
    except BaseException:
        os.unlink(early)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
