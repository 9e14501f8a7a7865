"""`dispatcher executions`: lists finished executions, with the decision about each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dispatcher.cli._filters import Filters, refuse_unknown_names, with_filters, write_rest
from dispatcher.cli._open_ledger import with_ledger
from dispatcher.cli._options import AsJson, Config, Limit
from dispatcher.cli._output import time_text, when_text, write_json, write_line, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatcher.ledger import Ledger
    from dispatcher.ledger.causes import CountedCause
    from dispatcher.ledger.records import EventSummary, Page
    from dispatcher.model.status import DeliveryStatus

_NOT_FOR_CAUSES = frozenset(
    {*("state", "channel", "recipient", "verdict", "cause", "execution", "included_in"), *("held", "held_by")}
)
executions = typer.Typer(help="List finished executions.", no_args_is_help=True)


@executions.command("list")
@with_filters()
def list_(filters: Filters, config: Config = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List finished executions, newest first. Each has the decision about it and the states of its deliveries. The
    options --state, --channel and --recipient select executions that have such a delivery.
    """
    from dispatcher.clock import SystemClock
    from dispatcher.explain import event_data

    wanted, now = filters.wanted(), SystemClock().now()

    async def find(ledger: Ledger) -> Page[EventSummary]:
        page = await ledger.queries.events(wanted, limit=limit)
        if not page.entries:
            await refuse_unknown_names(ledger, wanted)
        return page

    page = with_ledger(config, find)
    if as_json:
        write_json([event_data(entry) for entry in page.entries])
    else:
        write_table(
            ("EXECUTION", "PHASE", "LAUNCH PLAN", "OCCURRED", "DELIVERIES", "CAUSE", "REASON"),
            [
                (
                    f"{entry.project}/{entry.domain}/{entry.name}",
                    entry.phase,
                    entry.launch_plan,
                    when_text(entry.occurred_at, now=now),
                    _counts(entry.deliveries),
                    entry.cause_name,
                    entry.reason,
                )
                for entry in page.entries
            ],
            head=2,
        )
    write_rest(page, limit)


@executions.command()
@with_filters(without=_NOT_FOR_CAUSES)
def causes(filters: Filters, config: Config = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """Count failed executions by their cause, the most frequent cause first. The option --cause of the lists of
    executions and deliveries selects those of one cause.
    """
    from dispatcher.clock import SystemClock
    from dispatcher.explain import cause_data

    wanted, now = filters.wanted(), SystemClock().now()

    async def find(ledger: Ledger) -> Page[CountedCause]:
        page = await ledger.causes.most_frequent(wanted, limit=limit)
        if not page.entries:
            await refuse_unknown_names(ledger, wanted)
        return page

    page = with_ledger(config, find)
    if as_json:
        write_json([cause_data(entry) for entry in page.entries])
    else:
        write_table(
            ("CAUSE", "NUMBER", "NAME", "FIRST", "LAST", "NEWEST EXECUTION"),
            [
                (
                    entry.cause,
                    entry.number,
                    entry.cause_name,
                    when_text(entry.first_at, now=now),
                    when_text(entry.last_at, now=now),
                    entry.newest,
                )
                for entry in page.entries
            ],
        )
    if page.after is not None:
        write_line(
            f"only executions since {time_text(page.after.at)} UTC were counted; --since and --until count others",
            err=True,
        )


def _counts(deliveries: Mapping[DeliveryStatus, int]) -> str:
    return ", ".join(f"{number} {status}" for status, number in sorted(deliveries.items())) or "none"
