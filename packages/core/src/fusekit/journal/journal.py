"""The journal: a row for each generation of a dirty file, in SQLite, on its way to the remote side.

Journal layer. One owner a journal (a lock on its directory), one connection in one thread. A row holds everything
that a later process needs to finish or to show: who, where, what it replaces, how far the upload came. Secrets never
get here: refs, versions and notes are public by the contract.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import attrs
import trio

from fusekit.errors import BackendError, MountError, NoSpace
from fusekit.journal import steps
from fusekit.types import Attributes, Entry, Io, Kind

T = TypeVar("T")

SCHEMA_VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE generations (
    id INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    principal TEXT NOT NULL,
    path TEXT NOT NULL,
    directory TEXT NOT NULL,
    name TEXT NOT NULL,
    replacing TEXT,
    key TEXT NOT NULL,
    note TEXT NOT NULL DEFAULT '{}',
    size INTEGER NOT NULL DEFAULT 0,
    attributes TEXT NOT NULL DEFAULT '{}',
    staging TEXT NOT NULL,
    error TEXT,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL
) STRICT;
"""


class State(enum.Enum):
    """How far a generation is. Failed ones stay until the user says what becomes of them."""

    OPEN = "open"
    FLUSHED = "flushed"
    SENDING = "sending"
    FAILED = "failed"


@attrs.frozen
class Row:
    """One generation as the journal has it."""

    id: int
    state: State
    principal: str
    path: str
    directory: str
    name: str
    replacing: Entry | None
    key: str
    note: Mapping[str, str]
    size: int
    attributes: Attributes
    staging: str
    error: str | None
    created_ns: int
    updated_ns: int


class Journal:
    """The journal in one directory; open from `open` until `close`. ``left`` is what an earlier run left in it.

    Every method raises `NoSpace` where the disk is full, and a plain `BackendError` where it cannot be written.
    """

    def __init__(self, directory: Path, connection: sqlite3.Connection, lock: int) -> None:
        self.directory = directory
        self.left: tuple[Row, ...] = ()
        self._connection = connection
        self._lock = lock
        self._thread = trio.CapacityLimiter(1)
        self._synchronous = ""

    @classmethod
    async def open(cls, directory: Path, owner: str) -> Journal:
        """Open or make the journal in ``directory`` and lock it; ``owner`` is told to whoever else wants it.

        Raises:
            MountError: another process has it, or it was written by a newer fusekit.
        """
        return await trio.to_thread.run_sync(cls._open, directory, owner)

    @classmethod
    def _open(cls, directory: Path, owner: str) -> Journal:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        (directory / "staging").mkdir(exist_ok=True, mode=0o700)
        lock = lock_directory(directory, owner, "--state-dir")
        connection = sqlite3.connect(directory / "journal.db", check_same_thread=False, isolation_level=None)
        os.chmod(directory / "journal.db", 0o600)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            os.close(lock)
            raise MountError(f"the journal in {directory} was written by a newer fusekit; upgrade, or use --state-dir")
        if version == 0:
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        journal = cls(directory, connection, lock)
        journal.left = tuple(journal._rows())
        journal._sweep()
        return journal

    def _sweep(self) -> None:
        """Remove staging files that no row names: of files that were removed while open, or never written to."""
        named = {row.staging for row in self.left}
        for path in (self.directory / "staging").iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Close the connection and give the lock back."""
        await self._run(self._connection.close)
        os.close(self._lock)

    def staging_path(self, key: str) -> Path:
        """Return where the bytes of the generation ``key`` lie."""
        return self.directory / "staging" / key

    async def begin(
        self, *, principal: str, path: str, directory: str, name: str, replacing: Entry | None, key: str
    ) -> int:
        """Write a row for a generation that a program started to change, and return its number."""
        now = time.time_ns()
        replaced = _dump_entry(replacing)

        def insert() -> int:
            cursor = self._connection.execute(
                "INSERT INTO generations (state, principal, path, directory, name, replacing, key, staging, created_ns,"
                " updated_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (State.OPEN.value, principal, path, directory, name, replaced, key, key, now, now),
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

        begun = await self._run(insert)
        steps.reached("row-begun")
        return begun

    async def flushed(
        self, row: int, *, path: str, directory: str, name: str, replacing: Entry | None, size: int,
        attributes: Attributes, durable: bool,
    ) -> None:  # fmt: skip
        """Say that the program flushed the generation; ``durable`` returns only when that survives a power loss."""
        values = {
            "state": State.FLUSHED.value,
            "path": path,
            "directory": directory,
            "name": name,
            "replacing": _dump_entry(replacing),
            "size": size,
            "attributes": json.dumps(attrs.asdict(attributes)),
            "error": None,
        }
        await self._update(row, values, durable=durable)
        steps.reached("row-flushed")

    async def sending(self, row: int) -> None:
        """Say that the upload begins."""
        await self._update(row, {"state": State.SENDING.value})
        steps.reached("row-sending")

    async def note(self, row: int, note: Mapping[str, str]) -> None:
        """Keep what the backend wants to find at the next attempt; in the journal when this returns."""
        await self._update(row, {"note": json.dumps(dict(note))}, durable=True)
        steps.reached("note-saved")

    async def failed(self, row: int, reason: str) -> None:
        """Keep the generation as failed, with the reason in words."""
        await self._update(row, {"state": State.FAILED.value, "error": reason})
        steps.reached("row-failed")

    async def remove(self, row: int) -> None:
        """Forget a generation and leave its bytes to the caller: it was committed, or its name is gone."""
        await self._run(lambda: self._connection.execute("DELETE FROM generations WHERE id = ?", (row,)))

    async def drop(self, rows: Iterable[int]) -> None:
        """Forget generations and delete their bytes; a crash in between leaves bytes that the next start sweeps."""
        wanted = tuple(rows)

        def drop() -> None:
            marks = ", ".join("?" * len(wanted))
            found = self._connection.execute(
                f"DELETE FROM generations WHERE id IN ({marks}) RETURNING staging", wanted
            ).fetchall()
            for row in found:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.staging_path(row["staging"]))

        if wanted:
            await self._run(drop)

    async def moved(self, row: int, *, path: str, directory: str | None, name: str) -> None:
        """Say which name a generation belongs to now; ``directory`` None: its address is not known to be another."""
        values = {"path": path, "name": name}
        await self._update(row, values if directory is None else {**values, "directory": directory})

    async def rows(self) -> list[Row]:
        """Return all generations, oldest first."""
        return await self._run(self._rows)

    def _rows(self) -> list[Row]:
        return [_load(row) for row in self._connection.execute("SELECT * FROM generations ORDER BY id").fetchall()]

    async def _update(self, row: int, values: Mapping[str, object], *, durable: bool = False) -> None:
        columns = ", ".join(f"{name} = ?" for name in (*values, "updated_ns"))

        def update() -> None:
            self._durability("FULL" if durable else "NORMAL")
            self._connection.execute(
                f"UPDATE generations SET {columns} WHERE id = ?",
                (*values.values(), time.time_ns(), row),
            )

        await self._run(update)

    def _durability(self, level: str) -> None:
        # In WAL mode FULL waits for the disk at each commit and NORMAL does not; both survive a killed process.
        if level != self._synchronous:
            self._connection.execute(f"PRAGMA synchronous={level}")
            self._synchronous = level

    async def _run(self, call: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(call, limiter=self._thread)
        except sqlite3.Error as error:
            full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            raise (NoSpace if full else BackendError)(f"the journal in {self.directory}: {error}") from error


def lock_directory(directory: Path, owner: str, option: str) -> int:
    """Lock ``directory`` for this process and return the descriptor that holds the lock.

    Raises:
        MountError: another process has it; the message says which and what to do.
    """
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 4096, 0).decode(errors="replace").strip() or "another process"
        os.close(fd)
        raise MountError(
            f"{directory} is in use by {holder}; unmount that first, or give this mount its own with {option}"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{owner} (pid {os.getpid()})\n".encode(), 0)
    return fd


def _dump_entry(entry: Entry | None) -> str | None:
    if entry is None:
        return None
    keep = ("name", "ref", "id", "version", "size", "mtime_ns")
    return json.dumps({"kind": entry.kind.value, **{name: getattr(entry, name) for name in keep}})


def _load_entry(text: str | None) -> Entry | None:
    if text is None:
        return None
    values = json.loads(text)
    return Entry(kind=Kind(values.pop("kind")), io=Io.CACHED, **values)


def _load(row: sqlite3.Row) -> Row:
    return Row(
        id=row["id"],
        state=State(row["state"]),
        principal=row["principal"],
        path=row["path"],
        directory=row["directory"],
        name=row["name"],
        replacing=_load_entry(row["replacing"]),
        key=row["key"],
        note=json.loads(row["note"]),
        size=row["size"],
        attributes=Attributes(**json.loads(row["attributes"])),
        staging=row["staging"],
        error=row["error"],
        created_ns=row["created_ns"],
        updated_ns=row["updated_ns"],
    )
