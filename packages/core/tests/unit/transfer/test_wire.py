"""The data plane against servers that are slow, wrong or hostile, and what of an answer is believed."""

from __future__ import annotations

import gzip
import math
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from fusekit.errors import Corrupt, Invalid, Stale, TimedOut, TooLarge, Unavailable
from fusekit.testing.certificates import make_certificate
from fusekit.testing.raw import Kept, Request, Server, answer, part, running
from fusekit.transfer.client import Client
from fusekit.transfer.exchange import Deadlines, Decoder, Undecodable
from fusekit.transfer.wire import BLOCK, HEAD_MAX, INTERIM_MAX, Connection
from fusekit.types import Expect

TEXT = b"0123456789"
EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


@attrs.define
class Memory:
    """An inlet over one piece of memory, lent in pieces of ``step``; what came by `write` is in ``written``."""

    data: bytearray
    start: int = 0
    step: int = 1 << 30
    rooms: list[tuple[int, int]] = attrs.field(factory=list)
    reached: int = 0
    written: list[tuple[int | None, bytes]] = attrs.field(factory=list)

    async def room(self, at: int) -> memoryview:
        await trio.lowlevel.checkpoint()
        lent = memoryview(self.data)[at - self.start :][: self.step]
        self.rooms.append((at, len(lent)))
        return lent

    async def filled(self, count: int, at: int) -> None:
        assert at == self.rooms[-1][0]
        self.reached = at + count

    async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
        self.written.append((at, bytes(data)))


@attrs.define
class Payload:
    """A part of a file."""

    data: bytes
    number: int = 1
    start: int = 0
    last: bool = True

    @property
    def stop(self) -> int:
        return len(self.data)

    async def read(self) -> memoryview:
        return memoryview(self.data)

    def done(self) -> None:
        raise AssertionError("the client must not acknowledge a part")


async def fetch(client: Client, stop: int | None = 10) -> bytes:
    kept = Kept()
    await client.fetch("/f", 0, stop, kept)
    return kept.data


async def still_fine(server: Server, client: Client) -> None:
    """Check that the next request gets its own answer."""
    server.reply(answer(b"good"))
    assert (await client.request("GET", "/next")).content == b"good"


# --- into memory that is lent ---


async def test_bytes_of_the_range_go_into_the_memory_of_an_inlet(server: Server, client: Client) -> None:
    body = bytes(range(256)) * 4096
    server.reply(part(body, 100, 1 << 30))
    inlet = Memory(bytearray(len(body)), start=100, step=300_000)
    await client.fetch("/f", 100, 100 + len(body), inlet)
    assert inlet.data == body
    assert inlet.reached == 100 + len(body)
    assert inlet.written == []
    assert client.traffic.received_bytes == len(body)


async def test_a_room_never_gets_more_than_belongs_to_the_body(server: Server, client: Client) -> None:
    server.reply(part(TEXT[:4], 0, 10))
    inlet = Memory(bytearray(b"." * 10))
    await client.fetch("/f", 0, 4, inlet)
    assert inlet.data == b"0123......"


async def test_what_was_not_asked_for_goes_by_write(server: Server, client: Client) -> None:
    server.reply(answer(TEXT))
    inlet = Memory(bytearray(10))
    await client.fetch("/f", 4, 6, inlet)
    assert b"".join(data for _, data in inlet.written) == TEXT
    inlet = Memory(bytearray(6))
    await client.fetch("/f", 0, 6, inlet)
    assert (bytes(inlet.data), inlet.written) == (TEXT[:6], [(6, TEXT[6:])])


async def test_nothing_is_lent_where_the_end_is_not_known(server: Server, client: Client) -> None:
    server.reply(answer(b"a\r\n0123456789\r\n0\r\n\r\n", length=-1, Transfer_Encoding="chunked"))
    inlet = Memory(bytearray(10))
    await client.fetch("/f", 0, None, inlet)
    assert inlet.rooms == []
    assert b"".join(data for _, data in inlet.written) == TEXT


async def test_nothing_is_lent_for_other_content(server: Server, client: Client) -> None:
    server.reply(part(TEXT, 0, 10, ETag='"new"'))
    inlet = Memory(bytearray(10))
    with pytest.raises(Stale):
        await client.fetch("/f", 0, 10, inlet, expect=Expect(etag='"old"'))
    assert inlet.rooms == []


async def test_a_sink_may_not_change_the_buffer(server: Server, client: Client) -> None:
    class Writes:
        async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
            assert isinstance(data, memoryview)
            assert data.readonly

    server.reply(part(bytes(BLOCK), 0, BLOCK))
    await client.fetch("/f", 0, BLOCK, Writes())


async def test_a_body_leaves_the_loop_to_others(server: Server, client: Client) -> None:
    turns = 0
    size = 64 * BLOCK
    server.reply(part(bytes(size), 0, size))

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await client.fetch("/f", 0, size, Memory(bytearray(size)))
        nursery.cancel_scope.cancel()
    assert turns >= size // BLOCK


# --- heads ---


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"HTTP/1.1 200\r\nContent-Length: 10\r\n\r\n", id="status without reason"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-Long: a\r\n b\r\n\tc\r\nContent-Length: 10\r\n\r\n", id="folded header"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Length: 10\r\n\r\n", id="the same length twice"),
        pytest.param(b"HTTP/1.1 200 OK\nContent-Length: 10\n\n", id="bare line feeds"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: \xfc\xff\r\nContent-Length: 10\r\n\r\n", id="header in latin-1"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
                     b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", id="interim answers"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 40_000 + b"\r\nContent-Length: 10\r\n\r\n", id="large"),
    ],
)  # fmt: skip
async def test_odd_heads_are_understood(server: Server, client: Client, head: bytes) -> None:
    server.reply(head + TEXT)
    assert await fetch(client) == TEXT
    await still_fine(server, client)
    assert server.connections == 1


CLOSE = b"Connection: close\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b"0123456789" + CLOSE, id="HTTP/0.9"),
        pytest.param(b"\x16\x03\x01\x02\x00\r\n\r\n", id="TLS"),
        pytest.param(b"HTTP/1.1 abc OK\r\n\r\n", id="no number"),
        pytest.param(b"HTTP/3.0 200 OK\r\n\r\n", id="another version"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", id="negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Length: 9\r\n\r\n0123456789", id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1e1\r\n\r\n0123456789", id="length that is no number"),
        pytest.param(b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n", id="no colon"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA b: c\r\n\r\n", id="space in a name"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n", id="zero byte"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", id="unknown transfer coding"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", id="upgrade"),
    ],
)  # fmt: skip
async def test_what_is_not_http_is_unavailable(server: Server, client: Client, reply: bytes) -> None:
    async def hang_up(request: Request, stream: trio.abc.Stream) -> None:
        await stream.send_all(reply)
        await stream.aclose()

    server.reply(hang_up)
    with pytest.raises(Unavailable) as caught:
        await fetch(client)
    assert "not HTTP" in str(caught.value) or "ended the connection" in str(caught.value)
    assert caught.value.__cause__ is None
    await still_fine(server, client)


async def endless(stream: trio.abc.Stream, first: bytes, again: bytes) -> int:
    """Send until nobody listens, and return how much that was."""
    sent = 0
    try:
        await stream.send_all(first)
        while True:
            await stream.send_all(again)
            sent += len(again)
    except trio.BrokenResourceError:
        return sent


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"y" * 4096),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 512),
        (b"", b"garbage without any end" * 100),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 102 Processing\r\nX: y\r\n\r\n" * 50),
    ],
    ids=["one header", "headers", "garbage", "100-continue flood", "102 flood"],
)
async def test_an_endless_head_is_cut_off(server: Server, client: Client, first: bytes, again: bytes) -> None:
    over = trio.Event()

    async def flood(request: Request, stream: trio.abc.Stream) -> None:
        await endless(stream, first, again)
        over.set()

    server.reply(flood)
    with pytest.raises(Unavailable, match="not HTTP"):
        await fetch(client)
    await over.wait()
    assert client._carriers.pool.idle == 0


async def test_as_many_interim_answers_as_are_allowed_are(server: Server, client: Client) -> None:
    server.reply(b"HTTP/1.1 102 Processing\r\n\r\n" * INTERIM_MAX + answer(TEXT))
    assert await fetch(client) == TEXT


async def test_a_head_one_byte_at_a_time_has_one_deadline(mock_clock: trio.testing.MockClock, server: Server) -> None:
    async def drip(request: Request, stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            await trio.sleep(9)
            await stream.send_all(b"y")

    server.reply(drip)
    mock_clock.autojump_threshold = 0.01
    async with Client(server.url, idle_timeout_s=60) as client:
        began = trio.current_time()
        with pytest.raises(TimedOut, match="stopped answering"):
            await fetch(client)
        assert 60 <= trio.current_time() - began < 70
        assert client._carriers.pool.idle == 0


async def test_a_body_that_trickles_is_not_idle(mock_clock: trio.testing.MockClock, server: Server) -> None:
    async def drip(request: Request, stream: trio.abc.Stream) -> None:
        await stream.send_all(answer(length=10))
        for at in range(10):
            await trio.sleep(50)
            await stream.send_all(TEXT[at : at + 1])

    server.reply(drip)
    mock_clock.autojump_threshold = 0.01
    async with Client(server.url, idle_timeout_s=60) as client:
        assert await fetch(client) == TEXT


async def test_what_a_sink_takes_for_itself_is_not_idle(mock_clock: trio.testing.MockClock, server: Server) -> None:
    class Slow(Memory):
        async def room(self, at: int) -> memoryview:
            await trio.sleep(1000)
            return await super().room(at)

    server.reply(part(bytes(4 * BLOCK), 0, 4 * BLOCK))
    mock_clock.autojump_threshold = 0.01
    async with Client(server.url, idle_timeout_s=60) as client:
        slow = Slow(bytearray(4 * BLOCK))
        await client.fetch("/f", 0, 4 * BLOCK, slow)
    assert slow.reached == 4 * BLOCK


async def test_a_server_that_works_for_long_may_say_so(mock_clock: trio.testing.MockClock, server: Server) -> None:
    async def work(request: Request, stream: trio.abc.Stream) -> None:
        for _ in range(5):
            await trio.sleep(50)
            await stream.send_all(b"HTTP/1.1 102 Processing\r\n\r\n")
        await stream.send_all(answer(b"done"))

    server.reply(work)
    mock_clock.autojump_threshold = 0.01
    async with Client(server.url, idle_timeout_s=60) as client:
        assert (await client.request("POST", "/", json={})).content == b"done"


async def test_nobody_who_accepts_is_timed_out(mock_clock: trio.testing.MockClock, server: Server) -> None:
    # TLS to a server that accepts and says nothing: the handshake is part of connecting.
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    mock_clock.autojump_threshold = 0.01
    async with Client(f"https://127.0.0.1:{port}", connect_timeout_s=7) as client:
        began = trio.current_time()
        with pytest.raises(TimedOut, match="cannot connect"):
            await fetch(client)
        assert 7 <= trio.current_time() - began < 8
    await listeners[0].aclose()


# --- bodies ---


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"x\r\n0123456789\r\n0\r\n\r\n", id="size that is no number"),
        pytest.param(b"-5\r\n01234\r\n0\r\n\r\n", id="negative size"),
        pytest.param(b"f" * 30 + b"\r\n0123456789\r\n0\r\n\r\n", id="size without end"),
        pytest.param(b"4\r\n0123456789\r\n0\r\n\r\n", id="size too small"),
        pytest.param(b"a\r\n0123456789\r\n0\r\nX: " + b"y" * 2 * HEAD_MAX, id="endless trailer"),
        pytest.param(b"a;" + b"y" * 2 * HEAD_MAX, id="endless extension"),
        pytest.param(b"a\r\n0123456789\r\n", id="no last chunk"),
        pytest.param(b"ff\r\n0123456789\r\n0\r\n\r\n", id="size too large"),
    ],
)
async def test_a_wrong_chunked_body_is_corrupt(server: Server, client: Client, body: bytes) -> None:
    async def hang_up(request: Request, stream: trio.abc.Stream) -> None:
        try:
            await stream.send_all(answer(body, length=-1, Transfer_Encoding="chunked"))
            await stream.aclose()
        except trio.BrokenResourceError:
            return

    server.reply(hang_up)
    with pytest.raises(Corrupt):
        await fetch(client, None)
    assert client._carriers.pool.idle == 0
    await still_fine(server, client)


async def test_a_length_beside_chunks_is_not_believed_and_the_connection_not_used_again(
    server: Server, client: Client
) -> None:
    server.reply(answer(b"a\r\n0123456789\r\n0\r\n\r\n", length=3, Transfer_Encoding="chunked"))
    assert (await client.request("GET", "/")).content == TEXT
    await still_fine(server, client)
    assert server.connections == 2


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_bytes_behind_the_end_are_no_answer_to_the_next_request(
    server: Server, client: Client, chunked: bool
) -> None:
    if chunked:
        server.reply(answer(b"2\r\n{}\r\n0\r\n\r\n" + EVIL, length=-1, Transfer_Encoding="chunked"))
    else:
        server.reply(answer(b"{}" + EVIL, length=2))
    assert (await client.request("GET", "/")).content == b"{}"
    await still_fine(server, client)
    assert server.connections == 2


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_a_body_where_none_may_be_is_no_answer_to_the_next_request(
    server: Server, client: Client, status: str
) -> None:
    server.reply(answer(EVIL, status, length=-1))
    await client.request("DELETE", "/", expect={204, 304})
    await still_fine(server, client)
    assert server.connections == 2


async def test_late_bytes_are_no_answer_to_the_next_request(server: Server, client: Client) -> None:
    late, sent = trio.Event(), trio.Event()

    async def reply(request: Request, stream: trio.abc.Stream) -> None:
        await stream.send_all(answer(b"first"))
        await late.wait()
        await stream.send_all(EVIL)
        sent.set()

    server.reply(reply)
    assert (await client.request("GET", "/")).content == b"first"
    late.set()
    await sent.wait()
    await still_fine(server, client)
    assert server.connections == 2


async def test_a_head_request_has_no_body_whatever_is_announced(server: Server, client: Client) -> None:
    server.reply(answer(length=1000))
    found = await client.request("HEAD", "/")
    assert (found.content, found.headers["content-length"]) == (b"", "1000")
    await still_fine(server, client)
    assert server.connections == 1


async def test_a_body_up_to_the_end_of_the_connection(server: Server, client: Client) -> None:
    server.reply(answer(TEXT, length=-1, close=True))
    assert await fetch(client, None) == TEXT
    assert client._carriers.pool.idle == 0


async def test_an_encoding_that_was_not_asked_for_is_corrupt(server: Server, client: Client) -> None:
    packed = gzip.compress(TEXT)
    server.reply(part(packed, 0, len(packed), Content_Encoding="gzip"))
    inlet = Memory(bytearray(100))
    with pytest.raises(Corrupt, match="encoding"):
        await client.fetch("/f", 0, None, inlet)
    assert inlet.rooms == []


@pytest.mark.parametrize("at", [0, 5], ids=["head", "body"])
async def test_a_reset_is_unavailable_or_corrupt(server: Server, client: Client, at: int) -> None:
    async def reset(request: Request, stream: trio.abc.Stream) -> None:
        if at:
            await stream.send_all(answer(TEXT[:at], length=10))
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()

    server.reply(reset)
    with pytest.raises((Unavailable, Corrupt)):
        await fetch(client)
    await still_fine(server, client)


async def test_redirects_in_a_circle_end_for_fetch_too(server: Server, client: Client) -> None:
    server.reply(answer(b"", "302 Found", Location="/again"))
    with pytest.raises(Unavailable, match="circles"):
        await fetch(client)
    assert len(server.requests) < 10
    assert server.connections == 1


# --- control answers ---


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("GZIP", gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)[2:-4]),
        ("identity", TEXT),
    ],
    ids=["gzip", "upper case", "deflate", "raw deflate", "identity"],
)
async def test_packed_answers_are_unpacked(server: Server, client: Client, encoding: str, packed: bytes) -> None:
    server.reply(answer(packed, Content_Encoding=encoding))
    assert (await client.request("GET", "/")).content == TEXT
    assert server.requests[0].headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [("gzip", gzip.compress(TEXT)[:-9]), ("br", TEXT), ("gzip, gzip", gzip.compress(TEXT))],
    ids=["cut", "unknown", "twice"],  # what is packed has the time in it
)
async def test_what_does_not_unpack_is_unavailable(
    server: Server, client: Client, encoding: str, packed: bytes
) -> None:
    server.reply(answer(packed, Content_Encoding=encoding))
    with pytest.raises(Unavailable, match="does not decompress"):
        await client.request("GET", "/")


async def test_a_status_is_told_whatever_its_body_is_packed_in(server: Server, client: Client) -> None:
    server.reply(answer(b"no gzip", "413 Content Too Large", Content_Encoding="gzip"))
    with pytest.raises(TooLarge):
        await client.request("GET", "/")


def test_a_small_body_does_not_become_a_large_one() -> None:
    decoder = Decoder("gzip", 1000)
    decoder.add(gzip.compress(bytes(10 << 20)))
    assert decoder.full
    assert len(decoder.content) == 1001


def test_an_empty_body_is_not_cut() -> None:
    decoder = Decoder("gzip", 1000)
    decoder.finish()
    decoder.add(gzip.compress(TEXT)[:5])
    with pytest.raises(Undecodable):
        decoder.finish()


async def test_headers_that_come_twice_are_joined(server: Server, client: Client) -> None:
    server.reply(b"HTTP/1.1 200 OK\r\nLink: a\r\nContent-Length: 0\r\nlink: b\r\n\r\n")
    assert (await client.request("GET", "/")).headers["link"] == "a, b"


async def test_the_usual_port_is_left_out_of_the_host_header() -> None:
    from fusekit.transfer.address import parse
    from fusekit.transfer.exchange import Ask

    def host(url: str, **headers: str) -> str:
        address = parse(url)
        assert address is not None
        return dict(Ask("GET", address, headers).fields("x"))["Host"]

    assert host("https://a.example:443/") == "a.example"
    assert host("http://a.example/") == "a.example"
    assert host("http://a.example:443/") == "a.example:443"
    assert host("http://[::1]/") == "[::1]"
    assert host("http://[::1]:8080/") == "[::1]:8080"
    assert host("http://a.example/", Host="b") == "b"


async def test_a_method_that_is_none_is_not_sent(server: Server, client: Client) -> None:
    with pytest.raises(Invalid):
        await client.request("GET / HTTP/1.1\r\nX: y\r\n\r\n", "/")
    assert server.requests == []


# --- uploads ---


Early = Callable[[trio.abc.Stream], Awaitable[None]]


@asynccontextmanager
async def refusing(early: Early, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Run a server that reads the head of a request, does ``early`` and no more; the body is never read."""

    async def handle(tcp: trio.SocketStream) -> None:
        stream: trio.abc.Stream = trio.SSLStream(tcp, tls, server_side=True, https_compatible=True) if tls else tcp
        received = b""
        try:
            while b"\r\n\r\n" not in received:
                received += await stream.receive_some(1000)
            await early(stream)
        except trio.BrokenResourceError:
            return

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


LARGE = Payload(bytes(32 << 20))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("closes", [False, True], ids=["stays", "closes"])
async def test_a_refusal_in_the_middle_of_an_upload_is_heard(tmp_path: Path, tls: bool, closes: bool) -> None:
    made = make_certificate(tmp_path)

    async def early(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        await stream.send_all(answer(b"too big", "413 Content Too Large", Content_Type="text/plain"))
        if closes:
            await trio.aclose_forcefully(stream)
        else:
            await trio.sleep_forever()

    async with (
        refusing(early, made.server_context() if tls else None) as url,
        Client(url, ca_file=made.certificate) as client,
    ):
        with pytest.raises(TooLarge, match="too big"):
            await client.send("/up", LARGE)
        assert client._carriers.pool.idle == 0
        assert client.traffic.sent_bytes < LARGE.stop


async def test_a_success_before_the_end_of_an_upload_is_none() -> None:
    async def early(stream: trio.abc.Stream) -> None:
        await stream.send_all(answer(b"{}"))
        await trio.aclose_forcefully(stream)

    async with refusing(early) as url, Client(url) as client:
        with pytest.raises(Unavailable):
            await client.send("/up", LARGE)
        assert client._carriers.pool.idle == 0


async def test_a_connection_that_ends_in_an_upload_is_unavailable() -> None:
    async with refusing(trio.aclose_forcefully) as url, Client(url) as client:
        with pytest.raises(Unavailable) as caught:
            await client.send("/up", LARGE)
        assert type(caught.value) is Unavailable


async def test_an_upload_that_nobody_takes_is_timed_out(mock_clock: trio.testing.MockClock) -> None:
    async def nothing(stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    mock_clock.autojump_threshold = 0.01
    async with refusing(nothing) as url, Client(url, idle_timeout_s=60) as client:
        began = trio.current_time()
        with pytest.raises(TimedOut):
            await client.send("/up", LARGE)
        assert 60 <= trio.current_time() - began < 61


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_large_uploads_arrive_whole_and_keep_the_connection(tmp_path: Path, tls: bool) -> None:
    made = make_certificate(tmp_path)
    async with running(made.server_context() if tls else None) as server:
        server.reply(answer(b"{}"))
        data = Payload(bytes(range(256)) * (8 << 12))
        async with Client(server.url, ca_file=made.certificate) as client:
            for _ in range(2):
                await client.send("/up", data)
            assert client.traffic.sent_bytes == 2 * data.stop
        assert [sent.body == data.data for sent in server.requests] == [True, True]
        assert server.connections == 1


async def test_what_came_is_not_lost_to_a_cancellation() -> None:
    """The listener of an upload is cancelled when that is sent, and what it had read of the answer must not go with it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        data = bytes(range(256)) * 400
        theirs.sendall(data)
        connection = Connection(ours, Deadlines(1, 1, 1), [])
        came, cancelled = b"", 0
        while len(came) < len(data):
            with trio.CancelScope() as scope:
                scope.cancel()
                came += await connection._some(math.inf)
            if scope.cancelled_caught:
                cancelled += 1
                came += await connection._some(math.inf)
    assert came == data
    assert cancelled


# --- TLS ---


@pytest.mark.parametrize(
    ("head", "expect"),
    [
        pytest.param(answer(TEXT[:5], length=10), Expect(size=10), id="length"),
        pytest.param(answer(TEXT[:5], length=-1), Expect(size=10), id="up to the end, size known"),
        pytest.param(answer(TEXT[:5], length=-1), None, id="up to the end"),
        pytest.param(answer(b"5\r\n01234\r\n", length=-1, Transfer_Encoding="chunked"), Expect(size=5), id="chunked"),
    ],
)
async def test_a_tls_connection_cut_in_a_body_is_corrupt(tmp_path: Path, head: bytes, expect: Expect | None) -> None:
    made = make_certificate(tmp_path)

    async def cut(request: Request, stream: trio.abc.Stream) -> None:
        await stream.send_all(head)
        assert isinstance(stream, trio.SSLStream)
        await stream.transport_stream.aclose()  # without saying goodbye

    async with running(made.server_context()) as server, Client(server.url, ca_file=made.certificate) as client:
        server.reply(cut)
        with pytest.raises(Corrupt):
            await client.fetch("/f", 0, None, Kept(), expect=expect)
        await still_fine(server, client)


async def test_a_tls_body_that_ends_properly_with_the_connection_is_whole(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)

    async def farewell(request: Request, stream: trio.abc.Stream) -> None:
        await stream.send_all(answer(TEXT, length=-1))
        assert isinstance(stream, trio.SSLStream)
        await stream.unwrap()

    async with running(made.server_context()) as server, Client(server.url, ca_file=made.certificate) as client:
        server.reply(farewell)
        with trio.move_on_after(5):
            assert await fetch(client, None) == TEXT


async def test_tls_brings_large_bodies_and_keeps_the_connection(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    body = bytes(range(256)) * 16384
    async with running(made.server_context()) as server, Client(server.url, ca_file=made.certificate) as client:
        server.reply(part(body, 0, len(body)))
        for _ in range(3):
            inlet = Memory(bytearray(len(body)))
            await client.fetch("/f", 0, len(body), inlet)
            assert inlet.data == body
        assert server.connections == 1


async def test_only_http_1_1_is_offered(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    offered: list[str | None] = []
    context = made.server_context()
    context.set_alpn_protocols(["h2", "http/1.1"])

    async def look(request: Request, stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.SSLStream)
        offered.append(stream.selected_alpn_protocol())
        await stream.send_all(answer(b"x"))

    async with running(context) as server, Client(server.url, ca_file=made.certificate) as client:
        server.reply(look)
        await client.request("GET", "/")
    assert offered == ["http/1.1"]
