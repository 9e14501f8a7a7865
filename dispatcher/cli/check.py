"""`dispatcher check`: what is wrong with the configuration, where, and how to mend it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli._options import Config

if TYPE_CHECKING:
    from channels.contract import Channel, Finding
    from dispatcher.config.settings import Settings

Live = Annotated[
    bool, typer.Option("--live", help="Also reach for Kafka, the ledger, FlyteAdmin and the providers; tells nobody.")
]


def check(config: Config = None, live: Live = False) -> None:
    """Validate the settings, the rule files and the templates. Exit status 1 where something is wrong."""
    import asyncio

    from dispatcher.clock import SystemClock
    from dispatcher.config.settings import load
    from dispatcher.flyte.admin import open_flyte_admin
    from dispatcher.rules.files import LaunchPlanFiles
    from dispatcher.runtime.service import make_planner, make_renderer, open_channels

    settings = load(config)
    if settings.rules.flyte_admin is not None:
        open_flyte_admin(settings.rules.flyte_admin, SystemClock())
    make_planner(settings, open_channels(settings))
    rules = LaunchPlanFiles(settings.rules.launch_plans)
    rules.load()
    problems = [*rules.problems, *make_renderer(settings).check()]
    for problem in problems:
        typer.echo(str(problem), err=True)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        typer.echo(f"{count} found", err=True)
        raise typer.Exit(1)
    sources = [name for name in ("kafka", "http") if getattr(settings, name) is not None]
    typer.echo(f"settings   ok: events from {' and '.join(sources) or 'nowhere: add kafka or http'}")
    typer.echo(f"channels   ok: {', '.join(settings.channel_sections) or 'none: every delivery would be dead'}")
    total = sum(len(plan.rules) for plan in rules.book.plans.values())
    admin = settings.rules.flyte_admin
    asked = f", after what FlyteAdmin at {admin.endpoint} says" if admin is not None else ""
    typer.echo(f"rules      ok: {total} in {len(rules.book.plans)} launch plans{asked}")
    typer.echo("templates  ok")
    if live and not asyncio.run(_try_all(settings)):
        raise typer.Exit(1)


async def _try_all(settings: Settings) -> bool:
    """Reach for everything at the same time; a line for each finding, in the same order always. Whether all is well."""
    import asyncio

    from dispatcher.observability import logs
    from dispatcher.runtime.service import open_channels

    logs.configure("console", level=logging.CRITICAL)  # what goes wrong is in the findings
    channels = open_channels(settings)
    async with asyncio.TaskGroup() as reaching:
        tries = {
            "kafka": reaching.create_task(_try_kafka(settings)),
            "ledger": reaching.create_task(_try_ledger(settings)),
            "admin": reaching.create_task(_try_flyte_admin(settings)),
            **{name: reaching.create_task(_try_channel(channel)) for name, channel in channels.items()},
        }
    problems = 0
    for name, tried in tries.items():
        for finding in tried.result():
            typer.echo(f"{name:<10} {'ok' if finding.ok else 'problem'}: {finding.says}")
            problems += not finding.ok
    if problems:
        typer.echo("1 problem found" if problems == 1 else f"{problems} problems found", err=True)
    return not problems


async def _try_kafka(settings: Settings) -> Sequence[Finding]:
    from dispatcher.intake.kafka.consumer import examine

    return await examine(settings.kafka) if settings.kafka is not None else ()


async def _try_ledger(settings: Settings) -> Sequence[Finding]:
    from channels.contract import Finding
    from dispatcher.cli._output import time_text
    from dispatcher.clock import SystemClock
    from dispatcher.errors import DispatcherError
    from dispatcher.ledger import Ledger

    try:
        async with Ledger(settings.ledger.url, password_file=settings.ledger.password_file) as ledger:
            await ledger.ping(now=SystemClock().now())
            newest = await ledger.newest()
    except DispatcherError as error:
        return [Finding(f"{error}; check ledger.url", ok=False)]
    seen = f"the last event was {newest[0]}, at {time_text(newest[1])} UTC" if newest else "no event was recorded yet"
    return [Finding(f"it can be written; {seen}")]


async def _try_flyte_admin(settings: Settings) -> Sequence[Finding]:
    from channels.contract import Finding
    from dispatcher.clock import SystemClock
    from dispatcher.errors import DispatcherError
    from dispatcher.runtime.service import asking_flyte_admin

    try:
        async with asking_flyte_admin(settings, SystemClock()) as admin:
            if admin is None:
                return ()
            places = await admin.places()
    except DispatcherError as error:
        return [Finding(str(error), ok=False)]
    options = settings.rules.flyte_admin
    login = "the token is accepted" if options is not None and options.client_id else "nobody has to log in"
    projects = len({project for project, _ in places})
    return [Finding(f"it is reached, {login}; projects that it shows us: {projects}")]


async def _try_channel(channel: Channel) -> Sequence[Finding]:
    try:
        return await channel.check()
    finally:
        await channel.aclose()
