"""The time that an emulator believes: the real one, moved along or standing still.

Part of the emulator base. Timestamps of objects, expiry of tokens and URLs, and the delay of stale listings go by
this clock. Latency and stalls do not: they are about the network, whose other end lives in real time.
"""

from __future__ import annotations

import threading
import time


class Clock:
    """Seconds since 1970; starts as the real time. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # `freeze` and `run` read the clock while they hold it
        self._ahead_ns = 0
        self._frozen_ns: int | None = None

    @property
    def frozen(self) -> bool:
        """Return whether time stands still but for `advance`."""
        return self._frozen_ns is not None

    def now_ns(self) -> int:
        """Return nanoseconds since 1970."""
        with self._lock:
            return time.time_ns() + self._ahead_ns if self._frozen_ns is None else self._frozen_ns

    def now_ms(self) -> int:
        """Return whole milliseconds since 1970."""
        return self.now_ns() // 1_000_000

    def now(self) -> float:
        """Return seconds since 1970."""
        return self.now_ns() / 1e9

    def freeze(self, at: float | None = None) -> None:
        """Stop the clock, at ``at`` (seconds since 1970) or at what it shows."""
        with self._lock:
            self._frozen_ns = self.now_ns() if at is None else round(at * 1e9)

    def advance(self, seconds: float) -> None:
        """Move the clock, running or frozen; a negative number moves it back."""
        step_ns = round(seconds * 1e9)
        with self._lock:
            if self._frozen_ns is None:
                self._ahead_ns += step_ns
            else:
                self._frozen_ns += step_ns

    def run(self) -> None:
        """Let the clock run on from what it shows."""
        with self._lock:
            self._ahead_ns, self._frozen_ns = self.now_ns() - time.time_ns(), None

    def follow(self) -> None:
        """Show the real time again."""
        with self._lock:
            self._ahead_ns, self._frozen_ns = 0, None
