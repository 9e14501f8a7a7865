"""The service's HTTP pages: /readyz, /metrics, /events, and the console with its API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from channels.registry import CHANNEL_TYPES
from dispatcher.clock import Clock
from dispatcher.config.settings import Settings
from dispatcher.observability.metrics import Metrics
from dispatcher.runtime.parts import Parts
from dispatcher.runtime.wiring import make_send_test
from dispatcher.web.app import application
from dispatcher.web.auth.access import AccessControl, Scope, needs
from dispatcher.web.event_intake import EventsPage, Take
from dispatcher.web.health import ReadinessCheck, ReadyPage
from dispatcher.web.metrics import Collector, MetricsPage


def make_pages(
    settings: Settings,
    parts: Parts,
    checks: Mapping[str, ReadinessCheck],
    take: Take,
    metrics: Metrics,
    clock: Clock,
    stopping: asyncio.Event,
    inbox_url: str,
) -> ASGIApp:
    """Return the application that serves all pages. The settings have the section `http`.

    `checks` has the readiness checks of what is not in `parts`. `take` records events that were published over HTTP.
    When `stopping` is set, open connections to the console end. `inbox_url`: the demo's inbox, to which the console links.
    """
    http = settings.http
    assert http is not None  # noqa: S101 - for mypy: without this section, nothing is served
    ready = ReadyPage({**readiness_checks(parts), **checks})
    page = MetricsPage(metrics.page, _collectors(ready, parts, metrics, clock), metrics.collector_finished)
    endpoint = page.get if http.metrics == "open" else needs(Scope.READ, page.get)
    console = _console(settings, http.base_path, parts, ready, clock, stopping, inbox_url) if http.console else []
    access_control = AccessControl(http, clock)
    return application(EventsPage(take), ready, endpoint, access_control, console, base_path=http.base_path)


def readiness_checks(parts: Parts) -> dict[str, ReadinessCheck]:
    """Return the readiness checks of the parts, by the component's name."""
    checks: dict[str, ReadinessCheck] = {"watchdog": parts.progress_monitor.unready_reason}
    if parts.source is not None:
        checks["kafka"] = parts.source.unready_reason
    if parts.admin is not None:
        checks["flyte_admin"] = parts.admin.unready_reason
    if parts.canary is not None and parts.canary.config.readiness:
        checks["canary"] = parts.canary.unready_reason
    return checks


def _collectors(ready: ReadyPage, parts: Parts, metrics: Metrics, clock: Clock) -> Mapping[str, Collector]:
    """Return the functions that update metrics at each scrape, by name."""

    async def components() -> None:
        for worker in parts.workers:
            metrics.worker(worker.name, in_flight=worker.in_flight, breaker_open=worker.breaker_open)
        metrics.readiness(await ready.unready_reasons())
        for component, brake in parts.brakes.items():
            metrics.braked(component, ledger=brake.reason is not None, slow=brake.slow)
        metrics.rules(routes=len(parts.rules.book.routes), problems=len(parts.rules.problems))

    async def backlog() -> None:
        metrics.backlog(None, now=clock.now())  # clears old values, in case the ledger does not answer
        metrics.backlog(await parts.ledger.queries.backlog(now=clock.now()), now=clock.now())

    async def holds() -> None:
        metrics.holds(None, now=clock.now())
        metrics.holds(await parts.ledger.held.figures(now=clock.now()), now=clock.now())

    collectors: dict[str, Collector] = {"components": components, "ledger": backlog, "holds": holds}
    if (source := parts.source) is not None:

        async def kafka() -> None:
            metrics.kafka(None, source.last_timestamps())  # clears the old lag, in case the broker does not answer
            metrics.kafka(await source.lag(), source.last_timestamps())

        collectors["kafka"] = kafka
    return collectors


def _console(
    settings: Settings,
    base_path: str,
    parts: Parts,
    ready: ReadyPage,
    clock: Clock,
    stopping: asyncio.Event,
    inbox_url: str,
) -> Sequence[BaseRoute]:
    """Return the HTTP routes of the console and the API."""
    from dispatcher.dry_run import DryRun  # noqa: PLC0415
    from dispatcher.operations import Operations  # noqa: PLC0415
    from dispatcher.web.activity_stream import ActivityStream  # noqa: PLC0415
    from dispatcher.web.api import Api  # noqa: PLC0415 - imported only if the console is on
    from dispatcher.web.console import Console, routes  # noqa: PLC0415
    from dispatcher.web.send_test import SendTestForCallers  # noqa: PLC0415

    def wake_workers() -> None:
        for worker in parts.workers:
            worker.notify()

    ledger = parts.ledger
    operations = Operations(ledger, parts.intake, clock, wake_workers)
    activity_stream = ActivityStream(ledger.queries, stopping)
    dry_run = DryRun(parts.intake.rules, parts.intake.planner, clock, parts.admin)
    sender = make_send_test(settings, parts.channels, parts.intake.planner, clock)
    send_test = SendTestForCallers(sender, lambda: parts.rules.book, ledger)
    api = Api(ledger, operations, activity_stream, clock, CHANNEL_TYPES, dry_run, send_test, base_path=base_path)
    console = Console(
        ledger,
        operations,
        activity_stream,
        clock,
        parts.channels,
        CHANNEL_TYPES,
        dry_run,
        send_test,
        base_path=base_path,
        console_url=settings.console_url,
        logs_url=settings.logs_url,
        inbox_url=inbox_url,
        rule_problems=lambda: parts.rules.problems,
        unready_reasons=ready.unready_reasons,
    )
    return [*api.routes, *routes(console)]
