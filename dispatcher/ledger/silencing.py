"""Holds what waits already when a silence begins or is extended, and lets go of what it holds when it is ended early.

In slices, each in a transaction of its own, so that workers don't wait long. What a worker claims meanwhile goes. A
silence that is changed in the meantime is no longer followed: the one who changed it goes through what waits anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    Select,
    String,
    bindparam,
    delete,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from dispatcher.holding.covering import HELD_KINDS, held_by_new, per_address
from dispatcher.holding.silences import LATE, Silence
from dispatcher.ledger.column_types import UtcTime
from dispatcher.ledger.engine import Database
from dispatcher.ledger.holds import IS_HELD, held_subject, unless_resolved
from dispatcher.ledger.record import insert_rows
from dispatcher.ledger.rows import delivery_fields, delivery_row, read_event
from dispatcher.ledger.schema import deliveries, delivery_recipients, events, silences
from dispatcher.ledger.search import lower
from dispatcher.ledger.silence_lock import share
from dispatcher.ledger.statements import among
from dispatcher.ledger.threads import Subjects
from dispatcher.model.delivery import Delivery, Kind, State
from dispatcher.model.event import Event
from dispatcher.model.hold import HoldReason

SLICE = 1000
"""Number of waiting deliveries that are read, and held, at a time."""
Covers = Callable[[Event], bool]
"""Says whether a silence's matcher holds for an event."""


async def hold_waiting(
    database: Database, silence: Silence, covers: Covers, *, now: datetime, longest: timedelta
) -> bool:
    """Hold what waits and what the silence covers. Returns False if somebody changed the silence meanwhile."""
    after: Row[Any] | None = None
    while True:
        async with database.reading() as connection:
            rows = (await connection.execute(_waiting(after))).all()
        if not rows:
            return True
        after = rows[-1]
        if subjects := await asyncio.to_thread(_covered, rows, covers):
            hold = partial(_hold_slice, silence=silence, subjects=subjects, now=now, longest=longest)
            if not await database.write(hold):
                return False


def _covered(rows: list[Row[Any]], covers: Covers) -> Mapping[str, str]:
    """Return the keys of the deliveries that the silence covers, each with its event's subject (`holds`)."""
    found: dict[str, str | None] = {}
    for row in rows:
        if row.event not in found:
            event = read_event(row.facts)
            found[row.event] = held_subject(event) if event is not None and covers(event) else None
    return {row.key: subject for row in rows if (subject := found[row.event]) is not None}


_CAN_BE_HELD = (
    deliveries.c.state == literal_column(f"'{State.WAITING}'"),
    deliveries.c.lease.is_(None),
    ~deliveries.c.in_doubt,
    deliveries.c.kind.in_(sorted(HELD_KINDS)),
)
"""SQL conditions: the delivery waits, no worker has it, and its message did not arrive, for certain."""


def _waiting(after: Row[Any] | None) -> Select[Any]:
    """Select the next slice of what waits, in an order in which what is recorded later comes later."""
    order = (deliveries.c.channel, deliveries.c.created_at, deliveries.c.key)
    query = select(deliveries.c.event, *order, events.c.facts).join(events, events.c.key == deliveries.c.event)
    if after is not None:
        last = (literal(after.channel, String), literal(after.created_at, UtcTime), literal(after.key, String))
        query = query.where(tuple_(*order) > tuple_(*last))
    return query.where(*_CAN_BE_HELD).order_by(*order).limit(SLICE)


def _hold_slice(
    connection: Connection, *, silence: Silence, subjects: Mapping[str, str], now: datetime, longest: timedelta
) -> bool:
    """Hold these deliveries, if they still wait. Returns False if somebody has changed the silence.

    `subjects`: mapping from a delivery's key to what a success resolves that drops the delivery while it is held.
    """
    share(connection)
    if not _is_unchanged(connection, silence):
        return False
    known = Subjects(connection)
    known.load(filter(None, subjects.values()))
    changed: list[tuple[Delivery, Row[Any]]] = []
    for row in connection.execute(_SLICE, {"keys": [*subjects]}).all():
        delivery = Delivery(**delivery_fields(row, None))
        held = held_by_new(silence, delivery, now=now, longest=longest)
        if held is not None:
            subject = delivery.subject or (subjects[row.key] if delivery.kind is Kind.NOTIFICATION else "")
            held = held._replace(subject=subject, slot_reserved=False)
            changed.append((unless_resolved(known, held, now), row))
    _store(connection, changed)
    return True


_SLICE = select(deliveries).where(among(deliveries.c.key, "keys"), *_CAN_BE_HELD).order_by(deliveries.c.key)
_SLICE = _SLICE.with_for_update()


def _is_unchanged(connection: Connection, silence: Silence) -> bool:
    row = connection.execute(select(silences).where(silences.c.id == silence.id)).first()
    return row is not None and (row.starts_at, row.ends_at) == (silence.starts_at, silence.ends_at)


_WRITTEN = (
    *("recipients", "addresses", "state", "drop_reason", "reason", "due_at", "subject", "slot_reserved", "settled_at"),
    *("hold", "held_by", "held_since", "hold_then"),
)
_STORE = (
    update(deliveries).where(deliveries.c.key == bindparam("held")).values({name: bindparam(name) for name in _WRITTEN})
)


def _store(connection: Connection, changed: Iterable[tuple[Delivery, Row[Any]]]) -> None:
    """Store holds, or that deliveries are dropped, each with the row that it changes."""
    updates = []
    for held, row in changed:
        first, *others = per_address(held)
        values = delivery_row(first, None, "")
        updates.append({"held": row.key, **{name: values[name] for name in _WRITTEN}})
        if others:
            _split(connection, row, first, others)
    if updates:
        connection.execute(_STORE, updates)


def _split(connection: Connection, row: Row[Any], first: Delivery, others: Sequence[Delivery]) -> None:
    """Split a mail to several addresses: the first keeps the row and its attempts, and the others get rows."""
    insert_rows(connection, [delivery_row(one, row.content, row.trace) for one in others])
    kept = {lower(name) for name in (*first.recipients, *first.addresses)}
    gone = {lower(name) for one in others for name in (*one.recipients, *one.addresses)} - kept
    entries = delivery_recipients.c
    of_others = (entries.recipient.in_(sorted(gone)), entries.created_at == row.created_at, entries.delivery == row.key)
    connection.execute(delete(delivery_recipients).where(*of_others))


def let_go(connection: Connection, *, silence: Silence, now: datetime) -> int:
    """Let the holds of a silence that was ended early end with it, up to `SLICE` of them. Returns their number.

    Those that came late stay: they were held when the silence was over, and for `LATE` at most. A hold for longer began
    before, by the clock of a replica that is ahead of this one.
    """
    held_by_it = (deliveries.c.hold == HoldReason.SILENCE, deliveries.c.held_by == silence.id)
    did_not_come_late = or_(deliveries.c.held_since <= silence.ends_at, deliveries.c.due_at > now + LATE)
    too_long = (deliveries.c.due_at > silence.ends_at, did_not_come_late)
    some = select(deliveries.c.key).where(*IS_HELD, *held_by_it, *too_long).order_by(deliveries.c.key).limit(SLICE)
    keys = list(connection.scalars(some.with_for_update()))
    if keys:
        connection.execute(
            update(deliveries).where(among(deliveries.c.key, "keys")).values(due_at=silence.ends_at), {"keys": keys}
        )
    return len(keys)
