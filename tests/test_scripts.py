"""The scripts that newcomers run: what they say where they cannot install, and the whole demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ESSENTIAL = ("sh", "cat", "dirname", "sed", "sha256sum", "tail", "env")  # what bare Debian has


def bare(tmp_path: Path, **programs: str) -> str:
    """Return a PATH with the essentials and ``programs``, each given as the shell script that it is."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ESSENTIAL:
        found = shutil.which(name)
        assert found, name
        (directory / name).symlink_to(found)
    for name, script in programs.items():
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    return str(directory)


def run_script(script: Path, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", script], env={"PATH": path}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout in which nothing was ever installed."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", copy / "scripts")
    for name in ("constraints.txt", "pyproject.toml", "packages/core/pyproject.toml"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


def test_without_root_or_sudo_the_packages_to_install_are_named(checkout: Path, tmp_path: Path) -> None:
    path = bare(tmp_path, id="echo 1000", **{"apt-get": "echo ran > apt-ran; exit 1", "git": ""})
    done = run_script(checkout / "scripts/test", path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("not root, and no sudo; please run as root: apt-get install -y ")
    wanted = set(last.split("-y ")[1].split())
    assert {"fuse3", "libfuse3-dev", "pkg-config", "gcc", "python3", "python3-venv", "python3-dev", "vim"} <= wanted
    assert "git" not in wanted
    assert not list(checkout.rglob("apt-ran"))


def test_sudo_that_wants_a_password_does_not_hang_an_unattended_run(checkout: Path, tmp_path: Path) -> None:
    path = bare(tmp_path, id="echo 1000", sudo='[ "$1" = -n ] && exit 1; sleep 1000', **{"apt-get": "exit 1"})
    done = run_script(checkout / "scripts/test", path)
    assert done.returncode == 1
    assert "sudo does not let us; please run as root: apt-get install -y" in done.stderr


def test_a_failure_of_apt_is_shown_with_what_it_said(checkout: Path, tmp_path: Path) -> None:
    path = bare(tmp_path, id="echo 0", **{"apt-get": 'echo "E: Unable to fetch some archives" >&2; exit 100'})
    done = run_script(checkout / "scripts/demo", path)
    assert done.returncode == 1
    assert "E: Unable to fetch some archives" in done.stderr
    assert "apt-get failed" in done.stderr.splitlines()[-1]


def test_a_python_that_is_too_old_is_told(checkout: Path, tmp_path: Path) -> None:
    path = bare(tmp_path, id="echo 0", python3="exit 0", **{"apt-get": "exit 0"})
    done = run_script(checkout / "scripts/test", path)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr.splitlines()[-1]


@pytest.mark.fuse
@pytest.mark.timeout(300)
def test_the_demo_verifies_every_result_and_leaves_nothing_behind(tmp_path: Path) -> None:
    current = ["/bin/sh", "-c", ". scripts/_setup.sh && find_python && up_to_date", "scripts/demo"]
    if Path(sys.prefix) != ROOT / ".venv" or subprocess.run(current, cwd=ROOT, check=False).returncode != 0:
        pytest.skip("scripts/demo would make .venv anew, and these tests may run in it; run scripts/test instead")
    done = subprocess.run(
        [ROOT / "scripts/demo", "--check"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "making .venv" not in done.stderr
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith("FAILED")]
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    assert commands
    assert [line for line in lines if line.startswith("ok: ")] == [
        *(f"ok: {command}" for command in commands),
        "ok: everything verified and cleaned up",
    ]
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
