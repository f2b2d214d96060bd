"""The budget: who must wait, who may not have, and that nobody waits for ever."""

from __future__ import annotations

import trio
import trio.testing

from fusekit.cache.budget import Budget, Buffers
from fusekit.disk import viewed


async def test_who_asks_waits_until_it_fits_in_the_order_of_asking() -> None:
    budget = Budget(100)
    await budget.acquire(80)
    got: list[int] = []

    async def ask(count: int) -> None:
        await budget.acquire(count)
        got.append(count)

    async with trio.open_nursery() as nursery:
        for count in (60, 20):
            nursery.start_soon(ask, count)
            await trio.testing.wait_all_tasks_blocked()
        assert got == [], "the second would fit, and still comes after the first"
        budget.release(30)
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        budget.release(15)
        await trio.testing.wait_all_tasks_blocked()
        assert got == [60]
        budget.release(35)
    assert got == [60, 20]
    assert (budget.used, budget.peak) == (80, 95)


async def test_what_is_only_useful_leaves_a_share_and_never_passes_those_who_wait() -> None:
    budget = Budget(100)
    assert budget.try_acquire(75)
    assert not budget.try_acquire(1)
    await budget.acquire(25)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(budget.acquire, 90)
        await trio.testing.wait_all_tasks_blocked()
        budget.release(75)
        assert not budget.try_acquire(1)
        budget.release(25)
    assert budget.used == 90


async def test_what_can_be_spared_goes_before_anybody_waits() -> None:
    kept = [40, 40]

    def spare(count: int) -> None:
        while kept and count > 0:
            count -= kept[0]
            budget.release(kept.pop(0))

    budget = Budget(100, spare)
    budget.used = 80
    await budget.acquire(50)
    assert kept == [40]
    assert budget.used == 90


async def test_one_that_is_larger_than_everything_is_let_in_alone() -> None:
    budget = Budget(100)
    await budget.acquire(500)
    with trio.move_on_after(0) as waiting:
        await budget.acquire(1)
    assert waiting.cancelled_caught
    budget.release(500)
    await budget.acquire(1)


async def test_who_is_cancelled_while_waiting_takes_nothing_and_lets_others_pass() -> None:
    budget = Budget(100)
    await budget.acquire(50)
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def large() -> None:
            with scope:
                await budget.acquire(90)

        nursery.start_soon(large)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(budget.acquire, 20)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
    assert budget.used == 70


def test_a_buffer_is_used_again_only_when_nobody_has_a_view_of_it() -> None:
    buffers = Buffers(100, Budget(1000))
    first = buffers.take(100)
    name = id(first)
    view = memoryview(first)[10:20]
    hand = [first]
    del first
    buffers.give_back(hand)
    assert id(buffers.take(100)) != name, "somebody may still read it"
    view[:] = b"x" * 10

    second = buffers.take(100)
    name, hand = id(second), [second]
    del second
    buffers.give_back(hand)
    assert id(buffers.take(100)) == name


def test_no_more_is_kept_idle_than_the_budget_has_to_spare() -> None:
    budget = Budget(250)
    buffers = Buffers(100, budget)
    for _ in range(3):
        buffers.give_back([bytearray(100)])
    assert len(buffers._idle) == 2
    buffers.clear()
    budget.used = 200
    buffers.give_back([bytearray(100)])
    buffers.give_back([bytearray(50)])
    assert buffers._idle == []


def test_a_buffer_is_viewed_however_many_references_there_are_to_it() -> None:
    buffer = bytearray(range(10))
    several = [buffer, buffer]
    assert not viewed(buffer)
    view = memoryview(several[0])
    part = view[3:5]
    view.release()
    assert viewed(buffer)
    part.release()
    assert not viewed(buffer)
    assert buffer == bytes(range(10))
