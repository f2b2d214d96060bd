"""Programs on a mount of an emulated workspace, by the command line."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import ClassVar

import pytest

from fusekit.testing.cli_mount import cli_mount
from fusekit.testing.programs import Held, Mounted, ProgramSuite
from fusekit_databricks.api import FILE_BYTES_MAX
from fusekit_databricks.emulator import DatabricksEmulator

pytestmark = pytest.mark.fuse

TOP = "/Shared"


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with DatabricksEmulator.spawn() as running:

        def look(path: str) -> Held:
            above = f"{TOP}/{path}/"
            objects = running.controls.state()["objects"]
            return {
                place[len(above) :]: base64.b64decode(facts["content"]) if "content" in facts else None
                for place, facts in objects.items()
                if place.startswith(above)
            }

        directory = tmp_path_factory.mktemp("databricks")
        with cli_mount(f"databricks:{TOP}", directory, environment=running.environment()) as there:
            yield Mounted(there, look)


class TestDatabricks(ProgramSuite):
    symlinks: ClassVar[bool] = False
    hard_links: ClassVar[bool] = False
    file_bytes_max: ClassVar[int | None] = FILE_BYTES_MAX
    refused_names: ClassVar[frozenset[str]] = frozenset({"tab\there", "line\nbreak"})
