"""Calls of hooks: how often a failing one is tried, what counts as progress, and how long a failure is remembered."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock as Clock

from fusekit.api import Entry, Page, Sink, hookimpl
from fusekit.errors import BackendError, Corrupt, Denied, NoSpace, Throttled, Unavailable, Unreachable
from fusekit.metrics import Metrics
from fusekit.plugins.manager import stack
from fusekit.settings import Settings
from fusekit.testing.harness import ME, Buffer
from fusekit.testing.volumes import open_backend
from fusekit.transfer.calls import Calls
from fusekit.transfer.retry import (
    ATTEMPTS_MAX,
    BUDGET_MAX,
    FAILURE_KEPT_S,
    FAILURES_MAX,
    SMALL_STEPS_MAX,
    Failures,
    Progress,
)

MIB = 1 << 20
Read = Callable[[int, int | None, Sink], Awaitable[None]]


class Shelf:
    """A backend whose reads do what the test says; ``starts`` are the offsets at which it was asked."""

    def __init__(self, read: Read, root: BackendError | None = None) -> None:
        self.starts: list[int] = []
        self.roots = 0
        self.root = root
        self._read = read

    @hookimpl
    async def fusekit_root(self) -> Entry:
        await trio.lowlevel.checkpoint()
        self.roots += 1
        if self.root is not None:
            raise self.root
        return Entry.directory("")

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        await page([])

    @hookimpl
    async def fusekit_read(self, entry: Entry, start: int, stop: int | None, sink: Sink) -> None:
        self.starts.append(start)
        await self._read(start, stop, sink)


def steps(size: int, step: int) -> Read:
    """Read ``step`` bytes of a file of ``size`` and cut the connection."""

    async def read(start: int, stop: int | None, sink: Sink) -> None:
        end = min(start + step, size)
        await sink.write(bytes(end - start))
        if end < size:
            raise Corrupt("cut")

    return read


async def down(start: int, stop: int | None, sink: Sink) -> None:
    await trio.lowlevel.checkpoint()
    raise Unavailable("down")


def calls_of(backend: object) -> Calls:
    return Calls(stack(backend).hooks, Settings(), Metrics())


def budget(calls: Calls) -> float:
    return calls._retry.budget


class TestProgress:
    async def test_a_body_that_brings_next_to_nothing_is_given_up_after_the_usual_attempts(
        self, autojump_clock: Clock
    ) -> None:
        shelf = Shelf(steps(2000, 20))
        calls = calls_of(shelf)
        with pytest.raises(Corrupt):
            await calls.read(Entry.file("f", "/f"), 0, 2000, Buffer(0), ME)
        assert shelf.starts == [20 * attempt for attempt in range(ATTEMPTS_MAX)]
        assert budget(calls) == BUDGET_MAX - (ATTEMPTS_MAX - 1)

    async def test_the_last_bytes_do_not_come_one_by_one(self, autojump_clock: Clock) -> None:
        async def third(start: int, stop: int | None, sink: Sink) -> None:
            assert stop is not None
            await sink.write(bytes(-(-(stop - start) // 3)))
            raise Corrupt("cut")

        shelf = Shelf(third)
        with pytest.raises(Corrupt):
            await calls_of(shelf).read(Entry.file("f", "/f"), 0, 500_000, Null(), ME)
        assert len(shelf.starts) == SMALL_STEPS_MAX + ATTEMPTS_MAX - 1

    async def test_a_large_file_comes_through_however_often_it_is_cut_if_each_part_is_large(
        self, autojump_clock: Clock
    ) -> None:
        shelf = Shelf(steps(64 * MIB, MIB))
        calls = calls_of(shelf)
        await calls.read(Entry.file("f", "/f"), 0, None, Null(), ME)
        assert len(shelf.starts) == 64
        assert budget(calls) > BUDGET_MAX - 1, "what goes on repeats nothing"

    async def test_a_quarter_of_what_is_missing_is_progress(self, autojump_clock: Clock) -> None:
        shelf = Shelf(steps(1000, 125))
        await calls_of(shelf).read(Entry.file("f", "/f"), 0, 1000, Buffer(0), ME)
        assert len(shelf.starts) == 8

    async def test_what_moved_between_is_counted_together(self, autojump_clock: Clock) -> None:
        at = iter(range(0, 3 * MIB + 1, MIB // 4))
        progress = Progress(at.__next__, 10 * MIB)
        seen = [progress.worth_it() for _ in range(12)]
        assert seen == [False, False, False, True] * 3


class TestFailures:
    async def test_the_kernels_second_question_fails_at_once(self, autojump_clock: Clock) -> None:
        shelf = Shelf(down)
        calls = calls_of(shelf)
        entry = Entry.file("f", "/f", size=2 * MIB, version="1")
        with pytest.raises(Unavailable):
            await calls.read(entry, 0, MIB, Buffer(0), ME)
        began = trio.current_time()
        with pytest.raises(Unavailable, match="down"):
            await calls.read(entry, 4096, 8192, Buffer(0), ME)
        assert trio.current_time() == began
        assert len(shelf.starts) == ATTEMPTS_MAX

    async def test_it_is_forgotten_after_a_moment(self, autojump_clock: Clock) -> None:
        shelf = Shelf(down)
        calls = calls_of(shelf)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await calls.read(Entry.file("f", "/f"), 0, MIB, Buffer(0), ME)
            await trio.sleep(FAILURE_KEPT_S)
        assert len(shelf.starts) == 2 * ATTEMPTS_MAX

    async def test_it_is_forgotten_when_somebody_opens_a_file(self, autojump_clock: Clock) -> None:
        shelf = Shelf(down)
        calls = calls_of(shelf)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await calls.read(Entry.file("f", "/f"), 0, MIB, Buffer(0), ME)
            calls.forget_failures()
        assert len(shelf.starts) == 2 * ATTEMPTS_MAX

    @pytest.mark.parametrize(
        ("entry", "start"),
        [
            (Entry.file("f", "/f", version="1"), MIB),
            (Entry.file("f", "/f", version="2"), 0),
            (Entry.file("g", "/g", version="1"), 0),
        ],
        ids=["other bytes", "another version", "another file"],
    )
    async def test_what_did_not_fail_is_tried(self, entry: Entry, start: int, autojump_clock: Clock) -> None:
        shelf = Shelf(down)
        calls = calls_of(shelf)
        with pytest.raises(Unavailable):
            await calls.read(Entry.file("f", "/f", version="1"), 0, MIB, Buffer(0), ME)
        shelf.starts.clear()
        with pytest.raises(Unavailable):
            await calls.read(entry, start, start + MIB, Buffer(start), ME)
        assert len(shelf.starts) == ATTEMPTS_MAX

    async def test_a_refusal_is_not_remembered(self, autojump_clock: Clock) -> None:
        async def refuse(start: int, stop: int | None, sink: Sink) -> None:
            await trio.lowlevel.checkpoint()
            raise Denied("no")

        shelf = Shelf(refuse)
        calls = calls_of(shelf)
        for _ in range(2):
            with pytest.raises(Denied):
                await calls.read(Entry.file("f", "/f"), 0, MIB, Buffer(0), ME)
        assert len(shelf.starts) == 2

    async def test_few_failures_are_kept(self, autojump_clock: Clock) -> None:
        failures = Failures()
        for number in range(FAILURES_MAX + 1):
            failures.add(number, 0, 1, Throttled("slow"))
        failures.check(0, 0, 1)
        with pytest.raises(Throttled):
            failures.check(FAILURES_MAX, 0, 1)


class TestStart:
    @pytest.mark.parametrize(("error", "tried"), [(Unreachable("refused"), 1), (Unavailable("slow"), ATTEMPTS_MAX)])
    async def test_a_volume_that_opens_does_not_wait_for_an_address_that_may_be_wrong(
        self, tmp_path: Path, error: BackendError, tried: int, autojump_clock: Clock
    ) -> None:
        shelf = Shelf(down, root=error)
        with pytest.RaisesGroup(type(error), flatten_subgroups=True, allow_unwrapped=True):
            async with open_backend(lambda mount: shelf, tmp_path):
                pass
        assert shelf.roots == tried

    async def test_one_that_is_open_waits_for_it_like_for_any_other(
        self, tmp_path: Path, autojump_clock: Clock
    ) -> None:
        shelf = Shelf(down)
        async with open_backend(lambda mount: shelf, tmp_path) as volume:
            shelf.root = Unreachable("refused")
            shelf.roots = 0
            with pytest.raises(Unreachable):
                await volume.filesystem.tree.calls.root(volume.me)
        assert shelf.roots == ATTEMPTS_MAX


class TestCache:
    async def test_a_full_cache_is_not_taken_for_a_failing_backend(
        self, caplog: pytest.LogCaptureFixture, autojump_clock: Clock
    ) -> None:
        class Full:
            async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
                await trio.lowlevel.checkpoint()
                raise OSError(errno.ENOSPC, "No space left on device")

        shelf = Shelf(steps(10, 10))
        with pytest.raises(NoSpace, match=r"the cache cannot take .*--cache-dir") as caught:
            await calls_of(shelf).read(Entry.file("f", "/f"), 0, 10, Full(), ME)
        assert caught.value.errno == errno.ENOSPC
        assert shelf.starts == [0]
        assert "not in the contract" not in caplog.text


class Null:
    """A sink that keeps nothing."""

    async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
        await trio.lowlevel.checkpoint()
