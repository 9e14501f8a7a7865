"""When to retry: exponential back-off with full jitter, between a floor and a ceiling, until a deadline.

The ledger counts the attempts of a delivery. A retry loop in memory could not count them, because each attempt may run
in another process.
"""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dispatcher.parsing.duration import Duration

FLOOR = timedelta(milliseconds=500)
"""Minimum delay, because full jitter may give a delay near zero."""


class RetryPolicy(BaseModel):
    """When a delivery is retried after an attempt without success, and when the dispatcher gives the delivery up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    initial: Duration = Field(timedelta(seconds=2), gt=timedelta())
    """Initial back-off. The back-off doubles with each attempt. Before a retry, the dispatcher waits for a random
    time up to the back-off."""
    ceiling: Duration = Field(timedelta(minutes=10), gt=timedelta())
    """Maximum back-off."""
    deadline: Duration = timedelta(hours=24)
    """Maximum time for all attempts of a delivery. After this time, the delivery is dead."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.initial > self.ceiling:
            raise ValueError("initial is longer than ceiling, the maximum back-off: lower initial, or raise ceiling")
        return self

    def bound(self, attempt: int) -> timedelta:
        """Return the upper bound of the delay after this attempt. Attempts are counted from 1."""
        doublings = min(max(attempt, 1) - 1, 1000)  # so that the float does not overflow
        return timedelta(seconds=min(self.initial.total_seconds() * 2.0**doublings, self.ceiling.total_seconds()))

    def delay(self, attempt: int, rng: Random) -> timedelta:
        """Return the delay after this attempt: a random time between 0 and the bound, but at least `FLOOR`."""
        drawn = timedelta(seconds=rng.uniform(0, self.bound(attempt).total_seconds()))
        return max(drawn, FLOOR)
