"""Turns filters into SQL that always starts from an index.

A search reads at most `max_rows` rows through the index, newest first, and checks the other conditions on these rows.
So even an unusual combination of conditions does not read the whole ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

import orjson
from sqlalchemy import ColumnElement, Select, and_, case, func, literal, not_, or_, select, union_all
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from dispatcher.ledger.records import Cursor, Filter
from dispatcher.ledger.schema import deliveries, delivery_recipients, events
from dispatcher.model.delivery import State
from dispatcher.model.event import shortened
from dispatcher.model.phase import TERMINAL

KEY_LENGTH = 32


def conditions(wanted: Filter) -> list[ColumnElement[bool]]:
    """Return the SQL conditions for all parts of the filter, on the table `deliveries`.

    They are for statements that need all such deliveries. The deliveries of a recipient, a launch plan and a cause are
    subqueries, so that the database reads those once, and does not look at each delivery in a state.
    """
    limits = [*_key_conditions(wanted)]
    limits += between(deliveries.c.created_at, deliveries.c.key, wanted.since, wanted.until, None)
    if wanted.recipient is not None:
        entries = delivery_recipients.c
        limits.append(
            deliveries.c.key.in_(select(entries.delivery).where(entries.recipient == lower(wanted.recipient)))
        )
    if wanted.launch_plan is not None or wanted.cause is not None:
        limits.append(deliveries.c.event.in_(select(events.c.key).where(*_on_event(wanted, events.c))))
        wanted = replace(wanted, launch_plan=None, project=None, domain=None, phase=None, verdict=None, cause=None)
    return [*limits, *delivery_conditions(replace(wanted, recipient=None), deliveries.c)]


def newest_events(wanted: Filter, after: Cursor | None, max_rows: int) -> Select[Any]:
    """Select the newest terminal events, by the index that leaves the fewest rows. The index is sorted by `at`."""
    columns = [column for column in events.c if column.name not in {"facts", "considered"}]
    at = events.c.recorded_at
    query = select(*columns, at.label("at")).where(*between(at, events.c.key, wanted.since, wanted.until, after))
    if wanted.execution is not None:
        query = query.where(*of_execution(wanted.execution))
    elif (indexed := _by_index_on_events(wanted)) is not None:
        query = query.where(indexed)
    return query.order_by(at.desc(), events.c.key.desc()).limit(max_rows)


def events_by_one_index(wanted: Filter) -> bool:
    """True if one index covers all conditions on events, so that the first rows of the index are the page."""
    others = (wanted.project, wanted.domain, wanted.phase, wanted.verdict)
    on_delivery = (wanted.channel, wanted.recipient, wanted.included_in, wanted.held, wanted.held_by)
    several = [wanted.execution, wanted.launch_plan, wanted.cause].count(None) < 2
    return not several and not wanted.states and not any(one is not None for one in (*others, *on_delivery))


def event_conditions(wanted: Filter, row: Any) -> list[ColumnElement[bool]]:
    """Return the conditions that the search checks on each event that it has read."""
    limits = _on_event(wanted, row)
    if on_delivery := _on_delivery(wanted, deliveries.c):
        # Not in WHERE, because the database could choose an index on state and read all such deliveries.
        matches = func.max(case((and_(*on_delivery), 1), else_=0))
        limits.append(select(matches).where(deliveries.c.event == row.key).scalar_subquery() == 1)
    return limits


def lower(text: str) -> str:
    """Return a recipient as `delivery_recipients` stores it: ASCII letters in lower case, 320 characters, no NUL."""
    return "".join(chr(ord(char) + 32) if "A" <= char <= "Z" else char for char in text)[:320].replace("\0", "")


def newest_deliveries(wanted: Filter, after: Cursor | None, max_rows: int) -> Select[Any]:
    """Select the newest deliveries, by the index that leaves the fewest rows. The index is sorted by `at`."""
    if wanted.execution is not None or wanted.keys or wanted.included_in is not None:
        at, key = deliveries.c.created_at, deliveries.c.key
        query = select(deliveries, at.label("at")).where(*_key_conditions(wanted))
    elif wanted.recipient is not None:
        at, key = delivery_recipients.c.created_at, delivery_recipients.c.delivery
        query = select(deliveries, at.label("at")).join(
            delivery_recipients, delivery_recipients.c.delivery == deliveries.c.key
        )
        query = query.where(delivery_recipients.c.recipient == lower(wanted.recipient))
    elif (indexed := _by_index_on_events(wanted)) is not None and (not wanted.states or State.SENT in wanted.states):
        at, key = events.c.recorded_at, deliveries.c.key
        query = select(deliveries, at.label("at")).join(events, events.c.key == deliveries.c.event).where(indexed)
    else:
        return _by_state(wanted, after, max_rows)
    query = query.where(*between(at, key, wanted.since, wanted.until, after))
    return query.order_by(at.desc(), key.desc()).limit(max_rows)


def _by_index_on_events(wanted: Filter) -> ColumnElement[bool] | None:
    """Return the condition on events that an index sorted by `recorded_at` covers; None if there is none."""
    if wanted.cause is not None:
        return events.c.cause == wanted.cause
    if wanted.launch_plan is not None:
        return of_launch_plan(events.c.launch_plan, wanted.launch_plan)
    return None


def _by_state(wanted: Filter, after: Cursor | None, max_rows: int) -> Select[Any]:
    """Read the newest deliveries of each wanted state from the index on state, and select the newest of all these."""
    at, key = deliveries.c.created_at, deliveries.c.key
    within = between(at, key, wanted.since, wanted.until, after)
    parts = [
        select(
            select(deliveries, at.label("at"))
            .where(deliveries.c.state == literal(state.value), *within)
            .order_by(at.desc(), key.desc())
            .limit(max_rows)
            .subquery(f"some_{state}")
        )
        for state in sorted([State.WAITING] if wanted.held else wanted.states or State)
    ]
    every = union_all(*parts).subquery("every")
    return select(every).order_by(every.c.at.desc(), every.c.key.desc()).limit(max_rows)


def between(at: Any, key: Any, since: datetime | None, until: datetime | None, after: Cursor | None) -> list[Any]:
    limits = []
    if since is not None:
        limits.append(at >= since)
    if until is not None:
        limits.append(at < until)
    if after is not None:
        limits.append(and_(at <= after.at, or_(at < after.at, key < after.key)))
    return limits


def _key_conditions(wanted: Filter) -> list[ColumnElement[bool]]:
    """Return the conditions on delivery keys, on the digest and on the execution. An index finds the few deliveries that
    meet them.
    """
    limits: list[ColumnElement[bool]] = []
    if wanted.included_in is not None:
        limits.append(_is_key(deliveries.c.included_in, wanted.included_in))
    if wanted.keys:
        full = [key for key in wanted.keys if len(key) >= KEY_LENGTH]
        prefixes = [_is_key(deliveries.c.key, key) for key in wanted.keys if len(key) < KEY_LENGTH]
        limits.append(or_(*([deliveries.c.key.in_(full)] if full else []), *prefixes))
    if wanted.execution is not None:
        limits.append(deliveries.c.event.in_(select(events.c.key).where(*of_execution(wanted.execution))))
    return limits


def _is_key(column: Any, text: str) -> ColumnElement[bool]:
    """SQL condition: the delivery key in the column is `text`, or starts with it if `text` is shorter than a key.

    It is a range, because LIKE would not use the index. Keys have hexadecimal digits only, so `text` followed by "g" comes
    after all keys that start with `text`.
    """
    if len(text) >= KEY_LENGTH:
        return cast("ColumnElement[bool]", column == text)
    return and_(column >= text, column < f"{text}g")


def of_execution(text: str) -> list[ColumnElement[bool]]:
    """Return conditions on `events` for an execution: `project/domain/name`, or a name in any project and domain."""
    if "/" not in text:
        return [has_name(text)]
    return [events.c.key.in_([f"{text}/{phase}" for phase in sorted(TERMINAL)])]


def of_launch_plan(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """Return the condition that a launch plan has this name. `column` is the column `launch_plan` of `events`."""
    return column == shortened(name)


class has_name(ColumnElement[bool]):  # noqa: N801 - named in lower case, because it is used like a function of SQLAlchemy
    """SQL condition: the event's execution has this name, in any project and domain.

    PostgreSQL has an index on the name. SQLite has no such index, because each recorded event would then have to write
    one more page. On SQLite, the query first lists all places (project and domain), with one look-up in the primary key
    for each place. Then it looks up the event keys that the name can have in each place.
    """

    inherit_cache: bool | None = False

    def __init__(self, name: str) -> None:
        self.name = name


@compiles(has_name, "postgresql")
def _by_index(element: has_name, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(events.c.name == element.name, **options)


@compiles(has_name, "sqlite")
def _by_places(element: has_name, compiler: SQLCompiler, **options: Any) -> str:
    key, name = (compiler.process(one, **options) for one in (events.c.key, literal(element.name)))
    phases = compiler.process(literal(orjson.dumps(sorted(TERMINAL)).decode()), **options)
    return f"{key} IN ({_KEYS_IN_ALL_PLACES.format(name=name, phases=phases)})"


_KEYS_IN_ALL_PLACES = """
    WITH RECURSIVE places (project, domain) AS (
      SELECT * FROM (SELECT project, domain FROM events ORDER BY key LIMIT 1)
      UNION
      SELECT next.project, next.domain FROM places JOIN events AS next
      ON next.key = (SELECT min(key) FROM events WHERE key > places.project || '/' || places.domain || '0')
    )
    SELECT places.project || '/' || places.domain || '/' || {name} || '/' || phase.value
    FROM places CROSS JOIN json_each({phases}) AS phase
"""
"""Selects every key that an event of an execution with this name can have. Keys are `project/domain/name/PHASE`. "0" is
the character after "/". So `project/domain0` sorts after all keys of this project and domain, and the next key belongs
to the next place."""


def deliveries_by_one_index(wanted: Filter) -> bool:
    """True if one index covers all conditions on deliveries, so that the first rows of the index are the page."""
    others = (
        *(wanted.project, wanted.domain, wanted.phase, wanted.verdict, wanted.channel),
        *(wanted.unleased_at, wanted.held, wanted.held_by),
    )
    few = wanted.execution is not None or bool(wanted.keys) or wanted.included_in is not None
    given = (wanted.recipient, wanted.launch_plan, wanted.cause, wanted.states or None, few or None)
    return others.count(None) == len(others) and given.count(None) >= len(given) - 1


def delivery_conditions(wanted: Filter, row: Any) -> list[ColumnElement[bool]]:
    """Return the conditions that the search checks on each delivery that it has read."""
    limits = _on_delivery(wanted, row)
    if on_event := _on_event(wanted, events.c):
        # A scalar subquery, because the database could turn a join around and read all matching events first.
        its_event = select(events.c.key).where(events.c.key == row.event, *on_event)
        limits.append(its_event.scalar_subquery() == row.event)
    return limits


def _on_event(wanted: Filter, row: Any) -> list[ColumnElement[bool]]:
    """Return the conditions on the columns of an event."""
    names = ("project", "domain", "phase", "verdict", "cause")
    limits = [row[name] == value for name in names if (value := getattr(wanted, name)) is not None]
    if wanted.launch_plan is not None:
        limits.append(of_launch_plan(row.launch_plan, wanted.launch_plan))
    return limits


def _on_delivery(wanted: Filter, row: Any) -> list[ColumnElement[bool]]:
    """Return the conditions on the columns of a delivery."""
    limits: list[ColumnElement[bool]] = []
    if wanted.states:
        limits.append(row.state.in_(sorted(wanted.states)))
    if wanted.channel is not None:
        limits.append(row.channel == wanted.channel)
    if wanted.included_in is not None:
        limits.append(_is_key(row.included_in, wanted.included_in))
    if wanted.held is not None:
        held = and_(row.state == State.WAITING, row.hold.is_not(None))
        limits.append(held if wanted.held else not_(held))
    if wanted.held_by is not None:
        limits.append(row.held_by == wanted.held_by)
    if wanted.unleased_at is not None:
        limits.append(or_(row.lease.is_(None), row.due_at <= wanted.unleased_at))
    if wanted.recipient is not None:
        its_entry = select(delivery_recipients.c.delivery).where(
            delivery_recipients.c.recipient == lower(wanted.recipient),
            delivery_recipients.c.created_at == row.created_at,
            delivery_recipients.c.delivery == row.key,
        )
        limits.append(its_entry.scalar_subquery() == row.key)
    return limits


def in_chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield chunks of 500 keys, because databases limit the number of parameters in a statement."""
    for begin in range(0, len(keys), 500):
        yield keys[begin : begin + 500]
