"""``nox -s model``: random operations on real mounts, by several processes, each answer compared with the model.

``python tests/proof/model.py --steps 20000`` takes so many on each service, and prints a line for each; the exit status is 1
where there was a difference. ``--trouble`` does the same while the service fails now and then.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

import attrs
from services import SERVICES

from fusekit.testing.crash import Mount, Running
from fusekit.testing.model import Subject
from fusekit.testing.sequences import Difference, Plan, steps
from fusekit.testing.spread import Outcome, Spread, hands, together
from fusekit.testing.troubled import Tally, Troubled

PROCESSES: Final = 3
SHOWN: Final = 60  # steps before a difference

# Under faults each write is one request of the kernel: of two, one may fail, and the program is told how much was written.
SHORT: Final = (1, 3, 17, 100, 4095, 4096, 5000, 20_000)

# A directory's time moves when a file appears at the service, which is when it is closed, not when it is made.
_DIRECTORIES: Final = frozenset({"directory.mtime_ns"})
# The workspace keeps no modes and times: they last as long as the mount, and the first part of a sequence compares them in
# other tests. Links and attributes it has none.
_LACKING: Final = ("link", "symlink", "readlink", "exchange", "setxattr", "getxattr", "removexattr", "listxattr")
PLANS: Final = {
    "local": Plan(ignore=_DIRECTORIES),
    "databricks": Plan(ignore=frozenset({"mode", "mtime_ns"})).without(*_LACKING),
}


@contextmanager
def mounted(name: str, write: str, seed: int, directory: Path, *more: str) -> Iterator[tuple[Mount, Running]]:
    """Mount the service of that name, with a directory for each process and one that they share."""
    with SERVICES[name].running(directory, seed, [*(f"p{number}" for number in range(PROCESSES)), "shared"]) as service:
        mount = Mount(directory, service.source, ["--write", write, *more], service.environment)
        try:
            mount.start()
            yield mount, service
            mount.unmount()
        finally:
            mount.close()


def compared(name: str, write: str, seed: int, steps: int, remounts: int, directory: Path) -> Outcome:
    """Take so many steps on the service of that name; raises `Difference`."""
    with mounted(name, write, seed, directory) as (mount, _):

        def remount() -> None:
            mount.unmount()
            mount.start()

        return together(lambda: mount.path, remount, seed, steps, PROCESSES, remounts, PLANS[name])


def troubled(name: str, write: str, seed: int, count: int, remounts: int, directory: Path) -> Tally:
    """Take so many steps while the service refuses, fails and breaks connections; raises `Difference`."""
    plan = attrs.evolve(PLANS[name], sizes=SHORT, offsets=(0, 0, 1, 10, 4096, 5001))
    # What a failed operation left is to be seen at once, not when names and attributes have aged.
    strict = ("--consistency", "strict")
    with mounted(name, write, seed, directory, *strict) as (mount, service), hands(PROCESSES) as found:

        @contextmanager
        def calm() -> Iterator[None]:
            service.trouble("none")
            yield
            service.trouble("refusals")

        for hand in found:
            hand.share(mount.path / "shared")
        spread = Spread(found, seed)
        compared = Troubled(cast("Subject", spread), plan, calm)
        given, part = steps(seed, count, plan), count // (remounts + 1)
        service.trouble("refusals")
        for start in range(0, count, part):
            compared.run(given[start : start + part])
            compared.finish()
            spread.finish()
            service.trouble("none")
            mount.unmount()
            mount.start()
            service.trouble("refusals")
            compared.look()
        service.trouble("none")
    return compared.tally


def main() -> None:
    """Run what the command line asks for."""
    options = _arguments()
    differences = 0
    for name in options.service or [
        name for name, one in SERVICES.items() if len(one.troubles) > 1 or not options.trouble
    ]:
        for write in options.write or ["sync"]:
            with tempfile.TemporaryDirectory(prefix="fusekit-model-") as directory:
                take = troubled if options.trouble else compared
                try:
                    found = take(name, write, options.seed, options.steps, options.remounts, Path(directory))
                except Difference as difference:
                    end = Difference(difference.steps[-SHOWN:], difference.told, difference.seed)
                    print(f"{name}, --write {write}: of {len(difference.steps)} steps the last, {end}", flush=True)
                    differences += 1
                else:
                    facts = ", ".join(f"{key}: {value}" for key, value in attrs.asdict(found).items())
                    print(f"{name}, --write {write}, seed {options.seed}: {facts}, differences: 0", flush=True)
    if differences:
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=20_000, help="how many on each service (20000)")
    parser.add_argument("--remounts", type=int, default=10, help="how many in between (10)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trouble", action="store_true", help="while the service fails now and then; not for local")
    parser.add_argument("--service", action="append", choices=list(SERVICES), help="only this one; repeatable")
    parser.add_argument("--write", action="append", help="sync (the default) or async; repeatable")
    return parser.parse_args()


if __name__ == "__main__":
    main()
