"""Programs on a mount of an emulated workspace, by the command line."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from fusekit.errors import MountError
from fusekit.testing.cli_mount import cli_mount
from fusekit.testing.programs import Held, Mounted, Place, ProgramSuite
from fusekit.testing.running import RunningEmulator
from fusekit_databricks.api import FILE_BYTES_MAX
from fusekit_databricks.emulator import DatabricksEmulator

pytestmark = pytest.mark.fuse

TOP = "/Shared"


def looking(running: RunningEmulator) -> Callable[[str], Held]:
    """Return what tells what the workspace holds below a path of `TOP`."""

    def look(path: str) -> Held:
        above = f"{TOP}/{path}/" if path else f"{TOP}/"
        objects = running.controls.state()["objects"]
        return {
            place[len(above) :]: base64.b64decode(facts["content"]) if "content" in facts else None
            for place, facts in objects.items()
            if place.startswith(above)
        }

    return look


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with DatabricksEmulator.spawn() as running:
        directory = tmp_path_factory.mktemp("databricks")
        with cli_mount(f"databricks:{TOP}", directory, environment=running.environment()) as there:
            yield Mounted(there, looking(running))


class TestDatabricks(ProgramSuite):
    symlinks: ClassVar[bool] = False
    hard_links: ClassVar[bool] = False
    refused_names: ClassVar[frozenset[str]] = frozenset({"tab\there", "line\nbreak"})


def test_a_file_over_the_limit_is_refused_published_nowhere_and_kept(tmp_path: Path) -> None:
    data = os.urandom(FILE_BYTES_MAX + (1 << 20))
    (tmp_path / "in").write_bytes(data)
    with (
        DatabricksEmulator.spawn() as running,
        cli_mount(f"databricks:{TOP}", tmp_path / "own", environment=running.environment()) as there,
    ):
        (tmp_path / "outside").mkdir()
        place = Place(Mounted(there, looking(running)), "", tmp_path / "outside")
        (place.path / "old").write_bytes(b"old")
        for script in (f"cp {tmp_path}/in big", f"cat {tmp_path}/in > old", f"cat {tmp_path}/in >> old"):
            assert "File too large" in place.sh(script, status=1)
            place.check({"old": b"old"})
        assert "File too large" in place.run("truncate", "-s", str(FILE_BYTES_MAX + 1), "old", status=1)
        place.run("truncate", "-s", str(FILE_BYTES_MAX), "most")
        place.check({"old": b"old", "most": bytes(FILE_BYTES_MAX)})
        with pytest.raises(MountError, match="3 files were not sent"):
            there.unmount()
    kept = [path.read_bytes() for path in (tmp_path / "own" / "state").rglob("*") if path.is_file()]
    assert data[:FILE_BYTES_MAX] in kept, "as much as was taken before the refusal"
