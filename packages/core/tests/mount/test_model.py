"""Random operations on real mounts, each answer compared with the reference model's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import attrs
import pytest

from fusekit.backends.local import LocalBackend
from fusekit.backends.local import Options as LocalOptions
from fusekit.backends.memory import MemoryBackend, Options
from fusekit.settings import Consistency, Settings, Write
from fusekit.testing.model import OsSubject
from fusekit.testing.mounts import Mounted, mounted
from fusekit.testing.sequences import Plan, check

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(600)]

STEPS = 1000

# A directory's time moves when a file appears at the remote side, which is when it is closed, not when it is made.
PLAN = Plan(ignore=frozenset({"directory.mtime_ns"}))
SEEDS = (1, 2)


def _backend(kind: str, directory: Path) -> Any:
    if kind == "local":
        (directory / "origin").mkdir()
        return lambda mount: LocalBackend(LocalOptions(path=directory / "origin"), mount)
    return lambda mount: MemoryBackend(Options(stable_refs=kind == "memory by number"), mount)


@pytest.fixture(params=["memory", "memory by number", "local"])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    with mounted(_backend(request.param, tmp_path), tmp_path) as made:
        yield made


def _fresh(there: Mounted) -> Any:
    numbers = count()

    @contextmanager
    def fresh() -> Iterator[OsSubject]:
        root = there.path / f"run{next(numbers)}"
        root.mkdir()
        subject = OsSubject(root)
        try:
            yield subject
        finally:
            subject.finish()

    return fresh


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mount_answers_as_the_model(there: Mounted, seed: int) -> None:
    assert check(_fresh(there), seed, STEPS, PLAN) > STEPS // 4


def test_a_strict_mount_answers_as_the_model(tmp_path: Path) -> None:
    settings = attrs.evolve(Settings(), consistency=Consistency.STRICT)
    with mounted(_backend("memory", tmp_path), tmp_path, settings) as there:
        assert check(_fresh(there), 3, STEPS, PLAN) > STEPS // 4


# A second name of a file, and the count of names that goes with it, is not shown right while content waits.
LATER = Plan(ignore=frozenset({"directory.mtime_ns", "file.nlink"}))


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_a_mount_that_sends_later_answers_as_the_model(tmp_path: Path, kind: str) -> None:
    settings = attrs.evolve(Settings(), write=Write.ASYNC)
    with mounted(_backend(kind, tmp_path), tmp_path, settings) as there:
        fresh = _fresh(there)
        for seed in (4, 5):
            assert check(fresh, seed, STEPS, LATER) > STEPS // 4
