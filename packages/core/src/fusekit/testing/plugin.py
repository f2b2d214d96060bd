"""What a ``conftest.py`` takes in to get readable reports from `fusekit.testing.conformance`.

Outside the layers. Import it before the suite: asserts are rewritten when a module is first imported.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

pytest.register_assert_rewrite(
    "fusekit.testing.harness",
    "fusekit.testing._suite_base",
    "fusekit.testing._suite_reading",
    "fusekit.testing._suite_tree",
    "fusekit.testing._suite_writing",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the reason of a skipped conformance test back into its report: pytest-trio skips again without one.

    Reported for the module of the subclass and without a line, so that the summary has one line for each reason.
    """
    report = yield
    reason = getattr(getattr(item, "instance", None), "skipped_because", "")
    if report.skipped and reason:
        report.longrepr = (item.nodeid.partition("::")[0], None, f"Skipped: {reason}")  # type: ignore[assignment]  # no line
    return report
