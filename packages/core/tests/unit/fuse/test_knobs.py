"""The kernel's limits: what is raised, what is left alone, and what is said where nothing may be raised."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusekit.fuse import knobs
from fusekit.fuse.knobs import CONGESTION, MAX_BACKGROUND, READ_AHEAD_KB, raise_limits

DEVICE = os.makedev(0, 41)


def sysfs(directory: Path, ahead: int = 128, background: int = 12, congestion: int = 9) -> tuple[Path, Path]:
    """Make files as sysfs has them for one mount, and return the two directories."""
    bdi, connections = directory / "bdi", directory / "connections"
    (bdi / "0:41").mkdir(parents=True)
    (connections / "41").mkdir(parents=True)
    (bdi / "0:41" / "read_ahead_kb").write_text(f"{ahead}\n")
    (connections / "41" / "max_background").write_text(f"{background}\n")
    (connections / "41" / "congestion_threshold").write_text(f"{congestion}\n")
    return bdi, connections


def test_limits_are_raised(tmp_path: Path) -> None:
    found = raise_limits(DEVICE, *sysfs(tmp_path))
    assert (found.read_ahead_kb, found.max_background, found.congestion_threshold, found.notes) == (
        READ_AHEAD_KB,
        MAX_BACKGROUND,
        CONGESTION,
        (),
    )
    assert found.as_dict()["buffers_bytes"] == MAX_BACKGROUND << 20


def test_limits_that_are_higher_already_stay(tmp_path: Path) -> None:
    found = raise_limits(DEVICE, *sysfs(tmp_path, 8192, 500, 400))
    assert (found.read_ahead_kb, found.max_background, found.congestion_threshold) == (8192, 500, 400)


def test_where_nothing_may_be_raised_it_says_why_and_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = sysfs(tmp_path)

    def refused(self: Path, text: str) -> int:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_text", refused)
    found = raise_limits(DEVICE, *places)
    assert (found.read_ahead_kb, found.max_background) == (128, 12)
    assert [note.partition(";")[0] for note in found.notes] == [
        "read_ahead_kb: not permitted, it takes root",
        "max_background: not permitted, it takes root",
    ]
    assert "at most 12 of the kernel's reads are in flight" in found.notes[1]


def test_without_the_control_file_system_the_kernel_has_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bdi, _ = sysfs(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(knobs, "CONNECTIONS", empty)
    found = raise_limits(DEVICE, bdi, empty)
    assert found.max_background is None
    assert f"max_background: {empty} is not mounted; at most 12" in found.notes[0]
    assert found.as_dict()["buffers_bytes"] == 12 << 20
