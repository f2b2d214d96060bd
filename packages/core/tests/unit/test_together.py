"""Several programs at once on the same few names, while hooks fail and waits are cancelled: nothing is left behind.

What each operation does is tested elsewhere. Here only what must hold whatever happened: errors are the contract's,
nothing hangs, and when all files are closed the journal, its bytes and what is known of them in memory agree.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio

from fusekit.errors import BackendError, Invalid, NotFound, Stale
from fusekit.testing.driven import ME, Setup, opened
from fusekit.types import Attributes
from fusekit.vfs.filesystem import Changes
from fusekit.vfs.inodes import ROOT

NAMES: Final = "abcd"
PROGRAMS: Final = 4
STEPS: Final = 40
DIRECTORIES_MAX: Final = 3


@attrs.define(eq=False)
class Trouble:
    """Lets other tasks run in the middle of hooks, fails some of them before or after they acted, and cancels waits."""

    random: random.Random
    waiting: set[trio.CancelScope] = attrs.field(factory=set)

    async def before(self, hook: str, values: dict[str, Any]) -> None:
        await self._happen(0.08, [Invalid("refused"), Stale("changed"), NotFound("gone"), ZeroDivisionError("a bug")])

    async def after(self, hook: str, values: dict[str, Any]) -> None:
        await self._happen(0.05, [Invalid("refused after all"), ZeroDivisionError("a bug"), OSError(5, "a disk")])

    async def _happen(self, chance: float, errors: list[Exception]) -> None:
        for _ in range(self.random.randrange(3)):
            await trio.lowlevel.checkpoint()
        if self.waiting and self.random.random() < 0.02:
            self.random.choice(sorted(self.waiting, key=id)).cancel()
        if self.random.random() < chance:
            raise self.random.choice(errors)


@attrs.define(eq=False)
class Program:
    """Does one thing after the other; ``handles`` are pairs of handle and inode."""

    setup: Setup
    trouble: Trouble
    directories: list[int]
    handles: list[tuple[int, int]] = attrs.field(factory=list)

    async def run(self) -> None:
        steps: list[Callable[[], Awaitable[object]]] = [
            *[self.create] * 4,
            *[self.write] * 4,
            *[self.close] * 2,
            *[self.rename] * 2,
            *[self.fsync, self.flush, self.unlink, self.mkdir, self.change, self.look, self.link],
        ]
        for _ in range(STEPS):
            with trio.CancelScope() as scope:
                self.trouble.waiting.add(scope)
                try:
                    await self.trouble.random.choice(steps)()
                except BackendError:
                    pass
                finally:
                    self.trouble.waiting.discard(scope)
        while self.handles:
            handle, _ = self.handles.pop()
            await self.setup.fs.release(handle)

    def place(self) -> tuple[int, str]:
        return self.trouble.random.choice(self.directories), self.trouble.random.choice(NAMES)

    def handle(self) -> tuple[int, int]:
        if not self.handles:
            raise Invalid("nothing is open")
        return self.trouble.random.choice(self.handles)

    async def create(self) -> None:
        flags = os.O_RDWR | self.trouble.random.choice([0, os.O_TRUNC])
        opened, attr = await self.setup.fs.create(*self.place(), 0o644, flags, ME)
        self.handles.append((opened.handle, attr.ino))

    async def write(self) -> None:
        data = self.trouble.random.randbytes(self.trouble.random.randrange(1, 9))
        await self.setup.fs.write(self.handle()[0], self.trouble.random.randrange(5), data)

    async def close(self) -> None:
        one = self.handle()
        self.handles.remove(one)
        try:
            await self.setup.fs.flush(one[0])
        finally:
            end = self.setup.fs.release if self.trouble.random.random() < 0.8 else self.setup.fs.abandon
            await end(one[0])

    async def fsync(self) -> None:
        await self.setup.fs.fsync(self.handle()[0])

    async def flush(self) -> None:
        await self.setup.fs.flush(self.handle()[0])

    async def rename(self) -> None:
        await self.setup.fs.rename(*self.place(), *self.place(), self.trouble.random.choice([0, 0, 1, 2]), ME)

    async def unlink(self) -> None:
        await self.setup.fs.unlink(*self.place(), ME)

    async def link(self) -> None:
        attr = await self.setup.fs.lookup(*self.place(), ME)
        await self.setup.fs.link(attr.ino, *self.place(), ME)

    async def mkdir(self) -> None:
        if len(self.directories) < DIRECTORIES_MAX:
            self.directories.append((await self.setup.fs.mkdir(*self.place(), 0o755, ME)).ino)

    async def change(self) -> None:
        handle, ino = self.handle()
        size, mtime_ns = self.trouble.random.choice([None, 0, 3, 20]), self.trouble.random.choice([None, 5])
        changes = Changes(size=size, attributes=Attributes(mtime_ns=mtime_ns))
        await self.setup.fs.setattr(ino, changes, self.trouble.random.choice([handle, None]), ME)

    async def look(self) -> None:
        await self.setup.names(self.trouble.random.choice(self.directories))
        await self.setup.fs.read(self.handle()[0], 0, 50)


@pytest.mark.parametrize("seed", range(12))
async def test_programs_in_each_others_way_leave_nothing_behind(tmp_path: Path, seed: int) -> None:
    async with opened(tmp_path) as setup:
        trouble = Trouble(random.Random(seed))
        setup.recorder.before, setup.recorder.after = trouble.before, trouble.after
        directories = [int(ROOT)]
        async with trio.open_nursery() as nursery:
            for _ in range(PROGRAMS):
                nursery.start_soon(Program(setup, trouble, directories).run)
        setup.recorder.before = setup.recorder.after = None
        fs, journal = setup.fs, setup.volume.journal
        rows = {row.id: row for row in await journal.rows()}
        assert {row.staging for row in rows.values()} == {path.name for path in journal.staging_path("").iterdir()}
        kept = fs.files.commits.kept
        assert {(row.id, row.path) for row in rows.values()} == {
            (number, one.path) for number, one in kept._rows.items()
        }
        assert [one for one in kept._rows.values() if not one.closed] == []
        assert (len(fs.handles), fs.unsent(), fs.tree.pending) == (0, [], {})
        assert [node for node in fs.tree.inodes if node.file is not None or node.opens] == []
        turns = fs.files.turns
        assert (turns._held, turns._inside, turns._moving) == (set(), {}, [])
