"""When to try again: exponential back-off with full jitter, between a floor and a ceiling, until a deadline.

Each attempt is a row in the ledger and may be made by another process than the last one, so no loop in
memory can do the retrying; tenacity's wait strategy gives the curve, the ledger keeps the place on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from random import Random

from tenacity import RetryCallState, Retrying, wait_exponential

FLOOR = timedelta(milliseconds=500)
"""Full jitter may draw next to nothing; even then a provider gets this much peace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How patient a channel is."""

    initial: timedelta = timedelta(seconds=2)
    """The bound of the first wait; it doubles with each attempt."""
    ceiling: timedelta = timedelta(minutes=10)
    """The bound never grows past this."""
    deadline: timedelta = timedelta(hours=24)
    """Counted from when the delivery was made, or put back; past it the delivery is dead."""

    def bound(self, attempt: int) -> timedelta:
        """The longest wait after the `attempt`th failure, counted from 1."""
        curve = wait_exponential(multiplier=self.initial.total_seconds(), max=self.ceiling.total_seconds())
        state = RetryCallState(retry_object=Retrying(), fn=None, args=(), kwargs={})
        state.attempt_number = max(attempt, 1)
        return timedelta(seconds=curve(state))

    def delay(self, attempt: int, rng: Random) -> timedelta:
        """How long to wait after the `attempt`th failure: anything up to the bound, but no less than the floor."""
        drawn = timedelta(seconds=rng.uniform(0, self.bound(attempt).total_seconds()))
        return max(drawn, FLOOR)
