"""The workloads: each a function that measures one thing once, for fusekit and whoever it is compared with.

A workload returns what it measured by client; `WORKLOADS` has them with what they are to reach. Clients are measured
one after the other against the same server process, so a ratio is of one run on one machine.
"""

from __future__ import annotations

import os
import random
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
from clients import Absent, Mounted, curl, fusekit, passthrough, rclone
from measure import GIB, MIB, cpu_s, drop_pages, peak_mib, read_through, same_bytes, span, waits, wakeups

from fusekit.testing.faults import Latency
from fusekit.testing.running import RunningEmulator

FILE: Final = "big.bin"
_LONG_TTL: Final = {"FUSEKIT_TTL": "1h"}

Values = dict[str, float]
Measured = dict[str, Values]


@attrs.frozen
class Bench:
    """What workloads run on: two servers with the same files, and how much there is of everything."""

    plain: RunningEmulator
    tls: RunningEmulator
    original: Path
    size: int
    folders: int
    files: int
    tree: tuple[int, int]
    random_reads: int
    readers: int
    idle_s: float
    quick: bool

    @property
    def servers(self) -> tuple[RunningEmulator, RunningEmulator]:
        """Return both."""
        return self.plain, self.tls

    @contextmanager
    def latency(self, seconds: float) -> Iterator[None]:
        """Let each answer come so much later."""
        for server in self.servers:
            server.controls.set_latency(Latency(seconds) if seconds else None)
        try:
            yield
        finally:
            for server in self.servers:
                server.controls.set_latency(None)


@attrs.frozen
class Target:
    """What is to be reached: ``value`` of one run, at most or at least ``limit``."""

    says: str
    value: Callable[[Measured], float]
    limit: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Return whether ``value`` is good enough."""
        return value <= self.limit if self.at_most else value >= self.limit


@attrs.frozen
class Workload:
    """One workload with its targets; its name is what ``--only`` takes, its first line what the table says.

    ``more`` are those that ``--quick`` leaves out unless they are asked for by name.
    """

    run: Callable[[Any], Measured]  # of what its script prepares, a `Bench` or another
    targets: tuple[Target, ...] = ()
    more: bool = False

    @property
    def name(self) -> str:
        """Return the name of the function."""
        return self.run.__name__

    @property
    def says(self) -> str:
        """Return in a line what is measured."""
        return (self.run.__doc__ or "").strip().split("\n", 1)[0]


# --- one large file -------------------------------------------------------------------------------------------------


def seq_cold_0ms(bench: Bench) -> Measured:
    """A large file read once from start to end, nothing cached, no latency, HTTP."""
    return _sequential(bench, bench.plain, 0.0)


def seq_cold_20ms(bench: Bench) -> Measured:
    """The same with 20 ms before each answer."""
    return _sequential(bench, bench.plain, 0.020)


def seq_cold_50ms(bench: Bench) -> Measured:
    """The same with 50 ms."""
    return _sequential(bench, bench.plain, 0.050)


def seq_cold_tls_0ms(bench: Bench) -> Measured:
    """A large file read once from start to end, nothing cached, no latency, TLS."""
    return _sequential(bench, bench.tls, 0.0)


def seq_cold_tls_20ms(bench: Bench) -> Measured:
    """The same over TLS with 20 ms before each answer."""
    return _sequential(bench, bench.tls, 0.020)


def seq_again(bench: Bench) -> Measured:
    """The file a second time: with the mount's pages dropped, from the page cache, and after a restart of the mount."""
    found: Measured = {}
    with tempfile.TemporaryDirectory(prefix="fusekit-bench-cache-") as text:
        cache = Path(text)
        with fusekit(f"{bench.plain.url}/webdav/", cache=cache, environment=_LONG_TTL) as there:
            file = there.path / FILE
            read_through(file)
            drop_pages(file)
            found["fusekit, pages dropped"] = _read(bench, bench.plain, there, file)
            found["fusekit, from the page cache"] = _read(bench, bench.plain, there, file)
        with fusekit(f"{bench.plain.url}/webdav/", cache=cache, environment=_LONG_TTL) as there:
            found["fusekit, restarted"] = _read(bench, bench.plain, there, there.path / FILE)
    with passthrough(bench.original) as there:
        found["pyfuse3 passthrough"] = _read(bench, bench.plain, there, there.path / "file")
        # Pages of a FUSE file are the kernel's business alone: this is what any such file system can reach.
        found["passthrough, from the page cache"] = _read(bench, bench.plain, there, there.path / "file")
    if not bench.quick:
        with (
            _compared(found, "rclone webdav full, pages dropped"),
            rclone("webdav", f"{bench.plain.url}/webdav/", "full") as there,
        ):
            read_through(there.path / FILE)
            drop_pages(there.path / FILE)
            found["rclone webdav full, pages dropped"] = _read(bench, bench.plain, there, there.path / FILE)
    with span() as local:
        read_through(bench.original)
    found["local file"] = {"MB/s": local.mb_s(bench.size)}
    return found


def random_cold_20ms(bench: Bench) -> Measured:
    """4 KiB here and there in a large file, nothing cached, 20 ms before each answer."""
    found: Measured = {}
    with bench.latency(0.020):
        trip_s = _round_trip_s(bench)
        found["one GET"] = {"p50 ms": trip_s * 1000}
        with fusekit(f"{bench.plain.url}/webdav/", environment=_LONG_TTL) as there:
            found["fusekit"] = _random(bench, there, trip_s)
        for mode in ("off",) if bench.quick else ("off", "full"):
            with (
                _compared(found, f"rclone webdav {mode}"),
                rclone("webdav", f"{bench.plain.url}/webdav/", mode) as there,
            ):
                found[f"rclone webdav {mode}"] = _random(bench, there, trip_s)
    return found


def random_page_cache(bench: Bench) -> Measured:
    """4 KiB here and there in a file that the kernel holds, in as many processes as there are processors."""
    found: Measured = {}
    size = min(bench.size, 64 * MIB)
    with fusekit(f"{bench.plain.url}/webdav/", environment=_LONG_TTL) as there:
        file = there.path / FILE
        read_through(file)
        found["fusekit"] = {"reads/s": _page_reads(file, size)}
    found["local file"] = {"reads/s": _page_reads(bench.original, size)}
    return found


# --- many names -----------------------------------------------------------------------------------------------------


def ls_cold_20ms(bench: Bench) -> Measured:
    """`ls -lR` of many small folders, nothing cached, 20 ms before each answer; and once more."""
    found: Measured = {}
    with bench.latency(0.020):
        for name, kind, form in _rivals(bench):
            with _compared(found, name), _mount(bench, kind, form, "files/") as there:
                server = bench.plain.controls
                server.reset()
                first = _walk(there.path)
                asked = server.counters().requests()
                server.reset()
                again = _walk(there.path)
                found[name] = {
                    "s": first,
                    "requests": asked,
                    "s again": again,
                    "requests again": server.counters().requests(),
                }
    return found


def small_files_20ms(bench: Bench) -> Measured:
    """Small files that were just listed, 20 ms before each answer: one after the other, and 16 at once."""
    found: Measured = {}
    with bench.latency(0.020):
        trip_s = _round_trip_s(bench)
        for name, kind, form in _rivals(bench):
            with _compared(found, name), _mount(bench, kind, form, "files/") as there:
                folders = [there.path / f"folder-{number:04}" for number in range(4)]
                files = [list(folder.iterdir()) for folder in folders]
                _walk(there.path)
                count = min(100, 2 * len(files[0]))
                one, many = [*files[0], *files[1]][:count], [*files[2], *files[3]][:count]
                bench.plain.controls.reset()
                with span() as alone:
                    for file in one:
                        file.read_bytes()
                asked = bench.plain.controls.counters().requests()
                with ThreadPoolExecutor(16) as pool, span() as together:
                    list(pool.map(Path.read_bytes, many))
                found[name] = {
                    "round trips a file": alone.seconds / count / trip_s,
                    "requests a file": asked / count,
                    "times faster 16 at once": alone.seconds / together.seconds,
                }
    return found


def tree_million(bench: Bench) -> Measured:
    """A walk over a tree of a million names (ten folders), and the time until the first names of one folder."""
    folders, files = bench.tree
    found: Measured = {}
    with fusekit(f"{bench.plain.url}/webdav/tree/", environment=_LONG_TTL) as there:
        with span() as first, os.scandir(there.path / "folder-0000") as names:
            next(names)
        with span(there.pid) as whole:
            seen = sum(sum(1 for _ in os.scandir(folder)) for folder in os.scandir(there.path))
        if seen != folders * files:
            raise RuntimeError(f"{seen} names were found instead of {folders * files}")
        found["fusekit"] = {
            "s to the first name": first.seconds,
            "s": whole.seconds,
            "CPU-s": whole.cpu_s,
            "peak MiB": peak_mib(there.pid),
        }
    return found


# --- memory and rest ------------------------------------------------------------------------------------------------


def parallel_readers(bench: Bench) -> Measured:
    """Many programs that each read their own part of a large file at once, 20 ms before each answer."""
    found: Measured = {}
    budget_mib = 256
    with bench.latency(0.020):
        environment = {**_LONG_TTL, "FUSEKIT_MEMORY": f"{budget_mib}MiB"}
        with fusekit(f"{bench.plain.url}/webdav/", environment=environment) as there:
            found["fusekit"] = _read_at_once(bench, there)
            found["fusekit"]["over budget MiB"] = found["fusekit"]["peak MiB"] - budget_mib
        if not bench.quick:
            with (
                _compared(found, "rclone webdav full"),
                rclone("webdav", f"{bench.plain.url}/webdav/", "full") as there,
            ):
                found["rclone webdav full"] = _read_at_once(bench, there)
    return found


def idle_open_files(bench: Bench) -> Measured:
    """A mount at rest with a thousand open files: how often its threads wake up."""
    found: Measured = {}
    with fusekit(f"{bench.plain.url}/webdav/files/", environment=_LONG_TTL) as there:
        paths = [path for folder in sorted(there.path.iterdir()) for path in sorted(folder.iterdir())][:1000]
        opened = [os.open(path, os.O_RDONLY) for path in paths]
        try:
            for file in opened:
                os.pread(file, 1, 0)
            time.sleep(2 if bench.quick else 15)  # what the reads began comes to its end: idle threads leave after 10 s
            before = waits(there.pid)
            with span(there.pid) as rest:
                time.sleep(bench.idle_s)
            found["fusekit"] = {
                "open files": len(opened),
                "wakeups/s": wakeups(before, waits(there.pid)) / rest.seconds,
                "CPU-s an hour": rest.cpu_s / rest.seconds * 3600,
                "peak MiB": peak_mib(there.pid),
            }
        finally:
            for file in opened:
                os.close(file)
    return found


# --- how ------------------------------------------------------------------------------------------------------------


def _sequential(bench: Bench, server: RunningEmulator, latency_s: float) -> Measured:
    found: Measured = {}
    url, trust = f"{server.url}/webdav/{FILE}", server.ca_file
    with bench.latency(latency_s):
        for streams in (1, 8):
            with _compared(found, f"curl, {streams} at once"):
                took = curl(url, bench.size, streams, ca_file=trust)
                found[f"curl, {streams} at once"] = {
                    "MB/s": took.mb_s(bench.size),
                    "CPU-s/GiB": took.cpu_s_per_gib(bench.size),
                }
        with fusekit(f"{server.url}/webdav/", ca_file=trust, environment=_LONG_TTL) as there:
            found["fusekit"] = _read(bench, server, there, there.path / FILE)
            same_bytes(there.path / FILE, bench.original)
        rivals = [("webdav", "webdav", "full")]
        if not bench.quick:
            rivals += [("webdav", "webdav", "off"), ("http", "nginx-html", "full"), ("http", "nginx-html", "off")]
        for kind, form, mode in rivals:
            name = f"rclone {kind} {mode}"
            with _compared(found, name), rclone(kind, f"{server.url}/{form}/", mode, ca_file=trust) as there:
                found[name] = _read(bench, server, there, there.path / FILE)
    return found


def _read(bench: Bench, server: RunningEmulator, there: Mounted, file: Path) -> Values:
    server.controls.reset()
    served_s = cpu_s(server.pid)
    with span(there.pid) as took:
        size = read_through(file)
    served_s = cpu_s(server.pid) - served_s
    if size != bench.size:
        raise RuntimeError(f"{size} bytes were read instead of {bench.size}")
    counters = server.controls.counters()
    return {
        "MB/s": took.mb_s(size),
        "CPU-s/GiB": took.cpu_s_per_gib(size),
        **{f"requests {route}": count for route, count in sorted(counters.by_route().items())},
        "peak MiB": peak_mib(there.pid),
        "server CPU-s/GiB": served_s / (size / GIB),
    }


def _random(bench: Bench, there: Mounted, trip_s: float) -> Values:
    # One read in each stretch, the stretches in random order: nobody can guess the next, and no two share a block.
    stretch = bench.size // bench.random_reads // 4096 * 4096
    picks = random.Random(1)
    places = [
        number * stretch + picks.randrange(0, max(1, stretch - 4096), 4096) for number in range(bench.random_reads)
    ]
    picks.shuffle(places)
    file = os.open(there.path / FILE, os.O_RDONLY)
    took: list[float] = []
    bench.plain.controls.reset()
    try:
        for place in places:
            began = time.perf_counter()
            os.pread(file, 4096, place)
            took.append(time.perf_counter() - began)
    finally:
        os.close(file)
    asked = bench.plain.controls.counters()
    return {
        "p50 ms": statistics.median(took) * 1000,
        "p50 round trips": statistics.median(took) / trip_s,
        "requests a read": asked.requests("get") / len(places),
        "KiB fetched a read": asked.bytes_out("get") / len(places) / 1024,
    }


def _round_trip_s(bench: Bench) -> float:
    """Return the median time of a GET of 4 KiB on a connection that is there: what one round trip costs here."""
    parts = urlsplit(bench.plain.url)
    head = f"GET /webdav/{FILE} HTTP/1.1\r\nHost: {parts.netloc}\r\nRange: bytes=0-4095\r\n\r\n".encode()
    took: list[float] = []
    with socket.create_connection((parts.hostname or "", parts.port or 80)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(20):
            began = time.perf_counter()
            connection.sendall(head)
            got = b""
            while b"\r\n\r\n" not in got or len(got.partition(b"\r\n\r\n")[2]) < 4096:
                got += connection.recv(65536)
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def _page_reads(file: Path, size: int) -> float:
    """Return how many reads of 4 KiB a second all processors do together."""
    with get_context("fork").Pool(os.cpu_count()) as pool:
        return sum(pool.starmap(_read_pages, [(file, size, seed) for seed in range(os.cpu_count() or 1)]))


def _read_pages(path: Path, size: int, seed: int) -> float:
    """Read 4 KiB in random places for two seconds and return how often in one."""
    buffer, places = [bytearray(4096)], random.Random(seed)
    order = [places.randrange(0, size, 4096) for _ in range(4096)]
    file = os.open(path, os.O_RDONLY)
    done, began = 0, time.perf_counter()
    try:
        while (seconds := time.perf_counter() - began) < 2:
            for place in order:
                os.preadv(file, buffer, place)
            done += len(order)
        return done / seconds
    finally:
        os.close(file)


def _read_at_once(bench: Bench, there: Mounted) -> Values:
    part = bench.size // bench.readers
    failed: list[BaseException] = []

    def read(number: int) -> None:
        buffer = [bytearray(128 << 10)]
        try:
            file = os.open(there.path / FILE, os.O_RDONLY)
            try:
                at = number * part
                while at < (number + 1) * part:
                    at += os.preadv(file, buffer, at) or part
            finally:
                os.close(file)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(bench.readers)]
    with span(there.pid) as took:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        raise RuntimeError(f"{len(failed)} readers failed: {failed[0]}")
    return {
        "readers": bench.readers,
        "MB/s": took.mb_s(bench.size),
        "CPU-s/GiB": took.cpu_s_per_gib(bench.size),
        "peak MiB": peak_mib(there.pid),
    }


def _walk(path: Path) -> float:
    with span() as took:
        subprocess.run(["ls", "-lR", str(path)], check=True, stdout=subprocess.DEVNULL)
    return took.seconds


def _rivals(bench: Bench) -> list[tuple[str, str, str]]:
    """Return name, program and form of listing for workloads on many names."""
    found = [("fusekit", "fusekit", "webdav"), ("rclone webdav full", "webdav", "webdav")]
    if not bench.quick:
        found += [("fusekit, nginx pages", "fusekit", "nginx-html"), ("rclone http full", "http", "nginx-html")]
    return found


@contextmanager
def _mount(bench: Bench, kind: str, form: str, path: str) -> Iterator[Mounted]:
    url = f"{bench.plain.url}/{form}/{path}"
    with fusekit(url, environment=_LONG_TTL) if kind == "fusekit" else rclone(kind, url, "full") as there:
        yield there


@contextmanager
def _compared(found: Measured, name: str) -> Iterator[None]:
    """Leave a program out that is not installed."""
    try:
        yield
    except Absent:
        found.pop(name, None)


# --- targets --------------------------------------------------------------------------------------------------------


def _of(client: str, metric: str) -> Callable[[Measured], float]:
    return lambda found: found[client][metric]


def _ratio(one: str, other: str, metric: str = "MB/s") -> Callable[[Measured], float]:
    return lambda found: found[one][metric] / found[other][metric]


def _best_rclone(found: Measured) -> float:
    return found["fusekit"]["MB/s"] / max(values["MB/s"] for name, values in found.items() if name.startswith("rclone"))


def _requests(client: str) -> Callable[[Measured], float]:
    return lambda found: sum(value for metric, value in found[client].items() if metric.startswith("requests"))


_CURL = Target("times curl with 8 ranges", _ratio("fusekit", "curl, 8 at once"), 0.6)
_PEAK = Target("MiB at its peak (120 + --memory)", _of("fusekit", "peak MiB"), 120 + 256, at_most=True)

WORKLOADS: Final = (
    Workload(
        seq_cold_0ms,
        (_CURL, Target("CPU-s/GiB", _of("fusekit", "CPU-s/GiB"), 1.5, at_most=True), _PEAK),
    ),
    Workload(seq_cold_tls_0ms, (Target("CPU-s/GiB", _of("fusekit", "CPU-s/GiB"), 2.2, at_most=True),)),
    Workload(seq_cold_20ms, (Target("times the best rclone mount", _best_rclone, 2.0),)),
    Workload(seq_cold_tls_20ms, more=True),
    Workload(seq_cold_50ms, more=True),
    Workload(
        seq_again,
        (
            Target(
                "times the passthrough, pages dropped", _ratio("fusekit, pages dropped", "pyfuse3 passthrough"), 0.6
            ),
            Target("CPU-s/GiB, pages dropped", _of("fusekit, pages dropped", "CPU-s/GiB"), 1.0, at_most=True),
            Target("CPU-s/GiB, restarted", _of("fusekit, restarted", "CPU-s/GiB"), 1.3, at_most=True),
            Target(
                "requests for the file, restarted",
                lambda found: found["fusekit, restarted"].get("requests get", 0),
                0,
                at_most=True,
            ),
            Target(
                "times the passthrough, page cache",
                _ratio("fusekit, from the page cache", "passthrough, from the page cache"),
                0.9,
            ),
            Target("times the local file, page cache", _ratio("fusekit, from the page cache", "local file"), 0.9),
        ),
    ),
    Workload(
        random_cold_20ms,
        (
            Target("round trips, median", _of("fusekit", "p50 round trips"), 1.3, at_most=True),
            Target("requests a read", _of("fusekit", "requests a read"), 1.1, at_most=True),
        ),
    ),
    Workload(random_page_cache, (Target("reads a second", _of("fusekit", "reads/s"), 250_000),)),
    Workload(
        ls_cold_20ms,
        (
            Target("seconds", _of("fusekit", "s"), 1.0, at_most=True),
            Target("requests", _of("fusekit", "requests"), 101, at_most=True),
            Target("seconds again", _of("fusekit", "s again"), 0.05, at_most=True),
            Target("requests again", _of("fusekit", "requests again"), 0, at_most=True),
        ),
    ),
    Workload(
        small_files_20ms,
        (
            Target("round trips a file", _of("fusekit", "round trips a file"), 1.2, at_most=True),
            Target("times faster 16 at once", _of("fusekit", "times faster 16 at once"), 8.0),
        ),
    ),
    Workload(tree_million, (Target("MiB at its peak", _of("fusekit", "peak MiB"), 600, at_most=True),)),
    Workload(
        parallel_readers,
        (Target("MiB over --memory at its peak", _of("fusekit", "over budget MiB"), 120, at_most=True),),
    ),
    Workload(idle_open_files, (Target("wakeups a second", _of("fusekit", "wakeups/s"), 1.0, at_most=True),)),
)
