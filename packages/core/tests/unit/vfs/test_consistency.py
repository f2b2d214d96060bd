"""How fresh an answer is in each mode, and what a mount does about versions that a service tells badly or not at all."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from fusekit.backends.memory import MemoryBackend, _Node
from fusekit.errors import Stale, Unavailable
from fusekit.settings import Consistency
from fusekit.testing.driven import ME, Setup
from fusekit.testing.driven import opened as driven
from fusekit.types import Entry, Kind
from fusekit.vfs.inodes import ROOT


async def opened_once(setup: Setup, name: str) -> bool:
    """Open, read and close, and return whether the kernel may keep the pages that it had."""
    attr = await setup.fs.lookup(ROOT, name, ME)
    opened = await setup.fs.open(attr.ino, os.O_RDONLY, ME)
    await setup.fs.read(opened.handle, 0, 100)
    await setup.fs.release(opened.handle)
    return opened.keep_cache


async def test_what_others_do_to_names_is_seen_when_the_ttl_is_over(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, ttl_s=60.0) as setup:
        await setup.remotely("old", b"x")
        await setup.names()
        await setup.remotely("new", b"x")
        await setup.remotely_removed("old")
        await trio.sleep(59)
        assert await setup.names() == ["old"]
        await trio.sleep(2)
        assert await setup.names() == ["new"]


async def test_strict_lets_the_kernel_keep_no_name_and_pages_while_the_version_stands(tmp_path: Path) -> None:
    async with driven(tmp_path, consistency=Consistency.STRICT) as setup:
        await setup.remotely("a", b"one")
        assert (await setup.fs.lookup(ROOT, "a", ME)).valid_s == 0
        assert [await opened_once(setup, "a") for _ in range(2)] == [False, True]
        setup.reset()
        await opened_once(setup, "a")
        assert setup.calls.keys() == {"stat"}
        await setup.remotely("a", b"two")
        assert not await opened_once(setup, "a")
        assert await setup.content("a") == b"two"


async def test_a_file_that_changed_before_a_snapshot_read_it_is_stale(tmp_path: Path) -> None:
    async with driven(tmp_path, consistency=Consistency.SNAPSHOT) as setup:
        await setup.remotely("a", b"one")
        await setup.names()
        await setup.remotely("a", b"twice")
        with pytest.raises(Stale):
            await setup.content("a")


@pytest.mark.parametrize("mode", [Consistency.CLOSE_TO_OPEN, Consistency.STRICT, Consistency.RELAXED])
async def test_a_handle_keeps_its_version_though_the_kernel_heard_of_the_next_before_another_open(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, mode: Consistency
) -> None:
    async with driven(tmp_path, consistency=mode, ttl_s=60.0) as setup:
        await setup.remotely("a", b"o" * 2000)
        old = await setup.fs.lookup(ROOT, "a", ME)
        first = await setup.fs.open(old.ino, os.O_RDONLY, ME)
        assert bytes(await setup.fs.read(first.handle, 0, 10)) == b"o" * 10
        await setup.remotely("a", b"n" * 2000)
        await trio.sleep(61)
        assert (await setup.fs.lookup(ROOT, "a", ME)).ino == old.ino
        await setup.fs.getattr(old.ino, ME)
        with pytest.raises(Stale):
            await setup.fs.open(old.ino, os.O_RDONLY, ME)
        new = await setup.fs.lookup(ROOT, "a", ME)
        second = await setup.fs.open(new.ino, os.O_RDONLY, ME)
        assert bytes(await setup.fs.read(second.handle, 0, 10)) == b"n" * 10
        assert bytes(await setup.fs.read(first.handle, 0, 10)) == b"o" * 10
        for opened in (first, second):
            await setup.fs.release(opened.handle)


async def test_a_create_over_a_file_that_changed_while_it_is_open_opens_the_new_version(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, ttl_s=60.0) as setup:
        await setup.remotely("a", b"old")
        old = await setup.fs.lookup(ROOT, "a", ME)
        first = await setup.fs.open(old.ino, os.O_RDONLY, ME)
        await setup.fs.read(first.handle, 0, 10)
        await setup.remotely("a", b"new content")
        await trio.sleep(61)
        second, _ = await setup.fs.create(ROOT, "a", 0o644, os.O_RDWR, ME)
        assert bytes(await setup.fs.read(second.handle, 0, 100)) == b"new content"
        for opened in (first, second):
            await setup.fs.release(opened.handle)


async def test_a_file_that_changed_after_it_was_listed_is_stale_once(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        await setup.remotely("a", b"one")
        await setup.names()
        await setup.remotely("a", b"twice")
        with pytest.raises(Stale):
            await setup.content("a")
        assert await setup.content("a") == b"twice"


@pytest.mark.parametrize(
    ("mode", "readable"),
    [
        (Consistency.STRICT, False),
        (Consistency.CLOSE_TO_OPEN, False),
        (Consistency.RELAXED, True),
        (Consistency.SNAPSHOT, True),
    ],
)
async def test_what_needs_no_question_can_be_read_while_the_service_is_down(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, mode: Consistency, readable: bool
) -> None:
    async with driven(tmp_path, consistency=mode) as setup:
        await setup.remotely("a", b"one")
        await setup.names()
        assert await setup.content("a") == b"one"

        async def down(hook: str, values: dict[str, Any]) -> None:
            raise Unavailable("down")

        setup.recorder.before = down
        if readable:
            assert await setup.content("a") == b"one"
        else:
            with pytest.raises(Unavailable):
                await setup.content("a")
        setup.recorder.before = None
        assert await setup.content("a") == b"one"


class Timed(MemoryBackend):
    """Tells no version, only times and sizes."""

    def _entry(self, name: str, node: _Node) -> Entry:
        return attrs.evolve(super()._entry(name, node), version=None)


class Silent(Timed):
    """Tells sizes only."""

    def _entry(self, name: str, node: _Node) -> Entry:
        return attrs.evolve(super()._entry(name, node), mtime_ns=None)


async def test_without_versions_a_change_is_known_by_size_and_time(tmp_path: Path) -> None:
    async with driven(tmp_path, Timed) as setup:
        await setup.remotely("a", b"one")
        assert await setup.content("a") == b"one"
        await setup.remotely("a", b"two")
        assert await setup.content("a") == b"two"
        assert await opened_once(setup, "a")


async def test_without_versions_and_times_only_a_change_of_size_is_seen(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, Silent) as setup:
        await setup.remotely("a", b"one")
        assert await setup.content("a") == b"one"
        await setup.remotely("a", b"longer")
        await trio.sleep(6)
        assert await setup.content("a") == b"longer"
        assert not await opened_once(setup, "a"), "the kernel asks for every page again"


class Unmeasured(MemoryBackend):
    """Only reading tells how long a file is."""

    def _entry(self, name: str, node: _Node) -> Entry:
        entry = super()._entry(name, node)
        return attrs.evolve(entry, size=None) if entry.kind is Kind.FILE else entry


async def test_a_size_that_only_reading_tells_is_measured_once_a_version(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(tmp_path, Unmeasured) as setup:
        await setup.remotely("a", b"seven!!")
        for _ in range(3):
            assert (await setup.fs.lookup(ROOT, "a", ME)).size == 7
            await trio.sleep(6)
        assert setup.calls["read"] == 1
        assert await setup.content("a") == b"seven!!"
        assert setup.calls["read"] == 1, "measuring brought the bytes"
        await setup.remotely("a", b"nine!!!!!")
        await trio.sleep(6)
        assert (await setup.fs.lookup(ROOT, "a", ME)).size == 9


async def test_readers_of_the_same_bytes_share_one_fetch_of_what_is_around_them(tmp_path: Path) -> None:
    async with driven(tmp_path) as setup:
        await setup.remotely("big", bytes(8 << 20))
        attr = await setup.fs.lookup(ROOT, "big", ME)
        opened = await setup.fs.open(attr.ino, os.O_RDONLY, ME)
        fetched: list[tuple[int, int]] = []

        async def note(hook: str, values: dict[str, Any]) -> None:
            if hook == "read":
                fetched.append((values["start"], values["stop"]))

        setup.recorder.before = note
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(setup.fs.read, opened.handle, 5 << 20, 100)
        await setup.fs.release(opened.handle)
        first = min(fetched)
        assert first[0] <= 5 << 20 < first[1] <= first[0] + (2 << 20), "not the whole file"
        assert max(stop for _, stop in fetched) <= 6 << 20, "little ahead of little"
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(sorted(fetched))), "no byte comes twice"
