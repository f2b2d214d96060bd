"""The block cache over a service that does what a test tells it: what is fetched, what is kept, what is never shown."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing

from fusekit.cache.blocks import Blocks, open_blocks
from fusekit.cache.readahead import FIRST_BYTES, PIECE_BYTES, Reader
from fusekit.disk import Disk
from fusekit.errors import BackendError, Corrupt, Denied, Stale, Unavailable
from fusekit.settings import Settings
from fusekit.transfer.calls import Calls
from fusekit.transfer.inlet import Inlet
from fusekit.types import Caller, Entry, Sink

ME = Caller(0, 0, 1)
MIB = 1 << 20
STEP = 128 << 10


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


Behaviour = Callable[["Service", int, int, Sink], Awaitable[None]]


@attrs.define(eq=False)
class Service:
    """Stands in for `Calls`: sends the bytes of ``data``, in place or by copy; ``does`` takes over where it is set."""

    data: bytes
    in_place: bool = True
    chunk: int = 256 << 10
    does: Behaviour | None = None
    reads: list[tuple[int, int | None]] = attrs.field(factory=list)
    running: int = 0
    most_running: int = 0

    async def read(self, entry: Entry, start: int, stop: int | None, sink: Sink, caller: Caller) -> None:
        self.reads.append((start, stop))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.does is not None:
                await self.does(self, start, len(self.data) if stop is None else stop, sink)
            else:
                await self.send(start, len(self.data) if stop is None else stop, sink)
        finally:
            self.running -= 1

    async def send(self, start: int, stop: int, sink: Sink) -> None:
        at = start
        while at < stop:
            count = min(self.chunk, stop - at)
            if self.in_place and isinstance(sink, Inlet):
                room = await sink.room(at)
                count = min(count, len(room))
                room[:count] = self.data[at : at + count]
                await sink.filled(count, at)
            else:
                await sink.write(self.data[at : at + count], at)
            at += count
            await trio.lowlevel.checkpoint()

    @property
    def fetched(self) -> int:
        return sum((len(self.data) if stop is None else stop) - start for start, stop in self.reads)


@attrs.define(eq=False)
class Bench:
    """A cache over a service, with one object in it."""

    blocks: Blocks
    service: Service
    entry: Entry

    async def address(self) -> Entry:
        return self.entry

    async def read(
        self, start: int, stop: int, reader: Reader | None = None, caller: Caller = ME, *, ranges: bool = True
    ) -> bytes:
        item = await self.blocks.hold("key", self.entry)
        try:
            return bytes(
                await self.blocks.read(item, reader or Reader(), start, stop, self.address, caller, ranges=ranges)
            )
        finally:
            self.blocks.release(item)

    async def read_through(self, step: int = STEP, *, ranges: bool = True) -> bytes:
        reader = Reader()
        item = await self.blocks.hold("key", self.entry)
        found = bytearray()
        try:
            for at in range(0, len(self.service.data), step):
                found += await self.blocks.read(item, reader, at, at + step, self.address, ME, ranges=ranges)
        finally:
            self.blocks.release(item)
        return bytes(found)


@asynccontextmanager
async def bench(
    directory: Path | None, service: Service, *, size: int | None = -1, version: str = "1", **options: Any
) -> AsyncIterator[Bench]:
    settings = attrs.evolve(Settings(), cache_free=0, **options)
    async with open_blocks(directory, "a test", cast(Calls, service), Disk(), settings) as blocks:
        known = len(service.data) if size == -1 else size
        yield Bench(blocks, service, Entry.file("f", "/f", size=known, version=version))


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "cache" if request.param == "disk" else None


@pytest.mark.parametrize("in_place", [True, False])
async def test_a_file_read_in_order_comes_right_once_and_in_large_ranges(place: Path | None, in_place: bool) -> None:
    service = Service(content(48 * MIB), in_place=in_place)
    async with bench(place, service) as there:
        assert await there.read_through() == service.data
        assert service.fetched == len(service.data), "no byte is fetched twice"
        assert service.reads[0] == (0, FIRST_BYTES)
        assert len(service.reads) <= 32
        assert service.most_running >= 4, "several ranges at once"


async def test_a_random_reader_gets_just_what_it_asked_for(place: Path | None) -> None:
    service = Service(content(32 * MIB))
    reader = Reader()
    wanted = [number * 13 % 32 * MIB + number * 4096 for number in range(1, 101)]
    async with bench(place, service) as there:
        for at in wanted:
            assert await there.read(at, at + 4096, reader) == service.data[at : at + 4096]
        assert service.reads == [(at, at + 4096) for at in wanted]


async def test_what_was_read_once_is_not_fetched_again(place: Path | None) -> None:
    service = Service(content(8 * MIB))
    async with bench(place, service) as there:
        assert await there.read_through() == service.data
        await there.blocks.settled()
        count = len(service.reads)
        assert await there.read_through(step=100_000) == service.data
        assert len(service.reads) == count


async def test_readers_of_one_file_share_its_fetches(place: Path | None) -> None:
    service = Service(content(8 * MIB))
    async with bench(place, service) as there:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(there.read_through)
        assert service.fetched == len(service.data)


async def test_bytes_that_come_in_place_are_handed_on_while_the_rest_is_on_its_way(place: Path | None) -> None:
    rest = trio.Event()

    async def does(service: Service, start: int, stop: int, sink: Sink) -> None:
        await service.send(start, start + 4096, sink)
        await rest.wait()
        await service.send(start + 4096, stop, sink)

    service = Service(content(MIB), does=does)
    async with bench(place, service) as there:
        assert await there.read(0, 4096) == service.data[:4096]
        with trio.move_on_after(0) as waiting:
            await there.read(4096, 8192)
        assert waiting.cancelled_caught
        rest.set()
        assert await there.read(4096, MIB) == service.data[4096:]


async def test_bytes_that_a_backend_writes_are_handed_on_only_when_its_hook_returned(place: Path | None) -> None:
    async def does(service: Service, start: int, stop: int, sink: Sink) -> None:
        await service.send(start, stop, sink)
        raise Stale("it was another version all the time")

    service = Service(content(MIB), in_place=False, does=does)
    async with bench(place, service) as there:
        with pytest.raises(Stale):
            await there.read(0, 4096)
        service.does = None
        service.data = content(MIB, seed=2)
        assert await there.read(0, MIB) == service.data, "nothing of it was kept"


async def test_a_piece_of_which_a_part_is_proven_shows_no_other_part(place: Path | None) -> None:
    other = content(MIB, seed=2)

    async def does(service: Service, start: int, stop: int, sink: Sink) -> None:
        if start == 0:
            await service.send(0, 4096, sink)
        await sink.write(other[:stop], 0)
        raise Unavailable("cut")

    service = Service(content(256 << 10), does=does)
    async with bench(place, service) as there:
        with pytest.raises(Unavailable):
            await there.read(0, 8192)
        service.does = None
        assert await there.read(0, 8192) == service.data[:8192]


@pytest.mark.parametrize("in_place", [True, False])
async def test_a_short_body_is_an_error_and_never_data(place: Path | None, in_place: bool) -> None:
    async def does(service: Service, start: int, stop: int, sink: Sink) -> None:
        await service.send(start, stop - 1, sink)

    service = Service(content(64 << 10), in_place=in_place, does=does)
    async with bench(place, service) as there:
        with pytest.raises(Corrupt):
            await there.read((64 << 10) - 10, 64 << 10)


async def test_a_body_with_a_hole_is_an_error(place: Path | None) -> None:
    async def does(service: Service, start: int, stop: int, sink: Sink) -> None:
        await sink.write(service.data[start : start + 10], start)
        await sink.write(service.data[start + 20 : stop], start + 20)

    service = Service(content(64 << 10), does=does)
    async with bench(place, service) as there:
        with pytest.raises(Corrupt):
            await there.read(0, 64 << 10)


async def test_a_file_that_is_longer_than_it_was_is_stale(place: Path | None) -> None:
    service = Service(content(64 << 10), in_place=False)
    whole = service.data + b"more"

    async def does(service: Service, start: int, stop: int, sink: Sink) -> None:
        service.data = whole
        await service.send(0, len(whole), sink)

    service.does = does
    async with bench(place, service) as there:
        with pytest.raises(Stale):
            await there.read(0, (64 << 10) - 5)


async def test_all_who_wait_hear_of_a_failure_and_the_next_read_tries_again(place: Path | None) -> None:
    async def does(service: Service, start: int, stop: int, sink: Sink) -> None:
        await trio.sleep(1)
        raise Unavailable("down")

    service = Service(content(64 << 10), does=does)
    heard: list[str] = []
    async with bench(place, service) as there:

        async def ask() -> None:
            try:
                await there.read(0, 4096)
            except Unavailable as error:
                heard.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert heard == ["down"] * 5
        assert len(service.reads) == 1
        service.does = None
        assert await there.read(0, 4096) == service.data[:4096]


async def test_a_bug_in_a_hook_is_an_error_of_this_read_alone(place: Path | None) -> None:
    async def does(service: Service, start: int, stop: int, sink: Sink) -> None:
        raise ZeroDivisionError

    service = Service(content(64 << 10), does=does)
    async with bench(place, service) as there:
        with pytest.raises(BackendError):
            await there.read(0, 4096)
        service.does = None
        assert await there.read(0, 4096) == service.data[:4096]


async def test_what_one_user_is_denied_is_no_answer_to_another(place: Path | None) -> None:
    async def does(service: Service, start: int, stop: int, sink: Sink) -> None:
        service.does = None
        await trio.sleep(1)
        raise Denied("not you")

    service = Service(content(64 << 10), does=does)
    async with bench(place, service) as there:

        async def denied() -> None:
            with pytest.raises(Denied):
                await there.read(0, 4096, caller=Caller(1, 1, 1, "one"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(denied)
            await trio.testing.wait_all_tasks_blocked()
            assert await there.read(0, 4096, caller=Caller(2, 2, 2, "two")) == service.data[:4096]


async def test_who_is_cancelled_takes_nobody_along(place: Path | None) -> None:
    go_on = trio.Event()

    async def does(service: Service, start: int, stop: int, sink: Sink) -> None:
        await go_on.wait()
        await service.send(start, stop, sink)

    service = Service(content(64 << 10), does=does)
    got: list[bytes] = []
    async with bench(place, service) as there:

        async def ask() -> None:
            got.append(await there.read(0, 4096))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(1):
                nursery.start_soon(ask)
                await there.read(0, 4096)
            go_on.set()
        assert got == [service.data[:4096]]
        assert len(service.reads) == 1


# ---- stalls ------------------------------------------------------------------------------------------------------


async def test_a_range_that_stalls_is_asked_for_again_and_the_late_answer_dropped(
    place: Path | None, autojump_clock: trio.testing.MockClock
) -> None:
    late: list[str] = []

    async def does(service: Service, start: int, stop: int, sink: Sink) -> None:
        if len(service.reads) > 1:
            await service.send(start, stop, sink)
            return
        try:
            await service.send(start, start + 1000, sink)
            await trio.sleep(600)
            late.append("came")
        except trio.Cancelled:
            late.append("cancelled")
            raise

    service = Service(content(64 << 10), does=does)
    async with bench(place, service) as there:
        began = trio.current_time()
        assert await there.read(0, 64 << 10) == service.data
        await there.blocks.settled()
        assert trio.current_time() - began < 30
        assert late == ["cancelled"]
        assert service.reads == [(0, 64 << 10)] * 2
        assert there.blocks.facts.hedged == 1


async def test_a_slow_service_is_not_asked_twice_for_everything(
    place: Path | None, autojump_clock: trio.testing.MockClock
) -> None:
    async def does(service: Service, start: int, stop: int, sink: Sink) -> None:
        await trio.sleep(25)
        await service.send(start, stop, sink)

    service = Service(content(256 * MIB // 4), does=does)
    async with bench(place, service) as there:
        for at in range(60):
            await there.read(at * MIB, at * MIB + 10)
        asked_again = len(service.reads) - 60
        assert 0 < asked_again <= 60 // 20 + 8


# ---- memory ------------------------------------------------------------------------------------------------------


async def test_two_hundred_readers_stay_within_the_budget(place: Path | None) -> None:
    service = Service(content(32 * MIB))
    budget = 16 * MIB
    async with bench(place, service, memory=budget) as there:
        item = await there.blocks.hold("key", there.entry)
        chance = random.Random(3)

        async def one(offset: int) -> None:
            reader = Reader()
            for at in range(offset, min(offset + MIB, len(service.data)), STEP):
                data = await there.blocks.read(item, reader, at, at + STEP, there.address, ME)
                assert data == service.data[at : at + STEP]

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(one, chance.randrange(31) * MIB)
        there.blocks.release(item)
        await there.blocks.settled()
        assert there.blocks.budget.peak <= budget
        assert there.blocks.budget.used == sum(len(piece.memory) for piece in item.pieces)


async def test_without_a_directory_nothing_is_on_disk_and_what_was_read_last_stays(tmp_path: Path) -> None:
    service = Service(content(4 * MIB))
    async with bench(None, service) as there:
        await there.read_through()
        assert there.blocks.bytes_used == len(service.data)
        assert os.listdir(tmp_path) == []


async def test_a_file_larger_than_the_memory_comes_right_without_a_directory() -> None:
    service = Service(content(40 * MIB), in_place=False)
    async with bench(None, service, memory=16 * MIB) as there:
        assert await there.read_through() == service.data
        assert there.blocks.budget.peak <= 16 * MIB


@pytest.mark.parametrize("in_place", [True, False])
async def test_without_ranges_one_fetch_brings_the_whole_file(place: Path | None, in_place: bool) -> None:
    async def does(service: Service, start: int, stop: int, sink: Sink) -> None:
        await service.send(0, len(service.data), sink)

    service = Service(content(24 * MIB), in_place=in_place, does=does)
    async with bench(place, service, memory=64 * MIB) as there:
        assert await there.read_through(ranges=False) == service.data
        assert service.reads == [(0, 24 * MIB)]


async def test_without_ranges_and_memory_for_it_a_read_still_ends(tmp_path: Path) -> None:
    service = Service(content(40 * MIB), in_place=False)
    async with bench(None, service, memory=16 * MIB) as there:
        at = 30 * MIB
        assert await there.read(at, at + 4096, ranges=False) == service.data[at : at + 4096]
        assert there.blocks.budget.peak <= 16 * MIB


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("size", [0, 1, 5 * MIB, 40 * MIB])
async def test_a_file_of_unknown_size_is_measured_by_one_fetch(place: Path | None, in_place: bool, size: int) -> None:
    service = Service(content(size), in_place=in_place)
    async with bench(place, service, size=None, memory=16 * MIB) as there:
        item = await there.blocks.hold("key", there.entry)
        assert await there.blocks.measure(item, there.address, ME) == size
        assert service.reads == [(0, None)]
        there.entry = attrs.evolve(there.entry, size=size)
        assert await there.read_through() == service.data
        if place is not None:
            assert service.reads == [(0, None)], "its bytes are here"
        there.blocks.release(item)
        assert there.blocks.budget.peak <= 16 * MIB


# ---- restarts ----------------------------------------------------------------------------------------------------


async def _kept(directory: Path, service: Service) -> Path:
    """Read everything once, end, and return the file that was left."""
    async with bench(directory, service) as there:
        assert await there.read_through() == service.data
    service.reads.clear()
    (file,) = (directory / "blocks").iterdir()
    return file


async def test_what_was_read_before_a_restart_is_not_fetched_again(tmp_path: Path) -> None:
    service = Service(content(20 * MIB))
    await _kept(tmp_path, service)
    async with bench(tmp_path, service) as there:
        assert there.blocks.cached("key", there.entry) >= len(service.data)
        assert await there.read_through() == service.data
        assert service.reads == []


async def test_another_version_has_nothing_of_it(tmp_path: Path) -> None:
    service = Service(content(MIB))
    await _kept(tmp_path, service)
    service.data = content(MIB, seed=2)
    async with bench(tmp_path, service, version="2") as there:
        assert there.blocks.cached("key", there.entry) == 0
        assert await there.read_through() == service.data


@pytest.mark.parametrize("damage", ["flip", "zeros", "cut", "garbage", "empty"])
async def test_a_damaged_file_is_never_served(tmp_path: Path, damage: str) -> None:
    service = Service(content(6 * MIB))
    file = await _kept(tmp_path, service)
    with file.open("r+b") as damaged:
        damaged.seek(3 * MIB + 17)
        if damage == "flip":
            byte = damaged.read(1)
            damaged.seek(-1, os.SEEK_CUR)
            damaged.write(bytes([byte[0] ^ 1]))
        elif damage == "zeros":
            damaged.write(bytes(8192))
        elif damage == "cut":
            damaged.truncate(4 * MIB)
        elif damage == "garbage":
            damaged.seek(0)
            damaged.write(os.urandom(7 * MIB))
        else:
            damaged.truncate(0)
    async with bench(tmp_path, service) as there:
        assert await there.read_through() == service.data
        assert 0 < service.fetched <= len(service.data)
        if damage in {"flip", "zeros"}:
            assert service.fetched <= 2 * PIECE_BYTES, "only what is damaged"
            assert there.blocks.facts.corrupt == 1
    service.reads.clear()
    async with bench(tmp_path, service) as there:
        assert await there.read_through() == service.data
        assert service.reads == [], "and it is whole again"


async def test_a_file_that_is_cut_under_a_running_mount_is_fetched_again(tmp_path: Path) -> None:
    service = Service(content(6 * MIB))
    async with bench(tmp_path, service, memory=16 * MIB) as there:
        item = await there.blocks.hold("key", there.entry)
        await there.read_through()
        await there.blocks.settled()
        there.blocks._spare(1 << 40)
        (file,) = (tmp_path / "blocks").iterdir()
        os.truncate(file, MIB)
        assert await there.read_through() == service.data
        assert there.blocks.facts.corrupt > 0
        there.blocks.release(item)


async def test_what_a_write_put_there_is_believed_after_a_restart(tmp_path: Path) -> None:
    service = Service(content(3 * MIB))
    (tmp_path / "staged").write_bytes(service.data)
    async with bench(tmp_path / "cache", service) as there:
        await there.blocks.adopt("key", there.entry, tmp_path / "staged")
        assert await there.read_through() == service.data
        await there.blocks.settled()
        await trio.testing.wait_all_tasks_blocked()
    async with bench(tmp_path / "cache", service) as there:
        assert await there.read_through() == service.data
        assert service.reads == []


# ---- what stays --------------------------------------------------------------------------------------------------


async def _read_many(there: Bench, count: int, size: int, where: str = "") -> list[Entry]:
    entries = [Entry.file(f"f{number}", f"{where}/f{number}", size=size, version="1") for number in range(count)]
    for entry in entries:
        item = await there.blocks.hold(entry.ref, entry)

        async def address(entry: Entry = entry) -> Entry:
            return entry

        await there.blocks.read(item, Reader(), 0, size, address, ME)
        there.blocks.release(item)
        await there.blocks.settled()
    return entries


async def test_the_least_recently_used_goes_first_and_pins_stay(tmp_path: Path) -> None:
    service = Service(content(MIB))
    async with bench(tmp_path, service, cache_bytes=10 * MIB) as there:
        first, *_ = await _read_many(there, 1, MIB)
        await there.blocks.pin(first.ref, first, pinned=True)
        entries = await _read_many(there, 20, MIB)
        here = [bool(there.blocks.cached(entry.ref, entry)) for entry in entries[1:]]
        assert there.blocks.bytes_used <= 11 * MIB
        assert here == sorted(here), "the oldest are gone, the youngest here"
        assert 8 <= sum(here) <= 10
        assert there.blocks.cached(first.ref, first) == MIB
    async with bench(tmp_path, service, cache_bytes=0) as there:
        await _read_many(there, 2, MIB // 2, "/other")
        assert there.blocks.cached(first.ref, first) >= MIB, "also after a restart"


async def test_a_file_larger_than_the_cache_comes_right_and_the_cache_stays_small(tmp_path: Path) -> None:
    service = Service(content(48 * MIB))
    async with bench(tmp_path, service, cache_bytes=8 * MIB, memory=16 * MIB) as there:
        item = await there.blocks.hold("key", there.entry)
        assert await there.read_through() == service.data
        await there.blocks.settled()
        (file,) = (tmp_path / "blocks").iterdir()
        assert file.stat().st_blocks * 512 <= 26 * MIB
        assert await there.read_through() == service.data
        there.blocks.release(item)
    async with bench(tmp_path, service, cache_bytes=8 * MIB) as there:
        assert await there.read_through() == service.data


async def test_a_disk_that_is_nearly_full_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(content(MIB))
    async with bench(tmp_path, service) as there:
        await _read_many(there, 3, MIB)
        assert there.blocks.bytes_used >= 3 * MIB
        assert there.blocks.shelf is not None
        there.blocks.shelf._settings = attrs.evolve(there.blocks._settings, cache_free=1 << 60)
        entries = await _read_many(there, 5, MIB)
        assert there.blocks.bytes_used == 0
        assert (await _read_many(there, 1, MIB))[0].name == entries[0].name


async def test_what_nobody_reads_for_long_goes(tmp_path: Path) -> None:
    service = Service(content(MIB))
    file = await _kept(tmp_path, service)
    os.utime(file, (1, 1))
    async with bench(tmp_path, service) as there:
        assert there.blocks.bytes_used == 0
        assert there.blocks.facts.evicted >= MIB
        await there.read_through()
        await there.blocks.settled()
        shelf = there.blocks.shelf
        assert shelf is not None
        shelf.drop_old()
        assert there.blocks.bytes_used >= MIB
        next(iter(shelf._files.values())).used_at = 1.0
        shelf.drop_old()
        assert there.blocks.bytes_used == 0


async def test_many_files_are_open_no_longer_than_needed(tmp_path: Path) -> None:
    service = Service(content(4096))
    async with bench(tmp_path, service) as there:
        before = len(os.listdir("/proc/self/fd"))
        entries = await _read_many(there, 300, 4096)
        assert len(os.listdir("/proc/self/fd")) - before <= 140
        service.reads.clear()
        assert await _read_many(there, 300, 4096) == entries
        assert service.reads == [], "those that were closed are on disk all the same"
