"""`fusekit.ranges` against a plain set of numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fusekit.ranges import Ranges

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 40)), max_size=30)


@given(STEPS, st.integers(0, 40), st.integers(0, 40))
def test_ranges_hold_exactly_the_bytes_that_were_added_and_not_removed(
    steps: list[tuple[bool, int, int]], start: int, stop: int
) -> None:
    ranges, model = Ranges(), set[int]()
    for adding, low, high in steps:
        if adding:
            ranges.add(low, high)
            model |= set(range(low, high))
        else:
            ranges.remove(low, high)
            model -= set(range(low, high))
    assert {byte for low, high in ranges for byte in range(low, high)} == model
    pairs = list(ranges)
    assert all(low < high for low, high in pairs)
    assert all(one[1] < other[0] for one, other in pairwise(pairs)), "touching ranges are one"
    assert ranges.total == len(model)
    wanted = set(range(start, stop))
    assert {byte for low, high in ranges.missing(start, stop) for byte in range(low, high)} == wanted - model
    assert ranges.covers(start, stop) == (wanted <= model)


def test_a_copy_changes_on_its_own() -> None:
    ranges = Ranges((0, 10))
    twin = ranges.copy()
    twin.remove(2, 4)
    assert list(ranges) == [(0, 10)]
    assert list(twin) == [(0, 2), (4, 10)]
