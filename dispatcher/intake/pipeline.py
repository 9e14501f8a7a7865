"""Turns messages into recorded deliveries: decode, look up, decide, plan, record. Then the source may commit.

No message is lost: if a message can't be decoded or decided, it is recorded as rejected, with the reason.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

import structlog

from dispatcher.clock import Clock
from dispatcher.errors import (
    FlyteAdminUnavailable,
    LedgerFailed,
    LedgerRefuses,
    SlowedDown,
    Unavailable,
    Unreadable,
)
from dispatcher.flyte.decode import Headers, decode, trace_context, type_label
from dispatcher.intake.origin import LookUp, find_origin
from dispatcher.intake.source import Batch, Source
from dispatcher.ledger import Ledger, RecordedEvent, Rejected, rejected_id
from dispatcher.ledger.brake import Brake
from dispatcher.ledger.halving import Halving
from dispatcher.model.delivery import Delivery
from dispatcher.model.event import Event, ExecutionId
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rules import AdminExecution, Decision, Rule, RuleBook, UnknownExecution, Verdict, decide, decides_itself
from dispatcher.tracing import OFF, Span, Tracing

log = structlog.get_logger(__name__)


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


RETRY_PAUSE = timedelta(seconds=1)
"""Pause before a retry if the ledger is unavailable, and before the first retry after other errors."""
MAX_RETRY_PAUSE = timedelta(seconds=15)
"""Maximum pause before a retry if FlyteAdmin is unavailable or the ledger refuses to write. Each pause is twice as long
as the last pause, up to this maximum. Identity providers lock out clients that often send a wrong password, and a
ledger that refuses to write needs a person."""
CHUNK = 100
"""Maximum number of results that are recorded in one transaction. It is small, so that workers don't wait long for the
ledger, and the first deliveries of a batch are sent while its later events are being decided."""
MAX_YIELDS = 10
"""After deciding an event, intake lets other tasks run for at most this many event-loop iterations. One send takes a
few iterations."""
MAX_YIELD_SECONDS = 0.02
"""After deciding an event, intake lets other tasks run for at most this many seconds, so that intake continues even if
many deliveries are due."""
LARGE = 64 * 1024
"""Number of bytes from which on a message is decoded, and its deliveries are planned, in another thread, so that it does
not block the event loop. The templates that its rules name count too."""
MANY = 100
"""Number of recipients from which on an event's deliveries are planned in another thread."""
MAX_REASON = 2000
"""Maximum number of characters of the reason for which a message is rejected."""
IDLE_ITERATION = 0.0001
"""If an event-loop iteration took less than this many seconds, the other tasks had nothing to do."""

IncomingMessage = tuple[Headers, bytes | None, str]
"""A message as (headers, value, position). The position is a text that says where the message came from."""
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _TerminalEvent:
    """A decoded message with a terminal event, for which nothing is decided yet."""

    event: Event
    headers: Headers
    value: bytes
    position: str
    span: Span


_Decoded = _TerminalEvent | Rejected
IntakeResult = RecordedEvent | Rejected
"""The result of processing one message."""
_Decided = tuple[_Decoded, IntakeResult]
"""A message and its result."""


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
    brake: Brake = field(init=False)
    _planned_channels: set[str] = field(default_factory=set)
    """The channels that have had a delivery. A channel's templates are compiled for its first one, in another thread."""

    def __post_init__(self) -> None:
        channels = sorted(self.planner.addresses)
        object.__setattr__(self, "brake", Brake(lambda: self.ledger.rehearse(channels, now=self.clock.now())))

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
        recording = _Recording(source=listed[0][2] if listed else "", messages=len(listed))
        await self._halving(await self._evaluate(listed), recording).run()
        return recording.whole

    async def evaluate(self, messages: Iterable[IncomingMessage]) -> list[IntakeResult]:
        """Return the results for some messages, but record nothing. A message without a terminal event has no result.

        Raises Unavailable.
        """
        return [result for _, result in await self._evaluate(messages)]

    async def _evaluate(self, messages: Iterable[IncomingMessage]) -> list[_Decided]:
        decoded = [entry for message in messages if (entry := await self._decode(*message)) is not None]
        return await self._decide_all(decoded, {})

    async def replay(self, rejected: Rejected, *, dry_run: bool = False) -> ReplayResult:
        """Process a rejected message again, with today's rules and decoder.

        If the message is not rejected again, record the result and mark the message as replayed. With `dry_run`, record
        and mark nothing. Raises Unavailable.
        """
        if not rejected.whole:
            return ReplayResult(False, f"only its first {len(rejected.body)} bytes were kept: publish it again")
        message = (rejected.headers, rejected.body, rejected.position)
        result = next(iter(await self.evaluate([message])), None)
        if isinstance(result, Rejected):
            return ReplayResult(False, result.reason)
        if not dry_run:
            recorded = await self.ingest([message])
            if recorded.rejected:
                return ReplayResult(False, recorded.rejected[0].reason)
            await self.ledger.mark_replayed(rejected.id, now=self.clock.now())
        if isinstance(result, RecordedEvent):
            return ReplayResult(True, f"{result.event.key}: {result.reason}")
        return ReplayResult(True, "today's decoder finds no terminal event in it")

    async def _process(self, batch: Batch, source: Source) -> bool:
        """Process and record a batch in chunks. Returns False if the source was stopped before the last chunk."""
        decoded = await self._decode_batch(batch)
        messages = len(batch.messages) + len(batch.undecodable) + batch.skipped
        for first in range(0, max(len(decoded), 1), CHUNK):
            if not await self._process_chunk(decoded[first : first + CHUNK], messages, source):
                return False
            messages = 0  # because the first chunk has already reported all messages of the batch
        return True

    async def _process_chunk(self, decoded: Sequence[_Decoded], messages: int, source: Source) -> bool:
        results: dict[int, IntakeResult] = {}  # by index; a retry does not decide these events again
        ordered = await _retry_until_done(lambda: self._decide_all(decoded, results), source)
        if ordered is None:
            return False
        halving = self._halving(ordered, _Recording(source="kafka", messages=messages))
        return await _retry_until_done(halving.run, source) is not None

    async def _decode_batch(self, batch: Batch) -> list[_Decoded]:
        decoded: list[_Decoded] = [self._reject(reason, (), b"", position) for position, reason in batch.undecodable]
        for message in batch.messages:
            headers = [
                (name, value or b"") for name, value in message.headers
            ]  # Kafka also has headers without a value
            entry = await self._decode(headers, message.value, batch.position(message))
            if entry is not None:
                decoded.append(entry)
        return decoded

    async def _decode(self, headers: Headers, value: bytes | None, position: str) -> _Decoded | None:
        """Decode a message. Returns None if the message has no terminal event."""
        if value is not None and len(value) > LARGE:
            return await asyncio.to_thread(self._decode_here, headers, value, position)
        return self._decode_here(headers, value, position)

    def _decode_here(self, headers: Headers, value: bytes | None, position: str) -> _Decoded | None:
        try:
            event = decode(headers, value)
        except Unreadable as error:
            return self._reject(str(error), headers, value or b"", position)
        except Exception as error:  # noqa: BLE001 - a bug with one message must not stop the other messages
            return self._internal_error(error, headers, value or b"", position)
        if event is None or not event.phase.terminal:
            return None
        span = self.tracing.intake(partial(trace_context, headers, value))
        return _TerminalEvent(event, headers, value or b"", position, span)

    async def _decide_all(
        self, decoded: Sequence[_Decoded], results: MutableMapping[int, IntakeResult]
    ) -> list[_Decided]:
        """Return each message with its result, in the order of `decoded`. Asks FlyteAdmin about several executions at the same time.

        Raises Unavailable as soon as one look-up fails. `results` maps an index in `decoded` to its result. It keeps
        the finished results, so that a retry does not decide these events again.
        """
        terminal = [entry.event for entry in decoded if isinstance(entry, _TerminalEvent)]
        references = {event.execution: event.reference_execution for event in terminal if event.reference_execution}
        try:
            async with asyncio.TaskGroup() as look_ups:
                decided_one = False
                for index, entry in enumerate(decoded):
                    if index in results:
                        continue
                    if not isinstance(entry, _TerminalEvent):
                        results[index] = entry
                    elif self._knows_enough(entry.event):
                        if decided_one:
                            await _yield_to_other_tasks()
                        results[index] = await self._decide(entry, None)
                        decided_one = True
                    else:
                        look_ups.create_task(self._look_up(index, entry, references, results))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return [(entry, results[index]) for index, entry in enumerate(decoded)]

    def _knows_enough(self, event: Event) -> bool:
        """True if the event can be decided without a question to FlyteAdmin or the ledger."""
        asks_flyte_admin = self.look_up is not None and not decides_itself(event)
        return not asks_flyte_admin and event.reference_execution is None

    async def _look_up(
        self,
        index: int,
        terminal: _TerminalEvent,
        references: Mapping[ExecutionId, ExecutionId],
        results: MutableMapping[int, IntakeResult],
    ) -> None:
        """Ask FlyteAdmin about the execution and find its origin. Decide the event, and add the result to `results`.

        After an unforeseen error, ask once more, because it may have been a bug of the connection. Raises Unavailable.
        """
        span = terminal.span.child("dispatcher.look_up")
        try:
            try:
                event, answer = await self._completed(terminal.event, references)
            except Unavailable:
                raise
            except Exception as error:
                log.warning("a look-up failed: trying once more", execution=terminal.event.key, exc_info=error)
                event, answer = await self._completed(terminal.event, references)
        except Unavailable:
            span.end(failed=True)
            raise
        except Exception as error:  # noqa: BLE001 - a bug with one execution must not stop other executions
            span.end(failed=True)
            if isinstance(error, LedgerFailed):
                await self.brake.test()
            results[index] = self._undecidable(error, terminal)
        else:
            span.end()
            results[index] = await self._decide(replace(terminal, event=event), answer)

    async def _completed(
        self, event: Event, references: Mapping[ExecutionId, ExecutionId]
    ) -> tuple[Event, AdminExecution | UnknownExecution | None]:
        """Return the event with what FlyteAdmin and the ledger know of its execution, and FlyteAdmin's answer."""
        answer = None
        if self.look_up is not None and not decides_itself(event):
            answer = await self.look_up(event.execution)
        if isinstance(answer, AdminExecution):
            event = answer.complete(event)
        if event.reference_execution is not None:
            origin = await find_origin(event.reference_execution, references, self.ledger, self.look_up)
            event = event.model_copy(update={"origin": origin})
        return event, answer

    async def _record(self, decided: Sequence[_Decided], recording: _Recording) -> None:
        """Record some messages of a batch, all or none. Raises Unavailable or LedgerFailed."""
        results = [result for _, result in decided]
        recorded = [entry for entry in results if isinstance(entry, RecordedEvent)]
        rejected = [entry for entry in results if isinstance(entry, Rejected)]
        record_spans = [entry.span.child("dispatcher.record") for entry in recorded]
        try:
            record = await self.ledger.record(recorded, rejected, now=self.clock.now())
        except (Unavailable, LedgerFailed):
            for span in record_spans:
                span.end(failed=True)
            raise
        self.on_pending(record.waiting)
        batch = recording.add(recorded, rejected, record.new)
        for (entry, is_new), record_span in zip(batch.new_or_duplicate(), record_spans, strict=True):
            record_span.end()
            verdict = entry.verdict if is_new else "duplicate"
            entry.span.end(event=entry.event.key, verdict=verdict, deliveries=len(entry.deliveries))
        _log_batch(batch)
        self.on_batch(batch)
        if record.new:
            self.brake.worked()

    def _halving(self, decided: Sequence[_Decided], recording: _Recording) -> Halving[_Decided]:
        """Return what records a batch. A message that the ledger can't write is rejected."""

        async def write(part: Sequence[_Decided]) -> None:
            await self._record(part, recording)

        async def reject(unwritable: _Decided, error: LedgerFailed) -> None:
            message, result = unwritable
            if isinstance(message, _TerminalEvent):
                message.span.end(event=message.event.key, verdict="rejected", failed=True)
                result = self._reject(
                    f"the ledger can't write it: {error}",
                    message.headers,
                    message.value,
                    message.position,
                    event=message.event.key,
                )
            await self._record([(message, result)], recording)

        return Halving(decided, write, reject, self.brake)

    async def _decide(self, terminal: _TerminalEvent, answer: AdminExecution | UnknownExecution | None) -> IntakeResult:
        """Decide which rules match the event, and plan its deliveries.

        `answer`: FlyteAdmin's answer about the execution; None if FlyteAdmin was not asked.
        """
        try:
            event = terminal.event
            decision = decide(event, self.rules(), answer)
            if not decision.verdict.decided:
                terminal.span.end(event=event.key, verdict="rejected", failed=True)
                return self._reject(
                    decision.reason, terminal.headers, terminal.value, terminal.position, event=event.key
                )
            return await self._plan(terminal, decision)
        except Exception as error:  # noqa: BLE001 - a bug with one message must not stop the other messages
            return self._undecidable(error, terminal)

    async def _plan(self, terminal: _TerminalEvent, decision: Decision) -> RecordedEvent:
        """Plan the deliveries of an event, and render their content.

        In another thread if the event is large, or if rendering waits for another process.
        """
        channels = {rule.notification.channel for rule in decision.matched}
        short = channels <= self._planned_channels and not _is_large(terminal, decision.rules)
        if short and not self.contents.waits:
            return self._plan_here(terminal, decision)
        planned = await asyncio.to_thread(self._plan_here, terminal, decision)
        self._planned_channels.update(channels)
        return planned

    def _plan_here(self, terminal: _TerminalEvent, decision: Decision) -> RecordedEvent:
        event, now = terminal.event, self.clock.now()
        disabled = decision.verdict is Verdict.DISABLED
        return RecordedEvent(
            event=event,
            position=terminal.position,
            verdict=decision.verdict,
            reason=decision.reason,
            considered=[rule.as_data() for rule in decision.considered],
            deliveries=self.contents.fill(event, self.planner.plan(event, decision.matched, now=now)),
            version=None if disabled else self.planner.new_version(event, decision.rules, now=now),
            success=None if disabled else self.planner.success(event, now=now),
            kind=type_label(terminal.headers),
            span=terminal.span,
        )

    def _undecidable(self, error: Exception, terminal: _TerminalEvent) -> Rejected:
        terminal.span.end(event=terminal.event.key, verdict="rejected", failed=True)
        return self._internal_error(error, terminal.headers, terminal.value, terminal.position, terminal.event.key)

    def _internal_error(
        self, error: Exception, headers: Headers, value: bytes, position: str, event: str | None = None
    ) -> Rejected:
        log.error("a message could not be handled", execution=event, position=position, exc_info=error)
        reason = f"internal error: {type(error).__name__}; see the log"
        return self._reject(reason, headers, value, position, event=event)

    def _reject(
        self, reason: str, headers: Headers, value: bytes, position: str, *, event: str | None = None
    ) -> Rejected:
        return Rejected(
            id=rejected_id(position, value),
            position=position,
            received_at=self.clock.now(),
            reason=reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}…",
            headers=headers,
            body=value,
            size=len(value),
            event=event,
        )


def _is_large(terminal: _TerminalEvent, rules: Iterable[Rule]) -> bool:
    """True if the event's deliveries are planned in another thread, because of their number or the size of their texts."""
    size, recipients = len(terminal.value), 0
    for rule in rules:
        size += len(rule.notification.template or "")
        recipients += len(rule.notification.recipients)
    return size > LARGE or recipients > MANY


async def _yield_to_other_tasks() -> None:
    """Let other tasks run until they have nothing to do, up to `MAX_YIELDS` iterations and `MAX_YIELD_SECONDS`.

    Deciding an event blocks the event loop while templates are rendered. Therefore workers get time to send after each
    event. They get several event-loop iterations, because a send needs several and would be slow with one per event.
    """
    began = latest = time.perf_counter()
    for _ in range(MAX_YIELDS):
        await asyncio.sleep(0)  # noqa: TID251 - yields for one event-loop iteration, measures no time
        now = time.perf_counter()
        if now - latest < IDLE_ITERATION or now - began > MAX_YIELD_SECONDS:
            return
        latest = now


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
