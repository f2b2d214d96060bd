"""The emulator base as its users see it: running, logging, counting, steering; on the file server that comes with it."""

from __future__ import annotations

import base64
import http.client
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fusekit.testing.blobs import IN_MEMORY_MAX
from fusekit.testing.certificates import _by_openssl, make_certificate
from fusekit.testing.clock import Clock
from fusekit.testing.controls import ControlError
from fusekit.testing.faults import Latency
from fusekit.testing.files import FilesEmulator
from fusekit.testing.running import RunningEmulator, serve

Start = Callable[..., AbstractContextManager[RunningEmulator]]


@pytest.fixture
def files() -> Iterator[RunningEmulator]:
    with FilesEmulator.start() as running:
        yield running
        assert running.controls.counters().failures == 0


def connect(running: RunningEmulator) -> http.client.HTTPConnection:
    url = urlsplit(running.url)
    assert url.hostname is not None
    if running.ca_file is None:
        return http.client.HTTPConnection(url.hostname, url.port, timeout=20)
    context = ssl.create_default_context(cafile=str(running.ca_file))
    return http.client.HTTPSConnection(url.hostname, url.port, timeout=20, context=context)


def call(
    running: RunningEmulator, method: str, path: str, body: object = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = connect(running)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=named)  # type: ignore[arg-type]  # any body that it takes
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def content(data: bytes) -> dict[str, str]:
    return {"content": base64.b64encode(data).decode()}


# --- running


@pytest.mark.parametrize("start", [FilesEmulator.start, FilesEmulator.spawn], ids=["here", "process"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_stores_and_serves_wherever_it_runs(start: Start, tls: bool) -> None:
    with start(tls=tls) as running:
        assert running.url.startswith("https://127.0.0.1:" if tls else "http://127.0.0.1:")
        assert (running.pid == os.getpid()) is (running.here is not None)
        large = os.urandom(IN_MEMORY_MAX + 12345)
        assert call(running, "PUT", "/files/a%20b/large", large)[0].status == 201
        assert call(running, "GET", "/files/a%20b/large")[1] == large
        ranged = call(running, "GET", "/files/a%20b/large", Range="bytes=1048570-1048599")
        assert (ranged[0].status, ranged[1]) == (206, large[1048570:1048600])
        environment = running.environment()
        assert environment["FUSEKIT_FILES_URL"] == f"{running.url}/files/"
        assert ("SSL_CERT_FILE" in environment) is tls
        counters = running.controls.counters()
        assert counters.by_route() == {"get": 2, "put": 1}
        assert counters.failures == 0


def test_tls_is_refused_by_who_does_not_know_the_certificate() -> None:
    with FilesEmulator.start(tls=True) as running:
        strange = RunningEmulator("http", running.url, None, 0, running.controls)
        url = urlsplit(strange.url)
        connection = http.client.HTTPSConnection(str(url.hostname), url.port, timeout=20)
        with pytest.raises(ssl.SSLCertVerificationError):
            connection.request("GET", "/files/")


def test_certificate_made_by_the_openssl_command_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_command(directory: Path) -> object:
        made = make_certificate(directory)
        _by_openssl(made)
        return made

    monkeypatch.setattr("fusekit.testing.emulator.make_certificate", by_command)
    with FilesEmulator.start(tls=True) as running:
        assert call(running, "GET", "/files/")[0].status == 200


def test_private_key_is_private_and_gone_at_the_end() -> None:
    with FilesEmulator.start(tls=True) as running:
        assert running.ca_file is not None
        directory = running.ca_file.parent
        assert directory.stat().st_mode & 0o077 == 0
        assert (directory / "key.pem").stat().st_mode & 0o077 == 0
    assert not directory.exists()


def test_child_ends_when_its_parent_does() -> None:
    code = (
        "import os\n"
        "from fusekit.testing.files import FilesEmulator\n"
        "running = FilesEmulator.spawn().__enter__()\n"
        "print(running.pid, flush=True)\n"
        "os._exit(1)\n"
    )
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    child = int(parent.stdout)
    try:
        watch = os.pidfd_open(child)
    except ProcessLookupError:
        return  # gone already
    try:
        assert select.select([watch], [], [], 20)[0], "the emulator outlived who started it"
    finally:
        os.close(watch)


def test_options_are_not_among_the_arguments_of_the_child() -> None:
    with FilesEmulator.spawn(token="a-secret") as running:
        assert b"a-secret" not in Path(f"/proc/{running.pid}/cmdline").read_bytes()
        assert call(running, "GET", "/files/")[0].status == 401
        assert call(running, "GET", "/files/", Authorization="Bearer a-secret")[0].status == 200


def test_command_prints_variables_and_ends_on_a_signal() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "fusekit.testing.files", "--tls"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        listening = process.stderr.readline()
        process.terminate()
        printed, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    exported = dict(line.removeprefix("export ").split("=", 1) for line in printed.splitlines())
    assert exported["FUSEKIT_FILES_URL"].removesuffix("/files/") in listening
    assert not Path(exported["SSL_CERT_FILE"]).exists()


def test_serving_gives_signal_handlers_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    serve(FilesEmulator, FilesEmulator.options(), lambda running: signal.raise_signal(signal.SIGTERM))
    assert [signal.getsignal(number) for number in numbers] == before


def test_stopping_breaks_open_connections_and_frees_the_port() -> None:
    with FilesEmulator.start() as running:
        port = urlsplit(running.url).port
        connection = connect(running)
        connection.request("GET", "/files/")
        connection.getresponse().read()
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        _ask_again(connection)
    with FilesEmulator.start(port=port) as again:
        assert urlsplit(again.url).port == port


def _ask_again(connection: http.client.HTTPConnection) -> None:
    connection.request("GET", "/files/")
    connection.getresponse()


def test_stored_files_are_written_over_when_replaced_and_deleted_at_the_end() -> None:
    with FilesEmulator.start() as running:
        assert running.here is not None
        directory = Path(running.here.blobs._directory.name)
        for more in (3, 2, 1):
            data = os.urandom(IN_MEMORY_MAX + more)
            call(running, "PUT", "/files/x", data)
            assert call(running, "GET", "/files/x")[1] == data
        assert len(list(directory.iterdir())) <= 2
    assert not directory.exists()


# --- log and counters


def test_log_has_every_request_in_order(files: RunningEmulator) -> None:
    call(files, "PUT", "/files/a", b"12345")
    call(files, "GET", "/files/a", Range="bytes=1-2")
    call(files, "GET", "/nowhere?x=1")
    seen = [
        (one.number, one.route, one.method, one.path, one.query, one.range, one.status, one.bytes_in, one.bytes_out)
        for one in files.controls.requests()
    ]
    assert seen == [
        (1, "put", "PUT", "/files/a", {}, None, 201, 5, 0),
        (2, "get", "GET", "/files/a", {}, "bytes=1-2", 206, 0, 2),
        (3, "unknown", "GET", "/nowhere", {"x": "1"}, None, 404, 0, 10),
    ]
    assert [one.number for one in files.controls.requests("get")] == [2]
    assert [one.number for one in files.controls.requests(after=2)] == [3]


def test_counters_are_by_route_method_and_status(files: RunningEmulator) -> None:
    for _ in range(3):
        call(files, "PUT", "/files/a", b"12345")
    call(files, "HEAD", "/files/a")
    call(files, "GET", "/files/missing")
    counters = files.controls.counters()
    assert [(one.route, one.method, one.status, one.requests) for one in counters.counts] == [
        ("get", "GET", 404, 1),
        ("get", "HEAD", 200, 1),
        ("put", "PUT", 201, 1),
        ("put", "PUT", 204, 2),
    ]
    assert counters.requests() == 5
    assert counters.requests("put") == 3
    assert counters.requests("put", 204) == 2
    assert counters.bytes_in("put") == 15
    assert counters.bytes_out("put") == 0
    assert counters.connections == 5


def test_requests_that_share_a_connection_count_one_connection(files: RunningEmulator) -> None:
    connection = connect(files)
    for _ in range(4):
        connection.request("GET", "/files/")
        connection.getresponse().read()
    connection.close()
    assert files.controls.counters().connections == 1
    assert {one.connection for one in files.controls.requests()} == {files.controls.requests()[0].connection}


def test_reset_starts_counting_at_nothing_and_keeps_state(files: RunningEmulator) -> None:
    call(files, "PUT", "/files/a", b"1")
    files.controls.reset()
    assert files.controls.counters().requests() == 0
    assert files.controls.requests() == []
    assert call(files, "GET", "/files/a")[1] == b"1"
    assert files.controls.counters().by_route() == {"get": 1}


def test_control_requests_are_neither_logged_nor_slowed_nor_hit(files: RunningEmulator) -> None:
    files.controls.fault("status", count=None)
    files.controls.set_latency(Latency(fixed_s=600))
    assert files.controls.now() > 0
    assert files.controls.counters().requests() == 0


def test_side_door_is_closed_to_who_does_not_know_its_header(files: RunningEmulator) -> None:
    answer, body = call(files, "DELETE", "/_emulator/counters")
    assert answer.status == 403
    assert b"X-Fusekit-Emulator" in body


def test_peak_is_the_number_of_requests_in_work_at_once(files: RunningEmulator) -> None:
    files.controls.fault("stall", "get", count=3)
    threads = [threading.Thread(target=call, args=(files, "GET", "/files/")) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert files.controls.wait_for_stalled(3) == 3
    assert files.controls.release() == 3
    for thread in threads:
        thread.join()
    assert files.controls.counters().peak == {"get": 3, "*": 3}


def test_waiting_for_requests_ends_when_they_came_or_says_that_they_did_not(files: RunningEmulator) -> None:
    call(files, "GET", "/files/")
    assert files.controls.wait_for_requests("get") == 1
    with pytest.raises(TimeoutError, match="put received 0 requests, not 1"):
        files.controls.wait_for_requests("put", timeout_s=0.01)


def test_exception_in_a_handler_is_counted_and_answers_500(monkeypatch: pytest.MonkeyPatch) -> None:
    with FilesEmulator.start() as running:
        assert isinstance(running.here, FilesEmulator)
        monkeypatch.setattr(running.here, "_files", None)
        assert call(running, "GET", "/files/x")[0].status == 500
        assert running.controls.counters().failures == 1


# --- state, clock, latency


def test_state_can_be_merged_replaced_and_taken_along(files: RunningEmulator, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"from a file")
    files.controls.replace_state({"files": {"a": content(b"one"), "b": content(b"two")}})
    files.controls.merge_state({"files": {"c": {"file": str(tmp_path / "big")}, "a": content(b"ONE")}})
    assert [call(files, "GET", f"/files/{name}")[1] for name in "abc"] == [b"ONE", b"two", b"from a file"]
    taken = files.controls.state()
    files.controls.replace_state({"files": {}})
    assert call(files, "GET", "/files/a")[0].status == 404
    files.controls.replace_state(taken)
    assert call(files, "GET", "/files/c")[1] == b"from a file"


def test_bad_control_requests_say_what_is_wrong(files: RunningEmulator) -> None:
    controls = files.controls
    with pytest.raises(ControlError, match="no knob speed"):
        controls.set_knobs(speed=1)
    with pytest.raises(ControlError, match="hands out no urls"):
        controls.expire("urls")
    with pytest.raises(ControlError, match="KeyError"):
        controls.replace_state({"nothing": 1})
    with pytest.raises(ControlError, match="no such control"):
        controls._call("GET", "what")


def test_expired_tokens_are_refused() -> None:
    with FilesEmulator.start(token="t") as running:
        assert call(running, "GET", "/files/", Authorization="Bearer t")[0].status == 200
        running.controls.expire("tokens")
        assert call(running, "GET", "/files/", Authorization="Bearer t")[0].status == 401


def test_clock_stands_moves_and_runs_on(files: RunningEmulator) -> None:
    controls = files.controls
    assert controls.freeze(1000.0) == 1000.0
    assert controls.now() == 1000.0
    assert controls.advance(0.25) == 1000.25
    assert call(files, "PUT", "/files/a", b"")[0].status == 201
    headers = call(files, "GET", "/files/a")[0].headers
    assert headers["Last-Modified"] == headers["Date"] == "Thu, 01 Jan 1970 00:16:40 GMT"
    assert controls.requests()[0].time == 1000.25
    assert 1000.25 <= controls.run_clock() < 2000
    assert controls.follow_clock() > 1_700_000_000


def test_clock_in_this_process_counts_nanoseconds() -> None:
    clock = Clock()
    clock.freeze(5.0)
    clock.advance(1e-9)
    assert clock.now_ns() == 5_000_000_001
    assert clock.now_ms() == 5000
    clock.advance(-5)
    assert clock.now_ns() == 1


def test_latency_holds_the_answer_of_its_route_only_and_ends_with_the_emulator() -> None:
    with FilesEmulator.start() as running:
        running.controls.set_latency({"get": Latency(fixed_s=600)})
        late = threading.Thread(target=_ignoring_errors, args=(call, running, "GET", "/files/"), daemon=True)
        late.start()
        running.controls.wait_for_requests("get")
        assert call(running, "PUT", "/files/a", b"")[0].status == 201
        assert running.controls.requests("get")[0].open
    late.join(20)
    assert not late.is_alive()


def _ignoring_errors(function: Callable[..., object], *arguments: object) -> None:
    try:
        function(*arguments)
    except (OSError, http.client.HTTPException):
        return


def test_emulator_needs_no_more_than_the_standard_library_and_attrs() -> None:
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import fusekit.testing.files\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(found.split()) <= {"attr", "attrs", "fusekit"}


def test_client_that_leaves_in_the_middle_is_noted(files: RunningEmulator) -> None:
    files.controls.merge_state({"files": {"big": content(bytes(1 << 20))}})
    files.controls.fault("stall", "get", at_byte=10)
    url = urlsplit(files.url)
    with socket.create_connection((url.hostname, url.port), timeout=20) as sock:
        sock.sendall(b"GET /files/big HTTP/1.1\r\nHost: x\r\n\r\n")
        files.controls.wait_for_stalled()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    files.controls.release()
    assert files.here is not None
    with files.here.log._changed:
        assert files.here.log._changed.wait_for(lambda: files.here.log._kept[0].cut, 20)  # type: ignore[union-attr]
    assert files.controls.requests()[0].bytes_out < 1 << 20
