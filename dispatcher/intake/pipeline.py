"""Turns messages into recorded deliveries: `Evaluator` makes results, `Intake` records them. Then the source may commit.

While FlyteAdmin or the ledger is unavailable, a batch is tried again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar

import structlog

from dispatcher.clock import Clock
from dispatcher.errors import (
    FlyteAdminUnavailable,
    LedgerFailed,
    LedgerRefuses,
    SilencesChanged,
    SlowedDown,
    Unavailable,
)
from dispatcher.intake.evaluator import Decoded, Evaluated, Evaluator, IncomingMessage, IntakeResult, TerminalEvent
from dispatcher.intake.origin import LookUp
from dispatcher.intake.source import Batch, Source
from dispatcher.ledger import Ledger, RecordedEvent, RecordResult, Rejected
from dispatcher.ledger.brake import Brake
from dispatcher.ledger.halving import Halving
from dispatcher.model.delivery import Delivery
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rules import RuleBook
from dispatcher.rules.silences import CurrentSilences
from dispatcher.tracing import OFF, Tracing

log = structlog.get_logger(__name__)

RETRY_PAUSE = timedelta(seconds=1)
"""Pause before a retry if the ledger is unavailable, and before the first retry after other errors."""
MAX_RETRY_PAUSE = timedelta(seconds=15)
"""Maximum pause before a retry if FlyteAdmin is unavailable or the ledger refuses to write. Each pause is twice as long
as the last pause, up to this maximum. Identity providers lock out clients that often send a wrong password, and a
ledger that refuses to write needs a person."""
CHUNK = 100
"""Maximum number of results that are recorded in one transaction. It is small, so that workers don't wait long for the
ledger, and the first deliveries of a batch are sent while its later events are being decided."""
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The results that were recorded for one batch of messages."""

    recorded: Sequence[RecordedEvent] = ()
    rejected: Sequence[Rejected] = ()
    new: frozenset[str] = frozenset()
    """The keys of the events that were not in the ledger before."""
    source: str = ""
    """Where the messages came from: `kafka`, or the position of the first message, such as `http` or `reconcile`."""
    messages: int = 0
    """Number of messages in the batch, including messages without a terminal event."""

    def new_or_duplicate(self) -> Iterator[tuple[RecordedEvent, bool]]:
        """Yield each recorded event, with True if it was new. Of several copies in a batch, only the first is new."""
        new = set(self.new)
        for entry in self.recorded:
            key = entry.event.key
            yield entry, key in new
            new.discard(key)


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """Result of processing a rejected message again."""

    accepted: bool
    message: str
    """If accepted, the event and the reason for its verdict; otherwise why the message is rejected again."""
    event: str | None = None
    """The key of the accepted event; None if the message is rejected again or reports no terminal event."""


@dataclass(slots=True)
class _Recording:
    """The recorded parts of one batch. A batch has several parts only if a write fails."""

    source: str
    messages: int
    """Number of messages in the batch that no part has counted yet: the first part counts all."""
    parts: list[BatchResult] = field(default_factory=list)

    def add(self, recorded: Sequence[RecordedEvent], rejected: Sequence[Rejected], new: frozenset[str]) -> BatchResult:
        """Add a part that was recorded, and return it."""
        self.parts.append(BatchResult(recorded, rejected, new, self.source, self.messages))
        self.messages = 0
        return self.parts[-1]

    @property
    def whole(self) -> BatchResult:
        """All parts as one result."""
        if len(self.parts) == 1:
            return self.parts[0]
        return BatchResult(
            [entry for part in self.parts for entry in part.recorded],
            [entry for part in self.parts for entry in part.rejected],
            frozenset().union(*(part.new for part in self.parts)),
            self.source,
            sum(part.messages for part in self.parts),
        )


@dataclass(frozen=True, slots=True)
class Intake:
    """Processes messages from any source and records the results in the ledger."""

    ledger: Ledger
    rules: Callable[[], RuleBook]
    """Returns the rules that the rule files contain now."""
    planner: Planner
    contents: Contents
    clock: Clock
    on_pending: Callable[[Sequence[Delivery]], None] = lambda _: None
    """Called after each batch, with the recorded deliveries that are waiting."""
    on_batch: Callable[[BatchResult], None] = lambda _: None
    """Called with the result of each batch after the batch was recorded."""
    look_up: LookUp | None = None
    """Asks FlyteAdmin about an execution. None if FlyteAdmin is not configured."""
    tracing: Tracing = OFF
    silences: CurrentSilences = field(init=False)
    brake: Brake = field(init=False)
    evaluator: Evaluator = field(init=False)

    def __post_init__(self) -> None:
        channels = sorted(self.planner.addresses)
        silences = CurrentSilences(self.ledger.silences, self.clock)
        brake = Brake(lambda: self.ledger.rehearse(channels, now=self.clock.now()))
        evaluator = Evaluator(
            self.ledger,
            self.rules,
            self.planner,
            self.contents,
            self.clock,
            brake,
            silences,
            self.look_up,
            self.tracing,
        )
        object.__setattr__(self, "silences", silences)
        object.__setattr__(self, "brake", brake)
        object.__setattr__(self, "evaluator", evaluator)

    async def run(self, source: Source) -> None:
        """Process the source's batches until the source is stopped.

        While FlyteAdmin or the ledger is unavailable, the current batch is retried, and no further batch is processed.
        """
        async with aclosing(source.batches()) as batches:
            async for batch in batches:
                if not await self._process(batch, source):
                    return
                await batch.commit()

    async def ingest(self, messages: Iterable[IncomingMessage]) -> BatchResult:
        """Process some messages and record the results.

        Raises Unavailable. Nothing is recorded then, and the caller may pass the same messages again.
        """
        listed = list(messages)
        evaluated = await self.evaluator.evaluate(listed)
        return await self._record_all(evaluated, listed[0][2] if listed else "", len(listed))

    async def evaluate(self, messages: Iterable[IncomingMessage]) -> list[IntakeResult]:
        """Return the results for some messages, but record nothing. A message without a terminal event has no result.

        Raises Unavailable.
        """
        return [result for _, result in await self.evaluator.evaluate(messages)]

    async def replay(self, rejected: Rejected, *, dry_run: bool = False) -> ReplayResult:
        """Process a rejected message again, with today's rules and decoder, and record the result unless it is rejected
        again. With `dry_run`, record nothing. Raises Unavailable.
        """
        if not rejected.whole:
            return ReplayResult(False, f"only its first {len(rejected.body)} bytes were kept: publish it again")
        evaluated = await self.evaluator.evaluate([(rejected.headers, rejected.body, rejected.position)])
        result = evaluated[0][1] if evaluated else None
        if isinstance(result, Rejected):
            return ReplayResult(False, result.reason)
        if not dry_run:
            recorded = await self._record_all(evaluated, rejected.position, 1)
            if recorded.rejected:
                return ReplayResult(False, recorded.rejected[0].reason)
        if result is None:
            return ReplayResult(True, "today's decoder finds no terminal event in it")
        return ReplayResult(True, f"{result.event.key}: {result.reason}", result.event.key)

    async def _record_all(self, evaluated: Sequence[Evaluated], source: str, messages: int) -> BatchResult:
        """Record results that did not come from a source. Raises Unavailable."""
        recording = _Recording(source=source, messages=messages)
        await self._halving(evaluated, recording).run()
        return recording.whole

    async def _process(self, batch: Batch, source: Source) -> bool:
        """Process and record a batch in chunks. Returns False if the source was stopped before the last chunk."""
        decoded = await self.evaluator.decode(batch)
        messages = len(batch.messages) + len(batch.undecodable) + batch.skipped
        for first in range(0, max(len(decoded), 1), CHUNK):
            if not await self._process_chunk(decoded[first : first + CHUNK], messages, source):
                return False
            messages = 0  # because the first chunk has already reported all messages of the batch
        return True

    async def _process_chunk(self, decoded: Sequence[Decoded], messages: int, source: Source) -> bool:
        results: dict[int, IntakeResult] = {}  # by index; a retry does not decide these events again
        ordered = await _retry_until_done(lambda: self.evaluator.decide(decoded, results), source)
        if ordered is None:
            return False
        halving = self._halving(ordered, _Recording(source="kafka", messages=messages))
        return await _retry_until_done(halving.run, source) is not None

    async def _record(self, decided: Sequence[Evaluated], recording: _Recording) -> None:
        """Record some messages of a batch, all or none. Raises Unavailable or LedgerFailed."""
        results = [result for _, result in decided]
        recorded = [entry for entry in results if isinstance(entry, RecordedEvent)]
        rejected = [entry for entry in results if isinstance(entry, Rejected)]
        record_spans = [entry.span.child("dispatcher.record") for entry in recorded]
        try:
            recorded, record = await self._record_by_silences(recorded, rejected)
        except (Unavailable, LedgerFailed):
            for span in record_spans:
                span.end(failed=True)
            raise
        self.on_pending(record.waiting)
        recorded = [record.completed.get(one.event.key, one) for one in recorded]
        batch = recording.add(recorded, rejected, record.new)
        for (entry, is_new), record_span in zip(batch.new_or_duplicate(), record_spans, strict=True):
            record_span.end()
            verdict = entry.verdict if is_new else "duplicate"
            entry.span.end(event=entry.event.key, verdict=verdict, deliveries=len(entry.deliveries))
        _log_batch(batch)
        self.on_batch(batch)
        if record.new:
            self.brake.worked()

    async def _record_by_silences(
        self, entries: Sequence[RecordedEvent], rejections: Sequence[Rejected]
    ) -> tuple[list[RecordedEvent], RecordResult]:
        """Record events with the silences that are for them. If silences are changed meanwhile, find these anew.

        Returns the events as they were recorded, and the result.
        """
        while True:
            book = self.silences.book
            found = [(entry, book.matching(entry.event)) for entry in entries]
            silenced = [replace(entry, silences=some) if some else entry for entry, some in found]
            try:
                now = self.clock.now()
                return silenced, await self.ledger.record(silenced, rejections, now=now, silences=book.version)
            except SilencesChanged:
                await self.silences.load()

    def _halving(self, decided: Sequence[Evaluated], recording: _Recording) -> Halving[Evaluated]:
        """Return what records a batch. A message that the ledger can't write is rejected."""

        async def write(part: Sequence[Evaluated]) -> None:
            await self._record(part, recording)

        async def reject(unwritable: Evaluated, error: LedgerFailed) -> None:
            message, result = unwritable
            if isinstance(message, TerminalEvent):
                message.span.end(event=message.event.key, verdict="rejected", failed=True)
                result = self.evaluator.reject(
                    f"the ledger can't write it: {error}",
                    message.headers,
                    message.value,
                    message.position,
                    event=message.event.key,
                )
            await self._record([(message, result)], recording)

        return Halving(decided, write, reject, self.brake)


async def _retry_until_done(step: Callable[[], Awaitable[_Result]], source: Source) -> _Result | None:
    """Call `step` until it does not raise Unavailable. Returns its result, or None if the source was stopped."""
    longer_pause = RETRY_PAUSE
    while True:
        try:
            return await step()
        except Unavailable as error:
            waiting = "waiting for FlyteAdmin" if isinstance(error, FlyteAdminUnavailable) else "waiting for the ledger"
            log.warning(waiting, reason=str(error))
            pause = RETRY_PAUSE
            if isinstance(error, FlyteAdminUnavailable | LedgerRefuses | SlowedDown):
                pause, longer_pause = longer_pause, min(longer_pause * 2, MAX_RETRY_PAUSE)
        if not await source.wait(pause):
            return None


def _log_batch(batch: BatchResult) -> None:
    for entry, new in batch.new_or_duplicate():
        if new:
            log.info(
                "recorded",
                execution=entry.event.key,
                verdict=entry.verdict,
                reason=entry.reason,
                deliveries=len(entry.deliveries),
                **entry.span.log_fields,
            )
    for rejected in batch.rejected:
        log.warning(
            "rejected", id=rejected.id, position=rejected.position, execution=rejected.event, reason=rejected.reason
        )
