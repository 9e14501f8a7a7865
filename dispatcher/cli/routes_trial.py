"""`dispatcher routes test`: tries routes on events of the past, and compares with who was notified."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli._dry_run import rules_in_files
from dispatcher.cli._input import name_of, opened
from dispatcher.cli._open_ledger import open_ledger
from dispatcher.cli._options import AsJson, Config, Since, parse_since
from dispatcher.cli._output import log_warnings_only, number_text, write_json, write_line, write_table

if TYPE_CHECKING:
    from datetime import timedelta

    from dispatcher.config.settings import Settings
    from dispatcher.model.event import Event
    from dispatcher.rules import RouteBook
    from dispatcher.trial import Trial

_MAX_ROWS = 30
"""At most this many recipients, routes and changes are printed. JSON has more."""


def try_routes(
    events: Annotated[
        Path | None,
        typer.Option(
            help="Try the events in this file, one JSON document per line; - is standard input.",
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    since: Since = None,
    routes: Annotated[
        list[Path] | None,
        typer.Option(
            help="Try the routes in this file or folder, instead of those in the settings. Can be repeated.",
            exists=True,
            show_default=False,
        ),
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Try routes on events of the past: who would be notified, how often, and what would change. Sends nothing.

    With --since, the events are those in the ledger, compared with who was notified. With --events, the events in a file
    are compared with the routes in the settings, or else, without --routes, with Flyte's rules alone.
    """
    import asyncio

    from dispatcher.config.settings import load
    from dispatcher.rules import RouteBook
    from dispatcher.runtime.wiring import make_planner, open_channels
    from dispatcher.trial import Trial

    if (events is None) == (since is None):
        raise typer.BadParameter("give --since, such as 7d, or --events with a file")
    log_warnings_only()
    settings = load(config)
    trial = Trial(make_planner(settings, open_channels(settings)), rules_in_files(settings, routes))
    span: timedelta | None = None
    if events is None:
        compared_with, span = "who was notified", asyncio.run(_recorded(settings, trial, since or ""))
    else:
        compared_with = "the routes in the settings" if routes else "Flyte's rules alone"
        before = rules_in_files(settings).routes if routes else RouteBook()
        asyncio.run(_in_file(settings, trial, events, before))
    data = {"compared_with": compared_with, **trial.as_data(span)}
    if as_json:
        write_json(data)
    else:
        _print(data)


async def _recorded(settings: Settings, trial: Trial, since: str) -> timedelta:
    """Try the events of the ledger. Returns how much time they are from."""
    from dispatcher.clock import SystemClock

    now = SystemClock().now()
    start = parse_since(since, now=now) or now
    async with open_ledger(settings) as ledger:
        async for stored, was in ledger.history.notified_since(start):
            trial.add_recorded(stored, was)
    return now - start


async def _in_file(settings: Settings, trial: Trial, file: Path, before: RouteBook) -> None:
    """Try the events in a file. Raises BadParameter, which names the file, if they can't be read."""
    from dispatcher.clock import SystemClock
    from dispatcher.errors import Unreadable
    from dispatcher.runtime.wiring import configured_flyte_admin
    from dispatcher.trial import try_events

    async with configured_flyte_admin(settings, SystemClock()) as admin:
        try:
            await try_events(trial, _events(file), before, admin)
        except Unreadable as problem:
            raise typer.BadParameter(f"{name_of(file)}: {problem}") from None


def _events(file: Path) -> Iterator[Event]:
    """Yield the events in a file, without messages of other types. Raises Unreadable."""
    from dispatcher.errors import Unreadable
    from dispatcher.flyte.decode import decode
    from dispatcher.flyte.event_files import read_messages

    with opened(file) as content:
        for number, (headers, value) in enumerate(read_messages(content), start=1):
            try:
                event = decode(headers, value)
            except Unreadable as problem:
                raise Unreadable(f"event {number}: {problem}") from None
            if event is not None:
                yield event


def _print(data: Mapping[str, Any]) -> None:
    total = data["notifications"]
    held = f"; {total['held']:,} held by quiet hours" if total["held"] else ""
    write_line(f"{number_text(data['events'], 'event')}, compared with {data['compared_with']}")
    write_line(
        f"notifications: {total['was']:,} before, {total['would_be']:,} with these routes "
        f"({total['new']:,} new, {total['no_longer']:,} no longer), {total['a_day']:g} a day{held}"
    )
    _write_first(
        ("ROUTE", "MATCHES", "UNKNOWN", "FACTS THAT EVENTS LACK", "DEFINED AT"),
        [
            (one["name"], one["matched"], one["undecided"], ", ".join(one["unknown"]), one["defined_at"])
            for one in sorted(data["routes"], key=lambda one: -one["matched"] - one["undecided"])
        ],
        "routes",
    )
    _write_first(
        ("CHANNEL", "RECIPIENT", "BEFORE", "WITH THESE", "HELD", "A DAY", "MOST IN A DAY"),
        [
            (
                one["channel"],
                one["address"],
                one["was"],
                one["would_be"],
                one["held"],
                f"{one['a_day']:g}",
                one["most_in_a_day"],
            )
            for one in data["recipients"]
        ],
        "recipients",
        head=2,
    )
    _write_first(
        ("DAY", "BEFORE", "WITH THESE"), [(one["day"], one["was"], one["would_be"]) for one in data["by_day"]], "days"
    )
    changes = [(one["event"], _named(one["new"]), _named(one["no_longer"])) for one in data["changes"]]
    _write_first(("EVENT", "NEW", "NO LONGER"), changes, "changed events", more=data["changes_left_out"])


def _write_first(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], what: str, *, more: int = 0, head: int = 1
) -> None:
    if not rows:
        return
    write_line()
    write_table(columns, rows[:_MAX_ROWS], head=head)
    more += len(rows[_MAX_ROWS:])
    if more:
        write_line(f"and {more:,} more {what}")


def _named(recipients: Sequence[Mapping[str, str]]) -> str:
    return ", ".join(f"{one['channel']}: {one['address']}" for one in recipients)
