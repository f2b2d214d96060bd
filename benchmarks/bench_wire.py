"""What moving bytes over HTTP costs: MB/s, CPU-seconds a GiB, and microseconds of CPU for a small request.

    python benchmarks/bench_wire.py [--size 512MiB] [--repeat 3] [--json FILE] [--only NAME ...]

Each number is the median of several runs, each in a process of its own, against one server process on loopback that
sends from memory. CPU is user and system time of the client alone. Beside fusekit's data plane (``inlet``: into memory
that the receiver lends; ``sink``: through a buffer) the same bytes go through httpx and, where it is installed, curl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import socket
import socketserver
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from fusekit.testing.certificates import make_certificate
from fusekit.transfer.client import Client
from fusekit.values import parse_size

PARALLEL: Final = 8
SMALL: Final = 128 << 10
SMALL_REQUESTS: Final = 2000
_ROOM: Final = 4 << 20


# ---- the server ------------------------------------------------------------------------------------------------


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server: Any = self.server
        connection = self.request
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if server.tls is not None:
            connection = server.tls.wrap_socket(connection, server_side=True)
        received = b""
        with contextlib.suppress(OSError):
            while True:
                while b"\r\n\r\n" not in received:
                    more = connection.recv(65536)
                    if not more:
                        return
                    received += more
                head, _, received = received.partition(b"\r\n\r\n")
                self._answer(connection, head.lower(), server.data)

    def _answer(self, connection: Any, head: bytes, data: memoryview) -> None:
        start, stop = 0, len(data)
        status = "200 OK"
        if b"\nrange: bytes=" in head:
            first, _, last = head.split(b"\nrange: bytes=")[1].split(b"\r")[0].partition(b"-")
            start, stop = int(first), min(stop, int(last) + 1 if last else stop)
            status = f"206 Partial Content\r\nContent-Range: bytes {start}-{stop - 1}/{len(data)}"
        lines = f"HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {stop - start}\r\n\r\n"
        connection.sendall(lines.encode())
        for at in range(start, stop, 1 << 20):
            connection.sendall(data[at : min(stop, at + (1 << 20))])


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    tls: ssl.SSLContext | None = None
    data = memoryview(b"")


def serve(size: int, directory: Path, scheme: str) -> None:
    """Serve until standard input ends; the port is the first line of standard output."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.data = memoryview(bytes(range(256)) * (size // 256))
        if scheme == "https":
            server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server.tls.load_cert_chain(directory / "certificate.pem", directory / "key.pem")
        import threading

        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def served(size: int, directory: Path, scheme: str) -> Iterator[str]:
    command = [sys.executable, __file__, "--serve", scheme, "--size", str(size), "--directory", str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"{scheme}://localhost:{int(process.stdout.readline())}/blob"
        finally:
            process.communicate("")


# ---- the clients -----------------------------------------------------------------------------------------------


class _Sink:
    """Takes bytes and counts them."""

    def __init__(self) -> None:
        self.got = 0

    async def write(self, data: bytes | memoryview, at: int | None = None) -> None:
        self.got += len(data)


class _Inlet(_Sink):
    """Lends its memory, in pieces of 4 MiB as a block cache does."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = memoryview(bytearray(_ROOM))

    async def room(self, at: int) -> memoryview:
        return self._memory[at % _ROOM :]

    async def filled(self, count: int, at: int) -> None:
        self.got += count


def _ranges(size: int, mode: str) -> list[list[tuple[int, int]]]:
    """Return what each task fetches, one after the other."""
    if mode == "one":
        return [[(0, size)]]
    if mode == "small":
        each = SMALL_REQUESTS // PARALLEL
        places = [(number * SMALL % (size - SMALL)) // SMALL * SMALL for number in range(SMALL_REQUESTS)]
        return [[(at, at + SMALL) for at in places[i * each : (i + 1) * each]] for i in range(PARALLEL)]
    step = size // PARALLEL
    return [[(i * step, (i + 1) * step)] for i in range(PARALLEL)]


class _Meter:
    """CPU and time from `start` to `stop`, of this process or of those that it started."""

    def __init__(self, who: int) -> None:
        self._who = who

    def start(self) -> None:
        self._before, self._began = resource.getrusage(self._who), time.perf_counter()

    def stop(self) -> None:
        self.seconds, after = time.perf_counter() - self._began, resource.getrusage(self._who)
        self.cpu_s = after.ru_utime - self._before.ru_utime + after.ru_stime - self._before.ru_stime
        self.peak_mib = after.ru_maxrss / 1024


async def _by_fusekit(meter: _Meter, url: str, ca_file: Path, size: int, mode: str, *, inlet: bool) -> int:
    got = 0

    async def work(client: Client, sink: _Sink, ranges: list[tuple[int, int]]) -> None:
        nonlocal got
        for start, stop in ranges:
            await client.fetch(url, start, stop, sink)
        got += sink.got

    async with Client(url.rpartition("/")[0], ca_file=ca_file) as client:
        tasks = [(_Inlet() if inlet else _Sink(), ranges) for ranges in _ranges(size, mode)]
        meter.start()
        async with trio.open_nursery() as nursery:
            for sink, ranges in tasks:
                nursery.start_soon(work, client, sink, ranges)
        meter.stop()
    return got


async def _by_httpx(meter: _Meter, url: str, ca_file: Path, size: int, mode: str) -> int:
    got = 0

    async def work(client: httpx.AsyncClient, ranges: list[tuple[int, int]]) -> None:
        nonlocal got
        for start, stop in ranges:
            headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
            async with client.stream("GET", url, headers=headers) as response:
                async for block in response.aiter_raw():
                    got += len(block)

    context = ssl.create_default_context(cafile=ca_file)
    async with httpx.AsyncClient(verify=context, timeout=60) as client:
        meter.start()
        async with trio.open_nursery() as nursery:
            for ranges in _ranges(size, mode):
                nursery.start_soon(work, client, ranges)
        meter.stop()
    return got


def _by_curl(url: str, ca_file: Path, size: int, mode: str) -> int:
    command = ["curl", "-sS", "--fail", "--http1.1", "--cacert", str(ca_file), "-o", "/dev/null"]
    if mode == "small":
        # One process and one connection: what curl does without being started anew.
        every = [pair for ranges in _ranges(size, mode) for pair in ranges]
        lines = "".join(f"url={url}\nrange={start}-{stop - 1}\noutput=/dev/null\nnext\n" for start, stop in every)
        head = f"silent\ncacert={ca_file}\nhttp1.1\n"
        config = lines.replace("next\n", f"next\n{head}").removesuffix(f"next\n{head}")
        subprocess.run(["curl", "-K", "-"], input=head + config, text=True, check=True)
        return len(every) * SMALL
    running = [
        subprocess.Popen([*command, "-r", f"{start}-{stop - 1}", url])
        for ranges in _ranges(size, mode)
        for start, stop in ranges
    ]
    if any(process.wait() for process in running):
        raise SystemExit("curl failed")
    return size


def measure(name: str, mode: str, url: str, ca_file: Path, size: int) -> dict[str, float]:
    meter = _Meter(resource.RUSAGE_CHILDREN if name == "curl" else resource.RUSAGE_SELF)
    if name == "curl":
        meter.start()
        got = _by_curl(url, ca_file, size, mode)
        meter.stop()
    elif name == "httpx":
        got = trio.run(_by_httpx, meter, url, ca_file, size, mode)
    else:
        got = trio.run(lambda: _by_fusekit(meter, url, ca_file, size, mode, inlet=name == "inlet"))
    wanted = SMALL * SMALL_REQUESTS if mode == "small" else size
    if got != wanted:
        raise SystemExit(f"{name} brought {got} bytes instead of {wanted}")
    requests = SMALL_REQUESTS if mode == "small" else len(_ranges(size, mode))
    return {
        "mb_per_s": got / meter.seconds / 1e6,
        "cpu_s_per_gib": meter.cpu_s * 2**30 / got,
        "cpu_us_per_request": meter.cpu_s * 1e6 / requests,
        "peak_mib": meter.peak_mib,
    }


# ---- the table -------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="512MiB")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", default=["inlet", "sink", "httpx", "curl"])
    parser.add_argument("--scheme", nargs="*", default=["http", "https"])
    parser.add_argument("--mode", nargs="*", default=["one", "eight", "small"])
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = parse_size(options.size)
    if options.serve:
        serve(size, options.directory, options.serve)
        return
    if options.measure:
        name, mode, url = options.measure
        print(json.dumps(measure(name, mode, url, options.directory / "certificate.pem", size)))
        return
    names = [name for name in options.only if name != "curl" or shutil.which("curl")]
    results = []
    print(f"{'scheme':7}{'mode':7}{'client':8}{'MB/s':>8}{'CPU s/GiB':>11}{'CPU us/request':>16}{'peak MiB':>10}")
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        make_certificate(directory)
        for scheme in options.scheme:
            with served(size, directory, scheme) as url:
                for mode in options.mode:
                    # In turns, so that a machine that slows down does so for all of them.
                    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
                    for _ in range(options.repeat):
                        for name in names:
                            runs[name].append(_measured(name, mode, url, directory, size))
                    for name, found in runs.items():
                        median = {key: statistics.median(run[key] for run in found) for key in found[0]}
                        results.append({"scheme": scheme, "mode": mode, "client": name, **median})
                        small = f"{median['cpu_us_per_request']:16.0f}" if mode == "small" else " " * 16
                        print(
                            f"{scheme:7}{mode:7}{name:8}{median['mb_per_s']:8.0f}{median['cpu_s_per_gib']:11.2f}"
                            f"{small}{median['peak_mib']:10.0f}",
                            flush=True,
                        )
    if options.json:
        options.json.write_text(
            json.dumps({"size": size, "repeat": options.repeat, "results": results}, indent=1) + "\n"
        )


def _measured(name: str, mode: str, url: str, directory: Path, size: int) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--measure",
        name,
        mode,
        url,
        "--size",
        str(size),
        "--directory",
        str(directory),
    ]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


if __name__ == "__main__":
    main()
