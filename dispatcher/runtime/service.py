"""The wiring: opens everything, runs the rooms side by side, and stops them in order."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import structlog
from starlette.routing import BaseRoute
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_exponential

from channels.contract import Channel, UnknownRecipient
from channels.registry import CHANNEL_TYPES, TEMPLATES
from dispatcher.clock import Clock, SystemClock
from dispatcher.config.settings import LedgerSettings, Settings
from dispatcher.delivering.worker import DeliveryWorker
from dispatcher.errors import LedgerUnavailable, SettingsError
from dispatcher.flyte.admin import open_flyte_admin
from dispatcher.flyte.decode import is_foreign
from dispatcher.intake.kafka.consumer import KafkaSource
from dispatcher.intake.pipeline import BatchResult, IncomingMessage, Intake
from dispatcher.intake.reconcile import Reconciler
from dispatcher.ledger import DirectDispatch, Ledger, Schema
from dispatcher.model.delivery import Delivery
from dispatcher.model.event import Event
from dispatcher.observability.canary import Canary, through_intake, through_kafka
from dispatcher.observability.metrics import Metrics
from dispatcher.observability.watchdog import ProgressMonitor, Watchdog
from dispatcher.planning.planner import GROUPED, Planner
from dispatcher.rendering import Renderer
from dispatcher.rules.files import LaunchPlanFiles
from dispatcher.tracing import OFF, Tracing, open_tracing
from dispatcher.web.app import application
from dispatcher.web.auth.access import AccessControl, Scope, needs
from dispatcher.web.event_intake import EventsPage, Take
from dispatcher.web.health import Question, ReadyPage
from dispatcher.web.metrics import Look, MetricsPage
from dispatcher.web.server import serving

if TYPE_CHECKING:  # it needs an extra to be loaded
    from dispatcher.flyte.admin.client import FlyteAdmin

log = structlog.get_logger(__name__)

PURGED_AT_ONCE = 200
BETWEEN_PURGES = 0.5
"""Seconds in which deliveries have the ledger to themselves while much is purged."""
A_LOOK = 0.02
"""Seconds that what is recorded next waits for couriers who look for work: most of them have hands free in a moment."""
BETWEEN_SWEEPS = 600.0
"""Seconds between looks for what is past its retention."""
LEDGER_PATIENCE = 30
"""Seconds that a start waits for the ledger: a database that starts beside us is often a little later."""


@dataclass(slots=True)
class Service:
    """The dispatcher, running. `run` returns when it has stopped; `stop` asks it to, twice to hurry it."""

    settings: Settings
    clock: Clock = field(default_factory=SystemClock)
    rng: Random = field(default_factory=Random)
    ready: Callable[[str | None], None] = lambda _: None
    """Called once everything runs, with the base URL of the HTTP intake if there is one."""
    heard: Callable[[BatchResult], None] = lambda _: None
    """Told of every batch that is in the ledger."""
    metrics: Metrics = field(default_factory=Metrics)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _couriers: list[DeliveryWorker] = field(default_factory=list)
    _taking: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """The rooms that bring work, or none."""
    _rounds: ProgressMonitor | None = None
    _canary: Canary | None = None
    _tracing: Tracing = OFF
    _opening: asyncio.Timeout | None = None
    """While we wait for the ledger: what ends that."""
    _open: bool = False
    _unopened: str = "not open yet"
    """Why the ledger isn't open."""

    def stop(self) -> None:
        """Stop in order: take nothing more, finish what is in hand within the grace period. Called again: at once."""
        if self._stopping.is_set():
            self._abandon()
            for task in self._taking.values():
                task.cancel()
        self._stopping.set()
        if self._opening is not None:
            self._opening.reschedule(0)

    async def run(self) -> None:
        """Open everything, run until stopped, close everything. The HTTP pages are there all the while.

        Raises SettingsError, LedgerUnavailable or LedgerIncompatible where it can't start.
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
            rules.load()
            rules.tell_problems()
            admin = await stack.enter_async_context(asking_flyte_admin(self.settings, self.clock))
            planner = make_planner(self.settings, channels, self.metrics.template_failed)
            for name in channels:
                self.metrics.channel(name)
            self._couriers = [self._courier(name, channel, ledger, planner) for name, channel in channels.items()]
            look_up = admin.look_up if admin is not None else None
            intake = Intake(
                ledger=ledger,
                rules=lambda: rules.book,
                planner=planner,
                clock=self.clock,
                offers=self._offers,
                owing=self._send_for,
                recorded=self._announce,
                look_up=look_up,
                tracing=self._tracing,
            )
            source = KafkaSource(self.settings.kafka, is_foreign) if self.settings.kafka is not None else None
            self._canary = self._making_canary(ledger, intake)
            url = await stack.enter_async_context(self._web(intake, source, ledger, admin))
            if await self._opened(ledger):
                await self._run_rooms(url, intake, rules, source, ledger, admin)
        log.info("stopped")

    async def _opened(self, ledger: Ledger) -> bool:
        """Migrate the ledger; False where we were stopped before. Raises what `migrated` raises."""
        if self._stopping.is_set():
            return False
        try:
            async with asyncio.timeout(None) as self._opening:
                schema = await _patiently(ledger, self._tell_why)
                await ledger.begin(now=self.clock.now())  # what ended before our first start is no news
        except TimeoutError:
            if not self._stopping.is_set():
                raise
            return False
        finally:
            self._opening = None
        if schema.newer:
            log.warning("the ledger is a newer version's, and serves this one too", version=schema.version)
        self._open = True
        return True

    async def _run_rooms(
        self,
        url: str | None,
        intake: Intake,
        rules: LaunchPlanFiles,
        source: KafkaSource | None,
        ledger: Ledger,
        admin: FlyteAdmin | None,
    ) -> None:
        async with asyncio.TaskGroup() as rooms:

            def begin(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
                return rooms.create_task(work, name=name)

            room = begin("room", ledger.make_room())  # nobody needs to wait for that
            carrying = {f"courier {one.name}": begin(f"courier {one.name}", one.run()) for one in self._couriers}
            taking = self._taking
            taking["rules"] = begin("rules", rules.watch(self._stopping))
            taking["retention"] = begin("retention", self._forget_old(ledger))
            if source is not None:
                taking["intake"] = begin("intake", intake.run(source))
            if admin is not None and self.settings.reconcile.every:
                reconciler = make_reconciler(self.settings, admin, ledger, intake, self.clock, self._stopping)
                taking["reconcile"] = begin("reconcile", reconciler.run(self.settings.reconcile.every, self.rng))
            if self._canary is not None:
                taking["canary"] = begin("canary", self._canary.run())
            if self.settings.watchdog.progress:
                self._rounds = self._making_rounds(ledger, source, {**carrying, **taking})
                taking["rounds"] = begin("rounds", self._rounds.run())
            log.info("ready", http=url, channels=sorted(courier.name for courier in self._couriers))
            self.ready(url)
            await self._stopping.wait()
            log.info("stopping", shutdown_timeout=self.settings.shutdown_timeout.total_seconds())
            room.cancel()
            if source is not None:
                source.stop()
            if admin is not None:
                admin.hurry()
            await asyncio.wait(taking.values())
            await self._drain([*carrying.values()])

    def _making_canary(self, ledger: Ledger, intake: Intake) -> Canary | None:
        """None where there is to be none."""
        config, kafka = self.settings.canary, self.settings.kafka
        if config is None:
            return None
        section = self.settings.channel_sections.get(config.channel)
        shortest = through_intake(intake)
        return Canary(
            config=config,
            ledger=ledger,
            clock=self.clock,
            metrics=self.metrics,
            release=through_kafka(kafka) if kafka is not None and config.through == "kafka" else shortest,
            alarm=shortest,
            fallbacks=section.fallback_recipients if section is not None else {},
            stopping=self._stopping,
        )

    def _making_rounds(
        self, ledger: Ledger, source: KafkaSource | None, tasks: Mapping[str, asyncio.Task[None]]
    ) -> ProgressMonitor:
        return ProgressMonitor(
            ledger=ledger,
            couriers={f"courier {courier.name}": courier for courier in self._couriers},
            source=source,
            tasks=tasks,
            metrics=self.metrics,
            clock=self.clock,
            patience=self.settings.watchdog.progress,
            stopping=self._stopping,
        )

    async def _forget_old(self, ledger: Ledger) -> None:
        """Purge what is past its retention, a little at a time, until we stop."""
        while not self._stopping.is_set():
            try:
                gone = await ledger.purge(self.clock.now() - self.settings.ledger.retention, limit=PURGED_AT_ONCE)
            except LedgerUnavailable as error:
                log.warning("nothing was purged", reason=str(error))
                gone = 0
            pause = BETWEEN_PURGES if gone else BETWEEN_SWEEPS
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _drain(self, carrying: list[asyncio.Task[None]]) -> None:
        """Let the couriers finish what they hold, for the grace period at most."""
        for courier in self._couriers:
            courier.stop()
        if carrying:
            _, late = await asyncio.wait(carrying, timeout=self.settings.shutdown_timeout.total_seconds())
            if late:
                log.warning("the grace period is over: what is still on its way is released")
                self._abandon()

    def _abandon(self) -> None:
        for courier in self._couriers:
            courier.abandon()

    async def _offers(self) -> Mapping[str, DirectDispatch]:
        """The couriers' free hands; for those who just look for work that is waited for, a moment at most.

        Nothing is awaited once the first has made his offer: whoever is cancelled leaves none without an answer.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(A_LOOK):
                for courier in self._couriers:
                    await courier.looked()
        return {courier.name: offer for courier in self._couriers if (offer := courier.offer()) is not None}

    def _send_for(self, owed: Sequence[Delivery]) -> None:
        for courier in self._couriers:
            if theirs := [delivery.thread for delivery in owed if delivery.channel == courier.name]:
                courier.ring(theirs)

    def _announce(self, heard: BatchResult) -> None:
        now = self.clock.now()
        self.metrics.heard(heard, now=now)
        if self._rounds is not None and heard.source == "kafka":
            self._rounds.heard_at = now
        self.heard(heard)

    def _courier(self, name: str, channel: Channel, ledger: Ledger, planner: Planner) -> DeliveryWorker:
        section = self.settings.channel_sections[name]
        return DeliveryWorker(
            name=name,
            channel=channel,
            ledger=ledger,
            planner=planner,
            policy=section.retry.policy(),
            clock=self.clock,
            rng=self.rng,
            worker=f"{socket.gethostname()}:{os.getpid()}:{name}"[:64],
            hands=section.concurrency,
            pace=section.pace(),
            lease=self.settings.ledger.lease,
            settled=self.metrics.settled,
            put_off=partial(self.metrics.put_off, name),
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
        questions: dict[str, Question] = {
            "ledger": partial(self._ledger_trouble, ledger),
            "service": self._trouble,
            "watchdog": self._standstill,
        }
        if source is not None:
            questions["kafka"] = source.trouble
        if admin is not None:
            questions["flyte_admin"] = admin.trouble
        if self._canary is not None and self._canary.config.readiness:
            questions["canary"] = self._canary.trouble
        ready = ReadyPage(questions)
        metrics = MetricsPage(self.metrics.page, self._looks(ready, ledger, source), self.metrics.collected).get
        seen = metrics if http.metrics == "open" else needs(Scope.READ, metrics)
        more = self._console(intake, ledger) if http.console else []
        events = EventsPage(self._once_open(intake.take))
        pages = application(events, ready, seen, AccessControl(http, self.clock), more)
        async with serving(pages, *http.address, tls=http.tls, trusted_proxies=http.trusted_proxies) as url:
            yield url

    def _looks(self, ready: ReadyPage, ledger: Ledger, source: KafkaSource | None) -> Mapping[str, Look]:
        """What is looked up when somebody asks for the metrics."""

        async def rooms() -> None:
            for courier in self._couriers:
                self.metrics.courier(courier.name, in_hand=courier.in_hand, resting=courier.resting)
            self.metrics.readiness(await ready.answers())

        async def backlog() -> None:
            self.metrics.backlog(None, now=self.clock.now())
            self.metrics.backlog(await ledger.backlog(now=self.clock.now()), now=self.clock.now())

        async def kafka() -> None:
            assert source is not None  # noqa: S101 - see below
            self.metrics.kafka(None, source.newest())
            self.metrics.kafka(await source.lag(), source.newest())

        return {"rooms": rooms, "ledger": backlog, **({"kafka": kafka} if source is not None else {})}

    def _console(self, intake: Intake, ledger: Ledger) -> Sequence[BaseRoute]:
        """The console's pages and the API's."""
        from dispatcher.operations import Operations  # noqa: PLC0415
        from dispatcher.web.activity_stream import Feed  # noqa: PLC0415
        from dispatcher.web.api import Api  # noqa: PLC0415 - a start without them is quicker
        from dispatcher.web.console import Shell, routes  # noqa: PLC0415

        operations = Operations(ledger, intake, self.clock, self._ring)
        feed = Feed(ledger.queries, self._stopping)
        channels = {courier.name: courier.channel for courier in self._couriers}
        api = Api(ledger, operations, feed, self.clock)
        return [*api.routes, *routes(Shell(ledger, operations, feed, self.clock, channels))]

    def _ring(self) -> None:
        for courier in self._couriers:
            courier.ring()

    def _once_open(self, take: Take) -> Take:
        """Intake for those who come before the ledger is there: they come again."""

        async def taken(messages: Sequence[IncomingMessage]) -> BatchResult:
            if not self._open:
                raise LedgerUnavailable("the dispatcher is starting: the ledger is not open yet")
            return await take(messages)

        return taken

    async def _trouble(self) -> str | None:
        """Why we take nothing, for the readiness page."""
        if self._stopping.is_set():
            return "stopping"
        if not self._open:
            return "starting: the ledger is not open yet"
        return None

    def _tell_why(self, state: RetryCallState) -> None:
        self._unopened = str(state.outcome.exception()) if state.outcome is not None else self._unopened
        _tell_why(state)

    async def _ledger_trouble(self, ledger: Ledger) -> str | None:
        if not self._open:
            return self._unopened
        await ledger.ping(now=self.clock.now())
        return None

    async def _standstill(self) -> str | None:
        return await self._rounds.trouble() if self._rounds is not None else None


def open_channels(settings: Settings) -> dict[str, Channel]:
    """The channels that are switched on. Opens no connection."""
    return {name: CHANNEL_TYPES[name].open(section) for name, section in settings.channel_sections.items()}


def make_renderer(
    settings: Settings, first: Sequence[Path] = (), failed: Callable[[str], None] = lambda _: None
) -> Renderer:
    """The renderer over the configured templates. Raises TemplateError for a folder that isn't there.

    `first`: folders of templates that go before the settings'.
    """
    templates = settings.templates
    return Renderer(
        [*first, *templates.path],
        overrides=templates.match,
        console_url=settings.console_url,
        logs_url=settings.logs_url,
        severity=_severity(settings),
        provided=TEMPLATES,
        failed=failed,
    )


def _severity(settings: Settings) -> Callable[[Event], str | None]:
    """What the channels' sections say of an event's severity."""
    sayings = [one.severity_of for one in settings.channel_sections.values() if hasattr(one, "severity_of")]

    def severity(event: Event) -> str | None:
        execution = event.execution
        return next(filter(None, (say(event.phase, execution.domain, event.labels) for say in sayings)), None)

    return severity


def make_planner(
    settings: Settings, channels: Mapping[str, Channel], template_failed: Callable[[str], None] = lambda _: None
) -> Planner:
    """The planner over the configured channels and templates. Raises SettingsError for templates that can't
    be read, and for recipients of the settings (fallbacks, `rules.recipients`, the canary) that can't be reached.

    `template_failed`: told the channel of each message for which a built-in template stood in.
    """
    renderer = make_renderer(settings, failed=template_failed)
    fallbacks = {
        name: section.fallback
        for name, section in settings.channel_sections.items()
        if getattr(section, "fallback", "none") != "none"
    }
    planner = Planner(
        addresses={name: channel.address for name, channel in channels.items()},
        fallbacks=fallbacks,
        render=renderer.render,
        look=renderer.look,
        changes={
            name: renderer.change
            for name, section in settings.channel_sections.items()
            if getattr(section, "change_events", False)
        },
        thread_by={name: channel.thread_by for name, channel in channels.items() if name not in GROUPED},
        last_resorts={name: section.fallback_recipients for name, section in settings.channel_sections.items()},
        moved={recipient: meant.one for recipient, meant in settings.rules.recipients.items()},
    )
    problems = [*planner.unreachable(), *_unreachable_canary(settings, planner)]
    if problems:
        raise SettingsError("\n".join(problems))
    return planner


def _unreachable_canary(settings: Settings, planner: Planner) -> Iterator[str]:
    """Why the canary could never arrive."""
    if settings.canary is not None:
        try:
            planner.target(settings.canary.channel, settings.canary.recipient)
        except UnknownRecipient as error:
            yield f"canary: {settings.canary.recipient} by {settings.canary.channel}: {error.reason}"


@asynccontextmanager
async def asking_flyte_admin(settings: Settings, clock: Clock) -> AsyncIterator[FlyteAdmin | None]:
    """The client of FlyteAdmin, or None where it is switched off. Raises SettingsError where it can't be made."""
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
    """The one who looks for executions whose event was lost; it ends once `stopping` is set."""
    options = settings.reconcile
    return Reconciler(admin, ledger, intake, clock, options.window, options.patience, stopping or asyncio.Event())


async def migrated(settings: LedgerSettings) -> Schema:
    """What the ledger's tables were before they were brought up to date.

    Raises SettingsError and LedgerIncompatible, and LedgerUnavailable where it stays so for LEDGER_PATIENCE seconds.
    """
    ledger = Ledger(settings.url, settings.timeout, settings.password_file)
    try:
        return await _patiently(ledger)
    finally:
        await ledger.aclose()


def _tell_why(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    log.warning("waiting for the ledger", attempt=state.attempt_number, reason=str(error))


async def _patiently(ledger: Ledger, tell: Callable[[RetryCallState], None] = _tell_why) -> Schema:
    """Migrate: a database that starts beside us is often a little later, so try for a while."""
    patiently = AsyncRetrying(
        retry=retry_if_exception_type(LedgerUnavailable),
        wait=wait_exponential(multiplier=0.2, max=3),
        stop=stop_after_delay(LEDGER_PATIENCE),
        before_sleep=tell,
        reraise=True,
    )
    return await patiently(ledger.migrate)
