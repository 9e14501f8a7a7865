"""When to retry: exponential back-off with full jitter, between a floor and a ceiling, until a deadline.

The ledger counts the attempts of a delivery. A retry loop in memory could not count them, because each attempt may run
in another process.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from random import Random

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
        doublings = min(max(attempt, 1) - 1, 1000)  # so that the float does not overflow
        return timedelta(seconds=min(self.initial.total_seconds() * 2.0**doublings, self.ceiling.total_seconds()))

    def delay(self, attempt: int, rng: Random) -> timedelta:
        """Return the delay after this attempt: a random time between 0 and the bound, but at least `FLOOR`."""
        drawn = timedelta(seconds=rng.uniform(0, self.bound(attempt).total_seconds()))
        return max(drawn, FLOOR)
