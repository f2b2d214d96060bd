"""Connections between requests: which are used again, which never, and what cancelling leaves behind."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from fusekit.errors import Denied, NotFound, Unavailable
from fusekit.testing.certificates import make_certificate
from fusekit.testing.raw import Kept, Request, Server, answer, part, running
from fusekit.transfer.client import Client
from fusekit.transfer.limits import Limits
from fusekit.transfer.pool import IDLE_MAX, IDLE_S

TEXT = b"0123456789"


@attrs.define
class Payload:
    """A part of a file; counts how often it is read."""

    data: bytes
    number: int = 1
    start: int = 0
    last: bool = True
    reads: int = 0

    @property
    def stop(self) -> int:
        return len(self.data)

    async def read(self) -> memoryview:
        self.reads += 1
        return memoryview(self.data)

    def done(self) -> None:
        raise AssertionError("the client must not acknowledge a part")


def dying(server: Server, *replies: bytes) -> trio.Event:
    """Answer the first request, close when the event is set, and from then on give ``replies``."""
    close = trio.Event()

    async def first(request: Request, stream: trio.abc.Stream) -> None:
        await stream.send_all(answer(b"first"))
        await close.wait()
        await stream.aclose()

    server.reply(first, *replies)
    return close


async def hang_up(request: Request, stream: trio.abc.Stream) -> None:
    await stream.aclose()


# --- connections that die ---


async def test_a_connection_that_died_while_idle_is_not_used(server: Server, client: Client) -> None:
    close = dying(server, answer(b"second"))
    await client.request("GET", "/")
    close.set()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert (await client.request("POST", "/", json={})).content == b"second"
    assert [sent.method for sent in server.requests] == ["GET", "POST"]
    assert server.connections == 2


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_reading_is_tried_once_more_where_a_kept_connection_was_closed(
    server: Server, client: Client, method: str
) -> None:
    server.reply(answer(b"first"), hang_up, answer())
    await client.request("GET", "/")
    await client.request(method, "/")
    assert [sent.method for sent in server.requests] == ["GET", method, method]
    assert server.connections == 2


async def test_a_fetch_is_tried_once_more_as_well(server: Server, client: Client) -> None:
    server.reply(answer(TEXT), hang_up, answer(TEXT))
    for _ in range(2):
        kept = Kept()
        await client.fetch("/f", 0, None, kept)
        assert kept.data == TEXT


async def test_it_is_tried_once_and_not_more_often(server: Server, client: Client) -> None:
    server.reply(answer(b"first"), hang_up)
    await client.request("GET", "/")
    with pytest.raises(Unavailable):
        await client.request("GET", "/")
    assert len(server.requests) == 3


async def test_a_fresh_connection_that_is_closed_is_not_tried_again(server: Server, client: Client) -> None:
    server.reply(hang_up)
    with pytest.raises(Unavailable):
        await client.request("GET", "/")
    assert len(server.requests) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("content", [b"", b"x"], ids=["without body", "with body"])
async def test_what_may_have_acted_is_not_repeated(server: Server, client: Client, method: str, content: bytes) -> None:
    server.reply(answer(b"first"), hang_up, answer())
    await client.request("GET", "/")
    with pytest.raises(Unavailable):
        await client.request(method, "/", content=content)
    assert [sent.method for sent in server.requests] == ["GET", method]


async def test_a_reset_is_told(server: Server, client: Client) -> None:
    async def reset(request: Request, stream: trio.abc.Stream) -> None:
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()

    server.reply(answer(b"first"), reset, answer())
    await client.request("GET", "/")
    with pytest.raises(Unavailable, match="lost"):
        await client.request("GET", "/")
    assert len(server.requests) == 2


async def test_an_answer_that_began_is_not_asked_for_again(server: Server, client: Client) -> None:
    async def half(request: Request, stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200")
        await stream.aclose()

    server.reply(answer(b"first"), half, answer())
    await client.request("GET", "/")
    with pytest.raises(Unavailable):
        await client.request("GET", "/")
    assert len(server.requests) == 2


# --- which are kept ---


async def test_connections_expire(mock_clock: trio.testing.MockClock, server: Server) -> None:
    server.reply(answer(b"x"))
    async with Client(server.url) as client:
        await client.request("GET", "/")
        mock_clock.jump(IDLE_S - 1)
        await client.request("GET", "/")
        assert server.connections == 1
        mock_clock.jump(IDLE_S + 1)
        await client.request("GET", "/")
        assert server.connections == 2
        assert client._carriers.pool.idle == 1


async def test_an_origin_that_is_no_longer_asked_is_let_go(
    mock_clock: trio.testing.MockClock, server: Server, other: Server
) -> None:
    server.reply(answer(b"x"))
    other.reply(answer(b"x"))
    async with Client(server.url) as client:
        await client.request("GET", other.url + "/")
        await client.request("GET", "/")
        assert client._carriers.pool.idle == 2
        mock_clock.jump(IDLE_S + 1)
        await client.request("GET", "/")
        assert client._carriers.pool.idle == 1


async def test_no_more_than_so_many_are_kept(server: Server) -> None:
    count, together = 0, trio.Event()

    async def wait(request: Request, stream: trio.abc.Stream) -> None:
        nonlocal count
        count += 1
        if count == IDLE_MAX + 5:
            together.set()
        await together.wait()
        await stream.send_all(answer(b"x"))

    server.reply(wait)
    async with Client(server.url, limits=Limits(100)) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(IDLE_MAX + 5):
                nursery.start_soon(client.request, "GET", "/")
        assert client._carriers.pool.idle == IDLE_MAX


@pytest.mark.parametrize("reply", [answer(b"x", close=True), b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx"])
async def test_a_connection_that_is_announced_to_close_is_not_kept(
    server: Server, client: Client, reply: bytes
) -> None:
    server.reply(reply)
    await client.request("GET", "/")
    assert client._carriers.pool.idle == 0


async def test_an_error_that_was_read_whole_keeps_the_connection(server: Server, client: Client) -> None:
    server.reply(answer(b"no", "404 Not Found"))
    for _ in range(3):
        with pytest.raises(NotFound):
            await client.request("GET", "/")
        with pytest.raises(NotFound):
            await client.fetch("/", 0, 5, Kept())
    assert server.connections == 1


async def test_a_small_rest_is_read_and_a_large_one_is_not(server: Server, client: Client) -> None:
    there = f"{server.url}/there"
    server.reply(answer(bytes(30_000), "302 Found", Location=there), answer(TEXT))
    await client.fetch("/f", 0, None, Kept())
    assert server.connections == 1
    server.reply(answer(bytes(3_000_000), "302 Found", Location=there), answer(TEXT))
    await client.fetch("/f", 0, None, Kept())
    assert server.connections == 2


async def test_a_rest_that_does_not_come_is_not_waited_for(mock_clock: trio.testing.MockClock, server: Server) -> None:
    async def stall(request: Request, stream: trio.abc.Stream) -> None:
        await stream.send_all(answer(b"", "302 Found", length=100, Location=f"{server.url}/there"))
        await trio.sleep_forever()

    server.reply(stall, answer(TEXT))
    mock_clock.autojump_threshold = 0.01
    async with Client(server.url) as client:
        began, kept = trio.current_time(), Kept()
        await client.fetch("/f", 0, None, kept)
        assert kept.data == TEXT
        assert trio.current_time() - began < 2
        assert server.connections == 2


async def test_a_refused_token_does_not_cost_the_connection(server: Server) -> None:
    @attrs.define
    class Tokens:
        async def headers(self, renew: bool) -> dict[str, str]:
            return {"Authorization": "new" if renew else "old"}

    server.reply(answer(b"who?", "401 Unauthorized"), answer(b"ok"), answer(b"who?", "401 Unauthorized"))
    async with Client(server.url, Tokens()) as client:
        await client.request("GET", "/")
        with pytest.raises(Denied):
            await client.request("GET", "/")
    assert server.connections == 1


async def test_closing_the_client_closes_what_is_idle_and_lets_the_rest_end(server: Server) -> None:
    begun, go = trio.Event(), trio.Event()

    async def wait(request: Request, stream: trio.abc.Stream) -> None:
        begun.set()
        await go.wait()
        await stream.send_all(answer(b"late"))

    server.reply(wait)
    client = Client(server.url)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.request, "GET", "/")
        await begun.wait()
        await client.aclose()
        go.set()
    assert client._carriers.pool.idle == 0


# --- cancelled ---


Phase = Callable[[trio.abc.Stream, trio.Event], Awaitable[None]]


async def _in_the_request(stream: trio.abc.Stream, reached: trio.Event) -> None:
    reached.set()


async def _before_the_answer(stream: trio.abc.Stream, reached: trio.Event) -> None:
    await _request(stream)
    reached.set()


async def _in_the_head(stream: trio.abc.Stream, reached: trio.Event) -> None:
    await _request(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-")
    reached.set()


async def _in_the_body(stream: trio.abc.Stream, reached: trio.Event) -> None:
    await _request(stream)
    await stream.send_all(answer(b"half", length=8))
    reached.set()


async def _in_a_chunk(stream: trio.abc.Stream, reached: trio.Event) -> None:
    await _request(stream)
    await stream.send_all(answer(b"8\r\nhalf", length=-1, Transfer_Encoding="chunked"))
    reached.set()


async def _request(stream: trio.abc.Stream) -> None:
    received = b""
    while b"\r\n\r\n" not in received:
        received += await stream.receive_some(1000)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    ("phase", "uploads"),
    [
        (_in_the_request, True),
        (_before_the_answer, False),
        (_in_the_head, False),
        (_in_the_body, False),
        (_in_a_chunk, False),
    ],
    ids=["request", "answer", "head", "body", "chunk"],
)
async def test_cancelling_closes_the_connection(tmp_path: Path, phase: Phase, uploads: bool, tls: bool) -> None:
    """The server sees the end, which it would not if the socket were leaked or kept for the next request."""
    made = make_certificate(tmp_path)
    reached, ended = trio.Event(), trio.Event()
    large = Payload(bytes(32 << 20))

    async def handle(tcp: trio.SocketStream) -> None:
        context = made.server_context() if tls else None
        stream: trio.abc.Stream = trio.SSLStream(tcp, context, server_side=True) if context else tcp
        await phase(stream, reached)
        try:
            while await tcp.receive_some(1 << 20):
                pass
        except trio.BrokenResourceError:
            pass
        ended.set()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        url = f"{'https' if tls else 'http'}://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        limits = Limits(1)
        async with Client(url, ca_file=made.certificate, limits=limits) as client:
            async with trio.open_nursery() as requests:
                if uploads:
                    requests.start_soon(client.send, "/up", large)
                else:
                    requests.start_soon(client.fetch, "/f", 0, None, Kept())
                await reached.wait()
                await trio.testing.wait_all_tasks_blocked(0.01)
                requests.cancel_scope.cancel()
            assert client._carriers.pool.idle == 0
            assert [host.running for host in limits.statistics().values()] == [0]
            with trio.fail_after(5):
                await ended.wait()
        nursery.cancel_scope.cancel()


async def test_cancelling_the_handshake_closes_the_connection() -> None:
    accepted, ended = trio.Event(), trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        accepted.set()
        while await stream.receive_some(1000):
            pass
        ended.set()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, silent, listeners)
        async with Client(f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}") as client:
            async with trio.open_nursery() as requests:
                requests.start_soon(client.request, "GET", "/")
                await accepted.wait()
                requests.cancel_scope.cancel()
            with trio.fail_after(5):
                await ended.wait()
        nursery.cancel_scope.cancel()


async def test_cancelling_in_the_sink_closes_the_connection(server: Server) -> None:
    reached = trio.Event()

    class Stuck:
        async def room(self, at: int) -> memoryview:
            reached.set()
            await trio.sleep_forever()
            raise AssertionError

        async def filled(self, count: int, at: int) -> None:
            raise AssertionError

        async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
            raise AssertionError

    server.reply(part(TEXT, 0, 10), answer(b"good"))
    async with Client(server.url) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.fetch, "/f", 0, 10, Stuck())
            await reached.wait()
            nursery.cancel_scope.cancel()
        assert (await client.request("GET", "/")).content == b"good"
        assert server.connections == 2


async def test_one_that_is_cancelled_does_not_disturb_the_others(server: Server) -> None:
    go, waiting = trio.Event(), 0
    all_there = trio.Event()

    async def reply(request: Request, stream: trio.abc.Stream) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 4:
            all_there.set()
        await go.wait()
        await stream.send_all(answer(request.target.encode()))

    found: dict[str, bytes] = {}
    server.reply(reply)
    async with Client(server.url) as client, trio.open_nursery() as nursery:

        async def ask(target: str) -> None:
            found[target] = (await client.request("GET", target)).content

        victim = trio.CancelScope()

        async def cancelled() -> None:
            with victim:
                await ask("/victim")

        nursery.start_soon(cancelled)
        for target in ("/1", "/2", "/3"):
            nursery.start_soon(ask, target)
        await all_there.wait()
        victim.cancel()
        go.set()
    assert found == {target: target.encode() for target in ("/1", "/2", "/3")}


# --- TLS ---


async def test_a_host_with_another_name_is_not_given_the_request_with_a_kept_connection(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    async with running(made.server_context()) as server, Client(server.url, ca_file=made.certificate) as client:
        server.reply(answer(b"x"))
        await client.request("GET", "/")
        await client.request("GET", f"https://localhost:{server.port}/")
        assert server.connections == 2


async def test_the_context_of_the_mount_is_shared(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=made.certificate)
    async with running(made.server_context()) as server:
        server.reply(answer(b"x"))
        for _ in range(2):
            async with Client(server.url, tls=context) as client:
                assert (await client.request("GET", "/")).content == b"x"
