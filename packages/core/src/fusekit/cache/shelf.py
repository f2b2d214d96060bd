"""The cache directory: which objects have a file there, how what came gets into it, and what goes when there is too much.

Cache layer, below `blocks`, which owns the objects and says when something came. One task writes, several pieces at a
time. What is used least recently goes first, what is pinned or open last. The directory is a convenience: where it is
full, slow or broken, nothing is kept for a while, and reading goes on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from fusekit.cache.flights import Flight
from fusekit.cache.objects import Object, Piece
from fusekit.cache.readahead import PIECE_BYTES
from fusekit.cache.store import CutShort, Found, ObjectFile, Record, standing, throw_away
from fusekit.disk import Disk
from fusekit.settings import Settings

logger = logging.getLogger(__name__)

# Pieces that go to the disk in one visit of a thread, which costs a tenth of a millisecond.
STORE_BATCH: Final = 8
# How far checksums of an earlier run are looked at at once, where a program reads on in order.
VERIFY_BYTES: Final = 8 << 20
# How much of what is unused goes at once when there is too much: a look at each file would cost more than it frees.
EVICT_SHARE: Final = 0.05
# How often is looked for what is too old. By no timer: while nothing is opened there is no hurry, and nothing to wake up for.
AGE_LOOK_S: Final = 3600.0
# How long nothing is kept after the directory failed.
BROKEN_S: Final = 5.0

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
    """A file in the directory: the disk space it takes, and when it was last used (seconds since 1970)."""

    allocated: int
    used_at: float
    pinned: bool


@attrs.define(eq=False)
class _Job:
    """A piece on its way to the disk; ``flight`` is the one whose word it waits for, ``ranges`` what of it is written."""

    item: Object
    piece: Piece
    flight: Flight | None
    ranges: list[tuple[int, int]]


@attrs.frozen
class _Written:
    """What was written, and to which file: it may have been given up meanwhile."""

    file: ObjectFile
    records: list[Record]


class Shelf:
    """The files in ``directory``.

    ``closing``: nothing is begun any more that would outlive the call. ``objects`` are the objects that are known, by
    name. ``stored(item, piece, kept)`` is called when a piece needs to be in memory no longer, ``discard(name)`` when an
    object is to be forgotten.
    """

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        settings: Settings,
        nursery: trio.Nursery,
        facts: CacheFacts,
        objects: Mapping[str, Object],
        stored: Callable[[Object, Piece, bool], None],
        discard: Callable[[str], None],
    ) -> None:
        self.directory = directory
        self.allocated = 0
        self._disk = disk
        self._settings = settings
        self._nursery = nursery
        self._facts = facts
        self._objects = objects
        self._stored = stored
        self._discard = discard
        self._files: OrderedDict[str, _OnDisk] = OrderedDict()  # least recently used first
        self._waiting: deque[_Job] = deque()
        self._wake = trio.Event()
        self._storing = False
        self._shrinking = False
        self._quiet = 0
        self.closing = False
        self._broken_until = float("-inf")
        self._looked_at_ages = time.time()
        self._thrown_away = 0
        # Held while bytes go into files or are punched out of them, until it is noted what is there then.
        self._filing = trio.Lock()

    @property
    def busy(self) -> bool:
        """Return whether something is on its way to the disk, or from it."""
        return bool(self._waiting or self._storing or self._shrinking or self._quiet)

    def found(self, facts: Found) -> None:
        """Take note of a file that an earlier run left."""
        self._files[facts.name] = _OnDisk(facts.allocated, facts.used_at, facts.pinned)
        self.allocated += facts.allocated

    def bytes_of(self, name: str) -> int | None:
        """Return the disk space that the file of an object takes, None where it has none."""
        found = self._files.get(name)
        return None if found is None else found.allocated

    def used(self, name: str) -> None:
        """Take note that an object is used."""
        found = self._files.get(name)
        if found is not None:
            found.used_at = time.time()
            self._files.move_to_end(name)
        if time.time() - self._looked_at_ages > AGE_LOOK_S:
            self.drop_old()

    # ---- into the directory ------------------------------------------------------------------------------------

    async def load(self, item: Object) -> None:
        """Open the file of ``item``, whose size is known, with what an earlier run left in it."""
        found = self._files.get(item.name)
        if found is None or item.size is None:
            return
        try:
            file = await self._disk.run(_open, self.directory / item.name, item.size)
        except OSError as error:
            self._trouble("opened", error)
            return
        item.pinned = found.pinned
        item.loaded(file, standing(file.records))
        file.records = []

    def store(self, item: Object, piece: Piece, flight: Flight | None = None) -> None:
        """Write what of ``piece`` is good; all that has come of it where ``flight`` will say whether it is."""
        item.users += 1
        self._waiting.append(_Job(item, piece, flight, list(piece.good if flight is None else piece.have)))
        self._wake.set()

    async def adopt(self, item: Object, path: Path, size: int, put: Callable[[], None]) -> bool:
        """Make the file at ``path``, which has all bytes of ``item``, its file; return whether that went well.

        ``put`` is called when it is about to become visible under its name.
        """
        self._thrown_away += 1
        beside = self.directory / f".{self._thrown_away}-new"  # swept at the next start if we do not come to rename it
        try:
            file = await self._disk.run(ObjectFile.take, beside, path, size)
            put()
            os.rename(beside, self.directory / item.name)
        except OSError as error:  # another file system: a copy would cost more than it saves
            logger.debug("%s is not taken over into the cache: %s", path, error)
            return False
        file.path = self.directory / item.name
        item.loaded(file, [])
        item.here.add(0, size)
        item.claimed.add(0, size)
        self._grew(item, size)
        self._begin(item)
        self._nursery.start_soon(self._describe, item, file, size)
        self._shrink_soon()
        return True

    async def pin(self, item: Object, pinned: bool) -> None:
        """Keep the file of ``item`` whatever else must go, or no longer."""
        if item.file is None:
            file = await self._disk.run(_open, self.directory / item.name, item.size)
            item.file = item.file or file
        await self._disk.run(item.file.pin, pinned)
        item.pinned = pinned
        self._grew(item, 0)

    async def run(self) -> None:
        """Write what comes, for as long as the mount lives."""
        while True:
            while not self._waiting:
                self._wake = trio.Event()
                await self._wake.wait()
            await self._store_next()

    async def finish(self) -> None:
        """Write what has come, and close all files; the tasks of the nursery have ended."""
        while self._waiting:
            await self._store_next()
        files = [item.file for item in self._objects.values() if item.file is not None]

        def close() -> None:
            for file in files:
                file.close()

        await self._disk.run(close)

    async def _store_next(self) -> None:
        jobs = [self._waiting.popleft() for _ in range(min(STORE_BATCH, len(self._waiting)))]
        self._storing = True
        try:
            # Whole even at the end: what was taken from the queue is nowhere else.
            with trio.CancelScope(shield=True):
                await self._write(jobs)
        except Exception:
            logger.exception("the cache did not take what came")
        finally:
            self._storing = False
            for job in jobs:
                self._stored(job.item, job.piece, job.flight is None)
        self._shrink_soon()

    async def _write(self, jobs: Sequence[_Job]) -> None:
        if trio.current_time() < self._broken_until or self._free_bytes() < self._settings.cache_free // 2:
            self._facts.not_kept += sum(len(job.piece.memory) for job in jobs)
            return
        by_object: dict[Object, list[_Job]] = {}
        for job in jobs:
            if not job.item.dead:
                by_object.setdefault(job.item, []).append(job)

        def write() -> list[_Written | OSError]:
            done: list[_Written | OSError] = []
            for item, together in by_object.items():
                try:
                    done.append(self._write_to(item, together))
                except OSError as error:
                    done.append(error)
            return done

        async with self._filing:
            for (item, together), result in zip(by_object.items(), await self._disk.run(write), strict=True):
                if isinstance(result, _Written):
                    self._written(item, together, result)
                    continue
                self._facts.not_kept += sum(len(job.piece.memory) for job in together)
                if isinstance(result, CutShort):
                    self.lost(item)
                else:
                    self._trouble("written", result)
                    self._count_again(item)  # it may have taken half

    def _write_to(self, item: Object, jobs: Sequence[_Job]) -> _Written:
        """Write to one file, in a thread; return a record for each range of each job."""
        file = item.file
        if file is None:
            file = item.file = _open(self.directory / item.name, item.size)
        if item.size is not None:
            file.settle(item.size)
        records = file.put([(job.piece.view(*span), span[0]) for job in jobs for span in job.ranges])
        proven = [record for record, flight in zip(records, _flights_of(jobs), strict=True) if flight is None]
        if proven:
            file.record(proven)
        return _Written(file, records)

    def _written(self, item: Object, jobs: Sequence[_Job], written: _Written) -> None:
        if item.dead or item.file is not written.file:
            return  # given up meanwhile
        records = written.records
        for record, flight in zip(records, _flights_of(jobs), strict=True):
            self._grew(item, record.stop - record.start)
            if flight is None:
                item.here.add(record.start, record.stop)
            elif not flight.done:
                flight.spilled.append(record)
            elif flight.good:
                self.record(item, [record])

    def record(self, item: Object, records: Sequence[Record]) -> None:
        """Let what was written ahead of the word that it is good be handed out, and be believed after a restart."""
        file, size = item.file, item.size
        if file is None or size is None or item.dead:
            return
        for record in records:
            item.here.add(record.start, record.stop)

        def write() -> None:
            file.settle(size)
            file.record(records)

        if not self.closing:
            self._begin(item)
            self._nursery.start_soon(self._end_after, item, write)

    async def _describe(self, item: Object, file: ObjectFile, size: int) -> None:
        """Record what was adopted, so that it can be believed after a restart."""
        try:
            for start in range(0, size, VERIFY_BYTES):
                stop = min(size, start + VERIFY_BYTES)

                def describe(low: int = start, high: int = stop) -> None:
                    file.record(file.describe(low, high, PIECE_BYTES))

                if item.dead or self.closing:
                    return
                with self._believed(item):
                    await self._disk.run(describe)
        finally:
            self._end(item)

    async def _end_after(self, item: Object, call: Callable[[], None]) -> None:
        try:
            with self._believed(item):
                await self._disk.run(call)
        finally:
            self._end(item)

    def _begin(self, item: Object) -> None:
        """Keep the file of ``item`` open until `_end`, for something that only makes it more useful."""
        item.users += 1
        self._quiet += 1

    def _end(self, item: Object) -> None:
        item.users -= 1
        self._quiet -= 1

    # ---- out of it ---------------------------------------------------------------------------------------------

    async def verify(self, item: Object, start: int, stop: int) -> None:
        """Look whether what an earlier run left of ``start`` to ``stop`` is what it stored."""
        if item.verifying is not None:
            await item.verifying.wait()
            return
        file, records = item.file, item.unverified_in(start, stop)
        assert file is not None, "records come from a file"
        item.verifying = trio.Event()
        try:
            with self._believed(item):
                good, bad = await self._disk.run(file.verify, records)
                if item.file is file:
                    item.looked_at(good, bad)
                if bad:
                    self._facts.corrupt += len(bad)
                    logger.warning("%d ranges in the cache are not what was stored; they are fetched again", len(bad))
        finally:
            item.verifying.set()
            item.verifying = None

    def lost(self, item: Object) -> None:
        """Begin anew with a file that somebody cut or that cannot be read: nothing in it can be believed."""
        logger.warning("the cache file %s was changed by somebody else; its bytes are fetched again", item.name)
        self._facts.corrupt += 1
        self.throw_away(item.name)
        item.start_anew()
        for flight in item.flights:
            flight.spilled.clear()

    @contextmanager
    def _believed(self, item: Object) -> Iterator[None]:
        try:
            yield
        except CutShort:
            self.lost(item)
        except OSError as error:
            self._trouble("used", error)
            self.lost(item)

    def _trouble(self, what: str, error: OSError) -> None:
        """Take note that the directory fails: for a while nothing is kept, and reading goes on."""
        if trio.current_time() >= self._broken_until:
            logger.warning("the cache cannot be %s: %s; files are read without it", what, error.strerror)
        self._broken_until = trio.current_time() + BROKEN_S
        if error.errno in _FULL:
            self._shrink_soon()

    # ---- what stays --------------------------------------------------------------------------------------------

    def throw_away(self, name: str) -> None:
        """Take the file of an object out of the cache; what it takes on disk is freed at leisure."""
        found = self._files.pop(name, None)
        if found is not None:
            self.allocated -= found.allocated
        self._thrown_away += 1
        with contextlib.suppress(OSError):
            trash = throw_away(self.directory / name, self._thrown_away)
            if not self.closing:  # else it is swept at the next start
                self._nursery.start_soon(self._disk.run, unlink, trash)

    def _count_again(self, item: Object) -> None:
        """Ask the file system what the file of ``item`` takes."""
        if item.file is not None:
            found = self._files.get(item.name)
            with contextlib.suppress(OSError):
                self._grew(item, item.file.allocated() - (found.allocated if found is not None else 0))

    def _grew(self, item: Object, count: int) -> None:
        if item.dead:
            return
        found = self._files.setdefault(item.name, _OnDisk(0, time.time(), item.pinned))
        found.pinned = item.pinned
        found.allocated += count
        self.allocated += count
        self.used(item.name)

    def _shrink_soon(self) -> None:
        if not (self._shrinking or self.closing) and self._too_much() > 0:
            self._shrinking = True
            self._nursery.start_soon(self._shrink)

    def _too_much(self) -> int:
        """Return how many bytes of disk should be given back."""
        over = self.allocated - self._settings.cache_bytes
        return min(max(over, self._settings.cache_free - self._free_bytes()), self.allocated)

    def _free_bytes(self) -> int:
        try:
            space = os.statvfs(self.directory)
        except OSError:
            return 0
        return space.f_bavail * space.f_frsize

    async def _shrink(self) -> None:
        """Let the least recently used files go that nobody has open and nobody pinned, then parts of open ones."""
        try:
            over = self._too_much()
            if over <= 0:
                return
            over += int(self._settings.cache_bytes * EVICT_SHARE)
            for name, facts in list(self._files.items()):
                if over <= 0:
                    return
                if self._can_go(name, facts):
                    over -= facts.allocated
                    self._evict(name, facts)
                    await trio.lowlevel.checkpoint()
            for item in list(self._objects.values()):
                if over <= 0:
                    return
                over -= await self._shed(item, over)
        finally:
            self._shrinking = False

    def drop_old(self) -> None:
        """Let go what nobody used for longer than the limit; now and then, when something is opened."""
        now = self._looked_at_ages = time.time()
        for name, facts in list(self._files.items()):
            if facts.used_at >= now - self._settings.cache_age_s:
                return  # the rest was used later
            if self._can_go(name, facts):
                self._evict(name, facts)

    def _can_go(self, name: str, facts: _OnDisk) -> bool:
        item = self._objects.get(name)
        return self._files.get(name) is facts and not facts.pinned and (item is None or item.users == 0)

    def _evict(self, name: str, facts: _OnDisk) -> None:
        self._facts.evicted += facts.allocated
        self._discard(name)

    async def _shed(self, item: Object, count: int) -> int:
        """Give the disk space of ``count`` bytes of an open object back, from its start; return how many that were."""
        async with self._filing:
            file = item.file
            if file is None or item.pinned or item.dead or item.reading:
                return 0
            shed: list[tuple[int, int]] = []
            total = 0
            for start, stop in item.here:
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

            self._begin(item)
            await self._end_after(item, punch)
            found = self._files.get(item.name)
            if found is not None and item.file is file:
                found.allocated -= total
                self.allocated -= total
        self._facts.evicted += total
        return total


def unlink(path: Path) -> None:
    """Delete a file that may be gone already; what is no file is left to whoever put it there."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
        os.unlink(path)


def _open(path: Path, size: int | None) -> ObjectFile:
    """Open the file of an object; what is none, a directory or a link in its place, is put aside."""
    try:
        return ObjectFile.open(path, size)
    except OSError as error:
        if error.errno not in {errno.EISDIR, errno.ELOOP}:
            raise
    os.rename(path, path.with_name(f".{uuid.uuid4().hex}"))
    return ObjectFile.open(path, size)


def _flights_of(jobs: Sequence[_Job]) -> list[Flight | None]:
    """Return, for each range that is written, the flight whose word it waits for."""
    return [job.flight for job in jobs for _ in job.ranges]
