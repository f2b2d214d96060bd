"""The block cache: bytes of remote files, fetched once, kept in memory and on disk for as long as there is room.

Cache layer, its upper side: the vfs holds an `Object` for each open version and reads through `Blocks.read`. What is
lacking is fetched by flights (`flights`), how much ahead is for `readahead` to say, memory is counted by `budget`, and
what came goes to the cache directory (`shelf`). Knows entries and callers, not inodes.
"""

from __future__ import annotations

import contextlib
import copy
import os
import resource
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
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
from fusekit.cache.shelf import VERIFY_BYTES, CacheFacts, Shelf, unlink
from fusekit.cache.store import Found, scan
from fusekit.disk import Disk
from fusekit.errors import BackendError, Denied
from fusekit.journal.journal import lock_directory
from fusekit.journal.uploader import version_of
from fusekit.settings import Settings
from fusekit.transfer.calls import Calls
from fusekit.types import Caller, Entry

# How much of the budget may hold bytes that are on disk already: enough for readers that come a little later.
HOT_SHARE: Final = 0.25
# Objects that nobody has open whose files stay open, for whoever comes back.
IDLE_OBJECTS: Final = 128
# So many fetches may end well and leave a reader without its bytes, which went before it came to them.
TRIES_MAX: Final = 64

_NOTHING: Final = bytearray()


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
        self.shelf: Shelf | None = None
        self._disk = disk
        self._settings = settings
        self._nursery = nursery
        self._objects: OrderedDict[str, Object] = OrderedDict()
        self._hot: OrderedDict[Piece, Object] = OrderedDict()
        self._hot_bytes = 0
        self._flights: set[Flight] = set()
        self._flying = trio.Event()
        if directory is not None:
            self.shelf = Shelf(
                directory, disk, settings, nursery, self.facts, self._objects, self._stored, self._discard
            )

    @property
    def on_disk(self) -> bool:
        """Return whether there is a cache directory."""
        return self.shelf is not None

    @property
    def bytes_used(self) -> int:
        """Return how much disk space the cache takes, without one how much memory."""
        return self.shelf.allocated if self.shelf is not None else self._hot_bytes

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
        allocated = (self.shelf.bytes_of(name) if self.shelf is not None else None) or 0
        return allocated if entry.size is None else min(allocated, entry.size)

    async def hold(self, key: str, entry: Entry) -> Object:
        """Return the object for ``entry``, open until `release`; ``key`` names it whatever its version is."""
        name = _name(key, entry)
        item = self._objects.get(name)
        if item is None:
            item = self._objects[name] = Object(name, entry.size, self._disk)
        elif item.size is None:
            item.size = entry.size
        item.users += 1
        try:
            await self._loaded(item)
        except BaseException:
            self.release(item)
            raise
        if not item.dead:
            self._objects.move_to_end(name)
        if self.shelf is not None:
            self.shelf.used(name)
        return item

    async def _loaded(self, item: Object) -> None:
        """Return when what an earlier run left of ``item`` is known; the first who asks looks."""
        if item.looked or self.shelf is None:
            return
        if item.loading is not None:
            await item.loading.wait()
            return
        item.loading = trio.Event()
        try:
            await self.shelf.load(item)
            item.looked = True
        finally:
            item.loading.set()
            item.loading = None

    def release(self, item: Object) -> None:
        """Give ``item`` back."""
        item.users -= 1
        if item.users == 0:
            if item.dead:
                self._forget_hot(item)
            self._close_idle()

    async def adopt(self, key: str, entry: Entry, path: Path) -> None:
        """Take the file at ``path`` as the whole content of ``entry``; whatever was cached for it goes."""
        name, size = _name(key, entry), entry.size or 0
        self._discard(name)
        item = Object(name, size, self._disk)
        item.looked = True

        def put() -> None:  # somebody may have come to read it meanwhile
            self._discard(name)
            self._objects[name] = item

        if self.shelf is None or size == 0 or not await self.shelf.adopt(item, path, size, put):
            await self._disk.run(unlink, path)

    def drop(self, key: str, entry: Entry) -> None:
        """Forget what is cached of ``entry``."""
        self._discard(_name(key, entry))

    async def pin(self, key: str, entry: Entry, pinned: bool) -> None:
        """Keep what is on disk of ``entry`` whatever else must go, or no longer."""
        item = await self.hold(key, entry)
        try:
            if self.shelf is None:
                raise BackendError("there is no cache directory to keep it in")
            await self.shelf.pin(item, pinned)
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
        file = item.file
        data = await item.read(start, stop)
        if len(data) < stop - start:  # somebody cut the file, or it was given up meanwhile
            if self.shelf is not None and file is not None and item.file is file:
                self.shelf.lost(item)
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
        if self.shelf is not None and item.unverified_in(gap, gap + 1):
            ahead = VERIFY_BYTES if reader.window else 0
            await self.shelf.verify(item, gap, max(stop, gap + ahead))
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
        if self.shelf is not None and item.size is not None and not item.dead:
            self.shelf.store(item, piece)
        else:
            self._keep_hot(item, piece)

    def spill(self, flight: Flight, piece: Piece) -> None:
        """Write ``piece`` to disk ahead of the word that it is good, so that its memory can go."""
        if not piece.leaving and self.shelf is not None and not flight.item.dead:
            piece.leaving = True
            self.shelf.store(flight.item, piece, flight)

    def landed(self, flight: Flight) -> None:
        """Take over what ``flight`` brought, as far as it is good, and give back what it did not use."""
        item = flight.item
        item.flights.remove(flight)
        self._flights.discard(flight)
        self.facts.landed += flight.completed
        self.budget.release(flight.held)
        flight.held = 0
        good = flight.good
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
        if good and flight.spilled and self.shelf is not None:
            self.shelf.record(item, flight.spilled)
        if flight.stop is not None:
            item.unclaim(flight.start, flight.stop)
        elif good:
            item.unclaim(0, flight.end)
        self.release(item)

    # ---- memory ------------------------------------------------------------------------------------------------

    def _keep_hot(self, item: Object, piece: Piece) -> None:
        if item.dead and item.users == 0:
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

    def _stored(self, item: Object, piece: Piece, kept: bool) -> None:
        """Take ``piece`` back from the shelf; its memory may go."""
        if kept or piece.good:
            self._keep_hot(item, piece)
        else:
            self._let_go(item, piece)
        self.release(item)

    def _discard(self, name: str) -> None:
        """Forget an object; who has it open reads on, from what is on its way or asked for again."""
        item = self._objects.pop(name, None)
        if item is not None:
            item.dead = True
            if item.users == 0:
                self._forget_hot(item)
        if self.shelf is not None and (self.shelf.bytes_of(name) is not None or (item and item.file)):
            self.shelf.throw_away(name)

    def _forget_hot(self, item: Object) -> None:
        for piece in item.pieces:
            if self._hot.pop(piece, None) is not None:
                self._hot_bytes -= len(piece.memory)
                self._let_go(item, piece)

    def _close_idle(self) -> None:
        """Close the files of objects that nobody has open, the least recently used first, down to a few."""
        while len(self._objects) > IDLE_OBJECTS:
            idle = next((item for item in self._objects.values() if item.users == 0), None)
            if idle is None:
                return
            del self._objects[idle.name]
            self._forget_hot(idle)
            if idle.file is not None:
                idle.file.close()

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
        while self._flights or (self.shelf is not None and self.shelf.busy):  # noqa: ASYNC110 - several things at once
            await trio.sleep(0.001)


@asynccontextmanager
async def open_blocks(
    directory: Path | None, owner: str, calls: Calls, disk: Disk, settings: Settings
) -> AsyncIterator[Blocks]:
    """Open the cache in ``directory`` (None: in memory only), with what earlier runs left in it.

    Raises:
        MountError: another process has it. OSError: it cannot be used.
    """
    _many_files()
    lock = await disk.run(_prepare, directory, owner) if directory is not None else -1
    failed: Exception | None = None
    shelf: Shelf | None = None
    try:
        async with trio.open_nursery() as nursery:
            blocks = Blocks(directory and directory / "blocks", calls, disk, settings, nursery)
            shelf = blocks.shelf
            if shelf is not None:
                for file in await disk.run(_scanned, shelf.directory):
                    shelf.found(file)
                shelf.drop_old()
                nursery.start_soon(shelf.run)
            nursery.start_soon(blocks.watch_flights)
            try:
                yield blocks
            except Exception as error:  # noqa: BLE001 - it comes out as it is, and not in a group
                failed = error
            finally:
                if shelf is not None:
                    shelf.closing = True
            nursery.cancel_scope.cancel()
    finally:
        if shelf is not None:
            with trio.CancelScope(shield=True):
                await shelf.finish()
        if lock >= 0:
            os.close(lock)
    if failed is not None:
        raise failed


def _prepare(directory: Path, owner: str) -> int:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = lock_directory(directory, owner, "--cache-dir")
    (directory / "blocks").mkdir(mode=0o700, exist_ok=True)
    return lock


def _scanned(directory: Path) -> list[Found]:
    return sorted(scan(directory), key=lambda file: file.used_at)


def _many_files() -> None:
    """Let this process have as many files open as it may: each open cached file is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
