"""One HTTP/1.1 connection on trio: heads by h11, bodies by ``recv_into`` straight to where they stay.

Transfer layer, the only module that imports h11; what a connection was asked and whether it is used again is the
pool's decision (`fusekit.transfer.pool`). One task at a time uses a connection, and nobody else has its socket.

The socket is non-blocking: an operation is tried, and only where the kernel has nothing to give the task waits. So a
fast sender costs no more system calls than it needs. A task that never had to wait gives way once for each block all
the same, else one fast body would hold up everybody else in the loop.

An answer in which anything is not what HTTP says is no answer: the connection ends, and nothing of it is believed.
"""

from __future__ import annotations

import math
import re
import select
import socket
import ssl
from collections.abc import Mapping
from typing import Final

import h11
import trio

from fusekit.errors import Corrupt, Invalid, Unavailable
from fusekit.transfer.body import Body
from fusekit.transfer.exchange import Ask, Deadlines, Decoder, Undecodable
from fusekit.transfer.inlet import inlet_of
from fusekit.types import Sink

# One read of a body. The kernel gives what it has, seldom more than this; more at a time holds the loop up for longer
# than a millisecond. A TLS read is a record of 16 KiB at most: as many are taken in a row as make up this much.
BLOCK: Final = 256 << 10
# One read of a head: enough for a head and a small body in one system call, little enough to copy.
_HEAD_BLOCK: Final = 16 << 10
# Signed URLs in a Location header and cookies of proxies stay well below; an endless head does not.
HEAD_MAX: Final = 64 << 10
# A service that works for long may say so every second (102); one that floods us is cut off.
INTERIM_MAX: Final = 100
# A body up to this size leaves in one piece with its head, which costs a copy and saves a system call and a packet.
_TOGETHER: Final = 16 << 10
# What is worth reading to keep a connection: less than what a new one costs, and for no longer than a new one takes.
_DRAIN_MAX: Final = 64 << 10
_DRAIN_S: Final = 0.5
# Bytes that may wait unsent in the kernel before a socket counts as writable; trio's own 16 KiB mean many small waits.
_UNSENT_MAX: Final = 512 << 10

# Buffers that nobody uses; as many bodies at once are seldom, and each is a quarter of a MiB.
_BUFFERS_KEPT: Final = 8

_BODILESS: Final = frozenset({204, 304})


_METHOD: Final = re.compile(r"[A-Z]{1,32}")


def _known(method: str) -> h11.Request:
    return h11.Request(method=method, target="/", headers=[("host", "")])


_METHODS: Final = {method: _known(method) for method in ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE")}


class Broken(Exception):
    """The connection is of no use any more; ``__cause__`` is why, if the system or OpenSSL said it."""


class Ended(Broken):
    """The other side closed it. ``cut``: without saying so, which with TLS means that anybody on the way may have."""

    def __init__(self, *, cut: bool = False) -> None:
        super().__init__()
        self.cut = cut


class Garbled(Broken):
    """What came is not HTTP, or not as much of it as was announced. Says nothing: the text may quote a header."""


async def connect(host: str, port: int, tls: ssl.SSLContext | None) -> socket.socket:
    """Return a connected socket, non-blocking, after the handshake where ``tls`` is given.

    Raises:
        OSError: no address answers, or no handshake; the reason is behind it.
    """
    stream = await trio.open_tcp_stream(host, port)
    sock = socket.socket(fileno=stream.socket.detach())
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_MAX)
        if tls is None:
            return sock
        # The context is the mount's; the library sets another list on it where a server wants HTTP/2.
        tls.set_alpn_protocols(["http/1.1"])
        secure = tls.wrap_socket(
            sock, server_hostname=host, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )  # fmt: skip
        sock = secure
        while True:
            try:
                secure.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(secure)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(secure)
            else:
                return secure
    except BaseException:
        sock.close()
        raise


class Connection:
    """A connection, and the answer that is on it: implements `fusekit.transfer.exchange.Reply`.

    For each request the pool calls `ask`, lets the client use the answer, and then `finish`; ``reusable`` says whether
    the next request may have it. ``received`` and ``sent`` count the bytes of the bodies of this request. ``buffers``
    are blocks that nobody uses at the moment; `give_back` puts the one that was taken back.
    """

    def __init__(self, sock: socket.socket, deadlines: Deadlines, buffers: list[memoryview]) -> None:
        self._sock = sock
        self._buffers = buffers
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._deadlines = deadlines
        self._scope = trio.CancelScope()
        self._answer_by = math.inf
        self._method = self._where = ""
        self._buffer: memoryview | None = None
        self.reused = False
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX)
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.received = self.sent = 0
        self.heard = False  # whether any byte of an answer came
        self._ran = False  # whether there was a read since the task last waited
        self._left: int | None = 0  # of the body; None: its end is marked in the body, or by the end of the connection
        self._rest = memoryview(b"")  # of the body, come along with the head
        self._complete = self._keep = False
        self._over = False  # whether bytes came behind the end

    @property
    def reusable(self) -> bool:
        """Return whether the answer was read to its end and another request may follow."""
        return self._complete and self._keep and not self._over

    @property
    def quiet(self) -> bool:
        """Return whether nothing came since the last answer: neither bytes that are no answer nor the end."""
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return False
        look = select.poll()
        look.register(self._sock, select.POLLIN)
        return not look.poll(0)

    def give_back(self) -> None:
        """Put the buffer back: this connection has nothing to receive for now."""
        if self._buffer is not None and len(self._buffers) < _BUFFERS_KEPT:
            self._buffers.append(self._buffer)
        self._buffer = None

    def close(self) -> None:
        """Close the socket, whatever is on it."""
        self._sock.close()

    # ---- the request -------------------------------------------------------------------------------------------

    async def ask(self, ask: Ask, agent: str, scope: trio.CancelScope) -> None:
        """Send the request and read the head of the answer; ``scope`` is cancelled when nothing moves for too long.

        A server that refuses before it has read the body is heard, whether it closes the connection or not.

        Raises:
            Broken: there is no answer. Unavailable: it claims success, before the request was sent.
        """
        self._reset()
        self._scope = scope
        self._method, self._where = ask.method, ask.address.authority
        head = self._head_of(ask, agent)
        content = memoryview(ask.content).cast("B") if ask.content else memoryview(b"")
        if len(content) <= _TOGETHER:
            await self._send_small(head, content)
        else:
            await self._send_large(head, content)
        if not self.status:
            self._answer_by = trio.current_time() + self._deadlines.answer
            # No answer is there yet; to look would be a system call for nothing.
            await self._readable(self._answer_by)
            await self._head()

    def _head_of(self, ask: Ask, agent: str) -> bytes:
        """Return the head of the request, written here: names and values were checked when they came from a backend.

        h11 would check each again, which costs more than all that it does for the answer. It is told the method, which
        is all that it needs to read that.
        """
        if not _METHOD.fullmatch(ask.method):
            raise Invalid(f"this cannot be asked of {self._where}")
        self._h11.send(_METHODS.get(ask.method) or _known(ask.method))
        lines = [f"{ask.method} {ask.address.target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in ask.fields(agent)]
        lines += ["", ""]
        return "\r\n".join(lines).encode("latin-1")

    async def _send_small(self, head: bytes, content: memoryview) -> None:
        data = memoryview(head + content)
        try:
            while data:
                sent = await self._send(data)
                self.sent = max(0, len(content) - len(data) + sent)
                data = data[sent:]
        except Broken as error:
            await self._last_word(error)

    async def _send_large(self, head: bytes, content: memoryview) -> None:
        """Send a body that does not fit into the kernel's buffers, with an ear to what the server says meanwhile."""
        try:
            data = memoryview(head)
            while data:
                data = data[await self._send(data, more=True) :]
            failure: Broken | None = None
            async with trio.open_nursery() as nursery:

                async def listen() -> None:
                    nonlocal failure
                    try:
                        await self._head(waits=True)
                    except Broken as error:
                        failure = error
                    if failure is not None or self.status >= 300:
                        nursery.cancel_scope.cancel()

                nursery.start_soon(listen)
                try:
                    await self._send_body(content)
                except Broken as error:
                    failure = failure or error
                nursery.cancel_scope.cancel()
            if failure is not None:
                raise failure
        except Broken as error:
            await self._last_word(error)
        if self.sent < len(content):
            self._keep = False
            if self.status < 300:
                raise Unavailable(f"{self._where} answered before it had the whole of what was sent")

    async def _send_body(self, data: memoryview) -> None:
        waited = 0
        while data:
            sent = await self._send(data)
            self.sent += sent
            data = data[sent:]
            waited += sent
            if waited >= BLOCK:
                waited = 0
                await trio.lowlevel.checkpoint()

    async def _last_word(self, error: Broken) -> None:
        """Read what the server said before it stopped listening; it is often the reason.

        Raises:
            Broken: ``error``, since it said nothing.
        """
        self._keep = False
        if not self.status:
            if isinstance(error, Garbled):
                raise error
            try:
                self._answer_by = trio.current_time() + self._deadlines.answer
                await self._head()
            except Broken:
                raise error from error.__cause__
        self._keep = False

    # ---- the head ----------------------------------------------------------------------------------------------

    async def _head(self, *, waits: bool = False) -> None:
        """Read until there is a final status; ``waits``: for as long as it takes, since somebody else has an eye on it."""
        interim = 0
        while True:
            data = await self._some(math.inf if waits else self._answer_by)
            self.heard = True
            self._h11.receive_data(data)
            while (event := self._event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    self._open(event)
                    return
                interim += 1
                if not isinstance(event, h11.InformationalResponse) or interim > INTERIM_MAX:
                    raise Garbled
                self._answer_by = trio.current_time() + self._deadlines.answer

    def _event(self) -> object:
        """Return what h11 makes of what came.

        Raises:
            Garbled: that it is not HTTP.
        """
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError:
            raise Garbled from None

    def _open(self, head: h11.Response) -> None:
        if not head.http_version.startswith(b"1."):
            raise Garbled
        headers: dict[str, str] = {}
        for raw, value in head.headers:
            name = raw.decode("ascii")
            headers[name] = f"{headers[name]}, {_text(value)}" if name in headers else _text(value)
        self.headers = headers
        self.status = head.status_code
        self._keep = head.http_version == b"1.1" and "close" not in _tokens(headers.get("connection", ""))
        length = headers.get("content-length")
        if self._method == "HEAD" or self.status in _BODILESS:
            self._left = 0
        elif "transfer-encoding" in headers:
            # With a length besides, the two ends of the connection may not mean the same body.
            self._keep = self._keep and length is None
            self._left = None
        else:
            self._left = None if length is None else int(length)
        if self._left is None:
            self._keep = self._keep and "transfer-encoding" in headers
            return
        trailing = memoryview(self._h11.trailing_data[0])
        self._rest = trailing[: self._left]
        self._over = len(trailing) > self._left
        self._complete = self._left == 0

    # ---- the body ----------------------------------------------------------------------------------------------

    async def into(self, sink: Sink, body: Body, start: int, stop: int | None) -> None:
        """See `Reply.into`. What was asked for goes through an inlet's own memory, if its end is known before it comes."""
        if self._left is None:
            await self._into_unmeasured(sink, body)
        else:
            inlet = inlet_of(sink)
            while self._left:
                at = body.position
                if inlet is not None and start <= at and (stop is None or at < stop):
                    room = await inlet.room(at)
                    size = min(len(room), self._left, BLOCK)
                    count = await self._receive(room[:size], body)
                    del room
                    body.take(count)
                    await inlet.filled(count, at)
                else:
                    buffer = self._own_buffer()
                    count = await self._receive(buffer[: min(len(buffer), self._left)], body)
                    await sink.write(buffer[:count].toreadonly(), body.take(count))
            body.finish()
        if self._over:
            raise Corrupt(f"{body.host} sent more bytes than it announced")

    async def _receive(self, view: memoryview, body: Body) -> int:
        """Receive the next bytes of a measured body into ``view``, which is no longer than what is left of it."""
        if self._rest:
            count = min(len(self._rest), len(view))
            view[:count] = self._rest[:count]
            self._rest = self._rest[count:]
        else:
            try:
                count = await self._fill(view)
            except Ended:
                raise body.cut_short() from None
        assert self._left is not None
        self._left -= count
        self.received += count
        self._complete = self._left == 0
        return count

    async def _into_unmeasured(self, sink: Sink, body: Body) -> None:
        """Bring a body to ``sink`` whose end is only known when it is there."""
        try:
            while (block := await self._next()) is not None:
                await sink.write(block, at=body.take(len(block)))
        except Ended as error:
            # Without TLS, or with its farewell, this is how such a body ends; else anybody on the way may have cut it.
            enough = body.stop if body.framed else body.size
            if not error.cut or enough is None or body.position < enough:
                raise body.cut_short() from None
        except Garbled:
            raise body.cut_short() from None
        body.finish()

    async def read(self, size_max: int) -> bytes | None:
        """See `Reply.read`."""
        try:
            decoder = Decoder(self.headers.get("content-encoding", ""), size_max)
            while (block := await self._next()) is not None:
                decoder.add(block)
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
        try:
            while not decoder.full and (block := await self._next()) is not None:
                decoder.add(block)
        except (Undecodable, Broken):
            pass  # what is wrong with the words does not matter beside the status
        return bytes(decoder.content[:size_max])

    async def finish(self) -> None:
        """Read what is left of the answer if that is worth the connection; afterwards ``reusable`` tells."""
        if self._complete or not self._keep or (self._left is not None and self._left > _DRAIN_MAX):
            return
        with trio.move_on_after(_DRAIN_S):
            size = 0
            try:
                while size <= _DRAIN_MAX and (block := await self._next()) is not None:
                    size += len(block)
            except Broken:
                self._keep = False

    async def _next(self) -> memoryview | None:
        """Return the next bytes of the body, valid until the next call; None after the last."""
        if self._left is None:
            return await self._next_unmeasured()
        if self._left == 0:
            return None
        if self._rest:
            block, self._rest = self._rest, memoryview(b"")
        else:
            buffer = self._own_buffer()
            block = buffer[: await self._fill(buffer[: min(len(buffer), self._left)])]
        self._left -= len(block)
        self.received += len(block)
        self._complete = self._left == 0
        return block

    async def _next_unmeasured(self) -> memoryview | None:
        if self._complete:
            return None
        while True:
            event = self._event()
            if event is h11.NEED_DATA:
                try:
                    data = await self._some(trio.current_time() + self._deadlines.idle)
                except Ended as error:
                    if error.cut:
                        raise
                    data = b""
                self._h11.receive_data(data)
            elif isinstance(event, h11.Data):
                self.received += len(event.data)
                return memoryview(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._complete = True
                self._over = bool(self._h11.trailing_data[0])
                return None
            else:
                raise Garbled

    def _own_buffer(self) -> memoryview:
        if self._buffer is None:
            self._buffer = self._buffers.pop() if self._buffers else memoryview(bytearray(BLOCK))
        return self._buffer

    # ---- the socket --------------------------------------------------------------------------------------------

    async def _some(self, deadline: float) -> bytes:
        """Return the next few bytes. What was taken from the kernel is returned, whoever cancels.

        Raises:
            Ended: there are none. Broken: the connection is lost.
        """
        await self._give_way()
        while True:
            try:
                data = self._sock.recv(BLOCK if self.status else _HEAD_BLOCK)
            except (BlockingIOError, ssl.SSLWantReadError):
                await self._readable(deadline)
            except ssl.SSLWantWriteError:
                await self._writable()
            except OSError as error:
                raise _broken(error) from error
            else:
                if not data:
                    raise Ended
                return data

    async def _fill(self, view: memoryview) -> int:
        """Receive what is there into ``view``, at least one byte, and return how many.

        Raises:
            Ended: there is none. Broken: the connection is lost.
        """
        await self._give_way()
        sock = self._sock
        got = 0
        while True:
            try:
                got = sock.recv_into(view)
                if got and self._tls:
                    # A record is a small part of what is there; to give way after each would cost more than to decrypt.
                    while got < len(view) and (more := sock.recv_into(view[got:])):
                        got += more
            except (BlockingIOError, ssl.SSLWantReadError):
                if not got:
                    await self._readable(trio.current_time() + self._deadlines.idle)
                    continue
            except ssl.SSLWantWriteError:
                if not got:
                    await self._writable()
                    continue
            except OSError as error:
                # What came before is handed on; the next call meets the same end.
                if not got:
                    raise _broken(error) from error
            if not got:
                raise Ended
            return got

    async def _give_way(self) -> None:
        """Let the other tasks run before another read, if this one did not have to wait for its last one."""
        if self._ran:
            await trio.lowlevel.checkpoint()
        self._ran = True

    async def _send(self, data: memoryview, *, more: bool = False) -> int:
        """Hand the first bytes of ``data`` to the kernel and return how many."""
        while True:
            try:
                if more and not self._tls:
                    return self._sock.send(data, socket.MSG_MORE)
                return self._sock.send(data)
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._writable()
            except ssl.SSLWantReadError:
                await self._readable(trio.current_time() + self._deadlines.idle)
            except OSError as error:
                raise _broken(error) from error

    async def _readable(self, deadline: float) -> None:
        self._ran = False
        # The listener of an upload waits without a deadline, and must leave the one of the sender alone.
        if deadline == math.inf:
            await trio.lowlevel.wait_readable(self._sock)
            return
        self._scope.deadline = deadline
        try:
            await trio.lowlevel.wait_readable(self._sock)
        finally:
            self._scope.deadline = math.inf

    async def _writable(self) -> None:
        self._scope.deadline = trio.current_time() + self._deadlines.idle
        try:
            await trio.lowlevel.wait_writable(self._sock)
        finally:
            self._scope.deadline = math.inf


def _broken(error: OSError) -> Broken:
    if isinstance(error, ssl.SSLError):
        # One reason or the other, depending on the version of Python.
        gone = isinstance(error, ssl.SSLEOFError) or "EOF" in (getattr(error, "reason", None) or "")
        return Ended(cut=True) if gone else Broken()
    return Broken()


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _tokens(value: str) -> list[str]:
    return [token.strip() for token in value.lower().split(",")]
