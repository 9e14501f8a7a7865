"""`dispatcher rejected`: lists, shows, replays and dismisses rejected messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli._input import named
from dispatcher.cli._open_ledger import with_ledger
from dispatcher.cli._operations import By, Reason, Yes, asks, confirm, operations, operator
from dispatcher.cli._options import AsJson, Config, Limit, Since, parse_since
from dispatcher.cli._output import (
    log_warnings_only,
    number_text,
    time_text,
    when_text,
    write_details,
    write_json,
    write_line,
    write_table,
    write_text,
)

if TYPE_CHECKING:
    from dispatcher.config.settings import Settings
    from dispatcher.intake.pipeline import ReplayResult
    from dispatcher.ledger import Ledger, Rejected
    from dispatcher.operations import Operator

MAX_REPLAYED = 10_000

rejected = typer.Typer(
    help="List, show, replay or dismiss rejected messages. A message is rejected if it cannot be decoded or its rules are unknown.",
    no_args_is_help=True,
)
Ids = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ID", help="Ids of rejected messages, or the first digits; - reads them from standard input."
    ),
]


@rejected.command("list")
def list_(config: Config = None, since: Since = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List rejected messages, newest first."""
    from dispatcher.clock import SystemClock
    from dispatcher.explain import rejected_data

    now = SystemClock().now()
    start = parse_since(since, now=now)
    found = with_ledger(config, lambda ledger: ledger.rejected.find(limit=limit, since=start))
    if as_json:
        write_json([rejected_data(entry) for entry in found])
        return
    write_table(
        ("ID", "RECEIVED", "POSITION", "BYTES", "REASON"),
        [
            (entry.id[:8], when_text(entry.received_at, now=now), entry.position, entry.size, entry.reason)
            for entry in found
        ],
        head=2,
    )


@rejected.command()
def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The message's id, or the first digits of it.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show one rejected message. Prints its reason, position, headers and stored bytes."""
    from dispatcher.explain import rejected_details

    found = with_ledger(config, lambda ledger: ledger.rejected.find(limit=2, id_starts=id_))
    if len(found) != 1:
        how_many = "no rejected message" if not found else "more than one rejected message"
        write_line(f"dispatcher: {how_many} begins with {id_!r}", err=True)
        raise typer.Exit(1)
    (entry,) = found
    if as_json:
        write_json(rejected_details(entry))
        return
    write_details(
        [
            ("id", entry.id),
            ("reason", entry.reason),
            ("received", time_text(entry.received_at)),
            ("position", entry.position),
            ("event", entry.event),
            ("replayed", time_text(entry.replayed_at)),
            ("dismissed", time_text(entry.dismissed_at)),
            ("size", f"{entry.size} bytes" + ("" if entry.whole else f", the first {len(entry.body)} kept")),
            *((name, value.decode(errors="replace")) for name, value in entry.headers),
        ]
    )
    write_line()
    write_text(entry.body.decode(errors="replace") + "\n")


@rejected.command()
def replay(
    ids: Ids = None,
    config: Config = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Replay all messages that were neither replayed nor dismissed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what a replay would do.")] = False,
    by: By = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Process rejected messages again. The command uses the current rules and decoder. The running service then sends
    the notifications.
    """
    from dataclasses import asdict

    from dispatcher.config.settings import load

    chosen, who = _chosen(ids, everything=everything), None if dry_run else operator(by, reason)
    log_warnings_only()
    settings = load(config)

    def note(entry: Rejected, result: ReplayResult) -> None:
        if not as_json:
            write_line(f"{entry.id[:8]}  {result.message}")

    results = with_ledger(config, lambda ledger: _replay(ledger, settings, chosen, who, note))
    accepted = sum(result.accepted for result in results.values())
    if as_json:
        write_json({"accepted": accepted, "messages": [{"id": id_, **asdict(one)} for id_, one in results.items()]})
    else:
        write_line(f"{accepted} {'would be ' if dry_run else ''}accepted now")


@rejected.command()
def dismiss(
    ids: Ids = None,
    config: Config = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Dismiss all messages that were neither replayed nor dismissed.")
    ] = False,
    since: Since = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the messages; change nothing.")] = False,
    yes: Yes = False,
    by: By = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Dismiss rejected messages that nobody needs any more. They then no longer count. A dismissed message can still be
    replayed, by its id.
    """
    from dispatcher.clock import SystemClock
    from dispatcher.explain import rejected_data

    chosen = _chosen(ids, everything=everything)
    log_warnings_only()
    start, who = parse_since(since, now=SystemClock().now()), operator(by, reason)

    async def find(ledger: Ledger) -> dict[str, Rejected]:
        found = [
            one
            for starts in chosen
            for one in await ledger.rejected.find(limit=MAX_REPLAYED, since=start, id_starts=starts)
        ]
        return {one.id: one for one in found if _undecided(one)}

    found = with_ledger(config, find)
    if dry_run:
        if as_json:
            write_json([rejected_data(one) for one in found.values()])
            return
        for one in found.values():
            write_line(f"{one.id[:8]}  {one.reason}")
        return
    if found and asks(yes=yes):
        confirm(f"Dismiss {number_text(len(found), 'rejected message')}?")
    number = with_ledger(config, lambda ledger: operations(ledger).dismiss_rejected([*found], who)) if found else 0
    if as_json:
        write_json({"messages": number})
        return
    write_line(f"{number_text(number, 'message')} dismissed")


def _chosen(ids: Sequence[str] | None, *, everything: bool) -> Sequence[str]:
    """Return the beginnings of the ids that the user gives; the empty one for all. Raises BadParameter without any."""
    if not ids and not everything:
        raise typer.BadParameter("give the ids of rejected messages, or --all")
    return named(ids) or [""]


def _undecided(entry: Rejected, *, named: bool = False) -> bool:
    """True if the message was neither replayed nor dismissed. `named`: the user named it, so it may be dismissed."""
    return entry.replayed_at is None and (named or entry.dismissed_at is None)


async def _replay(
    ledger: Ledger,
    settings: Settings,
    ids: Sequence[str],
    by: Operator | None,
    note: Callable[[Rejected, ReplayResult], None],
) -> dict[str, ReplayResult]:
    """Replay each message, or without `by` only find out what a replay would do. Returns each message's result, by id.

    `note` is called after each message.
    """
    from dispatcher.clock import SystemClock
    from dispatcher.intake.pipeline import Intake
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
    planner = make_planner(settings, open_channels(settings))
    found = [entry for start in ids for entry in await ledger.rejected.find(limit=MAX_REPLAYED, id_starts=start)]
    results = {}
    async with configured_flyte_admin(settings, clock) as admin:
        look_up = admin.look_up if admin is not None else None
        intake = Intake(
            ledger, lambda: rules.book, planner, make_contents(settings, planner.contacts), clock, look_up=look_up
        )
        replays = operations(ledger, intake)
        for entry in {entry.id: entry for entry in found if _undecided(entry, named=ids != [""])}.values():
            result = await (replays.replay(entry, by) if by is not None else intake.replay(entry, dry_run=True))
            results[entry.id] = result
            note(entry, result)
    return results
