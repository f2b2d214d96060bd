"""What the last mount knew of names: complete listings and measured sizes, on disk between two mounts.

Cache layer, beside `metadata`, which is what is known now. One SQLite file in the cache directory, read and written in
a thread of its own, in batches, bounded, for the mounting user only. It is a hint and nothing more: a file that is
damaged, or somebody else's, is dropped without a word, and what is in it is believed by its age on the wall clock only
where the mount before ended in order and the clock did not go back. Nothing here fails an operation.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import trio

from fusekit.types import Entry, Io, Kind

logger = logging.getLogger(__name__)

T = TypeVar("T")

NAME: Final = "names.db"

# A file of another form is dropped: to convert a hint is not worth a line of code.
_FORMAT: Final = 1

# What the listings may take on disk; the oldest go first, down to the second number.
BYTES_MAX: Final = 64 << 20
_BYTES_AFTER: Final = 48 << 20

# Longer directories are not kept: one of them would push hundreds of others out.
ENTRIES_MAX: Final = 100_000

# Entries waiting to be written. A walk makes more than a disk takes: the rest is not kept, which costs a listing.
_WAITING_MAX: Final = 200_000

# How long changes are gathered before they are written in one transaction.
_BATCH_S: Final = 1.0

_MEASURED_MAX: Final = 16_384

_KINDS: Final = tuple(Kind)
_IO: Final = tuple(Io)
_FIELDS: Final = (
    ("ref", str), ("id", str), ("blob", str), ("ctime_ns", int), ("atime_ns", int), ("mode", int), ("uid", int),
    ("gid", int), ("nlink", int), ("rdev", int), ("target", str),
)  # fmt: skip
_PLAIN: Final = Entry("", Kind.FILE)

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS about (identity TEXT NOT NULL, clean INTEGER NOT NULL, trusted_from REAL NOT NULL);
CREATE TABLE IF NOT EXISTS listing (
    principal BLOB NOT NULL, ref BLOB NOT NULL, version BLOB, at REAL NOT NULL, entries BLOB NOT NULL,
    PRIMARY KEY (principal, ref)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS size (
    number INTEGER PRIMARY KEY AUTOINCREMENT, object BLOB NOT NULL, version BLOB NOT NULL, size INTEGER NOT NULL,
    UNIQUE (object, version)
);
"""


@attrs.frozen
class Saved:
    """One listing: the directory's ``version`` when it began, how old it is, and what was in it.

    ``age_s`` is infinite where the wall clock cannot be trusted with it.
    """

    version: str | None
    age_s: float
    entries: list[Entry]


@attrs.frozen
class _Waiting:
    """A listing to be written."""

    version: str | None
    at: float
    entries: list[Entry]


class Remembered:
    """The listings of one store; `running` writes them."""

    def __init__(self, path: Path, identity: str, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._identity = identity
        self._clock = clock
        self._thread = trio.CapacityLimiter(1)  # also the lock of the connection
        self._db: sqlite3.Connection | None = None
        self._trusted_from = 0.0
        self._bytes = 0
        self._there: set[int] = set()  # hashes of what may be on disk: a question that has no answer costs no thread
        self._waiting: dict[tuple[str, str], _Waiting] = {}
        self._gone: dict[str, bool] = {}  # addresses whose listing does not stand; True: nor any below
        self._writing: tuple[dict[tuple[str, str], _Waiting], dict[str, bool]] = ({}, {})
        self._entries_waiting = 0
        self._sizes: dict[tuple[str, str], int] = {}
        self._work = trio.Event()

    @classmethod
    async def open(cls, directory: Path, identity: str, clock: Callable[[], float] = time.time) -> Remembered:
        """Return what is kept in ``directory``, which is this process's alone; where that cannot be, nothing is."""
        self = cls(directory / NAME, identity, clock)
        await self._run(self._open)
        return self

    # ---- asking ------------------------------------------------------------------------------------------------

    async def recall(self, principal: str, ref: str) -> Saved | None:
        """Return the listing of the directory at ``ref``, if one was kept that still may stand."""
        if self._db is None or hash((principal, ref)) not in self._there or self._touched(principal, ref):
            return None
        row = await self._run(self._read, principal, ref)
        if row is None or self._touched(principal, ref):
            return None
        version, at, entries = row
        age_s = self._clock() - at
        return Saved(version, age_s if at >= self._trusted_from and age_s >= 0 else float("inf"), entries)

    def _touched(self, principal: str, ref: str) -> bool:
        """Return whether something about the listing was said that is not on disk yet."""
        for waiting, gone in ((self._waiting, self._gone), self._writing):
            if (principal, ref) in waiting or ref in gone:
                return True
            if any(below and ref.startswith(f"{above}/") for above, below in gone.items()):
                return True
        return False

    async def measured(self) -> dict[tuple[str, str], int]:
        """Return the sizes that reading told, by object and version."""
        return await self._run(self._read_sizes) or {}

    # ---- telling: from memory, written soon --------------------------------------------------------------------

    def keep(self, principal: str, ref: str, version: str | None, age_s: float, entries: Iterable[Entry]) -> None:
        """Keep a complete listing that began ``age_s`` ago; ``version`` is what the directory had before."""
        listed = list(entries)
        if self._db is None or len(listed) > ENTRIES_MAX or self._entries_waiting + len(listed) > _WAITING_MAX:
            self.drop(ref)
            return
        self._there.add(hash((principal, ref)))
        self._entries_waiting += len(listed)
        self._waiting[principal, ref] = _Waiting(version, self._clock() - age_s, listed)
        self._work.set()

    def drop(self, ref: str, *, below: bool = False) -> None:
        """Forget the listing of the directory at ``ref``, and with ``below`` those of what is in it: they changed."""
        if not self._there or self._db is None:
            return
        for key in [key for key in self._waiting if key[1] == ref or (below and key[1].startswith(f"{ref}/"))]:
            self._entries_waiting -= len(self._waiting.pop(key).entries)
        self._gone[ref] = below or self._gone.get(ref, False)
        self._work.set()

    def measure(self, what: str, version: str, size: int) -> None:
        """Keep the size of the object ``what`` in ``version``."""
        if self._db is not None:
            self._sizes[what, version] = size
            self._work.set()

    # ---- writing -----------------------------------------------------------------------------------------------

    async def write(self) -> None:
        """Write what waits, for ever; asleep while there is nothing."""
        while self._db is not None:
            await self._work.wait()
            await trio.sleep(_BATCH_S)
            with trio.CancelScope(shield=True):  # what was taken to be written would be lost
                await self._flush()

    async def close(self) -> None:
        """Write what waits, note that this end was in order, and close."""
        with trio.CancelScope(shield=True):  # a local disk, and a bounded amount
            await self._flush()
            await self._run(self._close)

    async def _flush(self) -> None:
        self._work = trio.Event()
        if not (self._waiting or self._gone or self._sizes):
            return
        sizes, self._sizes = self._sizes, {}
        self._writing = (self._waiting, self._gone)
        self._waiting, self._gone, self._entries_waiting = {}, {}, 0
        try:
            await self._run(self._write, *self._writing, sizes)
        finally:
            self._writing = ({}, {})

    async def _run(self, call: Callable[..., T], *args: object) -> T | None:
        """Run ``call`` in the thread; None where the file is no good, which is then given up."""
        return await trio.to_thread.run_sync(self._guarded, call, args, limiter=self._thread)

    # ---- in the thread -----------------------------------------------------------------------------------------

    def _guarded(self, call: Callable[..., T], args: tuple[object, ...]) -> T | None:
        try:
            return call(*args)
        except (sqlite3.Error, OSError, ValueError, OverflowError) as error:
            logger.info("names are not kept between mounts: %s", error)
            self._give_up()
            return None

    def _give_up(self) -> None:
        db, self._db = self._db, None
        self._there.clear()
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()
        self._remove()

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(OSError):
                self._path.with_name(self._path.name + suffix).unlink()

    def _open(self) -> None:
        try:
            self._connect()
        except (sqlite3.Error, ValueError, TypeError, AttributeError) as error:
            logger.debug("%s is dropped: %s", self._path, error)
            self._give_up()
            self._connect()

    def _connect(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            facts = self._path.lstat()
            if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
                raise ValueError("not a private file of ours")
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        db = self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        # The first write says that this session did not end in order; only that one must be on disk before others.
        db.execute("PRAGMA synchronous=FULL")
        (form,) = db.execute("PRAGMA user_version").fetchone()
        if form not in {0, _FORMAT}:
            raise ValueError("of another form")
        db.executescript(_TABLES)
        row = db.execute("SELECT identity, clean, trusted_from FROM about").fetchone()
        if row is not None and row[0] != self._identity:
            raise ValueError("of another store")
        self._trusted_from = float(row[2]) if row is not None else 0.0
        if row is not None and row[1] != 1:
            self._trusted_from = self._clock()  # what the lost session changed is not in here
        with _transaction(db):
            db.execute("DELETE FROM about")
            db.execute("INSERT INTO about VALUES (?, 0, ?)", (self._identity, self._trusted_from))
            db.execute(f"PRAGMA user_version={_FORMAT}")
        db.execute("PRAGMA synchronous=NORMAL")
        self._bytes = 0
        for principal, ref, size in db.execute("SELECT principal, ref, LENGTH(entries) FROM listing"):
            self._there.add(hash((_text(principal), _text(ref))))
            self._bytes += size

    def _close(self) -> None:
        if self._db is not None:
            self._db.execute("UPDATE about SET clean = 1")
            self._db.close()
            self._db = None

    def _read(self, principal: str, ref: str) -> tuple[str | None, float, list[Entry]] | None:
        if self._db is None:
            return None
        where = (_bytes(principal), _bytes(ref))
        row = self._db.execute("SELECT version, at, entries FROM listing WHERE principal=? AND ref=?", where).fetchone()
        if row is None:
            return None
        try:
            version, at, entries = _text(row[0]), float(row[1]), unpacked(row[2])
        except (ValueError, TypeError, LookupError, AttributeError, zlib.error) as error:
            logger.debug("a kept listing is dropped: %s", error)
            self._db.execute("DELETE FROM listing WHERE principal=? AND ref=?", where)
            return None
        return version, at, entries

    def _read_sizes(self) -> dict[tuple[str, str], int]:
        if self._db is None:
            return {}
        rows = self._db.execute("SELECT object, version, size FROM size ORDER BY number").fetchall()
        found: dict[tuple[str, str], int] = {}
        for what, version, size in rows:
            if isinstance(what, bytes) and isinstance(version, bytes) and isinstance(size, int) and size >= 0:
                with contextlib.suppress(UnicodeError):
                    found[_text(what) or "", _text(version) or ""] = size
        return found

    def _write(
        self,
        waiting: Mapping[tuple[str, str], _Waiting],
        gone: Mapping[str, bool],
        sizes: Mapping[tuple[str, str], int],
    ) -> None:
        db = self._db
        if db is None:
            return
        with _transaction(db):
            for ref, below in gone.items():
                db.execute("DELETE FROM listing WHERE ref = ?", (_bytes(ref),))
                if below:  # all that begins with it and a slash; "0" is the character after the slash
                    db.execute("DELETE FROM listing WHERE ref > ? AND ref < ?", (_bytes(f"{ref}/"), _bytes(f"{ref}0")))
            for (principal, ref), one in waiting.items():
                data = packed(one.entries, ref)
                row = (_bytes(principal), _bytes(ref), _bytes(one.version), one.at, data)
                db.execute("INSERT OR REPLACE INTO listing VALUES (?, ?, ?, ?, ?)", row)
                self._bytes += len(data)
            for (what, version), size in sizes.items():
                db.execute(
                    "INSERT OR REPLACE INTO size (object, version, size) VALUES (?, ?, ?)",
                    (_bytes(what), _bytes(version), size),
                )
            if sizes:
                db.execute(
                    "DELETE FROM size WHERE number <= (SELECT number FROM size ORDER BY number DESC LIMIT 1 OFFSET ?)",
                    (_MEASURED_MAX,),
                )
            if self._bytes > BYTES_MAX:
                self._shrink(db)

    def _shrink(self, db: sqlite3.Connection) -> None:
        (total,) = db.execute("SELECT TOTAL(LENGTH(entries)) FROM listing").fetchone()
        rows = db.execute("SELECT principal, ref, LENGTH(entries) FROM listing ORDER BY at").fetchall()
        for principal, ref, size in rows:
            if total <= _BYTES_AFTER:
                break
            db.execute("DELETE FROM listing WHERE principal = ? AND ref = ?", (principal, ref))
            total -= size
        self._bytes = total


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Any:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def packed(entries: Iterable[Entry], directory_ref: str) -> bytes:
    """Return ``entries`` as bytes: name, kind, size, mtime and version, and by number what few have besides.

    Extended attributes are left out, and addresses that core fills in.
    """
    rows = []
    for entry in entries:
        row: list[Any] = [entry.name, _KINDS.index(entry.kind), entry.size, entry.mtime_ns, entry.version]
        more: dict[str, Any] = {}
        for field, _ in _FIELDS:
            value = getattr(entry, field)
            if value != getattr(_PLAIN, field) and not (field == "ref" and value == f"{directory_ref}/{entry.name}"):
                more[field] = value
        if entry.io is not Io.CACHED:
            more["io"] = _IO.index(entry.io)
        if more:
            row.append(more)
        rows.append(row)
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 1)


def unpacked(data: bytes) -> list[Entry]:
    """Return the entries of `packed`.

    Raises:
        ValueError, TypeError, LookupError, AttributeError, zlib.error: it is something else.
    """
    # A few bytes can unpack to gigabytes; more than this no listing has that was kept.
    reader = zlib.decompressobj()
    text = reader.decompress(data, ENTRIES_MAX * 4096)
    if reader.unconsumed_tail:
        raise ValueError("too long")
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise TypeError("no list")
    return [_entry(row) for row in rows]


def _entry(row: Any) -> Entry:
    name, kind, size, mtime_ns, version, *rest = row
    more = rest[0] if rest else {}
    facts: dict[str, Any] = {}
    for field, of in _FIELDS:
        if field in more:
            facts[field] = _checked(more[field], of)
    if not isinstance(name, str) or (size is not None and _checked(size, int) < 0):
        raise ValueError("no entry")
    return Entry(
        name=name,
        kind=_KINDS[_checked(kind, int)],
        size=size,
        mtime_ns=None if mtime_ns is None else _checked(mtime_ns, int),
        version=None if version is None else _checked(version, str),
        io=_IO[_checked(more.get("io", 0), int)],
        **facts,
    )


def _checked(value: Any, of: type[T]) -> T:
    if not isinstance(value, of) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no {of.__name__}")
    return value


def _bytes(text: str | None) -> bytes | None:
    # Names may hold bytes that are no text, which SQLite's own strings refuse.
    return None if text is None else text.encode("utf-8", "surrogatepass")


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "surrogatepass")
