"""The circuit breaker of a provider. Each replica has its own breaker, in memory."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from channels.contract import InDoubt, Later
from dispatcher.model.delivery import Result
from dispatcher.model.rate_limit import FAILURES_TO_OPEN

MIN_OPEN_TIME = timedelta(milliseconds=500)
MAX_OPEN_TIME = timedelta(seconds=10)
"""Maximum time that the breaker stays open before it lets a probe through, unless the provider asks for longer."""


@dataclass(slots=True)
class CircuitBreaker:
    """Stops sends to a provider that is down, refuses every message or does not answer.

    After each failure in a row, the breaker stays open longer. When this time is over, it lets one delivery through as
    a probe. If the probe succeeds, the breaker closes.
    """

    _outages: int = 0
    """Number of failures in a row that concern the provider as a whole (`Later.provider_wide`)."""
    _unanswered: int = 0
    """Number of sends in a row that got no answer from the provider."""
    open_since: datetime | None = None
    """Since when the breaker is open; None if it is closed."""
    next_probe_at: datetime | None = None
    """From when on the open breaker lets one delivery through, as a probe; None if it is closed."""

    @property
    def open(self) -> bool:
        """True if the breaker is open or half-open (one probe is allowed)."""
        return self.next_probe_at is not None

    def allowed(self, slots: int, now: datetime) -> int:
        """Return how many sends may be in flight now: `slots` if the breaker is closed, 0 if open, 1 if half-open."""
        if self.next_probe_at is None:
            return slots
        return 0 if now < self.next_probe_at else 1

    def record(self, result: Result, now: datetime) -> None:
        """Count an attempt's result, and open or close the breaker."""
        retry_after = timedelta()
        if isinstance(result, Later) and result.provider_wide:
            self._outages += 1
            retry_after = result.retry_after or retry_after
        elif isinstance(result, InDoubt):
            self._unanswered += 1
        else:
            self._outages, self._unanswered = 0, 0
            self.open_since = self.next_probe_at = None
        failures = self._outages + max(self._unanswered - FAILURES_TO_OPEN + 1, 0)
        if failures:
            open_time = min(MIN_OPEN_TIME * (1 << min(failures - 1, 10)), MAX_OPEN_TIME)
            self.open_since = self.open_since or now
            self.next_probe_at = now + max(open_time, retry_after)
