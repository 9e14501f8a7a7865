"""Opens the ledger, the channels and the sources, runs the components at the same time, and stops them in order."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import structlog
from starlette.routing import BaseRoute
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_exponential

from channels.contract import Channel
from channels.registry import CHANNEL_TYPES, TEMPLATES
from dispatcher.clock import Clock, SystemClock, is_set_within
from dispatcher.config.settings import LedgerSettings, Settings
from dispatcher.delivering.worker import DeliveryWorker
from dispatcher.errors import LedgerUnavailable, SettingsError
from dispatcher.flyte.admin import open_flyte_admin
from dispatcher.flyte.decode import is_other_type
from dispatcher.intake.kafka.consumer import KafkaSource
from dispatcher.intake.pipeline import BatchResult, IncomingMessage, Intake
from dispatcher.intake.reconcile import Reconciler
from dispatcher.ledger import Backlog, Ledger, Schema
from dispatcher.ledger.brake import Brake
from dispatcher.model.delivery import Delivery
from dispatcher.model.event import Event
from dispatcher.observability.canary import Canary, through_intake, through_kafka
from dispatcher.observability.clock_monitor import ClockMonitor
from dispatcher.observability.metrics import Metrics
from dispatcher.observability.watchdog import ProgressMonitor, Watchdog
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import GROUPED, Planner
from dispatcher.rendering import Renderer
from dispatcher.rules.files import LaunchPlanFiles
from dispatcher.runtime.components import Components
from dispatcher.tracing import OFF, Tracing, open_tracing
from dispatcher.web.app import application
from dispatcher.web.auth.access import AccessControl, Scope, needs
from dispatcher.web.event_intake import EventsPage, Take
from dispatcher.web.health import ReadinessCheck, ReadyPage
from dispatcher.web.metrics import Collector, MetricsPage
from dispatcher.web.server import serving

if TYPE_CHECKING:  # imported for types only, because the client needs optional dependencies
    from dispatcher.flyte.admin.client import FlyteAdmin

log = structlog.get_logger(__name__)

PURGE_LIMIT = 200
"""Maximum number of events that one purge deletes."""
PURGE_PAUSE = 0.5
"""Seconds between two purges while there are more rows to delete. In the pause, deliveries can use the ledger."""
PURGE_INTERVAL = 600.0
"""Seconds until the next purge if the last purge deleted nothing."""
LEDGER_TIMEOUT = 30
"""At its start, the service waits at most this many seconds for the ledger's database, because the database may be
starting too."""


@dataclass(slots=True)
class Service:
    """One replica of the dispatcher. `run` runs the replica until `stop` is called."""

    settings: Settings
    clock: Clock = field(default_factory=SystemClock)
    rng: Random = field(default_factory=Random)
    on_ready: Callable[[str | None], None] = lambda _: None
    """Called once everything runs, with the base URL of the HTTP server, or None if there is no HTTP server."""
    on_batch: Callable[[BatchResult], None] = lambda _: None
    """Called with the result of each batch after the batch was recorded."""
    metrics: Metrics = field(default_factory=Metrics)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _components: Components = field(init=False)
    _workers: list[DeliveryWorker] = field(default_factory=list)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """Mapping from a component's name to its task, without workers. At a stop, the workers end after these tasks."""
    _brakes: Mapping[str, Brake] = field(default_factory=dict)
    """Mapping from a component's name to its brake."""
    _progress_monitor: ProgressMonitor | None = None
    _canary: Canary | None = None
    _tracing: Tracing = OFF
    _ledger_wait: asyncio.Timeout | None = None
    """The timeout of the wait for the ledger at the start, so that `stop` can end this wait; None at other times."""
    _open: bool = False
    """True once the ledger is migrated."""
    _not_open_reason: str = "not open yet"

    def __post_init__(self) -> None:
        self._components = Components(self._stopping, self.metrics)

    def stop(self) -> None:
        """Stop intake, then finish the deliveries in flight within `shutdown_timeout`.

        A second call cancels all components and releases the deliveries in flight.
        """
        if self._stopping.is_set():
            self._abandon()
            for task in self._tasks.values():
                task.cancel()
        self._stopping.set()
        if self._ledger_wait is not None:
            self._ledger_wait.reschedule(0)

    async def run(self) -> None:
        """Open everything, run until the service is stopped, and close everything.

        The HTTP server starts before the ledger is migrated, and stops after all workers have stopped.

        Raises SettingsError, LedgerUnavailable or LedgerIncompatible if the service can't start.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(Watchdog(self.settings.watchdog, self.metrics))
            ledger = Ledger(self.settings.ledger.url, self.settings.ledger.timeout, self.settings.ledger.password_file)
            stack.push_async_callback(ledger.aclose)
            channels = open_channels(self.settings)
            for channel in channels.values():
                stack.push_async_callback(channel.aclose)
            self._tracing = open_tracing(self.settings.tracing)
            stack.push_async_callback(asyncio.to_thread, self._tracing.close)
            rules = LaunchPlanFiles(self.settings.rules.launch_plans)
            await asyncio.to_thread(rules.load)
            rules.log_problems()
            admin = await stack.enter_async_context(configured_flyte_admin(self.settings, self.clock))
            planner = make_planner(self.settings, channels)
            contents = make_contents(self.settings, self.metrics.template_failed)
            for name in channels:
                self.metrics.add_channel(name)
            self._workers = [
                self._worker(name, channel, ledger, planner, contents) for name, channel in channels.items()
            ]
            look_up = admin.look_up if admin is not None else None
            intake = Intake(
                ledger=ledger,
                rules=lambda: rules.book,
                planner=planner,
                contents=contents,
                clock=self.clock,
                on_pending=self._wake_workers,
                on_batch=self._batch_recorded,
                look_up=look_up,
                tracing=self._tracing,
            )
            source = self._kafka_source(ledger)
            self._brakes = {"intake": intake.brake} | {f"worker {one.name}": one.brake for one in self._workers}
            self._canary = self._make_canary(ledger, intake)
            url = await stack.enter_async_context(self._web(intake, source, ledger, admin))
            if await self._open_ledger(ledger):
                await self._run_components(url, intake, rules, source, ledger, admin)
        log.info("stopped")

    async def _open_ledger(self, ledger: Ledger) -> bool:
        """Migrate the ledger. Returns False if the service was stopped. Raises the errors of `migrate_ledger`."""
        if self._stopping.is_set():
            return False
        try:
            async with asyncio.timeout(None) as self._ledger_wait:
                schema = await _migrate(ledger, self._ledger_unavailable)
                # Intake reads Kafka's messages since this time, and reconciliation compares executions since then.
                await ledger.record_first_start(now=self.clock.now())
        except TimeoutError:
            if not self._stopping.is_set():
                raise
            return False
        finally:
            self._ledger_wait = None
        if schema.newer:
            log.warning("a newer version has migrated the ledger; this version can use it too", version=schema.version)
        self._open = True
        await self._log_removed_channels(ledger)
        return True

    async def _log_removed_channels(self, ledger: Ledger) -> None:
        with suppress(LedgerUnavailable):
            for problem in removed_channels(self.settings, await ledger.backlog(now=self.clock.now())):
                log.warning(problem)

    async def _run_components(
        self,
        url: str | None,
        intake: Intake,
        rules: LaunchPlanFiles,
        source: KafkaSource | None,
        ledger: Ledger,
        admin: FlyteAdmin | None,
    ) -> None:
        async with asyncio.TaskGroup() as group:

            def start(name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
                return group.create_task(self._components.run(name, work), name=name)

            workers = {f"worker {one.name}": start(f"worker {one.name}", one.run) for one in self._workers}
            tasks = self._tasks
            tasks["rules"] = start("rules", partial(rules.watch, self._stopping))
            tasks["retention"] = start("retention", partial(self._purge, ledger))
            if source is not None:
                tasks["intake"] = start("intake", partial(intake.run, source))
            if admin is not None and self.settings.reconcile.every:
                reconciler = make_reconciler(self.settings, admin, ledger, intake, self.clock, self._stopping)
                tasks["reconcile"] = start(
                    "reconcile", partial(reconciler.run, self.settings.reconcile.every, self.rng)
                )
            if self._canary is not None:
                tasks["canary"] = start("canary", self._canary.run)
            clocks = ClockMonitor(ledger=ledger, clock=self.clock, metrics=self.metrics, stopping=self._stopping)
            tasks["clock monitor"] = start("clock monitor", clocks.run)
            if self.settings.watchdog.no_progress_after:
                self._progress_monitor = self._make_progress_monitor(ledger, source, {**workers, **tasks})
                tasks["progress monitor"] = start("progress monitor", self._progress_monitor.run)
            log.info("ready", http=url, channels=sorted(worker.name for worker in self._workers))
            self.on_ready(url)
            await self._stopping.wait()
            log.info("stopping", shutdown_timeout=self.settings.shutdown_timeout.total_seconds())
            if source is not None:
                source.stop()
            if admin is not None:
                admin.shorten_deadlines()
            await asyncio.wait(tasks.values())
            await self._drain([*workers.values()])

    def _kafka_source(self, ledger: Ledger) -> KafkaSource | None:
        """Return the source of Kafka messages, or None if Kafka is not configured."""
        if self.settings.kafka is None:
            return None
        return KafkaSource(
            self.settings.kafka,
            is_other_type,
            complete_since=lambda: ledger.complete_since(now=self.clock.now()),
            on_skipped=self.metrics.kafka_skipped,
        )

    def _make_canary(self, ledger: Ledger, intake: Intake) -> Canary | None:
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
            fallback_recipients=section.fallback_recipients if section is not None else {},
            stopping=self._stopping,
        )

    def _make_progress_monitor(
        self, ledger: Ledger, source: KafkaSource | None, tasks: Mapping[str, asyncio.Task[None]]
    ) -> ProgressMonitor:
        return ProgressMonitor(
            ledger=ledger,
            workers={f"worker {worker.name}": worker for worker in self._workers},
            source=source,
            tasks=tasks,
            metrics=self.metrics,
            clock=self.clock,
            no_progress_after=self.settings.watchdog.no_progress_after,
            stopping=self._stopping,
        )

    async def _purge(self, ledger: Ledger) -> None:
        """Delete rows that are older than `ledger.retention`, in small portions, until the service is stopped."""
        while not self._stopping.is_set():
            try:
                purged = await ledger.purge(self.clock.now() - self.settings.ledger.retention, limit=PURGE_LIMIT)
            except LedgerUnavailable as error:
                log.warning("nothing was purged", reason=str(error))
                purged = 0
            await is_set_within(self._stopping, PURGE_PAUSE if purged else PURGE_INTERVAL)

    async def _drain(self, workers: list[asyncio.Task[None]]) -> None:
        """Let the workers finish their deliveries in flight. After `shutdown_timeout`, release those deliveries."""
        for worker in self._workers:
            worker.stop()
        if workers:
            _, unfinished = await asyncio.wait(workers, timeout=self.settings.shutdown_timeout.total_seconds())
            if unfinished:
                log.warning("shutdown_timeout is over: deliveries in flight are released")
                self._abandon()

    def _abandon(self) -> None:
        for worker in self._workers:
            worker.abandon()

    def _wake_workers(self, pending: Sequence[Delivery]) -> None:
        for worker in self._workers:
            if threads := [delivery.thread for delivery in pending if delivery.channel == worker.name]:
                worker.notify(threads)

    def _batch_recorded(self, batch: BatchResult) -> None:
        now = self.clock.now()
        self.metrics.batch_recorded(batch, now=now)
        if self._progress_monitor is not None and batch.source == "kafka":
            self._progress_monitor.last_batch_at = now
        self.on_batch(batch)

    def _worker(
        self, name: str, channel: Channel, ledger: Ledger, planner: Planner, contents: Contents
    ) -> DeliveryWorker:
        section = self.settings.channel_sections[name]
        return DeliveryWorker(
            name=name,
            channel=channel,
            ledger=ledger,
            planner=planner,
            contents=contents,
            policy=section.retry.policy(),
            clock=self.clock,
            rng=self.rng,
            worker_id=f"{socket.gethostname()}:{os.getpid()}:{name}"[:64],
            concurrency=section.concurrency,
            rate_limit=section.rate_limit(),
            pages=CHANNEL_TYPES[name].pages,
            lease=self.settings.ledger.lease,
            on_settled=self.metrics.settled,
            on_deferred=partial(self.metrics.deferred, name),
            on_failed=partial(self.metrics.component_failed, f"worker {name}"),
            tracing=self._tracing,
        )

    @asynccontextmanager
    async def _web(
        self, intake: Intake, source: KafkaSource | None, ledger: Ledger, admin: FlyteAdmin | None
    ) -> AsyncIterator[str | None]:
        http = self.settings.http
        if http is None:
            yield None
            return
        checks: dict[str, ReadinessCheck] = {
            "ledger": partial(self._ledger_unready_reason, ledger),
            "service": self._service_unready_reason,
            "components": self._components.unready_reason,
            "watchdog": self._watchdog_unready_reason,
        }
        if source is not None:
            checks["kafka"] = source.unready_reason
        if admin is not None:
            checks["flyte_admin"] = admin.unready_reason
        if self._canary is not None and self._canary.config.readiness:
            checks["canary"] = self._canary.unready_reason
        ready = ReadyPage(checks)
        page = MetricsPage(self.metrics.page, self._collectors(ready, ledger, source), self.metrics.collector_finished)
        metrics = page.get if http.metrics == "open" else needs(Scope.READ, page.get)
        console = self._console(intake, ledger) if http.console else []
        events = EventsPage(self._once_open(intake.ingest))
        pages = application(events, ready, metrics, AccessControl(http, self.clock), console)
        contain = partial(self._components.run, "http")
        async with serving(
            pages, *http.address, tls=http.tls, trusted_proxies=http.trusted_proxies, contain=contain
        ) as url:
            yield url

    def _collectors(self, ready: ReadyPage, ledger: Ledger, source: KafkaSource | None) -> Mapping[str, Collector]:
        """Return the functions that update metrics at each scrape, by name."""

        async def components() -> None:
            for worker in self._workers:
                self.metrics.worker(worker.name, in_flight=worker.in_flight, breaker_open=worker.breaker_open)
            self.metrics.readiness(await ready.unready_reasons())
            for component, brake in self._brakes.items():
                self.metrics.braked(component, ledger=brake.reason is not None, slow=brake.slow)

        async def backlog() -> None:
            self.metrics.backlog(None, now=self.clock.now())  # clears old values, in case the ledger does not answer
            self.metrics.backlog(await ledger.backlog(now=self.clock.now()), now=self.clock.now())

        async def kafka() -> None:
            assert source is not None  # noqa: S101 - for the type checker: this function is used only with a source
            self.metrics.kafka(None, source.last_timestamps())  # clears the old lag, in case the broker does not answer
            self.metrics.kafka(await source.lag(), source.last_timestamps())

        return {"components": components, "ledger": backlog, **({"kafka": kafka} if source is not None else {})}

    def _console(self, intake: Intake, ledger: Ledger) -> Sequence[BaseRoute]:
        """Return the HTTP routes of the console and the API."""
        from dispatcher.operations import Operations  # noqa: PLC0415
        from dispatcher.web.activity_stream import ActivityStream  # noqa: PLC0415
        from dispatcher.web.api import Api  # noqa: PLC0415 - imported only if the console is on
        from dispatcher.web.console import Console, routes  # noqa: PLC0415

        operations = Operations(ledger, intake, self.clock, self._wake_all_workers)
        activity_stream = ActivityStream(ledger.queries, self._stopping)
        channels = {worker.name: worker.channel for worker in self._workers}
        api = Api(ledger, operations, activity_stream, self.clock)
        return [*api.routes, *routes(Console(ledger, operations, activity_stream, self.clock, channels))]

    def _wake_all_workers(self) -> None:
        for worker in self._workers:
            worker.notify()

    def _once_open(self, take: Take) -> Take:
        """Wrap `take` so that it raises LedgerUnavailable until the ledger is open, because publishers then retry."""

        async def take_once_open(messages: Sequence[IncomingMessage]) -> BatchResult:
            if not self._open:
                raise LedgerUnavailable("the dispatcher is starting: the ledger is not open yet")
            return await take(messages)

        return take_once_open

    async def _service_unready_reason(self) -> str | None:
        if self._stopping.is_set():
            return "stopping"
        if not self._open:
            return "starting: the ledger is not open yet"
        return None

    def _ledger_unavailable(self, state: RetryCallState) -> None:
        self._not_open_reason = str(state.outcome.exception()) if state.outcome is not None else self._not_open_reason
        _log_retry(state)

    async def _ledger_unready_reason(self, ledger: Ledger) -> str | None:
        if not self._open:
            return self._not_open_reason
        await ledger.ping(now=self.clock.now())
        for brake in self._brakes.values():
            if (reason := await brake.unready_reason()) is not None:
                return reason
        return None

    async def _watchdog_unready_reason(self) -> str | None:
        return await self._progress_monitor.unready_reason() if self._progress_monitor is not None else None


def removed_channels(settings: Settings, backlog: Mapping[str, Backlog]) -> Iterator[str]:
    """Yield a warning for each channel with deliveries that wait in the ledger, and without a section in the settings.

    `backlog`: the result of `Ledger.backlog`.
    """
    for name, found in sorted(backlog.items()):
        if found.waiting and name not in settings.channel_sections:
            number = "1 delivery waits" if found.waiting == 1 else f"{found.waiting} deliveries wait"
            yield f"{number} for the channel {name}, which is not in the settings: add channels.{name} to send them"


def open_channels(settings: Settings) -> dict[str, Channel]:
    """Return the configured channels, by name. No connection is opened yet."""
    return {name: CHANNEL_TYPES[name].open(section) for name, section in settings.channel_sections.items()}


def make_renderer(
    settings: Settings, first: Sequence[Path] = (), on_failure: Callable[[str], None] = lambda _: None
) -> Renderer:
    """Return a renderer for the configured templates. Raises TemplateError if a template folder does not exist.

    Args:
        settings: the settings, with `templates` and the channels' severities.
        first: template folders that have priority over the folders in the settings.
        on_failure: called with the channel if a custom template fails, so that the built-in template is used instead.

    """
    templates = settings.templates
    return Renderer(
        [*first, *templates.path],
        template_sets=templates.match,
        console_url=settings.console_url,
        logs_url=settings.logs_url,
        severity=_severity(settings),
        hide_labels=templates.hide_labels,
        provided=TEMPLATES,
        on_failure=on_failure,
    )


def _severity(settings: Settings) -> Callable[[Event], str | None]:
    """Return a function that returns an event's severity. The first channel section that defines a severity is used."""
    functions = [one.severity_of for one in settings.channel_sections.values() if hasattr(one, "severity_of")]

    def severity(event: Event) -> str | None:
        domain, labels = event.execution.domain, event.labels
        return next(filter(None, (function(event.phase, domain, labels) for function in functions)), None)

    return severity


def make_contents(settings: Settings, template_failed: Callable[[str], None] = lambda _: None) -> Contents:
    """Return the renderer of deliveries' content, for the configured templates.

    `template_failed` is called with the channel if a custom template fails, so that the built-in template is used.
    Raises TemplateError if a template folder does not exist.
    """
    renderer = make_renderer(settings, on_failure=template_failed)
    return Contents(renderer.render, renderer.template_set, renderer.change, waits=renderer.has_operator_templates)


def make_planner(settings: Settings, channels: Mapping[str, Channel]) -> Planner:
    """Return a planner for the configured channels and template sets.

    Raises TemplateError if a template folder does not exist. Raises SettingsError if no channel can reach one of the
    recipients in the settings (`fallback_recipients`, `rules.recipients` and the canary's recipient).
    """
    renderer = make_renderer(settings)
    fallbacks = {
        name: section.fallback
        for name, section in settings.channel_sections.items()
        if getattr(section, "fallback", "none") != "none"
    }
    planner = Planner(
        addresses={name: channel.address for name, channel in channels.items()},
        fallbacks=fallbacks,
        template_set=renderer.template_set,
        change_events=frozenset(
            name for name, section in settings.channel_sections.items() if getattr(section, "change_events", False)
        ),
        thread_by={name: channel.thread_by for name, channel in channels.items() if name not in GROUPED},
        fallback_recipients={name: section.fallback_recipients for name, section in settings.channel_sections.items()},
        aliases={recipient: alias.target for recipient, alias in settings.rules.recipients.items()},
    )
    problems = [*planner.unreachable(), *_unreachable_canary(settings, planner)]
    if problems:
        raise SettingsError("\n".join(problems))
    return planner


def _unreachable_canary(settings: Settings, planner: Planner) -> Iterator[str]:
    """Yield an error message if no channel can reach the canary's recipient."""
    canary = settings.canary
    if canary is not None and (reason := planner.unreachable_reason(canary.channel, canary.recipient)) is not None:
        yield f"canary: {canary.recipient} by {canary.channel}: {reason}"


@asynccontextmanager
async def configured_flyte_admin(settings: Settings, clock: Clock) -> AsyncIterator[FlyteAdmin | None]:
    """Yield a client for FlyteAdmin, or None if FlyteAdmin is not configured.

    Raises SettingsError if gRPC is not installed, or if the settings' `ca_file` contains no certificate.
    """
    config = settings.rules.flyte_admin
    if config is None:
        yield None
        return
    async with open_flyte_admin(config, clock) as admin:
        yield admin


def make_reconciler(
    settings: Settings,
    admin: FlyteAdmin,
    ledger: Ledger,
    intake: Intake,
    clock: Clock,
    stopping: asyncio.Event | None = None,
) -> Reconciler:
    """Return a reconciler with the options from the settings. Its method `run` returns once `stopping` is set."""
    options = settings.reconcile
    return Reconciler(admin, ledger, intake, clock, options.look_back, options.min_age, stopping or asyncio.Event())


async def migrate_ledger(settings: LedgerSettings) -> Schema:
    """Migrate the ledger's tables. Returns the schema that the tables had before the migration.

    Raises SettingsError or LedgerIncompatible. Raises LedgerUnavailable if the ledger is unavailable for longer than
    `LEDGER_TIMEOUT`.
    """
    ledger = Ledger(settings.url, settings.timeout, settings.password_file)
    try:
        return await _migrate(ledger)
    finally:
        await ledger.aclose()


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    log.warning("waiting for the ledger", attempt=state.attempt_number, reason=str(error))


async def _migrate(ledger: Ledger, before_retry: Callable[[RetryCallState], None] = _log_retry) -> Schema:
    """Migrate the ledger. While the ledger is unavailable, retry for up to `LEDGER_TIMEOUT` seconds."""
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(LedgerUnavailable),
        wait=wait_exponential(multiplier=0.2, max=3),
        stop=stop_after_delay(LEDGER_TIMEOUT),
        before_sleep=before_retry,
        reraise=True,
    )
    return await retrying(ledger.migrate)
