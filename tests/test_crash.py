"""Nothing that was acknowledged is lost when a mount is killed: the rounds of `nox -s crash`, a few of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from services import SERVICES

from fusekit.journal.steps import STEPS
from fusekit.testing.crash import Round, drawn, play

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]


def passed(wanted: Round, directory: Path) -> int:
    """Play a round and return how many calls were acknowledged; fails where a promise was broken."""
    result = play(wanted, directory)
    assert [f"{one.kind} {one.name}: {one.says}" for one in result.violations] == [], f"again with {wanted}"
    return result.acknowledged


@pytest.mark.parametrize("write", ["sync"])
@pytest.mark.parametrize("service", list(SERVICES))
@pytest.mark.parametrize("step", ["remote-committed:4", "row-flushed:3", "moment"])
def test_a_kill_loses_nothing(tmp_path: Path, service: str, write: str, step: str) -> None:
    for trouble in SERVICES[service].troubles:
        directory = tmp_path / trouble
        directory.mkdir()
        assert passed(Round(7, SERVICES[service], write, trouble, step, 120, None), directory) > 0


def test_rounds_are_drawn_alike_each_time_and_come_to_every_step() -> None:
    services = list(SERVICES.values())
    rounds = [drawn(seed, services, ["sync"]) for seed in range(500)]
    assert rounds == [drawn(seed, services, ["sync"]) for seed in range(500)]
    assert {one.kill_at.partition(":")[0] for one in rounds} == {*STEPS, "moment"}
    assert {(one.service.name, one.trouble) for one in rounds} == {
        (service.name, trouble) for service in services for trouble in service.troubles
    }
