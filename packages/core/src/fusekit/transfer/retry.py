"""The one place that decides whether and when something is tried again.

Transfer layer. The decision is made from the class of the error, never from its text: `Throttled`, `Unavailable` and
`TimedOut` pass by themselves. The wait doubles with jitter, a service's ``retry_after_s`` is obeyed, and a budget a
mount keeps retries from becoming the load that keeps a service down. How far a read has come (`Progress`) and what just
failed for good (`Failures`) are kept here too, because they decide the same thing.
"""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

import attrs
import trio

from fusekit.errors import BackendError, Corrupt, Throttled, TimedOut, Unavailable

RETRIABLE: Final = (Throttled, Unavailable, TimedOut)
# A body that was cut short, or came for another range, is asked for again.
RETRIABLE_READ: Final = (*RETRIABLE, Corrupt)
# What the service refused for being too much did not act, whatever it was.
RETRIABLE_ONCE: Final = (Throttled,)

ATTEMPTS_MAX: Final = 6
# Where nothing moved for a whole deadline a second look is enough: a dead network must become an error, not a hang.
ATTEMPTS_AFTER_TIMEOUT: Final = 2
WAIT_FIRST_S: Final = 0.2
WAIT_MAX_S: Final = 10.0

# A file that is safe in the journal is tried for ever, whatever the error: a right can come back, a quota be raised.
# Up to five minutes lie between two attempts, so that what was refused a hundred times costs next to nothing.
PATIENT_FIRST_S: Final = 1.0
PATIENT_MAX_S: Final = 300.0

# A read that was cut starts its count of attempts again only after progress that was worth a request: this much, or
# this share of what was missing, whichever is less. The number of times is bounded where it was by the share, so that
# the last bytes do not come one by one.
PROGRESS_BYTES: Final = 1 << 20
PROGRESS_SHARE: Final = 0.25
SMALL_STEPS_MAX: Final = 4

# How long a read that failed for good fails again without being tried. The kernel asks page by page after an error,
# at once; somebody who tries again by hand is slower.
FAILURE_KEPT_S: Final = 1.0
FAILURES_MAX: Final = 256

# Each retry takes one, each success gives a tenth back: in the long run at most one call in ten is a repeat.
BUDGET_MAX: Final = 100.0
BUDGET_REFUND: Final = 0.1


@attrs.define(eq=False)
class RetryPolicy:
    """Says how long to wait before the next attempt, and when to give up."""

    budget: float = BUDGET_MAX
    _random: random.Random = attrs.field(factory=random.Random)

    def wait_s(self, error: BackendError, attempt: int) -> float | None:
        """Return the seconds to wait after ``attempt`` (from 1) failed with ``error``, which passes; None gives up."""
        most = ATTEMPTS_AFTER_TIMEOUT if isinstance(error, TimedOut) else ATTEMPTS_MAX
        if attempt >= most or self.budget < 1:
            return None
        self.budget -= 1
        if error.retry_after_s is not None:
            return error.retry_after_s
        ceiling = min(WAIT_MAX_S, WAIT_FIRST_S * 2 ** (attempt - 1))
        return self._random.uniform(ceiling / 2, ceiling)

    def moved_on(self) -> None:
        """Give back what the attempt cost that was worth its request: what follows goes on and repeats nothing."""
        self.budget = min(BUDGET_MAX, self.budget + 1)

    def succeeded(self) -> None:
        """Give a little of the budget back."""
        self.budget = min(BUDGET_MAX, self.budget + BUDGET_REFUND)


@attrs.define(eq=False)
class Patience:
    """Says when what nobody waits for is tried again: always, each time after a longer wait."""

    _attempts: int = 0
    _random: random.Random = attrs.field(factory=random.Random)

    def wait_s(self, error: BackendError) -> float:
        """Return the seconds to wait after one more attempt failed with ``error``."""
        self._attempts += 1
        ceiling = min(PATIENT_MAX_S, PATIENT_FIRST_S * 2.0 ** min(self._attempts - 1, 20))
        return max(error.retry_after_s or 0.0, self._random.uniform(ceiling / 2, ceiling))


@attrs.define(eq=False)
class Progress:
    """How far a read has come: ``reached`` tells the first byte that is missing, ``stop`` is where it ends, if known."""

    reached: Callable[[], int]
    stop: int | None
    _counted: int = attrs.field(init=False)
    _small_steps: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._counted = self.reached()

    def worth_it(self) -> bool:
        """Return whether enough has come since this was last True (at first: since the read began)."""
        gained = self.reached() - self._counted
        if gained < PROGRESS_BYTES:
            share = float("inf") if self.stop is None else (self.stop - self._counted) * PROGRESS_SHARE
            if gained < max(share, 1) or self._small_steps >= SMALL_STEPS_MAX:
                return False
            self._small_steps += 1
        self._counted += gained
        return True


@attrs.frozen
class _Failure:
    start: int
    stop: int | None
    until: float
    error: BackendError


@attrs.define(eq=False)
class Failures:
    """Reads that failed for good a moment ago, by what was read."""

    _kept: OrderedDict[Hashable, _Failure] = attrs.field(factory=OrderedDict, init=False)

    def add(self, place: Hashable, start: int, stop: int | None, error: BackendError) -> None:
        """Remember that the bytes from ``start`` on did not come; the oldest of too many is forgotten."""
        self._kept.pop(place, None)
        self._kept[place] = _Failure(start, stop, trio.current_time() + FAILURE_KEPT_S, error)
        if len(self._kept) > FAILURES_MAX:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def check(self, place: Hashable, start: int, stop: int | None) -> None:
        """Raise again what bytes of ``start`` to ``stop`` failed with a moment ago, if they did."""
        found = self._kept.get(place)
        if found is None:
            return
        if trio.current_time() >= found.until:
            del self._kept[place]
        elif (found.stop is None or start < found.stop) and (stop is None or found.start < stop):
            raise copy.copy(found.error)
