"""The client against servers that answer exactly the bytes a test wants."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing

from fusekit.errors import (
    BackendError,
    ConfigError,
    Corrupt,
    Denied,
    Exists,
    Invalid,
    NotFound,
    Stale,
    Throttled,
    TimedOut,
    Unavailable,
    Unreachable,
)
from fusekit.testing.certificates import make_certificate
from fusekit.testing.raw import Kept, Request, Server, answer, part, running
from fusekit.transfer.client import Client
from fusekit.transfer.limits import Limits
from fusekit.transfer.trouble import describe, tls_context
from fusekit.types import Answer, Expect, Http, Part

TEXT = b"0123456789"


@attrs.define
class Tokens:
    """Signs with the first token, and after a refusal with the next."""

    tokens: list[str]
    renewed: int = 0

    async def headers(self, renew: bool) -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        if renew:
            self.renewed += 1
            if self.renewed >= len(self.tokens):
                raise Denied("no token left")
        return {"Authorization": f"Bearer {self.tokens[self.renewed]}"}


@attrs.define
class Bytes:
    """A part of a file."""

    data: bytes
    number: int = 1
    start: int = 0
    last: bool = True
    reads: int = 0

    @property
    def stop(self) -> int:
        return self.start + len(self.data)

    async def read(self) -> memoryview:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        return memoryview(self.data)

    def done(self) -> None:
        raise AssertionError("the client must not acknowledge a part")


def test_client_is_what_backends_are_promised() -> None:
    http: Http = Client("http://127.0.0.1:9")
    assert http


# --- control calls ---


async def test_request_sends_parameters_and_json_and_returns_the_whole_answer(server: Server, client: Client) -> None:
    server.reply(answer(b'{"a": 1}', Content_Type="application/json"))
    found = await client.request(
        "POST", "/api/x?fixed=1", params={"path": "/a b&c+ü", "yes": True, "n": 3}, json={"k": ["v"]}
    )
    assert found.status == 200
    assert found.json() == {"a": 1}
    (sent,) = server.requests
    assert sent.method == "POST"
    assert sent.target == "/api/x?fixed=1&path=%2Fa%20b%26c%2B%C3%BC&yes=true&n=3"
    assert json.loads(sent.body) == {"k": ["v"]}
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["user-agent"].startswith("fusekit/")


async def test_paths_go_out_exactly_as_given(server: Server, client: Client) -> None:
    server.reply(answer())
    target = "/a%2Fb/%2541/x~(y)'!*;=@/../z?sig=a%2Fb+c/d==&q=|%7c{}"
    await client.request("GET", target)
    await client.request("GET", server.url + target)
    assert [sent.target for sent in server.requests] == [target, target]


async def test_characters_that_no_request_line_may_hold_are_escaped(server: Server, client: Client) -> None:
    server.reply(answer())
    await client.request("GET", "/a b/ü\x7f")
    assert server.requests[0].target == "/a%20b/%C3%BC%7F"


async def test_a_base_url_with_a_path_is_the_folder_of_relative_urls(server: Server) -> None:
    server.reply(answer())
    async with Client(f"{server.url}/root/") as client:
        await client.request("GET", "/x")
        await client.request("GET", "y")
    assert [sent.target for sent in server.requests] == ["/root/x", "/root/y"]


async def test_compressed_answers_are_unpacked(server: Server, client: Client) -> None:
    server.reply(answer(gzip.compress(b'{"a":1}'), Content_Encoding="gzip"))
    assert (await client.request("GET", "/")).json() == {"a": 1}


async def test_an_answer_that_does_not_unpack_is_unavailable(server: Server, client: Client) -> None:
    server.reply(answer(b"not gzip at all", Content_Encoding="gzip"))
    with pytest.raises(Unavailable, match="does not decompress"):
        await client.request("GET", "/")


async def test_expected_statuses_are_answers(server: Server, client: Client) -> None:
    server.reply(answer(b"no", "404 Not Found"))
    assert (await client.request("GET", "/", expect={200, 404})).status == 404


async def test_unexpected_statuses_are_errors_with_facts(server: Server, client: Client) -> None:
    body = b'{"error_code": "LIMIT", "message": "slow down"}'
    server.reply(answer(body, "429 Too Many Requests", Retry_After="7", X_Request_Id="r-1"))
    with pytest.raises(Throttled, match="slow down") as caught:
        await client.request("GET", "/")
    error = caught.value
    assert (error.status, error.code, error.retry_after_s, error.request_id) == (429, "LIMIT", 7.0, "r-1")
    assert len(server.requests) == 1


async def test_explain_is_asked_before_the_table(server: Server) -> None:
    def explain(found: Answer) -> BackendError | None:
        return Exists("taken") if b"taken" in found.content else None

    server.reply(answer(b"taken", "400 Bad Request"), answer(b"else", "400 Bad Request"))
    async with Client(server.url, explain=explain) as client:
        with pytest.raises(Exists, match="taken"):
            await client.request("GET", "/")
        with pytest.raises(Invalid):
            await client.request("GET", "/")


async def test_cookies_are_not_kept(server: Server, client: Client) -> None:
    server.reply(answer(b"", Set_Cookie="session=1; Path=/"))
    await client.request("GET", "/")
    await client.request("GET", "/")
    assert "cookie" not in server.requests[1].headers


async def test_connections_are_reused(server: Server, client: Client) -> None:
    server.reply(answer(b"x"))
    for _ in range(3):
        await client.request("GET", "/")
    assert server.connections == 1
    assert client.traffic.requests == 3


# --- signing and redirects ---


async def test_requests_to_the_service_are_signed(server: Server) -> None:
    server.reply(answer())
    async with Client(server.url, Tokens(["t1"])) as client:
        await client.request("GET", "/")
        await client.request("GET", "/", signed=False)
    assert [sent.headers.get("authorization") for sent in server.requests] == ["Bearer t1", None]


async def test_other_hosts_are_never_signed(server: Server, other: Server) -> None:
    other.reply(answer(TEXT))
    async with Client(server.url, Tokens(["t1"])) as client:
        await client.request("GET", f"{other.url}/x", signed=True)
        await client.fetch(f"{other.url}/x", 0, None, Kept())
    assert all("authorization" not in sent.headers for sent in other.requests)


async def test_a_refused_token_is_renewed_once(server: Server) -> None:
    tokens = Tokens(["old", "new"])
    server.reply(answer(b"", "401 Unauthorized"), answer(b"ok"))
    async with Client(server.url, tokens) as client:
        assert (await client.request("POST", "/", json={"a": 1})).content == b"ok"
    assert [sent.headers["authorization"] for sent in server.requests] == ["Bearer old", "Bearer new"]
    assert [sent.body for sent in server.requests] == [b'{"a":1}', b'{"a":1}']


async def test_a_second_refusal_is_denied(server: Server) -> None:
    server.reply(answer(b"", "401 Unauthorized"))
    async with Client(server.url, Tokens(["old", "new", "newer"])) as client:
        with pytest.raises(Denied) as caught:
            await client.request("GET", "/")
    assert caught.value.status == 401
    assert len(server.requests) == 2


async def test_nothing_more_to_sign_with_is_denied(server: Server) -> None:
    server.reply(answer(b"", "401 Unauthorized"))
    async with Client(server.url, Tokens(["only"])) as client:
        with pytest.raises(Denied, match="no token left"):
            await client.request("GET", "/")
    assert len(server.requests) == 1


async def test_an_upload_is_read_again_for_the_renewed_token(server: Server) -> None:
    data = Bytes(b"x" * 100_000)
    server.reply(answer(b"", "401 Unauthorized"), answer())
    async with Client(server.url, Tokens(["old", "new"])) as client:
        await client.send("/", data)
    assert data.reads == 2
    assert server.requests[1].body == data.data


async def test_a_token_with_a_line_break_is_refused_without_being_shown(server: Server) -> None:
    async with Client(server.url, Tokens(["secret\r\nX-Other: 1"])) as client:
        with pytest.raises(Invalid) as caught:
            await client.request("GET", "/")
    assert "secret" not in str(caught.value)
    assert server.requests == []


async def test_get_follows_redirects_on_the_same_host_signed(server: Server) -> None:
    server.reply(answer(b"", "302 Found", Location="/there?x=1"), answer(b"here"))
    async with Client(server.url, Tokens(["t"])) as client:
        assert (await client.request("GET", "/a")).content == b"here"
    assert [sent.target for sent in server.requests] == ["/a", "/there?x=1"]
    assert server.requests[1].headers["authorization"] == "Bearer t"


async def test_only_reads_are_redirected(server: Server, client: Client) -> None:
    server.reply(answer(b"", "307 Temporary Redirect", Location="/there"))
    with pytest.raises(Unavailable, match=r"redirects to http://127\.0\.0\.1"):
        await client.request("POST", "/a", json={})
    assert len(server.requests) == 1


async def test_a_control_call_is_not_led_to_another_host(server: Server, other: Server) -> None:
    # The "same host" of a redirect may have another port, so the other host needs another name.
    server.reply(answer(b"", "302 Found", Location=f"http://localhost:{other.port}/login?next=secret"))
    other.reply(answer(b"<html>sign in</html>"))
    async with Client(server.url, Tokens(["t"])) as client:
        with pytest.raises(Unavailable, match="is it the right address") as caught:
            await client.request("GET", "/")
    assert other.requests == []
    assert "secret" not in str(caught.value)


async def test_a_download_redirected_to_another_host_loses_authorization(server: Server, other: Server) -> None:
    server.reply(answer(b"", "302 Found", Location=f"http://localhost:{other.port}/blob?sig=s"))
    other.reply(part(TEXT[2:5], 2, 10))
    kept = Kept()
    async with Client(server.url, Tokens(["t"])) as client:
        await client.fetch("/file", 2, 5, kept, headers={"Cookie": "c=1", "X-Plain": "1"})
    (sent,) = other.requests
    assert kept.data == TEXT[2:5]
    assert sent.headers["range"] == "bytes=2-4"
    assert "authorization" not in sent.headers
    assert "cookie" not in sent.headers
    assert sent.headers["x-plain"] == "1"


async def test_redirects_in_a_circle_end(server: Server, client: Client) -> None:
    server.reply(answer(b"", "302 Found", Location="/again"))
    with pytest.raises(Unavailable, match="circles"):
        await client.request("GET", "/")
    assert len(server.requests) < 10


# --- trouble ---


async def test_a_refused_connection_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with Client(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(Unreachable, match=f"^cannot connect to 127.0.0.1:{port}: connection refused$"):
                await client.request("GET", "/")


async def test_an_unknown_name_says_so() -> None:
    class Nowhere:
        async def getaddrinfo(self, *args: object) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        async def getnameinfo(self, *args: object) -> tuple[str, str]:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(cast(trio.abc.HostnameResolver, Nowhere()))
    async with Client("https://nowhere.invalid") as client:
        with pytest.raises(Unreachable, match=r"^name nowhere\.invalid does not resolve$"):
            await client.request("GET", "/")


async def test_a_connection_that_ends_before_the_answer_is_unavailable(server: Server, client: Client) -> None:
    async def hang_up(request: Request, stream: trio.abc.Stream) -> None:
        await stream.aclose()

    server.reply(hang_up)
    with pytest.raises(Unavailable, match="ended the connection"):
        await client.request("GET", "/")


async def test_garbage_is_unavailable(server: Server, client: Client) -> None:
    server.reply(b"SSH-2.0-OpenSSH_9.2\r\nConnection: close\r\n\r\n")
    with pytest.raises(Unavailable, match="not HTTP"):
        await client.request("GET", "/")


async def test_a_control_answer_cut_short_is_unavailable(server: Server, client: Client) -> None:
    server.reply(answer(b'{"a"', length=100, close=True))
    with pytest.raises(Unavailable):
        await client.request("GET", "/")


@pytest.mark.parametrize("body", [False, True], ids=["no answer", "half a body"])
async def test_silence_is_timed_out(mock_clock: trio.testing.MockClock, server: Server, body: bool) -> None:
    silent = trio.Event()

    async def stall(request: Request, stream: trio.abc.Stream) -> None:
        if body:
            await stream.send_all(answer(b"half", length=8))
        silent.set()
        await trio.sleep_forever()

    server.reply(stall)
    kept = Kept()
    async with Client(server.url, idle_timeout_s=60) as client, trio.open_nursery() as nursery:

        async def jump() -> None:
            await silent.wait()
            while body and not kept.blocks:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked(0.01)
            mock_clock.jump(61)

        nursery.start_soon(jump)
        with pytest.raises(TimedOut, match="stopped answering"):
            await client.fetch("/", 0, None, kept)
    assert kept.data == (b"half" if body else b"")


async def test_cancelling_a_stalled_request_frees_its_turn(server: Server) -> None:
    async def stall(request: Request, stream: trio.abc.Stream) -> None:
        await stream.send_all(answer(b"half", length=8))
        await trio.sleep_forever()

    limits = Limits(1)
    kept = Kept()
    server.reply(stall, answer(b"fine"))
    async with Client(server.url, limits=limits) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.fetch, "/", 0, None, kept)
            while not kept.blocks:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert (await client.request("GET", "/")).content == b"fine"


async def test_a_host_never_has_more_requests_than_its_limit(server: Server) -> None:
    running_now, most = 0, 0
    enough = trio.Event()

    async def slow(request: Request, stream: trio.abc.Stream) -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        if running_now == 3:
            enough.set()
        await enough.wait()
        running_now -= 1
        await stream.send_all(answer(b"x"))

    server.reply(slow)
    limits = Limits(3)
    async with Client(server.url, limits=limits) as client, trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(client.request, "GET", "/")
    assert most == 3
    assert len(server.requests) == 9
    assert limits.host(f"127.0.0.1:{server.port}").statistics().running == 0


# --- TLS ---


def _ssl_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}]")
    error.reason = reason
    return error


def tls_server(directory: Path) -> tuple[ssl.SSLContext, Path]:
    made = make_certificate(directory)
    return made.server_context(), made.certificate


async def test_an_untrusted_certificate_points_at_the_option(tmp_path: Path) -> None:
    context, _ = tls_server(tmp_path)
    async with running(context) as server, Client(server.url) as client:
        server.reply(answer())
        with pytest.raises(Unreachable, match=r"^TLS: the certificate of 127\.0\.0\.1 is not trusted .*--ca-file$"):
            await client.request("GET", "/")
    assert server.requests == []


async def test_a_ca_file_makes_it_trusted(tmp_path: Path) -> None:
    context, ca_file = tls_server(tmp_path)
    async with running(context) as server, Client(server.url, ca_file=ca_file) as client:
        server.reply(answer(TEXT))
        kept = Kept()
        await client.fetch("/", 0, None, kept)
    assert kept.data == TEXT


async def test_a_certificate_for_another_host_says_so(tmp_path: Path) -> None:
    context, ca_file = tls_server(tmp_path)
    async with running(context, host="127.0.0.2") as server, Client(server.url, ca_file=ca_file) as client:
        with pytest.raises(Unreachable, match=r"not for 127\.0\.0\.2"):
            await client.request("GET", "/")


@pytest.mark.parametrize(
    "cause",
    [
        ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
        ssl.SSLZeroReturnError(6, "TLS/SSL connection has been closed"),
        _ssl_error("UNEXPECTED_EOF_WHILE_READING"),
        ssl.SSLError("without a reason"),
    ],
    ids=["eof", "closed", "3.11.2", "plain"],
)
def test_a_cut_tls_connection_is_no_matter_of_certificates(cause: ssl.SSLError) -> None:
    wrapped = trio.BrokenResourceError()
    wrapped.__cause__ = cause
    assert describe(wrapped, "h:443", "h", connected=True) == "the connection to h:443 was lost"


def test_what_tls_says_about_its_end_is_told() -> None:
    said = describe(_ssl_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "h:443", "h", connected=True)
    assert said == "the connection to h:443 was lost (TLS: TLSV13_ALERT_CERTIFICATE_REQUIRED)"


@pytest.mark.parametrize(("code", "said"), [(10, "has expired"), (9, "is the clock right"), (18, "see --ca-file")])
def test_what_is_wrong_with_a_certificate_is_told(code: int, said: str) -> None:
    cause = ssl.SSLCertVerificationError(1, "verify failed")
    cause.verify_code, cause.verify_message = code, "the library's words"
    wrapped = trio.BrokenResourceError()
    wrapped.__cause__ = cause
    assert said in describe(wrapped, "h:443", "h", connected=False)


async def test_https_to_a_plain_server_says_so(server: Server) -> None:
    async def plain(request: Request, stream: trio.abc.Stream) -> None:
        raise AssertionError("no request arrives")

    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, greet, listeners)
        async with Client(f"https://127.0.0.1:{port}") as client:
            with pytest.raises(Unavailable, match="TLS: no handshake"):
                await client.request("GET", "/")
        nursery.cancel_scope.cancel()


def test_a_ca_file_that_is_none_is_a_wrong_option(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("hello")
    with pytest.raises(ConfigError, match="holds no certificate"):
        tls_context(tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match="cannot be read"):
        tls_context(tmp_path / "missing.pem")


async def test_a_service_with_tls_does_not_lead_away_from_it(other: Server) -> None:
    other.reply(answer(TEXT))
    async with Client("https://127.0.0.1:9") as client:
        with pytest.raises(Unavailable, match="without TLS"):
            await client.fetch(f"{other.url}/x", 0, None, Kept())
    assert other.requests == []


# --- fetch ---


async def test_fetch_brings_exactly_the_range(server: Server, client: Client) -> None:
    server.reply(part(TEXT[3:7], 3, 10, ETag='"e"'))
    kept = Kept()
    found = await client.fetch("/f", 3, 7, kept, headers={"X-Signed": "1"}, expect=Expect(size=10, etag='"e"'))
    assert kept.data == TEXT[3:7]
    assert kept.blocks[0][0] == 3
    assert (found.status, found.content, found.headers["etag"]) == (206, b"", '"e"')
    (sent,) = server.requests
    assert sent.headers["range"] == "bytes=3-6"
    assert sent.headers["accept-encoding"] == "identity"
    assert sent.headers["x-signed"] == "1"


async def test_fetch_moves_large_bodies_in_order(server: Server, client: Client) -> None:
    body = bytes(range(256)) * 16384  # 4 MiB
    server.reply(part(body, 100, len(body) + 100))
    kept = Kept()
    await client.fetch("/f", 100, None, kept)
    assert kept.data == body
    offset = 100
    for at, data in kept.blocks:
        assert at == offset
        offset += len(data)
    assert client.traffic.received_bytes == len(body)


async def test_an_empty_range_makes_no_request(server: Server, client: Client) -> None:
    await client.fetch("/f", 5, 5, Kept())
    assert server.requests == []


async def test_a_server_that_ignores_ranges_brings_the_whole_file(server: Server, client: Client) -> None:
    server.reply(answer(TEXT))
    kept = Kept()
    assert (await client.fetch("/f", 3, 7, kept, expect=Expect(size=10))).status == 200
    assert (kept.blocks[0][0], kept.data) == (0, TEXT)


async def test_a_range_past_the_end_stops_there(server: Server, client: Client) -> None:
    server.reply(part(TEXT[8:], 8, 10))
    kept = Kept()
    await client.fetch("/f", 8, 100, kept)
    assert kept.data == TEXT[8:]


async def test_a_chunked_body_is_read_to_its_end(server: Server, client: Client) -> None:
    server.reply(answer(b"4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n", length=-1, Transfer_Encoding="chunked"))
    kept = Kept()
    await client.fetch("/f", 0, None, kept, expect=Expect(size=10))
    assert kept.data == TEXT


async def test_a_range_behind_the_end_is_empty(server: Server, client: Client) -> None:
    server.reply(answer(b"", "416 Range Not Satisfiable", Content_Range="bytes */10"))
    kept = Kept()
    await client.fetch("/f", 10, 20, kept)
    assert kept.blocks == []


async def fetched(server: Server, reply: bytes, start: int, stop: int | None, expect: Expect | None = None) -> Kept:
    server.reply(reply)
    kept = Kept()
    async with Client(server.url) as client:
        await client.fetch("/f", start, stop, kept, expect=expect)
    return kept


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(part(TEXT[4:8], 4, 10), id="shifted"),
        pytest.param(part(TEXT[3:6], 3, 10), id="shorter range"),
        pytest.param(part(TEXT[3:8], 3, 10), id="longer range"),
        pytest.param(answer(TEXT[3:7], "206 Partial Content"), id="no Content-Range"),
        pytest.param(answer(TEXT[3:7], "206 Partial Content", Content_Range="bytes x-y/z"), id="garbled Content-Range"),
        pytest.param(
            answer(TEXT[3:7], "206 Partial Content", length=9, Content_Range="bytes 3-6/10"), id="lengths disagree"
        ),
        pytest.param(
            answer(TEXT[3:5], "206 Partial Content", length=4, close=True, Content_Range="bytes 3-6/10"), id="early close"
        ),
        pytest.param(
            answer(TEXT[3:5], "206 Partial Content", length=-1, close=True, Content_Range="bytes 3-6/10"), id="cut"
        ),
        pytest.param(
            answer(TEXT[3:10], "206 Partial Content", length=-1, close=True, Content_Range="bytes 3-6/10"),
            id="extra bytes",
        ),
        pytest.param(
            answer(b"4\r\n01", "206 Partial Content", length=-1, close=True, Transfer_Encoding="chunked",
                   Content_Range="bytes 3-6/10"), id="cut chunk",
        ),
        pytest.param(
            answer(gzip.compress(TEXT[3:7]), "206 Partial Content", Content_Encoding="gzip",
                   Content_Range="bytes 3-6/10"), id="encoded",
        ),
        pytest.param(answer(b"", "416 Range Not Satisfiable", Content_Range="bytes */10"), id="416 inside the file"),
    ],
)  # fmt: skip
async def test_a_body_that_is_not_the_range_is_corrupt(server: Server, reply: bytes) -> None:
    with pytest.raises(Corrupt):
        await fetched(server, reply, 3, 7)


@pytest.mark.parametrize(
    ("reply", "expect"),
    [
        pytest.param(part(TEXT[3:7], 3, 11), Expect(size=10), id="206 of another size"),
        pytest.param(answer(TEXT + b"x"), Expect(size=10), id="200 of another size"),
        pytest.param(part(TEXT[3:7], 3, 10, ETag='"new"'), Expect(etag='"old"'), id="etag"),
        pytest.param(part(TEXT[3:7], 3, 10), Expect(etag='"old"'), id="no etag"),
        pytest.param(
            part(TEXT[3:7], 3, 10, Last_Modified="Fri, 01 Mar 2024 10:00:01 GMT"),
            Expect(last_modified="Fri, 01 Mar 2024 10:00:00 GMT"),
            id="last modified",
        ),
        pytest.param(
            answer(b"", "416 Range Not Satisfiable", Content_Range="bytes */2"), Expect(size=10), id="416, shrunk"
        ),
        pytest.param(answer(b"", "416 Range Not Satisfiable"), Expect(size=10), id="416 without size"),
        pytest.param(
            answer(b"2\r\n01\r\n0\r\n\r\n", length=-1, Transfer_Encoding="chunked"),
            Expect(size=10),
            id="chunked, shorter",
        ),
    ],
)
async def test_other_content_is_stale(server: Server, reply: bytes, expect: Expect) -> None:
    server.reply(reply)
    kept = Kept()
    async with Client(server.url) as client:
        with pytest.raises(Stale):
            await client.fetch("/f", 3, 7, kept, expect=expect)
    assert not [data for at, data in kept.blocks if at == 3]


async def test_validators_may_be_written_differently(server: Server) -> None:
    reply = part(TEXT[3:7], 3, 10, ETag='W/"e"', Last_Modified="Fri, 01 Mar 2024 10:00:00 GMT")
    expect = Expect(size=10, etag='"e"', last_modified="Fri, 01 Mar 2024 10:00:00 +0000")
    assert (await fetched(server, reply, 3, 7, expect)).data == TEXT[3:7]


async def test_bytes_behind_the_end_are_corrupt_and_no_other_answer(server: Server, client: Client) -> None:
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    server.reply(answer(TEXT + evil, length=10), answer(b"{}" + evil, length=2), answer(b"good"))
    kept = Kept()
    with pytest.raises(Corrupt, match="more bytes"):
        await client.fetch("/f", 0, None, kept, expect=Expect(size=10))
    assert kept.data == TEXT
    assert (await client.request("GET", "/list")).content == b"{}"
    assert (await client.request("GET", "/next")).content == b"good"
    assert server.connections == 3


async def test_an_error_of_the_sink_comes_out_as_it_is(server: Server, client: Client) -> None:
    class Full:
        async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
            raise OSError("disk full")

    server.reply(answer(TEXT))
    with pytest.raises(OSError, match="disk full"):
        await client.fetch("/f", 0, None, Full())


async def test_fetch_raises_what_the_status_says(server: Server, client: Client) -> None:
    xml = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    server.reply(answer(xml, "403 Forbidden"), answer(b"", "404 Not Found"))
    with pytest.raises(Denied, match="Request has expired") as caught:
        await client.fetch("/f", 0, None, Kept())
    assert caught.value.code == "AccessDenied"
    with pytest.raises(NotFound):
        await client.fetch("/f", 0, None, Kept())


# --- send ---


@pytest.mark.parametrize("size", [0, 1, 3 << 20], ids=["empty", "one byte", "many blocks"])
async def test_send_uploads_the_part_with_its_length(server: Server, client: Client, size: int) -> None:
    data: Part = Bytes(bytes(range(256)) * (size // 256) or b"x" * size)
    server.reply(answer(b"{}"))
    found = await client.send("/up", data, method="POST", params={"overwrite": False}, headers={"X-Blob": "1"})
    (sent,) = server.requests
    assert found.json() == {}
    assert (sent.method, sent.target) == ("POST", "/up?overwrite=false")
    assert sent.headers["content-length"] == str(data.stop)
    assert "transfer-encoding" not in sent.headers
    assert memoryview(sent.body) == await data.read()
    assert client.traffic.sent_bytes == data.stop


async def test_a_part_of_another_length_is_not_sent(server: Server, client: Client) -> None:
    @attrs.define
    class Wrong(Bytes):
        @property
        def stop(self) -> int:
            return 99

    with pytest.raises(Corrupt):
        await client.send("/up", Wrong(b"abc"))
    assert server.requests == []


async def test_an_early_refusal_of_an_upload_is_heard(server: Server, client: Client) -> None:
    server.reply(answer(b"too big", "413 Content Too Large", close=True, Content_Type="text/plain"))
    with pytest.raises(BackendError, match="too big"):
        await client.send("/up", Bytes(b"x" * 100_000))


# --- secrets ---


async def test_no_secret_is_shown_anywhere(
    server: Server, other: Server, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    said = ""
    other.reply(
        answer(b"", "302 Found", Location=f"{other.url}/SECRET?sig=SECRET"),
        answer(b"see https://h/x?sig=SECRET", "403 Forbidden", Content_Type="text/plain"),
        part(TEXT, 5, 100),
        b"HTTP/1.1 200 SECRET\x00\r\n\r\n",
    )
    async with Client(server.url, Tokens(["SECRET"])) as client:
        for _ in range(3):
            with pytest.raises(BackendError) as caught:
                await client.fetch(f"{other.url}/SECRET?sig=SECRET", 0, 5, Kept(), headers={"X-Sig": "SECRET"})
            said += repr(caught.value) + str(caught.value)
            said += str(caught.value.__cause__)
    assert len(other.requests) == 4
    assert caplog.records
    assert "SECRET" not in said
    assert "SECRET" not in caplog.text
    logging.getLogger("httpx").info("%s", "still works")
