"""Fixed workloads on a mount of a web server, beside curl, rclone and a bare passthrough on the same data.

``python benchmarks/bench_mount.py`` runs all of them three times and prints tables; ``--quick`` is a trimmed version of
about a minute, ``--only NAME`` runs one (repeatable, ``--list`` has the names). ``--json FILE`` keeps every run,
``--write-docs`` puts the tables into the documentation. What is measured and how: docs/explanation/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from measure import MIB, machine, settle_memory
from report import Outcome, page, table, write_docs
from workloads import FILE, WORKLOADS, Bench, Measured, Workload

from fusekit.testing.web import WebEmulator

DOCS: Final = Path(__file__).parent.parent / "docs/explanation/benchmarks.md"


@contextmanager
def prepared(*, quick: bool) -> Iterator[Bench]:
    """Make the files, start the servers, each in a process of its own, and give what workloads need."""
    size = 128 * MIB if quick else 1024 * MIB
    folders, files = (20, 50) if quick else (100, 50)
    tree = (2, 10_000) if quick else (10, 100_000)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fusekit-bench-data-")))
        original = directory / FILE
        _write(original, size)
        if not quick:
            settle_memory(directory)
        state = {
            "files": {FILE: {"file": str(original)}},
            "generated": {
                "files": {"folders": folders, "files": files, "size": 4096},
                "tree": {"folders": tree[0], "files": tree[1], "size": 100},
            },
        }
        servers = [stack.enter_context(WebEmulator.spawn(tls=tls)) for tls in (False, True)]
        for server in servers:
            server.controls.replace_state(state)
        yield Bench(
            plain=servers[0],
            tls=servers[1],
            original=original,
            size=size,
            folders=folders,
            files=files,
            tree=tree,
            random_reads=50 if quick else 200,
            readers=50 if quick else 200,
            idle_s=3.0 if quick else 20.0,
            quick=quick,
        )


def main() -> None:
    """Run what the command line asks for."""
    options = _arguments()
    if options.list:
        for one in WORKLOADS:
            print(f"{one.name:20} {one.says}")
        return
    chosen = [
        one
        for one in WORKLOADS
        if one.name in (options.only or ()) or not (options.only or (one.more and options.quick))
    ]
    runs = options.runs or (1 if options.quick else 3)
    facts = machine()
    outcomes: list[Outcome] = []
    with prepared(quick=options.quick) as bench:
        for workload in chosen:
            outcome = Outcome(workload, tuple(_once(workload, bench, number, runs) for number in range(runs)))
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
    if options.write_docs:
        write_docs(DOCS, page(outcomes, facts, runs, quick=options.quick))


def _once(workload: Workload, bench: Bench, number: int, runs: int) -> Measured:
    print(f"{workload.name}: run {number + 1} of {runs} …", file=sys.stderr, flush=True)
    return workload.run(bench)


def _write(path: Path, size: int) -> None:
    """Make a file in which no two blocks are equal, at the speed of memory."""
    noise = os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(size // MIB):
            file.write(number.to_bytes(8, "big"))
            file.write(noise[8:])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    names = [one.name for one in WORKLOADS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="run this workload; repeatable")
    parser.add_argument("--list", action="store_true", help="show the workloads and stop")
    parser.add_argument("--quick", action="store_true", help="one run on less data, about a minute")
    parser.add_argument("--runs", type=int, metavar="N", help="how often each is measured (3; 1 with --quick)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep everything as JSON; - prints it")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/explanation/benchmarks.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
