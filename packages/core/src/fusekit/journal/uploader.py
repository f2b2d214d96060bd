"""Sends one frozen generation to the remote side and settles what became of it.

Journal layer, above transfer. Knows nothing of inodes and handles: it is told the directory, the name and what is
replaced, and returns the entry that the remote side has now.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, Protocol

import attrs

from fusekit.errors import BackendError, Exists, NotFound, Stale
from fusekit.journal.journal import Journal
from fusekit.journal.staging import Staging
from fusekit.transfer.calls import Calls
from fusekit.transfer.retry import RETRIABLE
from fusekit.types import Attributes, Caller, Entry, Kind, Part

logger = logging.getLogger(__name__)

# A lost answer is settled by reading back what is there and comparing; beyond this the size has to do.
COMPARE_MAX: Final = 64 << 20


class Versioned(Protocol):
    """What has a version: an `Entry`, or what a cache keeps of one."""

    @property
    def version(self) -> str | None: ...
    @property
    def size(self) -> int | None: ...
    @property
    def mtime_ns(self) -> int | None: ...


def version_of(entry: Versioned) -> str:
    """Return what names the content of ``entry``: the service's version, else what changes when the content does."""
    if entry.version is not None:
        return entry.version
    return f"~{entry.size}:{entry.mtime_ns}"


@attrs.define(eq=False)
class _Piece:
    """A part of a frozen generation."""

    staging: Staging
    number: int
    start: int
    stop: int
    last: bool

    async def read(self) -> memoryview:
        data = await self.staging.read(self.start, self.stop)
        return memoryview(data)

    def done(self) -> None:
        """Nothing to free: the generation stays on disk until it is committed."""


@attrs.define(eq=False)
class Generation:
    """A frozen generation as the content of a write; ``row`` is its number in the journal."""

    staging: Staging
    attributes: Attributes
    key: str
    row: int
    journal: Journal
    note: Mapping[str, str] = attrs.field(factory=dict)
    state: str = "waiting"
    _at: int = 0
    _number: int = 0

    @property
    def size(self) -> int | None:
        return self.staging.size

    async def next(self, size: int) -> Part | None:
        """Return the next part of at most ``size`` bytes."""
        total = self.staging.size
        if self._at >= total and self._number:
            return None
        start, stop = self._at, min(self._at + size, total)
        self._at = stop
        self._number += 1
        return _Piece(self.staging, self._number, start, stop, stop == total)

    async def save(self, note: Mapping[str, str]) -> None:
        """Keep ``note`` in the journal."""
        await self.journal.note(self.row, note)
        self.note = dict(note)

    def report(self, state: str) -> None:
        """Remember ``state`` for status."""
        self.state = state

    def rewind(self) -> None:
        """Begin with the first part again, for another attempt."""
        self._at = self._number = 0


class Uploader:
    """Commits generations, one at a time for a name (the vfs sees to that)."""

    def __init__(self, calls: Calls, journal: Journal) -> None:
        self._calls = calls
        self._journal = journal

    async def commit(
        self, directory: Entry, name: str, replacing: Entry | None, generation: Generation, caller: Caller
    ) -> Entry:
        """Send ``generation`` as ``name`` over ``replacing`` and return what the remote side has now.

        Raises:
            Stale: what was there is not what was to be replaced; nothing was sent.
        """
        capabilities = self._calls.capabilities(directory)
        if replacing is not None and not capabilities.guarded:
            try:
                replacing = await self._still(directory, name, replacing, caller)
            except Stale as error:
                # A crash, or an answer that was lost for good: then what is in the way is what an earlier attempt sent.
                return await self._ours(directory, name, replacing, generation, error, caller)
        await self._journal.sending(generation.row)

        async def settle() -> Entry | None:
            generation.rewind()
            try:
                return await self._arrived(directory, name, replacing, generation, caller)
            except RETRIABLE:
                return None  # then the repeat meets it

        try:
            return await self._calls.write(directory, name, replacing, generation, caller, settle)
        except (Exists, Stale) as error:
            # After a lost answer the repeat finds its own file in the way.
            return await self._ours(directory, name, replacing, generation, error, caller)

    async def _ours(
        self,
        directory: Entry,
        name: str,
        replacing: Entry | None,
        generation: Generation,
        error: BackendError,
        caller: Caller,
    ) -> Entry:
        """Return what is in the way of ``generation`` if that is the generation itself, else raise ``error``."""
        arrived = await self._arrived(directory, name, replacing, generation, caller)
        if arrived is None:
            raise error
        logger.info("%s: taken for our own commit, its bytes are the same (%s)", name, error)
        return arrived

    async def _still(self, directory: Entry, name: str, replacing: Entry, caller: Caller) -> Entry | None:
        """Return what is there if it is what was to be replaced; None where it is gone, which a create answers."""
        try:
            found = await self._calls.find(directory, name, replacing, caller)
        except NotFound:
            return None
        if version_of(found) != version_of(replacing) or found.id != replacing.id:
            raise Stale(f"{name!r} was changed by somebody else since it was opened; nothing was overwritten")
        return found.within(directory)

    async def _arrived(
        self, directory: Entry, name: str, replacing: Entry | None, generation: Generation, caller: Caller
    ) -> Entry | None:
        """Return the entry at ``name`` if it holds exactly the bytes of ``generation`` and is not what was replaced.

        Raises:
            Throttled, Unavailable, TimedOut: it could not be looked at, so nobody knows.
        """
        try:
            found = await self._calls.find(directory, name, None, caller)
            if found.kind is not Kind.FILE or found.size != generation.size:
                return None
            if replacing is not None and version_of(found) == version_of(replacing):
                return None
            if generation.staging.size > COMPARE_MAX:
                return None
            compare = _Compare(generation.staging)
            await self._calls.read(found.within(directory), 0, found.size, compare, caller)
        except RETRIABLE:
            raise  # nobody knows: to say no would make a conflict of our own commit
        except BackendError:
            return None
        return found if compare.equal else None


@attrs.define(eq=False)
class _Compare:
    """A sink that compares what comes with a staging file."""

    staging: Staging
    equal: bool = True
    _next: int = 0

    async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
        at = self._next if at is None else at
        self._next = at + len(data)
        ours = await self.staging.read(at, self._next)
        self.equal = self.equal and bytes(ours) == bytes(data)
