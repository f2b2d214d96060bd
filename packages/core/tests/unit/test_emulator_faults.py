"""Each fault that an emulator can be told to have, as a client sees it."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fusekit.testing.faults import Fault, FaultPlan, Latency, Limit, What
from fusekit.testing.files import FilesEmulator
from fusekit.testing.running import RunningEmulator
from fusekit.testing.stalls import Stalls

DATA = bytes(range(200)) * 50


@pytest.fixture
def files() -> Iterator[RunningEmulator]:
    with FilesEmulator.start() as running:
        running.controls.merge_state({"files": {"a": {"content": base64.b64encode(DATA).decode()}}})
        yield running
        assert running.controls.counters().failures == 0


def connect(running: RunningEmulator) -> http.client.HTTPConnection:
    url = urlsplit(running.url)
    return http.client.HTTPConnection(str(url.hostname), url.port, timeout=20)


def get(running: RunningEmulator, path: str = "/files/a", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = connect(running)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def put(running: RunningEmulator, data: bytes, path: str = "/files/b") -> int:
    connection = connect(running)
    try:
        connection.request("PUT", path, body=data)
        return connection.getresponse().status
    finally:
        connection.close()


# --- which requests are hit


def test_fault_strikes_as_often_as_it_was_told_and_is_over(files: RunningEmulator) -> None:
    files.controls.fault("status", "get", count=2, status=500)
    assert [get(files)[0].status for _ in range(4)] == [500, 500, 200, 200]
    [armed] = files.controls.faults()
    assert (armed.seen, armed.fired) == (2, 2)


def test_first_requests_can_be_let_pass(files: RunningEmulator) -> None:
    files.controls.fault("status", skip=2)
    assert [get(files)[0].status for _ in range(4)] == [200, 200, 503, 200]


def test_fault_is_for_a_route_by_pattern_and_for_targets_by_text(files: RunningEmulator) -> None:
    files.controls.fault("status", "p*", count=None, status=500)
    files.controls.fault("status", contains="a b?x=1", count=None, status=503)
    assert put(files, b"1") == 500
    assert get(files)[0].status == 200
    assert get(files, "/files/a%20b?x=1")[0].status == 503


def test_faults_can_be_dropped_one_or_all(files: RunningEmulator) -> None:
    first = files.controls.fault("status", count=None, status=500)
    files.controls.fault("status", count=None, status=503)
    assert get(files)[0].status == 500
    files.controls.clear_faults(first)
    assert get(files)[0].status == 503
    files.controls.clear_faults()
    assert get(files)[0].status == 200


def test_probability_hits_the_same_requests_for_the_same_seed() -> None:
    def hits(seed: int) -> list[bool]:
        plan = FaultPlan(seed)
        plan.arm(Fault(What.STATUS, probability=0.5, count=None))
        return [plan.draw("r", "/", False) is not None for _ in range(200)]

    assert hits(1) == hits(1)
    assert hits(1) != hits(2)
    assert 60 < sum(hits(1)) < 140


def test_jitter_is_the_same_for_the_same_seed_however_routes_interleave() -> None:
    one, two = FaultPlan(7), FaultPlan(7)
    for plan in (one, two):
        plan.set_latency("*", Latency(fixed_s=1.0, jitter_s=0.5))
    a = [one.delay("a")[0] for _ in range(20)]
    mixed = [(two.delay("a")[0], two.delay("b")[0]) for _ in range(20)]
    assert a == [delay for delay, _ in mixed]
    assert len(set(a)) == 20
    assert all(1.0 <= delay < 1.5 for delay in a)


def test_latency_of_a_route_goes_before_that_of_all() -> None:
    plan = FaultPlan()
    plan.set_latency("*", Latency(1.0))
    plan.set_latency("get", Latency(2.0, bytes_per_s=10.0))
    assert plan.delay("get") == (2.0, 10.0)
    assert plan.delay("put") == (1.0, None)
    plan.set_latency("get", None)
    assert plan.delay("get") == (1.0, None)


def test_slow_body_waits_as_long_as_its_bytes_take(monkeypatch: pytest.MonkeyPatch) -> None:
    stalls = Stalls()
    now = [100.0]
    monkeypatch.setattr("fusekit.testing.stalls.time.monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += max(0.0, seconds)

    monkeypatch.setattr(stalls, "sleep", sleep)
    wait = stalls.pace(1000.0)
    for size in (500, 1500, 3000):
        wait(size)
    assert now[0] == pytest.approx(105.0)


def test_slow_body_arrives_whole(files: RunningEmulator) -> None:
    files.controls.set_latency({"get": Latency(bytes_per_s=1e9)})
    assert get(files)[1] == DATA


def test_fault_survives_the_way_to_another_process_and_back() -> None:
    fault = Fault(What.STALL, "get", "x", None, 3, 0.5, 500, "7", True, 1, 2, 3.0)
    assert Fault.from_json(json.loads(json.dumps(fault.to_json()))) == fault


def test_unknown_fault_is_refused(files: RunningEmulator) -> None:
    with pytest.raises(ValueError, match="explode"):
        files.controls.fault("explode")
    with pytest.raises(TypeError):
        files.controls.fault("status", color="red")


def test_what_was_done_on_purpose_is_in_the_log(files: RunningEmulator) -> None:
    files.controls.fault("status", status=500)
    get(files)
    get(files)
    assert [(one.fault, one.status) for one in files.controls.requests()] == [("status", 500), (None, 200)]


def test_limit_lets_a_burst_pass_and_then_so_many_a_second(files: RunningEmulator) -> None:
    files.controls.freeze()
    files.controls.set_limits({"g*": Limit(per_s=2.0, burst=3, retry_after="1")})
    assert [get(files)[0].status for _ in range(5)] == [200, 200, 200, 429, 429]
    assert put(files, b"") == 201
    files.controls.advance(0.5)
    answers = [get(files)[0] for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429]
    assert answers[1].headers["Retry-After"] == "1"
    files.controls.advance(60)
    assert [get(files)[0].status for _ in range(4)] == [200, 200, 200, 429]
    files.controls.set_limits({})
    assert get(files)[0].status == 200


# --- instead of the answer


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("retry_after", [None, "3", "Wed, 21 Oct 2037 07:28:00 GMT"])
def test_error_status_with_and_without_retry_after(
    files: RunningEmulator, status: int, retry_after: str | None
) -> None:
    files.controls.fault("status", status=status, retry_after=retry_after)
    answer, _ = get(files)
    assert answer.status == status
    assert answer.headers["Retry-After"] == retry_after


def test_connection_goes_on_after_an_error_status(files: RunningEmulator) -> None:
    files.controls.fault("status", "put")
    connection = connect(files)
    statuses = []
    for _ in range(2):
        connection.request("PUT", "/files/b", body=bytes(3 << 20))
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
    connection.close()
    assert statuses == [503, 201]
    assert files.controls.counters().connections == 1


def test_refused_request_was_not_carried_out(files: RunningEmulator) -> None:
    files.controls.fault("status", "put")
    assert put(files, b"1") == 503
    assert get(files, "/files/b")[0].status == 404


@pytest.mark.parametrize("what", ["status", "reset", "html", "garbage"])
def test_request_can_be_carried_out_before_the_failure(files: RunningEmulator, what: str) -> None:
    files.controls.fault(what, "put", done=True)
    try:
        status = put(files, b"1")
    except (ConnectionError, http.client.HTTPException):
        status = 0
    assert status != 201
    assert get(files, "/files/b")[1] == b"1"


def test_reset_instead_of_an_answer(files: RunningEmulator) -> None:
    files.controls.fault("reset")
    with pytest.raises(ConnectionResetError):
        get(files)
    assert files.controls.requests()[0].status == 0
    assert get(files)[1] == DATA


def test_reset_in_the_middle_of_an_upload(files: RunningEmulator) -> None:
    files.controls.fault("reset", "put", upload_byte=1 << 20)
    with pytest.raises(ConnectionError):
        put(files, bytes(32 << 20))
    assert files.controls.requests()[0].bytes_in == 1 << 20
    assert get(files, "/files/b")[0].status == 404


def test_garbage_is_no_http(files: RunningEmulator) -> None:
    files.controls.fault("garbage")
    with pytest.raises(http.client.BadStatusLine):
        get(files)


@pytest.mark.parametrize("status", [None, 200, 500, 502])
def test_html_page_with_any_status(files: RunningEmulator, status: int | None) -> None:
    files.controls.fault("html", status=status)
    answer, body = get(files)
    assert answer.status == (status or 200)
    assert answer.headers["Content-Type"].startswith("text/html")
    assert b"<html>" in body


def test_json_that_is_none(files: RunningEmulator) -> None:
    files.controls.fault("not-json")
    answer, body = get(files)
    assert answer.headers["Content-Type"] == "application/json"
    with pytest.raises(ValueError):
        json.loads(body)


def test_stalled_request_is_answered_when_released(files: RunningEmulator) -> None:
    files.controls.fault("stall", "put")
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(put(files, b"1")))
    thread.start()
    assert files.controls.wait_for_stalled() == 1
    assert statuses == []
    assert get(files, "/files/b")[0].status == 404  # held before it was carried out
    assert files.controls.release() == 1
    thread.join()
    assert statuses == [201]


def test_stall_after_the_request_was_carried_out(files: RunningEmulator) -> None:
    files.controls.fault("stall", "put", done=True)
    thread = threading.Thread(target=put, args=(files, b"1"))
    thread.start()
    files.controls.wait_for_stalled()
    assert get(files, "/files/b")[1] == b"1"
    files.controls.release()
    thread.join()


def test_stall_ends_by_itself(files: RunningEmulator) -> None:
    files.controls.fault("stall", hold_s=0.01)
    assert get(files)[1] == DATA
    with pytest.raises(TimeoutError):
        files.controls.wait_for_stalled(timeout_s=0.0)


# --- the answer's body


def test_stall_in_the_middle_of_a_body(files: RunningEmulator) -> None:
    files.controls.fault("stall", at_byte=1234)
    connection = connect(files)
    connection.request("GET", "/files/a")
    answer = connection.getresponse()
    assert answer.read(1234) == DATA[:1234]
    files.controls.wait_for_stalled()
    files.controls.release()
    assert answer.read() == DATA[1234:]
    connection.close()


def test_reset_in_the_middle_of_a_body(files: RunningEmulator) -> None:
    files.controls.fault("reset", at_byte=100)
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        get(files)
    [logged] = files.controls.requests()
    assert (logged.status, logged.bytes_out, logged.cut) == (200, 100, True)


@pytest.mark.parametrize(("at_byte", "expected"), [(None, len(DATA) // 2), (0, 0), (77, 77)])
def test_truncated_body_ends_before_its_announced_length(
    files: RunningEmulator, at_byte: int | None, expected: int
) -> None:
    files.controls.fault("truncated", at_byte=at_byte)
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(files)
    assert caught.value.partial == DATA[:expected]
    assert caught.value.expected == len(DATA) - expected
    assert files.controls.counters().bytes_out("get") == expected


def test_truncated_upload_answer_without_a_body_is_cut_as_well(files: RunningEmulator) -> None:
    files.controls.merge_state({"files": {"empty": {"content": ""}}})
    files.controls.fault("truncated")
    with pytest.raises(http.client.IncompleteRead):
        get(files, "/files/empty")


def test_short_body_has_a_length_that_agrees_with_itself_but_not_with_the_range(files: RunningEmulator) -> None:
    files.controls.fault("short")
    answer, body = get(files, Range="bytes=100-199")
    assert answer.headers["Content-Range"] == f"bytes 100-199/{len(DATA)}"
    assert answer.headers["Content-Length"] == "50"
    assert body == DATA[100:150]


def test_overlong_body_has_more_than_the_range(files: RunningEmulator) -> None:
    files.controls.fault("overlong")
    answer, body = get(files, Range="bytes=100-199")
    assert answer.headers["Content-Range"] == f"bytes 100-199/{len(DATA)}"
    assert answer.headers["Content-Length"] == "150"
    assert body[:100] == DATA[100:200]
    assert len(body) == 150


def test_extra_bytes_follow_the_announced_end(files: RunningEmulator) -> None:
    files.controls.fault("extra")
    url = urlsplit(files.url)
    with socket.create_connection((str(url.hostname), url.port), timeout=20) as sock:
        sock.sendall(b"GET /files/a HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(DATA)}".encode() in head
    assert body[: len(DATA)] == DATA
    assert len(body) > len(DATA)


def test_hangup_leaves_a_connection_that_looks_alive(files: RunningEmulator) -> None:
    files.controls.fault("hangup")
    connection = connect(files)
    connection.request("GET", "/files/a")
    answer = connection.getresponse()
    assert (answer.read(), answer.headers["Connection"]) == (DATA, "keep-alive")
    assert connection.sock is not None
    assert connection.sock.recv(1) == b""
    connection.close()


def test_wrong_range_announces_other_bytes(files: RunningEmulator) -> None:
    files.controls.fault("wrong-range")
    answer, body = get(files, Range="bytes=100-199")
    assert answer.headers["Content-Range"] == f"bytes 101-200/{len(DATA)}"
    assert body == DATA[100:200]


def test_wrong_bytes_come_under_the_right_heading(files: RunningEmulator) -> None:
    files.controls.fault("wrong-bytes")
    answer, body = get(files, Range="bytes=100-199")
    assert answer.headers["Content-Range"] == f"bytes 100-199/{len(DATA)}"
    assert len(body) == 100
    assert body != DATA[100:200]


def test_ignored_range_gets_everything(files: RunningEmulator) -> None:
    files.controls.fault("ignored-range")
    answer, body = get(files, Range="bytes=100-199")
    assert (answer.status, body) == (200, DATA)


@pytest.mark.parametrize("what", ["wrong-range", "wrong-bytes", "ignored-range"])
def test_faults_of_ranges_wait_for_a_request_with_one(files: RunningEmulator, what: str) -> None:
    files.controls.fault(what)
    get(files)
    assert files.controls.faults()[0].fired == 0
    get(files, Range="bytes=0-0")
    assert files.controls.faults()[0].fired == 1


@pytest.mark.parametrize("what", ["truncated", "reset", "stall", "extra"])
def test_faults_strike_bodies_that_are_files_over_tls(tmp_path: Path, what: str) -> None:
    (tmp_path / "big").write_bytes(DATA * 200)
    with FilesEmulator.start(tls=True) as running:
        running.controls.merge_state({"files": {"big": {"file": str(tmp_path / "big")}}})
        running.controls.fault(what, at_byte=100_000, hold_s=0.01)
        url = urlsplit(running.url)
        context = ssl.create_default_context(cafile=str(running.ca_file))
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        received = b""
        with context.wrap_socket(
            socket.create_connection((str(url.hostname), url.port), timeout=20), server_hostname="127.0.0.1"
        ) as sock:
            sock.sendall(b"GET /files/big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            try:
                while data := sock.recv(1 << 16):
                    received += data
            except (ConnectionResetError, ssl.SSLEOFError):
                pass
        body = received.partition(b"\r\n\r\n")[2]
        size = len(DATA) * 200
        if what in {"truncated", "reset"}:
            assert len(body) <= 100_000
            assert body == (DATA * 200)[: len(body)]
        elif what == "stall":
            assert body == DATA * 200
        else:
            assert len(body) > size
        assert running.controls.counters().failures == 0


def test_a_reset_is_a_reset_and_no_orderly_end(files: RunningEmulator) -> None:
    files.controls.fault("reset")
    url = urlsplit(files.url)
    with socket.create_connection((str(url.hostname), url.port), timeout=20) as sock:
        sock.sendall(b"GET /files/a HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
