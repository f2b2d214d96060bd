"""The HTTP library as a carrier: for hosts behind a proxy, and for what else the data plane does not speak.

Transfer layer, the only module that imports httpx, and itself imported only where one of those hosts is asked: the
library takes as long to import as all the rest. It carries the same requests to the same kind of reply, with several
times the CPU (`fusekit.transfer.wire`).
"""

from __future__ import annotations

import http.cookiejar
import importlib.util
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final, cast

import httpx

from fusekit.errors import BackendError, Corrupt, Invalid, TimedOut, Unavailable, Unreachable
from fusekit.transfer import trouble
from fusekit.transfer.address import Address
from fusekit.transfer.body import Body
from fusekit.transfer.exchange import Ask, Deadlines, Decoder, T, Traffic, Undecodable, Use
from fusekit.types import Sink

# What one write to the socket takes; larger only delays cancellation, smaller costs CPU.
_SEND_BLOCK: Final = 256 << 10
_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")

_Blocks = AsyncGenerator[bytes, None]


class Library:
    """Carries requests with httpx, through the proxies that the environment names; ``http2`` where it is installed."""

    def __init__(
        self, tls: ssl.SSLContext, deadlines: Deadlines, traffic: Traffic, agent: str, *, http2: bool = False
    ) -> None:
        self._traffic = traffic
        self._agent = agent
        self._http = httpx.AsyncClient(
            verify=tls,
            http2=http2 and speaks_http2(),
            follow_redirects=False,
            # A proxy from the environment is used, but never for this machine itself: an emulator or a Tahoe node.
            mounts={f"all://{host}": None for host in _LOOPBACK},
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=32, keepalive_expiry=30.0),
            # No timeout for the pool: how long to wait for one's turn is core's decision.
            timeout=httpx.Timeout(deadlines.idle, connect=deadlines.connect, pool=None),
        )
        # A session cookie would make one user's requests look like another's.
        self._http.cookies.jar.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        _silence_libraries()

    def has_proxy_for(self, address: Address) -> bool:
        """Return whether the environment names a proxy for ``address``."""
        transport: object = self._http._transport_for_url(httpx.URL(address.server))
        return transport is not self._http._transport

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def exchange(self, ask: Ask, use: Use[T]) -> T:
        """Make the request and return what ``use`` makes of the answer; what goes wrong comes out as one of our errors."""
        content = ask.content
        try:
            request = self._http.build_request(
                ask.method,
                f"{ask.address.server}/",
                content=(_Upload(content, self._traffic) if isinstance(content, memoryview) else content) or None,
                headers=[(name.encode("ascii"), value.encode("latin-1")) for name, value in ask.fields(self._agent)],
            )
            request.url = _Exact(f"{ask.address.server}/", ask.address.target)
            if isinstance(content, bytes):
                self._traffic.sent_bytes += len(content)
            response = await self._http.send(request, stream=True)
            try:
                return await use(_Reply(response, self._traffic, ask.address.authority))
            finally:
                if _left_over(response):
                    _never_again(response)
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise _translated(error, ask.address) from _shown(error)


class _Reply:
    """A response of the library as `fusekit.transfer.exchange.Reply`."""

    def __init__(self, response: httpx.Response, traffic: Traffic, where: str) -> None:
        self._response = response
        self._traffic = traffic
        self._where = where
        self.status = response.status_code
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}

    async def into(self, sink: Sink, body: Body, start: int, stop: int | None) -> None:
        """See `Reply.into`; nothing goes into an inlet's own memory here."""
        try:
            async with aclosing(cast(_Blocks, self._response.aiter_raw())) as blocks:
                async for block in blocks:
                    self._traffic.received_bytes += len(block)
                    await sink.write(block, at=body.take(len(block)))
        except httpx.RemoteProtocolError as error:
            raise body.cut_short() from error
        body.finish()
        if _left_over(self._response):
            raise Corrupt(f"{body.host} sent more bytes than it announced")

    async def read(self, size_max: int) -> bytes | None:
        """See `Reply.read`."""
        try:
            decoder = Decoder(self.headers.get("content-encoding", ""), size_max)
            await self._decode(decoder)
            if decoder.full:
                return None
            decoder.finish()
        except Undecodable:
            raise Unavailable(f"{self._where} sent an answer that does not decompress") from None
        return bytes(decoder.content)

    async def peek(self, size_max: int) -> bytes:
        """See `Reply.peek`."""
        try:
            decoder = Decoder(self.headers.get("content-encoding", ""), size_max)
        except Undecodable:
            return b""
        with suppress(Undecodable, httpx.HTTPError):
            await self._decode(decoder)
        return bytes(decoder.content[:size_max])

    async def _decode(self, decoder: Decoder) -> None:
        async with aclosing(cast(_Blocks, self._response.aiter_raw())) as blocks:
            async for block in blocks:
                self._traffic.received_bytes += len(block)
                decoder.add(block)
                if decoder.full:
                    return


class _Exact(httpx.URL):
    """A URL whose target goes over the wire as it is; httpx would tidy it up.

    Its own means for that, the extension "target", would also be what a proxy is asked to connect to.
    """

    def __init__(self, server: str, target: str) -> None:
        super().__init__(server)
        self._target = target.encode("ascii")

    @property
    def raw_path(self) -> bytes:
        return self._target


class _Upload:
    """The body of an upload in blocks. No async generator: one that is given up half-way needs somebody to close it."""

    def __init__(self, data: memoryview, traffic: Traffic) -> None:
        self._data = data
        self._traffic = traffic

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._data:
            raise StopAsyncIteration
        block, self._data = self._data[:_SEND_BLOCK], self._data[_SEND_BLOCK:]
        self._traffic.sent_bytes += len(block)
        # h11 joins what it is given, so that a view does as well as bytes, without the copy.
        return cast(bytes, block)


def speaks_http2() -> bool:
    """Return whether the optional package is there without which the library speaks HTTP/1.1 only."""
    return importlib.util.find_spec("h2") is not None


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
