"""Migrates or checks the ledger's tables, and waits for the ledger's database, which may be starting too."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_exponential

from dispatcher.errors import LedgerUnavailable
from dispatcher.ledger import Ledger, Schema

log = structlog.get_logger(__name__)

TIMEOUT = 30
"""Maximum number of seconds that `open_tables` waits for the database."""


async def open_tables(
    ledger: Ledger, *, migrate: bool = True, on_retry: Callable[[str], None] = lambda _: None
) -> Schema:
    """Migrate the tables, or only check that this version can work with them. Returns the schema that they had before.

    `on_retry` is called with the reason each time the database is unavailable. Raises SettingsError or
    LedgerIncompatible. Raises LedgerUnavailable if the database is unavailable for longer than `TIMEOUT`.
    """

    def before_retry(state: RetryCallState) -> None:
        reason = str(state.outcome.exception()) if state.outcome is not None else ""
        log.warning("waiting for the ledger", attempt=state.attempt_number, reason=reason)
        on_retry(reason)

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(LedgerUnavailable),
        wait=wait_exponential(multiplier=0.2, max=3),
        stop=stop_after_delay(TIMEOUT),
        before_sleep=before_retry,
        reraise=True,
    )
    return await retrying(ledger.migrate if migrate else ledger.require_tables)
