"""A volume without a kernel, driven by the calls that a kernel would make, and changed behind its back.

Outside the layers. `Driven` has the few sequences of calls that tests of the vfs make all the time: making a file, reading it
as the kernel does, listing a directory, and writing or removing as another client of the service would.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from fusekit.backends.memory import MemoryBackend, Options
from fusekit.errors import Stale
from fusekit.settings import Settings
from fusekit.testing.harness import listed, written
from fusekit.testing.volumes import Before, Recorder, open_backend
from fusekit.types import Caller, Entry, Mount
from fusekit.vfs.attributes import Attr
from fusekit.vfs.filesystem import Filesystem
from fusekit.vfs.inodes import ROOT
from fusekit.volume import Volume

ME = Caller(os.getuid(), os.getgid(), os.getpid())


@attrs.define(eq=False)
class Driven:
    """A volume whose hooks are counted."""

    volume: Volume
    recorder: Recorder

    @property
    def fs(self) -> Filesystem:
        return self.volume.filesystem

    @property
    def calls(self) -> dict[str, int]:
        return dict(self.recorder.calls)

    def reset(self) -> None:
        """Count from nothing again."""
        self.recorder.calls.clear()

    async def make(self, name: str, data: bytes, parent: int = ROOT, flags: int = os.O_WRONLY) -> Attr:
        """Make a file as a program does that opens, writes and closes."""
        opened, attr = await self.fs.create(parent, name, 0o644, flags | os.O_CREAT, ME)
        if data:
            await self.fs.write(opened.handle, 0, data)
        await self.fs.flush(opened.handle)
        await self.fs.release(opened.handle)
        return attr

    async def replace(self, ino: int, data: bytes) -> None:
        """Put ``data`` in the place of a file's content, as the shell's ``>`` does."""
        opened = await self.fs.open(ino, os.O_WRONLY | os.O_TRUNC, ME)
        await self.fs.write(opened.handle, 0, data)
        await self.fs.flush(opened.handle)
        await self.fs.release(opened.handle)

    async def content(self, name: str, parent: int = ROOT) -> bytes:
        """Return the content of a file, looked up and opened once more where it turned out to be stale, as the kernel does."""
        attr = await self.fs.lookup(parent, name, ME)
        try:
            opened = await self.fs.open(attr.ino, os.O_RDONLY, ME)
        except Stale:
            attr = await self.fs.lookup(parent, name, ME)
            opened = await self.fs.open(attr.ino, os.O_RDONLY, ME)
        try:
            return bytes(await self.fs.read(opened.handle, 0, 1 << 20))
        finally:
            await self.fs.release(opened.handle)

    async def names(self, ino: int = ROOT) -> list[str]:
        """Return the names in a directory."""
        handle = await self.fs.opendir(ino, ME)
        try:
            found: list[str] = []
            while chunk := await self.fs.readdir(handle, len(found)):
                found.extend(name for name, _ in chunk)
            return sorted(found)[2:]
        finally:
            self.fs.releasedir(handle)

    async def there(self) -> dict[str, Entry]:
        """Return what the service has at its top, asked past the engine."""
        hooks = self.volume.hooks
        found = await listed(hooks, await hooks.fusekit_root(caller=ME))
        self.reset()
        return found

    async def remotely(self, name: str, data: bytes) -> None:
        """Write ``name`` as another client of the service would."""
        hooks = self.volume.hooks
        root = await hooks.fusekit_root(caller=ME)
        await written(hooks, root, name, data, (await listed(hooks, root)).get(name))
        self.reset()

    async def remotely_removed(self, name: str) -> None:
        """Remove ``name`` as another client of the service would."""
        hooks = self.volume.hooks
        root = await hooks.fusekit_root(caller=ME)
        await hooks.fusekit_remove(directory=root, entry=(await listed(hooks, root))[name], caller=ME)
        self.reset()


def memory(mount: Mount) -> MemoryBackend:
    """Return a backend in memory, as `open_backend` and `fusekit.testing.mounts.mounted` want one made."""
    return MemoryBackend(Options(), mount)


@asynccontextmanager
async def driven(directory: Path, make: Callable[[Mount], object] = memory, **settings: Any) -> AsyncIterator[Driven]:
    """Open a volume over the backend that ``make`` returns; what it keeps is below ``directory``."""
    recorder = Recorder()
    async with open_backend(make, directory, attrs.evolve(Settings(), **settings), recorder=recorder) as volume:
        made = Driven(volume, recorder)
        made.reset()
        yield made


@attrs.define(eq=False)
class Held:
    """What `Recorder.before` and ``after`` take, so that the hook of this short name waits until it may go on."""

    hook: str
    reached: trio.Event = attrs.field(init=False, factory=trio.Event)
    go_on: trio.Event = attrs.field(init=False, factory=trio.Event)

    async def __call__(self, called: str, values: dict[str, Any]) -> None:
        if called == self.hook and not self.go_on.is_set():
            self.reached.set()
            await self.go_on.wait()


def failing(hook: str, error: Exception) -> Before:
    """Return what `Recorder.before` and ``after`` take, so that ``hook`` (its short name) fails with ``error``."""

    async def fail(called: str, values: dict[str, Any]) -> None:
        if called == hook:
            raise error

    return fail
