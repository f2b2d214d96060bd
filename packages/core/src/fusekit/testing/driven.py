"""The engine without a kernel: what a program does and what another client of the service does, in a line each.

Outside the layers. A `Setup` calls the vfs as the adapter would, over a backend in memory whose hooks are counted, and
changes that backend behind the engine's back.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

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

ME: Final = Caller(os.getuid(), os.getgid(), os.getpid())


@attrs.define(eq=False)
class Setup:
    """A volume, its hooks counted, and the backend behind it to change things from outside."""

    volume: Volume
    recorder: Recorder
    backend: MemoryBackend

    @property
    def fs(self) -> Filesystem:
        return self.volume.filesystem

    @property
    def calls(self) -> dict[str, int]:
        return dict(self.recorder.calls)

    def reset(self) -> None:
        self.recorder.calls.clear()

    async def make(self, name: str, data: bytes, parent: int = ROOT, flags: int = os.O_WRONLY) -> Attr:
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
        attr = await self.fs.lookup(parent, name, ME)
        try:
            opened = await self.fs.open(attr.ino, os.O_RDONLY, ME)
        except Stale:  # what the kernel does: look up and open again, once
            attr = await self.fs.lookup(parent, name, ME)
            opened = await self.fs.open(attr.ino, os.O_RDONLY, ME)
        try:
            return bytes(await self.fs.read(opened.handle, 0, 1 << 20))
        finally:
            await self.fs.release(opened.handle)

    async def names(self, ino: int = ROOT) -> list[str]:
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
        known = (await listed(hooks, root)).get(name)
        await written(hooks, root, name, data, known)
        self.reset()

    async def remotely_removed(self, name: str) -> None:
        """Remove ``name`` as another client of the service would."""
        hooks = self.volume.hooks
        root = await hooks.fusekit_root(caller=ME)
        await hooks.fusekit_remove(directory=root, entry=(await listed(hooks, root))[name], caller=ME)
        self.reset()


@asynccontextmanager
async def opened(
    directory: Path, backend: Callable[[Options, Mount], MemoryBackend] = MemoryBackend, **options: Any
) -> AsyncIterator[Setup]:
    """Open a volume over what ``backend`` makes, with ``options`` of the settings, in ``directory``."""
    recorder = Recorder()
    made: list[MemoryBackend] = []

    def make(mount: Mount) -> MemoryBackend:
        made.append(backend(Options(), mount))
        return made[0]

    settings = attrs.evolve(Settings(), **options)
    async with open_backend(make, directory, settings, recorder=recorder) as volume:
        setup = Setup(volume, recorder, made[0])
        setup.reset()
        yield setup


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
