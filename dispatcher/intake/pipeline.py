"""From messages to the ledger: understand, look up, decide, plan, record; only then commit.

Nothing is silently skipped: what can't be understood is recorded with the reason, and the next goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

import structlog

from dispatcher.clock import Clock
from dispatcher.errors import FlyteAdminUnavailable, Unavailable, Unreadable
from dispatcher.flyte.decode import Headers, decode, kind_of, trace_context
from dispatcher.intake.source import Batch, Source
from dispatcher.ledger import DirectDispatch, Ledger, RecordedEvent, Rejected, rejected_id
from dispatcher.model.delivery import Delivery
from dispatcher.model.event import Event, ExecutionId
from dispatcher.planning.planner import Planner
from dispatcher.rules import AdminExecution, RuleBook, UnknownExecution, Verdict, decide, decides_itself
from dispatcher.tracing import OFF, Span, Tracing

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch came to."""

    recorded: Sequence[RecordedEvent] = ()
    rejected: Sequence[Rejected] = ()
    new: frozenset[str] = frozenset()
    """The keys of the events that were not in the ledger before."""
    source: str = ""
    """`kafka`, or the position that its messages share: `http`, `reconcile`, `canary`."""
    messages: int = 0
    """How many it had, of every type."""

    def new_or_duplicate(self) -> Iterator[tuple[RecordedEvent, bool]]:
        """Each of the recorded, and whether it was new: of several copies in the batch the first alone is."""
        new = set(self.new)
        for entry in self.recorded:
            key = entry.event.key
            yield entry, key in new
            new.discard(key)


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What came of trying a rejected message again."""

    understood: bool
    says: str
    """What it was understood as, or why it was not."""


PAUSE = timedelta(seconds=1)
"""How long a batch rests before the ledger is tried again, and at first before FlyteAdmin is."""
PORTION = 100
"""So many entries of a batch are recorded at once: no courier waits long for its own transaction, and the first are on
their way while the others are decided."""
TURNS = 10
"""Turns of the event loop that all else has before the next event is weighed; a send takes a few."""
A_WHILE = 0.02
"""Seconds after which there is no further turn: however much is due, intake goes on."""
IDLE_TURN = 0.0001
"""Seconds; in a turn that is shorter hardly anybody had anything to do."""
LONGEST_PAUSE = timedelta(seconds=15)
"""The rests before FlyteAdmin grow up to this: whoever checks passwords locks out those who show a wrong one often."""

IncomingMessage = tuple[Headers, bytes | None, str]
"""A message's headers and value, and where it came from, in words."""
LookUp = Callable[[ExecutionId], Awaitable[AdminExecution | UnknownExecution]]
"""What FlyteAdmin says of an execution. Raises FlyteAdminUnavailable."""
_Done = TypeVar("_Done")


@dataclass(frozen=True, slots=True)
class _Ended:
    """A message that tells of an execution's end, understood and not yet decided."""

    event: Event
    headers: Headers
    value: bytes
    position: str
    span: Span


_Read = _Ended | Rejected
Entry = RecordedEvent | Rejected
"""What a message comes to."""


async def _no_offers() -> Mapping[str, DirectDispatch]:
    return {}


@dataclass(frozen=True, slots=True)
class Intake:
    """The way from messages to the ledger, the same for every source."""

    ledger: Ledger
    rules: Callable[[], RuleBook]
    """The launch plans' rules as they stand now."""
    planner: Planner
    clock: Clock
    offers: Callable[[], Awaitable[Mapping[str, DirectDispatch]]] = _no_offers
    """Couriers' free hands, by channel, for what is recorded next: they go to the ledger before anything else is awaited."""
    owing: Callable[[Sequence[Delivery]], None] = lambda _: None
    """Told what is owed and nobody has taken: couriers may have work."""
    recorded: Callable[[BatchResult], None] = lambda _: None
    """Told of each batch that is in the ledger."""
    look_up: LookUp | None = None
    """Asks FlyteAdmin; None where rules come from events and files alone."""
    tracing: Tracing = OFF

    async def run(self, source: Source) -> None:
        """Take batches until the source ends.

        While FlyteAdmin or the ledger is away a batch waits, and so does the source.
        """
        async with aclosing(source.batches()) as batches:
            async for batch in batches:
                if not await self._pass_on(batch, source):
                    return
                await batch.commit()

    async def take(self, messages: Iterable[IncomingMessage]) -> BatchResult:
        """Understand, look up, decide, plan and record some messages.

        Raises Unavailable; nothing is then recorded, and the same messages may be brought again.
        """
        brought = list(messages)
        entries = await self.understand(brought)
        return await self._record(entries, source=brought[0][2] if brought else "", messages=len(brought))

    async def understand(self, messages: Iterable[IncomingMessage]) -> list[Entry]:
        """What messages come to; nothing where one is no event of ours, or the execution goes on.

        Raises Unavailable.
        """
        read = [entry for message in messages if (entry := self._read(*message)) is not None]
        return await self._decided(read, {})

    async def try_again(self, refused: Rejected, *, dry_run: bool = False) -> ReplayResult:
        """Try a rejected message with the rules and the reading of today. Raises Unavailable.

        What is understood now is recorded, unless `dry_run`, and the message noted as replayed.
        """
        if not refused.whole:
            return ReplayResult(False, f"only its first {len(refused.body)} bytes were kept: publish it again")
        message = (refused.headers, refused.body, refused.position)
        entry = next(iter(await self.understand([message])), None)
        if isinstance(entry, Rejected):
            return ReplayResult(False, entry.reason)
        if not dry_run:
            await self.take([message])
            await self.ledger.replayed(refused.id, now=self.clock.now())
        if isinstance(entry, RecordedEvent):
            return ReplayResult(True, f"{entry.event.key}: {entry.reason}")
        return ReplayResult(True, "no end of an execution, by today's reading")

    async def _pass_on(self, batch: Batch, source: Source) -> bool:
        """Bring a batch into the ledger; False where we were stopped before it was there."""
        read = self._glanced(batch)
        messages = len(batch.messages) + len(batch.undecodable) + batch.foreign
        for first in range(0, max(len(read), 1), PORTION):
            if not await self._pass_some_on(read[first : first + PORTION], messages, source):
                return False
            messages = 0  # the first portion stands for all of them
        return True

    async def _pass_some_on(self, read: Sequence[_Read], messages: int, source: Source) -> bool:
        decided: dict[int, Entry] = {}  # what was answered is not asked again, however long the rest takes
        entries = await _until_done(lambda: self._decided(read, decided), source)
        if entries is None:
            return False
        record = partial(self._record, entries, source="kafka", messages=messages)
        return await _until_done(record, source) is not None

    def _glanced(self, batch: Batch) -> list[_Read]:
        read: list[_Read] = [self._reject(reason, (), b"", position) for position, reason in batch.undecodable]
        for message in batch.messages:
            entry = self._read(message.headers, message.value, batch.position(message))
            if entry is not None:
                read.append(entry)
        return read

    def _read(self, headers: Headers, value: bytes | None, position: str) -> _Read | None:
        try:
            event = decode(headers, value)
        except Unreadable as error:
            return self._reject(str(error), headers, value or b"", position)
        except Exception as error:  # noqa: BLE001 - one message that trips over a bug of ours must not hold up the others
            return self._trip_over(error, headers, value or b"", position)
        if event is None or not event.phase.terminal:
            return None
        span = self.tracing.intake(partial(trace_context, headers, value))
        return _Ended(event, headers, value or b"", position, span)

    async def _decided(self, read: Sequence[_Read], decided: MutableMapping[int, Entry]) -> list[Entry]:
        """The entries, in the order of what was read; what an event alone doesn't settle is looked up side by side.

        Raises Unavailable as soon as one can't be looked up; `decided` keeps the others, by their place.
        """
        try:
            async with asyncio.TaskGroup() as looking_up:
                weighed = False
                for at, entry in enumerate(read):
                    if at in decided:
                        continue
                    if not isinstance(entry, _Ended):
                        decided[at] = entry
                    elif self.look_up is None or decides_itself(entry.event):
                        if weighed:
                            await _others_first()
                        decided[at] = self._weigh(entry, None)
                        weighed = True
                    else:
                        looking_up.create_task(self._look_up(at, entry, self.look_up, decided))
        except ExceptionGroup as away:
            raise away.exceptions[0] from None
        return [decided[at] for at in range(len(read))]

    async def _look_up(self, at: int, ended: _Ended, look_up: LookUp, decided: MutableMapping[int, Entry]) -> None:
        looking = ended.span.part("dispatcher.look_up")
        try:
            answer = await look_up(ended.event.execution)
        except Unavailable:
            looking.end(failed=True)
            raise
        except Exception as error:  # noqa: BLE001 - one execution that trips over a bug of ours must not hold up the others
            looking.end(failed=True)
            decided[at] = self._stumble(error, ended)
        else:
            looking.end()
            decided[at] = self._weigh(ended, answer)

    async def _record(self, entries: Sequence[Entry], *, source: str, messages: int) -> BatchResult:
        recorded = [entry for entry in entries if isinstance(entry, RecordedEvent)]
        rejected = [entry for entry in entries if isinstance(entry, Rejected)]
        recording = [entry.span.part("dispatcher.record") for entry in recorded]
        owes = any(entry.deliveries or entry.version or entry.resolution for entry in recorded)
        offers = await self.offers() if owes else {}
        written = await self.ledger.record(recorded, rejected, now=self.clock.now(), offers=offers)
        self.owing(written.left)
        heard = BatchResult(recorded, rejected, written.new, source, messages)
        for (entry, is_new), part in zip(heard.new_or_duplicate(), recording, strict=True):
            part.end()
            verdict = entry.verdict if is_new else "duplicate"
            entry.span.end(event=entry.event.key, verdict=verdict, deliveries=len(entry.deliveries))
        _tell(heard)
        self.recorded(heard)
        return heard

    def _weigh(self, ended: _Ended, answer: AdminExecution | UnknownExecution | None) -> Entry:
        try:
            event = answer.complete(ended.event) if isinstance(answer, AdminExecution) else ended.event
            decision = decide(event, self.rules(), answer)
            if not decision.verdict.known:
                ended.span.end(event=event.key, verdict="rejected", failed=True)
                return self._reject(decision.reason, ended.headers, ended.value, ended.position, event=event.key)
            now = self.clock.now()
            silenced = decision.verdict is Verdict.DISABLED
            return RecordedEvent(
                event=event,
                position=ended.position,
                verdict=decision.verdict,
                reason=decision.reason,
                considered=[look.as_data() for look in decision.considered],
                deliveries=self.planner.plan(event, decision.matched, now=now),
                version=None if silenced else self.planner.version(event, decision.rules, now=now),
                resolution=None if silenced else self.planner.resolution(event, now=now),
                kind=kind_of(ended.headers),
                span=ended.span,
            )
        except Exception as error:  # noqa: BLE001 - one message that trips over a bug of ours must not hold up the others
            return self._stumble(error, ended)

    def _stumble(self, error: Exception, ended: _Ended) -> Rejected:
        ended.span.end(event=ended.event.key, verdict="rejected", failed=True)
        return self._trip_over(error, ended.headers, ended.value, ended.position, ended.event.key)

    def _trip_over(
        self, error: Exception, headers: Headers, value: bytes, position: str, event: str | None = None
    ) -> Rejected:
        log.error("a message could not be handled", execution=event, position=position, exc_info=error)
        return self._reject(f"internal error: {type(error).__name__}; see the log", headers, value, position)

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


async def _others_first() -> None:
    """Let what is on its way go on until it waits for something, `TURNS` turns of the loop and `A_WHILE` at most.

    Rendering takes a while, and what is due goes out meanwhile: most of a send at a time, for in turns with rendering it
    takes longer.
    """
    began = latest = time.perf_counter()
    for _ in range(TURNS):
        await asyncio.sleep(0)  # noqa: TID251 - a turn is the loop's own measure
        now = time.perf_counter()
        if now - latest < IDLE_TURN or now - began > A_WHILE:
            return
        latest = now


async def _until_done(step: Callable[[], Awaitable[_Done]], source: Source) -> _Done | None:
    """Try a step until what it needs is there; None where the source was stopped first."""
    pause = PAUSE
    while True:
        try:
            return await step()
        except FlyteAdminUnavailable as error:
            log.warning("waiting for FlyteAdmin", reason=str(error))
            rest, pause = pause, min(pause * 2, LONGEST_PAUSE)
        except Unavailable as error:
            log.warning("waiting for the ledger", reason=str(error))
            rest = PAUSE
        if not await source.wait(rest):
            return None


def _tell(heard: BatchResult) -> None:
    for entry, new in heard.new_or_duplicate():
        if new:
            log.info(
                "recorded",
                execution=entry.event.key,
                verdict=entry.verdict,
                reason=entry.reason,
                deliveries=len(entry.deliveries),
                **entry.span.named,
            )
    for refused in heard.rejected:
        log.warning(
            "rejected", id=refused.id, position=refused.position, execution=refused.event, reason=refused.reason
        )
