"""A backend of somebody else: the example for authors, installed from its directory into a fresh environment, and mounted there.

Beside it stands one that does not import, as when a library that it needs is gone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import attrs
import pytest
from packaging.requirements import Requirement

from fusekit.fuse.mounts import detach, mounted_at
from fusekit.testing.conformance import SEED

ROOT = Path(__file__).parent.parent
CORE = ROOT / "packages/core"
EXAMPLE = ROOT / "docs/examples/zip"

BROKEN = {
    "fusekit_broken.py": "import library_that_is_not_installed\n",
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "fusekit-broken"
version = "0.3"
[project.entry-points.fusekit]
broken = "fusekit_broken"
[tool.hatch.build.targets.wheel]
only-include = ["fusekit_broken.py"]
""",
}

# Installing is most of it, and the machine may be busy.
pytestmark = pytest.mark.timeout(300)


@attrs.frozen
class Environment:
    """A virtual environment, and what its programs run with: nothing of this one, and a home of their own."""

    bin: Path
    variables: Mapping[str, str]

    def run(self, program: str, *arguments: str | Path, status: int = 0) -> str:
        done = subprocess.run(
            [self.bin / program, *arguments],
            env=self.variables,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + (done.stderr if status else "")


def link_dependencies(target: Path, *names: str) -> None:
    """Make the installed distributions ``names``, and what they need, importable from ``target`` and nothing else.

    So the environment is fresh, and nothing is built or downloaded for it again.
    """
    wanted, seen = list(names), set[str]()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        found = metadata.distribution(name)
        for top in {Path(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            source = Path(str(found.locate_file(top)))
            if source.exists() and not (target / top).exists():
                (target / top).symlink_to(source)
        for line in found.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return an environment that has core and the two plugins, each installed from its directory."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling, to build the distributions without a network")
    root = tmp_path_factory.mktemp("fresh")
    broken = root / "fusekit-broken"
    broken.mkdir()
    for name, text in BROKEN.items():
        (broken / name).write_text(text)
    uv = shutil.which("uv")
    venv.create(root / "env", with_pip=uv is None)
    python = root / "env/bin/python"
    dependencies = root / "dependencies"
    dependencies.mkdir()
    core = [Requirement(line).name for line in metadata.requires("fusekit") or () if "extra ==" not in line]
    link_dependencies(dependencies, "hatchling", *core)
    (site,) = (root / "env/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    installer: list[str | Path] = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    options = ["--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run(
        [*installer, *options, CORE, EXAMPLE, broken], capture_output=True, text=True, check=False, cwd=root
    )
    assert done.returncode == 0, done.stdout + done.stderr
    own = {f"XDG_{kind}": str(root / kind) for kind in ("CACHE_HOME", "STATE_HOME", "CONFIG_HOME")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FUSEKIT_", "XDG_"))}
    return Environment(root / "env/bin", {**kept, **own})


def test_the_environment_is_a_fresh_one(fresh: Environment) -> None:
    where = Path(fresh.run("python", "-c", "import fusekit; print(fusekit.__file__)").strip())
    assert where.is_relative_to(fresh.bin.parent)
    assert not where.is_relative_to(sys.prefix)


def test_a_plugin_of_others_is_listed_beside_the_built_in_ones(fresh: Environment) -> None:
    found = {one["name"]: one for one in json.loads(fresh.run("fusekit", "backends", "--json"))}
    assert set(found) == {"local", "memory", "tree", "http", "https", "read-only", "zip", "broken"}
    assert (found["zip"]["from"], found["zip"]["error"]) == ("fusekit-zip 1.0", None)
    assert [name for name, one in found.items() if one["error"]] == ["broken"]


def test_a_plugin_that_does_not_import_says_why(fresh: Environment) -> None:
    reason = "No module named 'library_that_is_not_installed'"
    assert reason in fresh.run("fusekit", "backends")
    assert reason in fresh.run("fusekit", "ls", "broken:", status=1)


@pytest.mark.fuse
def test_a_plugin_of_two_methods_is_mounted(fresh: Environment, tmp_path: Path) -> None:
    with ZipFile(tmp_path / "seed.zip", "w") as archive:
        for name, data in SEED.items():
            archive.writestr(name, data)
    mount = tmp_path / "mount"
    mount.mkdir()
    fresh.run("fusekit", "mount", f"zip:{tmp_path / 'seed.zip'}", mount)
    try:
        shown = {str(path.relative_to(mount)): path.read_bytes() for path in mount.rglob("*") if path.is_file()}
        assert shown == SEED
        assert all((mount / name).stat().st_size == len(data) for name, data in shown.items())
        with pytest.raises(OSError, match="Read-only file system"):
            (mount / "new").write_text("no")
        fresh.run("fusekit", "unmount", mount)
        assert mounted_at(mount) is None
    finally:
        if mounted_at(mount) is not None:
            detach(mount, lazy=True)
