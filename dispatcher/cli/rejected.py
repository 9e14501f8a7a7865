"""`dispatcher rejected`: messages that could not be understood, or whose rules can't be known."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli.ledger import asking
from dispatcher.cli.options import AsJson, Config, Limit, Since, moment

if TYPE_CHECKING:
    from dispatcher.ledger import Rejected

rejected = typer.Typer(
    help="Messages that could not be understood, or whose rules can't be known.", no_args_is_help=True
)


@rejected.command("list")
def list_(config: Config = None, since: Since = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List rejected messages, newest first."""
    from dispatcher.cli.output import time_text, write_json, write_table
    from dispatcher.clock import SystemClock

    start = moment(since, now=SystemClock().now())
    found = asyncio.run(asking(config, lambda ledger: ledger.find_rejected(limit=limit, since=start)))
    if as_json:
        write_json([_as_data(entry) for entry in found])
        return
    write_table(
        ("ID", "RECEIVED (UTC)", "POSITION", "BYTES", "REASON"),
        [(entry.id[:8], time_text(entry.received_at), entry.position, entry.size, entry.reason) for entry in found],
    )


@rejected.command()
def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="A rejected message's id, or its beginning.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show one rejected message whole: why, from where, its headers and what was kept of its bytes."""
    from dispatcher.cli.output import console, time_text, write_facts, write_json

    found = asyncio.run(asking(config, lambda ledger: ledger.find_rejected(limit=2, id_starts=id_)))
    if len(found) != 1:
        how_many = "no rejected message" if not found else "more than one rejected message"
        typer.echo(f"dispatcher: {how_many} begins with {id_!r}", err=True)
        raise typer.Exit(1)
    (entry,) = found
    body = entry.body.decode(errors="replace")
    if as_json:
        headers = [[name, value.decode(errors="replace")] for name, value in entry.headers]
        write_json({**_as_data(entry), "headers": headers, "body": body, "whole": entry.whole})
        return
    write_facts(
        [
            ("id", entry.id),
            ("reason", entry.reason),
            ("received", time_text(entry.received_at)),
            ("position", entry.position),
            ("event", entry.event),
            ("size", f"{entry.size} bytes" + ("" if entry.whole else f", the first {len(entry.body)} kept")),
            *((name, value.decode(errors="replace")) for name, value in entry.headers),
        ]
    )
    console.print()
    console.print(body, markup=False, highlight=False)


def _as_data(entry: Rejected) -> dict[str, Any]:
    return {
        "id": entry.id,
        "position": entry.position,
        "received_at": entry.received_at,
        "reason": entry.reason,
        "event": entry.event,
        "size": entry.size,
        "replayed_at": entry.replayed_at,
    }
