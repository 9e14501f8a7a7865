"""Who wants to be left alone, and until when: a provider that asked for peace gets it from all our deliveries.

A destination is held when it names a time (`Retry-After`). A whole provider rests when it can't be reached
or refuses everybody: a little longer with each failure in a row, and then a single delivery goes first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from channels.contract import Later
from dispatcher.delivery import Result

FIRST_REST = timedelta(milliseconds=500)
LONGEST_REST = timedelta(seconds=10)
"""A provider that is back is found out about no later than this."""


@dataclass(slots=True)
class Holds:
    """One channel's holds. In memory: a restart may knock once too early, and is told again."""

    _destinations: dict[str, datetime] = field(default_factory=dict)
    _failures: int = 0
    """Of the whole provider, in a row."""
    _resting: datetime | None = None

    def until(self, destination: str, now: datetime) -> datetime | None:
        """When the destination may be bothered again; None: now."""
        held = self._destinations.get(destination)
        if held is not None and held <= now:
            del self._destinations[destination]
            return None
        return held

    def hands(self, hands: int, now: datetime) -> int:
        """How many of our hands may reach for this provider now: none, one to try, or all."""
        if self._resting is None:
            return hands
        return 0 if now < self._resting else 1

    def learn(self, destination: str, result: Result, now: datetime) -> None:
        """Take in how an attempt ended."""
        if isinstance(result, Later) and result.everyone:
            rest = min(FIRST_REST * 2 ** min(self._failures, 10), LONGEST_REST)
            self._failures += 1
            self._resting = max(now + rest, now + (result.retry_after or timedelta()))
            return
        self._failures, self._resting = 0, None
        if isinstance(result, Later) and result.retry_after is not None:
            self._destinations[destination] = now + result.retry_after
