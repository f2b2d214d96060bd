"""How many requests run at one host, on virtual time."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import pytest
import trio
import trio.testing

from fusekit.errors import Throttled, Unavailable
from fusekit.testing.raw import Server, answer
from fusekit.transfer.client import Client
from fusekit.transfer.limits import HOLD_MAX_S, HOSTS_KEPT, HostLimit, Limits

AFTER_5: Mapping[str, str] = {"retry-after": "5"}


@attrs.define
class Crowd:
    """Takes turns, each in a task of its own; ``order`` is who got one, with the time."""

    limit: HostLimit
    nursery: trio.Nursery
    order: list[tuple[int, float]] = attrs.field(factory=list)
    scopes: list[trio.CancelScope] = attrs.field(factory=list)
    ends: list[trio.Event] = attrs.field(factory=list)

    async def add(self, count: int) -> None:
        for _ in range(count):
            number = len(self.scopes)
            self.scopes.append(trio.CancelScope())
            self.ends.append(trio.Event())
            self.nursery.start_soon(self._take, number)
            await trio.testing.wait_all_tasks_blocked()

    async def end(self, number: int) -> None:
        self.ends[number].set()
        await trio.testing.wait_all_tasks_blocked()

    async def _take(self, number: int) -> None:
        with self.scopes[number]:
            async with self.limit.turn():
                self.order.append((number, trio.current_time()))
                await self.ends[number].wait()

    @property
    def who(self) -> list[int]:
        return [number for number, _ in self.order]


def throttle(limit: HostLimit, headers: Mapping[str, str] | None = None, status: int = 429) -> None:
    """Tell of a refusal of a request that began just now."""
    limit.answered(status, headers or {}, trio.current_time())


async def test_turns_come_in_order(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(HostLimit(2), nursery)
        await crowd.add(5)
        assert crowd.who == [0, 1]
        assert (crowd.limit.statistics().running, crowd.limit.statistics().waiting) == (2, 3)
        await crowd.end(1)
        await crowd.end(0)
        assert crowd.who == [0, 1, 2, 3]
        nursery.cancel_scope.cancel()
    assert (crowd.limit.statistics().running, crowd.limit.statistics().waiting) == (0, 0)


async def test_a_newcomer_does_not_overtake(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(HostLimit(1), nursery)
        await crowd.add(2)
        crowd.ends[0].set()  # and before the second runs:
        await crowd.add(1)
        assert crowd.who == [0, 1]
        nursery.cancel_scope.cancel()


async def test_who_leaves_the_queue_leaves_it_to_the_others(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(HostLimit(1), nursery)
        await crowd.add(3)
        crowd.scopes[1].cancel()
        await crowd.end(0)
        assert crowd.who == [0, 2]
        nursery.cancel_scope.cancel()


async def test_a_turn_that_comes_with_the_cancellation_is_given_on(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(HostLimit(1), nursery)
        await crowd.limit.acquire()
        await crowd.add(2)
        crowd.limit.release()  # gives the first of the two its turn,
        crowd.scopes[0].cancel()  # and it is cancelled before it runs
        await trio.testing.wait_all_tasks_blocked()
        assert crowd.who[-1] == 1
        assert crowd.limit.statistics().running == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("status", [429, 503])
async def test_too_many_halves_the_number(autojump_clock: trio.testing.MockClock, status: int) -> None:
    limit = HostLimit(16)
    seen = []
    for _ in range(6):
        await trio.sleep(1)
        throttle(limit, status=status)
        seen.append(limit.statistics().allowed)
    assert seen == [8, 4, 2, 1, 1, 1]
    assert limit.statistics().lowered == 6


async def test_one_wave_of_refusals_halves_it_once(autojump_clock: trio.testing.MockClock) -> None:
    limit = HostLimit(16)
    began = trio.current_time()
    await trio.sleep(0.1)
    for _ in range(16):
        limit.answered(429, {}, began)
        await trio.sleep(0.01)
    assert limit.statistics().allowed == 8
    limit.answered(429, {}, trio.current_time())
    assert limit.statistics().allowed == 4


async def test_success_raises_it_slowly_up_to_the_maximum(autojump_clock: trio.testing.MockClock) -> None:
    limit = HostLimit(8)
    for _ in range(3):
        await trio.sleep(1)
        throttle(limit)
    assert limit.statistics().allowed == 1
    needed = []
    for _ in range(7):
        before, count = limit.statistics().allowed, 0
        while limit.statistics().allowed == before:
            limit.answered(200, {}, 0)
            count += 1
        needed.append(count)
    assert limit.statistics().allowed == 8
    assert needed == sorted(needed)
    assert needed[-1] >= 6  # about one round of answers for one request more
    limit.answered(200, {}, 0)
    assert limit.statistics().allowed == 8


@pytest.mark.parametrize(("status", "raises"), [(200, True), (206, True), (404, True), (500, False), (502, False)])
async def test_what_counts_as_room(autojump_clock: trio.testing.MockClock, status: int, raises: bool) -> None:
    limit = HostLimit(4)
    throttle(limit)
    for _ in range(10):
        limit.answered(status, {}, 0)
    assert (limit.statistics().allowed > 2) is raises


async def test_room_that_is_gained_is_used_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(HostLimit(2), nursery)
        throttle(crowd.limit)
        await crowd.add(3)
        assert crowd.who == [0]
        crowd.limit.answered(200, {}, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert crowd.who == [0, 1]
        nursery.cancel_scope.cancel()


async def test_fewer_are_let_in_while_more_are_under_way(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(HostLimit(4), nursery)
        await crowd.add(6)
        throttle(crowd.limit)
        await crowd.end(0)
        await crowd.end(1)
        assert crowd.who == [0, 1, 2, 3]
        await crowd.end(2)
        assert crowd.who == [0, 1, 2, 3, 4]
        nursery.cancel_scope.cancel()


async def test_nothing_begins_before_retry_after_has_passed(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(HostLimit(16), nursery)
        began = trio.current_time()
        throttle(crowd.limit, AFTER_5)
        await crowd.add(3)
        assert crowd.who == []
        assert crowd.limit.statistics().held_s == 5
        await trio.sleep(5.5)
        assert sorted(crowd.order) == [(number, began + 5) for number in range(3)]
        nursery.cancel_scope.cancel()


async def test_who_waits_already_waits_for_it_as_well(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        crowd = Crowd(HostLimit(1), nursery)
        await crowd.add(2)
        began = trio.current_time()
        throttle(crowd.limit, AFTER_5)
        await crowd.end(0)
        assert crowd.who == [0]
        await trio.sleep(2)
        throttle(crowd.limit, AFTER_5)  # and is told so again
        await trio.sleep(10)
        assert crowd.order[1:] == [(1, began + 7)]
        nursery.cancel_scope.cancel()


async def test_a_shorter_word_does_not_shorten_it(autojump_clock: trio.testing.MockClock) -> None:
    limit = HostLimit(4)
    throttle(limit, AFTER_5)
    throttle(limit, {"retry-after": "1"})
    assert limit.statistics().held_s == 5


async def test_a_hold_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    limit = HostLimit(4)
    throttle(limit, {"retry-after": "86400"})
    assert limit.statistics().held_s == HOLD_MAX_S


async def test_who_is_cancelled_in_a_hold_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    limit = HostLimit(4)
    throttle(limit, AFTER_5)
    with trio.move_on_after(1):
        async with limit.turn():
            raise AssertionError
    now = limit.statistics()
    assert (now.running, now.waiting) == (0, 0)
    async with limit.turn():
        assert limit.statistics().running == 1


async def test_hosts_are_apart() -> None:
    limits = Limits(8)
    throttle(limits.host("a:1"))
    assert {name: host.allowed for name, host in limits.statistics().items()} == {"a:1": 4}
    assert limits.host("b:1").statistics().allowed == 8
    assert limits.host("a:1") is limits.host("a:1")


async def test_hosts_with_nothing_to_remember_are_forgotten() -> None:
    limits = Limits(8)
    throttle(limits.host("lowered:1"))
    async with limits.host("busy:1").turn():
        for number in range(3 * HOSTS_KEPT):
            limits.host(f"{number}:1")
        assert len(limits.statistics()) <= HOSTS_KEPT
        assert limits.statistics()["lowered:1"].allowed == 4
        assert limits.statistics()["busy:1"].running == 1


# --- by the client ---


async def test_a_refusal_lowers_and_holds_what_follows(mock_clock: trio.testing.MockClock, server: Server) -> None:
    limits = Limits(8)
    server.reply(answer(b"", "429 Too Many Requests", Retry_After="5"), answer(b"ok"))
    mock_clock.autojump_threshold = 0.01
    async with Client(server.url, limits=limits) as client:
        with pytest.raises(Throttled):
            await client.request("GET", "/")
        began = trio.current_time()
        assert (await client.request("GET", "/")).content == b"ok"
        assert trio.current_time() - began >= 5
    (host,) = limits.statistics().values()
    assert (host.allowed, host.lowered) == (4, 1)


async def test_a_service_that_is_down_for_a_moment_counts_as_too_much(server: Server) -> None:
    limits = Limits(8)
    server.reply(answer(b"", "503 Service Unavailable"))
    async with Client(server.url, limits=limits) as client:
        with pytest.raises(Unavailable):
            await client.request("GET", "/")
    assert limits.host(f"127.0.0.1:{server.port}").statistics().allowed == 4
