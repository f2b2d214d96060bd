"""What the journal keeps after a file is closed: bytes that a program wrote and the remote side never got.

Journal layer. The rows that are kept, in memory, so that a file system which never failed pays nothing for them.

The rule: bytes that were never stored stay until the user replaced or removed them himself, and go only when the
remote side has confirmed that. A row goes when

- a commit of the same open file succeeds: its content was made from those bytes (the vfs drops these rows itself);
- a commit at the same path, by the same principal, of a generation begun later replaces the whole content. One that
  only changes a part (an append, a record in the middle) was laid over the version of the remote side, which lacks the
  kept bytes, so it replaces none of them;
- the same principal removes the name, or renames something else over it.

A row belongs to a name and moves with it, be it renamed itself or be it below a directory that is. What an earlier run
left in the journal is kept by the same rule. The rows of a file that is still open are its own business (``closed``
is False): it may yet be committed.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import trio

from fusekit.journal import steps
from fusekit.journal.journal import Journal, Row


@attrs.define(eq=False)
class _Kept:
    """One row: whose, where, and why it was not stored; no reason where an earlier run just ended.

    ``directory`` is the ref of the directory that ``path`` is in, None where only the journal knows it.
    """

    principal: str
    path: str
    directory: str | None
    reason: str | None
    closed: bool


@attrs.frozen
class Moved:
    """A rename: paths before and after, the refs of the thing then and now, and the directory that it is in now."""

    path: str
    new_path: str
    ref: str
    new_ref: str
    directory: str


class Kept:
    """The rows of one journal that are kept."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._writing = trio.Lock()
        self._rows = {
            row.id: _Kept(row.principal, row.path, row.directory, row.error, closed=True) for row in journal.left
        }

    def failures(self) -> dict[str, str]:
        """Return why the bytes for each path were not stored, where somebody said why."""
        return {kept.path: kept.reason for kept in self._rows.values() if kept.reason is not None}

    def reason(self, path: str) -> str | None:
        """Return why what was last written to ``path`` was not stored, None where it was."""
        return self.failures().get(path) if self._rows else None

    def left(self, row: Row, reason: str) -> None:
        """Keep ``row`` of an earlier run, which cannot go on for ``reason``."""
        self._rows[row.id] = _Kept(row.principal, row.path, row.directory, reason, closed=True)

    def failed(self, row: int, principal: str, path: str, reason: str) -> None:
        """Keep ``row``, which an open file goes on with."""
        self._rows[row] = _Kept(principal, path, None, reason, closed=False)

    async def closed(self, rows: set[int], principal: str, path: str, directory: str | None) -> None:
        """Keep ``rows``, which no open file goes on with: at once, and in the journal when this returns."""
        for row in rows:
            before = self._rows.get(row)
            self._rows[row] = _Kept(principal, path, directory, before.reason if before else None, closed=True)
        await self._store(rows)  # directories above may have been renamed since the rows were written

    def forget(self, rows: Iterable[int]) -> None:
        """Take note that ``rows`` are no longer in the journal, or no longer failed."""
        for row in rows:
            self._rows.pop(row, None)

    async def replaced(self, principal: str, path: str, *, by: int | None = None) -> None:
        """Drop what is kept for ``path``: the user put something else there, or removed it.

        ``by`` is the row of the commit that did so: what was begun after it is newer and stays.
        """
        gone = [
            row
            for row, kept in self._rows.items()
            if kept.closed and (kept.principal, kept.path) == (principal, path) and (by is None or row < by)
        ]
        await self._journal.drop(gone)
        self.forget(gone)

    async def moved(self, *moves: Moved) -> None:
        """Let rows follow the names that they belong to; the two moves of an exchange are one call."""
        found = {
            row: move
            for row, kept in self._rows.items()
            for move in moves
            if kept.path == move.path or kept.path.startswith(f"{move.path}/")
        }
        for row, move in found.items():
            kept = self._rows[row]
            if kept.path == move.path:
                kept.directory = move.directory
            elif kept.directory is not None and f"{kept.directory}/".startswith(f"{move.ref}/"):
                # An address by path; any other outlives the rename.
                kept.directory = move.new_ref + kept.directory[len(move.ref) :]
            kept.path = move.new_path + kept.path[len(move.path) :]
        await self._store(found)
        steps.reached("rows-moved")

    async def _store(self, rows: Iterable[int]) -> None:
        """Write the places of ``rows`` as they are now: one writer at a time, so that the last word is the last one."""
        async with self._writing:
            for row in rows:
                kept = self._rows.get(row)
                if kept is not None:
                    name = kept.path.rpartition("/")[2]
                    await self._journal.moved(row, path=kept.path, directory=kept.directory, name=name)
