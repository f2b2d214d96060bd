"""Who reads the same data in a benchmark: fusekit, rclone, curl, and a file system that passes a local file through.

Each mount is a context that gives its directory and the process that serves it, fresh: no cache, no state of before.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
from measure import Span

from fusekit.testing.cli_mount import cli_mount

_MOUNT_TIMEOUT_S: Final = 30.0
_HERE: Final = Path(__file__).parent


class Absent(Exception):
    """A program that is measured for comparison is not installed."""


@attrs.frozen
class Mounted:
    """A directory and the process behind it."""

    path: Path
    pid: int


@contextmanager
def fusekit(
    url: str, *, cache: Path | None = None, ca_file: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Mounted]:
    """Mount ``url`` with fusekit, as a user would; ``cache`` outlives the mount."""
    more = dict(environment or {})
    if ca_file is not None:
        more["FUSEKIT_CA_FILE"] = str(ca_file)
    with tempfile.TemporaryDirectory(prefix="fusekit-bench-") as directory:
        arguments = ["--cache-dir", str(cache)] if cache is not None else []
        with (
            contextlib.redirect_stderr(io.StringIO()),  # the log, which is for tests that fail
            cli_mount(url, Path(directory), *arguments, environment=more) as there,
        ):
            yield Mounted(there.path, there.pid)


@contextmanager
def rclone(kind: str, url: str, mode: str, *, ca_file: Path | None = None) -> Iterator[Mounted]:
    """Mount ``url`` with rclone: ``kind`` is webdav or http, ``mode`` its --vfs-cache-mode.

    Raises:
        Absent: rclone is not installed.
    """
    program = shutil.which("rclone")
    if program is None:
        raise Absent("rclone is not installed")
    with tempfile.TemporaryDirectory(prefix="fusekit-bench-") as text:
        directory = Path(text)
        (directory / "mnt").mkdir()
        command = [program, "mount", f":{kind}:", str(directory / "mnt"), f"--{kind}-url", url, "--read-only"]
        command += ["--vfs-cache-mode", mode, "--cache-dir", str(directory / "cache")]
        command += ["--ca-cert", str(ca_file)] if ca_file is not None else []
        environment = {**os.environ, "RCLONE_CONFIG": str(directory / "none.conf")}
        with (
            subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process,
            _mounted(process, directory / "mnt") as there,
        ):
            yield there


@contextmanager
def passthrough(file: Path) -> Iterator[Mounted]:
    """Mount a directory with ``file`` in it, called ``file``, by the least that pyfuse3 needs."""
    with tempfile.TemporaryDirectory(prefix="fusekit-bench-") as text:
        mountpoint = Path(text) / "mnt"
        mountpoint.mkdir()
        with subprocess.Popen(
            [sys.executable, str(_HERE / "passthrough.py"), str(file), str(mountpoint)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the passthrough does not mount")
            try:
                yield Mounted(mountpoint, process.pid)
            finally:
                process.stdin.close()
                _end(process, mountpoint)


def curl(url: str, size: int, streams: int, *, ca_file: Path | None = None) -> Span:
    """Fetch ``size`` bytes into nothing with ``streams`` processes of curl, a range each, and return what it took.

    Raises:
        Absent: curl is not installed.
    """
    program = shutil.which("curl")
    if program is None:
        raise Absent("curl is not installed")
    trust = ["--cacert", str(ca_file)] if ca_file is not None else []
    bounds = [size * number // streams for number in range(streams + 1)]
    commands = [
        [program, "-sSf", "--noproxy", "*", *trust, "-r", f"{start}-{stop - 1}", "-o", "/dev/null", url]
        for start, stop in itertools.pairwise(bounds)
    ]
    before, began = _children_s(), time.perf_counter()
    running = [subprocess.Popen(command) for command in commands]
    statuses = [process.wait() for process in running]
    found = Span(time.perf_counter() - began, _children_s() - before)
    if any(statuses):
        raise RuntimeError(f"curl failed with status {max(statuses)}")
    return found


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _mounted(process: subprocess.Popen[bytes], mountpoint: Path) -> Iterator[Mounted]:
    ends = time.monotonic() + _MOUNT_TIMEOUT_S
    try:
        while not os.path.ismount(mountpoint):
            if process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"{process.args!r} does not mount")
            time.sleep(0.02)
        yield Mounted(mountpoint, process.pid)
    finally:
        _end(process, mountpoint)


def _end(process: subprocess.Popen[bytes], mountpoint: Path) -> None:
    """Take the mount away and wait for its process; one that does not end is killed."""
    if os.path.ismount(mountpoint):
        subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], check=False, stderr=subprocess.DEVNULL)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
