"""The journals of this user: those that a running mount has, which is asked, and the others, which are opened.

Control layer. A store is the journal of one source, named by the first letters of its directory's name; what is in it
is the same to look at and to change, whether a mount has it or not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import trio

from fusekit.control import client
from fusekit.control.registry import Endpoint
from fusekit.errors import MountError
from fusekit.journal.journal import Journal, State
from fusekit.volume import described

T = TypeVar("T")

# What of a store's name is shown and has to be typed.
NAME_LENGTH: Final = 8


@attrs.frozen
class Store:
    """One journal. ``rows`` are as `fusekit.volume.described` tells them; ``endpoint`` is the mount that has it."""

    directory: Path
    source: str
    rows: list[dict[str, Any]]
    endpoint: Endpoint | None = None

    @property
    def name(self) -> str:
        return self.directory.name[:NAME_LENGTH]

    def entry(self, row: dict[str, Any]) -> str:
        """Return what names one of the rows on the command line."""
        return f"{self.name}-{row['id']}"

    def retry(self, rows: Iterable[int]) -> None:
        """Let generations be sent again: now by the mount, else by the next one.

        Raises:
            MountError: the mount refuses, or one was never whole.
        """
        wanted = list(rows)
        if self.endpoint is not None:
            client.ask(self.endpoint, "retry", timeout_s=None, rows=wanted)
            return
        torn = [row["path"] for row in self.rows if row["id"] in wanted and not row["whole"]]
        if torn:
            raise MountError(f"{torn[0]} was never closed; export it, or discard it")
        self._with(lambda journal: journal.revive(wanted))

    def discard(self, rows: Iterable[int]) -> None:
        """Forget generations and their bytes for good.

        Raises:
            MountError: the mount refuses: the file is open.
        """
        wanted = list(rows)
        if self.endpoint is not None:
            client.ask(self.endpoint, "discard", timeout_s=None, rows=wanted)
        else:
            self._with(lambda journal: journal.drop(wanted))

    def export(self, row: int, target: Path) -> int:
        """Copy the bytes of a generation to the new file ``target`` and return how many there are."""
        found = next(one for one in self.rows if one["id"] == row)
        with open(found["staging"], "rb") as source, open(target, "xb") as copy:
            shutil.copyfileobj(source, copy)
            return copy.tell()

    def _with(self, do: Callable[[Journal], Awaitable[T]]) -> T:
        return trio.run(_with, self.directory, do)


def stores(state_dir: Path, live: Iterable[client.LiveMount]) -> list[Store]:
    """Return the stores below ``state_dir``, also those that mounts of this user have elsewhere.

    Raises:
        MountError: another process has one and does not answer.
    """
    found: dict[Path, Store] = {}
    for one in live:
        if "store" in one.status:
            directory = Path(one.status["journal_directory"])
            found[directory] = Store(directory, one.status["source"], one.status["journal"], one.endpoint)
    for directory in _directories(state_dir):
        if directory.resolve() not in {known.resolve() for known in found}:
            rows, source = trio.run(_with, directory, _look)
            found[directory] = Store(directory, source or "a source of an earlier version", rows)
    return sorted(found.values(), key=lambda store: store.name)


def _directories(state_dir: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(state_dir)):
            if (state_dir / name / "journal.db").exists():
                yield state_dir / name


async def _look(journal: Journal) -> tuple[list[dict[str, Any]], str | None]:
    return [described(row, journal) for row in await journal.rows()], await journal.source()


async def _with(directory: Path, do: Callable[[Journal], Awaitable[T]]) -> T:
    journal = await Journal.open(directory, "fusekit journal")
    try:
        return await do(journal)
    finally:
        await journal.close()


def state_text(row: dict[str, Any]) -> str:
    """Return how far a row is, in a word for people."""
    if row["state"] == State.OPEN.value:
        return "not closed"
    if row["state"] == State.SENDING.value:
        return "uploading"
    if row["state"] == State.FAILED.value:
        return "failed"
    return "queued, failed before" if row["error"] else "queued"
