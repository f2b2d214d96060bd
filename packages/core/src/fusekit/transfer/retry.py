"""The one place that decides whether and when something is tried again.

Transfer layer. The decision is made from the class of the error, never from its text: `Throttled`, `Unavailable` and
`TimedOut` pass by themselves. The wait doubles with jitter, a service's ``retry_after_s`` is obeyed, and a budget a
mount keeps retries from becoming the load that keeps a service down.
"""

from __future__ import annotations

import random
from typing import Final

import attrs

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

    def succeeded(self) -> None:
        """Give a little of the budget back."""
        self.budget = min(BUDGET_MAX, self.budget + BUDGET_REFUND)
