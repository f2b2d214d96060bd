"""How one open file is read, and so what is worth fetching before it is asked for.

Cache layer, without I/O. The first read of a file gets a small range, the whole file if it is small. Reading on in order
widens the window up to a limit; a read anywhere else gets just what it asked for and closes the window. The kernel reads
ahead itself, in several requests at once that may arrive in any order, so what is near where reading goes on counts
as in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

# One request of the kernel; enough for the head of most formats, little enough to cost a look at a file nothing.
FIRST_BYTES: Final = 128 << 10
# Up to this size a second round trip costs more than the bytes.
SMALL_FILE_BYTES: Final = 512 << 10
# Up to here the window grows fourfold: while it is smaller than what one round trip could bring, each step costs one.
STEEP_BYTES_MAX: Final = 8 << 20
# How far from where reading goes on a read still counts as in order, at least and at most, between them the window: the
# kernel reads ahead by itself, with several requests under way, and the further the longer it has gone well.
SLACK_MIN_BYTES: Final = 512 << 10
SLACK_MAX_BYTES: Final = 4 << 20

# Ranges are cut at multiples of this, so that pieces of neighbouring fetches do not overlap.
PIECE_BYTES: Final = 1 << 20
# Larger ones save no requests worth counting, and a reader behind a slow one waits longer.
RANGE_BYTES_MAX: Final = 8 << 20
# A window is fetched in this many ranges at once: the round trips and the connections' windows overlap.
RANGES_A_WINDOW: Final = 8


@attrs.define(eq=False)
class Reader:
    """The reading of one handle: where it goes on, how wide its window is and how far it has been asked for."""

    window: int = 0
    next: int = 0
    ahead: int = 0

    def wants(self, start: int, stop: int, size: int, window_max: int) -> int:
        """Take note of a read of ``start`` to ``stop`` in a file of ``size`` bytes; return to where to fetch.

        At least ``stop``; more where reading goes on in order.
        """
        if start == 0 and self.next == 0:
            self.next = stop
            if size <= min(SMALL_FILE_BYTES, max(window_max, stop)):
                return size
            self.window = min(FIRST_BYTES, window_max)
            self.ahead = min(size, max(stop, self.window))
            return self.ahead
        slack = min(SLACK_MAX_BYTES, max(SLACK_MIN_BYTES, self.window))
        if abs(start - self.next) > slack:
            self.window, self.ahead, self.next = 0, stop, stop
            return stop
        self.next = max(self.next, stop)
        if self.next + self.window // 2 < self.ahead:
            return stop
        grown = (4 if self.window < STEEP_BYTES_MAX else 2) * self.window
        self.window = min(window_max, max(grown, FIRST_BYTES))
        self.ahead = max(self.ahead, min(size, self._cut(self.next + self.window)))
        return max(stop, self.ahead)

    def fell_short(self, at: int) -> None:
        """Take note that nothing from ``at`` on was asked for after all: there was no room."""
        self.ahead = min(self.ahead, at)

    def _cut(self, at: int) -> int:
        # Whole ranges: an end in the middle of one would make two requests of it.
        step = range_bytes(self.window)
        return -(-at // step) * step


def range_bytes(window: int) -> int:
    """Return how large the ranges are in which a window is fetched, in bytes."""
    if window <= PIECE_BYTES:
        return max(window, 1)
    step = window // RANGES_A_WINDOW // PIECE_BYTES * PIECE_BYTES
    return min(RANGE_BYTES_MAX, max(PIECE_BYTES, step))


def cut(start: int, stop: int, window: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges in which ``start`` to ``stop`` is fetched, cut at multiples of their size."""
    step = range_bytes(window)
    if 0 < stop - start <= step:
        yield start, stop
        return
    while start < stop:
        end = min(stop, (start // step + 1) * step)
        # A short head or tail would cost a request of its own.
        if end - start < step // 2:
            end = min(stop, end + step)
        if stop - end < step // 2:
            end = stop
        yield start, end
        start = end
