"""What is fetched before it is asked for, by how a handle reads."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fusekit.cache.readahead import (
    FIRST_BYTES,
    PIECE_BYTES,
    RANGE_BYTES_MAX,
    SMALL_FILE_BYTES,
    Reader,
    cut,
    range_bytes,
)

BIG = 1 << 30
WINDOW = 64 << 20
STEP = 128 << 10


def test_the_first_read_of_a_large_file_is_small() -> None:
    assert Reader().wants(0, 4096, BIG, WINDOW) == FIRST_BYTES


def test_a_small_file_comes_whole() -> None:
    assert Reader().wants(0, 4096, SMALL_FILE_BYTES, WINDOW) == SMALL_FILE_BYTES
    assert Reader().wants(0, 4096, SMALL_FILE_BYTES, 0) == 4096, "unless nothing is to be read ahead"


def test_the_window_widens_up_to_its_limit_while_reading_goes_on_in_order() -> None:
    reader = Reader()
    windows = []
    for at in range(0, BIG, STEP):
        wanted = reader.wants(at, at + STEP, BIG, WINDOW)
        assert wanted <= BIG
        windows.append(reader.window)
    assert windows[0] == FIRST_BYTES
    assert max(windows) == WINDOW
    grown = [window for window, _ in itertools.groupby(windows)]
    assert all(after in {4 * before, 2 * before} for before, after in itertools.pairwise(grown))
    assert len(grown) <= 7, "each step may cost a round trip"


def test_a_reader_in_order_always_has_half_a_window_before_it_from_its_second_read_on() -> None:
    reader = Reader()
    reader.wants(0, STEP, BIG, WINDOW)
    for at in range(STEP, BIG, STEP):
        reader.wants(at, at + STEP, BIG, WINDOW)
        assert reader.ahead >= min(BIG, at + STEP + reader.window // 2)


def test_a_read_elsewhere_gets_what_it_asked_for_and_closes_the_window() -> None:
    reader = Reader()
    for at in range(0, 8 << 20, STEP):
        reader.wants(at, at + STEP, BIG, WINDOW)
    assert reader.wants(500 << 20, (500 << 20) + 4096, BIG, WINDOW) == (500 << 20) + 4096
    assert reader.window == 0


def test_requests_that_overtake_each_other_are_still_in_order() -> None:
    reader = Reader()
    reader.wants(0, STEP, BIG, WINDOW)
    for at in (2 * STEP, STEP, 4 * STEP, 3 * STEP, 5 * STEP, 8 * STEP, 7 * STEP, 6 * STEP):
        reader.wants(at, at + STEP, BIG, WINDOW)
    assert reader.window >= 4 * FIRST_BYTES


def test_what_there_was_no_room_for_is_asked_for_again() -> None:
    reader = Reader()
    for at in range(0, 4 << 20, STEP):
        reader.wants(at, at + STEP, BIG, WINDOW)
    reader.fell_short(5 << 20)
    assert reader.wants(4 << 20, (4 << 20) + STEP, BIG, WINDOW) > 5 << 20


@given(
    start=st.integers(0, 1 << 28),
    length=st.integers(1, 1 << 27),
    window=st.sampled_from([0, 4096, FIRST_BYTES, WINDOW]),
)
def test_a_window_is_cut_into_ranges_without_gap_or_overlap(start: int, length: int, window: int) -> None:
    stop = start + length
    window = window or length
    ranges = list(cut(start, stop, window))
    assert ranges[0][0] == start
    assert ranges[-1][1] == stop
    assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))
    step = range_bytes(window)
    assert step <= max(RANGE_BYTES_MAX, PIECE_BYTES)
    assert all(stop - start < 2 * step for start, stop in ranges)


def test_what_fits_in_one_range_is_one_wherever_it_lies() -> None:
    assert list(cut(4096, 12288, 8192)) == [(4096, 12288)]
