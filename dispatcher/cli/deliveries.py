"""`dispatcher deliveries`: lists and shows deliveries. Its other commands are in `deliveries_change.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli._attempts import attempt_rows
from dispatcher.cli._deliveries import write_deliveries
from dispatcher.cli._filters import Filters, refuse_unknown_names, with_filters, write_rest
from dispatcher.cli._open_ledger import with_ledger
from dispatcher.cli._operations import write_actions
from dispatcher.cli._options import AsJson, Config, Limit
from dispatcher.cli._output import (
    age_text,
    state_text,
    time_text,
    waits_text,
    write_details,
    write_json,
    write_line,
    write_table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatcher.ledger import Ledger, StoredDelivery
    from dispatcher.ledger.records import Page
    from dispatcher.model.delivery import Delivery

deliveries = typer.Typer(help="List, show and change deliveries, or purge old ones.", no_args_is_help=True)


@deliveries.command("list")
@with_filters()
def list_(filters: Filters, config: Config = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List deliveries, newest first."""
    from dispatcher.clock import SystemClock
    from dispatcher.explain import delivery_data

    wanted, now = filters.wanted(), SystemClock().now()

    async def find(ledger: Ledger) -> Page[StoredDelivery]:
        page = await ledger.queries.deliveries(wanted, limit=limit)
        if not page.entries:
            await refuse_unknown_names(ledger, wanted)
        return replace(page, entries=await ledger.queries.with_waits(page.entries, now=now))

    page = with_ledger(config, find)
    if as_json:
        write_json([delivery_data(stored) for stored in page.entries])
        write_rest(page, limit)
        return
    write_deliveries(page.entries, now=now)
    write_rest(page, limit)


@deliveries.command()
def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The delivery's key, or the first digits of it.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show one delivery. Prints its attempts, the provider's answers and operators' actions; with --json, the message's
    content too.
    """
    from dispatcher.clock import SystemClock
    from dispatcher.explain import about_text, decided_text, delivery_with_history
    from dispatcher.ledger import Filter

    now = SystemClock().now()

    async def load(ledger: Ledger) -> tuple[list[StoredDelivery], dict[str, Any]]:
        found = await ledger.history.find(Filter(keys=[key]), limit=2)
        if len(found) != 1:
            return found, {}
        return found, await delivery_with_history(ledger, found[0], now=now)

    found, data = with_ledger(config, load)
    if len(found) != 1:
        write_line(
            f"dispatcher: {'no delivery' if not found else 'more than one delivery'} begins with {key!r}", err=True
        )
        raise typer.Exit(1)
    (stored,) = found
    if as_json:
        write_json({**data, "content": stored.delivery.content})
        return
    delivery = stored.delivery
    write_details(
        [
            ("key", delivery.key),
            ("event" if delivery.event else "kind", delivery.event or about_text(delivery.kind)),
            ("tells of", _members_text(delivery, data["members"])),
            ("channel", delivery.channel),
            ("to", ", ".join(delivery.recipients)),
            ("address", ", ".join(delivery.addresses)),
            ("rules", ", ".join(map(str, delivery.rules))),
            ("severity", delivery.severity),
            ("state", state_text(data["status"])),
            ("reason", decided_text(data)),
            ("included in", delivery.included_in),
            ("note", delivery.note),
            ("waits for", waits_text(data)),
            ("created", f"{time_text(delivery.created_at)} UTC, {age_text(delivery.created_at, now=now)}"),
            (
                "due" if stored.settled_at is None else "finished",
                f"{time_text(ended := stored.settled_at or delivery.due_at)} UTC, {age_text(ended, now=now)}",
            ),
            *stored.reference.items(),
        ]
    )
    write_line()
    write_table(
        ("ATTEMPT", "OUTCOME", "ENDED (UTC)", "DURATION", "ANSWER"),
        [
            (numbers, state_text(outcome), ended, duration, answer)
            for numbers, ended, outcome, answer, duration in attempt_rows(data["attempts"])
        ],
    )
    if data["actions"]:
        write_line()
        write_actions(data["actions"])


def _members_text(delivery: Delivery, members: Mapping[str, Any]) -> str:
    """Return how many other deliveries a message tells of, and the command that lists them."""
    if not members["number"]:
        return ""
    number = f"{members['number']}{'+' if members['more'] else ''}"
    return f"{number} others: dispatcher deliveries list --included-in {delivery.tells_of or delivery.key}"
