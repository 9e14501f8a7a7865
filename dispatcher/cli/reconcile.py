"""`dispatcher reconcile`: records finished executions whose terminal event never arrived."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli._open_ledger import with_ledger
from dispatcher.cli._options import AsJson, Config, parse_since
from dispatcher.cli._output import log_warnings_only, number_text, time_text, write_json, write_line

if TYPE_CHECKING:
    from datetime import datetime

    from dispatcher.config.settings import Settings
    from dispatcher.ledger import Ledger
    from dispatcher.model.event import Event

Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        help="How far back to check: a duration before now (24h, 7d) or a time (2026-11-20T09:00Z).",
        show_default="reconcile.look_back of the settings",
    ),
]


def reconcile(
    config: Config = None,
    since: Since = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the executions; record nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Record executions that finished without an event. The command searches FlyteAdmin for the executions and adds
    their terminal events to the ledger. The running service then sends the notifications.
    """
    from dispatcher.clock import SystemClock
    from dispatcher.config.settings import load
    from dispatcher.errors import SettingsError

    settings = load(config)
    if settings.rules.flyte_admin is None:
        raise SettingsError("reconcile needs rules.flyte_admin: it is FlyteAdmin that knows of every execution")
    log_warnings_only()
    now = SystemClock().now()
    wanted = parse_since(since, now=now) or now - settings.reconcile.look_back

    async def reconcile_once(ledger: Ledger) -> tuple[datetime, list[Event]]:
        return await _reconcile(ledger, settings, wanted, dry_run=dry_run)

    start, lost = with_ledger(config, reconcile_once)
    if as_json:
        write_json([_as_data(event) for event in lost])
        return
    if start > wanted:
        write_line(f"checked only from {time_text(start)} UTC on: the ledger has no older events", err=True)
    for event in lost:
        write_line(f"{time_text(event.occurred_at)}  {event.key}")
    write_line(
        f"{number_text(len(lost), 'execution')} finished without an event{'' if dry_run or not lost else ', recorded now'}"
    )


async def _reconcile(
    ledger: Ledger, settings: Settings, wanted: datetime, *, dry_run: bool
) -> tuple[datetime, list[Event]]:
    """Find the terminal events since `wanted` that the ledger lacks, and record them unless `dry_run` is set.

    Returns the start of the checked time range, and the events. The start is later than `wanted` if the ledger is
    complete only from a later time on.
    """
    from dispatcher.clock import SystemClock
    from dispatcher.intake.pipeline import Intake
    from dispatcher.intake.reconcile import Reconciler
    from dispatcher.runtime.wiring import (
        configured_flyte_admin,
        make_contents,
        make_planner,
        make_rule_files,
        open_channels,
    )

    rules = make_rule_files(settings)
    rules.load()
    clock = SystemClock()
    lost: list[Event] = []
    async with configured_flyte_admin(settings, clock) as admin:
        if admin is None:
            return wanted, lost
        planner = make_planner(settings, open_channels(settings))
        intake = Intake(
            ledger, lambda: rules.book, planner, make_contents(settings, planner.contacts), clock, look_up=admin.look_up
        )
        options = settings.reconcile
        reconciler = Reconciler(admin, ledger, intake, clock, options.look_back, options.min_age)
        time_range = await reconciler.range_since(wanted)
        async with aclosing(reconciler.missing(time_range)) as pages:
            async for page in pages:
                lost += page
                if not dry_run:
                    await reconciler.record(page)
    return time_range.since, lost


def _as_data(event: Event) -> dict[str, Any]:
    return {
        "event": event.key,
        "execution": event.execution.model_dump(),
        "phase": event.phase,
        "ended_at": event.occurred_at,
        "launch_plan": str(event.launch_plan or ""),
    }
