"""What writing costs: many small files, one large one, a clone, and single saves, in requests and in seconds.

``python benchmarks/bench_write.py`` runs all of it three times and prints tables; ``--quick`` once with less data,
``--only NAME`` one of them (repeatable), ``--json FILE`` keeps every run. Small files go to an emulated Databricks
workspace, because there the protocol costs more than a bare PUT; the large file, over what that takes, goes to the server
of `store`, as that of `curl -T` does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
from clients import Absent
from measure import MIB, machine, span
from report import Outcome, table
from store import StoreBackend, StoreEmulator
from workloads import Measured, Target, Values, Workload

from fusekit.control import client
from fusekit.control.registry import endpoints, runtime_directory
from fusekit.settings import Settings, Write
from fusekit.testing.cli_mount import CliMount, cli_mount
from fusekit.testing.faults import Latency
from fusekit.testing.mounts import mounted
from fusekit.testing.running import RunningEmulator
from fusekit.types import Mount
from fusekit_databricks.emulator import DatabricksEmulator

MODES: Final = tuple(mode.value for mode in Write if mode.value in {"sync", "async"})
HOME: Final = "/Users/me@example.com"
SMALL: Final = 2048
_LOOK_S: Final = 0.02
_DRAIN_TIMEOUT_S: Final = 600.0


@attrs.frozen
class WriteBench:
    """How much is written."""

    files: int
    large: int
    repository: int


@contextmanager
def workspace(mode: str, latency_s: float) -> Iterator[tuple[CliMount, RunningEmulator]]:
    """Mount the home of an emulated workspace that answers so late, with its journal on the disk of temporary files."""
    with tempfile.TemporaryDirectory(prefix="fusekit-bench-") as text, DatabricksEmulator.spawn() as server:
        arguments = ["--write", mode, "--ttl", "1h"]
        with (
            contextlib.redirect_stderr(io.StringIO()),  # the log, which is for tests that fail
            cli_mount(f"databricks:{HOME}", Path(text), *arguments, environment=server.environment()) as there,
        ):
            server.controls.set_latency(Latency(latency_s))
            list(there.path.iterdir())
            server.controls.reset()
            yield there, server


def drained_s(there: CliMount) -> float:
    """Wait until the mount has nothing to send and return how long that took; it is looked fifty times a second."""
    (endpoint,) = endpoints(runtime_directory(there.environment), there.path)
    began = time.perf_counter()
    while time.perf_counter() - began < _DRAIN_TIMEOUT_S:
        status = client.ask(endpoint, "status", timeout_s=_DRAIN_TIMEOUT_S)
        if status is None:
            raise RuntimeError("the mount has ended")
        if not status["unsent"] and not status["journal"]:
            return time.perf_counter() - began
        time.sleep(_LOOK_S)
    raise RuntimeError("the mount does not drain")


def small_files_20ms(bench: WriteBench) -> Measured:
    """Files of 2 KiB written one after the other to a workspace, 20 ms before each answer."""
    found: Measured = {}
    for mode in MODES:
        with workspace(mode, 0.020) as (there, server):
            with span(there.pid) as closed:
                for number in range(bench.files):
                    (there.path / f"f{number:04}").write_bytes(os.urandom(SMALL))
            drained = drained_s(there)
            counters = server.controls.counters().by_route()
            if len(server.controls.state()["objects"]) < bench.files:
                raise RuntimeError("files are missing in the workspace")
        found[f"fusekit, {mode}"] = {
            "s until closed": closed.seconds,
            "round trips each": closed.seconds / bench.files / 0.020,
            "s until drained": closed.seconds + drained,
            "CPU-s": closed.cpu_s,
            **{f"{name} each": count / bench.files for name, count in counters.items()},
        }
    with tempfile.TemporaryDirectory(prefix="fusekit-bench-") as text, span() as synced:
        for number in range(bench.files):
            _write_synced(Path(text) / f"f{number:04}", os.urandom(SMALL))
    found["local disk, fsync of each"] = {"s until closed": synced.seconds}
    return found


def large_file(bench: WriteBench) -> Measured:
    """One large file copied in and closed under sync, beside curl to the same server; no latency."""
    found: Measured = {}
    with tempfile.TemporaryDirectory(prefix="fusekit-bench-") as text, StoreEmulator.spawn() as server:
        directory, original = Path(text), Path(text) / "original"
        noise = os.urandom(MIB)
        with original.open("wb") as file:
            for _ in range(bench.large // MIB):
                file.write(noise)
        if shutil.which("curl") is None:
            raise Absent("curl is not installed")
        for turn in ("curl", "fusekit"):  # the first to write a file on this machine pays for its pages
            server.controls.replace_state({})
            if turn == "curl":
                found["curl -T"] = _curl(original, server.url, bench.large)
                found["curl -T"] = _curl(original, server.url, bench.large)
                continue

            def make(mount: Mount) -> StoreBackend:
                return StoreBackend(server.url, mount)

            with mounted(make, directory, Settings(write=Write.SYNC)) as there:
                for _ in range(2):
                    with span(os.getpid()) as copied:
                        subprocess.run(["cp", original, there.path / "large"], check=True)
                    found["fusekit, sync"] = {
                        "MB/s": copied.mb_s(bench.large), "CPU-s/GiB": copied.cpu_s_per_gib(bench.large)
                    }  # fmt: skip
            if server.controls.state().get("large") != bench.large:
                raise RuntimeError("the large file is not whole at the server")
    return found


def git_clone_35ms(bench: WriteBench) -> Measured:
    """`git clone` of a repository with many files into a workspace under async, 35 ms before each answer."""
    if "async" not in MODES:
        raise Absent("there is no --write async")
    with tempfile.TemporaryDirectory(prefix="fusekit-bench-") as text:
        origin = _repository(Path(text), bench.repository)
        with workspace("async", 0.035) as (there, server):
            with span(there.pid) as cloned:
                _git(Path(text), "clone", "-q", f"file://{origin}", str(there.path / "clone"))
            drained = drained_s(there)
            requests = sum(server.controls.counters().by_route().values())
            if _git(Path(text), "-C", str(there.path / "clone"), "status", "--porcelain"):
                raise RuntimeError("the clone is not clean")
        with span() as local:
            _git(Path(text), "clone", "-q", f"file://{origin}", str(Path(text) / "local"))
    return {
        "fusekit, async": {
            "s until closed": cloned.seconds, "s until drained": cloned.seconds + drained, "CPU-s": cloned.cpu_s,
            "requests": requests,
        },
        "local disk": {"s until closed": local.seconds},
    }  # fmt: skip


def single_saves(bench: WriteBench) -> Measured:
    """`echo x > f`, and `cp` of 20 small files, in a listed folder of a workspace: requests by route."""
    found: Measured = {}
    for mode in MODES:
        with tempfile.TemporaryDirectory(prefix="fusekit-bench-") as text, workspace(mode, 0.0) as (there, server):
            for number in range(20):
                (Path(text) / f"s{number:02}").write_text(f"small {number}\n")
            for what, script, files in (("echo x > f", "echo x > f", 1), ("cp of 20", f"cp {text}/s* .", 20)):
                server.controls.reset()
                subprocess.run(["sh", "-euc", script], cwd=there.path, check=True)
                drained_s(there)
                routes = server.controls.counters().by_route()
                uploads = {f"{name} each": count / files for name, count in routes.items()}
                found[f"{what}, {mode}"] = {"requests each": sum(routes.values()) / files, **uploads}
    return found


def _curl(file: Path, url: str, size: int) -> Values:
    with span(os.getpid()) as sent:
        subprocess.run(
            ["curl", "-sSf", "--noproxy", "*", "-T", str(file), f"{url}/curl"], check=True, stdout=subprocess.DEVNULL
        )
    return {"MB/s": sent.mb_s(size)}


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _repository(directory: Path, files: int) -> Path:
    """Make a repository with so many files of about 2 KiB in folders of 30."""
    origin = directory / "origin"
    for number in range(files):
        path = origin / f"d{number // 30:03}/f{number:05}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{os.urandom(SMALL // 2).hex()}\n")
    _git(origin, "init", "-q")
    _git(origin, "add", ".")
    _git(origin, "commit", "-qm", "files")
    return origin


def _git(directory: Path, *arguments: str) -> str:
    identity = {f"GIT_{who}_{what}": "a@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment: Mapping[str, str] = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(
        ["git", *arguments], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def _figure(who: str, metric: str) -> Callable[[Measured], float]:
    return lambda found: found[who][metric]


WORKLOADS: Final = (
    Workload(
        small_files_20ms,
        (
            Target(
                "round trips a file under sync, beyond the question that the protocol needs",
                lambda found: found["fusekit, sync"]["round trips each"] - found["fusekit, sync"]["object-info each"],
                1.3,
                at_most=True,
            ),
            Target(
                "s until closed under async", lambda found: found["fusekit, async"]["s until closed"], 1.0, at_most=True
            ),
        ),
    ),
    Workload(
        large_file,
        (Target("times curl -T", lambda found: found["fusekit, sync"]["MB/s"] / found["curl -T"]["MB/s"], 0.8),),
    ),
    Workload(
        git_clone_35ms,
        (Target("s until drained", lambda found: found["fusekit, async"]["s until drained"], 45, at_most=True),),
    ),
    Workload(
        single_saves,
        tuple(
            Target(
                f"{what} under {mode}",
                _figure(f"{what}, {mode}", metric),
                limit,
                at_most=True,
            )
            for mode in MODES
            for what, metric, limit in (("echo x > f", "import-file each", 1), ("cp of 20", "requests each", 2))
        ),
    ),
)


def main() -> None:
    """Run what the command line asks for."""
    options = _arguments()
    bench = WriteBench(100, 64 * MIB, 300) if options.quick else WriteBench(500, 256 * MIB, 3000)
    runs = options.runs or (1 if options.quick else 3)
    facts, outcomes = machine(), []
    for workload in WORKLOADS:
        if options.only and workload.name not in options.only:
            continue
        try:
            outcome = Outcome(workload, tuple(workload.run(bench) for _ in range(runs)))
        except Absent as why:
            print(f"### {workload.name}\n\n{why}\n", flush=True)
            continue
        outcomes.append(outcome)
        print(table(outcome), flush=True)
    if options.json:
        found = {
            "machine": facts,
            "quick": options.quick,
            "workloads": {one.workload.name: one.to_json() for one in outcomes},
        }
        text = json.dumps(found, indent=1) + "\n"
        if str(options.json) == "-":
            sys.stdout.write(text)
        else:
            options.json.write_text(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    names = [one.name for one in WORKLOADS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="run this one; repeatable")
    parser.add_argument("--quick", action="store_true", help="one run on less data")
    parser.add_argument("--runs", type=int, metavar="N", help="how often each is measured (3; 1 with --quick)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep everything as JSON; - prints it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
