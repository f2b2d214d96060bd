"""What a benchmark reads off the machine: processor time, peak memory and wakeups of a process, and time.

Everything comes from /proc, so that it is measured in the same way for every program, ours or not.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

MIB: Final = 1 << 20
GIB: Final = 1 << 30
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


@attrs.define
class Span:
    """A stretch of work: how long it took, and the processor time that a process used in it."""

    seconds: float = 0.0
    cpu_s: float = 0.0

    def mb_s(self, size: int) -> float:
        """Return megabytes (10^6) a second for ``size`` bytes."""
        return size / 1e6 / self.seconds

    def cpu_s_per_gib(self, size: int) -> float:
        """Return processor seconds a GiB for ``size`` bytes."""
        return self.cpu_s / (size / GIB)


@contextmanager
def span(pid: int | None = None) -> Iterator[Span]:
    """Measure the block: its time, and the processor time of ``pid`` and what it started and waited for."""
    found = Span()
    before = cpu_s(pid) if pid is not None else 0.0
    began = time.perf_counter()
    try:
        yield found
    finally:
        found.seconds = time.perf_counter() - began
        found.cpu_s = cpu_s(pid) - before if pid is not None else 0.0


def cpu_s(pid: int) -> float:
    """Return the processor time in seconds that ``pid``, its children and those it waited for have used."""
    used = _stat_s(pid)
    return used + sum(cpu_s(child) for child in children(pid))


def children(pid: int) -> list[int]:
    """Return the processes that ``pid`` started and that still run."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in task.read_text().split()]
        except OSError:
            continue
    return found


def peak_mib(pid: int) -> float:
    """Return the largest resident memory that ``pid`` has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} tells no peak memory")


def waits(pid: int) -> dict[str, int]:
    """Return for each thread of ``pid`` how often it has waited for something so far."""
    found: dict[str, int] = {}
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            for line in status.read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    found[status.parent.name] = int(line.split()[1])
    return found


def wakeups(before: Mapping[str, int], after: Mapping[str, int]) -> int:
    """Return how often threads woke up between two answers of `waits`; one that ended meanwhile woke up for that."""
    gone = len(before.keys() - after.keys())
    return gone + sum(count - before.get(thread, 0) for thread, count in after.items())


def drop_pages(path: Path) -> None:
    """Drop the kernel's pages of one file (posix_fadvise DONTNEED): nothing else on the machine is touched."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def read_through(path: Path, block: int = MIB) -> int:
    """Read a file from its start to its end as `cat` does, without keeping it, and return its size."""
    buffer = bytearray(block)
    file = os.open(path, os.O_RDONLY)
    total = 0
    try:
        while got := os.readv(file, [buffer]):
            total += got
        return total
    finally:
        os.close(file)


def same_bytes(path: Path, original: Path, places: int = 64) -> None:
    """Compare a file with its original in ``places`` places; a fast answer that is wrong is no figure.

    Raises:
        RuntimeError: they differ.
    """
    size = original.stat().st_size
    if path.stat().st_size != size:
        raise RuntimeError(f"{path.name} has another size than its original")
    with path.open("rb", buffering=0) as one, original.open("rb", buffering=0) as other:
        for number in range(places):
            at = number * (size - 4096) // max(1, places - 1) if size > 4096 else 0
            if os.pread(one.fileno(), 4096, at) != os.pread(other.fileno(), 4096, at):
                raise RuntimeError(f"{path.name} differs from its original at byte {at}")


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    found = {
        "kernel": platform.release(),
        "processors": str(os.cpu_count()),
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.1f}",
    }
    for program, arguments in (("rclone", ["version"]), ("curl", ["--version"])):
        if shutil.which(program):
            said = subprocess.run([program, *arguments], capture_output=True, text=True, check=False).stdout
            found[program] = " ".join(said.split("\n", 1)[0].split()[1:2])
    return found


def _stat_s(pid: int) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(word) for word in words[11:15]) * _TICK_S


def settle_memory(directory: Path) -> None:
    """Use all free memory once, for pages that the kernel gives up at once when somebody needs memory.

    A virtual machine may get each page from its host at first use, at up to 2 CPU-seconds a GiB, and give back what has
    been free for a while. Whoever is measured first would pay for all. The pages are those of an empty file in
    ``directory``, read once.
    """
    file = directory / "empty"
    free = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())["MemFree"]
    size = int(free.split()[0]) * 1024
    with file.open("wb") as made:
        made.truncate(size)
    buffer = bytearray(4 * MIB)
    with file.open("rb", buffering=0) as again:
        while again.readinto(buffer):
            pass
