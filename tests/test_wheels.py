"""What is built is what users install: each distribution alone, and the extras.

The environments are empty but for what is installed from the built wheels; what those need comes from the package index, in the
versions of constraints.txt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
NAMES = [next((package / "src").iterdir()).name.replace("_", "-") for package in PACKAGES]

IMPORT_ALL = """
import fusekit
from pkgutil import walk_packages
for module in walk_packages(fusekit.__path__, "fusekit."):
    if module.name != "fusekit.__main__" and not module.name.startswith("fusekit.testing"):
        __import__(module.name)
"""

# Building pyfuse3 takes half a minute where pip has no wheel of it in its cache.
pytestmark = pytest.mark.timeout(300)


def run(*command: str | Path, check: bool = True, **environment: str) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build everything once: the source distributions, and the wheels from those."""
    out = tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, package)
    return out


def wheel(dist: Path, name: str) -> Path:
    (found,) = dist.glob(f"{name.replace('-', '_')}-[0-9]*.whl")
    return found


class Environment:
    """A virtual environment with nothing in it, and directories of its own for what fusekit keeps."""

    def __init__(self, path: Path, dist: Path) -> None:
        run(sys.executable, "-m", "venv", path)
        self.bin = path / "bin"
        self.home = {f"XDG_{kind}": str(path / kind) for kind in ("CACHE_HOME", "STATE_HOME", "CONFIG_HOME")}
        self.dist = dist
        self.pins = path / "pins.txt"
        self.pins.write_text("".join(versions((ROOT / "constraints.txt").read_text())))

    def install(self, *names: str) -> None:
        """Install what was just built, by file: the index may have something else of the same name."""
        files = [f"{name} @ {wheel(self.dist, name.split('[')[0]).as_uri()}" for name in names]
        self.python("-m", "pip", "--disable-pip-version-check", "install", "-c", self.pins, *files)

    def python(self, *arguments: str | Path) -> str:
        return run(self.bin / "python", *arguments)

    def fusekit(self, *arguments: str | Path, check: bool = True) -> str:
        return run(self.bin / "fusekit", *arguments, check=check, **self.home)

    @contextmanager
    def mounted(self, source: str, directory: Path) -> Iterator[Path]:
        directory.mkdir()
        self.fusekit("mount", source, directory)
        try:
            yield directory
            self.fusekit("unmount", directory)
            assert not os.path.ismount(directory)
        finally:
            if os.path.ismount(directory):
                subprocess.run(["fusermount3", "-u", "-z", directory], check=True)


def versions(constraints: str) -> Iterator[str]:
    """Yield the pins without their hashes, which would forbid the files that were just built."""
    for line in constraints.splitlines():
        if line[:1].strip():
            yield line.removesuffix(" \\") + "\n"


@pytest.fixture(scope="module")
def core(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return an environment with `fusekit` alone."""
    environment = Environment(tmp_path_factory.mktemp("core"), dist)
    environment.install("fusekit")
    return environment


@pytest.fixture(scope="module")
def everything(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return an environment with every backend."""
    environment = Environment(tmp_path_factory.mktemp("all"), dist)
    environment.install("fusekit[all]", *(name for name in NAMES if name != "fusekit"))
    return environment


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_wheel_has_the_typed_package_and_the_licence_and_no_tests(dist: Path, package: Path) -> None:
    (source,) = (package / "src").iterdir()
    names = ZipFile(wheel(dist, source.name)).namelist()
    assert f"{source.name}/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {source.name}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_source_distribution_has_what_the_wheel_is_built_from(dist: Path, package: Path) -> None:
    (source,) = (package / "src").iterdir()
    (archive,) = dist.glob(f"{source.name}-[0-9]*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", f"src/{source.name}/py.typed"} <= names


def test_fusekit_alone_says_its_version_and_lists_its_backends(core: Environment) -> None:
    assert core.python("-c", "import fusekit; print(fusekit.__version__)").strip() in core.fusekit("--version")
    listed = core.fusekit("backends")
    assert "local" in listed
    assert "memory" in listed
    assert "databricks" not in listed


def test_fusekit_alone_needs_nothing_that_is_not_declared(core: Environment) -> None:
    core.python("-m", "pip", "check")
    core.python("-c", IMPORT_ALL)


@pytest.mark.fuse
def test_fusekit_alone_mounts_a_directory(core: Environment, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with core.mounted(f"local:{tmp_path / 'kept'}", tmp_path / "mount") as mount:
        (mount / "greeting").write_text("hello")
        assert (mount / "greeting").read_text() == "hello"
    assert (tmp_path / "kept/greeting").read_text() == "hello"


def test_the_extra_all_brings_every_backend_of_the_workspace(everything: Environment) -> None:
    everything.python("-m", "pip", "check")
    listed = everything.python("-m", "pip", "list", "--format", "json")
    names = {item["name"].replace("_", "-") for item in json.loads(listed)}
    assert set(NAMES) <= names
    assert "databricks" in everything.fusekit("backends")
