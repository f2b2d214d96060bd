"""The budget: who must wait, who may not have, and that nobody waits for ever."""

from __future__ import annotations

import trio
import trio.testing

from fusekit.cache.budget import Budget


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
