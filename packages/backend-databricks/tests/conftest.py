"""An emulated workspace, the options that lead to it, and its home folder as a place to work in."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fusekit.testing.connected import asked, connected
from fusekit.testing.controls import Controls
from fusekit.testing.harness import Place, opened
from fusekit.testing.running import RunningEmulator
from fusekit_databricks.backend import DatabricksBackend
from fusekit_databricks.emulator import DatabricksEmulator
from fusekit_databricks.options import Options


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the tester's own sign-in out."""
    for name in [name for name in os.environ if name.startswith(("DATABRICKS_", "FUSEKIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def emulator() -> Iterator[RunningEmulator]:
    with DatabricksEmulator.start() as running:
        yield running


@pytest.fixture
def controls(emulator: RunningEmulator) -> Controls:
    return emulator.controls


@pytest.fixture
def options(emulator: RunningEmulator) -> Options:
    variables = emulator.environment()
    return Options(path="/Users/me@example.com", host=variables["DATABRICKS_HOST"], token=variables["DATABRICKS_TOKEN"])


@pytest.fixture
async def place(options: Options, controls: Controls) -> AsyncIterator[Place]:
    async with connected() as mount, opened(DatabricksBackend(options, mount)) as made:
        asked(controls)
        yield made
