"""Reading through a real mount of a server that misbehaves: whatever goes wrong, no program ever gets a wrong byte.

Every byte of every file can be computed from the file and the offset, so that readers in processes of their own check
what they read without asking anybody. ``FUSEKIT_READING_ROUNDS`` makes the random readers go on for longer; each
hundred rounds are about a minute for each of its cases.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusekit.control.client import wait_for_end
from fusekit.testing.cli_mount import cli_mount
from fusekit.testing.controls import Controls
from fusekit.testing.faults import What
from fusekit.testing.running import RunningEmulator
from fusekit.testing.web import WebEmulator

pytestmark = pytest.mark.fuse

ROUNDS = int(os.environ.get("FUSEKIT_READING_ROUNDS", "4"))
END_TIMEOUT_S = 60.0

MIB = 1 << 20
SIZES = (0, 1, 4095, 4097, 300_001, MIB, 3 * MIB + 17, 20 * MIB + 5, 40 * MIB)

# The bytes repeat after a prime number of them: pages, pieces or ranges that changed places would show.
PERIOD = 1_000_003

# What a reader does in a process of its own: random reads of random files, each compared; ends with 1 at a wrong byte.
READER = """
import os, random, sys

directory, seed, reads, period = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sizes = [int(size) for size in sys.argv[5:]]
rng = random.Random(seed)
base = random.Random(period).randbytes(period)


def expected(number, start, stop):
    at = (start + 7919 * number) % period
    count = stop - start
    return (base * ((at + count) // period + 1))[at : at + count]


def check(number, start, file, asked):
    stop = max(start, min(sizes[number], start + asked))
    data = b""
    # A read that failed half way is short; going on tells the end of the file from an error.
    while more := os.pread(file.fileno(), asked - len(data), start + len(data)):
        data += more
    if data == expected(number, start, stop):
        return
    print(f"file {number}: wrong bytes among {start} to {stop}, {len(data)} came", flush=True)
    os._exit(1)


def one(number, path):
    size = sizes[number]
    way = rng.choice(["random", "forward", "backward", "strided"])
    step = min(max(size, 1), rng.choice([1, 511, 4096, 65_537, 1 << 20, 8 << 20]))
    at = rng.randrange(size + 1)
    with open(path, "rb", buffering=0) as file:
        for turn in range(8):
            if way == "random":
                at = rng.randrange(size + 1)
            elif way == "forward" and turn:
                at += step
            elif way == "backward" and turn:
                at = max(0, at - step)
            elif way == "strided" and turn:
                at += 3 * step
            if at > size:
                return
            check(number, at, file, step)


done = failed = 0
for _ in range(reads):
    number = rng.randrange(len(sizes))
    try:
        one(number, os.path.join(directory, f"f{number}"))
        done += 1
    except OSError as error:
        failed += 1
        print(f"file {number}: {error}", flush=True)
print(f"{done} right, {failed} failed", flush=True)
sys.exit(0 if done else 2)
"""

# What a network and a server do to an answer, as shares of all answers to GET.
TROUBLE = (
    {"what": What.RESET, "probability": 0.03},
    {"what": What.RESET, "probability": 0.03, "at_byte": 70_000},
    {"what": What.TRUNCATED, "probability": 0.03, "at_byte": 50_001},
    {"what": What.SHORT, "probability": 0.03, "at_byte": 4_097},
    {"what": What.OVERLONG, "probability": 0.02},
    {"what": What.EXTRA, "probability": 0.02},
    {"what": What.HANGUP, "probability": 0.03},
    {"what": What.WRONG_RANGE, "probability": 0.02},
    {"what": What.IGNORED_RANGE, "probability": 0.02},
    {"what": What.STATUS, "probability": 0.02, "status": 503, "retry_after": "0"},
    {"what": What.STATUS, "probability": 0.02, "status": 429, "retry_after": "0"},
    {"what": What.GARBAGE, "probability": 0.01},
    {"what": What.STALL, "probability": 0.01, "hold_s": 0.5},
    {"what": What.STALL, "probability": 0.01, "hold_s": 0.5, "at_byte": 60_000},
)


def content(number: int, size: int) -> bytes:
    """Return the bytes of file ``number``."""
    base = random.Random(PERIOD).randbytes(PERIOD)
    at = 7919 * number % PERIOD
    return (base * ((at + size) // PERIOD + 1))[at : at + size]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEmulator]:
    directory = tmp_path_factory.mktemp("content")
    files = {}
    for number, size in enumerate(SIZES):
        path = directory / f"f{number}"
        path.write_bytes(content(number, size))
        files[f"f{number}"] = {"file": str(path)}
    with WebEmulator.spawn() as running:
        running.controls.replace_state({"files": files})
        yield running


@contextmanager
def trouble(controls: Controls) -> Iterator[None]:
    """Let the server misbehave."""
    for fields in TROUBLE:
        controls.fault(route="get", count=None, **fields)  # type: ignore[arg-type]  # one table of several types
    try:
        yield
    finally:
        controls.clear_faults()


def readers(path: Path, seeds: Sequence[int], reads: int) -> list[subprocess.Popen[str]]:
    """Start readers on the files at ``path``."""
    return [
        subprocess.Popen(
            [sys.executable, "-c", READER, path, str(seed), str(reads), str(PERIOD), *map(str, SIZES)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in seeds
    ]


def outcome(programs: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Return what the readers said that found wrong bytes, or nothing right at all."""
    said = [program.communicate()[0] for program in programs]
    return [text for program, text in zip(programs, said, strict=True) if program.returncode != 0]


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("webdav", ("-o", "cache_bytes=4MiB,memory=16MiB")),
        ("webdav", ("-o", "cache_dir=none,memory=16MiB")),
        ("webdav", ("-o", "readahead=0")),
        ("python", ("-o", "cache_bytes=64MiB,memory=16MiB")),
    ],
)
def test_random_readers_never_get_a_wrong_byte(
    server: RunningEmulator, tmp_path: Path, form: str, options: tuple[str, ...]
) -> None:
    with cli_mount(f"{server.url}/{form}", tmp_path, "-o", "cache_free=0", *options) as there:
        with trouble(server.controls):
            for turn in range(max(1, ROUNDS // 4)):
                assert outcome(readers(there.path, [turn * 10 + number for number in range(3)], 10)) == []
        assert there.unforeseen() == []


def damage(directory: Path, turn: int) -> int:
    """Damage each file of the cache in ``directory`` in a way of its own; return how many there are."""
    ways: tuple[Callable[[Path, int], None], ...] = (
        lambda path, size: os.truncate(path, size // 2),
        lambda path, size: overwrite(path, size // 3, bytes(5000)),
        lambda path, size: overwrite(path, size // 5, b"damage" * 50),
        lambda path, size: overwrite(path, max(0, size - 100), bytes(64)),
        lambda path, _: path.unlink(),
    )
    found = sorted((directory / "blocks").iterdir())
    for number, path in enumerate(found, turn):
        ways[number % len(ways)](path, path.stat().st_size)
    return len(found)


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_what_a_killed_mount_left_is_right_afterwards_though_it_is_damaged(
    server: RunningEmulator, tmp_path: Path
) -> None:
    options = ("--cache-dir", str(tmp_path / "cache"), "-o", "cache_free=0,cache_bytes=30MiB")
    for turn in range(max(1, ROUNDS // 4)):
        with cli_mount(f"{server.url}/webdav", tmp_path / f"killed-{turn}", *options) as there:
            server.controls.reset()
            programs = readers(there.path, [turn * 10 + number for number in range(2)], 200)
            server.controls.wait_for_requests("get", 25, END_TIMEOUT_S)
            os.kill(there.pid, signal.SIGKILL)
            assert wait_for_end(there.pid, END_TIMEOUT_S)
            assert [text for text in outcome(programs) if "wrong" in text] == []
        (directory,) = (tmp_path / "cache").iterdir()
        assert damage(directory, turn) > 0
        with cli_mount(f"{server.url}/webdav", tmp_path / f"again-{turn}", *options) as there:
            assert outcome(readers(there.path, [turn * 10 + number for number in range(3)], 10)) == []
            assert there.unforeseen() == []


def test_a_descriptor_never_brings_bytes_of_two_versions(server: RunningEmulator, tmp_path: Path) -> None:
    size = 4 * MIB
    contents = {letter: tmp_path / letter.decode() for letter in (b"a", b"b")}
    for letter, path in contents.items():
        path.write_bytes(letter * size)

    def serve(letter: bytes, modified_s: float) -> None:
        facts = {"file": str(contents[letter]), "modified_s": modified_s}
        server.controls.merge_state({"files": {"changing": facts}})

    for form in ("webdav", "python"):
        serve(b"a", 1e9)
        with cli_mount(f"{server.url}/{form}", tmp_path / form, "--ttl", "0s") as there:
            first = os.open(there.path / "changing", os.O_RDONLY)
            try:
                assert os.pread(first, 100, 0) == b"a" * 100
                serve(b"b", 1e9 + 100)
                # Everybody hears of the new version, and then opens it.
                os.stat(there.path / "changing")
                assert (there.path / "changing").read_bytes() == b"b" * size
                for at in (0, MIB, size - 100):
                    with contextlib.suppress(OSError):
                        assert os.pread(first, 100, at) == b"a" * 100
            finally:
                os.close(first)
