"""Counters of one mount: how often each hook was called, how it ended, how long it took.

A base module. Counting can never fail an operation: it is arithmetic on dictionaries and nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import attrs


@attrs.define(eq=False)
class Metrics:
    """What is counted, by name of the hook; seconds are the sum over all calls."""

    calls: Counter[str] = attrs.field(factory=Counter)
    errors: Counter[str] = attrs.field(factory=Counter)
    retries: Counter[str] = attrs.field(factory=Counter)
    seconds: defaultdict[str, float] = attrs.field(factory=lambda: defaultdict(float))
    skipped_names: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for status."""
        return {
            "calls": dict(self.calls),
            "errors": dict(self.errors),
            "retries": dict(self.retries),
            "seconds": {name: round(value, 6) for name, value in self.seconds.items()},
            "skipped_names": self.skipped_names,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
        }
