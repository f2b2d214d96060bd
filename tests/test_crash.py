"""Nothing that was acknowledged is lost when a mount is killed: the rounds of `nox -s crash`, a few of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from services import SERVICES

from fusekit.journal.steps import STEPS
from fusekit.testing.crash import Round, drawn, play
from fusekit.testing.lossy_disk import WAYS

pytestmark = [pytest.mark.fuse, pytest.mark.timeout(300)]


def passed(wanted: Round, directory: Path) -> int:
    """Play a round and return how many calls were acknowledged; fails where a promise was broken."""
    result = play(wanted, directory)
    assert [f"{one.kind} {one.name}: {one.says}" for one in result.violations] == [], f"again with {wanted}"
    return result.acknowledged


@pytest.mark.parametrize(
    ("service", "write", "trouble", "kill_at", "again_at"),
    [
        ("local", "sync", "none", "moment", None),
        ("local", "async", "none", "remote-committed:4", None),
        ("local", "async", "none", "row-flushed:9", "row-adopted:1"),
        ("databricks", "sync", "none", "remote-committed:4", None),
        ("databricks", "sync", "resets", "row-flushed:5", None),
        ("databricks", "async", "unavailable", "moment", "remote-committed:1"),
        ("databricks", "async", "resets", "remote-committed:2", "row-settled:1"),
    ],
)
def test_a_killed_mount_loses_nothing_that_was_acknowledged(
    tmp_path: Path, service: str, write: str, trouble: str, kill_at: str, again_at: str | None
) -> None:
    assert passed(Round(7, SERVICES[service], write, trouble, kill_at, 120, again_at), tmp_path) > 0


@pytest.mark.parametrize(
    ("write", "power", "syncs"), [("sync", "strict", 60), ("async", "strict", 60), ("async", "names", 0)]
)
def test_a_power_loss_takes_nothing_that_was_acknowledged(tmp_path: Path, write: str, power: str, syncs: int) -> None:
    wanted = Round(7, SERVICES["local"], write, "none", "moment", 120, None, power, syncs)
    assert passed(wanted, tmp_path) > 0


def test_rounds_are_drawn_alike_each_time_and_come_to_every_step() -> None:
    services = list(SERVICES.values())
    rounds = [drawn(seed, services, ["sync", "async"]) for seed in range(500)]
    assert rounds == [drawn(seed, services, ["sync", "async"]) for seed in range(500)]
    assert {one.kill_at.partition(":")[0] for one in rounds} == {*STEPS, "moment"}
    assert {one.power for one in rounds} == {None, *WAYS}
    assert {(one.service.name, one.trouble, one.write) for one in rounds} == {
        (service.name, trouble, write)
        for service in services
        for trouble in service.troubles
        for write in ("sync", "async")
    }
