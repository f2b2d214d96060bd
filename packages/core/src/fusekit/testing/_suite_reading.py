"""The part of the conformance suite for what every backend has: capabilities, root, listing, lookup, reading.

Outside the layers; see `fusekit.testing.conformance`.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import trio

from fusekit import names
from fusekit.errors import Denied, NotDirectory, NotFound, NotSupported, ReadOnly, Stale
from fusekit.plugins.specs import OPERATIONS
from fusekit.testing._suite_base import DEFAULTED, SEED, Suite, agree, covers
from fusekit.testing.harness import (
    ME,
    Buffer,
    Place,
    arguments,
    listed,
    looked_up,
    made,
    read,
    written,
)
from fusekit.types import Capabilities, Entry, Kind, Rename, Want

BIG = SEED["numbers.bin"]


class Reading(Suite):
    """Tests of the hooks that change nothing."""

    @covers("fusekit_capabilities")
    async def test_capabilities_name_the_hooks_of_the_place(self, place: Place) -> None:
        found = place.capabilities
        assert isinstance(found, Capabilities)
        assert found.hooks is not None
        assert {"fusekit_list", "fusekit_read"} <= found.hooks <= set(OPERATIONS)
        assert found.requests_max > 0
        assert found.time_step_ns > 0
        assert place.capabilities == found, "capabilities come from memory and do not vary by themselves"

    @covers("fusekit_lifespan")
    async def test_hooks_answer_within_the_lifespan(self, place: Place) -> None:
        await listed(place.hooks, place.directory)

    async def test_absent_hooks_refuse(self, place: Place) -> None:
        calls = arguments(place.directory, place.directory, "absent")
        assert set(calls) == set(OPERATIONS) - DEFAULTED
        for hook, values in calls.items():
            if not place.capabilities.has(hook):
                with pytest.raises((NotSupported, ReadOnly, Denied)):
                    await getattr(place.hooks, hook)(**values, caller=ME)

    @covers("fusekit_principal")
    async def test_the_local_user_acts_under_a_public_name(self, place: Place) -> None:
        assert isinstance(await place.hooks.fusekit_principal(uid=ME.uid, gid=ME.gid, pid=1), str)

    @covers("fusekit_access")
    async def test_access_lets_the_reader_in(self, place: Place) -> None:
        found = await self.seed(place)
        await place.hooks.fusekit_access(entry=place.directory, want=Want.LIST, caller=ME)
        await place.hooks.fusekit_access(entry=found["hello.txt"], want=Want.READ, caller=ME)

    @covers("fusekit_access")
    async def test_access_refuses_writing_where_nothing_can_be_written(self, place: Place) -> None:
        found = await self.seed(place)
        writable = place.capabilities.has("fusekit_write")
        try:
            await place.hooks.fusekit_access(entry=found["hello.txt"], want=Want.WRITE, caller=ME)
        except (Denied, ReadOnly):
            assert not writable, "the file was just written, and may not be written"

    @covers("fusekit_root")
    async def test_the_root_is_a_directory_without_a_name(self, place: Place) -> None:
        root = await place.hooks.fusekit_root(caller=ME)
        assert (root.name, root.kind) == ("", Kind.DIRECTORY)

    @covers("fusekit_list")
    async def test_a_listing_has_every_entry(self, place: Place) -> None:
        made_here = await self.seed(place)
        found = await listed(place.hooks, place.directory)
        assert set(found) == {path for path in made_here if path and "/" not in path}
        for name, entry in found.items():
            assert entry.kind is (Kind.DIRECTORY if name == "folder" else Kind.FILE)
            assert entry.size is None or entry.kind is Kind.DIRECTORY or entry.size == len(SEED[name])
            assert names.problem(name, bytes_max=place.capabilities.name_bytes_max) is None

    @covers("fusekit_list")
    async def test_a_listing_has_what_is_below_and_no_deeper(self, place: Place) -> None:
        made_here = await self.seed(place)
        if "folder" not in made_here:
            self.skip("there are no directories here")
        assert set(await listed(place.hooks, made_here["folder"])) == {"inner.txt", "deeper"}
        assert set(await listed(place.hooks, made_here["folder/deeper"])) == {"leaf"}

    @covers("fusekit_list", using=("fusekit_mkdir",))
    async def test_an_empty_directory_lists_nothing(self, place: Place) -> None:
        assert await listed(place.hooks, await made(place.hooks, place.directory, "void")) == {}

    @covers("fusekit_list", using=("fusekit_write",))
    async def test_a_long_listing_comes_whole(self, place: Place) -> None:
        wanted = {f"file-{number:04}" for number in range(self.many_entries)}
        limit = trio.CapacityLimiter(place.capabilities.requests_max)

        async def write(name: str) -> None:
            async with limit:
                await written(place.hooks, place.directory, name, b"")

        async with trio.open_nursery() as nursery:
            for name in wanted:
                nursery.start_soon(write, name)
        assert set(await listed(place.hooks, place.directory)) == wanted

    @covers("fusekit_list", using=("fusekit_mkdir", "fusekit_remove"))
    async def test_a_directory_that_is_gone_has_no_listing(self, place: Place) -> None:
        gone = await made(place.hooks, place.directory, "gone")
        await place.hooks.fusekit_remove(directory=place.directory, entry=gone, caller=ME)
        with pytest.raises(NotFound):
            await listed(place.hooks, gone)

    @covers("fusekit_list")
    async def test_an_error_in_the_page_ends_the_listing(self, place: Place) -> None:
        await self.seed(place)

        async def page(entries: Sequence[Entry]) -> None:
            raise Stale("the engine no longer wants it")

        with pytest.raises(Stale):
            await place.hooks.fusekit_list(directory=place.directory, page=page, caller=ME)

    @covers("fusekit_stat")
    async def test_lookup_and_listing_tell_the_same(self, place: Place) -> None:
        await self.seed(place)
        for name, entry in (await listed(place.hooks, place.directory)).items():
            agree(await looked_up(place.hooks, place.directory, name), entry)

    @covers("fusekit_stat")
    async def test_a_missing_name_is_not_found_and_nothing_else(self, place: Place) -> None:
        made_here = await self.seed(place)
        for name in ("missing", "hello.tx", "hello.txt2", "%", "miss ing"):
            with pytest.raises(NotFound):
                await looked_up(place.hooks, place.directory, name)
        if "folder" in made_here:
            with pytest.raises(NotFound):
                await looked_up(place.hooks, made_here["folder"], "hello.txt")

    @covers("fusekit_stat")
    async def test_a_file_has_no_names_below_it(self, place: Place) -> None:
        found = await self.seed(place)
        with pytest.raises((NotFound, NotDirectory)):
            await looked_up(place.hooks, found["hello.txt"], "below")

    @covers("fusekit_stat")
    async def test_a_known_entry_that_stands_keeps_its_version(self, place: Place) -> None:
        await self.seed(place)
        for name, entry in (await listed(place.hooks, place.directory)).items():
            again = await looked_up(place.hooks, place.directory, name, known=entry)
            agree(again, entry)
            assert again.version == entry.version

    @covers("fusekit_stat")
    async def test_a_known_entry_does_not_stand_for_another_name(self, place: Place) -> None:
        found = await self.seed(place)
        with pytest.raises(NotFound):
            await looked_up(place.hooks, place.directory, "missing", known=found["hello.txt"])

    @covers("fusekit_read")
    async def test_a_file_reads_as_it_was_written(self, place: Place) -> None:
        found = await self.seed(place)
        for path, data in SEED.items():
            if path in found:
                assert await read(place.hooks, found[path]) == data

    @covers("fusekit_read")
    @pytest.mark.parametrize(
        ("start", "stop"),
        [
            *[(0, 1), (0, len(BIG)), (1, 2), (70_001, 70_002), (65_535, 65_537), (100, 131_172), (140_000, len(BIG))],
            *[(len(BIG) - 1, len(BIG)), (149_990, len(BIG) + 500), (7, None), (len(BIG) - 1, None)],
        ],
    )
    async def test_a_range_reads_exactly(self, place: Place, start: int, stop: int | None) -> None:
        entry = (await self.seed(place))["numbers.bin"]
        assert await read(place.hooks, entry, start, stop) == BIG[start:stop]

    @covers("fusekit_read")
    @pytest.mark.parametrize(
        ("start", "stop"),
        [(0, 0), (5, 5), (len(BIG), None), (len(BIG), len(BIG) + 1), (len(BIG) + 1, None), (1 << 40, (1 << 40) + 9)],
    )
    async def test_a_range_that_holds_nothing_reads_nothing(self, place: Place, start: int, stop: int | None) -> None:
        entry = (await self.seed(place))["numbers.bin"]
        assert await read(place.hooks, entry, start, stop) == b""

    @covers("fusekit_read")
    async def test_nothing_is_read_past_the_end(self, place: Place) -> None:
        found = await self.seed(place)
        sink = Buffer()
        await place.hooks.fusekit_read(entry=found["hello.txt"], start=0, stop=1 << 20, sink=sink, caller=ME)
        assert bytes(sink.data) == SEED["hello.txt"]

    @covers("fusekit_read")
    async def test_an_empty_file_reads_empty(self, place: Place) -> None:
        found = await self.seed(place)
        assert await read(place.hooks, found["empty"]) == b""
        assert await read(place.hooks, found["empty"], 0, 4096) == b""

    @covers("fusekit_read")
    async def test_reads_overlap(self, place: Place) -> None:
        entry = (await self.seed(place))["numbers.bin"]
        got: dict[int, bytes] = {}

        async def one(start: int) -> None:
            got[start] = await read(place.hooks, entry, start, start + 10_000)

        async with trio.open_nursery() as nursery:
            for start in range(0, len(BIG), 7_000):
                nursery.start_soon(one, start)
        assert got == {start: BIG[start : start + 10_000] for start in range(0, len(BIG), 7_000)}

    @covers("fusekit_read")
    async def test_a_read_can_be_cancelled_and_made_again(self, place: Place) -> None:
        entry = (await self.seed(place))["numbers.bin"]
        with trio.CancelScope() as scope:
            scope.cancel()
            await read(place.hooks, entry)
        assert await read(place.hooks, entry) == BIG

    @covers("fusekit_read")
    async def test_content_that_changed_is_stale(self, place: Place) -> None:
        entry = (await self.seed(place))["hello.txt"]
        if entry.version is None:
            self.skip("the service tells no versions")
        with pytest.raises(Stale):
            await read(place.hooks, attrs.evolve(entry, version=f"{entry.version}0"))

    @covers("fusekit_read", using=("fusekit_remove",))
    async def test_a_file_that_is_gone_cannot_be_read(self, place: Place) -> None:
        entry = (await self.seed(place))["hello.txt"]
        await place.hooks.fusekit_remove(directory=place.directory, entry=entry, caller=ME)
        with pytest.raises((NotFound, Stale)):
            await read(place.hooks, entry)

    @covers("fusekit_statfs")
    async def test_space_adds_up(self, place: Place) -> None:
        space = await place.hooks.fusekit_statfs(directory=place.directory, caller=ME)
        assert 0 <= space.free_bytes <= space.total_bytes
        assert 0 <= (space.available_bytes or 0) <= space.free_bytes
        assert 0 <= space.free_files <= space.total_files

    @covers("fusekit_getxattrs")
    async def test_extended_attributes_come_without_namespace(self, place: Place) -> None:
        entry = (await self.seed(place))["hello.txt"]
        for name, value in (await place.hooks.fusekit_getxattrs(entry=entry, caller=ME)).items():
            assert not name.startswith("user.")
            assert isinstance(value, bytes)

    @covers("fusekit_exchange")
    async def test_a_request_is_answered(self, place: Place) -> None:
        if place.exchange is None:
            self.skip("the place fixture names no exchange file")
        entry, request, answer = place.exchange
        sink = Buffer()
        await place.hooks.fusekit_exchange(entry=entry, request=request, sink=sink, caller=ME)
        assert bytes(sink.data) == answer

    @covers("fusekit_rename")
    async def test_rename_says_what_it_can_do(self, place: Place) -> None:
        assert place.capabilities.rename & (Rename.FILES | Rename.DIRECTORIES), "a rename hook that renames nothing"
