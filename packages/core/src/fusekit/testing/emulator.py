"""The base of every emulator: a real HTTP server on loopback that stands in for a service, and fails on request.

Outside the layers; needs the standard library and attrs only. A service's emulator derives from `Emulator`, names its
scheme and options, and adds objects whose methods are marked with `route`. It runs in threads of this process
(`Emulator.start`) or in a process of its own (`Emulator.spawn`, ``python -m``, ``fusekit emulate``), and is told what
to do wrong through the same `Controls` either way.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs

from fusekit.config import option, parse_duration
from fusekit.testing.blobs import BlobStore
from fusekit.testing.certificates import Certificate, make_certificate
from fusekit.testing.clock import Clock
from fusekit.testing.control_api import PREFIX, ControlApi
from fusekit.testing.faults import Fault, FaultPlan, Latency, What
from fusekit.testing.replies import Refused, Reply, http_date, json_reply, phrase, text_reply
from fusekit.testing.request_log import LoggedRequest, RequestLog
from fusekit.testing.routes import Route, RouteTable
from fusekit.testing.running import RunningEmulator, run_here, run_in_process
from fusekit.testing.sending import Sending, spoiled, substitute
from fusekit.testing.server import BadRequest, Cut, Disconnected, Request, Server, Wire
from fusekit.testing.stalls import Stalls

logger = logging.getLogger(__name__)

UNKNOWN: Final = "unknown"
"""The route of requests that no handler takes."""


@attrs.frozen
class EmulatorOptions:
    """What every emulator can be told at its start. Times are seconds."""

    host: str = option(default="127.0.0.1", help="address to listen on")
    port: int = option(default=0, converter=int, help="port to listen on; 0 takes a free one")
    tls: bool = option(default=False, help="speak TLS with a certificate made at the start")
    seed: int = option(default=0, converter=int, help="of the generator behind jitter and probabilities")
    latency_s: float = option(default=0.0, converter=parse_duration, help="added to each answer")
    jitter_s: float = option(default=0.0, converter=parse_duration, help="at most so much more, at random")


class Emulator:
    """One service on loopback. Derive, set ``scheme`` and ``options``, call `add_routes` when made."""

    scheme: ClassVar[str]
    options: ClassVar[type[EmulatorOptions]] = EmulatorOptions
    secret_parameters: ClassVar[frozenset[str]] = frozenset()
    """Names of query values that no log may show."""

    def __init__(self, settings: EmulatorOptions) -> None:
        self.settings = settings
        self.clock = Clock()
        self.blobs = BlobStore()
        self.log = RequestLog()
        self.faults = FaultPlan(settings.seed)
        self.stalls = Stalls()
        self.lock = threading.RLock()
        """Held by handlers around every change of the service's state; never while bytes move."""
        if settings.latency_s or settings.jitter_s:
            self.faults.set_latency("*", Latency(settings.latency_s, settings.jitter_s))
        self._routes = RouteTable()
        self._control_routes = RouteTable()
        self._control_routes.add(ControlApi(self))
        self._directory: Path | None = None
        self._certificate: Certificate | None = None
        self._server: Server | None = None

    # --- what a service's emulator fills in -------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Return the variables that a user exports to talk to this emulator."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return all that the service holds, as JSON; `replace_state` takes it."""
        raise NotImplementedError

    def replace_state(self, state: Mapping[str, Any], *, merge: bool = False) -> None:
        """Hold what ``state`` says, and nothing else unless ``merge``.

        Raises:
            ValueError: it is no state of this service; nothing changed.
        """
        raise NotImplementedError

    def knobs(self) -> dict[str, Any]:
        """Return how the service is set up (limits, features, delays) by name."""
        return {}

    def set_knobs(self, changes: Mapping[str, Any]) -> None:
        """Change some of `knobs`.

        Raises:
            ValueError: there is no such knob, or not that value for it.
        """
        if changes:
            raise ValueError(f"this emulator has no knob {', '.join(sorted(changes))}")

    def expire(self, what: str) -> None:
        """Make credentials of one sort ("tokens", "urls") that were handed out so far invalid.

        Raises:
            ValueError: the service hands out no such thing.
        """
        raise ValueError(f"this emulator hands out no {what}")

    def failure(self, status: int, request: Request, route: str) -> Reply:
        """Return the error ``status`` as the service words it; used for faults, unknown routes and broken handlers."""
        return text_reply(f"{phrase(status)}\n", status)

    def finish(self, request: Request, reply: Reply) -> None:
        """Add what every answer of the service carries (a request id); called before an answer leaves."""

    # --- running ----------------------------------------------------------------------------------------------

    @classmethod
    def start(cls, settings: EmulatorOptions | None = None, **changes: Any) -> AbstractContextManager[RunningEmulator]:
        """Run one in threads of this process while the context lasts; ``changes`` are options by name."""
        return run_here(cls, cls._settings(settings, changes))

    @classmethod
    def spawn(cls, settings: EmulatorOptions | None = None, **changes: Any) -> AbstractContextManager[RunningEmulator]:
        """Run one in a process of its own while the context lasts; the class must be importable by name."""
        return run_in_process(cls, cls._settings(settings, changes))

    @classmethod
    def _settings(cls, settings: EmulatorOptions | None, changes: Mapping[str, Any]) -> EmulatorOptions:
        return cls.options(**changes) if settings is None else attrs.evolve(settings, **changes)

    @property
    def url(self) -> str:
        """Return the base URL, without a slash at the end."""
        assert self._server is not None, "the emulator is not running"
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"{'https' if self.settings.tls else 'http'}://{host}:{self._server.port}"

    @property
    def ca_file(self) -> Path | None:
        """Return the certificate that clients are to trust; None without TLS."""
        return self._certificate.certificate if self._certificate else None

    def tls_environment(self) -> dict[str, str]:
        """Return the variables that make usual clients trust the certificate; none without TLS."""
        names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if self.ca_file else ()
        return dict.fromkeys(names, str(self.ca_file))

    @property
    def route_names(self) -> list[str]:
        """Return the names of all routes."""
        return self._routes.names()

    def add_routes(self, owner: object) -> None:
        """Serve the methods of ``owner`` that are marked with `route`."""
        self._routes.add(owner)

    def open(self) -> None:
        """Begin to serve."""
        context = None
        if self.settings.tls:
            self._directory = Path(tempfile.mkdtemp(prefix="fusekit-emulator-tls-"))
            self._certificate = make_certificate(self._directory)
            context = self._certificate.server_context()
        self._server = Server(self._handle, self.settings.host, self.settings.port, context)
        self._server.start()

    def close(self) -> None:
        """Stop serving: connections break, stalled requests go on into the void, files are deleted."""
        self.stalls.close()
        if self._server is not None:
            self._server.close()
        self.blobs.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    # --- one request ------------------------------------------------------------------------------------------

    def _handle(self, request: Request, wire: Wire) -> bool:
        if request.path.startswith(PREFIX):
            return self._control(request, wire)
        route, request.params, methods = self._routes.find(request.method, request.path)
        name = route.name if route else UNKNOWN
        query = {key: value for key, value in request.query.items() if key not in self.secret_parameters}
        entry = self.log.begin(
            time=self.clock.now(),
            connection=request.connection,
            route=name,
            method=request.method,
            path=request.target.partition("?")[0],
            query=query,
            range=request.headers.get("range"),
        )
        wait_s, bytes_per_s = self.faults.delay(name)
        self.stalls.sleep(wait_s)
        wire.pace = self.stalls.pace(bytes_per_s) if bytes_per_s else None
        fault = self.faults.over_limit(name, self.clock.now())
        fault = fault or self.faults.draw(name, request.target, "range" in request.headers)
        try:
            return self._serve(request, wire, route, methods, entry, fault)
        except Cut:
            return self._reset(request, wire, entry)
        finally:
            self.log.decided(entry, 0, request.body.received, 0)  # where there was no answer
            self.log.finish(entry)

    def _serve(
        self,
        request: Request,
        wire: Wire,
        route: Route | None,
        methods: set[str],
        entry: LoggedRequest,
        fault: Fault | None,
    ) -> bool:
        if fault is None:
            return self._send(request, wire, self._answer(request, route, methods), entry, None)
        entry.fault = fault.what.value
        if fault.what is What.IGNORED_RANGE:
            request.headers.pop("range", None)
        if fault.what is What.RESET:
            request.body.cut_at = fault.upload_byte
        if fault.what is What.STALL and fault.at_byte is None and not fault.done:
            self.stalls.hold(fault.hold_s)
        if not fault.replaces_answer:
            reply = self._answer(request, route, methods)
            if fault.what is What.STALL and fault.at_byte is None and fault.done:
                self.stalls.hold(fault.hold_s)
            return self._send(request, wire, spoiled(reply, fault), entry, fault)
        if fault.done:
            self._answer(request, route, methods)
        if fault.what is What.RESET:
            return self._reset(request, wire, entry)
        if not request.body.unwanted:
            request.body.drain()
        if fault.what is What.GARBAGE:
            self.log.decided(entry, 0, request.body.received, 0)
            wire.send(b"\x00\xff\x16\x03 this is no HTTP \r\n\r\n\x80\r\n")
            return False
        reply = substitute(fault) or self._error(fault.status or 503, request, entry.route)
        if fault.retry_after is not None:
            reply.headers["Retry-After"] = fault.retry_after
        return self._send(request, wire, reply, entry, fault)

    def _error(self, status: int, request: Request, route: str) -> Reply:
        reply = self.failure(status, request, route)
        self.finish(request, reply)
        return reply

    def _reset(self, request: Request, wire: Wire, entry: LoggedRequest) -> bool:
        self.log.decided(entry, 0, request.body.received, 0)
        wire.reset()
        return False

    def _answer(self, request: Request, route: Route | None, methods: set[str]) -> Reply:
        """Let the service answer, and read what is left of the request."""
        try:
            if route is None:
                raise Refused(self.failure(405 if methods else 404, request, UNKNOWN))  # noqa: TRY301 - handled below
            reply = route.handler(request)
        except Refused as refused:
            reply = refused.reply
        except BadRequest:
            reply = self.failure(400, request, route.name if route else UNKNOWN)
        except (Cut, Disconnected):
            raise
        except Exception:
            logger.exception("the handler of %s failed", route.name if route else UNKNOWN)
            self.log.failed()
            reply = self.failure(500, request, route.name if route else UNKNOWN)
        if not request.body.unwanted:
            request.body.drain()
        self.finish(request, reply)
        return reply

    def _send(
        self, request: Request, wire: Wire, reply: Reply, entry: LoggedRequest | None, fault: Fault | None
    ) -> bool:
        """Send ``reply``, with what ``fault`` does to its way out; return whether the connection goes on."""
        reply.headers.setdefault("Date", http_date(self.clock.now()))
        sending = Sending(request, reply, fault)
        if entry is not None:
            self.log.decided(entry, reply.status, request.body.received, sending.bytes_out, cut=sending.cut)
        try:
            sending.run(wire, self.stalls)
        except Disconnected:
            if entry is not None:
                self.log.cut(entry, sending.bytes_out)
            raise
        return sending.keep_alive

    def _control(self, request: Request, wire: Wire) -> bool:
        route, request.params, methods = self._control_routes.find(request.method, request.path)
        if request.headers.get("x-fusekit-emulator") is None:
            # A web page can make a browser post to loopback, but not with a header of its own choice.
            reply = json_reply({"error": "the header X-Fusekit-Emulator is missing"}, 403)
        elif route is None:
            reply = json_reply({"error": f"no such control: {request.target}"}, 405 if methods else 404)
        else:
            try:
                reply = route.handler(request)
            except Exception as error:  # noqa: BLE001 - who steers is told what was wrong, whatever it was
                reply = json_reply({"error": f"{type(error).__name__}: {error}"}, 400)
        request.body.drain()
        wire.pace = None
        return self._send(request, wire, reply, None, None)
