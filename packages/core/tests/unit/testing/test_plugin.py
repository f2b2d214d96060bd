"""The pytest plugin, run on small suites of its own, with a device and a helper that can be made to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import pytest

@pytest.mark.fuse
@pytest.mark.parametrize("n", range(3))
def test_mounts(n): pass

def test_other(): pass

def test_skipped_for_itself(): pytest.skip("of its own")

@pytest.mark.trio
async def test_skipped_in_a_task(): pytest.skip("in a task")
"""


def run(tmp_path: Path, *arguments: str, device: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    for name in ("test_one.py", "test_two.py"):
        (tmp_path / name).write_text(SUITE)
    (tmp_path / "conftest.py").write_text(
        "from pathlib import Path\nimport fusekit.testing.plugin as plugin\n"
        f"plugin.DEVICE = Path({str(device)!r})\npytest_plugins = ['fusekit.testing.plugin']\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rf", *arguments]
    environment = {**os.environ, "PATH": path or os.environ["PATH"], "PYTEST_ADDOPTS": "", "TMPDIR": str(tmp_path)}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


def helper(tmp_path: Path, script: str) -> str:
    """Return a PATH on which fusermount3 is ``script``."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "fusermount3").write_text(f"#!/bin/sh\n{script}\n")
    (programs / "fusermount3").chmod(0o755)
    return f"{programs}:{os.environ['PATH']}"


def test_without_a_device_the_reason_for_all_mount_tests_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, device=tmp_path / "absent")
    lines = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert lines == [
        "SKIPPED 2: of its own",
        "SKIPPED 2: in a task",
        f"SKIPPED 6: cannot mount: {tmp_path}/absent cannot be opened (No such file or directory)",
    ]
    assert done.stdout.splitlines()[-1].strip("=").strip().startswith("2 passed, 10 skipped")
    assert done.returncode == 0


def test_of_many_reasons_for_skipping_the_common_ones_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    (tmp_path / "test_many.py").write_text(
        "import pytest\n@pytest.mark.parametrize('n', range(9))\ndef test(n): pytest.skip(f'reason {n}')\n"
    )
    lines = run(tmp_path, "test_many.py", device=tmp_path / "absent").stdout.splitlines()
    assert [line for line in lines if line.startswith("SKIPPED")] == [
        *(f"SKIPPED 1: reason {n}" for n in range(5)),
        "SKIPPED 4: 4 other reasons (-v shows them)",
    ]
    verbose = run(tmp_path, "-v", "test_many.py", device=tmp_path / "absent").stdout.splitlines()
    assert [line for line in verbose if line.startswith("SKIPPED")] == [f"SKIPPED 1: reason {n}" for n in range(9)]


def test_require_fuse_makes_a_missing_device_a_failure(tmp_path: Path) -> None:
    done = run(tmp_path, "--require-fuse", device=tmp_path / "absent")
    assert done.returncode != 0
    assert "--require-fuse" in done.stderr
    assert "absent cannot be opened" in done.stderr


def test_a_container_that_forbids_mounting_is_told_by_what_fusermount3_said(tmp_path: Path) -> None:
    path = helper(tmp_path, "echo 'fusermount3: mount failed: Operation not permitted' >&2; exit 1")
    done = run(tmp_path, device=Path("/dev/null"), path=path)
    assert (
        "SKIPPED 6: cannot mount: mounting is not permitted here (fusermount3: mount failed: Operation not"
        in done.stdout
    )
    assert done.returncode == 0


def test_a_missing_fusermount3_names_the_package(tmp_path: Path) -> None:
    done = run(tmp_path, device=Path("/dev/null"), path="/nonexistent")
    assert "SKIPPED 6: cannot mount: fusermount3 is not installed (Debian package fuse3)" in done.stdout


@pytest.mark.fuse
def test_where_mounting_works_nothing_is_skipped_and_the_probe_leaves_nothing_mounted(tmp_path: Path) -> None:
    done = run(tmp_path, "--require-fuse", "-k", "mounts", device=Path("/dev/fuse"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout
    assert "SKIPPED" not in done.stdout
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert not list(tmp_path.glob("fusekit-probe-*"))
