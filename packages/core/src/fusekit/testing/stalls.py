"""Waiting in an emulator: latencies, slow bodies, and requests held until somebody lets them go.

Part of the emulator base. All waits are in real time and end at once when the emulator stops.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Stalls:
    """Everything in one emulator that waits on purpose. Safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._round = 0
        self._held = 0
        self._closed = False

    def sleep(self, seconds: float) -> None:
        """Wait, as latency does."""
        if seconds > 0:
            with self._changed:
                self._changed.wait_for(lambda: self._closed, seconds)

    def hold(self, seconds: float) -> None:
        """Wait until `release`, at most ``seconds``."""
        with self._changed:
            held_in = self._round
            self._held += 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._closed or self._round != held_in, seconds):
                self._held -= 1
                self._changed.notify_all()

    def release(self) -> int:
        """Let all requests go that are held now, and return how many."""
        with self._changed:
            released, self._held = self._held, 0
            self._round += 1
            self._changed.notify_all()
            return released

    def wait(self, at_least: int, timeout_s: float) -> int:
        """Wait until ``at_least`` requests are held, and return how many are."""
        with self._changed:
            self._changed.wait_for(lambda: self._held >= at_least or self._closed, timeout_s)
            return self._held

    def pace(self, bytes_per_s: float) -> Callable[[int], None]:
        """Return what to call before each piece of a body that is to move at this speed."""
        began, sent = time.monotonic(), 0

        def wait(size: int) -> None:
            nonlocal sent
            sent += size
            self.sleep(began + sent / bytes_per_s - time.monotonic())

        return wait

    def close(self) -> None:
        """End all waits, now and from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
