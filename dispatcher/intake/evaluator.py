"""Turns messages into results that can be recorded: decode, look up, decide, plan. Records nothing.

No message is lost: if a message can't be decoded or decided, its result says that it is rejected, with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import islice

import structlog

from dispatcher.clock import Clock
from dispatcher.errors import LedgerFailed, Unavailable, Unreadable
from dispatcher.flyte.decode import Headers, decode, trace_context, type_label
from dispatcher.intake.origin import LookUp, find_origin
from dispatcher.intake.source import Batch
from dispatcher.ledger import Ledger, RecordedEvent, Rejected, rejected_id
from dispatcher.ledger.brake import Brake
from dispatcher.model.delivery import Delivery
from dispatcher.model.event import Event, ExecutionId
from dispatcher.model.streak import StreakRoute
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rendering.cause import cause_of
from dispatcher.rules import AdminExecution, Decision, Rule, RuleBook, UnknownExecution, Verdict, decide, decides_itself
from dispatcher.rules.silences import CurrentSilences, SilenceBook
from dispatcher.tracing import OFF, Span, Tracing

log = structlog.get_logger(__name__)

LARGE = 64 * 1024
"""Number of bytes from which on a message is decoded, and its deliveries are planned, in another thread, so that it does
not block the event loop. The templates that its rules name count too."""
MANY = 100
"""Number of recipients from which on an event's deliveries are planned in another thread."""
MAX_REASON = 2000
"""Maximum number of characters of the reason for which a message is rejected."""

IncomingMessage = tuple[Headers, bytes | None, str]
"""A message as (headers, value, position). The position is a text that says where the message came from."""


@dataclass(frozen=True, slots=True)
class TerminalEvent:
    """A decoded message with a terminal event, for which nothing is decided yet."""

    event: Event
    headers: Headers
    value: bytes
    position: str
    span: Span


Decoded = TerminalEvent | Rejected
IntakeResult = RecordedEvent | Rejected
"""The result of processing one message."""
Evaluated = tuple[Decoded, IntakeResult]
"""A message and its result."""


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Evaluates messages from any source."""

    ledger: Ledger
    rules: Callable[[], RuleBook]
    """Returns the rules that the rule files contain now."""
    planner: Planner
    contents: Contents
    clock: Clock
    brake: Brake
    silences: CurrentSilences
    look_up: LookUp | None = None
    """Asks FlyteAdmin about an execution. None if FlyteAdmin is not configured."""
    tracing: Tracing = OFF
    _planned_channels: set[str] = field(default_factory=set)
    """The channels that have had a delivery. A channel's templates are compiled for its first one, in another thread."""

    async def evaluate(self, messages: Iterable[IncomingMessage]) -> list[Evaluated]:
        """Return the messages that have a result, with their results. Raises Unavailable."""
        decoded = [entry for message in messages if (entry := await self._decode(*message)) is not None]
        return await self.decide(decoded, {})

    async def decode(self, batch: Batch) -> list[Decoded]:
        """Return the batch's messages that need a result: those with a terminal event, and those to reject."""
        decoded: list[Decoded] = [self.reject(reason, (), b"", position) for position, reason in batch.undecodable]
        for message in batch.messages:
            headers = [(name, value or b"") for name, value in message.headers]  # Kafka has headers without a value
            entry = await self._decode(headers, message.value, batch.position(message))
            if entry is not None:
                decoded.append(entry)
        return decoded

    async def _decode(self, headers: Headers, value: bytes | None, position: str) -> Decoded | None:
        """Decode a message. Returns None if the message has no terminal event."""
        if value is not None and len(value) > LARGE:
            return await asyncio.to_thread(self._decode_here, headers, value, position)
        return self._decode_here(headers, value, position)

    def _decode_here(self, headers: Headers, value: bytes | None, position: str) -> Decoded | None:
        try:
            event = decode(headers, value)
        except Unreadable as error:
            return self.reject(str(error), headers, value or b"", position)
        except Exception as error:  # noqa: BLE001 - a bug with one message must not stop the other messages
            return self._internal_error(error, headers, value or b"", position)
        if event is None or not event.phase.terminal:
            return None
        span = self.tracing.intake(partial(trace_context, headers, value))
        return TerminalEvent(event, headers, value or b"", position, span)

    async def decide(self, decoded: Sequence[Decoded], results: MutableMapping[int, IntakeResult]) -> list[Evaluated]:
        """Return each message with its result, in the order of `decoded`. Asks FlyteAdmin about several at once.

        Raises Unavailable as soon as one look-up fails. `results` maps an index in `decoded` to its result. It keeps
        the finished results, so that a retry does not decide these events again.
        """
        terminal = [entry.event for entry in decoded if isinstance(entry, TerminalEvent)]
        silences = await self.silences.loaded()
        references = {event.execution: event.reference_execution for event in terminal if event.reference_execution}
        try:
            async with asyncio.TaskGroup() as look_ups:
                for index, entry in enumerate(decoded):
                    if index in results:
                        continue
                    if not isinstance(entry, TerminalEvent):
                        results[index] = entry
                    elif self._knows_enough(entry.event, book := self.rules(), silences):
                        await asyncio.sleep(0)  # noqa: TID251 - lets workers go on: rendering blocks the event loop
                        results[index] = await self._decide(entry, book, None)
                    else:
                        look_ups.create_task(self._look_up(index, entry, book, silences, references, results))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return [(entry, results[index]) for index, entry in enumerate(decoded)]

    def _knows_enough(self, event: Event, book: RuleBook, silences: SilenceBook) -> bool:
        """True if the event can be decided without a question to FlyteAdmin or the ledger."""
        asks_flyte_admin = self.look_up is not None and _needs_flyte_admin(event, book, silences)
        return not asks_flyte_admin and event.reference_execution is None

    async def _look_up(
        self,
        index: int,
        terminal: TerminalEvent,
        book: RuleBook,
        silences: SilenceBook,
        references: Mapping[ExecutionId, ExecutionId],
        results: MutableMapping[int, IntakeResult],
    ) -> None:
        """Ask FlyteAdmin about the execution and find its origin. Decide the event, and add the result to `results`.

        After an unforeseen error, ask once more, because it may have been a bug of the connection. Raises Unavailable.
        """
        span = terminal.span.child("dispatcher.look_up")
        try:
            try:
                event, answer = await self._completed(terminal.event, book, silences, references)
            except Unavailable:
                raise
            except Exception as error:
                log.warning("a look-up failed: trying once more", execution=terminal.event.key, exc_info=error)
                event, answer = await self._completed(terminal.event, book, silences, references)
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
            results[index] = await self._decide(replace(terminal, event=event), book, answer)

    async def _completed(
        self,
        event: Event,
        book: RuleBook,
        silences: SilenceBook,
        references: Mapping[ExecutionId, ExecutionId],
    ) -> tuple[Event, AdminExecution | UnknownExecution | None]:
        """Return the event with what FlyteAdmin and the ledger know of its execution, and FlyteAdmin's answer."""
        answer = None
        if self.look_up is not None and _needs_flyte_admin(event, book, silences):
            answer = await self.look_up(event.execution)
        if isinstance(answer, AdminExecution):
            event = answer.complete(event)
        if event.reference_execution is not None:
            origin = await find_origin(event.reference_execution, references, self.ledger, self.look_up)
            event = event.model_copy(update={"origin": origin})
        return event, answer

    async def _decide(
        self, terminal: TerminalEvent, book: RuleBook, answer: AdminExecution | UnknownExecution | None
    ) -> IntakeResult:
        """Decide which rules match the event, and plan its deliveries.

        `book`: the rules by which it was found out whether FlyteAdmin must be asked. `answer`: FlyteAdmin's answer about
        the execution; None if FlyteAdmin was not asked.
        """
        try:
            event = terminal.event
            decision = decide(event, book, answer)
            if not decision.decided:
                terminal.span.end(event=event.key, verdict="rejected", failed=True)
                return self.reject(
                    decision.full_reason, terminal.headers, terminal.value, terminal.position, event=event.key
                )
            return await self._plan(terminal, decision, book)
        except Exception as error:  # noqa: BLE001 - a bug with one message must not stop the other messages
            return self._undecidable(error, terminal)

    async def _plan(self, terminal: TerminalEvent, decision: Decision, book: RuleBook) -> RecordedEvent:
        """Plan the deliveries of an event, and render their content.

        In another thread if the event is large, or if rendering waits for another process.
        """
        waiting = [rule for route in decision.waiting for rule in route.rules]
        channels = {channel for rule in (*decision.matched, *waiting) for channel, _ in self.planner.recipients(rule)}
        short = channels <= self._planned_channels and not self._is_large(terminal, (*decision.rules, *waiting))
        if short and not self.contents.waits:
            return self._plan_here(terminal, decision, book)
        planned = await asyncio.to_thread(self._plan_here, terminal, decision, book)
        self._planned_channels.update(channels)
        return planned

    def _is_large(self, terminal: TerminalEvent, rules: Iterable[Rule]) -> bool:
        """True if the deliveries are planned in another thread, because of their number or the size of their texts."""
        size, recipients = len(terminal.value), 0
        for rule in rules:
            size += len(rule.notification.template or "")
            recipients += len(self.planner.recipients(rule))
        return size > LARGE or recipients > MANY

    def _plan_here(self, terminal: TerminalEvent, decision: Decision, book: RuleBook) -> RecordedEvent:
        event, now = terminal.event, self.clock.now()
        disabled = decision.verdict is Verdict.DISABLED
        deliveries, routes = self._deliveries(event, decision, now)
        cause = cause_of(event)
        counted = book.routes.counts_streaks and not disabled and not event.is_canary
        return RecordedEvent(
            event=event,
            position=terminal.position,
            verdict=decision.verdict,
            reason=decision.full_reason,
            considered=[rule.as_data() for rule in decision.considered],
            deliveries=deliveries,
            version=None if disabled else self.planner.new_version(event, decision.rules, now=now),
            success=None if disabled else self.planner.success(event, now=now),
            streak=self.planner.streak(event, routes, now=now) if counted else None,
            unresolved_owner=decision.owner.unresolved(event, now) if decision.owner is not None else None,
            rules_version=book.version,
            cause=cause.fingerprint,
            cause_name=cause.name,
            kind=type_label(terminal.headers),
            span=terminal.span,
        )

    def _deliveries(
        self, event: Event, decision: Decision, now: datetime
    ) -> tuple[Sequence[Delivery], Sequence[StreakRoute]]:
        """Return the deliveries of the matched rules, and the routes that wait for a streak with theirs.

        They have their content, except those that may be held (`Contents.fill`).
        """
        matched = decision.matched
        planned = [self.planner.plan(event, matched, now=now)]
        if decision.waiting:
            planned += self.planner.plan_routes(event, matched, [route.rules for route in decision.waiting], now=now)
        filled = iter(self.contents.fill(event, [delivery for several in planned for delivery in several]))
        deliveries, *of_routes = [tuple(islice(filled, len(several))) for several in planned]
        routes = [
            StreakRoute(
                name=route.name,
                streak=route.streak,
                deliveries=several,
                unresolved_owner=route.owner.unresolved(event, now) if route.owner is not None else None,
            )
            for route, several in zip(decision.waiting, of_routes, strict=True)
        ]
        return deliveries, routes

    def _undecidable(self, error: Exception, terminal: TerminalEvent) -> Rejected:
        terminal.span.end(event=terminal.event.key, verdict="rejected", failed=True)
        return self._internal_error(error, terminal.headers, terminal.value, terminal.position, terminal.event.key)

    def _internal_error(
        self, error: Exception, headers: Headers, value: bytes, position: str, event: str | None = None
    ) -> Rejected:
        log.error("a message could not be handled", execution=event, position=position, exc_info=error)
        reason = f"internal error: {type(error).__name__}; see the log"
        return self.reject(reason, headers, value, position, event=event)

    def reject(
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


def _needs_flyte_admin(event: Event, book: RuleBook, silences: SilenceBook) -> bool:
    """True if FlyteAdmin may know what decides: the rules, or facts that silences or routes test."""
    disabled = event.options is not None and event.options.disable_notifications
    return not decides_itself(event, book) or (silences.lacks_facts(event) and not disabled)
