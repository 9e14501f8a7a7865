"""Finds executions that finished without an event, by comparing FlyteAdmin's lists with the ledger.

flyteadmin publishes each event only once and does not retry, so an event can be lost before it reaches Kafka. This
module creates each missing event from FlyteAdmin's data and passes it to intake, which records it. If the event itself
arrives later, it has the same key and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

import structlog

from dispatcher.clock import Clock, is_set_within
from dispatcher.errors import FlyteAdminUnavailable, Unavailable
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import Ledger
from dispatcher.model.event import Event

if TYPE_CHECKING:  # imported for types only, because FlyteAdmin's client needs an optional dependency
    from dispatcher.flyte.admin.client import FlyteAdmin

log = structlog.get_logger(__name__)

POSITION = "reconcile"
"""The position that the ledger stores for events from reconciliation, because these events have no Kafka position."""
PAUSE = timedelta(seconds=0.5)
"""Pause before each request for a list of executions, because such requests are expensive for FlyteAdmin's database."""
MAX_FAILED_PLACES = 3
"""If FlyteAdmin fails for this many places in a row, it counts as unavailable. A place is a project and a domain."""
LOGGED_EXECUTIONS = 5
"""Maximum number of executions that the log line about missing events names."""


@dataclass(frozen=True, slots=True)
class TimeRange:
    """A time range to reconcile: executions that FlyteAdmin last updated between `since` and `until`."""

    since: datetime
    until: datetime
    oldest: datetime
    """Executions that finished before this time are left out, even if FlyteAdmin updated them later."""


@dataclass(slots=True)
class Reconciler:
    """Finds and records missing events periodically.

    The ledger stores a checkpoint, up to which everything is reconciled. All replicas share the checkpoint.
    """

    admin: FlyteAdmin
    ledger: Ledger
    intake: Intake
    clock: Clock
    look_back: timedelta
    """How far back `run` reconciles, even if the checkpoint is older, for example after a long downtime."""
    min_age: timedelta
    """Time to wait after an execution has finished. If its event has not arrived by then, it counts as missing; before
    that, the event may still be in Kafka."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """When this is set, `run` and `reconcile` end after the current request."""

    async def run(self, every: timedelta, rng: Random) -> None:
        """Reconcile periodically until stopped. If FlyteAdmin or the ledger is unavailable, try again after `every`."""
        while not await is_set_within(
            self.stopping, every.total_seconds() * rng.uniform(0.9, 1.1)
        ):  # replicas ask at different times
            try:
                time_range = await self.next_range()
                await self.reconcile(time_range)
                if not self.stopping.is_set():
                    await self.ledger.checkpoints.set_reconciled_until(time_range.until)
            except Unavailable as error:
                log.warning("executions could not be compared with their events", reason=str(error))

    async def next_range(self) -> TimeRange:
        """Return the time range from `min_age` before the checkpoint. Raises LedgerUnavailable.

        The range overlaps the last reconciled range by `min_age`. With the overlap, no event is overlooked if
        FlyteAdmin's clock differs from the dispatcher's clock by less than `min_age`.
        """
        time_range = await self.range_since(self.clock.now() - self.look_back)
        checkpoint = await self.ledger.checkpoints.reconciled_until()
        if checkpoint is None:
            return time_range
        return TimeRange(max(time_range.since, checkpoint - self.min_age), time_range.until, time_range.oldest)

    async def range_since(self, since: datetime) -> TimeRange:
        """Return the time range from `since` up to `min_age` ago.

        If the ledger is complete only since a later time, the range starts at that time. Raises LedgerUnavailable.
        """
        now = self.clock.now()
        oldest = max(since, await self.ledger.checkpoints.complete_since(now=now))
        return TimeRange(oldest, now - self.min_age, oldest)

    async def reconcile(self, time_range: TimeRange) -> int:
        """Record the missing events of a time range and return their number.

        Raises Unavailable. Events that were recorded before the error stay recorded; the next call finds the others.
        """
        found: list[str] = []
        try:
            async with aclosing(self.missing(time_range)) as pages:
                async for events in pages:
                    found += await self.record(events)
        finally:
            if found:
                log.warning(
                    "recorded executions that finished without an event",
                    found=len(found),
                    executions=found[:LOGGED_EXECUTIONS],
                )
        return len(found)

    async def record(self, missing: Sequence[Event]) -> list[str]:
        """Let intake record missing events. Returns the keys of events that are new or rejected. Raises Unavailable."""
        batch = await self.intake.ingest(_as_messages(missing))
        return sorted(batch.new) + [entry.event or "" for entry in batch.rejected]

    async def missing(self, time_range: TimeRange) -> AsyncGenerator[Sequence[Event]]:
        """Yield the terminal events that the ledger does not have, page by page. Changes nothing.

        Sends one request at a time, with a pause before each request. Raises Unavailable. If FlyteAdmin fails for one
        place only, the other places are still listed before the error is raised.
        """
        if time_range.until <= time_range.since:
            return
        failed: list[FlyteAdminUnavailable] = []
        in_a_row = 0
        for project, domain in await self.admin.places():
            try:
                async with aclosing(self._missing_in_place(project, domain, time_range)) as pages:
                    async for events in pages:
                        yield events
                in_a_row = 0
            except FlyteAdminUnavailable as error:
                failed.append(error)
                in_a_row += 1
                if in_a_row == MAX_FAILED_PLACES:
                    raise
                log.warning(
                    "executions of a place could not be listed", project=project, domain=domain, reason=str(error)
                )
        if failed:
            raise failed[0]

    async def _missing_in_place(
        self, project: str, domain: str, time_range: TimeRange
    ) -> AsyncGenerator[Sequence[Event]]:
        token = ""
        while not self.stopping.is_set():
            await self.clock.sleep(PAUSE)
            page = await self.admin.list_finished(
                project, domain, since=time_range.since, until=time_range.until, token=token
            )
            recent = [event for event in page.events if event.occurred_at >= time_range.oldest]
            known = await self.ledger.history.seen(event.key for event in recent)
            if missing := [event for event in recent if event.key not in known]:
                yield missing
            token = page.next_token
            if not token:
                return


def _as_messages(events: Sequence[Event]) -> list[tuple[Sequence[tuple[str, bytes]], bytes, str]]:
    """Encode the events as messages in the form that intake reads: headers, value and position."""
    messages = [write(event, Format.NATIVE) for event in events]
    return [(message.headers, message.value, POSITION) for message in messages]
