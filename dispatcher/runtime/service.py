"""Starts the components of one replica, runs them at the same time, and stops them in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random

import structlog

from dispatcher.clock import Clock, SystemClock, is_set_within
from dispatcher.config.settings import Settings
from dispatcher.delivering.worker import DeliveryWorker
from dispatcher.errors import LedgerUnavailable
from dispatcher.intake.evaluator import IncomingMessage
from dispatcher.intake.pipeline import BatchResult
from dispatcher.intake.reconcile import Reconciler
from dispatcher.ledger import Ledger
from dispatcher.observability.clock_monitor import ClockMonitor
from dispatcher.observability.metrics import Metrics
from dispatcher.observability.watchdog import Watchdog
from dispatcher.runtime.components import Components, Work
from dispatcher.runtime.migration import open_tables
from dispatcher.runtime.pages import make_pages, readiness_checks
from dispatcher.runtime.parts import Parts, Wiring
from dispatcher.runtime.preflight import removed_channels
from dispatcher.runtime.replica_report import ReplicaReport
from dispatcher.web.event_intake import Take
from dispatcher.web.health import ReadinessCheck
from dispatcher.web.server import serving

log = structlog.get_logger(__name__)

PURGE_LIMIT = 200
"""Maximum number of events that one purge deletes."""
PURGE_PAUSE = 0.5
"""Seconds between two purges while there are more rows to delete. In the pause, deliveries can use the ledger."""
PURGE_INTERVAL = 600.0
"""Seconds until the next purge if the last purge deleted nothing."""


@dataclass(slots=True)
class Service:
    """One replica of the dispatcher. `run` runs the replica until `stop` is called."""

    settings: Settings
    clock: Clock = field(default_factory=SystemClock)
    rng: Random = field(default_factory=Random)
    migrate: bool = True
    """Create or upgrade the ledger's tables at the start. If False, the service refuses tables that it can't use."""
    on_ready: Callable[[str | None], None] = lambda _: None
    """Called once everything runs, with the base URL of the HTTP server, or None if there is no HTTP server."""
    on_batch: Callable[[BatchResult], None] = lambda _: None
    """Called with the result of each batch after the batch was recorded."""
    inbox_url: str = ""
    """The demo's inbox, to which the console links."""
    metrics: Metrics = field(default_factory=Metrics)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _components: Components = field(init=False)
    _workers: Sequence[DeliveryWorker] = ()
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """Mapping from a component's name to its task, without workers. At a stop, the workers end after these tasks."""
    _ledger_wait: asyncio.Timeout | None = None
    """The timeout of the wait for the ledger at the start, so that `stop` can end this wait; None at other times."""
    _not_open_reason: str | None = "not open yet"
    """Why the ledger is not migrated yet; None once it is."""

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
        wiring = Wiring(self.settings, self.clock, self.rng, self.metrics, self._stopping, self.on_batch)
        with Watchdog(self.settings.watchdog, self.metrics):
            async with wiring.parts() as parts, self._web(parts) as url:
                self._workers = parts.workers
                if await self._open_ledger(parts.ledger):
                    await self._run_components(parts, url)
        log.info("stopped")

    async def _open_ledger(self, ledger: Ledger) -> bool:
        """Migrate or check the ledger. Returns False if the service was stopped. Raises the errors of `open_tables`."""
        if self._stopping.is_set():
            return False

        def note(reason: str) -> None:
            self._not_open_reason = reason

        try:
            async with asyncio.timeout(None) as self._ledger_wait:
                schema = await open_tables(ledger, migrate=self.migrate, on_retry=note)
                # Intake reads Kafka's messages since this time, and reconciliation compares executions since then.
                await ledger.checkpoints.record_first_start(now=self.clock.now())
        except TimeoutError:
            if not self._stopping.is_set():
                raise
            return False
        finally:
            self._ledger_wait = None
        if schema.newer:
            log.warning("a newer version has migrated the ledger; this version can use it too", version=schema.version)
        self._not_open_reason = None
        with suppress(LedgerUnavailable):
            for problem in removed_channels(self.settings, await ledger.queries.backlog(now=self.clock.now())):
                log.warning(problem)
        return True

    async def _run_components(self, parts: Parts, url: str | None) -> None:
        async with asyncio.TaskGroup() as group:

            def start(name: str, work: Work) -> asyncio.Task[None]:
                return group.create_task(self._components.run(name, work), name=name)

            report = self._report(parts)
            workers = {f"worker {one.name}": start(f"worker {one.name}", one.run) for one in parts.workers}
            works = {**self._works(parts), "replica report": report.run}
            self._tasks = {name: start(name, work) for name, work in works.items()}
            parts.progress_monitor.tasks = {**workers, **self._tasks}
            log.info("ready", http=url, channels=sorted(parts.channels))
            self.on_ready(url)
            await self._stopping.wait()
            log.info("stopping", shutdown_timeout=self.settings.shutdown_timeout.total_seconds())
            if parts.source is not None:
                parts.source.stop()
            if parts.admin is not None:
                parts.admin.shorten_deadlines()
            await asyncio.wait(self._tasks.values())
            await self._drain([*workers.values()])
        await report.remove()

    def _report(self, parts: Parts) -> ReplicaReport:
        return ReplicaReport(
            parts=parts,
            components=self._components,
            checks=readiness_checks(parts),
            clock=self.clock,
            started_at=self.clock.now(),
            stopping=self._stopping,
        )

    def _works(self, parts: Parts) -> Mapping[str, Work]:
        """Return the work of each component but the workers, by name. It ends when the service stops."""
        settings, clock, stopping, ledger = self.settings, self.clock, self._stopping, parts.ledger
        works: dict[str, Work] = {
            "rules": partial(parts.rules.watch, stopping),
            "releaser": parts.releaser.run,
            "retention": partial(self._purge, parts),
            "clock monitor": ClockMonitor(ledger=ledger, clock=clock, metrics=self.metrics, stopping=stopping).run,
        }
        if parts.source is not None:
            works["intake"] = partial(parts.intake.run, parts.source)
        if parts.admin is not None and settings.reconcile.every:
            look_back, min_age = settings.reconcile.look_back, settings.reconcile.min_age
            reconciler = Reconciler(parts.admin, ledger, parts.intake, clock, look_back, min_age, stopping)
            works["reconcile"] = partial(reconciler.run, settings.reconcile.every, self.rng)
        if parts.canary is not None:
            works["canary"] = parts.canary.run
        if settings.watchdog.no_progress_after:
            works["progress monitor"] = parts.progress_monitor.run
        return works

    async def _purge(self, parts: Parts) -> None:
        """Delete rows that are older than `ledger.retention`, in small portions, until the service is stopped.

        If no route has a streak, the streaks are forgotten too: nobody counts them now, so they would be wrong later.
        """
        while not self._stopping.is_set():
            try:
                purged = await parts.ledger.purge(self.clock.now() - self.settings.ledger.retention, limit=PURGE_LIMIT)
                if not purged and not parts.rules.book.routes.counts_streaks and not parts.rules.problems:
                    await parts.ledger.forget_streaks()
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

    @asynccontextmanager
    async def _web(self, parts: Parts) -> AsyncIterator[str | None]:
        """Serve the pages until the `async with` block ends. Yields the base URL, or None if there is no server."""
        http = self.settings.http
        if http is None:
            yield None
            return
        checks: dict[str, ReadinessCheck] = {
            "ledger": partial(self._ledger_unready_reason, parts),
            "service": self._unready_reason,
            "components": self._components.unready_reason,
        }
        take = self._once_open(parts.intake.ingest)
        pages = make_pages(self.settings, parts, checks, take, self.metrics, self.clock, self._stopping, self.inbox_url)
        contain = partial(self._components.run, "http")
        async with serving(
            pages, *http.address, tls=http.tls, trusted_proxies=http.trusted_proxies, contain=contain
        ) as url:
            yield url

    def _once_open(self, take: Take) -> Take:
        """Wrap `take` so that it raises LedgerUnavailable until the ledger is open, because publishers then retry."""

        async def take_once_open(messages: Sequence[IncomingMessage]) -> BatchResult:
            if self._not_open_reason is not None:
                raise LedgerUnavailable("the dispatcher is starting: the ledger is not open yet")
            return await take(messages)

        return take_once_open

    async def _unready_reason(self) -> str | None:
        if self._stopping.is_set():
            return "stopping"
        return "starting: the ledger is not open yet" if self._not_open_reason is not None else None

    async def _ledger_unready_reason(self, parts: Parts) -> str | None:
        if self._not_open_reason is not None:
            return self._not_open_reason
        await parts.ledger.checkpoints.ping(now=self.clock.now())
        for brake in parts.brakes.values():
            if (reason := await brake.unready_reason()) is not None:
                return reason
        return None
