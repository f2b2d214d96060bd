"""Rounds of a crash: a mount with programs that write in it is killed, mounted again and drained; then promises are checked.

Outside the layers. A `Round` says which service, which write mode, what trouble the service makes and how the mount
dies; all of it is drawn from a seed (`drawn`), which is printed, so that a round that went wrong can be run again. `play`
runs it: the programs of `fusekit.testing.crash_writer`, in processes of their own, say in pipes what they try and what they
are told; that is the ledger that `fusekit.testing.promises` judges by.

How a mount dies: ``moment`` (SIGKILL when so many lines were told, so in the middle of whatever goes on) or ``step`` (it
kills itself when it comes to a step of `fusekit.journal.steps` for the n-th time; where it never does, as a moment).
Half of the mounts that recover are killed at a step as well, and the next one has to.

In some rounds the power goes as well (``power``, one of the ways of `fusekit.testing.lossy_disk`): state and cache are on a disk
that forgets what was not synced, and it fails at the n-th fsync, or when the mount is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final, Protocol

import attrs
import trio

from fusekit.control import client
from fusekit.control.registry import endpoints, runtime_directory
from fusekit.errors import MountError
from fusekit.fuse.mounts import clear_dead, detach, mounted_at, real_path
from fusekit.journal.journal import Journal, State
from fusekit.journal.steps import STEPS, VARIABLE
from fusekit.testing import crash_writer
from fusekit.testing.cli_mount import surroundings
from fusekit.testing.crash_writer import digest
from fusekit.testing.lossy_disk import WAYS, LossyDisk, lossy_disk
from fusekit.testing.promises import Ledger, Violation, ledger

WRITERS: Final = ("w0", "w1", "w2")
OPERATIONS_MAX: Final = 60
SYNCS_MAX: Final = 150  # most fsyncs before the power goes
LINES_MAX: Final = 200  # of all programs together, at which a mount dies at the latest
TROUBLES: Final = ("none", "unavailable", "resets", "refusals")

_START_TIMEOUT_S: Final = 60.0
_END_TIMEOUT_S: Final = 120.0


class Running(Protocol):
    """A service that runs and is mounted: what to mount, and what it holds behind the mount's back."""

    @property
    def source(self) -> str: ...
    @property
    def environment(self) -> Mapping[str, str]: ...

    def contents(self) -> dict[str, bytes]:
        """Return every file by its path below what is mounted."""
        ...

    def trouble(self, what: str) -> None:
        """Answer from now on as ``what``, one of `TROUBLES`."""
        ...


class Service(Protocol):
    """A kind of service. ``troubles`` are those of `TROUBLES` that it can make."""

    @property
    def name(self) -> str: ...
    @property
    def troubles(self) -> tuple[str, ...]: ...

    def running(self, directory: Path, seed: int, holding: Sequence[str]) -> AbstractContextManager[Running]:
        """Run one that holds the empty directories ``holding``; what it has on disk is below ``directory``."""
        ...


@attrs.frozen
class Round:
    """What happens in a round."""

    seed: int
    service: Service
    write: str
    trouble: str
    kill_at: str  # a step, with its number, or "moment"
    lines: int  # so many are told before a mount is killed that has not killed itself
    again_at: str | None  # a step at which the mount that recovers is killed
    power: str | None = None  # what the disk forgets, where the power goes as well
    syncs: int = 0  # the fsync at which it goes; 0: when the mount is killed

    def __str__(self) -> str:
        trouble = "" if self.trouble == "none" else f", {self.trouble}"
        how = f"at line {self.lines}" if self.kill_at == "moment" else f"at {self.kill_at}"
        again = "" if self.again_at is None else f", then at {self.again_at}"
        power = "" if self.power is None else f", power gone at fsync {self.syncs or 'of nobody'}: {self.power}"
        return f"--seed {self.seed} ({self.service.name}, --write {self.write}{trouble}, killed {how}{again}{power})"


@attrs.frozen
class Result:
    """How a round ended. ``acknowledged`` counts calls, ``kept`` rows that the journal still has at the end."""

    round: Round
    reached: bool
    acknowledged: int
    files: int
    failed: int
    kept: int
    violations: tuple[Violation, ...]

    def count(self, kind: str) -> int:
        """Return how many violations are of that kind."""
        return sum(one.kind == kind for one in self.violations)


def drawn(seed: int, services: Sequence[Service], writes: Sequence[str]) -> Round:
    """Return the round of ``seed``: each round is drawn from its own, whatever came before."""
    chance = random.Random(f"round {seed}")
    service = chance.choice(services)
    step = f"{chance.choice(STEPS)}:{chance.choice((1, 1, 2, 3, 5, 8, 13))}"
    return Round(
        seed=seed,
        service=service,
        write=chance.choice(writes),
        trouble=chance.choice(service.troubles),
        kill_at="moment" if chance.random() < 0.4 else step,
        lines=chance.randrange(2, LINES_MAX),
        again_at=f"{chance.choice(STEPS)}:{chance.choice((1, 1, 2, 3))}" if chance.random() < 0.5 else None,
        power=chance.choice(WAYS) if chance.random() < 0.3 else None,
        syncs=chance.randrange(SYNCS_MAX) if chance.random() < 0.8 else 0,
    )


class Mount:
    """One mount point, on which processes come and go. ``environment`` is theirs."""

    def __init__(self, directory: Path, source: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        (directory / "mnt").mkdir()
        self.path = real_path(directory / "mnt")
        self.state = directory / "disk" / "state"
        own = {"FUSEKIT_STATE_DIR": str(self.state), "FUSEKIT_CACHE_DIR": str(directory / "disk" / "cache")}
        self.log = directory / "mount.log"
        self._source, self._arguments = source, arguments
        self._environment = surroundings(directory, {**environment, **own})
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False

    def start(self, kill_at: str | None = None) -> bool:
        """Mount and return True when it is; False where it killed itself before, at the step ``kill_at``.

        Raises:
            MountError: it does not mount.
        """
        clear_dead(self.path)
        self._killed = False
        reading, writing = os.pipe()
        command = [sys.executable, "-P", "-m", "fusekit", "mount", "--ready-fd", str(writing), *self._arguments]
        environment = {**self._environment, **({} if kill_at is None else {VARIABLE: kill_at})}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--", self._source, str(self.path)],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[writing],
                start_new_session=True,  # Ctrl-C is for who plays the rounds, who ends all of these in order
            )  # fmt: skip
        os.close(writing)
        with open(reading, "rb") as pipe:
            if not select.select([pipe], [], [], _START_TIMEOUT_S)[0]:
                self.kill()
                raise MountError(f"{self._source} is not mounted in time")
            line = pipe.readline().decode().strip()
        if line == "mounted":
            return True
        status = self._process.wait(_END_TIMEOUT_S)
        if kill_at is not None and status == -signal.SIGKILL:
            return False
        raise MountError(f"{self._source} does not mount (status {status}): {line}")

    def kill(self) -> None:
        """Kill the process, unless it has ended already."""
        assert self._process is not None
        if self._process.poll() is None:
            self._killed = True
            self._process.kill()

    def wait_killed(self, *, ended: bool = False) -> bool:
        """See to it that the process is dead, and return whether it had killed itself; ``ended``: it may have given up."""
        assert self._process is not None
        self.kill()
        status = self._process.wait()
        if status != -signal.SIGKILL and not ended:
            raise MountError(f"the mount ended with status {status} before it was killed")
        return status == -signal.SIGKILL and not self._killed

    def unmount(self) -> bool:
        """Leave the mount as `fusekit unmount` does, wait for the end, and return False where it killed itself."""
        assert self._process is not None
        found = endpoints(runtime_directory(self._environment), self.path)
        if found:  # else it has killed itself already
            client.ask(found[-1], "unmount", timeout_s=_END_TIMEOUT_S)
        return self._process.wait(_END_TIMEOUT_S) != -signal.SIGKILL

    def close(self) -> None:
        """Leave neither a mount nor a process."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        while mounted_at(self.path) is not None:
            detach(self.path, lazy=True)

    def rebooted(self) -> None:
        """Let the journal be of an earlier boot of the machine: what says that it is of this one was before the power went."""
        for file in self.state.glob("*/journal.db"):
            with contextlib.closing(sqlite3.connect(file)) as connection, connection:
                if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'generations'").fetchone():
                    connection.execute("UPDATE generations SET boot = 'before' WHERE boot <> ''")

    def rows(self) -> Iterator[tuple[str, State, bytes]]:
        """Yield the path, the state and the bytes of each row in the journal, when no process has it."""
        for directory in self.state.glob("*/journal.db"):
            journal = trio.run(Journal.open, directory.parent, "a test")
            for row in journal.left:
                staged = journal.staging_path(row.staging)
                yield row.path, row.state, staged.read_bytes() if staged.exists() else b""
            trio.run(journal.close)


def play(wanted: Round, directory: Path) -> Result:
    """Run a round in ``directory``, which is empty, and return how it ended."""
    with ExitStack() as stack:
        service = stack.enter_context(wanted.service.running(directory, wanted.seed, WRITERS))
        disk: LossyDisk | None = None
        if wanted.power is not None:
            disk = stack.enter_context(lossy_disk(directory / "disk", wanted.syncs, wanted.seed))
        mount = Mount(directory, service.source, ["--write", wanted.write], service.environment)
        stack.callback(mount.close)
        told: dict[str, list[bytes]] = {name: [] for name in WRITERS}
        reached = False
        if _mounted(mount, wanted, disk):
            service.trouble(wanted.trouble)
            told, reached = _told_until_killed(mount, wanted, disk)
        if disk is not None and wanted.power is not None:
            disk.restore(wanted.power)
            mount.rebooted()
        ways = {"asynchronous": wanted.write == "async", "power": wanted.power is not None}
        ledgers = {name: ledger(lines, **ways) for name, lines in told.items()}
        killed = service.contents()
        violations = [*_judged(ledgers, killed, None, "after the kill")]
        if wanted.again_at is not None and mount.start(wanted.again_at):
            mount.unmount()
        service.trouble("none")
        mount.start()
        mount.unmount()
        kept = [(path, digest(content)) for path, state, content in mount.rows() if state is not State.OPEN]
        drained = service.contents()
        violations += _judged(ledgers, drained, kept, "after the next mount")
        if violations:
            _write_evidence(directory / "evidence", told, killed, drained)
        return Result(
            round=wanted,
            reached=reached,
            acknowledged=sum(one.acknowledged for one in ledgers.values()),
            files=sum(len(one.names) for one in ledgers.values()),
            failed=sum(one.failed for one in ledgers.values()),
            kept=len(kept),
            violations=tuple(violations),
        )


def _mounted(mount: Mount, wanted: Round, disk: LossyDisk | None) -> bool:
    """Mount as the round says, and return False where the disk failed before that was done."""
    try:
        if not mount.start(None if wanted.kill_at == "moment" else wanted.kill_at):
            mount.start()
    except MountError:
        if disk is None or not disk.failed:
            raise
        return False
    return True


def _told_until_killed(mount: Mount, wanted: Round, disk: LossyDisk | None) -> tuple[dict[str, list[bytes]], bool]:
    """Let the programs run until the mount is dead; return what each told, and whether the mount killed itself."""
    told: dict[str, list[bytes]] = {}
    lines = 0
    with ExitStack() as stack:
        reading: dict[int, tuple[str, bytearray]] = {}
        for name in WRITERS:
            program = stack.enter_context(_writing(mount.path / name, f"{wanted.seed}/{name}"))
            assert program.stdout is not None
            told[name] = []
            reading[program.stdout.fileno()] = (name, bytearray())
        failing = [] if disk is None or disk.failed else [disk.output.fileno()]
        while reading:
            for pipe in select.select([*reading, *failing], [], [])[0]:
                if pipe in failing:
                    failing.clear()
                    mount.kill()
                    continue
                name, pending = reading[pipe]
                got = os.read(pipe, 65536)
                if not got:
                    del reading[pipe]
                    continue
                pending += got
                *whole, rest = pending.split(b"\n")
                pending[:] = rest
                told[name] += [bytes(line) for line in whole]
                if lines < wanted.lines <= (lines := lines + len(whole)):
                    if disk is not None:
                        disk.cut()
                    mount.kill()
        if disk is not None:
            disk.cut()
        return told, mount.wait_killed(ended=disk is not None)


@contextmanager
def _writing(root: Path, seed: str) -> Iterator[subprocess.Popen[bytes]]:
    wanted = json.dumps({"root": str(root), "seed": seed, "operations": OPERATIONS_MAX})
    with subprocess.Popen(
        [sys.executable, "-I", crash_writer.__file__, wanted],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as program:
        try:
            yield program
        finally:
            program.kill()
            program.wait()
    if program.returncode not in {0, -signal.SIGKILL}:
        raise RuntimeError(f"a writer ended with status {program.returncode}")


def _write_evidence(
    directory: Path, told: Mapping[str, list[bytes]], killed: Mapping[str, bytes], drained: Mapping[str, bytes]
) -> None:
    """Keep what a broken promise is found by: what the programs told, and what the service had at both times."""
    directory.mkdir()
    for name, lines in told.items():
        (directory / f"{name}.told").write_bytes(b"".join(line + b"\n" for line in lines))
    for when, contents in (("killed", killed), ("drained", drained)):
        for path, content in contents.items():
            file = directory / when / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def _judged(
    ledgers: Mapping[str, Ledger], remote: Mapping[str, bytes], kept: Sequence[tuple[str, str]] | None, when: str
) -> Iterator[Violation]:
    for writer, told in ledgers.items():
        inside = f"{writer}/"
        there = {
            path.removeprefix(inside): digest(content) for path, content in remote.items() if path.startswith(inside)
        }
        rows: dict[str, set[str]] | None = None if kept is None else {}
        for path, found in kept or ():
            if rows is not None and path.lstrip("/").startswith(inside):
                rows.setdefault(path.lstrip("/").removeprefix(inside), set()).add(found)
        for one in told.broken(there, rows):
            yield attrs.evolve(one, name=f"{writer}/{one.name}", says=f"{when}: {one.says}")
