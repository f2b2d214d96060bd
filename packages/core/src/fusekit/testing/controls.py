"""Reads and steers a running emulator, whether it is in this process or another.

Part of the emulator base: the client of `fusekit.testing.control_api`, over HTTP like every other client. Calls block
for about a millisecond, which async tests can afford, but for the two that wait on purpose: those belong into a thread.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from fusekit.testing.control_api import PREFIX
from fusekit.testing.faults import ArmedFault, Fault, Latency, Limit, What
from fusekit.testing.request_log import Counters, LoggedRequest


class ControlError(Exception):
    """The emulator refused a control request; the message says why."""


class Controls:
    """What a test can do to the emulator at ``url``."""

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        self._base = url.rstrip("/") + PREFIX
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]  # loopback is never proxied
        if ca_file is not None:
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(ca_file))))
        self._opener = urllib.request.build_opener(*handlers)

    def about(self) -> dict[str, Any]:
        """Return scheme, pid, url, routes and environment."""
        return self._call("GET", "")

    # --- what was asked

    def requests(self, route: str | None = None, after: int = 0) -> list[LoggedRequest]:
        """Return the logged requests in order of arrival: of one route (None: all), numbered above ``after``."""
        found = [LoggedRequest.from_json(one) for one in self._call("GET", "requests", after=after)["requests"]]
        return [one for one in found if route is None or one.route == route]

    def counters(self) -> Counters:
        """Return the counters by route."""
        return Counters.from_json(self._call("GET", "counters"))

    def reset(self) -> None:
        """Empty log and counters; the state of the service stays."""
        self._call("DELETE", "counters")

    def wait_for_requests(self, route: str | None = None, at_least: int = 1, timeout_s: float = 10.0) -> int:
        """Wait until a route (None: any) has received so many requests; return how many it has.

        Raises:
            TimeoutError: it has not.
        """
        query: dict[str, Any] = {"at_least": at_least, "timeout_s": timeout_s} | ({"route": route} if route else {})
        received = int(self._call("GET", "requests/await", **query)["received"])
        if received < at_least:
            raise TimeoutError(f"{route or 'the emulator'} received {received} requests, not {at_least}")
        return received

    # --- trouble

    def fault(self, what: What | str, route: str = "*", **fields: Any) -> int:
        """Arm a `Fault` and return its number; ``fields`` are its other fields."""
        return self.arm(Fault(What(what), route, **fields))

    def arm(self, fault: Fault) -> int:
        """Arm a fault and return its number."""
        return int(self._call("POST", "faults", fault.to_json())["number"])

    def faults(self) -> list[ArmedFault]:
        """Return the faults, used up or not, with how often they were seen and fired."""
        found = self._call("GET", "faults")["faults"]
        return [ArmedFault(**{**one, "fault": Fault.from_json(one["fault"])}) for one in found]

    def clear_faults(self, number: int | None = None) -> None:
        """Drop one fault, or all."""
        query: dict[str, Any] = {} if number is None else {"number": number}
        self._call("DELETE", "faults", **query)

    def set_latency(self, latencies: Mapping[str, Latency] | Latency | None) -> None:
        """Replace all latencies: by route, one for all routes, or none."""
        if latencies is None:
            latencies = {}
        elif isinstance(latencies, Latency):
            latencies = {"*": latencies}
        self._call("PUT", "latency", {name: attrs.asdict(latency) for name, latency in latencies.items()})

    def set_limits(self, limits: Mapping[str, Limit]) -> None:
        """Replace all limits on the number of requests, by pattern of routes."""
        self._call("PUT", "limits", {pattern: attrs.asdict(limit) for pattern, limit in limits.items()})

    def wait_for_stalled(self, at_least: int = 1, timeout_s: float = 10.0) -> int:
        """Wait until so many requests are held by a STALL; return how many are.

        Raises:
            TimeoutError: they are not.
        """
        held = int(self._call("GET", "stalled", at_least=at_least, timeout_s=timeout_s)["held"])
        if held < at_least:
            raise TimeoutError(f"{held} requests are held, not {at_least}")
        return held

    def release(self) -> int:
        """Let the requests go on that are held now, and return how many they were."""
        return int(self._call("DELETE", "stalled")["released"])

    # --- time

    def now(self) -> float:
        """Return the emulator's time in seconds since 1970."""
        return float(self._call("GET", "clock")["now"])

    def freeze(self, at: float | None = None) -> float:
        """Stop the emulator's clock (``at``: at that time) and return what it shows."""
        return float(self._call("PATCH", "clock", {"freeze": at})["now"])

    def advance(self, seconds: float) -> float:
        """Move the emulator's clock and return what it shows."""
        return float(self._call("PATCH", "clock", {"advance": seconds})["now"])

    def run_clock(self) -> float:
        """Let a frozen clock run on from what it shows, and return that."""
        return float(self._call("PATCH", "clock", {"run": True})["now"])

    def follow_clock(self) -> float:
        """Give the emulator the real time again, and return it."""
        return float(self._call("PATCH", "clock", {"follow": True})["now"])

    # --- the service

    def state(self) -> dict[str, Any]:
        """Return all that the service holds."""
        return self._call("GET", "state")

    def replace_state(self, state: Mapping[str, Any]) -> None:
        """Let the service hold ``state`` and nothing else."""
        self._call("PUT", "state", dict(state))

    def merge_state(self, state: Mapping[str, Any]) -> None:
        """Let the service hold ``state`` besides what it has."""
        self._call("PATCH", "state", dict(state))

    def knobs(self) -> dict[str, Any]:
        """Return how the service is set up."""
        return self._call("GET", "knobs")

    def set_knobs(self, **changes: Any) -> dict[str, Any]:
        """Set the service up otherwise and return how it is now."""
        return self._call("PATCH", "knobs", changes)

    def expire(self, what: str) -> None:
        """Make what was handed out so far ("tokens", "urls") invalid."""
        self._call("POST", f"expire/{urllib.parse.quote(what, safe='')}", {})

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: Any) -> dict[str, Any]:
        url = self._base + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-Fusekit-Emulator": "1", "Content-Type": "application/json"}
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        timeout_s = 30.0 + float(query.get("timeout_s", 0.0))
        try:
            with self._opener.open(request, timeout=timeout_s) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise ControlError(json.load(error).get("error", str(error))) from error
        if not isinstance(found, dict):
            raise ControlError(f"{url} answered with something that is no object")
        return found
