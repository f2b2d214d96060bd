"""HTTP for backends: signed control calls, checked ranged reads, uploads of parts.

Transfer layer. A backend holds a `Client` as `fusekit.types.Http`. Here is decided what is asked of whom: how it is
signed, where a redirect may lead, which turn it waits for, which error an answer stands for. The bytes are moved by
a carrier (`fusekit.transfer.carriers`): connections of our own, or the HTTP library where those do not do. One request
is one request: nothing is retried here but a 401, once, with renewed credentials, because only core knows what is safe
to repeat and how long to wait.

Nothing here shows a path, a query or a header value: any of them may be a secret.
"""

from __future__ import annotations

import json as json_format
import logging
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Container, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Self

from fusekit import __version__
from fusekit.errors import Corrupt, Invalid, Unavailable
from fusekit.transfer import trouble
from fusekit.transfer.address import Address, Params, parse_base
from fusekit.transfer.body import STATUSES, open_body, range_header
from fusekit.transfer.carriers import Carriers
from fusekit.transfer.exchange import Ask, Deadlines, Reply, T, Traffic, Use
from fusekit.transfer.limits import Limits, Turn
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

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SUCCESS: Final = range(200, 300)
_CREDENTIALS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_AGENT: Final = f"fusekit/{__version__}"

_Body = Callable[[], Awaitable[bytes | memoryview]]
_Judge = Callable[[Reply, Address], Awaitable[Answer]]


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
        self._carriers = Carriers(
            tls or trouble.tls_context(ca_file),
            Deadlines(connect_timeout_s, idle_timeout_s, idle_timeout_s),
            self.traffic,
            _AGENT,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._carriers.aclose()

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
        return await self._exchange(method, address, sent, body, signed, expect, partial(self._answer, expect))

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

        async def body() -> memoryview:
            data = (await part.read()).cast("B")
            if len(data) != length:
                raise Corrupt(f"a part of {length} bytes came from the journal with {len(data)}")
            return data

        address = self.base.at(url, params)
        return await self._exchange(method, address, sent, body, signed, expect, partial(self._answer, expect))

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

        async def take(reply: Reply, final: Address) -> Answer:
            if reply.status not in STATUSES:
                return await self._answer((), reply, final)
            answer = Answer(reply.status, reply.headers, b"", final.public)
            body = open_body(answer.status, answer.headers, start, stop, expect, final.authority)
            if body is not None:
                await reply.into(sink, body, start, stop)
            return answer

        return await self._exchange("GET", address, sent, _no_body, signed, STATUSES, take, elsewhere=True)

    async def _answer(self, expect: Container[int], reply: Reply, address: Address) -> Answer:
        """Read the whole answer and return it, or raise what it says."""
        if reply.status in expect:
            content = await reply.read(_ANSWER_BYTES_MAX)
            if content is None:
                raise Unavailable(f"{address.authority} sent an answer of more than {_ANSWER_BYTES_MAX} bytes")
            return Answer(reply.status, reply.headers, content, address.public)
        answer = Answer(reply.status, reply.headers, await reply.peek(_ERROR_BYTES_MAX), address.public)
        if answer.status in _REDIRECTS:
            there = address.redirected(answer.headers.get("location", ""))
            where = "somewhere unusable" if there is None else there.server
            raise Unavailable(
                f"{address.authority} redirects to {where} instead of answering; is it the right address?",
                status=answer.status,
            )
        raise error_for(answer, self._explain)

    async def _exchange(
        self,
        method: str,
        address: Address,
        headers: Mapping[str, str],
        body: _Body,
        signed: bool,
        expect: Container[int],
        judge: _Judge,
        *,
        elsewhere: bool = False,
    ) -> Answer:
        """Make the request and return what ``judge`` makes of the answer, after a renewed sign-in and redirects.

        Only what only reads is redirected by itself, and to another host only if ``elsewhere``.
        """
        renew = renewed = False
        for _ in range(_REDIRECTS_MAX + 2):
            auth = self._auth if signed and address.origin == self.base.origin else None
            # Before the turn at the host: renewing may need a request of its own there.
            sent = headers if auth is None else {**headers, **await auth.headers(renew=renew)}
            may_renew = auth is not None and not renewed
            follows = method in {"GET", "HEAD"}
            use = partial(_judged, judge, address, expect, may_renew, follows, elsewhere)
            found = await self._open(method, address, sent, body, use)
            if isinstance(found, Answer):
                return found
            renew = found is None
            renewed = renewed or renew
            if found is not None:
                if found.origin != address.origin:
                    headers = {name: value for name, value in headers.items() if name.lower() not in _CREDENTIALS}
                address = found
        raise Unavailable(f"{address.authority} redirects in circles")

    async def _open(self, method: str, address: Address, headers: Mapping[str, str], body: _Body, use: Use[T]) -> T:
        """Send one request in its turn and return what ``use`` makes of the answer; trouble is one of our errors."""
        for name, value in headers.items():
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise Invalid(f"a header for {address.authority} has characters that HTTP does not allow")
        async with self._limits.host(address.authority).turn() as turn:
            ask = Ask(method, address, headers, await body())
            began, received = time.monotonic(), self.traffic.received_bytes
            self.traffic.requests += 1
            seen = _Seen(turn, use)
            try:
                return await self._carriers.exchange(ask, seen)
            finally:
                logger.debug(
                    "%s %s: status %d, %d bytes, %.3f s",
                    method,
                    address.authority,
                    seen.status,
                    self.traffic.received_bytes - received,
                    time.monotonic() - began,
                )


class _Seen(Generic[T]):
    """Tells the limit of the host what came back, and lets the answer be used."""

    def __init__(self, turn: Turn, use: Use[T]) -> None:
        self._turn = turn
        self._use = use
        self.status = 0

    async def __call__(self, reply: Reply) -> T:
        self.status = reply.status
        self._turn.answered(reply.status, reply.headers)
        return await self._use(reply)


async def _judged(
    judge: _Judge,
    address: Address,
    expect: Container[int],
    may_renew: bool,
    follows: bool,
    elsewhere: bool,
    reply: Reply,
) -> Answer | Address | None:
    """Return the answer, or where it leads, or None where the request is to be signed anew."""
    if reply.status == 401 and may_renew:
        return None
    if reply.status in _REDIRECTS and reply.status not in expect and follows:
        there = address.redirected(reply.headers.get("location", ""))
        if there is not None and (elsewhere or there.host == address.host):
            return there
    return await judge(reply, address)


async def _no_body() -> bytes:
    return b""
