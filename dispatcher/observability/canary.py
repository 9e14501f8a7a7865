"""Sends canaries: synthetic events that go through the whole pipeline, to check that notifications arrive.

A canary enters like any other event (through Kafka, if Kafka is configured). Its only rule is in its own Options and
names a recipient that is used for canaries only. One replica sends the canary; all replicas check whether it arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dispatcher.clock import Clock, is_set_within
from dispatcher.errors import DispatcherError
from dispatcher.flyte.encode import Format, write
from dispatcher.model.delivery import State
from dispatcher.model.event import CANARY_DOMAIN, CANARY_PROJECT, Event, ExecutionError, ExecutionId, Options
from dispatcher.model.notification import Notification
from dispatcher.model.phase import Phase
from dispatcher.parsing.duration import Duration

if TYPE_CHECKING:  # for types only: every command imports this file for its settings, and few need these modules
    from dispatcher.intake.kafka.config import KafkaConfig
    from dispatcher.intake.pipeline import Intake
    from dispatcher.ledger import Ledger, StoredDelivery
    from dispatcher.observability.metrics import Metrics

log = structlog.get_logger(__name__)

POSITION = "canary"
"""The position that the ledger stores for a canary that did not go through Kafka. This text is also the name of an
election: the elected replica sends the canary."""
POLL_INTERVAL = timedelta(milliseconds=500)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Publish = Callable[[Event], Awaitable[None]]
"""Function that publishes an event. Raises DispatcherError if the event can't be published."""


class CanaryConfig(BaseModel):
    """A synthetic event that is sent every few minutes to check that notifications arrive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: str
    """Name of the configured channel that sends the canaries."""
    recipient: str
    """The recipient of the canaries, written as in a rule: a mailbox or a Slack channel that is used for canaries
    only."""
    every: Duration = Field(timedelta(minutes=5), ge=timedelta(seconds=10), le=timedelta(days=1))
    """How often a canary is sent."""
    within: Duration = Field(timedelta(minutes=1), ge=timedelta(seconds=1))
    """Maximum time from sending a canary until it arrives. After this time, a canary that has not arrived counts as
    missed."""
    through: Literal["kafka", "intake"] = "kafka"
    """Where canaries are published. `kafka`: to the first topic in `kafka.topics`; the dispatcher needs permission to
    write to this topic. `intake`: directly to intake. Without the section `kafka`, canaries always go directly to
    intake."""
    readiness: bool = False
    """If true, `/readyz` fails on all replicas after a missed canary, until a canary arrives again."""

    @model_validator(mode="after")
    def _one_at_a_time(self) -> Self:
        if self.within >= self.every:
            raise ValueError("within must be shorter than every: one canary at a time")
        return self


@dataclass(slots=True, kw_only=True)
class Canary:
    """Sends one canary in each period of length `every`, unless another replica sends it, and checks whether the canary
    arrives.
    """

    config: CanaryConfig
    ledger: Ledger
    clock: Clock
    metrics: Metrics
    publish: Publish
    publish_miss: Publish
    """Publishes the event that notifies the fallback recipients of a missed canary. This event never goes through
    Kafka."""
    fallback_recipients: Sequence[str]
    """The contacts that are notified of a missed canary."""
    stopping: asyncio.Event
    missed: str | None = None
    """Why the last canary was missed; None if the canary arrived or no canary was sent yet."""

    async def run(self) -> None:
        """Send and check canaries until stopped."""
        self.metrics.add_canary(self.config.channel)
        while not await is_set_within(self.stopping, self._until_next_slot().total_seconds()):
            await self.send_and_check()

    async def send_and_check(self) -> None:
        """Send this period's canary, unless another replica was elected to send it. Then wait until the canary arrives
        or counts as missed.
        """
        event, deadline = self._event(self._slot()), self.clock.now() + self.config.within
        elected, problem = True, None
        try:
            elected = await self.ledger.checkpoints.elect(POSITION, event.occurred_at)
            if elected:
                await self.publish(event)
        except DispatcherError as error:
            problem = str(error)
        arrival = await self._wait_for_arrival(event, deadline)
        if self.stopping.is_set():
            return
        if isinstance(arrival, datetime):
            self._record_arrival(event, arrival, elected=elected)
        else:
            await self._record_miss(event, problem or arrival, elected=elected)

    async def unready_reason(self) -> str | None:
        """Return a sentence for /readyz that says why the last canary was missed; None if it was not missed."""
        return f"the last canary is missed: {self.missed}" if self.missed is not None else None

    async def _wait_for_arrival(self, event: Event, deadline: datetime) -> datetime | str:
        """Return when the canary arrived, or the reason why it did not arrive before the deadline."""
        while True:
            arrival = await self._arrival(event)
            if isinstance(arrival, datetime) or arrival.startswith(_GIVEN_UP) or self.stopping.is_set():
                return arrival
            if self.clock.now() >= deadline:
                return arrival
            await self.clock.sleep(POLL_INTERVAL)

    async def _arrival(self, event: Event) -> datetime | str:
        """Return when the canary arrived, or the reason why it has not arrived yet."""
        from dispatcher.ledger import Filter  # noqa: PLC0415 - only the running service needs the ledger

        try:
            found = await self.ledger.history.find(Filter(execution=str(event.execution)), limit=10)
        except DispatcherError as error:
            return str(error)
        return _arrival(found)

    def _record_arrival(self, event: Event, at: datetime, *, elected: bool) -> None:
        if self.missed is not None:
            log.warning("canaries arrive again", execution=event.key, channel=self.config.channel)
        self.missed = None
        if elected:
            self.metrics.canary_arrived(self.config.channel, at - event.occurred_at, at=at)

    async def _record_miss(self, event: Event, reason: str, *, elected: bool) -> None:
        first, self.missed = self.missed is None, reason
        log.error("canary missed", execution=event.key, channel=self.config.channel, reason=reason)
        if not elected:
            return
        self.metrics.canary_missed(self.config.channel)
        # If the canary's delivery is dead, the fallback recipients got the usual notice about a dead delivery already.
        if first and self.fallback_recipients and not reason.startswith(_GIVEN_UP):
            try:
                await self.publish_miss(self._miss_event(event, reason))
            except DispatcherError as error:
                log.error("the fallback recipients could not be notified of the missed canary", reason=str(error))

    def _event(self, slot: datetime) -> Event:
        """Return the canary whose scheduled time is `slot`. This time is also the name of the canary's execution."""
        rule = Notification(phases=(Phase.SUCCEEDED,), channel=self.config.channel, recipients=(self.config.recipient,))
        return Event(
            execution=ExecutionId(project=CANARY_PROJECT, domain=CANARY_DOMAIN, name=f"{slot:%Y%m%dT%H%M%SZ}"),
            phase=Phase.SUCCEEDED,
            occurred_at=slot,
            options=Options(notifications=(rule,)),
        )

    def _miss_event(self, event: Event, reason: str) -> Event:
        """Return a FAILED event that reports the missed canary. Its rule notifies the fallback recipients."""
        rule = Notification(
            phases=(Phase.FAILED,), channel=self.config.channel, recipients=tuple(self.fallback_recipients)
        )
        name = f"{event.execution.name}-missed"
        message = (
            f"The canary {event.execution} did not arrive over {self.config.channel} "
            f"within {self.config.within.total_seconds():.0f} s: {reason}"
        )
        return Event(
            execution=ExecutionId(project=CANARY_PROJECT, domain=CANARY_DOMAIN, name=name),
            phase=Phase.FAILED,
            occurred_at=self.clock.now(),
            error=ExecutionError(code="CanaryMissed", message=message, kind="SYSTEM"),
            options=Options(notifications=(rule,)),
        )

    def _slot(self) -> datetime:
        """Return the start of the current period, which is the scheduled time of its canary. It is the same on all
        replicas.
        """
        now = self.clock.now()
        return now - (now - _EPOCH) % self.config.every

    def _until_next_slot(self) -> timedelta:
        return self._slot() + self.config.every - self.clock.now()


_GIVEN_UP = "given up: "


def _arrival(stored: Sequence[StoredDelivery]) -> datetime | str:
    """Return when the provider accepted a canary's delivery, or the reason why no delivery is sent."""
    for one in stored:
        if one.delivery.state is State.SENT and one.settled_at is not None:
            return one.settled_at
    waiting = [one.delivery for one in stored if one.delivery.state is State.WAITING]
    if waiting:
        return f"it waits: {waiting[0].reason or 'it was not tried yet'}"
    if stored:
        return f"{_GIVEN_UP}{stored[0].delivery.reason}"
    return "it is not in the ledger: events don't reach the dispatcher"


def through_kafka(config: KafkaConfig) -> Publish:
    """Return a function that publishes an event to the first topic in `kafka.topics`."""

    async def publish(event: Event) -> None:
        from dispatcher.intake.kafka.publisher import KafkaPublisher  # noqa: PLC0415 - only the service needs Kafka

        message = write(event, Format.NATIVE)
        async with KafkaPublisher(config) as publisher:
            await publisher.send(config.topics[0], message.value, key=message.key, headers=message.headers)

    return publish


def through_intake(intake: Intake) -> Publish:
    """Return a function that passes an event directly to intake, without Kafka."""

    async def publish(event: Event) -> None:
        message = write(event, Format.NATIVE)
        await intake.ingest([(message.headers, message.value, POSITION)])

    return publish
