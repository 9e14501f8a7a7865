"""The parts of one replica: made out of the settings, and connected with each other."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from channels.contract import Channel
from channels.registry import CHANNEL_TYPES
from dispatcher.clock import Clock
from dispatcher.config.settings import Settings
from dispatcher.delivering.options import WorkerOptions
from dispatcher.delivering.releaser import Releaser
from dispatcher.delivering.worker import DeliveryWorker
from dispatcher.flyte.decode import is_other_type
from dispatcher.intake.pipeline import BatchResult, Intake
from dispatcher.ledger import Ledger
from dispatcher.ledger.brake import Brake
from dispatcher.model.delivery import Delivery
from dispatcher.model.replica import worker_id
from dispatcher.observability.canary import Canary, through_intake, through_kafka
from dispatcher.observability.metrics import Metrics
from dispatcher.observability.watchdog import ProgressMonitor
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rules.files import RuleFiles
from dispatcher.runtime.wiring import (
    configured_flyte_admin,
    make_contents,
    make_planner,
    make_rule_files,
    open_channels,
)
from dispatcher.tracing import Tracing, open_tracing

if TYPE_CHECKING:  # imported for types only, because their libraries are slow to import, or optional
    from dispatcher.flyte.admin.client import FlyteAdmin
    from dispatcher.intake.kafka.consumer import KafkaSource


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one replica. None is started."""

    replica: str
    """The replica's name, `HOST:PID`."""
    ledger: Ledger
    channels: Mapping[str, Channel]
    rules: RuleFiles
    admin: FlyteAdmin | None
    workers: Sequence[DeliveryWorker]
    releaser: Releaser
    intake: Intake
    source: KafkaSource | None
    canary: Canary | None
    progress_monitor: ProgressMonitor

    @property
    def brakes(self) -> Mapping[str, Brake]:
        """Mapping from a component's name to its brake."""
        return {"intake": self.intake.brake} | {f"worker {one.name}": one.brake for one in self.workers}


@dataclass(frozen=True, slots=True)
class Wiring:
    """Makes the parts of one replica."""

    settings: Settings
    clock: Clock
    rng: Random
    metrics: Metrics
    stopping: asyncio.Event
    """When this is set, all components end."""
    on_batch: Callable[[BatchResult], None]
    """Called with the result of each batch after the batch was recorded."""

    @asynccontextmanager
    async def parts(self) -> AsyncIterator[Parts]:
        """Yield the parts, and close them afterwards. The ledger is not migrated. Raises SettingsError."""
        settings = self.settings
        async with AsyncExitStack() as stack:
            where, rest = settings.ledger, settings.intake.rest
            ledger = Ledger(
                where.url, where.timeout, where.password_file, settle_wait=rest, longest_hold=settings.holds.longest
            )
            stack.push_async_callback(ledger.aclose)
            channels = open_channels(settings)
            for channel in channels.values():
                stack.push_async_callback(channel.aclose)
            tracing = open_tracing(settings.tracing)
            stack.push_async_callback(asyncio.to_thread, tracing.close)
            rules = make_rule_files(settings)
            await asyncio.to_thread(rules.load)
            rules.log_problems()
            admin = await stack.enter_async_context(configured_flyte_admin(settings, self.clock))
            planner = make_planner(settings, channels)
            contents = make_contents(settings, planner.contacts, self.metrics.template_failed)
            workers = [self._worker(name, channels[name], ledger, planner, contents, tracing) for name in channels]
            source = self._source(ledger)
            monitor = self._progress_monitor(ledger, source, workers)
            intake = Intake(
                ledger=ledger,
                rules=lambda: rules.book,
                planner=planner,
                contents=contents,
                clock=self.clock,
                on_pending=partial(_wake, workers),
                on_batch=partial(self._batch_recorded, monitor),
                look_up=admin.look_up if admin is not None else None,
                tracing=tracing,
            )
            releaser = self._releaser(ledger, intake, workers)
            canary = self._canary(ledger, intake)
            yield Parts(
                self._replica, ledger, channels, rules, admin, workers, releaser, intake, source, canary, monitor
            )

    @property
    def _replica(self) -> str:
        return f"{socket.gethostname()}:{os.getpid()}"

    def _releaser(self, ledger: Ledger, intake: Intake, workers: Sequence[DeliveryWorker]) -> Releaser:
        return Releaser(
            ledger=ledger,
            silences=intake.silences,
            planner=intake.planner,
            rules=intake.rules,
            default_zone=self.settings.templates.timezone,
            clock=self.clock,
            stopping=self.stopping,
            wake=lambda: _notify(workers),
            on_released=self.metrics.released,
            on_failed=partial(self.metrics.component_failed, "releaser"),
        )

    def _worker(
        self, name: str, channel: Channel, ledger: Ledger, planner: Planner, contents: Contents, tracing: Tracing
    ) -> DeliveryWorker:
        section = self.settings.channel_sections[name]
        self.metrics.add_channel(name)
        options = WorkerOptions(
            name=name,
            channel=channel,
            ledger=ledger,
            planner=planner,
            contents=contents,
            policy=section.retry,
            clock=self.clock,
            rng=self.rng,
            worker_id=worker_id(self._replica, name),
            concurrency=section.concurrency,
            claim_ahead=section.claim_ahead,
            rate_limit=section.rate_limit(),
            pages=CHANNEL_TYPES[name].pages,
            lease=self.settings.ledger.lease,
            on_settled=self.metrics.settled,
            on_deferred=partial(self.metrics.deferred, name),
            on_failed=partial(self.metrics.component_failed, f"worker {name}"),
            tracing=tracing,
        )
        return DeliveryWorker(options)

    def _batch_recorded(self, monitor: ProgressMonitor, batch: BatchResult) -> None:
        now = self.clock.now()
        self.metrics.batch_recorded(batch, now=now)
        if batch.source == "kafka":
            monitor.last_batch_at = now
        self.on_batch(batch)

    def _source(self, ledger: Ledger) -> KafkaSource | None:
        """Return the source of Kafka messages, or None if Kafka is not configured."""
        if self.settings.kafka is None:
            return None
        from dispatcher.intake.kafka.consumer import KafkaSource  # noqa: PLC0415 - aiokafka is slow to import

        return KafkaSource(
            self.settings.kafka,
            is_other_type,
            complete_since=lambda: ledger.checkpoints.complete_since(now=self.clock.now()),
            on_skipped=self.metrics.kafka_skipped,
            rng=self.rng,
            rest=self.settings.intake.rest,
        )

    def _canary(self, ledger: Ledger, intake: Intake) -> Canary | None:
        """Return the canary, or None if no canary is configured."""
        config, kafka = self.settings.canary, self.settings.kafka
        if config is None:
            return None
        section = self.settings.channel_sections.get(config.channel)
        publish_to_intake = through_intake(intake)
        return Canary(
            config=config,
            ledger=ledger,
            clock=self.clock,
            metrics=self.metrics,
            publish=through_kafka(kafka) if kafka is not None and config.through == "kafka" else publish_to_intake,
            publish_miss=publish_to_intake,
            fallback_recipients=section.fallback_recipients if section is not None else (),
            stopping=self.stopping,
        )

    def _progress_monitor(
        self, ledger: Ledger, source: KafkaSource | None, workers: Sequence[DeliveryWorker]
    ) -> ProgressMonitor:
        return ProgressMonitor(
            ledger=ledger,
            workers={f"worker {worker.name}": worker for worker in workers},
            source=source,
            metrics=self.metrics,
            clock=self.clock,
            no_progress_after=self.settings.watchdog.no_progress_after,
            stopping=self.stopping,
        )


def _notify(workers: Sequence[DeliveryWorker]) -> None:
    for worker in workers:
        worker.notify()


def _wake(workers: Sequence[DeliveryWorker], pending: Sequence[Delivery]) -> None:
    """Wake the workers whose channel has pending deliveries."""
    for worker in workers:
        if threads := [delivery.thread for delivery in pending if delivery.channel == worker.name]:
            worker.notify(threads)
