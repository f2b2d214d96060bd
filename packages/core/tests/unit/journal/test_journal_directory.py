"""What the journal is in is durable before anything in it is promised."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusekit.journal.journal import Journal


async def test_the_directories_of_a_new_journal_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    directory = tmp_path / "new" / "state" / "identity"
    journal = await Journal.open(directory, "a test")
    assert {tmp_path, tmp_path / "new", tmp_path / "new" / "state", directory} <= {*synced}
    await journal.close()
    synced.clear()
    journal = await Journal.open(directory, "a test")
    await journal.close()
    assert directory.parent in synced, "the run before may have ended before it had"
