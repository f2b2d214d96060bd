"""A backend by somebody else: two methods, its own distribution, a fresh environment."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

from fusekit.testing.conformance import SEED, BackendConformance
from fusekit.testing.harness import Place, PlainMount, opened

HERE = Path(__file__).parent
CORE = HERE.parents[1]
THIRD_PARTY = HERE / "thirdparty"


def archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, data in SEED.items():
            made.writestr(name, data)
    return path


def zip_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fusekit_zip", THIRD_PARTY / "fusekit-zip/fusekit_zip.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestZip(BackendConformance):
    """Two methods are enough to pass."""

    @pytest.fixture
    async def place(self, tmp_path: Path) -> AsyncIterator[Place]:
        module = zip_module()
        backend = module.ZipBackend(module.Options(archive(tmp_path / "seed.zip")), PlainMount())
        async with opened(backend, seeded=True) as place:
            yield place


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
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment that has core and the two plugins, each installed from its directory."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling, to build the distributions without a network")
    root = tmp_path_factory.mktemp("fresh")
    uv = shutil.which("uv")
    venv.create(root / "env", with_pip=uv is None)
    python = root / "env/bin/python"
    dependencies = root / "dependencies"
    dependencies.mkdir()
    core = [Requirement(line).name for line in metadata.requires("fusekit") or () if "extra ==" not in line]
    link_dependencies(dependencies, "hatchling", *core)
    (site,) = (root / "env/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    installer = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
    sources = [str(CORE), str(THIRD_PARTY / "fusekit-zip"), str(THIRD_PARTY / "fusekit-broken")]
    options = ["--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*installer, *options, *sources], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


def ask(python: Path, program: str, *arguments: str) -> Any:
    """Run a program in the fresh environment, nothing of this one on its path, and return what it prints as JSON."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(python), "-c", program, *arguments], capture_output=True, text=True, check=False, env=environment, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LISTED = """
import json
from fusekit.plugins.manager import installed
print(json.dumps({p.name: [p.module, p.distribution, p.version, [b.scheme for b in p.backends], p.error] for p in installed()}))
"""

READ = """
import json, sys, trio
from fusekit.plugins.manager import backend_class
from fusekit.testing.harness import PlainMount, listed, opened, read

async def main():
    cls = backend_class("zip")
    async with opened(cls(cls.options(sys.argv[1]), PlainMount())) as place:
        found = await listed(place.hooks, place.directory)
        inner = await listed(place.hooks, found["folder"])
        return {"names": sorted(found), "inner": (await read(place.hooks, inner["inner.txt"])).decode()}

print(json.dumps(trio.run(main)))
"""

FAILED = """
import json
from fusekit.errors import PluginError
from fusekit.plugins.manager import backend_class
try:
    backend_class("broken")
except PluginError as error:
    print(json.dumps(str(error)))
"""


def test_plugins_of_others_are_listed_beside_the_built_in_ones(fresh_python: Path) -> None:
    found = ask(fresh_python, LISTED)
    assert set(found) == {"local", "memory", "tree", "read-only", "zip", "broken"}
    assert found["zip"] == ["fusekit_zip", "fusekit-zip", "1.0", ["zip"], None]
    assert all(error is None for name, (*_, error) in found.items() if name != "broken")


def test_a_plugin_that_does_not_import_is_listed_with_the_reason(fresh_python: Path) -> None:
    module, distribution, version, schemes, error = ask(fresh_python, LISTED)["broken"]
    assert (module, distribution, version, schemes) == ("fusekit_broken", "fusekit-broken", "0.3", [])
    assert "No module named 'library_that_is_not_installed'" in error
    assert "No module named 'library_that_is_not_installed'" in ask(fresh_python, FAILED)


def test_a_plugin_of_others_works_beside_a_broken_one(fresh_python: Path, tmp_path: Path) -> None:
    found = ask(fresh_python, READ, str(archive(tmp_path / "photos.zip")))
    assert found["names"] == sorted({name.partition("/")[0] for name in SEED})
    assert found["inner"] == SEED["folder/inner.txt"].decode()


def test_the_environment_is_a_fresh_one(fresh_python: Path) -> None:
    where = ask(fresh_python, "import fusekit, json; print(json.dumps(fusekit.__file__))")
    assert Path(where).is_relative_to(fresh_python.parents[1])
    assert Path(where).parent != CORE / "src/fusekit"
    assert str(sys.prefix) not in where
