"""Executions that ended and whose event never came: found by comparing FlyteAdmin's lists with the ledger.

flyteadmin publishes an event once, from a goroutine without retry: one can be lost before Kafka. What is found goes
through intake as a native event; should the lost event turn up after all, it has the same key and adds nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

import structlog

from dispatcher.clock import Clock
from dispatcher.errors import FlyteAdminUnavailable, Unavailable
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import Ledger
from dispatcher.model.event import Event

if TYPE_CHECKING:  # it needs an extra to be loaded
    from dispatcher.flyte.admin.client import FlyteAdmin

log = structlog.get_logger(__name__)

POSITION = "reconcile"
"""Where such an event came from, as the ledger keeps it."""
PAUSE = timedelta(seconds=0.5)
"""Between two questions to FlyteAdmin: a list costs its database more than a look-up."""
AWAY_AFTER = 3
"""So many places in a row that can't be looked through are FlyteAdmin's trouble and not theirs."""
NAMED = 5
"""So many of the executions that were found are named in the log."""


@dataclass(frozen=True, slots=True)
class Span:
    """The time that is looked through."""

    since: datetime
    until: datetime
    oldest: datetime
    """What ended before this is no news, whenever FlyteAdmin last wrote it."""


@dataclass(slots=True)
class Reconciler:
    """Looks through each stretch of time once, whoever of the replicas does it, after a restart too."""

    admin: FlyteAdmin
    ledger: Ledger
    intake: Intake
    clock: Clock
    window: timedelta
    """How far back is looked at most, as after a long stop."""
    patience: timedelta
    """How long after an execution's end its event is not missed yet: Kafka, or we, may be behind."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Once set, `run` and `sweep` end after the question in hand."""

    async def run(self, every: timedelta, rng: Random) -> None:
        """Sweep again and again until stopped. What is away then is waited for until the next time."""
        while not await self._stopped_within(every * rng.uniform(0.9, 1.1)):  # replicas don't all ask at once
            try:
                span = await self.next_span()
                await self.sweep(span)
                if not self.stopping.is_set():
                    await self.ledger.set_reconciled_until(span.until)
            except Unavailable as error:
                log.warning("executions could not be compared with their events", reason=str(error))
            except Exception as error:  # a bug in here must not stop what is delivered meanwhile
                log.error("executions could not be compared with their events", exc_info=error)

    async def next_span(self) -> Span:
        """What was not looked through yet. Raises LedgerUnavailable.

        Somewhat more than that, so that a clock of FlyteAdmin's that differs from ours by less than `patience` hides
        nothing.
        """
        span = await self.span(self.clock.now() - self.window)
        swept = await self.ledger.reconciled_until()
        if swept is None:
            return span
        return Span(max(span.since, swept - self.patience), span.until, span.oldest)

    async def span(self, since: datetime) -> Span:
        """From then on, but not from before what the ledger can know, up to what is missed by now.

        Raises LedgerUnavailable.
        """
        now = self.clock.now()
        oldest = max(since, await self.ledger.complete_since(now=now))
        return Span(oldest, now - self.patience, oldest)

    async def sweep(self, span: Span) -> int:
        """Record what no event brought; how many executions those were.

        Raises Unavailable where FlyteAdmin or the ledger is away: what was recorded stays, and the rest is for the next
        sweep of that span.
        """
        found: list[str] = []
        try:
            async with aclosing(self.missing(span)) as pages:
                async for lost in pages:
                    found += await self.record(lost)
        finally:
            if found:
                named = found[:NAMED]
                log.warning("no event told of executions that ended: recorded now", found=len(found), executions=named)
        return len(found)

    async def record(self, lost: Sequence[Event]) -> list[str]:
        """Let intake have the ends; the keys of those that were still new to it. Raises Unavailable."""
        heard = await self.intake.take(_brought(lost))
        return sorted(heard.new) + [entry.event or "" for entry in heard.rejected]

    async def missing(self, span: Span) -> AsyncGenerator[Sequence[Event]]:
        """The ends of executions that the ledger has not heard of, a page's at a time. Changes nothing.

        One question at a time, with a pause after each. Raises Unavailable; where FlyteAdmin fails at the executions of
        one place, after it has looked at the others.
        """
        if span.until <= span.since:
            return
        failed: list[FlyteAdminUnavailable] = []
        in_a_row = 0
        for project, domain in await self.admin.places():
            try:
                async with aclosing(self._missing_of(project, domain, span)) as pages:
                    async for lost in pages:
                        yield lost
                in_a_row = 0
            except FlyteAdminUnavailable as error:
                failed.append(error)
                in_a_row += 1
                if in_a_row == AWAY_AFTER:
                    raise
                log.warning("a place could not be looked through", project=project, domain=domain, reason=str(error))
        if failed:
            raise failed[0]

    async def _missing_of(self, project: str, domain: str, span: Span) -> AsyncGenerator[Sequence[Event]]:
        token = ""
        while not self.stopping.is_set():
            await self.clock.sleep(PAUSE)
            page = await self.admin.ended(project, domain, since=span.since, until=span.until, token=token)
            news = [event for event in page.ended if event.occurred_at >= span.oldest]
            known = await self.ledger.seen_events(event.key for event in news)
            if lost := [event for event in news if event.key not in known]:
                yield lost
            token = page.following
            if not token:
                return

    async def _stopped_within(self, span: timedelta) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(span.total_seconds()):
                await self.stopping.wait()
        return self.stopping.is_set()


def _brought(lost: Sequence[Event]) -> list[tuple[Sequence[tuple[str, bytes]], bytes, str]]:
    """The messages that the events would have been."""
    messages = [write(event, Format.NATIVE) for event in lost]
    return [(message.headers, message.value, POSITION) for message in messages]
