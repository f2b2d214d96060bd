"""What was sent and not heard of is settled by looking, also where the service has no preconditions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from fusekit.backends.memory import MemoryBackend
from fusekit.errors import Stale, Unavailable
from fusekit.plugins.specs import hookimpl
from fusekit.settings import Write
from fusekit.testing.driven import ME, Setup, opened
from fusekit.types import Capabilities
from fusekit.vfs.inodes import ROOT

# More questions than one commit asks: after so many without an answer it was given up, and another one was begun.
MANY = 60


class Unguarded(MemoryBackend):
    """Checks nothing, so that core looks before it writes."""

    @hookimpl
    def fusekit_capabilities(self) -> Capabilities:
        return attrs.evolve(super().fusekit_capabilities(), guarded=False)


@attrs.define(eq=False)
class Asked:
    """Counts down to an event."""

    left: int = MANY
    enough: trio.Event = attrs.field(factory=trio.Event)

    def once_more(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.enough.set()


async def lost(setup: Setup, content: bytes) -> None:
    """Let the service take ``content`` as ``f`` and answer nothing from then on; return when it was asked often."""
    down, often = False, Asked()

    async def before(hook: str, values: dict[str, Any]) -> None:
        if down:
            often.once_more()
            raise Unavailable("the service is down")

    async def after(hook: str, values: dict[str, Any]) -> None:
        nonlocal down
        if hook == "write":
            down = True
            raise Unavailable("the answer was lost")

    setup.recorder.before, setup.recorder.after = before, after
    await setup.make("f", content, flags=os.O_WRONLY | os.O_TRUNC)
    await often.enough.wait()


@pytest.mark.parametrize("backend", [MemoryBackend, Unguarded])
async def test_what_arrived_before_the_service_went_down_is_no_conflict(
    tmp_path: Path, backend: type[MemoryBackend], autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path, backend, write=Write.ASYNC) as setup:
        await setup.make("f", b"first")
        await setup.fs.files.uploads.drain()
        await lost(setup, b"second")
        setup.recorder.before = setup.recorder.after = None
        await setup.fs.files.uploads.drain()
        assert {name: entry.size for name, entry in (await setup.there()).items()} == {"f": len(b"second")}
        assert await setup.volume.journal.rows() == []


async def test_what_cannot_be_looked_at_is_no_conflict_either(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(tmp_path, Unguarded, write=Write.ASYNC) as setup:
        await setup.make("f", b"first")
        await setup.fs.files.uploads.drain()
        await lost(setup, b"second")

        often = Asked(3)

        async def unreadable(hook: str, values: dict[str, Any]) -> None:
            if hook == "read":
                often.once_more()
                raise Unavailable("names are there again, contents are not")

        setup.recorder.before, setup.recorder.after = unreadable, None
        await often.enough.wait()
        assert list(await setup.there()) == ["f"]
        setup.recorder.before = None
        await setup.fs.files.uploads.drain()
        assert list(await setup.there()) == ["f"]


async def test_other_bytes_in_the_way_are_a_conflict_all_the_same(tmp_path: Path) -> None:
    async with opened(tmp_path, Unguarded) as setup:
        attr = await setup.make("f", b"first")
        opened_ = await setup.fs.open(attr.ino, os.O_WRONLY | os.O_TRUNC, ME)
        await setup.fs.write(opened_.handle, 0, b"ours!!")
        await setup.remotely("f", b"theirs")
        with pytest.raises(Stale):
            await setup.fs.flush(opened_.handle)
        await setup.fs.release(opened_.handle)
        assert await setup.content("f") == b"theirs"
        assert (await setup.fs.lookup(ROOT, "f", ME)).size == 6
