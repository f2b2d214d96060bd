"""``nox -s crash``: so many rounds of a crash, and what they found.

``python tests/proof/crash.py --rounds 500`` draws the rounds from one seed after the other and prints rounds, files, what was
acknowledged, and what was lost or partial; the exit status is 1 where anything was. ``--seed N --rounds 1`` repeats one.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from services import SERVICES

from fusekit.settings import Write
from fusekit.testing.crash import Result, Round, drawn, play

WRITES: Final = tuple(mode.value for mode in Write if mode.value in {"sync", "async"})


def main() -> None:
    """Run what the command line asks for."""
    options = _arguments()
    services = [SERVICES[name] for name in options.service or SERVICES]
    writes = options.write or WRITES
    rounds = [drawn(options.seed + number, services, writes) for number in range(options.rounds)]
    results: list[Result] = []
    played = _played(rounds, options.jobs, options.keep)
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(played):  # what was found until then is told
        _follow(played, results, len(rounds))
    print("\n".join(summary(results)))
    if any(result.violations for result in results):
        sys.exit(1)


def _follow(played: Iterator[Result], results: list[Result], count: int) -> None:
    for result in played:
        results.append(result)
        for one in result.violations:
            print(f"{one.kind}: {one.name}: {one.says}\n  again with: {result.round}", flush=True)
        if len(results) % 20 == 0:
            print(f"{len(results)} of {count} rounds", file=sys.stderr, flush=True)


def _played(rounds: Sequence[Round], jobs: int, keep: Path | None) -> Generator[Result, None, None]:
    def one(wanted: Round) -> Result:
        directory = Path(tempfile.mkdtemp(prefix=f"fusekit-crash-{wanted.seed}-", dir=keep))
        try:
            result = play(wanted, directory)
        except BaseException as error:
            error.add_note(f"in the round {wanted}, with its files in {directory}")
            raise
        if keep is None or not result.violations:
            shutil.rmtree(directory)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(one, rounds)


def summary(results: Sequence[Result]) -> list[str]:
    """Return the lines that say what the rounds found."""
    ways = Counter((one.round.service.name, one.round.write, one.round.trouble) for one in results)
    killed = Counter(one.round.kill_at.partition(":")[0] for one in results if one.reached)
    return [
        f"rounds: {len(results)}",
        *(
            f"  {service}, --write {write}, trouble {trouble}: {count}"
            for (service, write, trouble), count in sorted(ways.items())
        ),
        f"killed at a step: {killed.total()} ({', '.join(f'{step} {count}' for step, count in sorted(killed.items()))})",
        f"killed at a moment: {sum(not one.reached for one in results)}",
        f"power gone: {sum(one.round.power is not None for one in results)}",
        f"files: {sum(one.files for one in results)}",
        f"acknowledged: {sum(one.acknowledged for one in results)}",
        f"refused or interrupted: {sum(one.failed for one in results)}",
        f"left in the journal: {sum(one.kept for one in results)}",
        f"lost: {sum(one.count('lost') for one in results)}",
        f"partial: {sum(one.count('partial') for one in results)}",
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=500, help="how many (500)")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; each has the next one")
    parser.add_argument("--jobs", type=int, default=2, help="so many rounds at once (2)")
    parser.add_argument("--service", action="append", choices=list(SERVICES), help="only this one; repeatable")
    parser.add_argument("--write", action="append", choices=WRITES, help="only this mode; repeatable")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the files of rounds that went wrong in DIR")
    return parser.parse_args()


if __name__ == "__main__":
    main()
