"""How many requests may be under way at one host: the one place where concurrency towards a service is bounded.

Transfer layer. All clients of a mount share one `Limits`, so that two backends at one host (a `tree`, a service and
its signed URLs) do not add up. A host that says "too many" (429, 503) gets half as many from then on; what it then
answers lets the number rise again, by about one for each round of answers, up to the maximum. Where it also says for how
long (Retry-After), nothing new begins there before that.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

import attrs
import trio

from fusekit.transfer.status import retry_after_s

# Enough to hide a round trip of 100 ms behind sixteen others, few enough for services that count connections an
# address; `Capabilities.requests_max` has the same default.
REQUESTS_MAX: Final = 16
# A service may ask for hours, or for never by a clock that is wrong. Below the deadline of a call (30 s), so that who
# waits gets the service's own answer and not a timeout; the call that was refused obeys the whole of it (`RetryPolicy`).
HOLD_MAX_S: Final = 20.0

# A service that names another host in each signed URL does not fill the memory; those that are at rest are forgotten.
HOSTS_KEPT: Final = 256

_TOO_MANY: Final = frozenset({429, 503})


@attrs.frozen
class HostStatistics:
    """A look at one host: requests under way, requests waiting for their turn, and how many may run at once.

    ``allowed`` is between 1 and ``requests_max``; ``lowered`` counts how often it was halved; ``held_s`` is for how long
    nothing new begins.
    """

    running: int
    waiting: int
    requests_max: int
    allowed: int
    lowered: int
    held_s: float


@attrs.define(eq=False)
class _Waiter:
    """One that has no turn yet; ``scope`` ends its wait at a time, ``granted`` at once."""

    granted: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


class HostLimit:
    """The requests under way at one host. Turns are given in the order in which they were asked for."""

    def __init__(self, requests_max: int) -> None:
        self._requests_max = requests_max
        self._allowed = float(requests_max)
        self._running = 0
        self._waiting: deque[_Waiter] = deque()
        self._lowered = 0
        self._lowered_at = -math.inf
        self._held_until = -math.inf

    def turn(self) -> Turn:
        """Return a turn to wait for and to hold, as an async context, until the answer's last byte was read.

        Whoever holds a turn must not ask for a second one at the same host: sixteen of those wait for each other.
        """
        return Turn(self)

    def statistics(self) -> HostStatistics:
        """Return the state at this moment."""
        held_s = max(0.0, self._held_until - trio.current_time())
        return HostStatistics(
            self._running, len(self._waiting), self._requests_max, int(self._allowed), self._lowered, round(held_s, 3)
        )

    @property
    def at_rest(self) -> bool:
        """Return whether a new limit would be the same: nobody is here, and the host allows all."""
        idle = not self._running and not self._waiting and trio.current_time() >= self._held_until
        return idle and self._allowed >= self._requests_max

    # ---- for turns ---------------------------------------------------------------------------------------------

    async def acquire(self) -> None:
        """Wait for a turn."""
        if not self._waiting and self._free():
            self._running += 1
            return
        waiter = _Waiter()
        self._waiting.append(waiter)
        try:
            while not waiter.granted.is_set():
                # A wait that ended at its time is over only for whoever is first then; the others wait on.
                waiter.scope = trio.CancelScope(deadline=self._wake_at())
                with waiter.scope:
                    await waiter.granted.wait()
                self._grant()
        except BaseException:
            if waiter.granted.is_set():
                self.release()
            else:
                self._waiting.remove(waiter)
                self._grant()
            raise

    def release(self) -> None:
        """Give a turn back."""
        self._running -= 1
        self._grant()

    def answered(self, status: int, headers: Mapping[str, str], began: float) -> None:
        """Learn from an answer to a request that began at ``began``."""
        if status not in _TOO_MANY:
            # A service that is broken has not said that there is room.
            if status < 500:
                self._allowed = min(self._requests_max, self._allowed + 1 / self._allowed)
                self._grant()
            return
        # What was under way when the number was halved says nothing about the half.
        if began >= self._lowered_at:
            self._allowed = max(1.0, self._allowed / 2)
            self._lowered += 1
            self._lowered_at = trio.current_time()
        wait_s = retry_after_s(headers)
        if wait_s is not None:
            self._held_until = max(self._held_until, trio.current_time() + min(wait_s, HOLD_MAX_S))
            for waiter in self._waiting:
                waiter.scope.deadline = self._wake_at()

    def _free(self) -> bool:
        return self._running < int(self._allowed) and trio.current_time() >= self._held_until

    def _grant(self) -> None:
        while self._waiting and self._free():
            self._running += 1
            self._waiting.popleft().granted.set()

    def _wake_at(self) -> float:
        return self._held_until if self._held_until > trio.current_time() else math.inf


@attrs.define(eq=False)
class Turn:
    """One request's place at a host."""

    _limit: HostLimit
    _began: float = attrs.field(default=0.0, init=False)

    async def __aenter__(self) -> Self:
        await self._limit.acquire()
        self._began = trio.current_time()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._limit.release()

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Say what came back."""
        self._limit.answered(status, headers, self._began)


class Limits:
    """One `HostLimit` for each ``host:port``, made when it is first asked for."""

    def __init__(self, requests_max: int = REQUESTS_MAX) -> None:
        self.requests_max = requests_max
        self._hosts: dict[str, HostLimit] = {}

    def host(self, authority: str) -> HostLimit:
        """Return the limit of ``authority``, the same object every time while there is anything to remember of it."""
        if authority not in self._hosts:
            if len(self._hosts) >= HOSTS_KEPT:
                self._hosts = {name: limit for name, limit in self._hosts.items() if not limit.at_rest}
            self._hosts[authority] = HostLimit(self.requests_max)
        return self._hosts[authority]

    def statistics(self) -> dict[str, HostStatistics]:
        """Return the state of every host that was asked, by ``host:port``."""
        return {authority: limit.statistics() for authority, limit in self._hosts.items()}
