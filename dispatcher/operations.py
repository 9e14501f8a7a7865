"""What operators do to the ledger from commands, the console and its API. The ledger records each action (`Action`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from dispatcher.clock import Clock
from dispatcher.holding.covering import HELD_KINDS, by_silence
from dispatcher.ledger import Action, Deed, Filter, Ledger, Rejected
from dispatcher.ledger.actions import eligible
from dispatcher.ledger.records import Count
from dispatcher.model.delivery import State
from dispatcher.model.waiting import Wait
from dispatcher.rules.silences import CurrentSilences

if TYPE_CHECKING:  # a command that replays nothing does not load intake
    from dispatcher.intake.pipeline import Intake, ReplayResult

log = structlog.get_logger(__name__)

PURGE_BATCH = 500
"""Number of events that one transaction of a purge deletes."""
WAITS_READ = 500
"""`Operations.waits` reads this many deliveries."""
_NEVER = datetime.max.replace(tzinfo=UTC)
MAX_REASON = 1000
"""Maximum number of characters of an operator's reason."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who acts, and why."""

    name: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Operations:
    """Redrives, cancels, dismisses, replays and purges. Raises Unavailable while the ledger or FlyteAdmin can't be reached.

    An action that changes the ledger is recorded in the transaction that redrives, purges, or marks a message as replayed.
    """

    ledger: Ledger
    intake: Intake | None
    """Processes rejected messages again. None in a command that replays nothing."""
    clock: Clock
    notify: Callable[[], None] = lambda: None
    """Wakes the workers after a change of deliveries, because others may be due then."""

    async def change(self, what: Deed, wanted: Filter, operator: Operator) -> int:
        """Redrive, retry now, cancel or dismiss the matching deliveries (`Ledger.change`). Return their number."""
        scope = _in_words(wanted)
        number = await self.ledger.change(wanted, self._action(what, scope, operator))
        log.info(what.done, by=operator.name, deliveries=number, keys=len(wanted.keys) or None, filter=scope)
        if number:
            self.notify()
        return number

    async def count(self, what: Deed, wanted: Filter) -> Count:
        """Count the deliveries that `change` would change."""
        return await self.ledger.queries.count(self.eligible(what, wanted))

    def eligible(self, what: Deed, wanted: Filter) -> Filter:
        """Return the filter for the deliveries that `change` would change now."""
        return eligible(wanted, what, self.clock.now())

    async def waits(self, wanted: Filter) -> Sequence[tuple[Wait, int]]:
        """Return what the matching waiting deliveries wait for, and how many of them; the most frequent first.

        Reads the newest `WAITS_READ` of them, and counts each once: by the most important of its waits, of which the
        earliest is returned.
        """
        waiting = replace(wanted, states=frozenset({State.WAITING}))
        page = await self.ledger.queries.deliveries(waiting, limit=WAITS_READ)
        first: dict[tuple[str, str], list[Wait]] = {}
        for stored in await self.ledger.queries.with_waits(page.entries, now=self.clock.now()):
            wait = stored.waits_for[0]
            first.setdefault((wait.kind, wait.text), []).append(wait)
        counted = [(min(waits, key=lambda one: one.until or _NEVER), len(waits)) for waits in first.values()]
        return sorted(counted, key=lambda one: -one[1])

    async def silenced(self, what: Deed, wanted: Filter) -> int:
        """Return how many of the deliveries that `change` would change a silence in force covers.

        They go out all the same: who redrives or retries them wants them now. Reads the newest `WAITS_READ`.
        """
        now = self.clock.now()
        book = await CurrentSilences(self.ledger.silences, self.clock).load()
        if what not in {Deed.REDRIVE, Deed.RETRY_NOW} or not any(one.in_force(now) for one in book.silences):
            return 0
        page = await self.ledger.queries.deliveries(self.eligible(what, wanted), limit=WAITS_READ)
        found = [one.delivery for one in page.entries if one.delivery.event and one.delivery.kind in HELD_KINDS]
        events = await self.ledger.silences.events({one.event for one in found})
        covering = (
            (one, silence) for one in found if one.event in events for silence in book.matching(events[one.event])
        )
        return len({one.key for one, silence in covering if silence.in_force(now) and by_silence(silence, one, now)})

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

    async def dismiss_rejected(self, ids: Sequence[str], operator: Operator) -> int:
        """Note that nobody needs these rejected messages; return the number of those that were not decided before."""
        scope = f"message {ids[0]}" if len(ids) == 1 else f"{len(ids)} messages"
        number = await self.ledger.rejected.dismiss(ids, self._action(Deed.DISMISS, scope, operator))
        log.info("dismissed rejected messages", by=operator.name, messages=number)
        return number

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
    shown = (
        *("channel", "execution", "launch_plan", "project", "domain", "phase", "verdict", "cause"),
        *("included_in", "held_by"),
    )
    names = {name: getattr(wanted, name) for name in shown}
    times = {name: at.isoformat() for name in ("since", "until") if (at := getattr(wanted, name)) is not None}
    conditions = [f"{name} {value}" for name, value in {**names, **times}.items() if value is not None]
    if wanted.held is not None:
        conditions.append("held" if wanted.held else "not held")
    if wanted.recipient is not None:
        conditions.append("a recipient")
    if wanted.keys:
        conditions.append("1 key" if len(wanted.keys) == 1 else f"{len(wanted.keys)} keys")
    return ", ".join(conditions) or "all"
