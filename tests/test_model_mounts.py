"""Random operations by several processes on real mounts, with remounts in between: `nox -s model`, a short stretch of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from model import compared, troubled
from services import SERVICES

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]

STEPS = 540
TROUBLED_STEPS = 150  # each may be tried several times, with a wait between


@pytest.mark.parametrize("write", ["sync", "async"])
@pytest.mark.parametrize("service", list(SERVICES))
def test_several_processes_see_what_the_model_says(tmp_path: Path, service: str, write: str) -> None:
    found = compared(service, write, 11, STEPS, 2, tmp_path)
    assert found.taken == STEPS
    assert found.succeeded > STEPS // 4


def test_what_fails_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    found = troubled("databricks", "sync", 11, TROUBLED_STEPS, 1, tmp_path)
    assert found.taken >= TROUBLED_STEPS
    assert found.troubled > 0
