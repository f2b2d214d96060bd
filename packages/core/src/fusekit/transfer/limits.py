"""How many requests may be under way at one host: the one place where concurrency towards a service is bounded.

Transfer layer. All clients of a mount share one `Limits`, so that two backends at one host (a `tree`, a service and
its signed URLs) do not add up. The number is fixed here; adapting it to 429 and 503 means changing
``total_tokens`` of the host's limiter, for which the place is `HostLimit`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

# Enough to hide a round trip of 100 ms behind sixteen others, few enough for services that count connections an
# address; `Capabilities.requests_max` has the same default.
REQUESTS_MAX: Final = 16


@attrs.frozen
class HostStatistics:
    """A look at one host: requests under way, requests waiting for their turn, and how many may run at once."""

    running: int
    waiting: int
    requests_max: int


class HostLimit:
    """The requests under way at one host. Turns are given in the order in which they were asked for."""

    def __init__(self, requests_max: int) -> None:
        self._limiter = trio.CapacityLimiter(requests_max)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn and hold it until the answer's last byte was read.

        Whoever holds a turn must not ask for a second one at the same host: sixteen of those wait for each other.
        """
        # A borrower of its own: trio allows a task one token, but one task may read from several hosts' answers.
        borrower = object()
        await self._limiter.acquire_on_behalf_of(borrower)
        try:
            yield
        finally:
            self._limiter.release_on_behalf_of(borrower)

    def statistics(self) -> HostStatistics:
        """Return the state at this moment."""
        now = self._limiter.statistics()
        return HostStatistics(now.borrowed_tokens, now.tasks_waiting, int(now.total_tokens))


class Limits:
    """One `HostLimit` for each ``host:port``, made when it is first asked for."""

    def __init__(self, requests_max: int = REQUESTS_MAX) -> None:
        self.requests_max = requests_max
        self._hosts: dict[str, HostLimit] = {}

    def host(self, authority: str) -> HostLimit:
        """Return the limit of ``authority``, the same object every time."""
        if authority not in self._hosts:
            self._hosts[authority] = HostLimit(self.requests_max)
        return self._hosts[authority]
