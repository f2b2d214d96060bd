"""A set of half-open byte ranges: which bytes of a file are here.

A base module, used by the block store and by staging files. Ranges are kept sorted, disjoint and not touching, so that
a file that came whole is one range and every question is a bisection.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Ranges:
    """Sorted, disjoint, non-touching half-open ranges ``start, stop`` of byte offsets."""

    __slots__ = ("_starts", "_stops")

    def __init__(self, *ranges: tuple[int, int]) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._stops, strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ranges({', '.join(f'{start}-{stop}' for start, stop in self)})"

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def total(self) -> int:
        """Return how many bytes are in the set."""
        return sum(self._stops) - sum(self._starts)

    def copy(self) -> Ranges:
        """Return an equal set that changes on its own."""
        twin = Ranges()
        twin._starts, twin._stops = self._starts[:], self._stops[:]
        return twin

    def add(self, start: int, stop: int) -> None:
        """Put the bytes from ``start`` to ``stop`` into the set."""
        if start >= stop:
            return
        low = bisect_left(self._stops, start)  # the first range that ends at or after our start touches us
        high = bisect_right(self._starts, stop)
        if low < high:
            start = min(start, self._starts[low])
            stop = max(stop, self._stops[high - 1])
        self._starts[low:high] = [start]
        self._stops[low:high] = [stop]

    def remove(self, start: int, stop: int) -> None:
        """Take the bytes from ``start`` to ``stop`` out of the set."""
        if start >= stop:
            return
        low = bisect_right(self._stops, start)
        high = bisect_left(self._starts, stop)
        if low >= high:
            return
        left, right = self._starts[low], self._stops[high - 1]
        kept = [(a, b) for a, b in ((left, start), (stop, right)) if a < b]
        self._starts[low:high] = [a for a, _ in kept]
        self._stops[low:high] = [b for _, b in kept]

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the ranges between ``start`` and ``stop`` that are not in the set, in order."""
        gaps: list[tuple[int, int]] = []
        at = start
        for index in range(bisect_right(self._stops, start), len(self._starts)):
            if at >= stop or self._starts[index] >= stop:
                break
            if self._starts[index] > at:
                gaps.append((at, self._starts[index]))
            at = self._stops[index]
        if at < stop:
            gaps.append((at, stop))
        return gaps

    def within(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return what of ``start`` to ``stop`` is in the set, in order."""
        low, high = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        return [
            (max(start, self._starts[index]), min(stop, self._stops[index])) for index in range(low, max(low, high))
        ]

    def end_of(self, at: int) -> int:
        """Return where the range that has the byte ``at`` ends; ``at`` itself where none has it."""
        index = bisect_right(self._starts, at) - 1
        return max(at, self._stops[index]) if index >= 0 else at

    def covers(self, start: int, stop: int) -> bool:
        """Return whether every byte from ``start`` to ``stop`` is in the set."""
        if start >= stop:
            return True
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and self._stops[index] >= stop
