"""The circuit breaker of a whole provider. Each replica keeps its own, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from channels.contract import InDoubt, Later
from dispatcher.model.delivery import Result
from dispatcher.model.rate_limit import ENOUGH

FIRST_REST = timedelta(milliseconds=500)
LONGEST_REST = timedelta(seconds=10)
"""A provider that is back is found out about no later than this."""


@dataclass(slots=True)
class CircuitBreaker:
    """Whether a whole provider is bothered: one that is away, refuses everybody or stopped answering rests.

    A little longer with each failure in a row; then a single delivery finds out whether it is back.
    """

    _away: int = 0
    """Failures in a row that meant everybody."""
    _silent: int = 0
    """Sends in a row that got no answer."""
    _resting: datetime | None = None

    @property
    def open(self) -> bool:
        """Whether it rests, or a single delivery finds out whether it is back."""
        return self._resting is not None

    def hands(self, hands: int, now: datetime) -> int:
        """How many of our hands may reach for this provider now: none, one to try, or all."""
        if self._resting is None:
            return hands
        return 0 if now < self._resting else 1

    def learn(self, result: Result, now: datetime) -> None:
        """Take in how an attempt ended."""
        wish = timedelta()
        if isinstance(result, Later) and result.everyone:
            self._away += 1
            wish = result.retry_after or wish
        elif isinstance(result, InDoubt):
            self._silent += 1
        else:
            self._away, self._silent, self._resting = 0, 0, None
        trouble = self._away + max(self._silent - ENOUGH + 1, 0)
        if trouble:
            rest = min(FIRST_REST * (1 << min(trouble - 1, 10)), LONGEST_REST)
            self._resting = now + max(rest, wish)
