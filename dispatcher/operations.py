"""What people do through the console and its API: put dead deliveries back, try rejected messages again.

Each deed is logged with who did it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from dispatcher.clock import Clock
from dispatcher.intake.pipeline import Intake, ReplayResult
from dispatcher.ledger import DeliveryFilter, Ledger, Rejected
from dispatcher.ledger.queries import Count
from dispatcher.model.delivery import State

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Operations:
    """Acts for somebody. Raises Unavailable while the ledger, or FlyteAdmin, is away."""

    ledger: Ledger
    intake: Intake
    clock: Clock
    ring: Callable[[], None]
    """There is work for the couriers."""

    async def redrive(self, wanted: DeliveryFilter, *, by: str) -> int:
        """Put the dead deliveries back that fit; how many there were."""
        number = await self.ledger.redrive(wanted, now=self.clock.now())
        log.info("redriven", by=by, deliveries=number, keys=len(wanted.keys) or None, asked=_in_words(wanted))
        if number:
            self.ring()
        return number

    async def would_redrive(self, wanted: DeliveryFilter) -> Count:
        """How many dead deliveries fit."""
        return await self.ledger.queries.count(replace(wanted, states=frozenset({State.DEAD})))

    async def rejected(self, identity: str) -> Rejected | None:
        found = await self.ledger.find_rejected(limit=2, id_starts=identity)
        return next((entry for entry in found if entry.id == identity), None)

    async def replay(self, refused: Rejected, *, by: str) -> ReplayResult:
        """Try a rejected message again."""
        tried = await self.intake.try_again(refused)
        log.info("replayed", by=by, id=refused.id, understood=tried.understood)
        return tried


def _in_words(wanted: DeliveryFilter) -> str:
    """What was asked for, without recipients: a log is read by more people than a ledger."""
    named = {"channel": wanted.channel, "execution": wanted.execution, "launch_plan": wanted.launch_plan}
    times = {name: at.isoformat() for name in ("since", "until") if (at := getattr(wanted, name)) is not None}
    said = [f"{name} {value}" for name, value in {**named, **times}.items() if value is not None]
    return ", ".join([*said, *(["a recipient"] if wanted.recipient is not None else [])]) or "all"
