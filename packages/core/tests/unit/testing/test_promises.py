"""What counts as a broken promise after a crash, and what does not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from fusekit.testing import crash_writer
from fusekit.testing.crash_writer import digest
from fusekit.testing.promises import Ledger, ledger

Call = tuple[str, Mapping[str, str | None], str | None]

OK, INTERRUPTED = None, "interrupted"


def told(
    calls: Sequence[Call],
    *,
    asynchronous: bool = False,
    power: bool = False,
    moved: Mapping[str, str] | None = None,
) -> Ledger:
    """Return the ledger of a program that made ``calls``: what, its effects, and how it ended; "" is an empty content."""
    lines = []
    for number, (call, effects, error) in enumerate(calls):
        facts: dict[str, Any] = {"number": number, "call": call, "effects": effects}
        facts["moved"] = {new: old for new, old in (moved or {}).items() if call == "rename" and new in effects}
        facts["empty"] = [name for name, content in effects.items() if content == ""]
        lines.append(json.dumps(facts))
        if error != INTERRUPTED:
            lines.append(json.dumps({"number": number, "error": error}))
    return ledger(lines, asynchronous=asynchronous, power=power)


def broken(made: Ledger, remote: Mapping[str, str], kept: Mapping[str, set[str]] | None = None) -> list[str]:
    return [f"{one.kind} {one.name}" for one in made.broken(remote, kept)]


WRITTEN: Sequence[Call] = [("close", {"a": "one"}, OK), ("close", {"a": "two"}, OK)]


def test_what_close_acknowledged_is_at_the_service_in_sync() -> None:
    assert broken(told(WRITTEN), {"a": "two"}) == []
    assert broken(told(WRITTEN), {"a": "one"}) == ["lost a"]
    assert broken(told(WRITTEN), {}) == ["lost a"]


def test_in_async_it_may_wait_until_the_next_mount_has_drained() -> None:
    made = told(WRITTEN, asynchronous=True)
    for remote in ({"a": "two"}, {"a": "one"}, {}):
        assert broken(made, remote) == []
    assert broken(made, {"a": "two"}, {}) == []
    assert broken(made, {"a": "one"}, {}) == ["lost a"]
    assert broken(made, {"a": "one"}, {"a": {"two"}}) == []
    assert broken(made, {"a": "one"}, {"a": {"one"}}) == ["lost a"]


def test_fsync_promises_the_service_in_both_modes() -> None:
    for asynchronous in (False, True):
        made = told([("fsync", {"a": "one"}, OK)], asynchronous=asynchronous)
        assert broken(made, {"a": "one"}) == []
        assert broken(made, {}) == ["lost a"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_bytes_that_nobody_flushed_there_are_partial(asynchronous: bool) -> None:
    made = told(WRITTEN, asynchronous=asynchronous)
    assert broken(made, {"a": "half of two"}) == ["partial a"]
    assert broken(made, {"a": "two", "a (conflict)": "one"}) == ["partial a (conflict)"]


@pytest.mark.parametrize("error", ["EIO", INTERRUPTED])
def test_what_failed_or_was_interrupted_has_happened_or_not(error: str) -> None:
    made = told([("close", {"a": "one"}, OK), ("close", {"a": "two"}, error)])
    assert broken(made, {"a": "one"}) == broken(made, {"a": "two"}) == []
    assert broken(made, {}) == ["lost a"]


def test_what_failed_does_not_come_back_over_what_was_acknowledged_later() -> None:
    made = told([("close", {"a": "one"}, "EIO"), ("close", {"a": "two"}, OK)])
    assert broken(made, {"a": "one"}, {}) == ["lost a"]


def test_an_empty_file_is_promised_locally() -> None:
    made = told([("close", {"a": "one"}, OK), ("close", {"a": ""}, OK)])
    assert broken(made, {"a": "one"}) == []
    assert broken(made, {"a": "one"}, {}) == ["lost a"]


def test_what_was_removed_stays_removed() -> None:
    made = told([("close", {"a": "one"}, OK), ("unlink", {"a": None}, OK)])
    assert broken(made, {}) == []
    assert broken(made, {"a": "one"}) == ["lost a"]


def test_a_rename_moves_the_promise() -> None:
    made = told([("close", {"a": "one"}, OK), ("rename", {"b": "one", "a": None}, OK)], moved={"b": "a"})
    assert broken(made, {"b": "one"}) == []
    assert broken(made, {"a": "one"}) == ["lost a", "lost b"]


def test_a_rename_promises_no_more_than_the_content_had() -> None:
    calls: list[Call] = [("close", {"a": "one"}, OK), ("close", {"a": ""}, OK), ("rename", {"b": "", "a": None}, OK)]
    made = told(calls, moved={"b": "a"})
    assert broken(made, {"b": "one"}) == [], "the service renamed what it had, and the empty content follows"
    assert broken(made, {"b": "one"}, {}) == ["lost b"]


def test_an_interrupted_rename_leaves_the_content_under_one_of_the_names() -> None:
    made = told([("close", {"a": "one"}, OK), ("rename", {"b": "one", "a": None}, INTERRUPTED)], moved={"b": "a"})
    assert broken(made, {"a": "one"}) == broken(made, {"b": "one"}) == []
    assert broken(made, {}) == ["lost a"]


MOVED: Sequence[Call] = [
    ("close", {"a": "one"}, OK),
    ("rename", {"b": "one", "a": None}, OK),
    ("rename", {"c": "one", "b": None}, OK),
]
WAY = {"b": "a", "c": "b"}


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_power_may_take_renames_and_not_the_content(name: str) -> None:
    made = told(MOVED, asynchronous=True, power=True, moved=WAY)
    assert broken(made, {name: "one"}, {}) == []
    assert broken(made, {}, {}) == ["lost a"]


def test_what_a_rename_had_replaced_may_come_back_beside_it_with_the_power() -> None:
    calls: Sequence[Call] = [("close", {"b": "old"}, OK), *MOVED[:2]]
    there = {"b": "one", "b (conflict here now)": "old"}
    assert broken(told(calls, asynchronous=True, power=True, moved=WAY), there, {}) == []
    assert broken(told(calls, asynchronous=True, moved=WAY), there, {}) == ["partial b (conflict here now)"]
    there["b (conflict here now)"] = "half of old"
    assert len(broken(told(calls, asynchronous=True, power=True, moved=WAY), there, {})) == 1


def test_what_an_interrupted_rename_was_to_replace_may_be_beside_it() -> None:
    calls: Sequence[Call] = [("close", {"b": "old"}, OK), MOVED[0], ("rename", {"b": "one", "a": None}, INTERRUPTED)]
    made = told(calls, asynchronous=True, moved=WAY)
    assert broken(made, {"b": "one", "b (conflict here now)": "old"}, {}) == []
    assert broken(made, {"b": "one", "a (conflict here now)": "one"}, {}) == ["partial a (conflict here now)"]


def test_what_an_interrupted_removal_was_to_remove_may_be_beside_it() -> None:
    calls: Sequence[Call] = [("close", {"b": "old"}, OK), ("unlink", {"b": None}, INTERRUPTED)]
    for asynchronous, wrong in ((True, []), (False, ["partial b (conflict here now)"])):
        made = told(calls, asynchronous=asynchronous)
        assert broken(made, {"b (conflict here now)": "old"}, {}) == wrong
        assert broken(made, {}, {}) == []


def test_a_kill_alone_takes_no_rename() -> None:
    made = told(MOVED, asynchronous=True, moved=WAY)
    assert broken(made, {"c": "one"}, {}) == []
    assert broken(made, {"a": "one"}, {}) == ["lost a", "lost c"]


def test_the_power_takes_no_rename_from_the_service() -> None:
    assert broken(told(MOVED, power=True, moved=WAY), {"a": "one"}, {}) == ["lost a", "lost c"]


def test_the_writer_tells_what_is_in_its_files(tmp_path: Path) -> None:
    wanted = json.dumps({"root": str(tmp_path), "seed": "1", "operations": 300})
    done = subprocess.run([sys.executable, "-I", crash_writer.__file__, wanted], capture_output=True, check=True)
    made = ledger(done.stdout.splitlines(), asynchronous=False)
    found = {
        str(path.relative_to(tmp_path)): digest(path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()
    }
    # A real directory loses nothing; what was last written to a file that is still open was told nobody.
    assert [one for one in made.broken(found) if one.name != "long"] == []
    assert made.acknowledged > 50
    assert made.failed == 0
    assert {name for name in found if attrs.asdict(made._states[name][-1])["digest"] != found[name]} <= {"long"}
