"""The benchmarks run, count what they say that they count, and tell of it in words, numbers and the documentation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from measure import wakeups
from report import BEGIN, END, Outcome, page, table, write_docs
from workloads import WORKLOADS, Measured, Target, Workload

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks/bench_mount.py"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def one_thing(bench: object) -> Measured:
    """One thing is measured."""
    raise AssertionError


OUTCOME = Outcome(
    Workload(
        one_thing,
        (
            Target("times the other", lambda found: found["us"]["MB/s"] / found["them"]["MB/s"], 0.6),
            Target("requests", lambda found: found["us"]["requests"], 2, at_most=True),
            Target("times somebody absent", lambda found: found["nobody"]["MB/s"], 2),
        ),
    ),
    (
        {"us": {"MB/s": 100, "requests": 3}, "them": {"MB/s": 100}},
        {"us": {"MB/s": 300, "requests": 3}, "them": {"MB/s": 600}},
        {"us": {"MB/s": 200, "requests": 3}, "them": {"MB/s": 250}},
    ),
)


def test_figures_are_medians_and_ratios_are_of_one_run() -> None:
    assert OUTCOME.medians == {"us": {"MB/s": 200, "requests": 3}, "them": {"MB/s": 250}}
    assert [value for _, value in OUTCOME.reached()] == [0.8, 3, None]
    assert [one.get("met") for one in OUTCOME.to_json()["targets"]] == [True, False, None]


def test_threads_that_come_and_go_count_as_waking_up() -> None:
    assert wakeups({"1": 10, "2": 500}, {"1": 13, "3": 4}) == 1 + 3 + 4


def test_a_table_shows_every_client_and_every_target() -> None:
    assert table(OUTCOME).splitlines() == [
        "### one_thing",
        "",
        "One thing is measured.",
        "",
        "|      | MB/s | requests |",
        "|------|------|----------|",
        "| us   |  200 |        3 |",
        "| them |  250 |          |",
        "",
        "- times the other: 0.8 (at least 0.6 wanted: reached)",
        "- requests: 3 (at most 2 wanted: missed)",
        "- times somebody absent: not measured (at least 2 wanted)",
    ]


def test_figures_take_their_place_in_the_documentation(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_docs(file, page([OUTCOME], {"kernel": "6"}, 3, quick=False))
    text = file.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\nMedian of 3 runs. kernel 6.\n\n### one_thing\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert (ROOT / "docs/explanation/benchmarks.md").read_text().count(BEGIN) == 1


def test_every_workload_says_what_it_measures() -> None:
    assert run("--list").splitlines() == [f"{one.name:20} {one.says}" for one in WORKLOADS]
    assert all(one.says.endswith(".") for one in WORKLOADS)


@pytest.mark.fuse
def test_a_workload_counts_what_the_server_was_asked(tmp_path: Path) -> None:
    run("--quick", "--only", "ls_cold_20ms", "--only", "random_cold_20ms", "--json", str(tmp_path / "figures"))
    found = json.loads((tmp_path / "figures").read_text())
    ls = found["workloads"]["ls_cold_20ms"]["median"]["fusekit"]
    assert (ls["requests"], ls["requests again"]) == (21, 0)
    assert 0 < found["workloads"]["random_cold_20ms"]["median"]["fusekit"]["requests a read"] <= 2
