"""The journal by itself: what is durable when, what a full disk does to it, and journals of earlier versions."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from fusekit.errors import MountError, NoSpace
from fusekit.journal.journal import RESERVE_BYTES, Journal, State, boot_id
from fusekit.types import Attributes, Entry

# As the first version made it.
VERSION_1 = """
CREATE TABLE generations (
    id INTEGER PRIMARY KEY, state TEXT NOT NULL, principal TEXT NOT NULL, path TEXT NOT NULL, directory TEXT NOT NULL,
    name TEXT NOT NULL, replacing TEXT, key TEXT NOT NULL, note TEXT NOT NULL DEFAULT '{}',
    size INTEGER NOT NULL DEFAULT 0, attributes TEXT NOT NULL DEFAULT '{}', staging TEXT NOT NULL, error TEXT,
    created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL
) STRICT;
PRAGMA user_version=1;
"""


async def begun(journal: Journal, name: str) -> int:
    return await journal.begin(
        principal="", path=f"/{name}", directory="", name=name, replacing=None, key=f"key-{name}"
    )


async def flushed(journal: Journal, row: int, name: str, *, durable: bool = True, **more: Any) -> None:
    await journal.flushed(
        row, path=f"/{name}", directory="", name=name, replacing=None, size=1, attributes=Attributes(mode=0o600),
        durable=durable, **more,
    )  # fmt: skip


async def test_a_journal_of_the_first_version_is_taken_over_with_all_its_rows(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "journal.db")
    old.executescript(VERSION_1)
    for number, state in enumerate(("open", "flushed", "sending", "failed")):
        old.execute(
            "INSERT INTO generations (state, principal, path, directory, name, replacing, key, note, size, attributes,"
            " staging, error, created_ns, updated_ns) VALUES (?, 'me', ?, '/d', ?, ?, ?, ?, 5, ?, ?, ?, 1, 2)",
            (
                state,
                f"/d/{state}",
                state,
                json.dumps({"kind": "file", "name": state, "ref": "r", "id": None, "version": "7", "size": 3, "mtime_ns": 9}),
                f"key{number}",
                json.dumps({"upload": "u1"}),
                json.dumps({"mode": 0o640, "uid": 1, "gid": 2, "mtime_ns": 3, "atime_ns": None, "rdev": None}),
                f"key{number}",
                "refused" if state == "failed" else None,
            ),
        )  # fmt: skip
    old.commit()
    old.close()
    (tmp_path / "staging").mkdir()
    for number in range(4):
        (tmp_path / "staging" / f"key{number}").write_bytes(b"bytes")
    journal = await Journal.open(tmp_path, "a test", source="memory:")
    rows = {row.state: row for row in await journal.rows()}
    assert set(rows) == set(State)
    assert all(
        (row.path, row.size, row.note) == (f"/d/{state.value}", 5, {"upload": "u1"}) for state, row in rows.items()
    )
    assert rows[State.FLUSHED].replacing == Entry.file("flushed", ref="r", version="7", size=3, mtime_ns=9)
    assert rows[State.FAILED].error == "refused"
    assert rows[State.FLUSHED].whole
    assert rows[State.SENDING].whole
    assert not rows[State.OPEN].whole
    assert not any(row.trusted for row in rows.values()), "nobody knows whether the power went since"
    assert (await begun(journal, "new"), await journal.source()) == (5, "memory:")
    await journal.close()
    again = await Journal.open(tmp_path, "a test")
    assert len(again.left) == 5
    assert sorted(path.name for path in (tmp_path / "staging").iterdir()) == ["key0", "key1", "key2", "key3"]
    await again.close()


async def test_a_journal_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    newer = sqlite3.connect(tmp_path / "journal.db")
    newer.execute("PRAGMA user_version=3")
    newer.close()
    with pytest.raises(MountError, match="newer"):
        await Journal.open(tmp_path, "a test")


async def test_those_who_wait_for_the_disk_at_the_same_time_share_one_wait(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, "a test")
    rows = [await begun(journal, f"f{number}") for number in range(40)]
    commits: list[str] = []
    journal._connection.set_trace_callback(lambda said: commits.append(said) if said == "COMMIT" else None)
    async with trio.open_nursery() as nursery:
        for row in rows:
            nursery.start_soon(flushed, journal, row, f"f{row}")
    journal._connection.set_trace_callback(None)
    assert len(commits) < 20, "one for the first, and few for those that came while it waited"
    assert all(row.trusted and row.boot == "" for row in await journal.rows())
    await journal.close()


async def test_one_that_waits_is_told_when_the_change_of_all_failed(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, "a test")
    rows = [await begun(journal, name) for name in "ab"]
    failed: list[str] = []

    async def one(row: int) -> None:
        try:
            await flushed(journal, row, "x" if row == rows[0] else "y")
        except sqlite3.OperationalError as error:
            failed.append(str(error))
        except Exception as error:  # noqa: BLE001 - counted
            failed.append(type(error).__name__)

    connection = journal._connection
    connection.execute("CREATE TRIGGER refuse BEFORE UPDATE ON generations BEGIN SELECT RAISE(ABORT, 'no'); END")
    async with trio.open_nursery() as nursery:
        for row in rows:
            nursery.start_soon(one, row)
    assert failed == ["BackendError", "BackendError"]
    connection.execute("DROP TRIGGER refuse")
    await flushed(journal, rows[0], "a")
    assert {row.state for row in await journal.rows()} == {State.FLUSHED, State.OPEN}
    await journal.close()


async def test_what_was_not_made_durable_is_trusted_until_the_machine_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = await Journal.open(tmp_path, "a test")
    await flushed(journal, await begun(journal, "lightly"), "lightly", durable=False)
    await flushed(journal, await begun(journal, "durably"), "durably")
    assert [row.trusted for row in await journal.rows()] == [True, True]
    boot_id.cache_clear()
    monkeypatch.setattr(Path, "read_text", lambda self: "another boot")
    assert [row.trusted for row in await journal.rows()] == [False, True]
    monkeypatch.undo()
    boot_id.cache_clear()
    await journal.close()


async def test_a_generation_takes_the_place_of_another_in_one_step(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, "a test")
    first, second = await begun(journal, "f"), await begun(journal, "f")
    await flushed(journal, first, "f")
    await flushed(journal, second, "f", content=b"z", instead=[first])
    (row,) = await journal.rows()
    assert (row.id, row.inline, journal._content(second)) == (second, True, b"z")
    await journal.committed(second, Entry.file("f", version="2"), ())
    assert await journal.rows() == []
    await journal.close()


async def test_on_a_full_disk_the_journal_still_commits_with_what_was_kept_free(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, "a test")
    row = await begun(journal, "f")
    reserve = tmp_path / "reserve"
    assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES
    connection = journal._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    # SQLite's own limit stands in for the disk: reached, it is the same error.
    connection.execute(f"PRAGMA max_page_count={pages}")
    told: list[bool] = []
    give = journal._give_reserve

    def giving() -> bool:
        told.append(give())
        connection.execute(f"PRAGMA max_page_count={pages + 1000}")
        return told[-1]

    journal._give_reserve = giving  # type: ignore[method-assign]
    await flushed(journal, row, "f", content=os.urandom(60_000))
    assert (told, reserve.exists()) == ([True], False)
    (kept,) = await journal.rows()
    assert (kept.state, kept.inline) == (State.FLUSHED, True)
    await begun(journal, "g")
    assert reserve.exists(), "made again for the next time"
    reserve.unlink()
    journal._reserved = False
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    journal._give_reserve = give  # type: ignore[method-assign]
    with pytest.raises(NoSpace):
        await flushed(journal, row, "f", content=os.urandom(600_000))
    assert len(await journal.rows()) == 2, "nothing is lost, and it goes on"
    await journal.close()


async def test_who_wants_a_journal_in_use_is_told_who_has_it_and_how_far_it_is(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, "the mount of x:")
    await journal.tell("the mount of x:, which is still draining, 3 files")
    with pytest.raises(MountError, match=r"the mount of x:, which is still draining, 3 files \(pid [0-9]+\)"):
        await Journal.open(tmp_path, "another")
    await journal.close()
    await (await Journal.open(tmp_path, "another")).close()
