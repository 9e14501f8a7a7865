"""`dispatcher check`: finds problems in the configuration, and says where each one is and how to fix it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli._options import AsJson, Config
from dispatcher.cli._output import number_text, time_text, write_json, write_line

if TYPE_CHECKING:
    from datetime import datetime

    from channels.contract import Channel, Finding
    from dispatcher.config.settings import Settings
    from dispatcher.ledger import Ledger
    from dispatcher.model.replica import Replica
    from dispatcher.rules import RuleBook

Findings = Sequence[tuple[str, "Finding"]]
"""Findings, each after its part: `settings`, `rules`, a channel's name."""
_FILES = ("settings", "rules", "templates")
"""The parts whose problems are in files."""
Live = Annotated[
    bool,
    typer.Option(
        "--live", help="Also connect to Kafka, the ledger, FlyteAdmin and the providers. Sends no notifications."
    ),
]


def check(config: Config = None, live: Live = False, as_json: AsJson = False) -> None:
    """Validate the settings, rule files and templates. Exit status 1 if there is a problem."""
    import asyncio

    from dispatcher.config.settings import load
    from dispatcher.errors import InvalidSettings

    try:
        settings = load(config)
        findings = _check_files(settings)
    except InvalidSettings as error:
        findings = _problems("settings", str(error).splitlines())
    if not as_json:
        _write(findings)
    if live and all(finding.ok for _, finding in findings):
        of_connections = asyncio.run(_check_connections(settings))
        findings = [*findings, *of_connections]
        if not as_json:
            _write(of_connections)
    if as_json:
        data = [{"part": part, "result": _result(finding), "message": finding.message} for part, finding in findings]
        write_json({"ok": all(finding.ok for _, finding in findings), "findings": data})
    if problems := [finding for _, finding in findings if not finding.ok]:
        write_line(f"{number_text(len(problems), 'problem')} found", err=True)
        raise typer.Exit(1)


def _write(findings: Findings) -> None:
    """Print one line for each finding. Problems of files begin with their place, and go to standard error."""
    for part, finding in findings:
        if part in _FILES and not finding.ok:
            write_line(finding.message, err=True)
        else:
            write_line(f"{part:<10} {_result(finding)}{finding.message and ': '}{finding.message}")


def _result(finding: Finding) -> str:
    return "problem" if not finding.ok else "warning" if finding.warning else "ok"


def _problems(part: str, messages: Iterable[str]) -> Findings:
    from channels.contract import Finding

    return [(part, Finding(message, ok=False)) for message in messages]


def _check_files(settings: Settings) -> Findings:
    """Return the problems of the settings; without any, those of rules and templates; else what is configured."""
    from dispatcher.runtime.preflight import problems_of, unreachable_recipients
    from dispatcher.runtime.wiring import make_planner, make_renderer, make_rule_files, open_channels

    if problems := problems_of(settings):
        return _problems("settings", problems)
    rules = make_rule_files(settings)
    rules.load()
    unreachable = unreachable_recipients(make_planner(settings, open_channels(settings)), rules.book)
    of_rules = _problems("rules", [*map(str, rules.problems), *unreachable])
    of_templates = _problems("templates", map(str, make_renderer(settings).check()))
    if of_rules or of_templates:
        return [*of_rules, *of_templates]
    return _in_effect(settings, rules.book)


def _in_effect(settings: Settings, book: RuleBook) -> Findings:
    """Return what is configured, and warnings about it."""
    from channels.contract import Finding
    from channels.registry import CHANNEL_TYPES
    from dispatcher.runtime.preflight import NO_FLYTE_ADMIN, NO_START_TIMES, matchers_of, missing_facts

    http_takes_events = settings.http is not None and settings.http.takes_events
    sources = [name for name, used in (("kafka", settings.kafka is not None), ("http", http_takes_events)) if used]
    plans = book.plans.values()
    total = number_text(sum(len(plan.rules) for plan in plans), "rule")
    admin = settings.rules.flyte_admin
    first = f"; FlyteAdmin at {admin.endpoint} is asked first" if admin is not None else ""
    findings = [
        ("settings", Finding(f"events from {' and '.join(sources)}")),
        ("channels", Finding(", ".join(settings.channel_sections))),
        *([("contacts", Finding(", ".join(settings.contact_sections)))] if settings.contact_sections else []),
        ("rules", Finding(f"{total} in {number_text(len(plans), 'launch plan')}{first}")),
        *([("routes", Finding(number_text(len(book.routes), "route")))] if settings.rules.routes else []),
    ]
    if admin is None:
        findings.append(("rules", Finding(NO_FLYTE_ADMIN, warning=True)))
        if any(CHANNEL_TYPES[name].pages for name in settings.channel_sections):
            findings.append(("channels", Finding(NO_START_TIMES, warning=True)))
    findings += [
        ("settings", Finding(settings.located(warning), warning=True))
        for warning in missing_facts(settings, matchers_of(settings))
    ]
    routes = [(f"{route.defined_at}: route {route.name}", route) for route in book.routes.routes]
    findings += [("routes", Finding(warning, warning=True)) for warning in missing_facts(settings, routes)]
    return [*findings, ("templates", Finding(""))]


async def _check_connections(settings: Settings) -> Findings:
    """Check all connections concurrently, and return what was found of each."""
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
    return [(name, finding) for name, check in checks.items() for finding in check.result()]


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
