"""Readable reports from the published test kit."""

from __future__ import annotations

from fusekit.testing.plugin import pytest_runtest_makereport

__all__ = ["pytest_runtest_makereport"]
