"""From measurements to what people read: medians, the table in text and in the documentation, and JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from workloads import Measured, Target, Workload

BEGIN: Final = "<!-- figures: written by benchmarks/bench_mount.py --write-docs -->"
END: Final = "<!-- end of figures -->"


@attrs.frozen
class Outcome:
    """All runs of one workload."""

    workload: Workload
    runs: tuple[Measured, ...]

    @property
    def medians(self) -> Measured:
        """Return the median of each figure over the runs that have it."""
        clients = dict.fromkeys(client for run in self.runs for client in run)
        return {
            client: {
                metric: statistics.median([run[client][metric] for run in self.runs if metric in run.get(client, {})])
                for metric in dict.fromkeys(metric for run in self.runs for metric in run.get(client, {}))
            }
            for client in clients
        }

    def reached(self) -> list[tuple[Target, float | None]]:
        """Return each target with the median of its value over the runs; None where its rival was not there."""
        return [(target, self._value(target)) for target in self.workload.targets]

    def _value(self, target: Target) -> float | None:
        try:
            return statistics.median([target.value(run) for run in self.runs])
        except (KeyError, ValueError, ZeroDivisionError):
            return None

    def to_json(self) -> dict[str, Any]:
        """Return everything, runs included."""
        return {
            "says": self.workload.says,
            "median": self.medians,
            "runs": list(self.runs),
            "targets": [
                {"says": target.says, "value": value, "limit": target.limit, "at_most": target.at_most}
                | ({"met": target.met(value)} if value is not None else {})
                for target, value in self.reached()
            ],
        }


def table(outcome: Outcome) -> str:
    """Return one workload as a Markdown table, with its targets below."""
    medians = outcome.medians
    metrics = list(dict.fromkeys(metric for values in medians.values() for metric in values))
    rows = [["", *metrics]]
    rows += [
        [client, *(_number(values[one]) if one in values else "" for one in metrics)]
        for client, values in medians.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    goals = [f"- {_goal(target, value)}" for target, value in outcome.reached()]
    return (
        "\n".join([f"### {outcome.workload.name}", "", outcome.workload.says, "", *lines, "", *goals]).rstrip() + "\n"
    )


def page(outcomes: Sequence[Outcome], machine: Mapping[str, str], runs: int, *, quick: bool) -> str:
    """Return all tables, under a line that says where they come from."""
    facts = ", ".join(f"{name} {value}" for name, value in machine.items())
    how = f"Median of {runs} run{'s' if runs > 1 else ''}{', trimmed (`--quick`)' if quick else ''}. {facts}."
    return "\n".join([how, "", *(table(one) for one in outcomes)])


def write_docs(file: Path, text: str) -> None:
    """Put ``text`` between the marks in ``file``.

    Raises:
        ValueError: the marks are not there.
    """
    before, begin, rest = file.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file} has no place for figures")
    file.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def _goal(target: Target, value: float | None) -> str:
    wanted = f"{'at most' if target.at_most else 'at least'} {_number(target.limit)}"
    if value is None:
        return f"{target.says}: not measured ({wanted} wanted)"
    return f"{target.says}: {_number(value)} ({wanted} wanted: {'reached' if target.met(value) else 'missed'})"


def _number(value: float) -> str:
    if value == int(value):
        return str(int(value))
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(width) if not place else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "| " + " | ".join([first, *rest]) + " |"
