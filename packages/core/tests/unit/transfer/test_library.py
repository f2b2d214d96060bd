"""Hosts that the HTTP library serves: behind a proxy, with HTTP/2 only; and that it is left out everywhere else."""

from __future__ import annotations

import gzip
import logging
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import h2.config
import h2.connection
import h2.events
import pytest
import trio

from fusekit.errors import Corrupt, Denied, NotFound, Unavailable, Unreachable
from fusekit.testing.certificates import Certificate, make_certificate
from fusekit.testing.raw import Kept, Server, answer, part
from fusekit.transfer import library
from fusekit.transfer.client import Client
from fusekit.types import Expect

TEXT = b"0123456789"
SERVICE = "http://service.invalid"


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


@pytest.fixture
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch, _no_proxies: None) -> Server:
    """A server that the environment names as the proxy for everything."""
    monkeypatch.setenv("ALL_PROXY", server.url)
    return server


# --- proxies ---


async def test_a_proxy_gets_the_whole_url_exactly_as_given(proxy: Server) -> None:
    proxy.reply(answer(b"by proxy"))
    async with Client(SERVICE) as client:
        assert (await client.request("GET", "/a%2Fb/../|{}?sig=a%2Fb+c==")).content == b"by proxy"
    assert proxy.requests[0].target == f"{SERVICE}/a%2Fb/../|{{}}?sig=a%2Fb+c=="
    assert proxy.requests[0].headers["host"] == "service.invalid"


async def test_a_proxy_is_asked_to_connect_to_the_host_and_not_told_the_path(proxy: Server) -> None:
    proxy.reply(answer(b"", "403 Forbidden"))
    async with Client("https://service.invalid") as client:
        with pytest.raises(Unavailable, match=r"the proxy does not connect to service\.invalid:443"):
            await client.request("GET", "/secret?sig=secret")
    (sent,) = proxy.requests
    assert (sent.method, sent.target) == ("CONNECT", "service.invalid:443")


async def test_fetch_and_send_go_by_the_proxy_too(proxy: Server) -> None:
    kept, data = Kept(), Payload(bytes(range(256)) * 4096)
    async with Client(SERVICE) as client:
        proxy.reply(part(TEXT[2:5], 2, 10))
        await client.fetch("/f", 2, 5, kept, expect=Expect(size=10))
        proxy.reply(answer(gzip.compress(b"{}"), Content_Encoding="gzip"))
        assert (await client.send("/up", data)).json() == {}
        assert (client.traffic.received_bytes, client.traffic.sent_bytes) == (3 + len(gzip.compress(b"{}")), data.stop)
    assert kept.data == TEXT[2:5]
    assert proxy.requests[0].headers["range"] == "bytes=2-4"
    assert proxy.requests[1].body == data.data


async def test_what_a_proxy_brings_is_judged_alike(proxy: Server) -> None:
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    proxy.reply(
        part(TEXT[3:6], 2, 10),
        answer(TEXT[:5], length=10, close=True),
        answer(TEXT + evil, length=10),
        answer(b"gone", "404 Not Found", Content_Type="text/plain"),
        answer(b"not gzip", Content_Encoding="gzip"),
        answer(b"good"),
    )
    async with Client(SERVICE) as client:
        with pytest.raises(Corrupt, match="were asked for"):
            await client.fetch("/f", 2, 6, Kept())
        with pytest.raises(Corrupt, match="before its end"):
            await client.fetch("/f", 0, None, Kept())
        with pytest.raises(Corrupt, match="more bytes"):
            await client.fetch("/f", 0, None, Kept())
        with pytest.raises(NotFound, match="gone"):
            await client.fetch("/f", 0, None, Kept())
        with pytest.raises(Unavailable, match="does not decompress"):
            await client.request("GET", "/")
        assert (await client.request("GET", "/")).content == b"good"


async def test_hosts_without_a_proxy_are_asked_directly(
    proxy: Server, other: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.reply(answer(b"by proxy"))
    other.reply(answer(b"directly"))
    monkeypatch.setenv("NO_PROXY", "elsewhere.invalid")
    async with Client(SERVICE) as client:
        assert (await client.request("GET", "/")).content == b"by proxy"
        # This machine is never behind a proxy.
        assert (await client.request("GET", other.url + "/")).content == b"directly"
        with pytest.raises(Unreachable, match="does not resolve"):
            await client.request("GET", "http://elsewhere.invalid/", signed=False)
    assert len(proxy.requests) == 1


def test_the_library_is_not_even_imported_where_nothing_needs_it() -> None:
    code = (
        "import sys; from fusekit.transfer.client import Client; Client('http://127.0.0.1:9');"
        "print([name for name in ('httpx', 'httpcore', 'h2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert done.stdout.strip() == "[]"


async def test_a_host_with_letters_of_other_scripts_is_spelled_by_the_library(
    proxy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.reply(answer(b"found"))
    async with Client("http://bücher.invalid") as client:
        assert (await client.request("GET", "/")).content == b"found"
    assert proxy.requests[0].target.startswith("http://xn--bcher-kva.invalid")


# --- HTTP/2 ---


@attrs.define
class Newer:
    """A server that refuses everything but HTTP/2, and answers each request with its path."""

    port: int = 0
    handshakes: int = 0
    refused: int = 0
    paths: list[str] = attrs.field(factory=list)

    async def serve(self, tcp: trio.SocketStream, context: ssl.SSLContext) -> None:
        stream = trio.SSLStream(tcp, context, server_side=True, https_compatible=True)
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError:
            self.refused += 1
            return
        if stream.selected_alpn_protocol() != "h2":
            self.refused += 1
            return
        self.handshakes += 1
        talk = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        talk.initiate_connection()
        await stream.send_all(talk.data_to_send())
        try:
            while data := await stream.receive_some(65536):
                for event in talk.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        path = dict(event.headers)[b":path"]
                        self.paths.append(path.decode())
                        talk.send_headers(event.stream_id, [(":status", "200"), ("content-length", str(len(path)))])
                        talk.send_data(event.stream_id, path, end_stream=True)
                await stream.send_all(talk.data_to_send())
        except trio.BrokenResourceError:
            return


@asynccontextmanager
async def only_http2(made: Certificate) -> AsyncIterator[Newer]:
    context = made.server_context()
    context.set_alpn_protocols(["h2"])
    server = Newer()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server.port = listeners[0].socket.getsockname()[1]

        async def handle(stream: trio.SocketStream) -> None:
            await server.serve(stream, context)

        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield server
        nursery.cancel_scope.cancel()


@pytest.fixture(params=["[SSL: TLSV1_ALERT_NO_APPLICATION_PROTOCOL]", "[SSL] tlsv1 alert no application protocol"])
def _refusing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a handshake without a common protocol what it is with servers that refuse it.

    Python's own servers go on without one, so that the alert that others send cannot be had from them. The texts are
    those of several versions of Python and OpenSSL.
    """
    from fusekit.transfer import wire

    connect = wire.connect

    async def refused(host: str, port: int, tls: ssl.SSLContext | None) -> object:
        sock = await connect(host, port, tls)
        if isinstance(sock, ssl.SSLSocket) and sock.selected_alpn_protocol() is None:
            sock.close()
            raise ssl.SSLError(1, request.param)
        return sock

    monkeypatch.setattr(wire, "connect", refused)


@pytest.mark.usefixtures("_refusing", "_no_proxies")
async def test_a_server_with_http2_only_is_served_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = make_certificate(tmp_path)
    async with only_http2(made) as server:
        async with Client(f"https://127.0.0.1:{server.port}", ca_file=made.certificate) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(client.request, "GET", "/first")
            kept = Kept()
            await client.fetch("/second?x=%2F", 0, None, kept)
        assert kept.data == b"/second?x=%2F"
        assert sorted(server.paths) == ["/first", "/first", "/first", "/second?x=%2F"]
        assert server.refused <= 3
    said = [record.getMessage() for record in caplog.records if record.name == "fusekit.transfer.carriers"]
    assert said == [
        f"127.0.0.1:{server.port} is served by the HTTP library, which takes more CPU: it speaks HTTP/2 only"
    ]


@pytest.mark.usefixtures("_refusing", "_no_proxies")
async def test_without_the_package_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "speaks_http2", lambda: False)
    made = make_certificate(tmp_path)
    async with (
        only_http2(made) as server,
        Client(f"https://127.0.0.1:{server.port}", ca_file=made.certificate) as client,
    ):
        with pytest.raises(Unreachable, match=r"pip install 'fusekit\[http2\]'"):
            await client.request("GET", "/")


async def test_a_proxy_that_wants_a_sign_in_says_so(proxy: Server) -> None:
    proxy.reply(answer(b"", "407 Proxy Authentication Required"))
    async with Client(SERVICE) as client:
        with pytest.raises(Denied):
            await client.request("GET", "/")
