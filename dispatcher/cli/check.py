"""`dispatcher check`: what is wrong with the configuration, where, and how to mend it."""

from __future__ import annotations

import typer

from dispatcher.cli.options import Config


def check(config: Config = None) -> None:
    """Validate the settings, the rule files and the templates. Exit status 1 where something is wrong."""
    from dispatcher.clock import SystemClock
    from dispatcher.flyte_admin import open_flyte_admin
    from dispatcher.rules.files import LaunchPlanFiles
    from dispatcher.service import make_planner, make_renderer, open_channels
    from dispatcher.settings import load

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
