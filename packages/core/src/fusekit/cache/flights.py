"""Fetches under way: each brings one range of an object, for everybody who waits for a byte of it.

Cache layer. A `Flight` is a call of the hook `fusekit_read` through `Calls`, which retries it; it is the sink of that
call and lends its memory to the data plane. Bytes that come in place are known to be of the right version and are
handed on at once; those that a backend writes are handed on when its hook returned, because only then it may find out
that they are another version's.

A flight in which nothing moves for much longer than usual is asked for again (hedged). Whoever is first wins, the
other is cancelled and what it still brings is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import attrs
import trio

from fusekit.cache.objects import Object, Piece
from fusekit.cache.readahead import PIECE_BYTES
from fusekit.cache.store import Record
from fusekit.errors import BackendError, Corrupt, Stale
from fusekit.ranges import Ranges
from fusekit.types import Caller, Entry

if TYPE_CHECKING:
    from fusekit.cache.blocks import Blocks

logger = logging.getLogger(__name__)

# Nothing moved for so many times as long as the first byte usually takes; between the bounds, in seconds. Asking
# earlier would double the load of a service that is only slow.
HEDGE_FACTOR: Final = 8.0
HEDGE_MIN_S: Final = 1.0
HEDGE_MAX_S: Final = 10.0
# At most one fetch in so many is asked for again, in the long run, and so many at first.
HEDGE_ONE_IN: Final = 20
HEDGES_MAX: Final = 8.0


@attrs.define(eq=False)
class Hedging:
    """When to ask again: how long a first byte usually takes, and how many more may be asked for twice."""

    usual_s: float | None = None
    left: float = HEDGES_MAX

    def took(self, seconds: float) -> None:
        """Take note of how long a first byte took."""
        self.usual_s = seconds if self.usual_s is None else 0.8 * self.usual_s + 0.2 * seconds
        self.left = min(HEDGES_MAX, self.left + 1 / HEDGE_ONE_IN)

    @property
    def after_s(self) -> float:
        """Return after how many seconds without a byte a fetch counts as stalled."""
        return min(HEDGE_MAX_S, max(HEDGE_MIN_S, HEDGE_FACTOR * (self.usual_s or HEDGE_MAX_S)))

    def allowed(self) -> bool:
        """Take one of those that may be asked for twice; return whether there was one."""
        if self.left < 1:
            return False
        self.left -= 1
        return True


class Flight:
    """The fetch of ``start`` to ``stop`` (None: to the end, wherever it is) for ``caller``.

    ``address`` returns the entry with the address that it has now. One that is ``streamed`` may be larger than what
    fits in memory: it takes memory piece by piece, and each leaves for the disk. ``completed``: an attempt got through.
    ``held`` are bytes of the budget that no piece has yet; ``end`` is where the furthest byte that came ends;
    ``spilled`` are records of bytes that are on disk already and handed out when the hook has returned.
    """

    def __init__(
        self,
        blocks: Blocks,
        item: Object,
        start: int,
        stop: int | None,
        address: Callable[[], Awaitable[Entry]],
        caller: Caller,
        *,
        streamed: bool = False,
    ) -> None:
        self.item = item
        self.start = start
        self.stop = stop
        self.caller = caller
        self.streamed = streamed or stop is None
        self.error: BackendError | None = None
        self.completed = False
        self.done = False
        self.held = 0
        self.end = start
        self.spilled: list[Record] = []
        self.moved_at = trio.current_time()
        self._blocks = blocks
        self._address = address
        self._came = Ranges()
        self._pieces: dict[int, Piece] = {}  # by start
        self._waiting: list[tuple[int, int, trio.Event]] = []
        self._attempts: set[trio.CancelScope] = set()
        self._nursery: trio.Nursery | None = None
        self._hedged = False
        self._first = True
        self._began = self.moved_at

    @property
    def ends(self) -> int:
        """Return the offset at which the flight ends as far as that is known."""
        return self.end if self.stop is None else self.stop

    @property
    def good(self) -> bool:
        """Return whether everything came, and is of the right version."""
        return self.completed and self.error is None

    @property
    def pieces(self) -> list[Piece]:
        """Return the memory that the flight brought bytes into and that is still there."""
        return list(self._pieces.values())

    async def run(self) -> None:
        """Bring the bytes. What became of it is in ``error``; everybody who waits is told."""
        try:
            if self.stop is not None and not self.streamed and not self.held:
                count = self.stop - self.start
                await self._blocks.budget.acquire(count)
                self.held = count
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._attempt)
        finally:
            self.done = True
            self._blocks.landed(self)
            self._tell()

    async def until(self, start: int, stop: int) -> None:
        """Return when the bytes from ``start`` to ``stop`` can be handed out, or when the flight is over."""
        if self.done or (self.stop is not None and self.item.first_gap(start, stop) is None):
            return
        event = trio.Event()
        waiting = (start, stop, event)
        self._waiting.append(waiting)
        try:
            await event.wait()
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    @property
    def can_hedge(self) -> bool:
        """Return whether it makes sense to ask once more: an attempt is under way, and it is the only one so far."""
        return not (self._hedged or self.done or self.streamed) and len(self._attempts) == 1

    def hedge(self) -> None:
        """Ask once more, beside the attempt in which nothing moves."""
        if self._nursery is None or not self.can_hedge:
            return
        self._hedged = True
        logger.info("nothing of the bytes %d to %s came for a while, they are asked for again", self.start, self.stop)
        self._nursery.start_soon(self._attempt)

    # ---- the sink ----------------------------------------------------------------------------------------------

    async def room(self, at: int) -> memoryview:
        """Return memory for the bytes from ``at`` on, as `Inlet` says."""
        piece = await self._piece_for(at)
        if piece is None:
            return memoryview(self._blocks.scratch)[: self._end_of(at) - at]
        return piece.view(at, piece.stop)

    async def filled(self, count: int, at: int) -> None:
        """Hand on what was received into the room at ``at``."""
        stop = at + count
        self._moved(at, stop)
        piece = self._pieces.get(self._begin_of(at))
        if piece is None or piece.leaving:  # there was no room for it, or another attempt was faster
            return
        piece.have.add(at, stop)
        piece.good.add(at, stop)
        if piece.good.covers(piece.start, piece.stop):
            if self.stop is None:
                self._blocks.spill(self, piece)
            else:
                self._blocks.came(self.item, piece)
        if self._waiting:
            self._tell()

    async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
        """Copy ``data``; it is handed on when the hook has returned."""
        assert at is not None, "core says where each write belongs"
        view = memoryview(data).cast("B")
        while view:
            piece = await self._piece_for(at)
            count = min(len(view), (self._end_of(at) if piece is None else piece.stop) - at)
            if piece is not None and not piece.leaving:
                for low, high in piece.good.missing(at, at + count):
                    piece.view(low, high)[:] = view[low - at : high - at]
                piece.have.add(at, at + count)
                if self.stop is None and piece.have.covers(piece.start, piece.stop):
                    self._blocks.spill(self, piece)
            self._moved(at, at + count)
            at += count
            view = view[count:]

    async def _piece_for(self, at: int) -> Piece | None:
        """Return the piece for the byte at ``at``; None where there is no room for what nobody asked for."""
        size = self.item.size
        if size is not None and at >= size:
            raise Stale(f"the file is longer than the {size} bytes that were announced")
        begin = self._begin_of(at)
        piece = self._pieces.get(begin)
        if piece is not None:
            return piece
        end = self._end_of(at)
        count = end - begin
        if self.held >= count and self.start <= at < self.ends:
            self.held -= count  # taken when the flight began
        elif not await self._blocks.extend(self, count, must=self.streamed and self._blocks.on_disk):
            return None
        # While that waited, another attempt may have made it.
        if (piece := self._pieces.get(begin)) is not None:
            self._blocks.budget.release(count)
            return piece
        piece = self._pieces[begin] = Piece(begin, end, self._blocks.buffers.take(count))
        self.item.add(piece)
        return piece

    def gone(self, piece: Piece) -> None:
        """Take note that the memory of ``piece`` was let go."""
        if self._pieces.get(piece.start) is piece:
            del self._pieces[piece.start]

    def _begin_of(self, at: int) -> int:
        low = at - at % PIECE_BYTES
        if at < self.start:
            return low
        return max(low, self.start if self.stop is None or at < self.stop else self.stop)

    def _end_of(self, at: int) -> int:
        end = at - at % PIECE_BYTES + PIECE_BYTES
        if at < self.start:
            end = min(end, self.start)
        elif self.stop is not None and at < self.stop:
            end = min(end, self.stop)
        return end if self.item.size is None else min(end, self.item.size)

    def _moved(self, start: int, stop: int) -> None:
        self.moved_at = now = trio.current_time()
        if self._first:
            self._first = False
            self._blocks.hedging.took(now - self._began)
        self._came.add(start, stop)
        self.end = max(self.end, stop)

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for wanted in waiting:
            start, stop, event = wanted
            if self.done or (self.stop is not None and self.item.first_gap(start, stop) is None):
                event.set()
            else:
                self._waiting.append(wanted)

    # ---- attempts ----------------------------------------------------------------------------------------------

    async def _attempt(self) -> None:
        """Read once through `Calls`; the first of several attempts to get through ends the others."""
        with trio.CancelScope() as scope:
            self._attempts.add(scope)
            self._began = self.moved_at = trio.current_time()
            try:
                entry = await self._address()
                await self._blocks.calls.read(entry, self.start, self.stop, self, self.caller)
                self._check(entry)
            except BackendError as error:
                self._attempts.discard(scope)
                if self._attempts:
                    logger.debug("one of two attempts failed: %s", error)
                else:
                    self.error = error
                return
            except Exception as error:
                logger.exception("a fetch failed in a way that nobody foresaw")
                self.error = BackendError(f"the fetch failed: {type(error).__name__}")
                return
            finally:
                self._attempts.discard(scope)
            self.error, self.completed = None, True
            for other in self._attempts:
                other.cancel()

    def _check(self, entry: Entry) -> None:
        """Raise unless every byte that was asked for has come."""
        gaps = self._came.missing(self.start, self.ends)
        if not gaps:
            return
        if self.stop is None:
            raise Corrupt(f"{entry.name}: bytes are missing in the middle of what was read")
        lacking = sum(high - low for low, high in gaps)
        raise Corrupt(f"{entry.name}: {lacking} of {self.stop - self.start} bytes from {self.start} on did not come")
