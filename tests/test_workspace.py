"""What holds across the distributions: one version, extras that are complete, pins that cover what is needed."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
PINS = (ROOT / "constraints.txt").read_text()


def project(package: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    return found


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


BACKENDS = sorted(project(package)["name"] for package in PACKAGES if package.name != "core")


def test_all_distributions_have_one_version() -> None:
    found = {}
    for package in PACKAGES:
        (source,) = (package / "src").iterdir()
        found[project(package)["name"]] = import_module(source.name).__version__
        assert metadata.version(project(package)["name"]) == found[project(package)["name"]]
    assert len(set(found.values())) == 1, found


def test_every_backend_has_its_extra_and_is_in_all() -> None:
    extras = project(ROOT / "packages/core")["optional-dependencies"]
    for name in BACKENDS:
        assert name_of(extras[name.removeprefix("fusekit-")][0]) == name
    (everything,) = extras["all"]
    assert sorted(re.findall(r"[a-z]+", everything)) == sorted(
        ["fusekit", *(name.removeprefix("fusekit-") for name in BACKENDS)]
    )


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_dependency_is_pinned(package: Path) -> None:
    pinned = {name_of(line) for line in PINS.splitlines() if line[:1].strip()}
    ours = {project(other)["name"] for other in PACKAGES}
    assert {name_of(requirement) for requirement in project(package)["dependencies"]} - ours <= pinned


def test_every_tool_is_pinned() -> None:
    pinned = {name_of(line) for line in PINS.splitlines() if line[:1].strip()}
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    wanted = {name_of(item) for group in groups.values() for item in group if isinstance(item, str)}
    assert wanted <= pinned


def test_pins_have_hashes_and_no_addresses() -> None:
    assert "://" not in PINS
    for block in re.split(r"\n(?=\S)", PINS.strip()):
        assert re.match(r"[a-z0-9.-]+==\S+", block), block
        assert "--hash=sha256:" in block, block
