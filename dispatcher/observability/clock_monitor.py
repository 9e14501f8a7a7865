"""Compares this machine's clock with the database's, because replicas share leases and due times through the ledger."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import structlog

from dispatcher.clock import Clock, is_set_within
from dispatcher.errors import LedgerUnavailable
from dispatcher.ledger import Ledger
from dispatcher.observability.metrics import Metrics

log = structlog.get_logger(__name__)

CHECK_INTERVAL = 60.0
"""Seconds between two comparisons."""
MAX_OFFSET = timedelta(seconds=5)
"""A larger difference of the clocks is a warning: other replicas then take over deliveries too early or too late."""


@dataclass(slots=True, kw_only=True)
class ClockMonitor:
    """Compares the clocks regularly, sets the metric, and logs a warning if they differ too much."""

    ledger: Ledger
    clock: Clock
    metrics: Metrics
    stopping: asyncio.Event
    _differ: bool = False

    async def run(self) -> None:
        """Compare the clocks again and again, until the service stops."""
        while not self.stopping.is_set():
            with suppress(LedgerUnavailable):  # /readyz reports this
                await self.check()
            await is_set_within(self.stopping, CHECK_INTERVAL)

    async def check(self) -> None:
        """Compare the clocks once. Raises LedgerUnavailable if the ledger can't be read."""
        offset = await self.ledger.clock_offset(self.clock.now)
        self.metrics.clock_offset(offset)
        if problem := clock_problem(offset):
            if not self._differ:
                log.warning(problem, seconds=round(offset.total_seconds(), 1))
        elif self._differ:
            log.warning("this machine's clock agrees with the database's again")
        self._differ = bool(problem)


def clock_problem(offset: timedelta, whose: str = "this machine's") -> str | None:
    """Return a sentence about clocks that differ too much; None if they agree. `offset`: how far `whose` is ahead."""
    if abs(offset) <= MAX_OFFSET:
        return None
    direction = "ahead of" if offset > timedelta() else "behind"
    seconds = abs(offset.total_seconds())
    return f"{whose} clock is {seconds:.0f} s {direction} the database's: synchronise both clocks (NTP)"
