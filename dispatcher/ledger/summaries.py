"""Counts what a digest or a summary tells of, within a transaction of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select

from dispatcher.ledger.schema import deliveries, delivery_recipients, events, silences
from dispatcher.ledger.search import lower
from dispatcher.model.delivery import Delivery, DropReason, Kind
from dispatcher.model.hold import HoldReason
from dispatcher.model.summary import MAX_GROUPS, MAX_LISTED, Group, Summary

_RESOLVED_SINCE = timedelta(days=31)
"""A failure that was resolved while it was held is counted if it was created at most this long before the first member
was held."""


def summary(connection: Connection, delivery: Delivery) -> Summary | None:
    """Return what a digest or a summary tells of. See `Ledger.summary`."""
    key = delivery.fallback_for or delivery.key
    told = connection.execute(select(deliveries).where(deliveries.c.key == key)).first()
    if told is None or told.kind not in {Kind.DIGEST, Kind.SUMMARY}:
        return None
    counted = connection.execute(_members(key)).one()
    last = connection.execute(_last_member(key)).first()
    if last is None:  # a purge deletes a message together with its members
        return None
    reason = HoldReason.DIGEST if told.kind is Kind.DIGEST else last.hold
    groups = _groups(connection, key)
    return Summary(
        key=key,
        reason=reason,
        by=_by(connection, reason, last.held_by),
        since=counted.since,
        until=told.created_at,
        number=counted.number,
        groups=groups,
        more=counted.number - counted.notices - sum(group.number for group in groups),
        resolved=_resolved(connection, told, reason, last.held_by, counted.since),
        notices=counted.notices,
    )


def _members(key: str) -> Select[int, int, Any]:
    return select(
        func.count().label("number"),
        func.count().filter(~_HAS_GROUP).label("notices"),
        func.min(deliveries.c.held_since).label("since"),
    ).where(deliveries.c.included_in == key)


_HAS_GROUP: ColumnElement[bool] = deliveries.c.kind != Kind.FALLBACK_NOTICE


def _last_member(key: str) -> Select[Any]:
    """Select the member whose hold ended last."""
    by_end = (deliveries.c.due_at.desc(), deliveries.c.held_since.desc(), deliveries.c.key)
    members = select(deliveries.c.hold, deliveries.c.held_by).where(deliveries.c.included_in == key)
    return members.order_by(*by_end).limit(1)


def _by(connection: Connection, reason: HoldReason, held_by: str) -> str:
    """Return what held the members, in words; empty for a digest."""
    if reason is HoldReason.DIGEST:
        return ""
    why = connection.scalar(select(silences.c.reason).where(silences.c.id == held_by))
    return f"{held_by} ({why})" if reason is HoldReason.SILENCE and why else held_by


_GROUPED = (events.c.project, events.c.domain, events.c.launch_plan, events.c.phase, events.c.cause)


def _groups(connection: Connection, key: str) -> list[Group]:
    """Return the largest groups of members, at most `MAX_GROUPS`."""
    at = deliveries.c.occurred_at
    members = (
        select(
            *_GROUPED,
            events.c.cause_name,
            events.c.name,
            func.count().over(partition_by=_GROUPED).label("number"),
            func.min(at).over(partition_by=_GROUPED).label("first_at"),
            func.max(at).over(partition_by=_GROUPED).label("last_at"),
            func.row_number().over(partition_by=_GROUPED, order_by=(at.desc(), deliveries.c.key)).label("place"),
        )
        .join(events, events.c.key == deliveries.c.event)
        .where(deliveries.c.included_in == key, _HAS_GROUP)
        .subquery()
    )
    group = tuple(members.c[column.name] for column in _GROUPED)
    largest = (members.c.number.desc(), members.c.last_at.desc(), *group)
    ranked = select(members, func.dense_rank().over(order_by=largest).label("rank")).subquery()
    query = select(ranked).where(ranked.c.rank <= MAX_GROUPS, ranked.c.place <= MAX_LISTED)
    found: dict[int, list[Row[Any]]] = {}
    for row in connection.execute(query.order_by(ranked.c.rank, ranked.c.place)):
        found.setdefault(row.rank, []).append(row)
    return [_group(rows) for rows in found.values()]


def _group(rows: Sequence[Row[Any]]) -> Group:
    """Return the group of these members, newest first."""
    newest = rows[0]
    return Group(
        launch_plan=f"{newest.project}/{newest.domain}/{newest.launch_plan}" if newest.launch_plan else "",
        phase=newest.phase,
        cause=newest.cause,
        cause_name=newest.cause_name,
        number=newest.number,
        first_at=newest.first_at,
        last_at=newest.last_at,
        executions=[f"{row.project}/{row.domain}/{row.name}" for row in rows],
    )


def _resolved(connection: Connection, told: Row[Any], reason: HoldReason, held_by: str, since: datetime) -> int:
    """Return how many failures to the same address the same hold held, that were resolved before it ended.

    A superseded delivery keeps its hold. Another summary may have counted it: by the same quiet hours in another night,
    whose end is its `due_at`; or by the same silence, before messages came late.
    """
    same_hold = deliveries.c.held_by == (told.key if reason is HoldReason.DIGEST else held_by)
    superseded = [deliveries.c.drop_reason == DropReason.SUPERSEDED, deliveries.c.hold == reason, same_hold]
    if reason is HoldReason.WINDOW:
        superseded.append(deliveries.c.due_at > since)
    elif reason is HoldReason.SILENCE:
        member = deliveries.alias("member")
        of_silence = (member.c.included_in == deliveries.c.key, member.c.held_by == held_by)
        told_before = (
            deliveries.c.kind == Kind.SUMMARY,
            deliveries.c.created_at < told.created_at,
            select(member.c.key).where(*of_silence).exists(),
        )
        earlier = connection.scalar(_to_same_address(told, since, func.max(deliveries.c.created_at), *told_before))
        if earlier is not None:
            superseded.append(deliveries.c.settled_at > earlier)
    return connection.scalar(_to_same_address(told, since, func.count(), *superseded)) or 0


def _to_same_address(
    told: Row[Any], since: datetime, wanted: ColumnElement[Any], *conditions: ColumnElement[bool]
) -> Select[Any]:
    """Select from the deliveries to the message's address that meet the conditions."""
    return (
        select(wanted)
        .select_from(delivery_recipients.join(deliveries, deliveries.c.key == delivery_recipients.c.delivery))
        .where(
            delivery_recipients.c.recipient == lower(told.addresses[0]),
            delivery_recipients.c.created_at >= since - _RESOLVED_SINCE,
            delivery_recipients.c.created_at <= told.created_at,
            deliveries.c.channel == told.channel,
            deliveries.c.addresses == told.addresses,
            *conditions,
        )
    )
