"""Names at scale: what walks cost in requests, time, processor and memory, on a tree that is made up as it is listed.

``python benchmarks/bench_names.py`` walks 5,000 files in 100 directories at 20 ms a request, cold and again, and then a
million files in 1,000 directories; ``--quick`` leaves the million at 50,000. ``--json FILE`` keeps the figures. The
process that is measured serves the mount and makes the names up, which is about a third of its processor time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from fusekit.api import Entry, Mount, Page, hookimpl
from fusekit.settings import Settings
from fusekit.testing.mounts import mounted

# Two walks of a million names take minutes; what was listed is to be fresh for the second one.
TTL_S: Final = 3600.0

# Entries of a page, as services have them.
PAGE: Final = 1000


class Generated:
    """``directories`` directories of ``files`` files, each listing after ``delay_s``."""

    def __init__(self, directories: int, files: int, delay_s: float) -> None:
        self._directories, self._files, self._delay_s = directories, files, delay_s

    @hookimpl
    async def fusekit_list(self, directory: Entry, page: Page) -> None:
        await trio.sleep(self._delay_s)
        if not directory.name:
            await page([Entry.directory(f"dir{number:05}") for number in range(self._directories)])
            return
        for start in range(0, self._files, PAGE):
            await page([self._file(directory, n) for n in range(start, min(start + PAGE, self._files))])

    @hookimpl
    async def fusekit_read(self) -> None:
        raise NotImplementedError("nobody reads")

    @staticmethod
    def _file(directory: Entry, number: int) -> Entry:
        mtime_ns = 1_700_000_000_000_000_000 + number * 1_000_003
        name = f"{directory.name}-{number:06}.txt"
        return Entry.file(name, size=1_000_000 + number, mtime_ns=mtime_ns, version=f"{number:016x}")


def walks(what: str, directories: int, files: int, delay_s: float, command: list[str]) -> list[dict[str, Any]]:
    """Walk a new mount twice with ``command`` and return the figures of both."""
    found = []

    def make(mount: Mount) -> Generated:
        return Generated(directories, files, delay_s)

    with (
        tempfile.TemporaryDirectory(prefix="fusekit-bench-") as scratch,
        mounted(make, Path(scratch), Settings(ttl_s=TTL_S)) as there,
    ):
        for turn in ("cold", "again"):
            there.recorder.calls.clear()
            cpu_s, began = time.process_time(), time.monotonic()
            subprocess.run([*command, there.path], stdout=subprocess.DEVNULL, check=True)
            took_s, cpu_s = time.monotonic() - began, time.process_time() - cpu_s
            found.append(
                {
                    "what": f"{what}, {turn}",
                    "seconds": round(took_s, 2),
                    "cpu_seconds": round(cpu_s, 2),
                    "cpu_us_an_entry": round(cpu_s * 1e6 / (directories * files), 1),
                    "requests": sum(there.recorder.calls.values()),
                    "inodes": len(there.volume.filesystem.tree.inodes),
                    "rss_mb": _memory_mb("VmRSS"),
                    "peak_mb": _memory_mb("VmHWM"),
                }
            )
    return found


def _memory_mb(field: str) -> int:
    """Return a figure of this process's memory. Source: proc(5), /proc/pid/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) // 1024


def main(say: Callable[[str], object] = print) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 names in place of a million")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to keep the figures")
    arguments = parser.parse_args()
    many = 50 if arguments.quick else 1000
    figures = [
        *walks("ls -lR of 5,000 files in 100 directories, 20 ms a request", 100, 50, 0.02, ["ls", "-lR"]),
        *walks(f"find -L of {many * 1000:,} files in {many:,} directories", many, 1000, 0.0, ["find", "-L"]),
    ]
    for one in figures:
        say("  ".join(str(value) if name == "what" else f"{name} {value}" for name, value in one.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
