"""From messages to the ledger: understand, decide, plan, record; only then commit.

Nothing is silently skipped: what can't be understood is recorded with the reason, and the next goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from dispatcher.clock import Clock
from dispatcher.decode import Headers, decode
from dispatcher.errors import Unreadable
from dispatcher.event import Event
from dispatcher.ledger import Ledger, Recorded, Rejected, rejected_id
from dispatcher.plan import Planner
from dispatcher.rules import Decision, RuleBook, Verdict, decide
from dispatcher.source import Source

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a batch came to."""

    recorded: Sequence[Recorded] = ()
    rejected: Sequence[Rejected] = ()
    new: frozenset[str] = frozenset()
    """The keys of the events that were not in the ledger before."""


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
        async for batch in source.batches():
            await self._take_patiently(batch)
            await batch.commit()

    async def take(self, messages: Sequence[tuple[Headers, bytes | None, str]]) -> Heard:
        """Understand, decide, plan and record some messages: headers, value and position, in words.

        Raises LedgerUnavailable; nothing is then recorded, and the same messages may be brought again.
        """
        entries = [self.understand(headers, value, position) for headers, value, position in messages]
        recorded = [entry for entry in entries if isinstance(entry, Recorded)]
        rejected = [entry for entry in entries if isinstance(entry, Rejected)]
        if not recorded and not rejected:
            return Heard()
        new = await self.ledger.record(recorded, rejected, now=self.clock.now())
        heard = Heard(recorded, rejected, new)
        _tell(heard)
        self.recorded(heard)
        return heard

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
            deliveries=self._owed(event, decision),
        )

    def _owed(self, event: Event, decision: Decision):
        return self.planner.plan(event, decision.matched, now=self.clock.now())

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
