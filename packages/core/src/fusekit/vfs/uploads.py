"""Uploads in the background: what the journal has acknowledged on its way to the remote side.

Vfs layer, above `commits`. Each file that waits has a task of its own, which waits a moment for the next save, takes
one of a few places for uploads, sends, and after an error tries again, for ever and ever more seldom: a file that fails
is in nobody's way. Directories are made, and names changed, before the call that does so returns; so what a file needs
at the remote side is there when its turn comes.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from fusekit.errors import BackendError
from fusekit.settings import Settings
from fusekit.transfer.retry import RETRIABLE, Patience
from fusekit.types import Caller
from fusekit.vfs.commits import Commits
from fusekit.vfs.file import File
from fusekit.vfs.inodes import Inodes, Node
from fusekit.vfs.turns import Turns

logger = logging.getLogger(__name__)

# As many as hide a round trip of 100 ms; requests at one host are limited besides, by what it can take.
UPLOADS_MAX: Final = 16

# How long a closed file waits for the next save of it: editors, compilers and downloads write one several times.
LINGER_S: Final = 0.5


@attrs.define(eq=False)
class _Care:
    """A file that is taken care of: its way is over when there is nothing left to send.

    ``hurry`` ends its waiting. ``hopeless`` is the error since somebody last hurried, where it is none that passes.
    """

    file: File
    hurry: trio.Event = attrs.field(factory=trio.Event)
    hopeless: BackendError | None = None


class Uploads:
    """The files of one mount that wait to be sent. ``ended`` is called, in no turn, for each that is sent."""

    def __init__(
        self,
        inodes: Inodes,
        commits: Commits,
        turns: Turns,
        settings: Settings,
        ended: Callable[[File], Awaitable[None]],
    ) -> None:
        self._inodes = inodes
        self._commits = commits
        self._turns = turns
        self._ended = ended
        self._places = trio.CapacityLimiter(min(UPLOADS_MAX, settings.requests_max))
        self._cared: dict[File, _Care] = {}
        self._nursery: trio.Nursery | None = None
        self._moved = trio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Own the tasks. What is on its way when the block ends is left to the journal."""
        failed: BaseException | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            except (trio.Cancelled, GeneratorExit):
                raise
            except BaseException as error:  # noqa: BLE001 - raised below; a nursery would put it into a group
                failed = error
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed

    async def spawn(self, call: Callable[[Caller, trio.Nursery], Awaitable[None]], caller: Caller) -> None:
        """Await ``call(caller, nursery)``; what it starts there ends with the mount."""
        assert self._nursery is not None, "the mount runs"
        await call(caller, self._nursery)

    def __len__(self) -> int:
        return len(self._cared)

    def soon(self, file: File) -> None:
        """Send what is acknowledged of ``file`` in a moment, whoever waits for it."""
        if file not in self._cared and self._nursery is not None:
            care = self._cared[file] = _Care(file)
            self._nursery.start_soon(self._run, care)

    def hurry(self, file: File) -> None:
        """Send what is acknowledged of ``file`` as soon as there is a place, also if the last attempt just failed."""
        if (care := self._cared.get(file)) is not None:
            care.hopeless = None
            care.hurry.set()

    def hurry_below(self, node: Node) -> None:
        """Send what waits at or below ``node`` as soon as there are places."""
        for care in list(self._cared.values()):
            if self._inodes.below(care.file.node, node):
                self.hurry(care.file)

    async def drain(self, below: Node | None = None) -> None:
        """Return when everything (below a directory) is sent, or failed since with an error that does not pass by itself."""
        hurried: set[_Care] = set()
        while True:
            left = [care for care in self._cared.values() if below is None or self._inodes.below(care.file.node, below)]
            for care in left:
                if care not in hurried:
                    hurried.add(care)
                    self.hurry(care.file)
            if all(care.hopeless is not None for care in left):
                return
            await self._moved.wait()

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def _run(self, care: _Care) -> None:
        file = care.file
        try:
            await self._send(care)
        except Exception:  # one bug must not end the mount: the bytes are in the journal
            logger.exception("%s: not sent, kept in the journal", self._inodes.path(file.node))
        finally:
            del self._cared[file]
            self._move()
        await self._ended(file)

    async def _send(self, care: _Care) -> None:
        file, patience, wait_s = care.file, Patience(), LINGER_S
        while file.acknowledged and not file.node.unlinked:
            with trio.move_on_after(wait_s):
                await care.hurry.wait()
            care.hurry = trio.Event()
            path = self._inodes.path(file.node)
            try:
                async with self._places, self._turns.take(file.node):
                    while file.acknowledged and not file.node.unlinked:
                        await self._commits.send_next(file, file.caller)
                        self._move()
                    patience = Patience()
            except BackendError as error:
                if not file.acknowledged:
                    return  # a conflict: the journal keeps it for the user
                wait_s = patience.wait_s(error)
                care.hopeless = None if isinstance(error, RETRIABLE) else error
                logger.warning("%s: not sent yet, again in %.0f s: %s", path, wait_s, error)
                self._move()
