"""When to retry: exponential back-off with full jitter, between a floor and a ceiling, until a deadline.

The ledger counts the attempts of a delivery. A retry loop in memory could not count them, because each attempt may run
in another process. So the only part of tenacity that is used is its formula for the delays (`wait_exponential`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from random import Random

from tenacity import RetryCallState, Retrying, wait_exponential

FLOOR = timedelta(milliseconds=500)
"""Minimum delay, because full jitter may give a delay near zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long and how often a channel retries."""

    initial: timedelta = timedelta(seconds=2)
    """Upper bound of the first delay; the bound doubles with each attempt."""
    ceiling: timedelta = timedelta(minutes=10)
    """Highest value that the upper bound of a delay can reach."""
    deadline: timedelta = timedelta(hours=24)
    """Maximum time for retries, counted from `Delivery.retry_window_start`. If the next retry would be later, the
    delivery becomes dead."""

    def bound(self, attempt: int) -> timedelta:
        """Return the upper bound of the delay after this attempt. Attempts are counted from 1."""
        curve = wait_exponential(multiplier=self.initial.total_seconds(), max=self.ceiling.total_seconds())
        state = RetryCallState(retry_object=Retrying(), fn=None, args=(), kwargs={})
        state.attempt_number = max(attempt, 1)
        return timedelta(seconds=curve(state))

    def delay(self, attempt: int, rng: Random) -> timedelta:
        """Return the delay after this attempt: a random time between 0 and the bound, but at least `FLOOR`."""
        drawn = timedelta(seconds=rng.uniform(0, self.bound(attempt).total_seconds()))
        return max(drawn, FLOOR)
