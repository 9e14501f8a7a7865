"""Reads what waiting deliveries wait for: earlier messages of threads, pauses of destinations, and replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection, select

from dispatcher.ledger.claim import earlier_in_thread
from dispatcher.ledger.records import StoredDelivery
from dispatcher.ledger.replicas import read_replicas
from dispatcher.ledger.schema import deliveries, destinations
from dispatcher.ledger.statements import among
from dispatcher.model.delivery import Kind, State
from dispatcher.model.waiting import waits_for


def with_waits(connection: Connection, found: Sequence[StoredDelivery], now: datetime) -> list[StoredDelivery]:
    """Return the deliveries, each with what it waits for. See `Queries.with_waits`."""
    waiting = [one.delivery for one in found if one.delivery.state is State.WAITING]
    if not waiting:
        return [*found]
    known = read_replicas(connection)
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
            ),
        )
        for stored in found
    ]


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
