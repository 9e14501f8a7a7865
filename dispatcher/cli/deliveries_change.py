"""The commands of `dispatcher deliveries` that change deliveries: redrive, retry-now, cancel, dismiss and purge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli._deliveries import write_deliveries
from dispatcher.cli._filters import Filters, refuse_unknown_names, with_filters
from dispatcher.cli._input import named
from dispatcher.cli._open_ledger import with_ledger
from dispatcher.cli._operations import By, Reason, Yes, asks, confirm, operations, operator
from dispatcher.cli._options import AsJson, Config, parse_since
from dispatcher.cli._output import log_warnings_only, number_text, waits_text, write_json, write_line

if TYPE_CHECKING:
    from dispatcher.ledger import Deed, Filter, Ledger, StoredDelivery
    from dispatcher.model.waiting import Wait

LISTED = 10_000
"""A dry run lists at most this many deliveries."""
Keys = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY", help="Keys of deliveries, or the first digits; - reads them from standard input."),
]
All = Annotated[bool, typer.Option("--all", help="All that match the filters, or simply all if there is no filter.")]


@dataclass(frozen=True, slots=True)
class _Verb:
    """A command that changes deliveries."""

    name: str
    """The command's name, which is also the deed's (`Deed`), with a hyphen for each underscore."""
    help: str
    question: str
    """What is asked before the change. `{}` is the number of deliveries."""
    result: str
    """What is printed after it. `{}` is the number of deliveries, with its verb."""


_VERBS = (
    _Verb(
        "redrive",
        "Retry dead deliveries, selected by key or by filters. First fix the reason why they are dead. Each delivery is "
        "due at once, and has the full retry time again.",
        "Redrive {} dead",
        "{} due again",
    ),
    _Verb(
        "retry-now",
        "Make waiting deliveries due now. Their back-off begins anew. They still wait for earlier messages of their "
        "thread, for the rate limit and for an open circuit breaker; the answer says for what. Deliveries that are being "
        "sent are left alone.",
        "Retry now {} waiting",
        "{} due now",
    ),
    _Verb(
        "cancel",
        "Drop waiting deliveries. They are never sent, and no fallback is notified of them. Deliveries that are being "
        "sent are left alone.",
        "Cancel {} waiting",
        "{} cancelled",
    ),
    _Verb(
        "dismiss",
        "Drop dead deliveries that nobody needs any more. They then no longer count as dead.",
        "Dismiss {} dead",
        "{} dismissed",
    ),
)


def add_commands(group: typer.Typer) -> None:
    """Add the commands to `dispatcher deliveries`."""
    for verb in _VERBS:
        group.command(verb.name, help=verb.help)(_command(verb))
    group.command()(purge)


def _command(verb: _Verb) -> Callable[..., None]:
    @with_filters(without=frozenset({"state"}))
    def command(
        filters: Filters,
        keys: Keys = None,
        config: Config = None,
        everything: All = False,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the deliveries; change nothing.")] = False,
        yes: Yes = False,
        by: By = None,
        reason: Reason = "",
        as_json: AsJson = False,
    ) -> None:
        from dispatcher.ledger import Deed

        if not keys and not everything and not filters.given:
            raise typer.BadParameter("give the keys of deliveries, filters, or --all")
        log_warnings_only()
        what, who = Deed(verb.name.replace("-", "_")), operator(by, reason)
        wanted = replace(filters.wanted(), keys=tuple(named(keys)))
        if dry_run:
            _write_found(with_ledger(config, lambda ledger: _find(ledger, what, wanted)), verb, as_json=as_json)
            return
        if asks(yes=yes):
            count = with_ledger(config, lambda ledger: operations(ledger).count(what, wanted))
            number = f"{count.number}{'+' if count.more else ''}"
            if count.number:
                confirm(f"{verb.question.format(number)} {'delivery' if number == '1' else 'deliveries'}?")

        async def change(ledger: Ledger) -> tuple[int, int, Sequence[tuple[Wait, int]]]:
            silenced = await operations(ledger).silenced(what, wanted)
            number = await operations(ledger).change(what, wanted, who)
            if not number:
                await refuse_unknown_names(ledger, wanted)
            waits = await operations(ledger).waits(wanted) if number and what is Deed.RETRY_NOW else ()
            return number, min(silenced, number), waits

        changed, silenced, waits = with_ledger(config, change)
        if as_json:
            waits_for = [{**asdict(wait), "deliveries": n} for wait, n in waits]
            write_json({"deliveries": changed, "silenced": silenced, "waits_for": waits_for})
            return
        write_line(verb.result.format("1 delivery is" if changed == 1 else f"{changed} deliveries are"))
        if silenced:
            write_line(f"a silence covers {silenced} of them, and they go out all the same")
        for wait, several in waits:
            what_for = waits_text({"waits_for": [asdict(wait)]})
            write_line(f"{several} {'waits' if several == 1 else 'wait'} for {what_for}")

    return command


async def _find(ledger: Ledger, what: Deed, wanted: Filter) -> list[StoredDelivery]:
    from dispatcher.clock import SystemClock

    found = await ledger.history.find(operations(ledger).eligible(what, wanted), limit=LISTED)
    if not found:
        await refuse_unknown_names(ledger, wanted)
    return await ledger.queries.with_waits(found, now=SystemClock().now())


def _write_found(found: Sequence[StoredDelivery], verb: _Verb, *, as_json: bool) -> None:
    from dispatcher.clock import SystemClock
    from dispatcher.explain import delivery_data

    if as_json:
        write_json([delivery_data(stored) for stored in found])
        return
    if found:
        write_deliveries(found, now=SystemClock().now())
    more = "+" if len(found) == LISTED else ""
    write_line(
        verb.result.format("1 delivery would be" if len(found) == 1 else f"{len(found)}{more} deliveries would be")
    )


def purge(
    older_than: Annotated[
        str, typer.Option(help="Delete entries that were recorded longer ago than this, such as 30d.")
    ],
    config: Config = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count the entries; delete nothing.")] = False,
    yes: Yes = False,
    by: By = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Delete old events and old rejected messages. The deliveries of an event are deleted with the event. Events that
    have a waiting delivery are kept.
    """
    from dispatcher.clock import SystemClock

    log_warnings_only()
    now, who = SystemClock().now(), operator(by, reason)
    before = parse_since(older_than, now=now) or now
    if dry_run or asks(yes=yes):
        number = with_ledger(config, lambda ledger: ledger.count_purgeable(before))
        if dry_run:
            _write_purged(number, "would be deleted", as_json=as_json)
            return
        if number:
            confirm(f"Delete {number_text(number, 'entry')} for good?")
    number = with_ledger(config, lambda ledger: operations(ledger).purge(before, who))
    _write_purged(number, "deleted", as_json=as_json)


def _write_purged(number: int, what: str, *, as_json: bool) -> None:
    if as_json:
        write_json({"entries": number})
    else:
        write_line(f"{number_text(number, 'entry')} {what}")
