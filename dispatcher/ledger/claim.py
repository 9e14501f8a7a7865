"""Claims due deliveries for a worker."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    and_,
    bindparam,
    literal_column,
    or_,
    select,
    update,
)

from dispatcher.ledger.destination_state import DestinationStates
from dispatcher.ledger.records import Claim
from dispatcher.ledger.rows import delivery_fields
from dispatcher.ledger.schema import contents, deliveries, subjects
from dispatcher.ledger.statements import among
from dispatcher.model.delivery import Delivery, Kind, State
from dispatcher.model.rate_limit import AdmissionControl, DestinationState

EXTRA_READS = (100, 100, 100)
"""Sizes of further batches of due deliveries. A claim first reads as many due deliveries as it may take. If some of
them may be sent only later, it reads batches of these sizes until it has enough. After the last batch it stops, and the
next claim continues."""


def claim(
    connection: Connection,
    channel: str,
    limit: int,
    *,
    lease: str,
    until: datetime,
    admission: AdmissionControl,
    keys: Sequence[str] | None = None,
) -> Claim:
    """Claim up to `limit` of a channel's due deliveries, if `admission` lets them be sent now. See `Ledger.claim`."""
    claimed: list[Delivery] = []
    deferred_until: list[datetime] = []
    states = DestinationStates(connection, channel)
    for size in (limit, *(EXTRA_READS if keys is None else ())):
        rows = _due(connection, channel, admission, size, keys)
        states.load(filter(admission.tracks, (admission.destination(_addresses(row)) for row in rows)))
        admitted, deferred = _admit(rows, admission, states, limit - len(claimed))
        if admitted:
            connection.execute(_CLAIM, {"keys": [row.key for row in admitted], "by": lease, "until": until})
        if deferred:
            connection.execute(_DEFER, deferred)
            deferred_until.extend(entry["next_due_at"] for entry in deferred)
        claimed += (_claimed(row, lease, until, states[admission.destination(_addresses(row))]) for row in admitted)
        if len(claimed) == limit or len(rows) < size:
            break
    states.save()
    claimed.sort(key=lambda delivery: (delivery.created_at, delivery.key))
    more = len(claimed) == limit or len(rows) == size
    return Claim(claimed, min(deferred_until, default=None), more=more)


_WAITING: ColumnElement[str] = literal_column(f"'{State.WAITING}'")
"""The state `waiting`, written into the SQL text. If it were a parameter, the databases would not use the indexes that
contain only waiting deliveries (partial indexes)."""
_RESOLVED: ColumnElement[str] = literal_column(f"'{Kind.RESOLVED_NOTICE}'")


def earlier_in_thread(before: FromClause) -> ColumnElement[bool]:
    """SQL condition: `before` is a waiting delivery, not held, that goes out before this one of the table `deliveries`.

    `before`: an alias of `deliveries`.
    """
    at = deliveries.c.thread_at
    return and_(
        before.c.thread == deliveries.c.thread,
        before.c.state == _WAITING,
        before.c.hold.is_(None),
        or_(
            before.c.thread_at < at,
            and_(before.c.thread_at == at, before.c.kind == _RESOLVED, deliveries.c.kind != _RESOLVED),
            and_(
                before.c.thread_at == at,
                (before.c.kind == _RESOLVED) == (deliveries.c.kind == _RESOLVED),
                before.c.key < deliveries.c.key,
            ),
        ),
    )


def _due_statement() -> Select[Any]:
    before, other = deliveries.alias("before"), deliveries.alias("other")
    blocked_by_earlier = select(before.c.key).where(earlier_in_thread(before)).exists()
    thread_has_others = (
        select(other.c.key).where(other.c.thread == deliveries.c.thread, other.c.key != deliveries.c.key).exists()
    )
    blocks_others = (
        select(other.c.key)
        .where(
            other.c.thread == deliveries.c.thread,
            other.c.key != deliveries.c.key,
            other.c.state == _WAITING,
            other.c.hold.is_(None),
        )
        .exists()
    )
    well_since = (
        select(subjects.c.name)
        .where(subjects.c.name == deliveries.c.subject, subjects.c.well_since > deliveries.c.thread_at)
        .exists()
    )
    return (
        select(
            deliveries,
            contents.c.body,
            and_(
                deliveries.c.thread.is_not(None), ~thread_has_others, or_(deliveries.c.kind == _RESOLVED, ~well_since)
            ).label("opens_thread"),
            and_(deliveries.c.thread.is_not(None), blocks_others).label("blocks_thread"),
        )
        .outerjoin(contents, contents.c.content_hash == deliveries.c.content)
        .where(
            deliveries.c.channel == bindparam("channel"),
            deliveries.c.state == _WAITING,
            deliveries.c.due_at <= bindparam("now"),
            deliveries.c.hold.is_(None),
            or_(deliveries.c.thread.is_(None), ~blocked_by_earlier),
        )
        .order_by(deliveries.c.due_at)
        .limit(bindparam("size"))
        .with_for_update(skip_locked=True, of=deliveries)
    )


DUE = _due_statement()
"""Selects due deliveries with their contents, if they are rendered, earliest due time first. From each thread, it
selects only the earliest waiting delivery, so that the messages of a thread are sent in order. A held delivery is not
due, and no delivery of its thread waits for it."""
DUE_KEYS = DUE.with_only_columns(deliveries.c.key, maintain_column_froms=True)
"""Selects the keys of the same deliveries, and reads nothing else of them."""
_DUE_AMONG = DUE.where(among(deliveries.c.key, "keys"))
"""Like `DUE`, but only some deliveries."""
_DUE_ELSEWHERE = DUE.where(~among(deliveries.c.addresses, "saturated"))
"""Like `DUE`, but leaves out destinations that already have their maximum number of deliveries in flight. Otherwise a
long backlog of one such destination would fill the limit and hide the deliveries to other destinations."""


def _due(
    connection: Connection, channel: str, admission: AdmissionControl, size: int, keys: Sequence[str] | None
) -> Sequence[Row[Any]]:
    values: dict[str, Any] = {"channel": channel, "now": admission.now, "size": size}
    if keys is not None:
        return connection.execute(_DUE_AMONG, values | {"keys": keys}).all()
    if saturated := admission.saturated:
        # The column contains JSON lists of addresses, so each destination is encoded as a JSON list of one address.
        values["saturated"] = [orjson.dumps([name]).decode() for name in saturated]
    return connection.execute(_DUE_ELSEWHERE if saturated else DUE, values).all()


def _addresses(one: Row[Any]) -> tuple[str, ...]:
    addresses: tuple[str, ...] = one.addresses or one.recipients
    return addresses


IN_DOUBT = or_(deliveries.c.in_doubt, deliveries.c.lease.is_not(None))
"""The new value of `in_doubt` when a delivery is claimed: true if the delivery was in doubt before, or still has a
lease. A remaining lease means that the last attempt was never settled, so its message may have arrived."""
_CLAIM = (
    update(deliveries)
    .where(among(deliveries.c.key, "keys"))
    .values(
        attempt=deliveries.c.attempt + 1,
        in_doubt=IN_DOUBT,
        lease=bindparam("by"),
        due_at=bindparam("until"),
        slot_reserved=False,
    )
)
_DEFER = (
    update(deliveries)
    .where(deliveries.c.key == bindparam("deferred"))
    .values(due_at=bindparam("next_due_at"), slot_reserved=bindparam("slot"), in_doubt=IN_DOUBT, lease=None)
)


def _admit(
    rows: Sequence[Row[Any]], admission: AdmissionControl, states: DestinationStates, limit: int
) -> tuple[list[Row[Any]], list[dict[str, Any]]]:
    """Return the rows that may be sent now, up to `limit`, and parameters of the update `_DEFER` for other rows."""
    admitted: list[Row[Any]] = []
    deferred = []
    for row in rows:
        if len(admitted) == limit:
            break
        name = admission.destination(_addresses(row))
        decision = admission.admit(name, states[name], slot_reserved=row.slot_reserved)
        if decision is None:
            continue
        states[name] = decision.state
        if decision.at > admission.now:
            deferred.append({"deferred": row.key, "next_due_at": decision.at, "slot": decision.slot_reserved})
        else:
            admitted.append(row)
    return admitted, deferred


_BARE = (
    select(
        *(deliveries.c[name] for name in ("key", "event", "channel", "attempt", "in_doubt", "lease")),
        *(deliveries.c[name] for name in ("created_at", "retry_window_start", "occurred_at")),
    )
    .where(
        deliveries.c.key == bindparam("only"),
        deliveries.c.state == _WAITING,
        deliveries.c.due_at <= bindparam("now"),
        deliveries.c.hold.is_(None),
    )
    .with_for_update()
)


def claim_bare(connection: Connection, key: str, *, lease: str, now: datetime, until: datetime) -> Delivery | None:
    """Claim a due delivery, but read only what a settlement needs. See `Ledger.claim_bare`."""
    row = connection.execute(_BARE, {"only": key, "now": now}).first()
    if row is None:
        return None
    connection.execute(_CLAIM, {"keys": [key], "by": lease, "until": until})
    return Delivery(
        key=row.key,
        event=row.event,
        channel=row.channel,
        recipients=("a recipient that can't be read",),
        addresses=(),
        content=None,
        rules=(),
        created_at=row.created_at,
        due_at=until,
        retry_window_start=row.retry_window_start,
        occurred_at=row.occurred_at,
        attempt=row.attempt + 1,
        in_doubt=row.in_doubt or row.lease is not None,
        lease=lease,
    )


def release(connection: Connection, delivery: Delivery, *, due_at: datetime) -> None:
    """Give a claimed delivery back without counting the attempt. See `Ledger.release`."""
    changes = {"due_at": due_at, "in_doubt": delivery.in_doubt, "lease": None, "attempt": deliveries.c.attempt - 1}
    connection.execute(update(deliveries).where(*lease_held(delivery)).values(changes))


def lease_held(delivery: Delivery) -> tuple[ColumnElement[bool], ...]:
    """Return SQL conditions: the delivery is still claimed as it was when this value of it was returned."""
    return (
        deliveries.c.key == delivery.key,
        deliveries.c.lease == delivery.lease,
        deliveries.c.attempt == delivery.attempt,
    )


def _claimed(row: Row[Any], lease: str, until: datetime, state: DestinationState) -> Delivery:
    changes = {
        "attempt": row.attempt + 1,
        "in_doubt": row.in_doubt or row.lease is not None,
        "lease": lease,
        "due_at": until,
        "slot_reserved": False,
        "destination_failing": state.failures > 0,
        "opens_thread": bool(row.opens_thread),
        "blocks_thread": bool(row.blocks_thread),
    }
    return Delivery(**delivery_fields(row, row.body) | changes)
