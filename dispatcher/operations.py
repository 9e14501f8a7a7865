"""Redrives and replays that people start from the console or its API. The log records who did it."""

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
    """Redrives deliveries and replays messages. Raises Unavailable while the ledger or FlyteAdmin can't be reached."""

    ledger: Ledger
    intake: Intake
    clock: Clock
    notify: Callable[[], None]
    """Wakes the workers after a redrive, because they then have new due deliveries."""

    async def redrive(self, wanted: DeliveryFilter, *, by: str) -> int:
        """Make the matching dead deliveries due again; return their number. `by`: the caller's name, for the log."""
        number = await self.ledger.redrive(wanted, now=self.clock.now())
        log.info("redriven", by=by, deliveries=number, keys=len(wanted.keys) or None, filter=_in_words(wanted))
        if number:
            self.notify()
        return number

    async def count_redrivable(self, wanted: DeliveryFilter) -> Count:
        """Count the matching dead deliveries."""
        return await self.ledger.queries.count(replace(wanted, states=frozenset({State.DEAD})))

    async def rejected(self, identity: str) -> Rejected | None:
        """Return the rejected message with exactly this id; None if the ledger has no such message."""
        found = await self.ledger.find_rejected(limit=2, id_starts=identity)
        return next((entry for entry in found if entry.id == identity), None)

    async def replay(self, refused: Rejected, *, by: str) -> ReplayResult:
        """Process a rejected message again. `by`: the caller's name, for the log."""
        result = await self.intake.replay(refused)
        log.info("replayed", by=by, id=refused.id, accepted=result.accepted)
        return result


def _in_words(wanted: DeliveryFilter) -> str:
    """Return the filter as text for the log, without recipients: more people can read the log than the ledger."""
    names = {"channel": wanted.channel, "execution": wanted.execution, "launch_plan": wanted.launch_plan}
    times = {name: at.isoformat() for name in ("since", "until") if (at := getattr(wanted, name)) is not None}
    conditions = [f"{name} {value}" for name, value in {**names, **times}.items() if value is not None]
    return ", ".join([*conditions, *(["a recipient"] if wanted.recipient is not None else [])]) or "all"
