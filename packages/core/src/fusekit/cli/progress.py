"""One line on a terminal that says how far an upload is: files, bytes and rate.

Cli layer; fed with what a mount says of itself while it drains.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from fusekit.cli.output import printable, size_text

_BAR: Final = 20
_WIDTH_MAX: Final = 79


class Progress:
    """A line that is drawn over itself; ``unsent`` are the paths that the last report named, ``seen`` whether one came."""

    def __init__(self) -> None:
        self.unsent: list[str] = []
        self.seen = False
        self._width = 0
        self._most = 0
        self._began: tuple[float, int] | None = None

    def show(self, status: dict[str, Any]) -> None:
        """Take in a report, and draw it if anybody looks."""
        self.seen = True
        # Together with what failed: it is not sent either.
        self.unsent = sorted({*status.get("unsent", ()), *(row["path"] for row in status.get("journal", ()))})
        if sys.stderr.isatty() and self.unsent:
            text = self.line(status, time.monotonic())[:_WIDTH_MAX]
            print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)
            self._width = len(text)

    def line(self, status: dict[str, Any], now: float) -> str:
        """Return what is drawn for a report that came at ``now``, on any steady clock, in seconds."""
        written = status.get("bytes_written", 0)
        if self._began is None:
            self._began = (now, written)
        files = len(self.unsent)
        self._most = max(self._most, files)
        full = round(_BAR * (self._most - files) / self._most) if self._most else 0
        passed = now - self._began[0]
        rate = f", {size_text((written - self._began[1]) / passed)}/s" if passed > 0 else ""
        bar = "#" * full + "." * (_BAR - full)
        left = f"{files} file{'' if files == 1 else 's'}, {size_text(status.get('waiting_bytes', 0))}"
        return printable(f"[{bar}] sending {left}{rate}: {self.unsent[0] if self.unsent else ''}")

    def end(self) -> None:
        """Take the line away."""
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", file=sys.stderr, flush=True)
