"""The named moments of the journal: each is reached somewhere, and a crash there is a crash."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import fusekit
from fusekit.journal.steps import STEPS, VARIABLE


def run(code: str, crash_at: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, VARIABLE: crash_at}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


CODE = "from fusekit.journal import steps\nfor _ in range(3): steps.reached('row-flushed'); print('on', flush=True)"


def test_a_process_ends_at_the_moment_that_was_asked_for() -> None:
    ended = run(CODE, "row-flushed:2")
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "on\n")
    assert run(CODE, "row-begun").stdout == "on\n" * 3


def test_a_moment_that_does_not_exist_is_an_error() -> None:
    ended = run(CODE, "somewhere")
    assert ended.returncode == 1
    assert "no such step" in ended.stderr


def test_each_moment_is_reached_somewhere_and_no_other() -> None:
    source = Path(fusekit.__file__).parent
    said = {
        step
        for path in source.rglob("*.py")
        for step in re.findall(r"steps\.reached\(\"([a-z-]+)\"\)", path.read_text())
    }
    assert said == set(STEPS)
