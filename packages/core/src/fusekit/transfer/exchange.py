"""What one HTTP request is, and what its answer can do, whoever carries it: the data plane or the HTTP library.

Transfer layer, without I/O. The client decides what is asked, of whom and how it is signed; a carrier makes a `Reply`
of the answer and hands it to the client's ``use`` while the answer is open.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol, TypeVar

import attrs

from fusekit.transfer.address import Address
from fusekit.transfer.body import Body
from fusekit.types import Sink

T = TypeVar("T")

# What answers are asked for in and unpacked from, where it is not the bytes of a file. Both are in the standard library.
ENCODINGS: Final = "gzip, deflate"

_DEFAULT_PORTS: Final = frozenset({("http", 80), ("https", 443)})
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})


@attrs.define
class Traffic:
    """What went through a client since it was made. Bytes are those of bodies."""

    requests: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


@attrs.frozen
class Deadlines:
    """For how long nothing may happen, in seconds.

    ``answer`` is the whole head of an answer, from when the request has left; each interim answer starts it again.
    ``idle`` is for every other byte, in either direction. What a sink takes for itself does not count.
    """

    connect: float
    answer: float
    idle: float


@attrs.frozen
class Ask:
    """One request. ``headers`` were checked: nothing in them can end a line."""

    method: str
    address: Address
    headers: Mapping[str, str] = attrs.field(repr=False)
    content: bytes | memoryview = attrs.field(default=b"", repr=False)

    def fields(self, agent: str) -> list[tuple[str, str]]:
        """Return all headers that go out, in order; what the caller gave takes the place of ours."""
        given = {name.lower() for name in self.headers}
        where = self.address
        # The port that goes without saying is left away: signatures over the headers are made without it.
        host = where.authority.rpartition(":")[0] if (where.scheme, where.port) in _DEFAULT_PORTS else where.authority
        ours = [("Host", host), ("User-Agent", agent), ("Accept", "*/*"), ("Accept-Encoding", ENCODINGS)]
        if self.content or self.method in _WITH_BODY:
            ours.append(("Content-Length", str(len(self.content))))
        return [pair for pair in ours if pair[0].lower() not in given] + list(self.headers.items())


class Reply(Protocol):
    """An answer whose head is there. ``headers`` by lower-case name, those that came twice joined by a comma."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...

    async def into(self, sink: Sink, body: Body, start: int, stop: int | None) -> None:
        """Bring all that comes to ``sink``, checked by ``body``; ``start`` to ``stop`` is what was asked for.

        Raises:
            Corrupt: the body is cut, or followed by more. Stale: by ``body``.
        """

    async def read(self, size_max: int) -> bytes | None:
        """Return the body, unpacked; None if it is longer than ``size_max``.

        Raises:
            Unavailable: it is cut or does not unpack.
        """

    async def peek(self, size_max: int) -> bytes:
        """Return the first ``size_max`` bytes of the body, unpacked, or what there is of them: for error messages."""


Use = Callable[[Reply], Awaitable[T]]


class Undecodable(Exception):
    """A body is not in the encoding that its head names."""


class Decoder:
    """Unpacks a body as it comes, never to more than ``size_max`` bytes: a small body can stand for a very large one."""

    def __init__(self, encoding: str, size_max: int) -> None:
        names = [name.strip().lower() for name in encoding.split(",")]
        names = [name for name in names if name not in {"", "identity"}]
        if len(names) > 1 or not set(names) <= {"gzip", "x-gzip", "deflate"}:
            raise Undecodable
        # 32: gzip or zlib, whichever it is. What is called "deflate" is now and then without the zlib header.
        self._unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if names else None
        self._raw = bool(names) and names[0] == "deflate"
        self._size_max = size_max
        self._began = False
        self.content = bytearray()

    @property
    def full(self) -> bool:
        """Return whether there is more than was wanted."""
        return len(self.content) > self._size_max

    def add(self, data: bytes | memoryview) -> None:
        """Take the next bytes as they came; not after ``full``.

        Raises:
            Undecodable: they are not in the encoding.
        """
        if self._unpack is None:
            self.content += data
            return
        self._began = True
        try:
            self.content += self._unpack.decompress(data, self._size_max + 1 - len(self.content))
        except zlib.error:
            if not self._raw or self.content:
                raise Undecodable from None
            self._raw = False
            self._unpack = zlib.decompressobj(-zlib.MAX_WBITS)
            self.add(data)

    def finish(self) -> None:
        """Check that nothing is missing.

        Raises:
            Undecodable: the packed form ends too early.
        """
        if self._unpack is not None and self._began and not self._unpack.eof and not self.full:
            raise Undecodable
