"""The files of the block cache: what they vouch for, and what they do not after a crash."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from fusekit.cache.store import ObjectFile, checksum, scan, standing, throw_away

SIZE = 300_000
DATA = bytes(range(256)) * (SIZE // 256 + 1)
HALVES = ((0, 131072), (131072, SIZE))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "object"


def _stored(path: Path, *ranges: tuple[int, int]) -> None:
    file = ObjectFile.open(path, SIZE)
    file.record(file.put([(memoryview(DATA)[start:stop], start) for start, stop in ranges]))
    file.close()


def _verified(path: Path, size: int = SIZE) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    file = ObjectFile.open(path, size)
    good, bad = file.verify(standing(file.records))
    file.close()
    return [(one.start, one.stop) for one in good], [(one.start, one.stop) for one in bad]


def test_what_was_stored_is_vouched_for_after_a_restart(path: Path) -> None:
    _stored(path, *HALVES)
    assert _verified(path) == (list(HALVES), [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_zeros_in_the_place_of_bytes_are_found(path: Path) -> None:
    _stored(path, *HALVES)
    with path.open("r+b") as file:
        file.seek(131072)
        file.write(bytes(4096))
    assert _verified(path) == ([HALVES[0]], [HALVES[1]])
    assert _verified(path) == ([HALVES[0]], []), "and are not looked at again"


@pytest.mark.parametrize("cut", [1, 16, 31, 33])
def test_a_log_that_ends_in_the_middle_vouches_for_what_is_before(path: Path, cut: int) -> None:
    _stored(path, *HALVES)
    os.truncate(path, path.stat().st_size - cut)
    assert _verified(path)[0] == ([HALVES[0]] if cut < 33 else [])


def test_a_log_with_garbage_vouches_for_what_is_before(path: Path) -> None:
    _stored(path, *HALVES)
    with path.open("r+b") as file:
        file.seek(-20, os.SEEK_END)
        file.write(b"x")
    assert _verified(path) == ([HALVES[0]], [])


@pytest.mark.parametrize(
    "content",
    [b"", b"fusekit", bytes(400_000), random.Random(1).randbytes(400_000)],
    ids=["empty", "short", "zeros", "noise"],
)
def test_a_file_that_is_none_of_ours_vouches_for_nothing(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert _verified(path) == ([], [])


def test_a_file_for_another_size_vouches_for_nothing(path: Path) -> None:
    _stored(path, *HALVES)
    assert _verified(path, SIZE + 1) == ([], [])


def test_what_was_punched_out_is_neither_good_nor_bad(path: Path) -> None:
    _stored(path, *HALVES)
    file = ObjectFile.open(path, SIZE)
    before = file.allocated()
    file.punch(*HALVES[0])
    assert file.allocated() <= before - 122880
    file.close()
    assert _verified(path) == ([HALVES[1]], [])


def test_a_file_of_unknown_size_gets_its_log_when_the_size_is_known(path: Path) -> None:
    file = ObjectFile.open(path, None)
    records = file.put([(memoryview(DATA)[:SIZE], 0)])
    file.settle(SIZE)
    file.record(records)
    file.close()
    assert _verified(path) == ([(0, SIZE)], [])


def test_a_file_that_is_taken_over_is_described_by_what_is_in_it(tmp_path: Path, path: Path) -> None:
    (tmp_path / "staged").write_bytes(DATA[:SIZE])
    file = ObjectFile.take(path, tmp_path / "staged", SIZE)
    file.record(file.describe(0, SIZE, 131072))
    file.close()
    good, bad = _verified(path)
    assert not bad
    assert (good[0][0], good[-1][1]) == (0, SIZE)


def test_pins_survive_and_what_was_thrown_away_is_deleted(tmp_path: Path, path: Path) -> None:
    _stored(path, *HALVES)
    file = ObjectFile.open(path, SIZE)
    file.pin(True)
    file.close()
    _stored(tmp_path / "other", HALVES[0])
    throw_away(tmp_path / "other", 1)
    (found,) = scan(tmp_path)
    assert (found.name, found.pinned) == ("object", True)
    assert SIZE <= found.allocated <= SIZE + 16384
    assert os.listdir(tmp_path) == ["object"]


def test_a_link_is_not_followed(tmp_path: Path, path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        ObjectFile.open(path, SIZE)
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_checksum_is_never_the_mark_for_none() -> None:
    assert all(checksum(bytes(count)) for count in range(100))
