"""Deletes old events and rejected messages, with everything that belongs to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, delete, func, or_, select, update

from dispatcher.ledger.actions import insert_action
from dispatcher.ledger.checkpoints import complete_since_later
from dispatcher.ledger.records import Action
from dispatcher.ledger.schema import (
    action_deliveries,
    actions,
    attempts,
    contents,
    deliveries,
    destinations,
    events,
    launch_plan_versions,
    rejected,
    subjects,
    unresolved_owners,
)
from dispatcher.model.delivery import State


def purge(connection: Connection, before: datetime, limit: int, action: Action | None) -> int:
    """Delete old events and rejected messages. See `Ledger.purge`."""
    for at in (events.c.recorded_at, rejected.c.received_at):
        newest = connection.scalar(select(func.max(at)).where(at < before))
        if newest is not None:
            complete_since_later(connection, newest)
    number = _purge_events(connection, before, limit)
    old_rejected = select(rejected.c.id).where(rejected.c.received_at < before).limit(limit)
    number += (connection.execute(delete(rejected).where(rejected.c.id.in_(old_rejected)))).rowcount
    _purge_states(connection, before)
    if number and action is not None:
        insert_action(connection, action)
    return number


def forget_streaks(connection: Connection) -> None:
    """Forget all streaks. See `Ledger.forget_streaks`."""
    counted = subjects.c.failed_at.is_not(None)
    connection.execute(update(subjects).where(counted).values(streak=None, failed_at=None))


def count_purgeable(connection: Connection, before: datetime) -> int:
    """Count what `purge` would delete. See `Ledger.count_purgeable`."""
    old_events = select(func.count()).select_from(_old_events(before).subquery())
    old_rejected = select(func.count()).where(rejected.c.received_at < before)
    return sum(connection.execute(query).scalar_one() for query in (old_events, old_rejected))


def _old_events(before: datetime) -> Select[Any]:
    """Select the keys of old events without a waiting delivery."""
    waiting = select(deliveries.c.event).where(deliveries.c.state == State.WAITING)
    return select(events.c.key).where(events.c.recorded_at < before, events.c.key.not_in(waiting))


def _purge_events(connection: Connection, before: datetime, limit: int) -> int:
    """Delete events without a waiting delivery, and what only they use. Returns the number of events."""
    keys = list(connection.scalars(_old_events(before).limit(limit)))
    concerned = deliveries.c.event.in_(keys)
    hashes = set(connection.scalars(select(deliveries.c.content).where(concerned)))
    for table in (attempts, action_deliveries):
        of_deliveries = table.c.delivery.in_(select(deliveries.c.key).where(concerned))
        connection.execute(delete(table).where(of_deliveries))
    connection.execute(delete(deliveries).where(concerned))
    connection.execute(delete(events).where(events.c.key.in_(keys)))
    still_used = select(deliveries.c.content).where(deliveries.c.content.in_(hashes))
    unused = (contents.c.content_hash.in_(hashes), contents.c.content_hash.not_in(still_used))
    connection.execute(delete(contents).where(*unused))
    return len(keys)


def _purge_states(connection: Connection, before: datetime) -> None:
    """Delete subjects, versions, destinations, unresolved owners and actions that nothing needs any more."""
    has_deliveries = select(deliveries.c.key).where(deliveries.c.subject == subjects.c.name).exists()
    old = [or_(at.is_(None), at < before) for at in (subjects.c.well_since, subjects.c.failed_at)]
    connection.execute(delete(subjects).where(*old, ~has_deliveries))
    orphaned = launch_plan_versions.c.launch_plan.not_in(select(subjects.c.name))
    connection.execute(delete(launch_plan_versions).where(orphaned))
    unblocked = func.coalesce(destinations.c.blocked_until, before) <= before
    connection.execute(delete(destinations).where(destinations.c.theoretical_arrival_at < before, unblocked))
    connection.execute(delete(unresolved_owners).where(unresolved_owners.c.last_at < before))
    concerns = select(action_deliveries.c.action).where(action_deliveries.c.action == actions.c.id).exists()
    connection.execute(delete(actions).where(actions.c.at < before, ~concerns))
