"""One version of one remote object as it is here: in memory while it arrives, on disk afterwards.

Cache layer. An `Object` knows for every byte whether it is here, on its way, or lacking, and hands out what is here. It
asks nobody: `fusekit.cache.flights` brings bytes, `fusekit.cache.blocks` decides what stays. Everything between two
checkpoints is consistent; only reads of the disk happen in threads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import attrs
import trio

from fusekit.cache.readahead import PIECE_BYTES
from fusekit.cache.store import ObjectFile, Record
from fusekit.disk import Disk
from fusekit.ranges import Ranges

if TYPE_CHECKING:
    from fusekit.cache.flights import Flight


@attrs.define(eq=False)
class Piece:
    """Memory for the bytes ``start`` to ``stop`` of an object, never across a multiple of `PIECE_BYTES`.

    ``have`` is what of it has come; ``good`` the part of that which is known to be of the right version, so that it may
    be handed out. ``leaving``: it is on its way to the disk.
    """

    start: int
    stop: int
    memory: bytearray = attrs.field(repr=False)
    have: Ranges = attrs.field(factory=Ranges)
    good: Ranges = attrs.field(factory=Ranges)
    leaving: bool = False

    def view(self, start: int, stop: int) -> memoryview:
        """Return the memory for the bytes from ``start`` to ``stop`` of the object."""
        return memoryview(self.memory)[start - self.start : stop - self.start]


class Object:
    """The bytes of one version of one object. ``name`` is that of its file, ``size`` None until somebody measured it.

    ``here`` are bytes on disk that may be handed out; ``unverified`` those that an earlier run left, with a checksum
    that nobody has looked at yet; ``claimed`` everything that needs no fetch: these, what is in memory, and what is on
    its way. ``users`` counts who has the object open; ``looked``: what an earlier run left of it is known.
    """

    def __init__(self, name: str, size: int | None, disk: Disk) -> None:
        self.name = name
        self.size = size
        self.users = 0
        self.reading = 0
        self.dead = False
        self.pinned = False
        self.looked = False
        self.loading: trio.Event | None = None
        self.verifying: trio.Event | None = None
        self.file: ObjectFile | None = None
        self.here = Ranges()
        self.unverified: list[Record] = []
        self.claimed = Ranges()
        self.flights: list[Flight] = []
        self._pieces: dict[int, list[Piece]] = {}
        self._disk = disk

    @property
    def pieces(self) -> Iterator[Piece]:
        """Iterate over what is in memory."""
        return (piece for pieces in list(self._pieces.values()) for piece in list(pieces))

    @property
    def bytes_here(self) -> int:
        """Return how many bytes need no fetch, those not looked at after a restart among them."""
        known = self.here.copy()
        for record in self.unverified:
            known.add(record.start, record.stop)
        for piece in self.pieces:
            for start, stop in piece.good:
                known.add(start, stop)
        return known.total

    def loaded(self, file: ObjectFile, records: list[Record]) -> None:
        """Take ``file`` over, with what an earlier run left in it."""
        self.file = file
        self.unverified = records
        for record in records:
            self.claimed.add(record.start, record.stop)

    def start_anew(self) -> None:
        """Forget what is on disk, and the file; who reads from it still has it open."""
        self.file = None
        self.here = Ranges()
        self.unverified = []
        if self.size is not None:
            self.unclaim(0, self.size)

    def add(self, piece: Piece) -> None:
        """Take ``piece`` in."""
        self._pieces.setdefault(piece.start // PIECE_BYTES, []).append(piece)

    def remove(self, piece: Piece) -> None:
        """Let the memory of ``piece`` go; what is on disk of it stays."""
        number = piece.start // PIECE_BYTES
        rest = [other for other in self._pieces.get(number, ()) if other is not piece]
        if rest:
            self._pieces[number] = rest
        else:
            self._pieces.pop(number, None)
        self.unclaim(piece.start, piece.stop)

    def at(self, at: int) -> Sequence[Piece]:
        """Return the pieces around offset ``at``."""
        return self._pieces.get(at // PIECE_BYTES, ())

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return what of ``start`` to ``stop`` is neither here nor on its way."""
        return self.claimed.missing(start, stop)

    def unclaim(self, start: int, stop: int) -> None:
        """Let ``start`` to ``stop`` be fetched again as far as it is nowhere."""
        self.claimed.remove(start, stop)
        for low, high in self.here.within(start, stop):
            self.claimed.add(low, high)
        for record in self.unverified_in(start, stop):
            self.claimed.add(record.start, record.stop)
        for number in range(start // PIECE_BYTES, -(-stop // PIECE_BYTES)):
            for piece in self._pieces.get(number, ()):
                for low, high in piece.good.within(start, stop):
                    self.claimed.add(low, high)
        for flight in self.flights:
            self.claimed.add(max(flight.start, start), min(flight.ends, stop))

    def flight_at(self, at: int) -> Flight | None:
        """Return the flight that brings offset ``at``."""
        return next((flight for flight in self.flights if flight.start <= at < flight.ends), None)

    def unverified_in(self, start: int, stop: int) -> list[Record]:
        """Return what must be looked at before ``start`` to ``stop`` can be handed out."""
        if not self.unverified:
            return []
        # No record is longer than a piece.
        low = bisect_left(self.unverified, start - PIECE_BYTES, key=_start_of)
        high = bisect_left(self.unverified, stop, key=_start_of)
        return [record for record in self.unverified[low:high] if start < record.stop]

    def looked_at(self, good: list[Record], bad: list[Record]) -> None:
        """Take note of which records vouch for their bytes, and which do not."""
        # Those that are no longer asked about belong to a file that was given up meanwhile.
        good = [record for record in good if self._no_longer_unverified(record)]
        bad = [record for record in bad if self._no_longer_unverified(record)]
        for record in good:
            self.here.add(record.start, record.stop)
        for record in bad:
            self.unclaim(record.start, record.stop)

    def _no_longer_unverified(self, record: Record) -> bool:
        """Take ``record`` off the list; return whether it was on it."""
        at = bisect_left(self.unverified, record.start, key=_start_of)
        while at < len(self.unverified) and self.unverified[at].start == record.start:
            if self.unverified[at] is record:
                del self.unverified[at]
                return True
            at += 1
        return False

    def first_gap(self, start: int, stop: int) -> int | None:
        """Return the first offset from ``start`` to ``stop`` that cannot be handed out now, None where all can."""
        at = start
        while at < stop:
            end = self._reaches(at)
            if end <= at:
                return at
            at = end
        return None

    def in_memory(self, start: int, stop: int) -> memoryview | None:
        """Return a view of the bytes where one piece has them all; good until the next checkpoint."""
        for piece in self._pieces.get(start // PIECE_BYTES, ()):
            if piece.good.covers(start, stop):
                return piece.view(start, stop)
        return None

    async def read(self, start: int, stop: int) -> bytes | memoryview:
        """Return bytes that can be handed out, as `first_gap` said just before; fewer where the file turned out cut."""
        if self.here.covers(start, stop):
            return await self._from_disk(start, stop)
        # Some in memory, some on disk: what is in memory is copied before anything else happens.
        buffer = memoryview(bytearray(stop - start))
        on_disk: list[tuple[int, int]] = []
        at = start
        while at < stop:
            piece = self._piece_with(at)
            if piece is not None:
                end = min(piece.good.end_of(at), stop)
                buffer[at - start : end - start] = piece.view(at, end)
            else:
                end = min(self.here.end_of(at), stop)
                on_disk.append((at, end))
            at = end
        file = self.file
        for low, high in on_disk:
            data = await self._from_disk(low, high)
            if len(data) < high - low or self.file is not file:
                return buffer[: low - start]
            buffer[low - start : high - start] = data
        return buffer

    async def _from_disk(self, start: int, stop: int) -> bytes | memoryview:
        # Held here: without a reference the descriptor is closed, and may be another file's when a thread reads it.
        file = self.file
        assert file is not None, "what is on disk has a file"
        self.reading += 1
        try:
            data = await self._disk.read(file.fd, start, stop)
        finally:
            self.reading -= 1
        # Given up meanwhile: somebody cut it, and behind the cut there may be zeros by now.
        return data if self.file is file else b""

    def _reaches(self, at: int) -> int:
        end = self.here.end_of(at)
        if end > at:
            return end
        piece = self._piece_with(at)
        return at if piece is None else piece.good.end_of(at)

    def _piece_with(self, at: int) -> Piece | None:
        for piece in self._pieces.get(at // PIECE_BYTES, ()):
            if piece.good.covers(at, at + 1):
                return piece
        return None


def _start_of(record: Record) -> int:
    return record.start
