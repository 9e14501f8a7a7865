"""Deletes what the ledger keeps no longer (`ledger.retention`)."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from dispatcher.clock import Clock, is_set_within
from dispatcher.errors import LedgerUnavailable
from dispatcher.ledger import Ledger

log = structlog.get_logger(__name__)

LIMIT = 200
"""Maximum number of events that one purge deletes."""
PAUSE = 0.5
"""Seconds between two purges while there are more rows to delete. In the pause, deliveries can use the ledger."""
INTERVAL = 600.0
"""Seconds until the next purge if the last purge deleted nothing."""


async def purge_old(ledger: Ledger, retention: timedelta, clock: Clock, stopping: asyncio.Event) -> None:
    """Delete rows that are older than `retention`, in small portions, until the service is stopped."""
    while not stopping.is_set():
        try:
            purged = await ledger.purge(clock.now() - retention, limit=LIMIT)
        except LedgerUnavailable as error:
            log.warning("nothing was purged", reason=str(error))
            purged = 0
        await is_set_within(stopping, PAUSE if purged else INTERVAL)
