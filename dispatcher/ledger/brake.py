"""Decides whether a message or a delivery may be given up because the ledger failed to write it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from dispatcher.clock import loop_time
from dispatcher.errors import LedgerFailed, LedgerRefuses, LedgerUnavailable, SlowedDown

log = structlog.get_logger(__name__)

IN_A_ROW = 20
"""After this many in a row were given up for one kind of error, the brake slows down. It also slows down after half of
a batch of at least this size."""
INTERVAL = 60.0
"""Seconds from one to the next that is given up while the brake slows down."""


@dataclass(slots=True)
class Brake:
    """The brake of one component: intake, or a worker.

    If a write fails, its data may be at fault, or the ledger's tables, or this version of the dispatcher. So before
    the component gives up a message or a delivery, `test` writes a canned event. If that fails too, nothing is given
    up. If a new version fails with many real messages, though not with the canned event, `give_up` limits the damage.
    """

    rehearse: Callable[[], Awaitable[None]]
    """Records, claims and settles a canned event, and undoes it (`Ledger.rehearse`)."""
    reason: str | None = None
    """Why nothing is given up: the error of the canned event. None if the canned event was written."""
    slow: bool = False
    """True while only one in `INTERVAL` seconds is given up."""
    _kind: str = ""
    _in_a_row: int = 0
    _next_at: float = 0.0
    """The time from which on the next may be given up, in seconds of the event loop."""

    async def test(self) -> None:
        """Write the canned event. Raises LedgerRefuses if the ledger refuses it, and LedgerUnavailable."""
        try:
            await self.rehearse()
        except LedgerUnavailable:
            raise
        except Exception as error:
            if self.reason is None:
                log.error("the ledger refuses a canned event too: nothing is given up", exc_info=error)
            self.reason = f"the ledger can't write a canned event: {error}"
            raise LedgerRefuses(self.reason) from error
        self.reason = None

    def give_up(self, error: LedgerFailed, *, many: bool = False) -> None:
        """Call this before a message or a delivery is given up, after `test`. Raises SlowedDown if it has to wait.

        `many`: true if half of a batch was given up for this kind of error.
        """
        now = loop_time()
        if self.slow and now < self._next_at:
            raise SlowedDown(f"many were given up because of {self._kind}: now one in {INTERVAL:.0f} seconds is")
        self._in_a_row = self._in_a_row + 1 if error.kind == self._kind else 1
        self._kind = error.kind
        if not self.slow and (many or self._in_a_row >= IN_A_ROW):
            self.slow = True
            log.error("many were given up: the next ones are given up slowly", kind=self._kind)
        self._next_at = now + INTERVAL

    def worked(self) -> None:
        """Note that a real write has succeeded, so that this version does not fail with every message."""
        if self.slow:
            log.warning("a write has succeeded: nothing is given up slowly any more")
        self.slow, self._in_a_row = False, 0

    async def unready_reason(self) -> str | None:
        """Return why nothing is given up, for /readyz. Tests the ledger again, because it may be repaired meanwhile."""
        if self.reason is None:
            return None
        try:
            await self.test()
        except LedgerUnavailable as error:
            return str(error)
        return None
