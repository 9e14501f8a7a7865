"""`dispatcher silences`: adds, lists, shows, ends and extends silences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli._open_ledger import with_ledger
from dispatcher.cli._operations import By, Reason, operator
from dispatcher.cli._options import AsJson, Config
from dispatcher.cli._output import (
    log_warnings_only,
    number_text,
    time_text,
    when_text,
    write_details,
    write_json,
    write_line,
    write_table,
)

if TYPE_CHECKING:
    from datetime import datetime

    from dispatcher.ledger import Ledger
    from dispatcher.silences import SilenceEnd, SilenceOperations

silences = typer.Typer(
    help="Hold back notifications for a time, as in a maintenance. At the end, one summary says what was held.",
    no_args_is_help=True,
)
_Match = Annotated[
    list[str],
    typer.Option(
        "--match",
        metavar="KEY=VALUE",
        help="Which events: a key of a matcher and a pattern, such as project=flytesnacks, labels.team=ml or "
        "not.phase=ABORTED. Can be repeated: all keys must match; of several patterns for one key, one.",
        show_default=False,
    ),
]
_For = Annotated[str | None, typer.Option("--for", help="How long, such as 2h.", show_default=False)]
_Longer = Annotated[str | None, typer.Option("--for", help="How much longer, such as 2h.", show_default=False)]
_Until = Annotated[str | None, typer.Option("--until", help="When it ends: 2026-11-20T18:00Z.", show_default=False)]
_From = Annotated[str | None, typer.Option("--from", help="When it begins: 2026-11-20T16:00Z.", show_default="now")]
_Then = Annotated[
    str,
    typer.Option(
        "--then",
        metavar="[summary|send|drop]",
        help="At the end: one summary to each recipient, each message, or nothing of what occurred meanwhile.",
    ),
]
_Why = Annotated[str, typer.Option("--reason", help="Why, for those who miss a message.", show_default=False)]
_Id = Annotated[str, typer.Argument(metavar="ID", help="The silence's id, or the first digits of it.")]


@silences.command()
def add(
    match: _Match,
    reason: _Why,
    lasts: _For = None,
    until: _Until = None,
    starts: _From = None,
    then: _Then = "summary",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would have held in the last 7 days.")
    ] = False,
    config: Config = None,
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Hold back the messages of some events for a time. It holds what waits now, what is recorded while it is in force,
    and what occurred while it was.
    """
    from dispatcher.rules.matcher_words import from_pairs
    from dispatcher.silences import NewSilence

    log_warnings_only()
    who = operator(by, reason)
    try:
        matcher = from_pairs(match)
    except ValueError as error:
        raise typer.BadParameter(f"--match: {error}") from None
    given = {
        "match": matcher,
        "reason": reason,
        "starts_at": _time(starts, "--from"),
        "then": then,
        **_end(lasts, until),
    }
    wanted = _validated(NewSilence, {name: value for name, value in given.items() if value is not None})

    async def run(desk: SilenceOperations) -> dict[str, Any]:
        silence = desk.checked(wanted, who.name)
        warnings = await desk.warnings(silence.matcher)
        if dry_run:
            return {"would_have_held": (await desk.trial(silence.matcher)).as_data(), "warnings": warnings}
        await desk.add(silence)
        return {**await desk.details(silence), "warnings": warnings}

    done = _with_silences(config, run)
    for warning in done["warnings"]:
        write_line(f"warning: {warning}", err=True)
    if as_json:
        write_json(done)
    elif dry_run:
        _write_trial(done["would_have_held"])
    else:
        _write_changed(done)


@silences.command("list")
def list_(
    ended: Annotated[bool, typer.Option("--ended", help="Also those that have ended.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List the silences that are in force or planned, newest first."""
    from dispatcher.clock import SystemClock

    async def run(desk: SilenceOperations) -> list[dict[str, Any]]:
        return await desk.listed(ended=ended)

    log_warnings_only()
    found, now = _with_silences(config, run), SystemClock().now()
    if as_json:
        write_json(found)
        return
    write_table(
        ("ID", "STATE", "MATCHES", "STARTS", "ENDS", "THEN", "HOLDS", "BY", "REASON"),
        [
            (
                *(one["id"], one["state"], one["matches"]),
                *(when_text(one["starts_at"], now=now), when_text(one["ends_at"], now=now)),
                *(one["then"], one["holds"], one["author"], one["reason"]),
            )
            for one in found
        ],
    )


@silences.command()
def show(identity: _Id, config: Config = None, as_json: AsJson = False) -> None:
    """Show one silence, and for whom it holds messages now."""

    async def run(desk: SilenceOperations) -> dict[str, Any]:
        return await desk.details(await desk.find(identity))

    log_warnings_only()
    found = _with_silences(config, run)
    if as_json:
        write_json(found)
        return
    write_details(
        [
            *((name, found[name]) for name in ("id", "state", "matches", "author", "reason", "then")),
            ("starts", time_text(found["starts_at"])),
            ("ends", time_text(found["ends_at"])),
            ("holds", number_text(found["holds"], "delivery")),
        ]
    )
    if found["holds_for"]:
        write_line()
        _write_recipients(found["holds_for"])


@silences.command()
def end(identity: _Id, config: Config = None, by: By = None, reason: Reason = "", as_json: AsJson = False) -> None:
    """End a silence now. What it holds goes out, as --then says. One that has not begun never will."""
    log_warnings_only()
    who = operator(by, reason)

    async def run(desk: SilenceOperations) -> dict[str, Any]:
        return await desk.details(await desk.end(await desk.find(identity), who))

    _write_or_json(_with_silences(config, run), as_json=as_json)


@silences.command()
def extend(
    identity: _Id,
    lasts: _Longer = None,
    until: _Until = None,
    config: Config = None,
    by: By = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Let a silence end later. What it holds is held until then."""
    from dispatcher.silences import SilenceEnd

    log_warnings_only()
    who, until_when = operator(by, reason), _validated(SilenceEnd, _end(lasts, until))

    async def run(desk: SilenceOperations) -> dict[str, Any]:
        return await desk.details(await desk.extend(await desk.find(identity), until_when, who))

    _write_or_json(_with_silences(config, run), as_json=as_json)


def _with_silences(config: Path | None, use: Any) -> Any:
    """Call `use` with the operations on silences of the configured ledger, and return its result."""
    from dispatcher.clock import SystemClock
    from dispatcher.config.settings import load
    from dispatcher.silences import SilenceOperations

    asks = load(config).rules.flyte_admin is not None

    async def run(ledger: Ledger) -> Any:
        return await use(SilenceOperations(ledger, SystemClock(), asks))

    return with_ledger(config, run)


def _validated(kind: type[SilenceEnd], given: Mapping[str, Any]) -> Any:
    from pydantic import ValidationError

    from dispatcher.parsing.validation_errors import first_problem

    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise typer.BadParameter(first_problem(error)) from None


def _end(lasts: str | None, until: str | None) -> dict[str, Any]:
    if (lasts is None) == (until is None):
        raise typer.BadParameter("give --for, such as 2h, or --until with a time")
    return {"for": lasts} if lasts is not None else {"ends_at": _time(until, "--until")}


def _time(text: str | None, option: str) -> datetime | None:
    from dispatcher.parsing.duration import parse_timestamp

    try:
        return parse_timestamp(text) if text is not None else None
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


def _write_or_json(done: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        write_json(done)
    else:
        _write_changed(done)


def _write_changed(silence: Mapping[str, Any]) -> None:
    """Print what became of a silence that was added or changed."""
    until = (
        "has ended"
        if silence["state"] == "ended"
        else f"is {silence['state']} until {time_text(silence['ends_at'])} UTC"
    )
    begins = f" from {time_text(silence['starts_at'])} UTC" if silence["state"] == "planned" else ""
    write_line(
        f"silence {silence['id']} {until}{begins}: {silence['matches']}; it holds {number_text(silence['holds'], 'delivery')}"
    )


def _write_trial(trial: Mapping[str, Any]) -> None:
    messages, events = number_text(trial["messages"], "message"), number_text(trial["events"], "event")
    write_line(f"in the last 7 days it would have held {messages} of {events}")
    if trial["recipients"]:
        write_line()
        _write_recipients(trial["recipients"])
    if trial["recipients_left_out"]:
        write_line(f"and {number_text(trial['recipients_left_out'], 'recipient')} more")


def _write_recipients(recipients: Sequence[Mapping[str, Any]]) -> None:
    write_table(
        ("CHANNEL", "ADDRESS", "MESSAGES"), [(one["channel"], one["address"], one["messages"]) for one in recipients]
    )
