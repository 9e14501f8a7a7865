"""`dispatcher check`: finds problems in the configuration, and says where each one is and how to fix it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from dispatcher.cli._options import Config
from dispatcher.cli._output import time_text, write_line

if TYPE_CHECKING:
    from datetime import datetime

    from channels.contract import Channel, Finding
    from dispatcher.config.settings import Settings
    from dispatcher.ledger import Ledger
    from dispatcher.model.replica import Replica

Live = Annotated[
    bool,
    typer.Option(
        "--live", help="Also connect to Kafka, the ledger, FlyteAdmin and the providers. Sends no notifications."
    ),
]


def check(config: Config = None, live: Live = False) -> None:
    """Validate the settings, rule files and templates. Exit status 1 if there is a problem."""
    import asyncio

    from channels.registry import CHANNEL_TYPES
    from dispatcher.config.settings import load
    from dispatcher.errors import InvalidSettings
    from dispatcher.rules.files import RuleFiles
    from dispatcher.runtime.preflight import NO_FLYTE_ADMIN, NO_START_TIMES, problems_of, unreachable_recipients
    from dispatcher.runtime.wiring import make_planner, make_renderer, open_channels

    try:
        settings = load(config)
    except InvalidSettings as error:
        _stop_with(str(error).splitlines())
    problems = problems_of(settings)
    if problems:
        _stop_with(problems)
    rules = RuleFiles(settings.rules.launch_plans)
    rules.load()
    unreachable = unreachable_recipients(make_planner(settings, open_channels(settings)), rules.book)
    problems = [*map(str, rules.problems), *unreachable, *map(str, make_renderer(settings).check())]
    if problems:
        _stop_with(problems)
    http_takes_events = settings.http is not None and settings.http.takes_events
    sources = [name for name, used in (("kafka", settings.kafka is not None), ("http", http_takes_events)) if used]
    write_line(f"settings   ok: events from {' and '.join(sources)}")
    write_line(f"channels   ok: {', '.join(settings.channel_sections)}")
    total = sum(len(plan.rules) for plan in rules.book.plans.values())
    admin = settings.rules.flyte_admin
    first = f"; FlyteAdmin at {admin.endpoint} is asked first" if admin is not None else ""
    write_line(f"rules      ok: {total} in {len(rules.book.plans)} launch plans{first}")
    if admin is None:
        write_line(f"rules      warning: {NO_FLYTE_ADMIN}")
        if any(CHANNEL_TYPES[name].pages for name in settings.channel_sections):
            write_line(f"channels   warning: {NO_START_TIMES}")
    write_line("templates  ok")
    if live and not asyncio.run(_check_connections(settings)):
        raise typer.Exit(1)


def _stop_with(problems: Sequence[str]) -> NoReturn:
    """Print the problems and their number on standard error, and exit with status 1."""
    for problem in problems:
        write_line(problem, err=True)
    write_line("1 problem found" if len(problems) == 1 else f"{len(problems)} problems found", err=True)
    raise typer.Exit(1)


async def _check_connections(settings: Settings) -> bool:
    """Check all connections concurrently, and print one line for each finding. Returns True if every finding is ok."""
    import asyncio

    from dispatcher.observability import logs
    from dispatcher.runtime.wiring import open_channels

    logs.configure("console", level=logging.CRITICAL)  # the findings report the errors, so the log would repeat them
    channels = open_channels(settings)
    async with asyncio.TaskGroup() as group:
        checks = {
            "kafka": group.create_task(_check_kafka(settings)),
            "ledger": group.create_task(_check_ledger(settings)),
            "admin": group.create_task(_check_flyte_admin(settings)),
            **{name: group.create_task(_check_channel(channel)) for name, channel in channels.items()},
        }
    problems = 0
    for name, check in checks.items():
        for finding in check.result():
            result = "problem" if not finding.ok else "warning" if finding.warning else "ok"
            write_line(f"{name:<10} {result}: {finding.message}")
            problems += not finding.ok
    if problems:
        write_line("1 problem found" if problems == 1 else f"{problems} problems found", err=True)
    return not problems


async def _check_kafka(settings: Settings) -> Sequence[Finding]:
    from dispatcher.intake.kafka.check import check as check_kafka

    return await check_kafka(settings.kafka) if settings.kafka is not None else ()


async def _check_ledger(settings: Settings) -> Sequence[Finding]:
    from contextlib import aclosing

    from channels.contract import Finding
    from dispatcher.errors import DispatcherError
    from dispatcher.ledger import Ledger

    section = settings.ledger
    async with aclosing(Ledger(section.url, password_file=section.password_file)) as ledger:
        try:
            schema = await ledger.schema()
            if not schema.compatible and not schema.newer:
                tables = "has no tables yet" if schema.version is None else f"is at version {schema.version}"
                advice = "`dispatcher serve` or `dispatcher ledger migrate` creates what is missing"
                return [Finding(f"it is reached, and {tables}: {advice}", warning=True)]
            schema.require_compatible()
            return await _ledger_findings(settings, ledger)
        except DispatcherError as error:
            return [Finding(f"{error}; check ledger.url", ok=False)]


async def _ledger_findings(settings: Settings, ledger: Ledger) -> Sequence[Finding]:
    """Return what a ledger with tables says. Raises DispatcherError if it can't be read or written."""
    from channels.contract import Finding
    from dispatcher.clock import SystemClock
    from dispatcher.observability.clock_monitor import clock_problem
    from dispatcher.runtime.preflight import removed_channels

    clock = SystemClock()
    await ledger.checkpoints.ping(now=clock.now())
    newest = await ledger.history.newest()
    last = f"last event {newest[0]}, recorded at {time_text(newest[1])} UTC" if newest else "no events yet"
    findings = [Finding(f"writable; {last}")]
    backlog = await ledger.queries.backlog(now=clock.now())
    findings += [Finding(problem, warning=True) for problem in removed_channels(settings, backlog)]
    if wrong_clock := clock_problem(await ledger.clock_offset(clock.now)):
        findings.append(Finding(wrong_clock, warning=True))
    return [*findings, *_replica_findings(await ledger.replicas.all(), clock.now())]


def _replica_findings(replicas: Sequence[Replica], now: datetime) -> list[Finding]:
    """Return what the replicas' rows say: which replicas run, and what does not work in them."""
    from channels.contract import Finding
    from dispatcher.observability.clock_monitor import clock_problem

    running = [one for one in replicas if one.seen(now)]
    findings = [Finding(f"replica {one.name} runs, version {one.version}") for one in running]
    findings += [
        Finding(f"replica {one.name} was last seen at {time_text(one.seen_at)} UTC", warning=True)
        for one in replicas
        if one not in running
    ]
    for one in running:
        problems = [f"{name}: {reason}" for name, reason in sorted(one.components.items()) if reason is not None]
        problems += [
            f"the circuit breaker of {name} is open since {time_text(status.breaker_open_since)} UTC"
            for name, status in sorted(one.channels.items())
            if status.breaker_open_since is not None
        ]
        if wrong_clock := clock_problem(timedelta(seconds=one.clock_offset), "its"):
            problems.append(wrong_clock)
        findings += [Finding(f"replica {one.name}: {problem}", warning=True) for problem in problems]
    return findings


async def _check_flyte_admin(settings: Settings) -> Sequence[Finding]:
    from channels.contract import Finding
    from dispatcher.clock import SystemClock
    from dispatcher.errors import DispatcherError
    from dispatcher.runtime.wiring import configured_flyte_admin

    try:
        async with configured_flyte_admin(settings, SystemClock()) as admin:
            if admin is None:
                return ()
            places = await admin.places()
    except DispatcherError as error:
        return [Finding(str(error), ok=False)]
    options = settings.rules.flyte_admin
    login = "the token is accepted" if options is not None and options.client_id else "it requires no login"
    projects = len({project for project, _ in places})
    return [Finding(f"it is reached, {login}; projects that the client can see: {projects}")]


async def _check_channel(channel: Channel) -> Sequence[Finding]:
    try:
        return await channel.check()
    finally:
        await channel.aclose()
