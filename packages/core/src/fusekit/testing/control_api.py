"""The side door of an emulator: the requests under ``/_emulator/`` by which a test reads and steers it.

Part of the emulator base; its client is `fusekit.testing.controls`. These requests are neither logged nor hit by
faults or latency, and need the header ``X-Fusekit-Emulator``, which no service knows and no web page can send.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

import attrs

from fusekit.testing.faults import Fault, Latency, Limit
from fusekit.testing.replies import Reply, json_reply
from fusekit.testing.routes import route
from fusekit.testing.server import Request

if TYPE_CHECKING:
    from fusekit.testing.emulator import Emulator

PREFIX: Final = "/_emulator/"
_WAIT_S: Final = 10.0


class ControlApi:
    """Handlers of the control routes of one emulator."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    @route("about", "GET", PREFIX)
    def about(self, request: Request) -> Reply:
        """Say what is running here."""
        emulator = self._emulator
        return json_reply(
            {
                "scheme": emulator.scheme,
                "pid": os.getpid(),
                "url": emulator.url,
                "ca_file": str(emulator.ca_file) if emulator.ca_file else None,
                "routes": emulator.route_names,
                "environment": {**emulator.environment(), **emulator.tls_environment()},
            }
        )

    @route("requests", "GET", PREFIX + "requests")
    def requests(self, request: Request) -> Reply:
        """Return the request log after a number."""
        found = self._emulator.log.requests(int(request.query.get("after", "0")))
        return json_reply({"requests": [entry.to_json() for entry in found]})

    @route("await-requests", "GET", PREFIX + "requests/await")
    def await_requests(self, request: Request) -> Reply:
        """Answer when a route has received so many requests, or with fewer when the time is up."""
        query = request.query
        received = self._emulator.log.wait(
            query.get("route"), int(query.get("at_least", "1")), float(query.get("timeout_s", _WAIT_S))
        )
        return json_reply({"received": received})

    @route("counters", "GET", PREFIX + "counters")
    def counters(self, request: Request) -> Reply:
        """Return the counters."""
        return json_reply(self._emulator.log.counters().to_json())

    @route("reset", "DELETE", PREFIX + "counters")
    def reset(self, request: Request) -> Reply:
        """Empty log and counters."""
        self._emulator.log.reset()
        return json_reply({})

    @route("faults", "GET", PREFIX + "faults")
    def faults(self, request: Request) -> Reply:
        """Return the faults with what became of them."""
        return json_reply({"faults": [armed.to_json() for armed in self._emulator.faults.armed()]})

    @route("arm", "POST", PREFIX + "faults")
    def arm(self, request: Request) -> Reply:
        """Put one more fault in force."""
        return json_reply({"number": self._emulator.faults.arm(Fault.from_json(_object(request)))})

    @route("disarm", "DELETE", PREFIX + "faults")
    def disarm(self, request: Request) -> Reply:
        """Drop one fault (``number``) or all."""
        number = request.query.get("number")
        self._emulator.faults.disarm(None if number is None else int(number))
        return json_reply({})

    @route("latencies", "GET", PREFIX + "latency")
    def latencies(self, request: Request) -> Reply:
        """Return the latencies by route."""
        found = self._emulator.faults.latencies()
        return json_reply({name: attrs.asdict(latency) for name, latency in found.items()})

    @route("set-latency", "PUT", PREFIX + "latency")
    def set_latency(self, request: Request) -> Reply:
        """Replace all latencies."""
        wanted = {name: Latency(**fields) for name, fields in _object(request).items()}
        for name in self._emulator.faults.latencies().keys() - wanted.keys():
            self._emulator.faults.set_latency(name, None)
        for name, latency in wanted.items():
            self._emulator.faults.set_latency(name, latency)
        return json_reply({})

    @route("limits", "GET", PREFIX + "limits")
    def limits(self, request: Request) -> Reply:
        """Return the limits by pattern of routes."""
        found = self._emulator.faults.limits()
        return json_reply({pattern: attrs.asdict(limit) for pattern, limit in found.items()})

    @route("set-limits", "PUT", PREFIX + "limits")
    def set_limits(self, request: Request) -> Reply:
        """Replace all limits."""
        wanted = {pattern: Limit(**fields) for pattern, fields in _object(request).items()}
        for pattern in self._emulator.faults.limits().keys() - wanted.keys():
            self._emulator.faults.set_limit(pattern, None)
        for pattern, limit in wanted.items():
            self._emulator.faults.set_limit(pattern, limit)
        return json_reply({})

    @route("await-stalled", "GET", PREFIX + "stalled")
    def await_stalled(self, request: Request) -> Reply:
        """Answer when so many requests are held, or with fewer when the time is up."""
        query = request.query
        held = self._emulator.stalls.wait(int(query.get("at_least", "0")), float(query.get("timeout_s", _WAIT_S)))
        return json_reply({"held": held})

    @route("release", "DELETE", PREFIX + "stalled")
    def release(self, request: Request) -> Reply:
        """Let held requests go on."""
        return json_reply({"released": self._emulator.stalls.release()})

    @route("clock", "GET", PREFIX + "clock")
    def clock(self, request: Request) -> Reply:
        """Tell the emulator's time."""
        return json_reply({"now": self._emulator.clock.now(), "frozen": self._emulator.clock.frozen})

    @route("set-clock", "PATCH", PREFIX + "clock")
    def set_clock(self, request: Request) -> Reply:
        """Freeze, advance, run or follow; several in this order."""
        clock, wanted = self._emulator.clock, _object(request)
        if unknown := wanted.keys() - {"freeze", "advance", "run", "follow"}:
            raise ValueError(f"a clock cannot {', '.join(sorted(unknown))}")
        if "freeze" in wanted:
            clock.freeze(None if wanted["freeze"] is None else float(wanted["freeze"]))
        if "advance" in wanted:
            clock.advance(float(wanted["advance"]))
        if wanted.get("run"):
            clock.run()
        if wanted.get("follow"):
            clock.follow()
        return json_reply({"now": clock.now(), "frozen": clock.frozen})

    @route("state", "GET", PREFIX + "state")
    def state(self, request: Request) -> Reply:
        """Return all that the service holds."""
        return json_reply(self._emulator.state())

    @route("replace-state", "PUT", PREFIX + "state")
    def replace_state(self, request: Request) -> Reply:
        """Hold what is sent and nothing else."""
        self._emulator.replace_state(_object(request))
        return json_reply({})

    @route("merge-state", "PATCH", PREFIX + "state")
    def merge_state(self, request: Request) -> Reply:
        """Hold what is sent besides what is there."""
        self._emulator.replace_state(_object(request), merge=True)
        return json_reply({})

    @route("knobs", "GET", PREFIX + "knobs")
    def knobs(self, request: Request) -> Reply:
        """Return how the service is set up."""
        return json_reply(self._emulator.knobs())

    @route("set-knobs", "PATCH", PREFIX + "knobs")
    def set_knobs(self, request: Request) -> Reply:
        """Set the service up otherwise."""
        self._emulator.set_knobs(_object(request))
        return json_reply(self._emulator.knobs())

    @route("expire", "POST", PREFIX + "expire/{what}")
    def expire(self, request: Request) -> Reply:
        """Make what was handed out so far invalid."""
        self._emulator.expire(request.params["what"])
        return json_reply({})


def _object(request: Request) -> dict[str, Any]:
    value = json.loads(request.body.read() or b"{}")
    if not isinstance(value, dict):
        raise TypeError("a JSON object is needed")
    return value
