"""Deletes old events and rejected messages, with everything that belongs to them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, func, or_, select, update

from dispatcher.ledger.actions import insert_action
from dispatcher.ledger.checkpoints import complete_since_later
from dispatcher.ledger.holds import IS_HELD
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
    silences,
    subjects,
    unresolved_owners,
)
from dispatcher.model.delivery import State


def purge(connection: Connection, before: datetime, limit: int, action: Action | None, longest: timedelta) -> int:
    """Delete old events and rejected messages. See `Ledger.purge`. `longest`: no delivery is held longer."""
    for at in (events.c.recorded_at, rejected.c.received_at):
        newest = connection.scalar(select(func.max(at)).where(at < before))
        if newest is not None:
            complete_since_later(connection, newest)
    number = _purge_events(connection, before, limit)
    old_rejected = select(rejected.c.id).where(rejected.c.received_at < before).limit(limit)
    number += (connection.execute(delete(rejected).where(rejected.c.id.in_(old_rejected)))).rowcount
    _purge_states(connection, before)
    _purge_silences(connection, before - longest)
    if number and action is not None:
        insert_action(connection, action)
    return number


def forget_streaks(connection: Connection) -> None:
    """Forget all streaks. See `Ledger.forget_streaks`."""
    counted = subjects.c.failed_at.is_not(None)
    connection.execute(update(subjects).where(counted).values(streak=None, failed_at=None))


def count_purgeable(connection: Connection, before: datetime) -> int:
    """Count what `purge` would delete. See `Ledger.count_purgeable`."""
    old = (_old_events(before), _old_summaries(before), select(rejected.c.id).where(rejected.c.received_at < before))
    counts = (select(func.count()).select_from(one.subquery()) for one in old)
    return sum(connection.execute(query).scalar_one() for query in counts)


def _old_events(before: datetime) -> Select[Any]:
    """Select the keys of old events without a waiting delivery. An event of which a digest, a summary or a page tells
    stays as long as that message.
    """
    of_event = deliveries.c.event.is_not(None)  # digests and summaries have no event, and NULL is in no list
    waiting = select(deliveries.c.event).where(deliveries.c.state == State.WAITING, of_event)
    teller = deliveries.alias("teller")
    told_later = (
        select(deliveries.c.event)
        .join(teller, teller.c.key == deliveries.c.included_in)
        .where(
            *(deliveries.c.state == State.DROPPED, deliveries.c.created_at < before, of_event),
            or_(teller.c.state == State.WAITING, teller.c.created_at >= before),
        )
    )
    old = (events.c.recorded_at < before, events.c.key.not_in(waiting), events.c.key.not_in(told_later))
    return select(events.c.key).where(*old)


def _old_summaries(before: datetime) -> Select[Any]:
    """Select the keys of finished messages without an event, all of whose members are deleted."""
    member = deliveries.alias("member")
    has_members = select(member.c.key).where(member.c.included_in == deliveries.c.key).exists()
    old = (deliveries.c.event.is_(None), deliveries.c.created_at < before, deliveries.c.state != State.WAITING)
    return select(deliveries.c.key).where(*old, ~has_members)


def _purge_events(connection: Connection, before: datetime, limit: int) -> int:
    """Delete events without a waiting delivery, digests and summaries, and what only they use. Returns their number."""
    keys = list(connection.scalars(_old_events(before).limit(limit)))
    _delete_deliveries(connection, deliveries.c.event.in_(keys))
    connection.execute(delete(events).where(events.c.key.in_(keys)))
    summaries = list(connection.scalars(_old_summaries(before).limit(limit)))
    _delete_deliveries(connection, deliveries.c.key.in_(summaries))
    return len(keys) + len(summaries)


def _delete_deliveries(connection: Connection, concerned: ColumnElement[bool]) -> None:
    """Delete deliveries, and what only they use."""
    hashes = set(connection.scalars(select(deliveries.c.content).where(concerned)))
    for table in (attempts, action_deliveries):
        of_deliveries = table.c.delivery.in_(select(deliveries.c.key).where(concerned))
        connection.execute(delete(table).where(of_deliveries))
    connection.execute(delete(deliveries).where(concerned))
    still_used = select(deliveries.c.content).where(deliveries.c.content.in_(hashes))
    unused = (contents.c.content_hash.in_(hashes), contents.c.content_hash.not_in(still_used))
    connection.execute(delete(contents).where(*unused))


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


def _purge_silences(connection: Connection, before: datetime) -> None:
    """Delete silences that ended before this time and hold nothing any more. Nothing is matched by them either."""
    holding = select(deliveries.c.held_by).where(*IS_HELD, deliveries.c.held_by.is_not(None))
    connection.execute(delete(silences).where(silences.c.ends_at < before, silences.c.id.not_in(holding)))
