"""The HTTP that emulators speak: framing, keep-alive, ranges, preconditions; and what the blobs behind it promise."""

from __future__ import annotations

import base64
import http.client
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from fusekit.testing.blobs import IN_MEMORY_MAX, BlobStore, TooLarge
from fusekit.testing.files import FilesEmulator
from fusekit.testing.replies import Reply
from fusekit.testing.routes import RouteTable, route
from fusekit.testing.running import RunningEmulator
from fusekit.testing.server import Request

DATA = b"0123456789"


@pytest.fixture(scope="module")
def files() -> Iterator[RunningEmulator]:
    with FilesEmulator.start() as running:
        running.controls.freeze(1_000_000_000.5)
        running.controls.merge_state({"files": {"a": {"content": base64.b64encode(DATA).decode()}}})
        yield running
        assert running.controls.counters().failures == 0


def talk(running: RunningEmulator, sent: bytes, *, shut: bool = True) -> bytes:
    """Send raw bytes, end our side, and return all that comes back."""
    url = urlsplit(running.url)
    with socket.create_connection((str(url.hostname), url.port), timeout=20) as sock:
        sock.sendall(sent)
        if shut:
            sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def get(running: RunningEmulator, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    url = urlsplit(running.url)
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=20)
    try:
        connection.request(
            method, "/files/a", headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


# --- framing


def test_requests_sent_at_once_are_answered_in_order(files: RunningEmulator) -> None:
    one = b"GET /files/a HTTP/1.1\r\nHost: x\r\nRange: bytes=%d-%d\r\n\r\n"
    received = talk(files, one % (0, 0) + one % (1, 2) + one % (3, 5))
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in received.split(b"HTTP/1.1 206 ")[1:]]
    assert bodies == [b"0", b"12", b"345"]


def test_chunked_upload_is_taken(files: RunningEmulator) -> None:
    size = IN_MEMORY_MAX + 100_000
    data = os.urandom(size)
    chunks = b"".join(
        b"%x;x=y\r\n%b\r\n" % (len(part), part)
        for part in (data[start : start + 70_001] for start in range(0, size, 70_001))
    )
    head = b"PUT /files/chunked HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    read = b"GET /files/chunked HTTP/1.1\r\nHost: x\r\n\r\n"
    received = talk(files, head + chunks + b"0\r\nTrailer: x\r\n\r\n" + read)
    assert received.count(b"HTTP/1.1 ") == 2
    assert received.endswith(data)


@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc"])
def test_upload_that_breaks_off_is_not_stored(files: RunningEmulator, framing: bytes) -> None:
    assert talk(files, b"PUT /files/broken HTTP/1.1\r\nHost: x\r\n" + framing) == b""
    assert b" 404 " in talk(files, b"GET /files/broken HTTP/1.1\r\nHost: x\r\n\r\n").split(b"\r\n")[0]


def test_client_that_waits_for_permission_gets_it(files: RunningEmulator) -> None:
    url = urlsplit(files.url)
    with socket.create_connection((str(url.hostname), url.port), timeout=20) as sock:
        sock.sendall(b"PUT /files/c HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"ok")
        assert sock.recv(1000).startswith(b"HTTP/1.1 201 ")


def test_client_that_waits_for_permission_is_refused_without_the_body(files: RunningEmulator) -> None:
    files.controls.fault("status", "put", status=503)
    head = b"PUT /files/c HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\nExpect: 100-continue\r\n\r\n"
    received = talk(files, head, shut=False)
    assert received.startswith(b"HTTP/1.1 503 ")
    assert b"Connection: close" in received


@pytest.mark.parametrize(
    "sent",
    [
        b"HELLO\r\n\r\n",
        b"GET / HTTP/3\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"a" * 70_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_request_gets_400_and_the_connection_ends(files: RunningEmulator, sent: bytes) -> None:
    assert talk(files, sent, shut=False).startswith(b"HTTP/1.1 400 ")


def test_head_that_breaks_off_gets_nothing(files: RunningEmulator) -> None:
    before = files.controls.counters().requests()
    assert talk(files, b"GET /files/a HTTP/1.1\r\nHost: x\r\n") == b""
    assert files.controls.counters().requests() == before


@pytest.mark.parametrize(("version", "header"), [("1.0", ""), ("1.1", "Connection: close\r\n")])
def test_connection_ends_where_the_client_wants_that(files: RunningEmulator, version: str, header: str) -> None:
    received = talk(files, f"GET /files/a HTTP/{version}\r\nHost: x\r\n{header}\r\n".encode(), shut=False)
    assert received.endswith(DATA)
    assert b"Connection: close" in received


def test_absolute_target_is_taken_as_its_path(files: RunningEmulator) -> None:
    assert talk(files, b"GET http://elsewhere.example/files/a HTTP/1.1\r\nHost: x\r\n\r\n").endswith(DATA)


def test_path_without_a_method_is_405_and_unknown_path_404(files: RunningEmulator) -> None:
    assert b" 405 " in talk(files, b"POST /files/a HTTP/1.1\r\nHost: x\r\n\r\n").split(b"\r\n")[0]
    assert b" 404 " in talk(files, b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n").split(b"\r\n")[0]


# --- ranges and preconditions


@pytest.mark.parametrize(
    ("wanted", "status", "body", "announced"),
    [
        ("bytes=0-0", 206, b"0", "bytes 0-0/10"),
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=8-100", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-100", 206, DATA, "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=5-4", 200, DATA, None),
        ("bytes=0-1,3-4", 200, DATA, None),
        ("bytes=-", 200, DATA, None),
        ("lines=0-1", 200, DATA, None),
    ],
)
def test_range(files: RunningEmulator, wanted: str, status: int, body: bytes, announced: str | None) -> None:
    answer, received = get(files, Range=wanted)
    assert (answer.status, received, answer.headers["Content-Range"]) == (status, body, announced)
    assert answer.headers["Content-Length"] == str(len(body))


def test_head_has_the_headers_of_get_and_no_body(files: RunningEmulator) -> None:
    answer, body = get(files, "HEAD")
    full, _ = get(files)
    assert body == b""
    for name in ("Content-Length", "ETag", "Last-Modified", "Accept-Ranges", "Content-Type"):
        assert answer.headers[name] == full.headers[name] is not None
    assert full.headers["Last-Modified"] == "Sun, 09 Sep 2001 01:46:40 GMT"


def test_preconditions(files: RunningEmulator) -> None:
    etag = str(get(files)[0].headers["ETag"])
    then, before = "Sun, 09 Sep 2001 01:46:40 GMT", "Sun, 09 Sep 2001 01:46:39 GMT"
    cases = [
        ({"If_Match": etag}, 200),
        ({"If_Match": "*"}, 200),
        ({"If_Match": '"other"'}, 412),
        ({"If_Unmodified_Since": then}, 200),
        ({"If_Unmodified_Since": before}, 412),
        ({"If_None_Match": f'"other", {etag}'}, 304),
        ({"If_None_Match": '"other"'}, 200),
        ({"If_Modified_Since": then}, 304),
        ({"If_Modified_Since": before}, 200),
        ({"If_Modified_Since": "nonsense"}, 200),
        ({"Range": "bytes=0-0", "If_Range": etag}, 206),
        ({"Range": "bytes=0-0", "If_Range": '"other"'}, 200),
        ({"Range": "bytes=0-0", "If_Range": then}, 206),
        ({"Range": "bytes=0-0", "If_Range": before}, 200),
    ]
    assert [get(files, **headers)[0].status for headers, _ in cases] == [status for _, status in cases]


def test_new_content_has_a_new_etag(files: RunningEmulator) -> None:
    put = b"PUT /files/e HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nsame"
    read = b"HEAD /files/e HTTP/1.1\r\nHost: x\r\n\r\n"
    etags = [line for line in talk(files, put + read + put + read).split(b"\r\n") if line.startswith(b"ETag")]
    assert len(etags) == 4
    assert len(set(etags)) == 2


# --- routes


class _Handlers:
    @route("one", "GET", "/a/{x}")
    @route("one", "POST", "/a/{x}")
    def one(self, request: Request) -> Reply:
        return Reply()

    @route("rest", "GET", "/a/{x}/{rest...}")
    def rest(self, request: Request) -> Reply:
        return Reply()

    @route("fixed", "GET", "/a/fixed")
    def fixed(self, request: Request) -> Reply:
        return Reply()


def test_routes_are_found_by_method_and_path() -> None:
    table = RouteTable()
    table.add(_Handlers())

    def find(method: str, path: str) -> tuple[str | None, dict[str, str]]:
        found, params, _ = table.find(method, path)
        return (found.name if found else None), params

    assert find("GET", "/a/fixed") == ("fixed", {})
    assert find("GET", "/a/b%2Fc%20d") == ("one", {"x": "b/c d"})
    assert find("POST", "/a/b") == ("one", {"x": "b"})
    assert find("HEAD", "/a/b") == ("one", {"x": "b"})
    assert find("GET", "/a/b/c/d%2Fe") == ("rest", {"x": "b", "rest": "c/d/e"})
    assert find("PUT", "/a/b") == (None, {})
    assert table.find("PUT", "/a/b")[2] == {"GET", "POST"}
    assert find("GET", "/b") == (None, {})
    assert table.names() == ["fixed", "one", "rest"]


# --- blobs


def test_blob_over_the_limit_is_refused() -> None:
    store = BlobStore()
    try:
        blocks = [memoryview(bytes(1 << 20))] * 3
        with pytest.raises(TooLarge):
            store.receive(blocks, (3 << 20) - 1)
        assert store.receive(blocks, 3 << 20).read() == bytes(3 << 20)
    finally:
        store.close()


@pytest.mark.parametrize("size", [0, 1, IN_MEMORY_MAX, IN_MEMORY_MAX + 1])
def test_blob_is_what_was_received_in_memory_or_in_a_file(size: int) -> None:
    store = BlobStore()
    try:
        data = os.urandom(size)
        block = bytearray(100_000)

        def blocks() -> Iterator[memoryview]:
            for start in range(0, size, len(block)):
                part = data[start : start + len(block)]
                block[: len(part)] = part  # the buffer is used again, as a connection does
                yield memoryview(block)[: len(part)]

        blob = store.receive(blocks())
        assert (blob.path is None) is (size <= IN_MEMORY_MAX)
        assert blob.read() == data
        assert blob.read(size // 2, size // 2 + 10) == data[size // 2 : size // 2 + 10]
    finally:
        store.close()


def test_file_of_a_forgotten_blob_is_used_again_and_shows_nothing_of_it() -> None:
    store = BlobStore()
    try:
        first = store.receive([memoryview(b"a" * (3 << 20))])
        assert first.path is not None
        number = first.path.stat().st_ino
        del first
        second = store.receive([memoryview(b"b" * (2 << 20))])
        assert second.path is not None
        assert second.path.stat().st_ino == number
        assert second.path.stat().st_size == 2 << 20
        assert second.read() == b"b" * (2 << 20)
    finally:
        store.close()
