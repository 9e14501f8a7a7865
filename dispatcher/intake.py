"""From messages to the ledger: understand, decide, plan, record; only then commit.

Nothing is silently skipped: what can't be understood is recorded with the reason, and the next goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

import structlog

from dispatcher.clock import Clock
from dispatcher.decode import Headers, decode, is_foreign
from dispatcher.errors import LedgerUnavailable, Unreadable
from dispatcher.event import Event
from dispatcher.ledger import Ledger, Recorded, Rejected, rejected_id
from dispatcher.plan import Planner
from dispatcher.rules import RuleBook, Verdict, decide
from dispatcher.source import Batch, Source

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a batch came to."""

    recorded: Sequence[Recorded] = ()
    rejected: Sequence[Rejected] = ()
    new: frozenset[str] = frozenset()
    """The keys of the events that were not in the ledger before."""


PAUSE = timedelta(seconds=1)
"""How long a batch rests before the ledger is tried again."""

Brought = tuple[Headers, bytes | None, str]
"""A message's headers and value, and where it came from, in words."""


@dataclass(frozen=True, slots=True)
class Intake:
    """The way from messages to the ledger, the same for every source."""

    ledger: Ledger
    rules: Callable[[], RuleBook]
    """The launch plans' rules as they stand now."""
    planner: Planner
    clock: Clock
    recorded: Callable[[Heard], None] = lambda _: None
    """Told of each batch that is in the ledger: couriers may have work."""

    async def run(self, source: Source) -> None:
        """Take batches until the source ends. While the ledger is away a batch waits, and so does the source."""
        async with aclosing(source.batches()) as batches:
            async for batch in batches:
                entries = self._understood(batch)
                while True:
                    try:
                        await self._record(entries)
                    except LedgerUnavailable as error:
                        log.warning("waiting for the ledger", reason=str(error))
                        if not await source.wait(PAUSE):
                            return
                    else:
                        break
                await batch.commit()

    async def take(self, messages: Iterable[Brought]) -> Heard:
        """Understand, decide, plan and record some messages.

        Raises LedgerUnavailable; nothing is then recorded, and the same messages may be brought again.
        """
        entries = (self.understand(headers, value, position) for headers, value, position in messages)
        return await self._record([entry for entry in entries if entry is not None])

    def understand(self, headers: Headers, value: bytes | None, position: str) -> Recorded | Rejected | None:
        """What one message comes to; None where it is no event of ours, or the execution goes on."""
        try:
            event = decode(headers, value)
            if event is None or not event.phase.terminal:
                return None
            return self._weigh(event, headers, value or b"", position)
        except Unreadable as error:
            return self._reject(str(error), headers, value or b"", position)
        except Exception as error:  # one message that trips over a bug of ours must not hold up the others
            log.exception("a message could not be handled", position=position)
            return self._reject(f"internal error: {type(error).__name__}; see the log", headers, value or b"", position)

    def _understood(self, batch: Batch) -> list[Recorded | Rejected]:
        entries: list[Recorded | Rejected] = [
            self._reject(reason, (), b"", position) for position, reason in batch.spoilt
        ]
        for message in batch.messages:
            if is_foreign(message.headers):  # most of Flyte's topic: no more than this glance is spent on it
                continue
            entry = self.understand(message.headers, message.value, batch.position(message))
            if entry is not None:
                entries.append(entry)
        return entries

    async def _record(self, entries: Sequence[Recorded | Rejected]) -> Heard:
        recorded = [entry for entry in entries if isinstance(entry, Recorded)]
        rejected = [entry for entry in entries if isinstance(entry, Rejected)]
        new = await self.ledger.record(recorded, rejected, now=self.clock.now())
        heard = Heard(recorded, rejected, new)
        _tell(heard)
        self.recorded(heard)
        return heard

    def _weigh(self, event: Event, headers: Headers, value: bytes, position: str) -> Recorded | Rejected:
        decision = decide(event, self.rules())
        if decision.verdict is Verdict.UNKNOWN_LAUNCH_PLAN:
            return self._reject(decision.reason, headers, value, position, event=event.key)
        return Recorded(
            event=event,
            position=position,
            verdict=decision.verdict,
            reason=decision.reason,
            considered=[look.as_data() for look in decision.considered],
            deliveries=self.planner.plan(event, decision.matched, now=self.clock.now()),
        )

    def _reject(
        self, reason: str, headers: Headers, value: bytes, position: str, *, event: str | None = None
    ) -> Rejected:
        return Rejected(
            id=rejected_id(position, value),
            position=position,
            received_at=self.clock.now(),
            reason=reason,
            headers=headers,
            body=value,
            size=len(value),
            event=event,
        )


def _tell(heard: Heard) -> None:
    for entry in heard.recorded:
        if entry.event.key in heard.new:
            owed = len(entry.deliveries)
            log.info("recorded", execution=entry.event.key, verdict=entry.verdict, reason=entry.reason, deliveries=owed)
    for refused in heard.rejected:
        log.warning(
            "rejected", id=refused.id, position=refused.position, execution=refused.event, reason=refused.reason
        )
