"""Services for `fusekit.testing.crash`: a directory behind ``local:``, and what an emulator stands for.

Outside the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from fusekit.backends.local_disk import is_hidden
from fusekit.testing.crash import Running
from fusekit.testing.emulator import Emulator
from fusekit.testing.faults import Fault, What
from fusekit.testing.running import RunningEmulator

# One request in so many fails: often enough to be met several times in a file's way, and never six times in a row.
PROBABILITY: Final = 0.2

FAULTS: Final[Mapping[str, tuple[Fault, ...]]] = {
    "none": (),
    "unavailable": (Fault(What.STATUS, status=503, count=None, probability=PROBABILITY),),
    # Half of them after the service has done what was asked: then only looking tells.
    "resets": (
        Fault(What.RESET, count=None, probability=PROBABILITY / 2),
        Fault(What.RESET, count=None, probability=PROBABILITY / 2, done=True),
    ),
    # Also what is not tried again: such an operation fails, and leaves the old state or the new one.
    "refusals": (
        *(
            Fault(What.STATUS, route, status=403, count=None, probability=PROBABILITY / 4)
            for route in ("import*", "rename", "delete", "mkdirs", "cloud-get")
        ),
        Fault(What.STATUS, status=503, count=None, probability=PROBABILITY / 4),
        Fault(What.RESET, count=None, probability=PROBABILITY / 4, done=True),
    ),
}


@attrs.frozen
class _Directory:
    path: Path
    environment: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def source(self) -> str:
        return f"local:{self.path}"

    def contents(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.path)): path.read_bytes()
            for path in self.path.rglob("*")
            if path.is_file() and not is_hidden(path.name.encode())
        }

    def trouble(self, what: str) -> None:
        assert what == "none", "a directory makes no trouble"


@attrs.frozen
class DirectoryService:
    """``local:``; there is no trouble with it."""

    name: str = "local"
    troubles: tuple[str, ...] = ("none",)

    @contextmanager
    def running(self, directory: Path, seed: int, holding: Sequence[str]) -> Iterator[Running]:
        """Run one: a directory."""
        behind = directory / "behind"
        for name in holding:
            (behind / name).mkdir(parents=True)
        yield _Directory(behind)


@attrs.frozen
class _Emulated:
    """``contents_of`` reads files by path out of the emulator's state."""

    emulator: RunningEmulator
    source: str
    contents_of: Callable[[Mapping[str, Any]], dict[str, bytes]]

    @property
    def environment(self) -> Mapping[str, str]:
        return self.emulator.environment()

    def contents(self) -> dict[str, bytes]:
        return self.contents_of(self.emulator.controls.state())

    def trouble(self, what: str) -> None:
        self.emulator.controls.clear_faults()
        for fault in FAULTS[what]:
            self.emulator.controls.arm(fault)


@attrs.frozen
class EmulatorService:
    """What ``cls`` emulates, in a process of its own; ``state_of`` makes the state that holds the directories named."""

    name: str
    cls: type[Emulator]
    source: str
    state_of: Callable[[Sequence[str]], Mapping[str, Any]]
    contents_of: Callable[[Mapping[str, Any]], dict[str, bytes]]
    troubles: tuple[str, ...] = ("none", "unavailable", "resets")

    @contextmanager
    def running(self, directory: Path, seed: int, holding: Sequence[str]) -> Iterator[Running]:
        """Run one."""
        with self.cls.spawn(seed=seed) as emulator:
            emulator.controls.merge_state(self.state_of(holding))
            yield _Emulated(emulator, self.source, self.contents_of)
