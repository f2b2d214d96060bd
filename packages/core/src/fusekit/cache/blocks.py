"""The block cache: bytes of remote files, fetched once, kept in memory and on disk for as long as there is room.

Cache layer, its upper side: the vfs holds an `Object` for each open version and reads through `Blocks.read`. What is
lacking is fetched by flights (`flights`), how much ahead is for `readahead` to say, memory is counted by `budget`, and
what came is written to sparse files (`store`) by one task, several pieces at a time. Knows entries and callers, not
inodes.

The disk is a convenience: where it is full, slow or broken, reading goes on from memory, and nothing is kept.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import logging
import os
import resource
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from fusekit.cache.budget import Budget, Buffers
from fusekit.cache.flights import Flight, Hedging
from fusekit.cache.objects import Object, Piece
from fusekit.cache.readahead import PIECE_BYTES, SMALL_FILE_BYTES, Reader, cut
from fusekit.cache.store import CutShort, ObjectFile, Record, scan, standing, throw_away
from fusekit.disk import Disk
from fusekit.errors import BackendError, Denied
from fusekit.journal.journal import lock_directory
from fusekit.journal.uploader import version_of
from fusekit.settings import Settings
from fusekit.transfer.calls import Calls
from fusekit.types import Caller, Entry

logger = logging.getLogger(__name__)

# How much of the budget may hold bytes that are on disk already: enough for readers that come a little later.
HOT_SHARE: Final = 0.25
# Pieces that go to the disk in one visit of a thread, which costs a tenth of a millisecond.
STORE_BATCH: Final = 8
# How far checksums of an earlier run are looked at at once, where a program reads on in order.
VERIFY_BYTES: Final = 8 << 20
# Objects that nobody has open whose files stay open, for whoever comes back.
IDLE_OBJECTS: Final = 128
# How much of what is unused goes at once when there is too much: a look at each file would cost more than it frees.
EVICT_SHARE: Final = 0.05
# How often is looked for what is too old. By no timer: while nothing is opened there is no hurry, and nothing to wake up for.
AGE_LOOK_S: Final = 3600.0
# So many fetches may end well and leave a reader without its bytes, which went before it came to them.
TRIES_MAX: Final = 64

_NOTHING: Final = bytearray()
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@attrs.define(eq=False)
class CacheFacts:
    """What is counted, for status: bytes, but for the numbers of things."""

    hits: int = 0
    fetches: int = 0
    landed: int = 0
    ahead: int = 0
    hedged: int = 0
    corrupt: int = 0
    evicted: int = 0
    not_kept: int = 0


@attrs.define(eq=False)
class _OnDisk:
    """A file in the cache directory: the disk space it takes, and when it was last used (seconds since 1970)."""

    allocated: int
    used_at: float
    pinned: bool


class Blocks:
    """All cached bytes of a mount; made by `open_blocks`. ``directory`` None keeps everything in memory."""

    def __init__(
        self, directory: Path | None, calls: Calls, disk: Disk, settings: Settings, nursery: trio.Nursery
    ) -> None:
        self.calls = calls
        self.budget = Budget(settings.memory, self._spare)
        self.buffers = Buffers(PIECE_BYTES, self.budget)
        self.hedging = Hedging()
        self.facts = CacheFacts()
        self.scratch = bytearray(PIECE_BYTES)
        self._directory = directory
        self._disk = disk
        self._settings = settings
        self._nursery = nursery
        self._objects: OrderedDict[str, Object] = OrderedDict()
        self._on_disk: OrderedDict[str, _OnDisk] = OrderedDict()  # least recently used first
        self._allocated = 0
        self._hot: OrderedDict[Piece, Object] = OrderedDict()
        self._hot_bytes = 0
        self._flights: set[Flight] = set()
        self._to_store: deque[tuple[Object, Piece, Flight | None]] = deque()
        self._wake = trio.Event()
        self._flying = trio.Event()
        self._storing = False
        self._shrinking = False
        self._broken_until = float("-inf")
        self._thrown_away = 0
        self._looked_at_ages = time.time()
        self._closing = False

    @property
    def on_disk(self) -> bool:
        """Return whether there is a cache directory."""
        return self._directory is not None

    @property
    def bytes_used(self) -> int:
        """Return how much disk space the cache takes, without one how much memory."""
        return self._allocated if self.on_disk else self._hot_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return what `fusekit status` shows."""
        return {
            "cache_bytes": self.bytes_used,
            "memory_bytes": self.budget.used,
            "memory_peak_bytes": self.budget.peak,
            "fetches_running": len(self._flights),
            "cache": attrs.asdict(self.facts),
        }

    # ---- objects -----------------------------------------------------------------------------------------------

    def cached(self, key: str, entry: Entry) -> int:
        """Return how many bytes of ``entry`` are here, or on disk from an earlier run."""
        name = _name(key, entry)
        item = self._objects.get(name)
        if item is not None:
            return item.bytes_here
        found = self._on_disk.get(name)
        if found is None:
            return 0
        return found.allocated if entry.size is None else min(found.allocated, entry.size)

    async def hold(self, key: str, entry: Entry) -> Object:
        """Return the object for ``entry``, open until `release`; ``key`` names it whatever its version is."""
        name = _name(key, entry)
        item = self._objects.get(name)
        if item is None:
            item = self._objects[name] = Object(name, entry.size, self._disk)
            item.users += 1
            found = self._on_disk.get(name)
            if found is not None and entry.size is not None:
                item.loading = trio.Event()
                try:
                    await self._load(item, found)
                finally:
                    item.loading.set()
                    item.loading = None
        else:
            item.users += 1
            if item.size is None and entry.size is not None:
                item.size = entry.size
            if item.loading is not None:
                await item.loading.wait()
        self._objects.move_to_end(name)
        self._used(name)
        if time.time() - self._looked_at_ages > AGE_LOOK_S:
            self.drop_old()
        return item

    def release(self, item: Object) -> None:
        """Give ``item`` back."""
        item.users -= 1
        if item.users == 0:
            self._close_idle()

    async def adopt(self, key: str, entry: Entry, path: Path) -> None:
        """Take the file at ``path`` as the whole content of ``entry``; whatever was cached for it goes."""
        name, size = _name(key, entry), entry.size or 0
        self._discard(name)
        directory = self._directory
        if directory is None or size == 0:
            await self._disk.run(_unlink, path)
            return
        try:
            file = await self._disk.run(ObjectFile.take, directory / name, path, size)
        except OSError as error:  # another file system: a copy would cost more than it saves
            logger.debug("%s is not taken over into the cache: %s", path, error)
            await self._disk.run(_unlink, path)
            return
        self._discard(name)
        item = self._objects[name] = Object(name, size, self._disk)
        item.loaded(file, [])
        item.here.add(0, size)
        item.claimed.add(0, size)
        self._grew(item, size)
        self._nursery.start_soon(self._describe, item, size)
        self._shrink_soon()

    def drop(self, key: str, entry: Entry) -> None:
        """Forget what is cached of ``entry``."""
        self._discard(_name(key, entry))

    async def pin(self, key: str, entry: Entry, pinned: bool) -> None:
        """Keep what is on disk of ``entry`` whatever else must go, or no longer."""
        item = await self.hold(key, entry)
        try:
            file = await self._file(item)
            if file is None:
                raise BackendError("there is no cache directory to keep it in")
            await self._disk.run(file.pin, pinned)
            item.pinned = pinned
            self._grew(item, 0)
        finally:
            self.release(item)

    # ---- reading -----------------------------------------------------------------------------------------------

    async def read(
        self,
        item: Object,
        reader: Reader,
        start: int,
        stop: int,
        address: Callable[[], Awaitable[Entry]],
        caller: Caller,
        *,
        ranges: bool = True,
    ) -> bytes | memoryview:
        """Return the bytes of ``item`` from ``start`` to ``stop``, fewer at its end.

        ``address`` returns its entry as it is to be asked for; ``reader`` is how this handle reads. Without ``ranges``
        a fetch brings the whole file.

        Raises:
            Stale: the remote side no longer has this version. Corrupt: it sent other bytes than it announced.
        """
        if item.size is None:
            await self.measure(item, address, caller)
        assert item.size is not None, "it was just measured"
        size = item.size
        stop = min(stop, size)
        if start >= stop:
            return b""
        if not ranges:
            if not item.claimed.covers(start, stop) and not item.flights:
                self._start(item, 0, size, address, caller, streamed=True)
        else:
            wanted = reader.wants(start, stop, size, self._window_max())
            if not item.claimed.covers(start, wanted):
                self._fetch(item, reader, start, stop, wanted, address, caller)
        found = item.in_memory(start, stop)
        if found is not None:
            self.facts.hits += stop - start
            self._consumed(item, start, stop)
            return found
        landed = self.facts.landed
        while (gap := item.first_gap(start, stop)) is not None:
            if self.facts.landed - landed > TRIES_MAX:  # what comes has to go at once: there is too little room
                return await self._through(start, stop, address, caller)
            await self._bring(item, reader, gap, stop, address, caller)
        data = await item.read(start, stop)
        if len(data) < stop - start:  # somebody cut the file
            self._lost(item)
            return await self.read(item, reader, start, stop, address, caller, ranges=ranges)
        return data

    async def _through(self, start: int, stop: int, address: Callable[[], Awaitable[Entry]], caller: Caller) -> bytes:
        """Return bytes that are kept nowhere."""
        window = Window(start, stop)
        await self.calls.read(await address(), start, stop, window, caller)
        return window.taken()

    async def measure(self, item: Object, address: Callable[[], Awaitable[Entry]], caller: Caller) -> int:
        """Return the size of ``item``, which only reading tells where it is not known; its bytes are here then."""
        while item.size is None:
            flight = next((flight for flight in item.flights if flight.stop is None), None)
            if flight is None:
                flight = self._start(item, 0, None, address, caller)
            await flight.until(0, 0)
            if item.size is None:
                self._raise(flight, caller)
        return item.size

    async def _bring(
        self,
        item: Object,
        reader: Reader,
        gap: int,
        stop: int,
        address: Callable[[], Awaitable[Entry]],
        caller: Caller,
    ) -> None:
        """See to it that the byte at ``gap``, and what follows it up to ``stop``, can be handed out."""
        doubtful = item.unverified_in(gap, gap + 1)
        if doubtful:
            ahead = VERIFY_BYTES if reader.window else 0
            await self._verify(item, item.unverified_in(gap, max(stop, gap + ahead)))
            return
        flight = item.flight_at(gap)
        if flight is None:
            for low, high in item.missing(gap, stop):
                if low == gap:
                    flight = self._start(item, low, high, address, caller)
                    break
            else:
                # It is claimed, and by nobody: what was here has gone in this moment.
                item.unclaim(gap, stop)
                return
        await flight.until(gap, min(stop, flight.ends))
        if flight.error is not None and item.first_gap(gap, gap + 1) is not None:
            self._raise(flight, caller)

    def _raise(self, flight: Flight, caller: Caller) -> None:
        """Raise what ``flight`` failed with, unless that is another user's affair: then it is tried as ``caller``."""
        if flight.error is None:
            return
        if isinstance(flight.error, Denied) and flight.caller.principal != caller.principal:
            return
        raise _again(flight.error)

    def _fetch(
        self,
        item: Object,
        reader: Reader,
        start: int,
        stop: int,
        wanted: int,
        address: Callable[[], Awaitable[Entry]],
        caller: Caller,
    ) -> None:
        """Send for what is lacking from ``start`` to ``wanted``; beyond ``stop`` only as far as there is room."""
        step = max(reader.window, stop - start, min(wanted - start, SMALL_FILE_BYTES))
        for low, high in item.missing(start, wanted):
            for begin, end in cut(low, high, step):
                if begin < stop:
                    self._start(item, begin, end, address, caller)
                    continue
                if len(self._flights) >= self._settings.requests_max or not self.budget.try_acquire(end - begin):
                    reader.fell_short(begin)
                    return
                self.facts.ahead += end - begin
                self._start(item, begin, end, address, caller, held=end - begin)

    def _start(
        self,
        item: Object,
        start: int,
        stop: int | None,
        address: Callable[[], Awaitable[Entry]],
        caller: Caller,
        *,
        held: int = 0,
        streamed: bool = False,
    ) -> Flight:
        flight = Flight(self, item, start, stop, address, caller, streamed=streamed)
        flight.held = held
        item.users += 1
        item.flights.append(flight)
        if stop is not None:
            item.claimed.add(start, stop)
        self._flights.add(flight)
        self._flying.set()
        self.facts.fetches += 1
        self._nursery.start_soon(flight.run)
        return flight

    def _window_max(self) -> int:
        """Return how far ahead one reader may fetch: all that read together share half of the budget."""
        readers = len({flight.item for flight in self._flights}) or 1
        share = int(self.budget.bytes_max / 2 / readers)
        return min(self._settings.readahead, max(share, PIECE_BYTES))

    # ---- for flights -------------------------------------------------------------------------------------------

    async def extend(self, flight: Flight, count: int, *, must: bool) -> bool:
        """Take ``count`` bytes of memory for ``flight`` beyond what it began with; return whether there were as many."""
        if not must:
            return self.budget.try_acquire(count)
        await self.budget.acquire(count)
        return True

    def came(self, item: Object, piece: Piece) -> None:
        """Take ``piece``, all of which can be handed out."""
        if piece.leaving:
            return
        piece.leaving = True
        if self.on_disk and item.size is not None and not item.dead:
            self._store(item, piece, None)
        else:
            self._keep_hot(item, piece)

    def spill(self, flight: Flight, piece: Piece) -> None:
        """Write ``piece`` to disk ahead of the word that it is good, so that its memory can go."""
        if not piece.leaving and self.on_disk and not flight.item.dead:
            piece.leaving = True
            self._store(flight.item, piece, flight)

    def landed(self, flight: Flight) -> None:
        """Take over what ``flight`` brought, as far as it is good, and give back what it did not use."""
        item = flight.item
        item.flights.remove(flight)
        self._flights.discard(flight)
        self.facts.landed += flight.completed
        self.budget.release(flight.held)
        flight.held = 0
        good = flight.error is None and flight.completed
        if good and flight.stop is None and item.size is None:
            item.size = flight.end
        for piece in flight.pieces:
            if good:
                piece.good = piece.have.copy()
            if piece.leaving:
                continue
            if piece.good:
                self.came(item, piece)
            else:
                self._let_go(item, piece)
        if good and flight.spilled:
            for record in flight.spilled:
                item.here.add(record.start, record.stop)
            self._nursery.start_soon(self._record, item, flight.spilled)
        if flight.stop is not None:
            item.unclaim(flight.start, flight.stop)
        elif good:
            item.unclaim(0, flight.end)
        self.release(item)

    # ---- memory ------------------------------------------------------------------------------------------------

    def _keep_hot(self, item: Object, piece: Piece) -> None:
        if item.dead:
            self._let_go(item, piece)
            return
        self._hot[piece] = item
        self._hot_bytes += len(piece.memory)
        if self.on_disk:
            over = self._hot_bytes - int(self.budget.bytes_max * HOT_SHARE)
            if over > 0:
                self._spare(over)
        self.budget.look()

    def _consumed(self, item: Object, start: int, stop: int) -> None:
        """Let a piece that is on disk be the next to go, when its last byte was read: the kernel has it now."""
        if not self.on_disk or stop % PIECE_BYTES:
            return
        for piece in item.at(start):
            if piece.stop == stop and piece in self._hot:
                self._hot.move_to_end(piece, last=False)

    def _spare(self, count: int) -> None:
        """Let go of at least ``count`` bytes that nobody waits for, if there are as many."""
        while count > 0 and self._hot:
            piece, item = self._hot.popitem(last=False)
            self._hot_bytes -= len(piece.memory)
            count -= len(piece.memory)
            self._let_go(item, piece)

    def _let_go(self, item: Object, piece: Piece) -> None:
        for flight in item.flights:
            flight.gone(piece)
        item.remove(piece)
        count = piece.stop - piece.start
        memory, piece.memory = [piece.memory], _NOTHING
        self.buffers.give_back(memory)
        self.budget.release(count)

    # ---- disk --------------------------------------------------------------------------------------------------

    async def _load(self, item: Object, found: _OnDisk) -> None:
        directory = self._directory
        assert directory is not None, "what was found is in a directory"
        assert item.size is not None, "the log lies behind the bytes"
        try:
            file = await self._disk.run(ObjectFile.open, directory / item.name, item.size)
        except OSError as error:
            self.trouble("opened", error)
            return
        item.loaded(file, standing(file.records))
        item.pinned = found.pinned
        file.records = []

    async def _file(self, item: Object) -> ObjectFile | None:
        """Return the file of ``item``, made where there is none yet."""
        if item.file is None and self._directory is not None:
            file = await self._disk.run(ObjectFile.open, self._directory / item.name, item.size)
            if item.file is None:
                item.file = file
        return item.file

    def _store(self, item: Object, piece: Piece, flight: Flight | None) -> None:
        item.users += 1
        self._to_store.append((item, piece, flight))
        self._wake.set()

    async def store_pieces(self) -> None:
        """Write what came to the disk, for as long as the mount lives."""
        while True:
            while not self._to_store:
                if self._closing:
                    return
                self._wake = trio.Event()
                await self._wake.wait()
            self._storing = True
            try:
                await self._store_next()
            finally:
                self._storing = False

    async def _store_next(self) -> None:
        batch = [self._to_store.popleft() for _ in range(min(STORE_BATCH, len(self._to_store)))]
        try:
            # Whole even at the end: what was taken from the queue is nowhere else.
            with trio.CancelScope(shield=True):
                await self._store_batch(batch)
        except Exception:
            logger.exception("the cache did not take what came")
            for item, piece, _ in batch:
                self._stored(item, piece)

    async def _store_batch(self, batch: Sequence[tuple[Object, Piece, Flight | None]]) -> None:
        directory = self._directory
        assert directory is not None, "there is nothing to store without a directory"
        skip = trio.current_time() < self._broken_until or self._free_bytes() < self._settings.cache_free // 2
        jobs = [(item, piece, flight) for item, piece, flight in batch if not skip and not item.dead]

        # What belongs to one object goes together.
        by_object: dict[Object, list[tuple[Piece, Flight | None]]] = {}
        for item, piece, flight in jobs:
            by_object.setdefault(item, []).append((piece, flight))

        def write(item: Object, pieces: Sequence[tuple[Piece, Flight | None]]) -> list[Record]:
            if item.file is None:
                item.file = ObjectFile.open(directory / item.name, item.size)
            if item.size is not None:
                item.file.settle(item.size)
            ranges = [
                (piece.view(start, stop), start)
                for piece, flight in pieces
                for start, stop in (piece.good if flight is None else piece.have)
            ]
            records = item.file.put(ranges)
            proven = [record for record, at in zip(records, _flights_of(pieces), strict=True) if at is None]
            if proven:
                item.file.record(proven)
            return records

        def write_all() -> list[list[Record] | OSError]:
            done: list[list[Record] | OSError] = []
            for item, pieces in by_object.items():
                try:
                    done.append(write(item, pieces))
                except OSError as error:
                    done.append(error)
            return done

        results = await self._disk.run(write_all) if jobs else []
        for (item, pieces), result in zip(by_object.items(), results, strict=True):
            if isinstance(result, CutShort):
                self._lost(item)
            elif isinstance(result, OSError):
                self.trouble("written", result)
                self.facts.not_kept += sum(len(piece.memory) for piece, _ in pieces)
            else:
                for record, flight in zip(result, _flights_of(pieces), strict=True):
                    self._grew(item, record.stop - record.start)
                    if flight is None:
                        item.here.add(record.start, record.stop)
                    else:
                        self._spilled(item, flight, [record])
        for item, piece, flight in batch:
            self._stored(item, piece, keep=flight is None)
        self._shrink_soon()

    def _spilled(self, item: Object, flight: Flight, records: list[Record]) -> None:
        if not flight.done:
            flight.spilled.extend(records)
        elif flight.completed and flight.error is None:
            for record in records:
                item.here.add(record.start, record.stop)
            self._nursery.start_soon(self._record, item, records)

    def _stored(self, item: Object, piece: Piece, *, keep: bool = True) -> None:
        if keep or piece.good:
            self._keep_hot(item, piece)
        else:
            self._let_go(item, piece)
        self.release(item)

    async def _record(self, item: Object, records: list[Record]) -> None:
        file, size = item.file, item.size
        if file is None or size is None or item.dead:
            return

        def record() -> None:
            file.settle(size)
            file.record(records)

        with _log_trouble(self, "written"):
            await self._disk.run(record)

    async def _describe(self, item: Object, size: int) -> None:
        """Record what was adopted, so that it can be believed after a restart."""
        item.users += 1
        try:
            file = item.file
            for start in range(0, size, VERIFY_BYTES):
                if item.dead or file is None or self._closing:
                    return
                stop = min(size, start + VERIFY_BYTES)

                def describe(low: int = start, high: int = stop, file: ObjectFile = file) -> None:
                    file.record(file.describe(low, high, PIECE_BYTES))

                with _log_trouble(self, "written"):
                    await self._disk.run(describe)
        finally:
            self.release(item)

    async def _verify(self, item: Object, records: list[Record]) -> None:
        """Look whether what an earlier run left is what it stored."""
        if item.verifying is not None:
            await item.verifying.wait()
            return
        assert item.file is not None, "records come from a file"
        item.verifying = trio.Event()
        try:
            good, bad = await self._disk.run(item.file.verify, records)
            item.looked_at(good, bad)
            if bad:
                self.facts.corrupt += len(bad)
                logger.warning("%d ranges in the cache are not what was stored there; they are fetched again", len(bad))
        finally:
            item.verifying.set()
            item.verifying = None

    def _lost(self, item: Object) -> None:
        """Begin anew with a file that somebody cut: nothing in it can be believed."""
        logger.warning("the cache file %s was cut by somebody else; its bytes are fetched again", item.name)
        self.facts.corrupt += 1
        self._throw_away(item.name)
        item.start_anew()

    def trouble(self, what: str, error: OSError) -> None:
        """Take note that the cache directory fails: for a while nothing is kept, and reading goes on."""
        if trio.current_time() >= self._broken_until:
            logger.warning("the cache cannot be %s: %s; files are read without it", what, error.strerror)
        self._broken_until = trio.current_time() + 5.0
        if error.errno in _FULL:
            self._shrink_soon()

    # ---- what stays --------------------------------------------------------------------------------------------

    def found(self, name: str, facts: _OnDisk) -> None:
        """Take note of a file that an earlier run left."""
        self._on_disk[name] = facts
        self._allocated += facts.allocated

    def _used(self, name: str) -> None:
        found = self._on_disk.get(name)
        if found is not None:
            found.used_at = time.time()
            self._on_disk.move_to_end(name)

    def _grew(self, item: Object, count: int) -> None:
        if item.dead:
            return
        found = self._on_disk.get(item.name)
        if found is None:
            found = self._on_disk[item.name] = _OnDisk(0, time.time(), item.pinned)
        found.pinned = item.pinned
        found.allocated += count
        self._allocated += count
        self._used(item.name)

    def _discard(self, name: str) -> None:
        item = self._objects.pop(name, None)
        found = self._on_disk.get(name)
        if item is not None:
            item.dead = True
            for piece in item.pieces:
                if piece in self._hot:
                    del self._hot[piece]
                    self._hot_bytes -= len(piece.memory)
                    self._let_go(item, piece)
        if found is not None or (item is not None and item.file is not None):
            self._throw_away(name)

    def _throw_away(self, name: str) -> None:
        """Take the file of an object out of the cache; what it takes on disk is freed at leisure."""
        found = self._on_disk.pop(name, None)
        if found is not None:
            self._allocated -= found.allocated
        if self._directory is not None:
            self._thrown_away += 1
            with contextlib.suppress(OSError):
                trash = throw_away(self._directory / name, self._thrown_away)
                self._nursery.start_soon(self._disk.run, _unlink, trash)

    def _close_idle(self) -> None:
        """Close the files of objects that nobody has open, the least recently used first, down to a few."""
        while len(self._objects) > IDLE_OBJECTS:
            idle = next((item for item in self._objects.values() if item.users == 0), None)
            if idle is None:
                return
            del self._objects[idle.name]
            for piece in idle.pieces:
                if piece in self._hot:
                    del self._hot[piece]
                    self._hot_bytes -= len(piece.memory)
                self._let_go(idle, piece)
            if idle.file is not None:
                idle.file.close()

    def _shrink_soon(self) -> None:
        if self.on_disk and not (self._shrinking or self._closing) and self._too_much() > 0:
            self._shrinking = True
            self._nursery.start_soon(self._shrink)

    def _too_much(self) -> int:
        """Return how many bytes of disk should be given back."""
        over = self._allocated - self._settings.cache_bytes
        return min(max(over, self._settings.cache_free - self._free_bytes()), self._allocated)

    def _free_bytes(self) -> int:
        assert self._directory is not None, "without a directory nothing is stored"
        try:
            space = os.statvfs(self._directory)
        except OSError:
            return 0
        return space.f_bavail * space.f_frsize

    async def _shrink(self) -> None:
        """Let the least recently used files go that nobody has open and nobody pinned, then the oldest parts of open ones."""
        try:
            over = self._too_much()
            if over <= 0 or self._directory is None:
                return
            over += int(self._settings.cache_bytes * EVICT_SHARE)
            for name, facts in list(self._on_disk.items()):
                if over <= 0:
                    return
                item = self._objects.get(name)
                if facts.pinned or (item is not None and item.users > 0):
                    continue
                over -= facts.allocated
                self.facts.evicted += facts.allocated
                self._discard(name)
                await trio.lowlevel.checkpoint()
            for item in list(self._objects.values()):
                if over <= 0:
                    return
                over -= await self._shed(item, over)
        finally:
            self._shrinking = False

    async def _shed(self, item: Object, count: int) -> int:
        """Give the disk space of ``count`` bytes of an open object back, from its start; return how many that were."""
        file = item.file
        if file is None or item.pinned or item.dead or item.reading:
            return 0
        shed: list[tuple[int, int]] = []
        total = 0
        for start, stop in list(item.here):
            end = min(stop, start + count - total)
            shed.append((start, end))
            total += end - start
            if total >= count:
                break
        # Taken out before anybody can ask again, and nobody is reading from the disk now.
        for start, end in shed:
            item.here.remove(start, end)
            item.unclaim(start, end)

        def punch() -> None:
            for start, end in shed:
                file.punch(start, end)

        with _log_trouble(self, "shrunk"):
            await self._disk.run(punch)
        found = self._on_disk.get(item.name)
        if found is not None:
            found.allocated -= total
            self._allocated -= total
        self.facts.evicted += total
        return total

    def drop_old(self) -> None:
        """Let go what nobody used for longer than the limit; now and then, when something is opened."""
        now = time.time()
        self._looked_at_ages = now
        for name, facts in list(self._on_disk.items()):
            if facts.used_at >= now - self._settings.cache_age_s:
                return  # the rest was used later
            item = self._objects.get(name)
            if not facts.pinned and (item is None or item.users == 0):
                self.facts.evicted += facts.allocated
                self._discard(name)

    async def watch_flights(self) -> None:
        """Ask again for what stalls, for as long as the mount lives; sleeps while nothing is under way."""
        while True:
            if not self._flights:
                self.buffers.clear()
                self._flying = trio.Event()
                await self._flying.wait()
            await trio.sleep(self.hedging.after_s / 2)
            now = trio.current_time()
            for flight in list(self._flights):
                if now - flight.moved_at >= self.hedging.after_s and flight.can_hedge and self.hedging.allowed():
                    self.facts.hedged += 1
                    flight.hedge()

    async def settled(self) -> None:
        """Return when nothing is on its way here or to the disk any more."""
        while self._flights or self._to_store or self._storing or self._shrinking:  # noqa: ASYNC110 - four things at once
            await trio.sleep(0.001)

    async def finish(self) -> None:
        """Write what has come, and close all files."""
        self._closing = True
        self._wake.set()
        while self._to_store:
            await self._store_next()
        files = [item.file for item in self._objects.values() if item.file is not None]

        def close() -> None:
            for file in files:
                file.close()

        await self._disk.run(close)


@asynccontextmanager
async def open_blocks(
    directory: Path | None, owner: str, calls: Calls, disk: Disk, settings: Settings
) -> AsyncIterator[Blocks]:
    """Open the cache in ``directory`` (None: in memory only), with what earlier runs left in it.

    Raises:
        MountError: another process has it. OSError: it cannot be used.
    """
    _many_files()
    lock, found = -1, []
    if directory is not None:
        lock = await disk.run(_prepare, directory, owner)
        found = await disk.run(lambda: sorted(scan(directory / "blocks"), key=lambda file: file.used_at))
    failed: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            blocks = Blocks(directory and directory / "blocks", calls, disk, settings, nursery)
            for file in found:
                blocks.found(file.name, _OnDisk(file.allocated, file.used_at, file.pinned))
            if directory is not None:
                nursery.start_soon(blocks.store_pieces)
                blocks.drop_old()
            nursery.start_soon(blocks.watch_flights)
            try:
                yield blocks
            except Exception as error:  # noqa: BLE001 - it comes out as it is, and not in a group
                failed = error
            nursery.cancel_scope.cancel()
    finally:
        if directory is not None:
            with trio.CancelScope(shield=True):
                await blocks.finish()
            os.close(lock)
    if failed is not None:
        raise failed


def _prepare(directory: Path, owner: str) -> int:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = lock_directory(directory, owner, "--cache-dir")
    (directory / "blocks").mkdir(mode=0o700, exist_ok=True)
    return lock


def _many_files() -> None:
    """Let this process have as many files open as it may: each open cached file is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@contextlib.contextmanager
def _log_trouble(blocks: Blocks, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        blocks.trouble(what, error)


def _flights_of(pieces: Sequence[tuple[Piece, Flight | None]]) -> list[Flight | None]:
    """Return, for each range that is written of ``pieces``, the flight whose word it waits for."""
    return [flight for piece, flight in pieces for _ in (piece.good if flight is None else piece.have)]


def _again(error: BackendError) -> BackendError:
    """Return ``error`` to be raised by one more who waited: each gets a traceback of his own."""
    return copy.copy(error)


def _name(key: str, entry: Entry) -> str:
    version = version_of(entry)
    return blake2b(f"{entry.blob or key}\0{version}".encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()


class Window:
    """A sink that keeps just the bytes asked for."""

    def __init__(self, start: int, stop: int) -> None:
        self._start = start
        self._stop = stop
        self._next = start
        self._buffer = bytearray()

    async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
        """Copy what of ``data`` is in the window."""
        at = self._next if at is None else at
        self._next = at + len(data)
        low, high = max(at, self._start), min(self._next, self._stop)
        if low < high:
            self._buffer[low - self._start : high - self._start] = memoryview(data)[low - at : high - at]

    def taken(self) -> bytes:
        """Return what came."""
        return bytes(self._buffer)
