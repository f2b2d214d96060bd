"""A threaded HTTP/1.1 server that lets whoever answers also misbehave: cut, reset, hold, or send what is no HTTP.

Part of the emulator base; standard library only. One thread a connection, keep-alive, request bodies with a length
or chunked, ``Expect: 100-continue``, TLS. Bodies move in blocks: a download is `sendfile` (TLS: reads of one block),
an upload one buffer. `http.server` is not used: it parses a head in more time than all of the rest takes, and
offers no way to break the protocol on purpose.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from typing import Final
from urllib.parse import parse_qsl, unquote

import attrs

from fusekit.testing.blobs import Stretch

logger = logging.getLogger(__name__)

BLOCK: Final = 256 << 10
HEAD_BYTES_MAX: Final = 64 << 10
_SENDFILE_BYTES: Final = 8 << 20  # a call: long enough to cost nothing, short enough that counters move
_JOIN_S: Final = 5.0
_ACCEPT_AGAIN_S: Final = 0.05  # out of descriptors: one is free as soon as a client leaves


class Disconnected(Exception):
    """The other end is gone, or sent what is no HTTP; there is nobody to answer."""


class Cut(Exception):
    """The place in the request's body at which this connection is to break was reached."""


class BadRequest(Exception):
    """The head of a request cannot be understood."""


class BodyTooLong(BadRequest):
    """A request's body is longer than its reader takes."""


class Body:
    """The body of a request, read in blocks. ``received`` counts its bytes; ``cut_at`` raises `Cut` at that count."""

    def __init__(self, reader: io.BufferedReader, length: int | None, go_ahead: Callable[[], None] | None) -> None:
        self._reader = reader
        self._length = length  # None: chunked
        self._go_ahead = go_ahead
        self._left = length or 0  # of the stretch of plain bytes under way: the whole body, or one chunk
        self._ended = length == 0
        self.received = 0
        self.cut_at: int | None = None

    @property
    def length(self) -> int | None:
        """Return the announced number of bytes; None where the body is chunked."""
        return self._length

    @property
    def ended(self) -> bool:
        """Return whether all of the body was read."""
        return self._ended

    @property
    def unwanted(self) -> bool:
        """Return whether the client still waits for "100 Continue" before it sends the body."""
        return self._go_ahead is not None and not self._ended

    def blocks(self, size: int = BLOCK) -> Iterator[memoryview]:
        """Yield the bytes in order, in pieces of at most ``size``; a piece is valid until the next is asked for."""
        if self._ended:
            return
        if self._go_ahead is not None:
            go_ahead, self._go_ahead = self._go_ahead, None
            go_ahead()
        view = memoryview(bytearray(min(size, self._length) if self._length is not None else size))
        while not self._ended:
            if not self._left:
                self._left = self._next_chunk()
                continue
            room = min(self._left, len(view))
            if self.cut_at is not None:
                room = min(room, self.cut_at - self.received)
                if room <= 0:
                    raise Cut
            got = self._reader.readinto(view[:room])
            if not got:
                raise Disconnected("the request's body ended early")
            self._left -= got
            self.received += got
            if not self._left and self._length is not None:
                self._ended = True
            elif not self._left and self._reader.readline(4).strip():
                raise Disconnected("a chunk is longer than it said")
            yield view[:got]

    def read(self, bytes_max: int = 256 << 20) -> bytes:
        """Return all of the body.

        Raises:
            BodyTooLong: it is longer than ``bytes_max``.
        """
        whole = bytearray()
        for block in self.blocks():
            whole += block
            if len(whole) > bytes_max:
                raise BodyTooLong("the body is too long")
        return bytes(whole)

    def drain(self) -> None:
        """Read what is left and throw it away: an answer to a client that still sends would be lost in a reset."""
        for _ in self.blocks():
            pass

    def _next_chunk(self) -> int:
        """Read the head of a chunk and return its size; the last one is empty and ends the body."""
        line = self._reader.readline(1024)
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError as error:
            raise Disconnected("a chunk has no size") from error
        if not size:
            while self._reader.readline(HEAD_BYTES_MAX).strip():
                pass
            self._ended = True
        return size


@attrs.define(eq=False)
class Request:
    """One request. ``path`` is as sent (percent-encoded), header names are lower-case, ``params`` come from the route."""

    method: str
    path: str
    query_string: str
    headers: dict[str, str]
    body: Body
    connection: int
    keep_alive: bool
    params: dict[str, str] = attrs.field(factory=dict)

    @property
    def query(self) -> dict[str, str]:
        """Return the query's values by name; of a name given twice the last."""
        return dict(parse_qsl(self.query_string, keep_blank_values=True))

    @property
    def target(self) -> str:
        """Return path and query with percent-escapes undone, for matching and for people."""
        return unquote(self.path) + ("?" + unquote(self.query_string) if self.query_string else "")


class Wire:
    """The way back to the client. ``sent`` counts the bytes; ``pace`` is called with each count before it is sent."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._plain = not isinstance(sock, ssl.SSLSocket)
        self.sent = 0
        self.pace: Callable[[int], None] | None = None

    def send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send ``data``; ``more`` says that the next bytes follow at once, so that both share a packet."""
        with _gone():
            if self.pace is not None:
                view = memoryview(data)
                for start in range(0, len(view), 64 << 10):
                    piece = view[start : start + (64 << 10)]
                    self.pace(len(piece))
                    self._socket.sendall(piece)
            elif more and self._plain:
                self._socket.sendall(data, socket.MSG_MORE)
            else:
                self._socket.sendall(data)
        self.sent += len(data)

    def send_stretch(self, stretch: Stretch) -> None:
        """Send bytes of a blob, from a file without a copy in this process."""
        blob, start, stop = stretch.blob, stretch.start, stretch.stop
        if blob.path is None:
            self.send(memoryview(blob.data)[start:stop])
            return
        file = os.open(blob.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if self._plain and self.pace is None:
                self._sendfile(file, start, stop)
            else:
                view = memoryview(bytearray(min(BLOCK, max(1, stop - start))))
                while start < stop:
                    got = os.preadv(file, [view[: min(len(view), stop - start)]], start)
                    if not got:
                        raise Disconnected(f"{blob.path} is shorter than it was")
                    self.send(view[:got])
                    start += got
        finally:
            os.close(file)

    def reset(self) -> None:
        """End the connection with a reset: what the client has not read yet is lost to it."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Closing the descriptor is not enough while the reader holds the socket: detach and close it for good.
        with contextlib.suppress(OSError):
            os.close(self._socket.detach())

    def _sendfile(self, file: int, start: int, stop: int) -> None:
        out = self._socket.fileno()
        with _gone():
            while start < stop:
                got = os.sendfile(out, file, start, min(_SENDFILE_BYTES, stop - start))
                if not got:
                    raise Disconnected("a file is shorter than it was")
                start += got
                self.sent += got


Handler = Callable[[Request, Wire], bool]
"""Answers one request on the wire and returns whether the connection can take another."""


class Server:
    """Listens on ``host`` (port 0: a free one) and gives each request to ``handler``, in a thread a connection."""

    def __init__(self, handler: Handler, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._handler = handler
        self._tls = tls
        self._lock = threading.Lock()
        self._connections: dict[int, tuple[socket.socket, threading.Thread]] = {}
        self._last = 0
        self._closing = False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name=f"emulator-{self.port}", daemon=True)

    def start(self) -> None:
        """Begin to accept connections."""
        self._thread.start()

    def close(self) -> None:
        """Refuse new connections, break the ones that are open and wait for their threads."""
        with self._lock:
            self._closing = True
            open_now = list(self._connections.values())
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock, _ in open_now:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for _, thread in open_now:
            thread.join(_JOIN_S)
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    @property
    def connections(self) -> int:
        """Return how many connections were accepted so far."""
        return self._last

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if self._closing:
                    return
                logger.warning("a connection could not be accepted: %s", error)
                time.sleep(_ACCEPT_AGAIN_S)
                continue
            with self._lock:
                if self._closing:
                    sock.close()
                    return
                self._last += 1
                number = self._last
                thread = threading.Thread(
                    target=self._serve, args=(sock, number), name=f"request-{number}", daemon=True
                )
                self._connections[number] = sock, thread
                thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = tls = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                with self._lock:  # `close` must find the socket that lives, also in the middle of the handshake
                    self._connections[number] = sock, threading.current_thread()
                tls.do_handshake()
            self._converse(sock, number)
        except (OSError, Disconnected) as error:
            logger.debug("connection %d ended: %s", number, error)
        finally:
            with self._lock:
                self._connections.pop(number, None)
            _close(sock)

    def _converse(self, sock: socket.socket, number: int) -> None:
        wire = Wire(sock)
        with sock.makefile("rb") as reader:
            while True:
                try:
                    request = _read_request(reader, wire, number)
                except BadRequest as error:
                    text = f"{error}\n".encode()
                    head = f"HTTP/1.1 400 Bad Request\r\nDate: {formatdate(usegmt=True)}\r\nConnection: close\r\n"
                    wire.send(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
                    return
                if request is None or not self._handler(request, wire):
                    return


def _read_request(reader: io.BufferedReader, wire: Wire, number: int) -> Request | None:
    line = _line(reader, HEAD_BYTES_MAX)
    if line == b"":
        line = _line(reader, HEAD_BYTES_MAX)  # one empty line before a request is allowed
    if line is None:
        return None
    words = line.decode("latin-1").split()
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequest("that is no HTTP/1.1 request")
    method, target, version = words
    headers: dict[str, str] = {}
    left = HEAD_BYTES_MAX
    while line := _line(reader, left):
        left -= len(line) + 2
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or left <= 0:
            raise BadRequest("the headers are malformed or too long")
        name = name.strip().lower()
        headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    if line is None:
        raise Disconnected("the request's head ended early")
    if "://" in target.partition("?")[0]:  # the absolute form, as sent through proxies
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, query = target.partition("?")
    keep_alive = version != "HTTP/1.0" and headers.get("connection", "").lower() != "close"
    return Request(method, path, query, headers, _body(reader, wire, headers), number, keep_alive)


def _body(reader: io.BufferedReader, wire: Wire, headers: Mapping[str, str]) -> Body:
    go_ahead = None
    if headers.get("expect", "").lower() == "100-continue":

        def go_ahead() -> None:
            wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    if headers.get("transfer-encoding", "").lower() == "chunked":
        return Body(reader, None, go_ahead)
    try:
        length = int(headers.get("content-length", "0"))
    except ValueError as error:
        raise BadRequest("Content-Length is no number") from error
    if length < 0:
        raise BadRequest("Content-Length is negative")
    return Body(reader, length, go_ahead)


def _line(reader: io.BufferedReader, bytes_max: int) -> bytes | None:
    """Return the next line without its end, None at the end of the stream."""
    line = reader.readline(max(1, bytes_max))
    if not line:
        return None
    if not line.endswith(b"\n"):
        if len(line) >= bytes_max:
            raise BadRequest("a header is too long")
        raise Disconnected("the request's head ended early")
    return line.rstrip(b"\r\n")


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise Disconnected(f"the client is gone: {error}") from error


def _close(sock: socket.socket) -> None:
    # A FIN first, so that the client gets all that was sent even where it still talks.
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(OSError):
        sock.close()
