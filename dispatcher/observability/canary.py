"""The canary: a synthetic event, sent every few minutes through the whole pipeline, to check that notifications arrive.

A canary arrives like any other event (through Kafka, if configured). Its own Options contain its only rule, with a
recipient for canaries only. One replica sends it; all replicas check whether it arrived.
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

if TYPE_CHECKING:  # every command imports the settings, but few need these modules
    from dispatcher.intake.kafka.consumer import KafkaConfig
    from dispatcher.intake.pipeline import Intake
    from dispatcher.ledger import Ledger, StoredDelivery
    from dispatcher.observability.metrics import Metrics

log = structlog.get_logger(__name__)

PROJECT, DOMAIN = "dispatcher", "canary"
"""The project and domain of canaries, in the ledger and in the console."""
POSITION = "canary"
"""The position of a canary that did not go through Kafka. Also the name of the election that chooses the replica which
sends the canary."""
POLL_INTERVAL = timedelta(milliseconds=500)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Publish = Callable[[Event], Awaitable[None]]
"""Publishes an event. Raises DispatcherError if that fails."""


class CanaryConfig(BaseModel):
    """A synthetic event that is sent every few minutes to check that notifications arrive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: str
    """Name of the configured channel that sends the canaries."""
    recipient: str
    """The recipient, written as in a rule: a mailbox or a Slack channel for canaries only."""
    every: Duration = Field(timedelta(minutes=5), ge=timedelta(seconds=10), le=timedelta(days=1))
    """How often a canary is sent."""
    within: Duration = Field(timedelta(minutes=1), ge=timedelta(seconds=1))
    """Maximum time until a canary arrives. A canary that has not arrived by then counts as missed."""
    through: Literal["kafka", "intake"] = "kafka"
    """Where canaries are published. `kafka`: to the first of `kafka.topics`, which needs write permission. `intake`:
    directly to intake; without the section `kafka`, canaries always go there."""
    readiness: bool = False
    """If true, `/readyz` fails on all replicas from a missed canary until the next canary arrives."""

    @model_validator(mode="after")
    def _one_at_a_time(self) -> Self:
        if self.within >= self.every:
            raise ValueError("within must be shorter than every: one canary at a time")
        return self


@dataclass(slots=True, kw_only=True)
class Canary:
    """Sends one canary in each period of `every`, unless another replica does, and checks whether it arrives."""

    config: CanaryConfig
    ledger: Ledger
    clock: Clock
    metrics: Metrics
    publish: Publish
    publish_miss: Publish
    """Publishes the event that notifies the fallback recipients of a missed canary. Never goes through Kafka."""
    fallback_recipients: Mapping[str, Sequence[str]]
    """Mapping from a channel to the recipients who are notified of a missed canary."""
    stopping: asyncio.Event
    missed: str | None = None
    """Why the last canary was missed; None if it arrived or none was sent yet."""

    async def run(self) -> None:
        """Send and check canaries until stopped."""
        self.metrics.add_canary(self.config.channel)
        while not await self._stopped_within(self._until_next_slot()):
            try:
                await self.send_and_check()
            except Exception as error:  # a bug in the canary must not stop the service
                log.error("no canary could be sent", exc_info=error)

    async def send_and_check(self) -> None:
        """Send this period's canary, unless another replica was elected; wait until it arrived or is missed."""
        event, deadline = self._event(self._slot()), self.clock.now() + self.config.within
        elected, problem = True, None
        try:
            elected = await self.ledger.elect(POSITION, event.occurred_at)
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
        """Return the reason for /readyz why the last canary was missed, or None."""
        return f"the last canary is missed: {self.missed}" if self.missed is not None else None

    async def _wait_for_arrival(self, event: Event, deadline: datetime) -> datetime | str:
        """When the canary arrived, or the reason why it did not arrive before the deadline."""
        while True:
            arrival = await self._arrival(event)
            if isinstance(arrival, datetime) or arrival.startswith(_GIVEN_UP) or self.stopping.is_set():
                return arrival
            if self.clock.now() >= deadline:
                return arrival
            await self.clock.sleep(POLL_INTERVAL)

    async def _arrival(self, event: Event) -> datetime | str:
        """When the canary arrived, or the reason why it has not arrived yet."""
        from dispatcher.ledger import DeliveryFilter  # noqa: PLC0415 - only the running service needs it

        try:
            found = await self.ledger.find(DeliveryFilter(execution=str(event.execution)), limit=10)
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
        # If the canary is dead, the fallback recipients are notified already, as for any other dead delivery.
        if first and self.fallback_recipients and not reason.startswith(_GIVEN_UP):
            try:
                await self.publish_miss(self._miss_event(event, reason))
            except DispatcherError as error:
                log.error("the fallback recipients could not be notified of the missed canary", reason=str(error))

    def _event(self, slot: datetime) -> Event:
        """The canary of a period, named after its scheduled time."""
        rule = Notification(phases=(Phase.SUCCEEDED,), channel=self.config.channel, recipients=(self.config.recipient,))
        return Event(
            execution=ExecutionId(project=PROJECT, domain=DOMAIN, name=f"{slot:%Y%m%dT%H%M%SZ}"),
            phase=Phase.SUCCEEDED,
            occurred_at=slot,
            options=Options(notifications=(rule,)),
        )

    def _miss_event(self, event: Event, reason: str) -> Event:
        """The FAILED event whose rules notify the fallback recipients of a missed canary."""
        rules = tuple(
            Notification(phases=(Phase.FAILED,), channel=channel, recipients=tuple(recipients))
            for channel, recipients in self.fallback_recipients.items()
        )
        name = f"{event.execution.name}-missed"
        message = (
            f"The canary {event.execution} did not arrive over {self.config.channel} "
            f"within {self.config.within.total_seconds():.0f} s: {reason}"
        )
        return Event(
            execution=ExecutionId(project=PROJECT, domain=DOMAIN, name=name),
            phase=Phase.FAILED,
            occurred_at=self.clock.now(),
            error=ExecutionError(code="CanaryMissed", message=message, kind="SYSTEM"),
            options=Options(notifications=rules),
        )

    def _slot(self) -> datetime:
        """The start of the current period. It is the same on all replicas, and is the scheduled time of the canary."""
        now = self.clock.now()
        return now - (now - _EPOCH) % self.config.every

    def _until_next_slot(self) -> timedelta:
        return self._slot() + self.config.every - self.clock.now()

    async def _stopped_within(self, duration: timedelta) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(duration.total_seconds()):
                await self.stopping.wait()
        return self.stopping.is_set()


_GIVEN_UP = "given up: "


def _arrival(stored: Sequence[StoredDelivery]) -> datetime | str:
    """When a canary's first sent delivery arrived, or the reason why none has arrived."""
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
    """A function that publishes an event to the first of `kafka.topics`."""

    async def publish(event: Event) -> None:
        from dispatcher.intake.kafka.consumer import KafkaPublisher  # noqa: PLC0415 - only the running service needs it

        message = write(event, Format.NATIVE)
        async with KafkaPublisher(config) as publisher:
            await publisher.send(config.topics[0], message.value, key=message.key, headers=message.headers)

    return publish


def through_intake(intake: Intake) -> Publish:
    """A function that gives an event directly to intake."""

    async def publish(event: Event) -> None:
        message = write(event, Format.NATIVE)
        await intake.ingest([(message.headers, message.value, POSITION)])

    return publish
