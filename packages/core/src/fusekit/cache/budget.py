"""The one budget for bytes in memory that are on their way: fetched and not yet stored, or kept because they may be asked for.

Cache layer, without I/O. Whoever needs memory to answer a program (`acquire`) waits for it in the order of asking and asks
once, for all that it needs: nobody waits for more while holding some, so nobody waits for ever. What only might be
useful (`try_acquire`) never waits, and leaves a share for those who must.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import attrs
import trio

from fusekit.disk import viewed

# The share of the budget that read-ahead cannot have, so that a program which must wait for bytes finds room.
DEMAND_SHARE: Final = 0.25


@attrs.define(eq=False)
class Budget:
    """Bytes in use, at most ``bytes_max`` (a single larger claim is let in when nothing else is).

    ``spare(count)`` lets memory go that nobody waits for, at least ``count`` bytes if there are as many, by calling
    `release`.
    """

    bytes_max: int
    spare: Callable[[int], None] = lambda _count: None
    used: int = attrs.field(default=0, init=False)
    peak: int = attrs.field(default=0, init=False)
    _waiting: deque[tuple[int, trio.Event]] = attrs.field(factory=deque, init=False)

    async def acquire(self, count: int) -> None:
        """Take ``count`` bytes, waiting for them."""
        if not self._waiting and self._fits(count):
            self._take(count)
            return
        turn = (count, trio.Event())
        self._waiting.append(turn)
        try:
            await turn[1].wait()
        except BaseException:
            if turn[1].is_set():
                self.release(count)
            else:
                self._waiting.remove(turn)
                self._serve()
            raise

    def try_acquire(self, count: int) -> bool:
        """Take ``count`` bytes if that leaves room for those who must; return whether they were taken."""
        if self._waiting or not self._fits(count, int(self.bytes_max * (1 - DEMAND_SHARE))):
            return False
        self._take(count)
        return True

    def release(self, count: int) -> None:
        """Give ``count`` bytes back."""
        self.used -= count
        if self._waiting:
            self._serve()

    def look(self) -> None:
        """Look whether those who wait can go on: there is more now that could be spared."""
        if self._waiting:
            self._serve()

    def _serve(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            count, event = self._waiting.popleft()
            self._take(count)
            event.set()

    def _fits(self, count: int, most: int | None = None) -> bool:
        most = self.bytes_max if most is None else most
        lacking = self.used + count - most
        if lacking > 0 and self.used > 0:
            waiting, self._waiting = self._waiting, deque()  # `spare` releases, which must not serve in between
            try:
                self.spare(lacking)
            finally:
                self._waiting = waiting
        return self.used + count <= most or (self.used <= 0 and most == self.bytes_max)

    def _take(self, count: int) -> None:
        self.used += count
        self.peak = max(self.peak, self.used)


class Buffers:
    """Memory in pieces of one size, used again: the kernel takes longer to give a fresh one than the network to fill it.

    A view of a buffer may be anywhere, in an answer on its way to the kernel or in a thread that writes to the disk.
    One that nobody has a view of is used again, and any other is left to the collector. What is kept idle counts in no
    budget: it is kept only where the budget has as much to spare.
    """

    def __init__(self, size: int, budget: Budget) -> None:
        self._size = size
        self._budget = budget
        self._idle: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """Return a buffer of ``size`` bytes, whatever is in them."""
        return self._idle.pop() if size == self._size and self._idle else bytearray(size)

    def give_back(self, buffers: list[bytearray]) -> None:
        """Take back the one in ``buffers``, a list, so that the caller keeps no reference to it."""
        buffer = buffers.pop()
        room = self._budget.bytes_max - self._budget.used - (len(self._idle) + 1) * self._size
        if len(buffer) == self._size and room >= 0 and not viewed(buffer):
            self._idle.append(buffer)

    def clear(self) -> None:
        """Let go of what is idle."""
        self._idle.clear()
