"""What operators do to the ledger from commands, the console and its API. The ledger records each action (`Action`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from dispatcher.clock import Clock
from dispatcher.ledger import Action, Deed, Filter, Ledger, Rejected
from dispatcher.ledger.records import Count
from dispatcher.model.delivery import State

if TYPE_CHECKING:  # a command that replays nothing does not load intake
    from dispatcher.intake.pipeline import Intake, ReplayResult

log = structlog.get_logger(__name__)

PURGE_BATCH = 500
"""Number of events that one transaction of a purge deletes."""
MAX_REASON = 1000
"""Maximum number of characters of an operator's reason."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who acts, and why."""

    name: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Operations:
    """Redrives, replays and purges. Raises Unavailable while the ledger or FlyteAdmin can't be reached.

    An action that changes the ledger is recorded in the transaction that redrives, purges, or marks a message as replayed.
    """

    ledger: Ledger
    intake: Intake | None
    """Processes rejected messages again. None in a command that replays nothing."""
    clock: Clock
    notify: Callable[[], None] = lambda: None
    """Wakes the workers after a redrive, because they then have new due deliveries."""

    async def redrive(self, wanted: Filter, operator: Operator) -> int:
        """Make the matching dead deliveries due again; return their number."""
        scope = _in_words(wanted)
        number = await self.ledger.redrive(wanted, self._action(Deed.REDRIVE, scope, operator))
        log.info("redriven", by=operator.name, deliveries=number, keys=len(wanted.keys) or None, filter=scope)
        if number:
            self.notify()
        return number

    async def count_redrivable(self, wanted: Filter) -> Count:
        """Count the matching dead deliveries."""
        return await self.ledger.queries.count(replace(wanted, states=frozenset({State.DEAD})))

    async def rejected(self, identity: str) -> Rejected | None:
        """Return the rejected message with exactly this id; None if the ledger has no such message."""
        found = await self.ledger.rejected.find(limit=2, id_starts=identity)
        return next((entry for entry in found if entry.id == identity), None)

    async def replay(self, rejected: Rejected, operator: Operator) -> ReplayResult:
        """Process a rejected message again. If it is accepted, mark it as replayed."""
        assert self.intake is not None, "this command replays nothing"  # noqa: S101 - a mistake of the caller
        result = await self.intake.replay(rejected)
        if result.accepted:
            action = self._action(Deed.REPLAY, f"message {rejected.id}", operator)
            await self.ledger.rejected.mark_replayed(rejected.id, event=result.event, action=action)
        log.info("replayed", by=operator.name, id=rejected.id, accepted=result.accepted)
        return result

    async def purge(self, before: datetime, operator: Operator) -> int:
        """Delete what was recorded before this time and is finished; return the number of events and messages."""
        action = self._action(Deed.PURGE, f"before {before.isoformat()}", operator)
        total = 0
        while deleted := await self.ledger.purge(before, limit=PURGE_BATCH, action=None if total else action):
            total += deleted
        log.info("purged", by=operator.name, entries=total, filter=action.scope)
        return total

    def _action(self, what: Deed, scope: str, operator: Operator) -> Action:
        return Action(at=self.clock.now(), who=operator.name, what=what, scope=scope, why=operator.reason)


def _in_words(wanted: Filter) -> str:
    """Return the filter as text, without recipients: more people can read the log than the ledger."""
    names = {"channel": wanted.channel, "execution": wanted.execution, "launch_plan": wanted.launch_plan}
    times = {name: at.isoformat() for name in ("since", "until") if (at := getattr(wanted, name)) is not None}
    conditions = [f"{name} {value}" for name, value in {**names, **times}.items() if value is not None]
    if wanted.recipient is not None:
        conditions.append("a recipient")
    if wanted.keys:
        conditions.append("1 key" if len(wanted.keys) == 1 else f"{len(wanted.keys)} keys")
    return ", ".join(conditions) or "all"
