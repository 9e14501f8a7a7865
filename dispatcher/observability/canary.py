"""A synthetic event, sent the whole way every few minutes, to find out whether anybody can be told.

It comes in like any other (through Kafka, where that is configured), is decided by its own Options, and delivered to a
recipient who is there for that. One of the replicas sends it; all of them look whether it has arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dispatcher.clock import Clock
from dispatcher.errors import DispatcherError
from dispatcher.flyte.encode import Format, write
from dispatcher.model.delivery import State
from dispatcher.model.event import Event, ExecutionError, ExecutionId, Options
from dispatcher.model.notification import Notification
from dispatcher.model.phase import Phase
from dispatcher.parsing.duration import Duration

if TYPE_CHECKING:  # every command reads the settings, and few need these
    from dispatcher.intake.kafka.consumer import KafkaConfig
    from dispatcher.intake.pipeline import Intake
    from dispatcher.ledger import Ledger, StoredDelivery
    from dispatcher.observability.metrics import Metrics

log = structlog.get_logger(__name__)

PROJECT, DOMAIN = "dispatcher", "canary"
"""Where canaries are found in the ledger and in the console."""
POSITION = "canary"
"""Where one came from that didn't come through Kafka, as the ledger keeps it."""
GLANCE = timedelta(milliseconds=500)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Release = Callable[[Event], Awaitable[None]]
"""Sends an event on its way. Raises DispatcherError where it couldn't be."""


class CanaryConfig(BaseModel):
    """What is sent every few minutes to see whether it arrives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: str
    """One of the configured channels."""
    recipient: str
    """Who gets it, as a rule would write it: a mailbox or a Slack channel of its own."""
    every: Duration = Field(timedelta(minutes=5), ge=timedelta(seconds=10), le=timedelta(days=1))
    within: Duration = Field(timedelta(minutes=1), ge=timedelta(seconds=1))
    """It has to have arrived by then."""
    through: Literal["kafka", "intake"] = "kafka"
    """Where it begins: on the first of `kafka.topics`, which takes the right to write; or behind it, in intake. Without
    the section `kafka` it is always intake."""
    readiness: bool = False
    """`/readyz` is red from a canary that is missed to the next that arrives: on all replicas at once."""

    @model_validator(mode="after")
    def _one_at_a_time(self) -> Self:
        if self.within >= self.every:
            raise ValueError("within must be shorter than every: one canary at a time")
        return self


@dataclass(slots=True, kw_only=True)
class Canary:
    """Sends one in each slot of `every`, if no other replica has, and judges it."""

    config: CanaryConfig
    ledger: Ledger
    clock: Clock
    metrics: Metrics
    release: Release
    alarm: Release
    """Takes what tells the fallback recipients: by the shortest way."""
    fallbacks: Mapping[str, Sequence[str]]
    """By channel: who is told of a canary that is missed."""
    stopping: asyncio.Event
    missed: str | None = None
    """Why the last one is missed; None where it has arrived, or is the first."""

    async def run(self) -> None:
        """Send and judge until stopped."""
        self.metrics.canary(self.config.channel)
        while not await self._stopped_within(self._to_next_slot()):
            try:
                await self.fly()
            except Exception as error:  # a bug in here must not stop what is delivered meanwhile
                log.error("no canary could be sent", exc_info=error)

    async def fly(self) -> None:
        """Send this slot's canary, or leave that to another replica; wait for it, and say how it went."""
        event, deadline = self._event(self._slot()), self.clock.now() + self.config.within
        ours, trouble = True, None
        try:
            ours = await self.ledger.take_turn(POSITION, event.occurred_at)
            if ours:
                await self.release(event)
        except DispatcherError as error:
            trouble = str(error)
        ended = await self._arrival(event, deadline)
        if self.stopping.is_set():
            return
        if isinstance(ended, datetime):
            self._arrived(event, ended, ours=ours)
        else:
            await self._lost(event, trouble or ended, ours=ours)

    async def trouble(self) -> str | None:
        """For the readiness page."""
        return f"the last canary is missed: {self.missed}" if self.missed is not None else None

    async def _arrival(self, event: Event, deadline: datetime) -> datetime | str:
        """When it arrived; or why it didn't by then."""
        while True:
            why = await self._state(event)
            if isinstance(why, datetime) or why.startswith(_GIVEN_UP) or self.stopping.is_set():
                return why
            if self.clock.now() >= deadline:
                return why
            await self.clock.sleep(GLANCE)

    async def _state(self, event: Event) -> datetime | str:
        from dispatcher.ledger import DeliveryFilter  # noqa: PLC0415 - see above

        try:
            found = await self.ledger.find(DeliveryFilter(execution=str(event.execution)), limit=10)
        except DispatcherError as error:
            return str(error)
        return _judged(found)

    def _arrived(self, event: Event, at: datetime, *, ours: bool) -> None:
        if self.missed is not None:
            log.warning("canaries arrive again", execution=event.key, channel=self.config.channel)
        self.missed = None
        if ours:
            self.metrics.canary_arrived(self.config.channel, at - event.occurred_at, at=at)

    async def _lost(self, event: Event, reason: str, *, ours: bool) -> None:
        first, self.missed = self.missed is None, reason
        log.error("canary missed", execution=event.key, channel=self.config.channel, reason=reason)
        if not ours:
            return
        self.metrics.canary_missed(self.config.channel)
        if first and self.fallbacks and not reason.startswith(_GIVEN_UP):  # of a dead one they are told anyhow
            try:
                await self.alarm(self._call_for_help(event, reason))
            except DispatcherError as error:
                log.error("nobody could be told of the canary", reason=str(error))

    def _event(self, slot: datetime) -> Event:
        told = Notification(phases=(Phase.SUCCEEDED,), channel=self.config.channel, recipients=(self.config.recipient,))
        return Event(
            execution=ExecutionId(project=PROJECT, domain=DOMAIN, name=f"{slot:%Y%m%dT%H%M%SZ}"),
            phase=Phase.SUCCEEDED,
            occurred_at=slot,
            options=Options(notifications=(told,)),
        )

    def _call_for_help(self, event: Event, reason: str) -> Event:
        told = tuple(
            Notification(phases=(Phase.FAILED,), channel=channel, recipients=tuple(recipients))
            for channel, recipients in self.fallbacks.items()
        )
        name = f"{event.execution.name}-missed"
        message = (
            f"The canary {event.execution} did not arrive by {self.config.channel} "
            f"within {self.config.within.total_seconds():.0f} s: {reason}"
        )
        return Event(
            execution=ExecutionId(project=PROJECT, domain=DOMAIN, name=name),
            phase=Phase.FAILED,
            occurred_at=self.clock.now(),
            error=ExecutionError(code="CanaryMissed", message=message, kind="SYSTEM"),
            options=Options(notifications=told),
        )

    def _slot(self) -> datetime:
        now = self.clock.now()
        return now - (now - _EPOCH) % self.config.every

    def _to_next_slot(self) -> timedelta:
        return self._slot() + self.config.every - self.clock.now()

    async def _stopped_within(self, span: timedelta) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(span.total_seconds()):
                await self.stopping.wait()
        return self.stopping.is_set()


_GIVEN_UP = "given up: "


def _judged(found: Sequence[StoredDelivery]) -> datetime | str:
    """When one of a canary's deliveries arrived; or how they stand."""
    for filed in found:
        if filed.delivery.state is State.SENT and filed.settled_at is not None:
            return filed.settled_at
    waiting = [filed.delivery for filed in found if filed.delivery.state is State.WAITING]
    if waiting:
        return f"it waits: {waiting[0].reason or 'it was not tried yet'}"
    if found:
        return f"{_GIVEN_UP}{found[0].delivery.reason}"
    return "it is not in the ledger: events don't reach us"


def through_kafka(config: KafkaConfig) -> Release:
    """Publishes to the first topic."""

    async def release(event: Event) -> None:
        from dispatcher.intake.kafka.consumer import KafkaPublisher  # noqa: PLC0415 - see above

        message = write(event, Format.NATIVE)
        async with KafkaPublisher(config) as publisher:
            await publisher.send(config.topics[0], message.value, key=message.key, headers=message.headers)

    return release


def through_intake(intake: Intake) -> Release:
    """Goes straight to intake."""

    async def release(event: Event) -> None:
        message = write(event, Format.NATIVE)
        await intake.take([(message.headers, message.value, POSITION)])

    return release
