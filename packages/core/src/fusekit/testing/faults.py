"""Trouble on order: what an emulator does wrong, to which requests, how often, and how slow it is.

Part of the emulator base. A `Fault` describes one kind of failure and the requests that it hits; a `FaultPlan` holds
those that are armed and decides for each request. Decisions by probability and the jitter of latencies come from a
generator seeded by (seed, route, number of the request on that route), so they are the same in every run, however
the threads interleave.
"""

from __future__ import annotations

import enum
import random
import threading
from collections import defaultdict
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import attrs


class What(enum.Enum):
    """What goes wrong.

    Instead of the answer: STATUS (an error of the service, with ``status`` and ``retry_after``), RESET, STALL (held
    until released or ``hold_s`` passed, then answered), GARBAGE (bytes that are no HTTP), HTML (an error page of some
    proxy, with ``status``), NOT_JSON (a JSON type, but cut text).

    To the answer's body: with ``at_byte`` RESET and STALL strike in the middle of it; TRUNCATED closes the connection
    early, SHORT and OVERLONG announce and send less or more than was asked for, EXTRA sends bytes after the announced
    end, HANGUP answers as if the connection went on and then closes it; and for requests with a range, WRONG_RANGE
    announces another one, WRONG_BYTES sends other bytes under the right heading, IGNORED_RANGE sends everything with
    200.

    To the request's body: RESET with ``upload_byte`` breaks the connection when that many bytes have arrived.
    """

    STATUS = "status"
    RESET = "reset"
    STALL = "stall"
    TRUNCATED = "truncated"
    SHORT = "short"
    OVERLONG = "overlong"
    EXTRA = "extra"
    HANGUP = "hangup"
    WRONG_RANGE = "wrong-range"
    WRONG_BYTES = "wrong-bytes"
    IGNORED_RANGE = "ignored-range"
    GARBAGE = "garbage"
    HTML = "html"
    NOT_JSON = "not-json"


_RANGED = frozenset({What.WRONG_RANGE, What.WRONG_BYTES, What.IGNORED_RANGE})
_REPLACING = frozenset({What.STATUS, What.GARBAGE, What.HTML, What.NOT_JSON})


@attrs.frozen
class Fault:
    """One kind of failure and the requests that it hits.

    ``route`` is a pattern (``*``, ``list-*``) for names of routes; ``contains`` is text that the request's path and
    query must contain, percent-escapes undone. Of the requests that match, the first ``skip`` pass; each further one
    is hit with ``probability``, at most ``count`` of them (None: for ever). ``done`` lets the service carry the request
    out before the failure, so that the client cannot know. Offsets are bytes, ``hold_s`` seconds.
    """

    what: What = attrs.field(converter=What)
    route: str = "*"
    contains: str = ""
    count: int | None = 1
    skip: int = 0
    probability: float = 1.0
    status: int | None = None
    retry_after: str | None = None
    done: bool = False
    at_byte: int | None = None
    upload_byte: int | None = None
    hold_s: float = 60.0

    @property
    def replaces_answer(self) -> bool:
        """Return whether the client gets something else than the service's answer."""
        return self.what in _REPLACING or (
            self.what is What.RESET and self.at_byte is None and self.upload_byte is None
        )

    def hits(self, route: str, target: str, ranged: bool) -> bool:
        """Return whether this fault is about such requests."""
        return fnmatchcase(route, self.route) and self.contains in target and (ranged or self.what not in _RANGED)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, as `from_json` takes them."""
        return attrs.asdict(self) | {"what": self.what.value}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Fault:
        """Make a fault of what `to_json` returned.

        Raises:
            TypeError, ValueError: unknown fields or values.
        """
        return cls(**fields)


@attrs.define(eq=False)
class ArmedFault:
    """A fault in force: ``seen`` requests matched it, ``fired`` were hit."""

    number: int
    fault: Fault
    seen: int = 0
    fired: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return {"number": self.number, "fault": self.fault.to_json(), "seen": self.seen, "fired": self.fired}


@attrs.frozen
class Latency:
    """How slow a route is: ``fixed_s`` plus up to ``jitter_s`` before each answer, and bodies at ``bytes_per_s``."""

    fixed_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None


@attrs.frozen
class Limit:
    """How much a route takes: ``per_s`` requests a second after a burst of ``burst``; the rest is refused with 429.

    The seconds are those of the emulator's clock: while it stands still, exactly ``burst`` requests pass.
    """

    per_s: float
    burst: int = 1
    status: int = 429
    retry_after: str | None = None


@attrs.define
class _Bucket:
    left: float
    filled_s: float


class FaultPlan:
    """The faults, latencies and limits in force. Safe to use from any thread."""

    def __init__(self, seed: int = 0) -> None:
        self._lock = threading.Lock()
        self._seed = seed
        self._last = 0
        self._armed: dict[int, ArmedFault] = {}
        self._latency: dict[str, Latency] = {}
        self._drawn: defaultdict[str, int] = defaultdict(int)
        self._limits: dict[str, Limit] = {}
        self._buckets: dict[str, _Bucket] = {}

    def arm(self, fault: Fault) -> int:
        """Put ``fault`` in force, after those that are, and return its number."""
        with self._lock:
            self._last += 1
            self._armed[self._last] = ArmedFault(self._last, fault)
            return self._last

    def disarm(self, number: int | None = None) -> None:
        """Drop the fault of that number, or all."""
        with self._lock:
            if number is None:
                self._armed.clear()
            else:
                self._armed.pop(number, None)

    def armed(self) -> list[ArmedFault]:
        """Return the faults in force and those used up, oldest first."""
        with self._lock:
            return [attrs.evolve(one) for one in self._armed.values()]

    def draw(self, route: str, target: str, ranged: bool) -> Fault | None:
        """Return the fault that hits this request: the oldest that is about it and not used up."""
        with self._lock:
            for armed in self._armed.values():
                fault = armed.fault
                if not fault.hits(route, target, ranged) or (fault.count is not None and armed.fired >= fault.count):
                    continue
                armed.seen += 1
                if armed.seen <= fault.skip or self._random(f"fault-{armed.number}", armed.seen) >= fault.probability:
                    continue
                armed.fired += 1
                return fault
        return None

    def set_latency(self, route: str, latency: Latency | None) -> None:
        """Slow down the route of that name (``*``: all that have no latency of their own); None ends it."""
        with self._lock:
            if latency is None:
                self._latency.pop(route, None)
            else:
                self._latency[route] = latency

    def latencies(self) -> dict[str, Latency]:
        """Return the latencies by route."""
        with self._lock:
            return dict(self._latency)

    def delay(self, route: str) -> tuple[float, float | None]:
        """Return the seconds to wait before this answer, and the bytes a second that its body may take."""
        with self._lock:
            latency = self._latency.get(route) or self._latency.get("*")
            if latency is None:
                return 0.0, None
            self._drawn[route] += 1
            jitter = latency.jitter_s * self._random(route, self._drawn[route]) if latency.jitter_s else 0.0
            return latency.fixed_s + jitter, latency.bytes_per_s

    def set_limit(self, routes: str, limit: Limit | None) -> None:
        """Limit the routes of that pattern, all together; None ends it."""
        with self._lock:
            self._buckets.pop(routes, None)
            if limit is None:
                self._limits.pop(routes, None)
            else:
                self._limits[routes] = limit

    def limits(self) -> dict[str, Limit]:
        """Return the limits by pattern of routes."""
        with self._lock:
            return dict(self._limits)

    def over_limit(self, route: str, now_s: float) -> Fault | None:
        """Count a request against the limits of its route, and return the refusal if it is too many."""
        with self._lock:
            for pattern, limit in self._limits.items():
                if not fnmatchcase(route, pattern):
                    continue
                bucket = self._buckets.setdefault(pattern, _Bucket(limit.burst, now_s))
                bucket.left = min(limit.burst, bucket.left + max(0.0, now_s - bucket.filled_s) * limit.per_s)
                bucket.filled_s = now_s
                if bucket.left < 1:
                    return Fault(What.STATUS, status=limit.status, retry_after=limit.retry_after)
                bucket.left -= 1
        return None

    def _random(self, stream: str, number: int) -> float:
        return random.Random(f"{self._seed}/{stream}/{number}").random()
