"""Taking what is due: what waits in the ledger, and what is about to be written there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    literal_column,
    or_,
    select,
    update,
)

from dispatcher.ledger.destination_state import DestinationStates
from dispatcher.ledger.launch_plan_status import LaunchPlanStatus
from dispatcher.ledger.records import Claim, DirectDispatch
from dispatcher.ledger.rows import stored
from dispatcher.ledger.schema import contents, deliveries, launch_plan_status
from dispatcher.ledger.statements import Row, among, asking, changing, run
from dispatcher.model.delivery import Delivery, State
from dispatcher.model.rate_limit import AdmissionControl, DestinationState

Changes = Mapping[str, Any]
"""What is different about a delivery, by the names of its facts."""
SECOND_LOOKS = (100, 100, 100)
"""So many more due deliveries a claim looks at where the first had to wait for slots; the next claim goes on."""


def claim(
    connection: Connection, channel: str, limit: int, *, lease: str, until: datetime, gate: AdmissionControl
) -> Claim:
    """What a channel has due and the gate admits, oldest first, `limit` at most (`Ledger.claim`)."""
    taken: list[Delivery] = []
    slots: list[datetime] = []
    standings = DestinationStates(connection, channel)
    for size in (limit, *SECOND_LOOKS):
        rows = _due(connection, channel, gate, size)
        standings.load(filter(gate.minds, (gate.destination(_goes_to(row)) for row in rows)))
        went, put_off = _sorted_out(rows, gate, standings, limit - len(taken))
        if went:
            take = {"taken": [row.key for row in went], "by": lease, "until": until}
            changing(_TAKE, connection.dialect).change(connection, [take])
        if put_off:
            changing(_PUT_OFF, connection.dialect).change(connection, put_off)
            slots.extend(entry["again_at"] for entry in put_off)
        taken += (_claimed(row, lease, until, standings[gate.destination(_goes_to(row))]) for row in went)
        if len(taken) == limit or len(rows) < size:
            break
    standings.save()
    taken.sort(key=lambda delivery: (delivery.created_at, delivery.key))
    more = len(taken) == limit or len(rows) == size
    return Claim(taken, min(slots, default=None), more=more)


def at_once(
    connection: Connection,
    owed: Sequence[Delivery],
    offers: Mapping[str, DirectDispatch],
    standing: LaunchPlanStatus,
) -> dict[str, Changes]:
    """Those that couriers take as they are written: by key, what is different about them once they are claimed.

    It is what a claim would take as well; what has to wait for a slot of its destination is left to be put off.
    """
    taken: dict[str, Changes] = {}
    offered = [one for one in owed if one.channel in offers and one.state is State.WAITING]
    beginnings = _beginnings(connection, offered, standing)
    for channel, offer in sorted(offers.items()):
        theirs = [one for one in offered if one.channel == channel]
        free = [one for one in theirs if not one.thread or one.thread in beginnings]
        standings = DestinationStates(connection, channel)
        standings.load(filter(offer.gate.minds, (offer.gate.destination(_goes_to(one)) for one in free)))
        taken |= dict(_taken(free, offer, standings))
        standings.save()
    return taken


def _taken(
    owed: Iterable[Delivery], offer: DirectDispatch, standings: DestinationStates
) -> Iterator[tuple[str, Changes]]:
    left = offer.limit
    for one in owed:
        if not left:
            return
        name = offer.gate.destination(_goes_to(one))
        admission = offer.gate.admit(name, standings[name], slot_reserved=False)
        if admission is None or admission.at > offer.gate.now:
            continue
        standings[name] = admission.standing
        left -= 1
        yield (
            one.key,
            {
                "attempt": one.attempt + 1,
                "lease": offer.lease,
                "due_at": offer.until,
                "destination_failing": admission.standing.failures > 0,
                "first": bool(one.thread),
            },
        )


def _beginnings(connection: Connection, owed: Sequence[Delivery], standing: LaunchPlanStatus) -> frozenset[str]:
    """The conversations that begin with one of these: with it alone, and no success has made it pointless."""
    number = Counter(one.thread for one in owed)
    beginning = [
        one.thread
        for one in owed
        if number[one.thread] == 1 and one.launch_plan and not one.resolves and not standing.recovered_since(one)
    ]
    if not beginning:
        return frozenset()
    asked = (orjson.dumps(beginning).decode(),)
    begun = run(connection, _BEGUN[connection.dialect.name], asked)
    return frozenset(beginning).difference(name for (name,) in begun)


_BEGUN = {
    dialect: f"SELECT value FROM {names} AS value WHERE EXISTS (SELECT 1 FROM deliveries WHERE thread = value)"  # noqa: S608 - our own names
    for dialect, names in {"sqlite": "json_each(?)", "postgresql": "json_array_elements_text($1::json)"}.items()
}
"""Which of some conversations have begun, by their names as JSON: a look at the first row of each."""


_WAITING: ColumnElement[str] = literal_column(f"'{State.WAITING}'")
"""Not bound, or no database sees that the indexes of what waits will do."""


def _due_statement() -> Select[Any]:
    before, other = deliveries.alias("before"), deliveries.alias("other")
    kept_waiting = (
        select(before.c.key)
        .where(
            before.c.thread == deliveries.c.thread,
            before.c.state == _WAITING,
            or_(
                before.c.occurred_at < deliveries.c.occurred_at,
                and_(before.c.occurred_at == deliveries.c.occurred_at, before.c.resolves < deliveries.c.resolves),
                and_(
                    before.c.occurred_at == deliveries.c.occurred_at,
                    before.c.resolves == deliveries.c.resolves,
                    before.c.key < deliveries.c.key,
                ),
            ),
        )
        .exists()
    )
    in_company = (
        select(other.c.key).where(other.c.thread == deliveries.c.thread, other.c.key != deliveries.c.key).exists()
    )
    followed = (
        select(other.c.key)
        .where(
            other.c.thread == deliveries.c.thread,
            other.c.key != deliveries.c.key,
            other.c.state == _WAITING,
        )
        .exists()
    )
    recovered_since = (
        select(launch_plan_status.c.name)
        .where(
            launch_plan_status.c.name == deliveries.c.launch_plan,
            launch_plan_status.c.succeeded_at > deliveries.c.occurred_at,
        )
        .exists()
    )
    return (
        select(
            deliveries,
            contents.c.body,
            and_(deliveries.c.thread.is_not(None), ~in_company, or_(deliveries.c.resolves, ~recovered_since)).label(
                "first"
            ),
            and_(deliveries.c.thread.is_not(None), followed).label("followed"),
        )
        .join(contents, contents.c.content_hash == deliveries.c.content)
        .where(
            deliveries.c.channel == bindparam("channel"),
            deliveries.c.state == _WAITING,
            deliveries.c.due_at <= bindparam("now"),
            or_(deliveries.c.thread.is_(None), ~kept_waiting),
        )
        .order_by(deliveries.c.due_at)
        .limit(bindparam("size"))
        .with_for_update(skip_locked=True, of=deliveries)
    )


DUE = _due_statement()
"""The deliveries that are due, oldest first, with what they send: of a conversation only the one whose turn it is."""
_DUE_ELSEWHERE = DUE.where(~among(deliveries.c.addresses, "crowded"))
"""Without those of crowded destinations, or a long backlog of one would hide the others'."""


def _due(connection: Connection, channel: str, gate: AdmissionControl, size: int) -> Sequence[Row]:
    values: dict[str, Any] = {"channel": channel, "now": gate.now, "size": size}
    if crowded := gate.crowded:
        values["crowded"] = [orjson.dumps([name]).decode() for name in crowded]  # as the column has them
    return asking(_DUE_ELSEWHERE if crowded else DUE, connection.dialect).rows(connection, **values)


def _goes_to(one: Row | Delivery) -> tuple[str, ...]:
    to: tuple[str, ...] = one.addresses or one.recipients
    return to


_IN_DOUBT = or_(deliveries.c.in_doubt, deliveries.c.lease.is_not(None))
"""A lease that ran out unsettled: what its worker sent may have arrived."""
_TAKE = (
    update(deliveries)
    .where(among(deliveries.c.key, "taken"))
    .values(
        attempt=deliveries.c.attempt + 1,
        in_doubt=_IN_DOUBT,
        lease=bindparam("by"),
        due_at=bindparam("until"),
        slot_reserved=False,
    )
)
_PUT_OFF = (
    update(deliveries)
    .where(deliveries.c.key == bindparam("put_off"))
    .values(due_at=bindparam("again_at"), slot_reserved=bindparam("slot"), in_doubt=_IN_DOUBT, lease=None)
)


def _sorted_out(
    rows: Sequence[Row], gate: AdmissionControl, standings: DestinationStates, limit: int
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Who goes now, `limit` at most, and who is put off until when."""
    went: list[Row] = []
    put_off = []
    for row in rows:
        if len(went) == limit:
            break
        name = gate.destination(_goes_to(row))
        admission = gate.admit(name, standings[name], slot_reserved=row.slot_reserved)
        if admission is None:
            continue
        standings[name] = admission.standing
        if admission.at > gate.now:
            put_off.append({"put_off": row.key, "again_at": admission.at, "slot": admission.slot_reserved})
        else:
            went.append(row)
    return went, put_off


def _claimed(row: Row, lease: str, until: datetime, standing: DestinationState) -> Delivery:
    changed = {
        "attempt": row.attempt + 1,
        "in_doubt": row.in_doubt or row.lease is not None,
        "lease": lease,
        "due_at": until,
        "slot_reserved": False,
        "destination_failing": standing.failures > 0,
        "first": bool(row.first),
        "followed": bool(row.followed),
    }
    return Delivery(**stored(row, row.body) | changed)
