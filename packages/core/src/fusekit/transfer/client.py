"""HTTP for backends over httpx: signed control calls, checked ranged reads, uploads of parts.

Transfer layer, and the only module that imports httpx. A backend holds a `Client` as `fusekit.types.Http`. One
request is one request: nothing is retried here but a 401, once, with renewed credentials, because only core knows
what is safe to repeat and how long to wait. ``fetch`` and ``send`` are the data plane's place: a faster one (h11 for
the heads, the bodies received straight into cache memory) can take them over behind the same protocol, using
`fusekit.transfer.body` and `fusekit.transfer.address` as they are; httpx then keeps control calls and proxies.

Nothing here shows a path, a query or a header value: any of them may be a secret.
"""

from __future__ import annotations

import http.cookiejar
import json as json_format
import logging
import re
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import attrs
import httpx

from fusekit import __version__
from fusekit.errors import BackendError, Corrupt, Invalid, TimedOut, Unavailable, Unreachable
from fusekit.transfer import trouble
from fusekit.transfer.address import Address, Params, parse_base
from fusekit.transfer.body import STATUSES, open_body, range_header
from fusekit.transfer.limits import Limits
from fusekit.transfer.status import error_for
from fusekit.types import Answer, Auth, Expect, Explain, Part, Sink

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 10.0
# Core's own deadlines (30 s) come first in a mount; this one is for whoever calls without any.
IDLE_TIMEOUT_S: Final = 60.0

_REDIRECTS_MAX: Final = 5
# A listing of a folder with a million entries and signed URLs stays below; an endless answer does not.
_ANSWER_BYTES_MAX: Final = 512 << 20
_ERROR_BYTES_MAX: Final = 64 << 10
# What one write to the socket takes; larger only delays cancellation, smaller costs CPU.
_SEND_BLOCK: Final = 256 << 10

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SUCCESS: Final = range(200, 300)
_CREDENTIALS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")

_Blocks = AsyncGenerator[bytes, None]


@attrs.define
class Traffic:
    """What went through a client since it was made. Bytes are those of bodies."""

    requests: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


class Client:
    """HTTP for the service at ``base_url``; implements `fusekit.types.Http`.

    Made anywhere, used under trio, closed by whoever made it. ``tls`` (else made with ``ca_file``) and ``limits`` are
    best shared by all clients of a mount: loading certificates takes milliseconds, and limits hold for a host, whoever
    asks.
    """

    def __init__(
        self,
        base_url: str,
        auth: Auth | None = None,
        explain: Explain | None = None,
        *,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        ca_file: Path | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        self.base = parse_base(base_url)
        self.traffic = Traffic()
        self._auth = auth
        self._explain = explain
        self._limits = limits or Limits()
        self._http = httpx.AsyncClient(
            verify=tls or trouble.tls_context(ca_file),
            follow_redirects=False,
            # A proxy from the environment is used, but never for this machine itself: an emulator or a Tahoe node.
            mounts={f"all://{host}": None for host in _LOOPBACK},
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=32, keepalive_expiry=30.0),
            # No timeout for the pool: how long to wait for one's turn is core's decision.
            timeout=httpx.Timeout(idle_timeout_s, connect=connect_timeout_s, pool=None),
            headers={"User-Agent": f"fusekit/{__version__}", "Accept": "*/*"},
        )
        # A session cookie would make one user's requests look like another's.
        self._http.cookies.jar.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        _silence_libraries()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Params | None = None,
        json: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        expect: Container[int] = _SUCCESS,
        signed: bool = True,
    ) -> Answer:
        """Make a control call and return the whole answer; ``expect`` are the statuses that are no error."""
        sent = dict(headers or {})
        if json is not None:
            content = json_format.dumps(json, separators=(",", ":")).encode()
            sent.setdefault("Content-Type", "application/json")

        async def body() -> bytes:
            return content or b""

        address = self.base.at(url, params)
        async with self._exchange(method, address, sent, body, signed, expect) as (response, final):
            return await self._answer(response, final, expect)

    async def send(
        self,
        url: str,
        part: Part,
        *,
        method: str = "PUT",
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        expect: Container[int] = _SUCCESS,
        signed: bool = True,
    ) -> Answer:
        """Send the bytes of ``part`` as the body and return the whole answer. Does not call ``part.done``."""
        length = part.stop - part.start
        sent = {**(headers or {}), "Content-Length": str(length)}

        async def body() -> _Upload:
            data = (await part.read()).cast("B")
            if len(data) != length:
                raise Corrupt(f"a part of {length} bytes came from the journal with {len(data)}")
            return _Upload(data, self.traffic)

        address = self.base.at(url, params)
        async with self._exchange(method, address, sent, body, signed, expect) as (response, final):
            return await self._answer(response, final, expect)

    async def fetch(
        self,
        url: str,
        start: int,
        stop: int | None,
        sink: Sink,
        *,
        headers: Mapping[str, str] | None = None,
        expect: Expect | None = None,
        signed: bool = True,
    ) -> Answer:
        """GET the bytes ``start`` to ``stop`` (None: the end) into ``sink`` and return status and headers, no body.

        A server that ignores the range sends the whole file; all of it goes to ``sink``, from offset 0. A redirect
        to another host (a service that hands out downloads from cloud storage) is followed without credentials.

        Raises:
            Corrupt: a short, over-long, shifted or encoded body. Stale: other content than ``expect``.
        """
        address = self.base.at(url)
        if stop is not None and stop <= start:
            return Answer(204, {}, b"", address.public)
        sent = {**(headers or {}), "Accept-Encoding": "identity"}
        asked = range_header(start, stop, expect)
        if asked is not None:
            sent["Range"] = asked
        async with self._exchange("GET", address, sent, _no_body, signed, STATUSES, True) as (response, final):
            if response.status_code not in STATUSES:
                await self._answer(response, final, ())
            answer = Answer(response.status_code, _lower(response), b"", final.public)
            body = open_body(answer.status, answer.headers, start, stop, expect, final.authority)
            if body is None:
                return answer
            try:
                async with aclosing(cast(_Blocks, response.aiter_raw())) as blocks:
                    async for block in blocks:
                        self.traffic.received_bytes += len(block)
                        await sink.write(block, at=body.take(len(block)))
            except httpx.RemoteProtocolError as error:
                raise body.cut_short() from error
            body.finish()
            if _left_over(response):
                raise Corrupt(f"{final.authority} sent more bytes than it announced")
            return answer

    async def _answer(self, response: httpx.Response, address: Address, expect: Container[int]) -> Answer:
        """Read the whole answer and return it, or raise what it says."""
        fine = response.status_code in expect
        content = await self._content(response, address, _ANSWER_BYTES_MAX if fine else _ERROR_BYTES_MAX, cut=not fine)
        answer = Answer(response.status_code, _lower(response), content, address.public)
        if fine:
            return answer
        if answer.status in _REDIRECTS:
            there = address.redirected(answer.headers.get("location", ""))
            where = "somewhere unusable" if there is None else there.server
            raise Unavailable(
                f"{address.authority} redirects to {where} instead of answering; is it the right address?",
                status=answer.status,
            )
        raise error_for(answer, self._explain)

    async def _content(self, response: httpx.Response, address: Address, size_max: int, *, cut: bool) -> bytes:
        """Return the decoded body; past ``size_max`` the rest is left away (``cut``) or an error."""
        content = bytearray()
        async with aclosing(cast(_Blocks, response.aiter_bytes())) as blocks:
            async for block in blocks:
                self.traffic.received_bytes += len(block)
                content += block
                if len(content) > size_max:
                    if cut:
                        break
                    raise Unavailable(f"{address.authority} sent an answer of more than {size_max} bytes")
        return bytes(content[:size_max])

    @asynccontextmanager
    async def _exchange(
        self,
        method: str,
        address: Address,
        headers: Mapping[str, str],
        body: _Body,
        signed: bool,
        expect: Container[int],
        elsewhere: bool = False,
    ) -> AsyncIterator[tuple[httpx.Response, Address]]:
        """Make the request and hold the answer open, after a renewed sign-in and redirects where these are due.

        Only what only reads is redirected by itself, and to another host only if ``elsewhere``.
        """
        renew = renewed = False
        for _ in range(_REDIRECTS_MAX + 2):
            sign = signed and self._auth is not None and address.origin == self.base.origin
            sent = dict(headers)
            if sign and self._auth is not None:
                # Before the turn at the host: renewing may need a request of its own there.
                sent |= await self._auth.headers(renew=renew)
                renew = False
            async with self._open(method, address, sent, body) as response:
                status = response.status_code
                if status == 401 and sign and not renewed:
                    renew = renewed = True
                    continue
                if status in _REDIRECTS and status not in expect and method in {"GET", "HEAD"}:
                    there = address.redirected(response.headers.get("location", ""))
                    same = there is not None and there.host == address.host
                    if there is not None and (same or elsewhere):
                        if there.origin != address.origin:
                            headers = {
                                name: value for name, value in headers.items() if name.lower() not in _CREDENTIALS
                            }
                        address = there
                        continue
                yield response, address
                return
        raise Unavailable(f"{address.authority} redirects in circles")

    @asynccontextmanager
    async def _open(
        self, method: str, address: Address, headers: Mapping[str, str], body: _Body
    ) -> AsyncIterator[httpx.Response]:
        """Send one request in its turn and hold the answer open; what goes wrong comes out as one of our errors."""
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise Invalid(f"a header for {address.authority} has characters that HTTP does not allow")
        async with self._limits.host(address.authority).turn():
            content = await body()
            began, received = time.monotonic(), self.traffic.received_bytes
            status = 0
            try:
                request = self._http.build_request(
                    method,
                    f"{address.server}{address.target}",
                    content=content or None,
                    headers=[(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()],
                    # httpx would tidy the URL up; the target is what goes over the wire.
                    extensions={"target": address.target.encode("ascii")},
                )
                self.traffic.requests += 1
                if isinstance(content, bytes):
                    self.traffic.sent_bytes += len(content)
                response = await self._http.send(request, stream=True)
                status = response.status_code
                try:
                    yield response
                finally:
                    if _left_over(response):
                        _never_again(response)
                    await response.aclose()
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
                raise _translated(error, address) from _shown(error)
            finally:
                logger.debug(
                    "%s %s: status %d, %d bytes, %.3f s",
                    method,
                    address.authority,
                    status,
                    self.traffic.received_bytes - received,
                    time.monotonic() - began,
                )


class _Upload:
    """The body of an upload in blocks. No async generator: one that is given up half-way needs somebody to close it."""

    def __init__(self, data: memoryview, traffic: Traffic) -> None:
        self._data = data
        self._traffic = traffic

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._data:
            raise StopAsyncIteration
        block, self._data = self._data[:_SEND_BLOCK], self._data[_SEND_BLOCK:]
        self._traffic.sent_bytes += len(block)
        # h11 joins what it is given, so that a view does as well as bytes, without the copy.
        return cast(bytes, block)


_Body = Callable[[], Awaitable[bytes | _Upload]]


async def _no_body() -> bytes:
    return b""


def _left_over(response: httpx.Response) -> bool:
    """Return whether bytes came after the end of the body, which the next answer on this connection would begin with.

    No public interface tells, and the library reads on where it stopped: without this, an over-long body is the
    answer to somebody else's request. A library that keeps its parser elsewhere makes this False, and a test fail.
    """
    found: Any = response.stream
    for name in ("_stream", "_httpcore_stream", "_stream", "_connection", "_h11_state"):
        found = getattr(found, name, None)
    return bool(getattr(found, "trailing_data", (b"", False))[0])


def _never_again(response: httpx.Response) -> None:
    """Make sure that the connection of ``response`` is not used for another request.

    A connection that is readable while idle counts as closed by the other side, and one shut down for reading is.
    """
    stream: Any = response.extensions.get("network_stream")
    with suppress(OSError, AttributeError, AssertionError):
        stream.get_extra_info("socket").shutdown(socket.SHUT_RD)


def _lower(response: httpx.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _translated(error: Exception, address: Address) -> BackendError:
    where = address.authority
    if isinstance(error, httpx.ConnectTimeout):
        return TimedOut(f"cannot connect to {where}: no answer")
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"{where} stopped answering")
    if isinstance(error, httpx.ProxyError):
        return Unavailable(f"the proxy does not connect to {where}")
    if isinstance(error, httpx.ConnectError):
        kind = Unreachable if trouble.unreachable(error) else Unavailable
        return kind(trouble.describe(error, where, address.host, connected=False))
    if isinstance(error, httpx.RemoteProtocolError):
        gone = "disconnected" in str(error) or "peer closed" in str(error)
        return Unavailable(f"{where} " + ("ended the connection in mid-answer" if gone else "sent what is not HTTP"))
    if isinstance(error, httpx.DecodingError):
        return Unavailable(f"{where} sent an answer that does not decompress")
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol | httpx.InvalidURL):
        return Invalid(f"this cannot be asked of {where}")
    return Unavailable(trouble.describe(error, where, address.host, connected=True))


def _shown(error: Exception) -> Exception | None:
    """Return the cause to keep for a traceback, None where its text may quote a header or a body."""
    quoting = (httpx.LocalProtocolError, httpx.RemoteProtocolError, httpx.InvalidURL, httpx.DecodingError)
    return None if isinstance(error, quoting) else error


class _HostOnly(logging.Filter):
    """Cuts URLs in the records of a library down to their host."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                f"{value.scheme}://{value.netloc.decode('ascii')}" if isinstance(value, httpx.URL) else value
                for value in record.args
            )
        return True


_HOST_ONLY: Final = _HostOnly()


def _silence_libraries() -> None:
    """Keep other people's log records from holding our secrets.

    httpx logs each URL, signatures included; httpcore logs headers, at DEBUG, where a redirect's Location is one.
    """
    logging.getLogger("httpx").addFilter(_HOST_ONLY)
    logging.getLogger("httpcore").setLevel(logging.INFO)
