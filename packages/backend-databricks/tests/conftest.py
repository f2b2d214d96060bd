"""An emulated workspace, and a mount of it that uses the real HTTP client."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import attrs
import pytest

pytest.register_assert_rewrite("fusekit.testing")

from fusekit.testing.controls import Controls
from fusekit.testing.harness import Place, PlainMount, opened
from fusekit.testing.running import RunningEmulator
from fusekit.transfer.client import Client
from fusekit.types import Auth, Explain
from fusekit_databricks.backend import DatabricksBackend
from fusekit_databricks.emulator import DatabricksEmulator
from fusekit_databricks.options import Options

HOME = "/Users/me@example.com"


@attrs.frozen
class Workspace:
    """A running emulator. ``mounted`` opens a place in it; ``options`` are the options that lead there."""

    running: RunningEmulator
    options: Options
    mounted: Callable[..., AbstractAsyncContextManager[Place]]

    @property
    def controls(self) -> Controls:
        return self.running.controls

    def put(self, **objects: str) -> None:
        """Make objects in the home folder: text files by name."""
        self.merge({f"{HOME}/{name}": {"text": text} for name, text in objects.items()})

    def merge(self, objects: dict[str, dict[str, object]]) -> None:
        """Make objects by path."""
        self.controls.merge_state({"objects": objects})

    def asked(self) -> dict[str, int]:
        """Return the requests by route since the last time this was asked."""
        counts: dict[str, int] = {}
        for one in self.controls.requests():
            counts[one.route] = counts.get(one.route, 0) + 1
        self.controls.reset()
        return counts


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("DATABRICKS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    with DatabricksEmulator.start() as running:
        found = running.environment()
        options = Options(path=HOME, host=found["DATABRICKS_HOST"], token=found["DATABRICKS_TOKEN"])

        @asynccontextmanager
        async def mounted(**changes: object) -> AsyncIterator[Place]:
            clients: list[Client] = []

            def http(base_url: str, auth: Auth | None, explain: Explain | None) -> Client:
                clients.append(Client(base_url, auth, explain))
                return clients[-1]

            try:
                async with opened(DatabricksBackend(attrs.evolve(options, **changes), PlainMount(http))) as place:
                    running.controls.reset()
                    yield place
            finally:
                for client in clients:
                    await client.aclose()

        yield Workspace(running, options, mounted)
