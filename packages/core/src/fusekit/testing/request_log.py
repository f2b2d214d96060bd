"""What an emulator was asked: every request in order, and counters by route that budgets are checked against.

Part of the emulator base. A request is entered when it arrives and completed before the last byte of its answer
leaves, so a client that got its answer finds it in the log. Targets are logged without the query values that are
secrets (signatures).
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Final

import attrs

KEPT_MAX: Final = 100_000
"""Requests kept in the log; counters go on beyond it."""


@attrs.define(eq=False)
class LoggedRequest:
    """One request. ``status`` is 0 where there was no HTTP answer; ``fault`` names what was done to it on purpose.

    ``bytes_in`` and ``bytes_out`` count bodies. ``open`` until the answer was decided; ``cut`` where the connection
    ended before all of the answer was sent. ``time`` is the emulator's clock, in seconds since 1970.
    """

    number: int
    time: float
    connection: int
    route: str
    method: str
    path: str
    query: dict[str, str]
    range: str | None = None
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    fault: str | None = None
    open: bool = True
    cut: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return attrs.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> LoggedRequest:
        """Make one of what `to_json` returned."""
        return cls(**fields)


@attrs.frozen
class Count:
    """Requests of one route, method and status: how many, and the bytes of their bodies."""

    route: str
    method: str
    status: int
    requests: int
    bytes_in: int
    bytes_out: int


@attrs.frozen
class Counters:
    """The counters at one moment. ``peak`` is the highest number of requests in work at once, by route ("*": of all)."""

    counts: tuple[Count, ...]
    peak: Mapping[str, int]
    connections: int
    failures: int

    def requests(self, route: str | None = None, status: int | None = None) -> int:
        """Return how many requests a route (None: all routes together) answered, with a status (None: any)."""
        return sum(one.requests for one in self._of(route, status))

    def bytes_in(self, route: str | None = None) -> int:
        """Return the bytes of request bodies that a route (None: all) took."""
        return sum(one.bytes_in for one in self._of(route, None))

    def bytes_out(self, route: str | None = None) -> int:
        """Return the bytes of answer bodies that a route (None: all) gave."""
        return sum(one.bytes_out for one in self._of(route, None))

    def by_route(self) -> dict[str, int]:
        """Return the number of requests of each route that had any."""
        found: Counter[str] = Counter()
        for one in self.counts:
            found[one.route] += one.requests
        return dict(found)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return attrs.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Counters:
        """Make counters of what `to_json` returned."""
        return cls(**{**fields, "counts": tuple(Count(**one) for one in fields["counts"])})

    def _of(self, route: str | None, status: int | None) -> list[Count]:
        return [
            one
            for one in self.counts
            if (route is None or one.route == route) and (status is None or one.status == status)
        ]


class RequestLog:
    """The log and the counters. Safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._last = 0
        self._kept: deque[LoggedRequest] = deque(maxlen=KEPT_MAX)
        self._counts: dict[tuple[str, str, int], list[int]] = {}
        self._in_work: Counter[str] = Counter()
        self._peak: dict[str, int] = {}
        self._connections: set[int] = set()
        self._failures = 0

    def begin(
        self,
        *,
        time: float,
        connection: int,
        route: str,
        method: str,
        path: str,
        query: dict[str, str],
        range: str | None,
    ) -> LoggedRequest:
        """Enter a request that has just arrived."""
        with self._changed:
            self._last += 1
            entry = LoggedRequest(self._last, time, connection, route, method, path, query, range)
            self._kept.append(entry)
            self._connections.add(connection)
            for name in (route, "*"):
                self._in_work[name] += 1
                self._peak[name] = max(self._peak.get(name, 0), self._in_work[name])
            self._changed.notify_all()
            return entry

    def decided(self, entry: LoggedRequest, status: int, bytes_in: int, bytes_out: int, *, cut: bool = False) -> None:
        """Complete the entry and count it; called before the answer leaves, with the bytes that it is going to have.

        ``cut`` says that these are not all, on purpose.
        """
        with self._changed:
            if not entry.open:
                return
            entry.open, entry.status, entry.bytes_in, entry.bytes_out = False, status, bytes_in, bytes_out
            entry.cut = cut
            count = self._counts.setdefault((entry.route, entry.method, status), [0, 0, 0])
            for place, more in enumerate((1, bytes_in, bytes_out)):
                count[place] += more
            self._changed.notify_all()

    def finish(self, entry: LoggedRequest) -> None:
        """Say that the request is no longer in work: its answer has left, or there is none."""
        with self._changed:
            for name in (entry.route, "*"):
                self._in_work[name] -= 1

    def cut(self, entry: LoggedRequest, bytes_out: int) -> None:
        """Correct an entry whose answer ended after ``bytes_out`` bytes of its body."""
        with self._changed:
            count = self._counts.get((entry.route, entry.method, entry.status))
            if count is not None and not entry.open:
                count[2] += bytes_out - entry.bytes_out
            entry.bytes_out, entry.cut = bytes_out, True
            self._changed.notify_all()

    def failed(self) -> None:
        """Count an exception in a handler, which no test should see."""
        with self._changed:
            self._failures += 1

    def counters(self) -> Counters:
        """Return the counters as they are now."""
        with self._changed:
            counts = tuple(Count(*key, *numbers) for key, numbers in sorted(self._counts.items()))
            return Counters(counts, dict(self._peak), len(self._connections), self._failures)

    def requests(self, after: int = 0) -> list[LoggedRequest]:
        """Return the requests kept whose number is above ``after``, in order of arrival."""
        with self._changed:
            return [attrs.evolve(entry) for entry in self._kept if entry.number > after]

    def reset(self) -> None:
        """Forget all requests and start counting at nothing; requests in work count when they are decided."""
        with self._changed:
            self._kept.clear()
            self._counts.clear()
            self._connections.clear()
            self._failures = 0
            self._peak = {name: number for name, number in self._in_work.items() if number}

    def wait(self, route: str | None, at_least: int, timeout_s: float) -> int:
        """Wait until a route (None: all) has received ``at_least`` requests, and return how many it has."""

        def received() -> int:
            return sum(1 for entry in self._kept if route is None or entry.route == route)

        with self._changed:
            self._changed.wait_for(lambda: received() >= at_least, timeout_s)
            return received()
