"""The journal: a row for each generation of a dirty file, in SQLite, on its way to the remote side.

Journal layer. One owner a journal (a lock on its directory), one connection in one thread. A row holds everything
that a later process needs to finish or to show: who, where, what it replaces, how far the upload came. Secrets never
get here: refs, versions and notes are public by the contract.

Order is kept by SQLite: what is committed without waiting for the disk survives a killed process, and a power loss
takes only a tail of it; a commit that does wait makes all before it durable. Those that wait at the same time share
one wait. The bytes of a small file are in its row as well, so that the same wait does for both.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import fcntl
import functools
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import attrs
import trio

from fusekit.disk import make_directory, sync_directory
from fusekit.errors import BackendError, MountError, NoSpace
from fusekit.journal import steps
from fusekit.types import Attributes, Entry, Io, Kind

T = TypeVar("T")

SCHEMA_VERSION: Final = 2

# Files of at most this many bytes are made durable with their row: one wait for the disk instead of three (file, its
# directory, row). Beyond it the copy costs more than it saves.
INLINE_MAX: Final = 64 << 10

# Kept free for the journal on a full disk: dirty files fill it, and their rows must still be written.
RESERVE_BYTES: Final = 16 << 20

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

# What each version added. A journal of the first has flushed rows of which nobody knows whether they were on the disk
# before the power went; they were whole as long as it did not.
_MIGRATIONS: Final = {
    1: """
ALTER TABLE generations ADD COLUMN whole INTEGER NOT NULL DEFAULT 0;
ALTER TABLE generations ADD COLUMN boot TEXT NOT NULL DEFAULT '';
ALTER TABLE generations ADD COLUMN content BLOB;
UPDATE generations SET whole = 1, boot = '?' WHERE state IN ('flushed', 'sending');
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
""",
}

_COLUMNS: Final = (
    "id, state, principal, path, directory, name, replacing, key, note, size, attributes, staging, error, created_ns,"
    " updated_ns, whole, boot, content IS NOT NULL AS inline"
)


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
    whole: bool
    boot: str
    inline: bool

    @property
    def trusted(self) -> bool:
        """Return whether the bytes are all of what was flushed: durable, or written since this machine was started."""
        return self.whole and self.boot in {"", boot_id()}


@attrs.define(eq=False)
class _Wish:
    """A change that waits for the disk together with others; ``error`` is what became of it."""

    change: Callable[[], object]
    done: bool = False
    error: BaseException | None = None


class Journal:
    """The journal in one directory; open from `open` until `close`. ``left`` is what an earlier run left in it.

    Every method raises `NoSpace` where the disk is full, and a plain `BackendError` where it cannot be written.
    """

    def __init__(self, directory: Path, connection: sqlite3.Connection, lock: int) -> None:
        self.directory = directory
        self.left: tuple[Row, ...] = ()
        self._connection = connection
        self._lock = lock
        self._wishes: list[_Wish] = []
        self._sharing = trio.Lock()
        self._reserved = False
        self._thread = trio.CapacityLimiter(1)
        self._synchronous = ""

    @classmethod
    async def open(cls, directory: Path, owner: str, *, source: str | None = None) -> Journal:
        """Open or make the journal in ``directory`` and lock it; ``owner`` is told to whoever else wants it.

        ``source`` is written down for commands that come upon the journal without its mount.

        Raises:
            MountError: another process has it, or it was written by a newer fusekit.
        """
        return await trio.to_thread.run_sync(cls._open, directory, owner, source)

    @classmethod
    def _open(cls, directory: Path, owner: str, source: str | None) -> Journal:
        make_directory(directory)
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
        connection.execute("PRAGMA synchronous=FULL")
        for before in range(version, SCHEMA_VERSION):
            script = _MIGRATIONS[before] if before else _SCHEMA
            connection.executescript(f"BEGIN; {script} PRAGMA user_version={before + 1}; COMMIT;")
        if source is not None:
            connection.execute("INSERT OR REPLACE INTO facts VALUES ('source', ?)", (source,))
        sync_directory(directory)  # the names of journal.db and of staging; SQLite sees to those of its other files
        journal = cls(directory, connection, lock)
        journal._synchronous = "FULL"
        journal.left = tuple(journal._rows())
        journal._restore()
        journal._sweep()
        return journal

    def _restore(self) -> None:
        """Write the staging files of small generations that the power took, from their rows."""
        for row in self.left:
            path = self.staging_path(row.staging)
            if row.inline:
                path.write_bytes(self._content(row.id))
                path.chmod(0o600)

    def _content(self, row: int) -> bytes:
        content: bytes = self._connection.execute("SELECT content FROM generations WHERE id = ?", (row,)).fetchone()[0]
        return content

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

    async def tell(self, owner: str) -> None:
        """Say something else to whoever wants the journal, such as how far the end of this process is."""
        await self._run(functools.partial(_write_owner, self._lock, owner))

    async def source(self) -> str | None:
        """Return the source that this is the journal of, None where no mount of this version had it."""
        found = await self._run(
            lambda: self._connection.execute("SELECT value FROM facts WHERE name = 'source'").fetchone()
        )
        return found["value"] if found else None

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
            self._reserve()
            self._durability("NORMAL")
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
        attributes: Attributes, durable: bool, content: bytes | None = None, instead: Iterable[int] = (),
    ) -> None:  # fmt: skip
        """Say that the program flushed the generation; ``durable`` returns only when that survives a power loss.

        ``content`` are its bytes, of a small file. It comes in the place of the generations ``instead``, in one step.
        """
        values = {
            "state": State.FLUSHED.value,
            "path": path,
            "directory": directory,
            "name": name,
            "replacing": _dump_entry(replacing),
            "size": size,
            "attributes": _dump_attributes(attributes),
            "error": None,
            "whole": 1,
            "boot": "" if durable else boot_id(),
            "content": content,
        }
        before = tuple(instead)

        def change() -> None:
            self._set((row,), values)
            self._delete(before)

        await (self._durably(change) if durable else self._lightly(change))
        steps.reached("row-flushed")

    async def sending(self, row: int) -> None:
        """Say that the upload begins."""
        await self._lightly(lambda: self._set((row,), {"state": State.SENDING.value}))
        steps.reached("row-sending")

    async def waiting(self, rows: Iterable[int], reason: str | None) -> None:
        """Say that generations wait to be sent, again; ``reason`` is why the last attempt was none."""
        values = {"state": State.FLUSHED.value, "error": reason}
        wanted = tuple(rows)
        await self._lightly(lambda: self._set(wanted, values))

    async def revive(self, rows: Iterable[int]) -> None:
        """Let failed generations be sent by the next mount, by the user's word: whatever was wrong with them."""
        wanted = tuple(rows)
        values = {"state": State.FLUSHED.value, "error": None, "boot": ""}
        await self._durably(lambda: self._set(wanted, values))

    async def note(self, row: int, note: Mapping[str, str]) -> None:
        """Keep what the backend wants to find at the next attempt; in the journal when this returns."""
        await self._durably(lambda: self._set((row,), {"note": json.dumps(dict(note))}))
        steps.reached("note-saved")

    async def failed(self, row: int, reason: str) -> None:
        """Keep the generation as failed, with the reason in words."""
        await self._lightly(lambda: self._set((row,), {"state": State.FAILED.value, "error": reason}))
        steps.reached("row-failed")

    async def remove(self, row: int) -> None:
        """Forget a generation and leave its bytes to the caller: it was committed, or its name is gone."""
        await self._lightly(lambda: self._delete((row,)))

    async def committed(self, row: int, entry: Entry, newer: Iterable[int]) -> None:
        """Forget a generation that the remote side has, and let ``newer`` ones replace ``entry``; durable.

        It must not come back after a power loss: its bytes go next, and the remote side may have others by then.
        """
        after = tuple(newer)

        def change() -> None:
            self._delete((row,))
            self._set(after, {"replacing": _dump_entry(entry)})

        await self._durably(change)

    async def drop(self, rows: Iterable[int]) -> None:
        """Forget generations and delete their bytes; a crash in between leaves bytes that the next start sweeps."""
        wanted = tuple(rows)

        def drop() -> None:
            for key in self._delete(wanted):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.staging_path(key))

        if wanted:
            await self._lightly(drop)

    async def discard(self, keys: Iterable[str]) -> None:
        """Delete the bytes of generations whose rows are gone."""
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                await self._run(functools.partial(os.unlink, self.staging_path(key)))

    async def moved(self, row: int, *, path: str, directory: str | None, name: str) -> None:
        """Say which name a generation belongs to now; ``directory`` None: its address is not known to be another."""
        values = {"path": path, "name": name}
        changed = values if directory is None else {**values, "directory": directory}
        await self._lightly(lambda: self._set((row,), changed))

    async def renamed(
        self, rows: Iterable[int], *, path: str, directory: str, name: str, replacing: Entry | None
    ) -> None:
        """Say which name, and what there, generations that wait to be sent belong to now."""
        values = {"path": path, "directory": directory, "name": name, "replacing": _dump_entry(replacing)}
        wanted = tuple(rows)
        await self._lightly(lambda: self._set(wanted, values))

    async def store_with(self, row: int, attributes: Attributes) -> None:
        """Say which attributes to store with a generation now."""
        await self._lightly(lambda: self._set((row,), {"attributes": _dump_attributes(attributes)}))

    async def rows(self) -> list[Row]:
        """Return all generations, oldest first."""
        return await self._run(self._rows)

    def _rows(self) -> list[Row]:
        return [_load(row) for row in self._connection.execute(f"SELECT {_COLUMNS} FROM generations ORDER BY id")]

    def _set(self, rows: tuple[int, ...], values: Mapping[str, object]) -> None:
        if rows:
            columns = ", ".join(f"{name} = ?" for name in (*values, "updated_ns"))
            marks = ", ".join("?" * len(rows))
            self._connection.execute(
                f"UPDATE generations SET {columns} WHERE id IN ({marks})", (*values.values(), time.time_ns(), *rows)
            )

    def _delete(self, rows: tuple[int, ...]) -> list[str]:
        """Delete rows and return the keys of their bytes."""
        if not rows:
            return []
        marks = ", ".join("?" * len(rows))
        found = self._connection.execute(f"DELETE FROM generations WHERE id IN ({marks}) RETURNING staging", rows)
        return [row["staging"] for row in found.fetchall()]

    async def _lightly(self, change: Callable[[], object]) -> None:
        """Make a change that survives a killed process."""

        def run() -> None:
            self._durability("NORMAL")
            self._whole(change)

        await self._run(run)

    async def _durably(self, change: Callable[[], object]) -> None:
        """Make a change that survives a power loss; those that wait here at the same time share one wait for the disk."""
        wish = _Wish(change)
        self._wishes.append(wish)
        with trio.CancelScope(shield=True):  # whoever is first works for the others as well, and the disk is ours
            async with self._sharing:
                if not wish.done:
                    wishes, self._wishes = self._wishes, []
                    await self._together(wishes)
        if wish.error is not None:
            raise wish.error

    async def _together(self, wishes: list[_Wish]) -> None:
        def run() -> None:
            self._durability("FULL")
            self._whole(lambda: [wish.change() for wish in wishes])

        error: BaseException | None = None
        try:
            await self._run(run)
        except BaseException as failed:  # noqa: BLE001 - each of those who wait raises it
            error = failed
        for wish in wishes:
            wish.done, wish.error = True, copy.copy(error)

    def _whole(self, change: Callable[[], object]) -> None:
        """Make ``change`` in one transaction; on a full disk once more with what was kept free for that."""
        try:
            self._transaction(change)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL or not self._give_reserve():
                raise
            self._transaction(change)

    def _transaction(self, change: Callable[[], object]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            change()
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have done so by itself
                self._connection.execute("ROLLBACK")
            raise

    def _reserve(self) -> None:
        """Keep space free for the journal from when the first file becomes dirty; on a disk without it there is none."""
        if self._reserved:
            return
        self._reserved = True
        with contextlib.suppress(OSError):
            fd = os.open(self.directory / "reserve", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
            finally:
                os.close(fd)

    def _give_reserve(self) -> bool:
        """Free the reserve and return whether there was one; the next file that becomes dirty makes it anew."""
        try:
            os.unlink(self.directory / "reserve")
        except OSError:
            return False
        self._reserved = False
        return True

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
            f"{directory} is in use by {holder}; wait for its end or unmount it first, or give this mount its own with {option}"
        ) from None
    _write_owner(fd, owner)
    return fd


def _write_owner(fd: int, owner: str) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{owner} (pid {os.getpid()})\n".encode(), 0)


@functools.cache
def boot_id() -> str:
    """Return what names the time since this machine was started: what was written in it survives a killed process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"process {os.getpid()}"


def _dump_attributes(attributes: Attributes) -> str:
    return json.dumps(attrs.asdict(attributes))


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
        whole=bool(row["whole"]),
        boot=row["boot"],
        inline=bool(row["inline"]),
    )
