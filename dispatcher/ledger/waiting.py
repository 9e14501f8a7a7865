"""Reads what deliveries wait for, and what became of those that were held.

That takes earlier messages of threads, pauses of destinations, replicas, silences, and the messages that tell of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection, select

from dispatcher.ledger.claim import earlier_in_thread
from dispatcher.ledger.records import StoredDelivery, ToldBy
from dispatcher.ledger.replicas import read_replicas
from dispatcher.ledger.schema import deliveries, destinations, silences
from dispatcher.ledger.statements import among
from dispatcher.model.delivery import Delivery, Kind, State
from dispatcher.model.hold import HoldReason, holder_text
from dispatcher.model.status import status
from dispatcher.model.waiting import HoldingSilence, waits_for


def with_waits(connection: Connection, found: Sequence[StoredDelivery], now: datetime) -> list[StoredDelivery]:
    """Return the deliveries, each with what it waits for, and what tells of it. See `Queries.with_waits`."""
    waiting = [one.delivery for one in found if one.delivery.state is State.WAITING]
    silenced = _silences(connection, {one.delivery.held_by for one in found if one.delivery.hold is HoldReason.SILENCE})
    told_by = _told_by(connection, {one.delivery.included_in for one in found} - {""})
    known = read_replicas(connection) if waiting else []
    earlier = _earlier(connection, [one.key for one in waiting if one.thread])
    pauses = _pauses(connection, [one.due_at for one in waiting if one.due_at > now and not one.slot_reserved])
    return [
        replace(
            stored,
            waits_for=waits_for(
                stored.delivery,
                now=now,
                earlier=earlier.get(stored.delivery.key),
                paused=(stored.delivery.channel, stored.delivery.due_at) in pauses,
                replicas=known,
                silence=silenced.get(stored.delivery.held_by),
            ),
            holder=_holder(stored.delivery, silenced),
            told_by=told_by.get(stored.delivery.included_in),
        )
        for stored in found
    ]


def _holder(delivery: Delivery, silenced: Mapping[str, HoldingSilence]) -> str:
    if delivery.hold is None:
        return ""
    silence = silenced.get(delivery.held_by)
    return holder_text(delivery.hold, delivery.held_by, silence.reason if silence is not None else "")


def _silences(connection: Connection, ids: AbstractSet[str]) -> Mapping[str, HoldingSilence]:
    if not ids:
        return {}
    query = select(silences.c.id, silences.c.reason, silences.c.ends_at).where(silences.c.id.in_(ids))
    return {row.id: HoldingSilence(row.reason, row.ends_at) for row in connection.execute(query)}


def _told_by(connection: Connection, keys: AbstractSet[str]) -> Mapping[str, ToldBy]:
    """Return the messages that tell of others, by their key."""
    if not keys:
        return {}
    columns = [deliveries.c[name] for name in ("key", "kind", "state", "hold", "included_in")]
    rows = connection.execute(select(*columns).where(deliveries.c.key.in_(keys)))
    return {row.key: ToldBy(row.key, row.kind, status(row.state, row.hold, row.included_in)) for row in rows}


def _earlier(connection: Connection, keys: Sequence[str]) -> Mapping[str, str]:
    """Return the first waiting message of each delivery's thread, by the delivery's key, if the delivery is later."""
    if not keys:
        return {}
    return {row.key: row.earlier for row in connection.execute(_EARLIER, {"keys": keys}) if row.earlier is not None}


def _pauses(connection: Connection, due_times: Sequence[datetime]) -> set[tuple[str, datetime]]:
    """Return the channel and the end of each destination's pause that ends at one of these times.

    A claim gives the deliveries to a paused destination the pause's end as their due time (`AdmissionControl.admit`).
    """
    if not due_times:
        return set()
    query = select(destinations.c.channel, destinations.c.blocked_until)
    return {
        (row.channel, row.blocked_until)
        for row in connection.execute(query.where(destinations.c.blocked_until.in_(set(due_times))))
    }


_before = deliveries.alias("before")
_EARLIER = select(
    deliveries.c.key,
    select(_before.c.key)
    .where(earlier_in_thread(_before))
    .order_by(_before.c.thread_at, _before.c.kind != Kind.RESOLVED_NOTICE, _before.c.key)
    .limit(1)
    .scalar_subquery()
    .label("earlier"),
).where(among(deliveries.c.key, "keys"))
