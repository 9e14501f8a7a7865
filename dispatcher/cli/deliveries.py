"""`dispatcher deliveries`: lists, shows, redrives and purges deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dispatcher.cli._open_ledger import with_ledger
from dispatcher.cli._operations import As, Reason, operations, operator, write_actions
from dispatcher.cli._options import AsJson, Config, Limit, Since, no_such_channel, parse_since
from dispatcher.cli._output import (
    KEY_DIGITS,
    log_warnings_only,
    state_text,
    time_text,
    waits_text,
    write_details,
    write_json,
    write_line,
    write_table,
)

if TYPE_CHECKING:
    from dispatcher.ledger import DeliveryFilter, Ledger, StoredDelivery

deliveries = typer.Typer(help="List, show, redrive or purge deliveries.", no_args_is_help=True)

State = Annotated[
    list[str] | None,
    typer.Option(
        "--state", help="Only this state: waiting, sent, dead or dropped. Can be repeated.", show_default=False
    ),
]
ChannelName = Annotated[str | None, typer.Option("--channel", help="Only this channel.", show_default=False)]
Execution = Annotated[
    str | None, typer.Option("--execution", help="Only this execution: project/domain/name.", show_default=False)
]


@deliveries.command("list")
def list_(
    config: Config = None,
    state: State = None,
    channel: ChannelName = None,
    execution: Execution = None,
    since: Since = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List deliveries, newest first."""
    from dispatcher.clock import SystemClock
    from dispatcher.explain import delivery_data

    wanted = _filter(state, channel, execution, since)

    async def find(ledger: Ledger) -> list[StoredDelivery]:
        await _require_channel(ledger, channel)
        found = await ledger.history.find(wanted, limit=limit)
        return await ledger.queries.with_waits(found, now=SystemClock().now())

    found = with_ledger(config, find)
    if as_json:
        write_json([delivery_data(stored) for stored in found])
        return
    write_table(
        ("KEY", "STATE", "CHANNEL", "TO", "EVENT", "ATTEMPTS", "CREATED (UTC)", "DUE (UTC)", "REASON", "WAITS FOR"),
        [
            (
                stored.delivery.key[:KEY_DIGITS],
                state_text(stored.delivery.state),
                stored.delivery.channel,
                ", ".join(stored.delivery.recipients),
                stored.delivery.event,
                stored.delivery.attempt,
                time_text(stored.delivery.created_at),
                time_text(stored.delivery.due_at) if stored.settled_at is None else "",
                stored.delivery.reason,
                waits_text(delivery_data(stored)),
            )
            for stored in found
        ],
    )


@deliveries.command()
def show(
    key: Annotated[str, typer.Argument(help="The delivery's key, or the first digits of it.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show one delivery with its attempts, the provider's answers and operators' actions. With --json, prints the
    message's content too.
    """
    from dispatcher.clock import SystemClock
    from dispatcher.explain import delivery_with_history
    from dispatcher.ledger import DeliveryFilter

    async def load(ledger: Ledger) -> tuple[list[StoredDelivery], dict[str, Any]]:
        found = await ledger.history.find(DeliveryFilter(keys=[key]), limit=2)
        if len(found) != 1:
            return found, {}
        return found, await delivery_with_history(ledger, found[0], now=SystemClock().now())

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
            ("event", delivery.event),
            ("channel", delivery.channel),
            ("to", ", ".join(delivery.recipients)),
            ("address", ", ".join(delivery.addresses)),
            ("rule", delivery.rule),
            ("state", state_text(delivery.state)),
            ("reason", delivery.reason),
            ("waits for", waits_text(data)),
            ("created", time_text(delivery.created_at)),
            ("due" if stored.settled_at is None else "finished", time_text(stored.settled_at or delivery.due_at)),
            *stored.reference.items(),
        ]
    )
    write_line()
    write_table(
        ("ATTEMPT", "STARTED (UTC)", "DURATION", "OUTCOME", "STATUS", "ANSWER", "REASON"),
        [
            (
                attempt["number"],
                time_text(attempt["started_at"]),
                f"{attempt['latency_ms']:.0f} ms",
                state_text(attempt["outcome"]),
                attempt["status"],
                attempt["answer"],
                attempt["reason"],
            )
            for attempt in data["attempts"]
        ],
    )
    if data["actions"]:
        write_line()
        write_actions(data["actions"])


@deliveries.command()
def redrive(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Keys of dead deliveries, or the first digits of them.")
    ] = None,
    config: Config = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Redrive all dead deliveries that match the other options.")
    ] = False,
    channel: ChannelName = None,
    execution: Execution = None,
    since: Since = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the deliveries; change nothing.")] = False,
    name: As = None,
    reason: Reason = "",
) -> None:
    """Retry dead deliveries, selected by key or by filter. First fix the reason why they are dead. Each delivery is due
    at once, and has the full retry time again.
    """
    if not keys and not everything:
        raise typer.BadParameter("give the keys of deliveries, or --all")
    log_warnings_only()
    wanted = replace(_filter(["dead"], channel, execution, since), keys=tuple(keys or ()))

    async def find(ledger: Ledger) -> list[StoredDelivery]:
        await _require_channel(ledger, channel)
        return await ledger.history.find(wanted, limit=10_000)

    async def redrive_found(ledger: Ledger) -> int:
        await _require_channel(ledger, channel)
        return await operations(ledger).redrive(wanted, operator(name, reason))

    if dry_run:
        for stored in with_ledger(config, find):
            delivery = stored.delivery
            write_line(f"{delivery.key[:KEY_DIGITS]}  {delivery.channel}  {delivery.event}  {delivery.reason}")
        return
    number = with_ledger(config, redrive_found)
    write_line("1 delivery is due again" if number == 1 else f"{number} deliveries are due again")


@deliveries.command()
def purge(
    older_than: Annotated[
        str, typer.Option(help="Delete entries that were recorded longer ago than this, such as 30d.")
    ],
    config: Config = None,
    name: As = None,
    reason: Reason = "",
) -> None:
    """Delete old events and old rejected messages. The deliveries of an event are deleted with the event. Events that
    have a waiting delivery are kept.
    """
    from dispatcher.clock import SystemClock

    log_warnings_only()
    now = SystemClock().now()
    before = parse_since(older_than, now=now) or now
    number = with_ledger(config, lambda ledger: operations(ledger).purge(before, operator(name, reason)))
    write_line("1 entry deleted" if number == 1 else f"{number} entries deleted")


async def _require_channel(ledger: Ledger, channel: str | None) -> None:
    """Raise BadParameter if there is no such channel, and no delivery of a channel that was removed."""
    from channels.registry import CHANNEL_TYPES
    from dispatcher.ledger import DeliveryFilter

    if (
        channel is None
        or channel in CHANNEL_TYPES
        or await ledger.history.find(DeliveryFilter(channel=channel), limit=1)
    ):
        return
    raise no_such_channel(channel, CHANNEL_TYPES)


def _filter(
    states: Sequence[str] | None, channel: str | None, execution: str | None, since: str | None
) -> DeliveryFilter:
    from dispatcher.clock import SystemClock
    from dispatcher.ledger import DeliveryFilter
    from dispatcher.model.delivery import State as DeliveryState
    from dispatcher.model.event import ExecutionId

    if execution is not None:
        try:
            ExecutionId.parse(execution)
        except ValueError:  # pydantic's ValidationError is a ValueError too
            raise typer.BadParameter(f"--execution is project/domain/name, not {execution!r}") from None
    try:
        wanted = frozenset(DeliveryState(state.lower()) for state in states or ())
    except ValueError:
        raise typer.BadParameter(f"--state is one of {', '.join(DeliveryState)}") from None
    return DeliveryFilter(
        states=wanted, channel=channel, execution=execution, since=parse_since(since, now=SystemClock().now())
    )
