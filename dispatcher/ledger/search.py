"""What a search means in SQL, and where it begins: always at an index, however many rows there are.

The rows that the index gives in order are looked through up to a bound; what else is asked for is looked at
among those. So no search reads the whole ledger, whatever is asked for together.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple, Self

import orjson
from sqlalchemy import ColumnElement, Select, and_, literal, or_, select, union_all
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from dispatcher.ledger.records import DeliveryFilter, EventFilter
from dispatcher.ledger.schema import deliveries, delivery_recipients, events
from dispatcher.model.delivery import State
from dispatcher.model.phase import TERMINAL

KEY_LENGTH = 32
TOLD = """
    INSERT OR IGNORE INTO delivery_recipients (recipient, created_at, delivery)
    SELECT substr(lower(name.value), 1, 320), made.created_at, made.key
    FROM json_each(?) AS new CROSS JOIN deliveries AS made ON made.key = new.value CROSS JOIN json_each(made.recipients) AS name
    UNION ALL
    SELECT substr(lower(name.value), 1, 320), made.created_at, made.key
    FROM json_each(?) AS new CROSS JOIN deliveries AS made ON made.key = new.value CROSS JOIN json_each(made.addresses) AS name
    WHERE made.addresses <> made.recipients
"""
"""Notes whom deliveries tell, by their keys as JSON. On PostgreSQL a trigger does it, once a statement; SQLite's fire for
each row, and cost more than twice as much."""


class Cursor(NamedTuple):
    """Where a page ends: the next one begins after it. Newest first, so after means older."""

    at: datetime
    key: str

    def __str__(self) -> str:
        return f"{self.at.isoformat()}~{self.key}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError for what is no cursor of ours."""
        at, tilde, key = text.partition("~")
        moment = datetime.fromisoformat(at)
        if not tilde or not key or "\0" in key or moment.tzinfo is None:
            raise ValueError("no cursor")
        return cls(moment, key)


def conditions(wanted: DeliveryFilter) -> list[ColumnElement[bool]]:
    """All that must hold of a delivery."""
    within = _range(deliveries.c.created_at, deliveries.c.key, wanted.since, wanted.until, None)
    return [*_rest(wanted, deliveries.c), *_at_hand(wanted), *within]


def found(wanted: DeliveryFilter, after: Cursor | None, *, limit: int, bound: int) -> tuple[Select[Any], Select[Any]]:
    """The deliveries that fit, newest first, each with its place in that order, `at`; and where the look ended early.

    `bound`: how many rows are looked through at most.
    """
    some = _window(wanted, after, bound).subquery("some")
    fitting = select(some).where(*_rest(wanted, some.c)).order_by(some.c.at.desc(), some.c.key.desc()).limit(limit)
    return fitting, _end_of(some, bound)


def found_events(
    wanted: EventFilter, after: Cursor | None, *, limit: int, bound: int
) -> tuple[Select[Any], Select[Any]]:
    """The same of events."""
    columns = [column for column in events.c if column.name not in {"facts", "considered"}]
    at = events.c.recorded_at
    query = select(*columns, at.label("at")).where(*_range(at, events.c.key, wanted.since, wanted.until, after))
    if wanted.execution is not None:
        query = query.where(*of_execution(wanted.execution))
    elif wanted.launch_plan is not None:
        query = query.where(events.c.launch_plan == wanted.launch_plan)
    some = query.order_by(at.desc(), events.c.key.desc()).limit(bound).subquery("some")
    others = ("launch_plan", "phase", "verdict", "project", "domain")
    rest = [some.c[name] == value for name in others if (value := getattr(wanted, name)) is not None]
    fitting = select(some).where(*rest).order_by(some.c.at.desc(), some.c.key.desc()).limit(limit)
    return fitting, _end_of(some, bound)


def lower(text: str) -> str:
    """As the triggers write it: ASCII's letters alone, and no longer than the column."""
    return "".join(chr(ord(char) + 32) if "A" <= char <= "Z" else char for char in text)[:320].replace("\0", "")


def _end_of(some: Any, bound: int) -> Select[Any]:
    """The last row of a window that was full; none where there was nothing more to look at."""
    return select(some.c.at, some.c.key).order_by(some.c.at.desc(), some.c.key.desc()).offset(bound - 1).limit(1)


def _window(wanted: DeliveryFilter, after: Cursor | None, bound: int) -> Select[Any]:
    """The newest deliveries by the index that tells most, each with `at`, what it is ordered by."""
    if wanted.execution is not None or wanted.keys:
        at, key = deliveries.c.created_at, deliveries.c.key
        query = select(deliveries, at.label("at")).where(*_at_hand(wanted))
    elif wanted.recipient is not None:
        at, key = delivery_recipients.c.created_at, delivery_recipients.c.delivery
        query = select(deliveries, at.label("at")).join(
            delivery_recipients, delivery_recipients.c.delivery == deliveries.c.key
        )
        query = query.where(delivery_recipients.c.recipient == lower(wanted.recipient))
    elif wanted.launch_plan is not None and not (wanted.states and State.SENT not in wanted.states):
        at, key = events.c.recorded_at, deliveries.c.key
        query = select(deliveries, at.label("at")).join(events, events.c.key == deliveries.c.event)
        query = query.where(events.c.launch_plan == wanted.launch_plan)
    else:
        return _by_state(wanted, after, bound)
    query = query.where(*_range(at, key, wanted.since, wanted.until, after))
    return query.order_by(at.desc(), key.desc()).limit(bound)


def _by_state(wanted: DeliveryFilter, after: Cursor | None, bound: int) -> Select[Any]:
    """Each state's newest by its index, and the newest of all of these."""
    at, key = deliveries.c.created_at, deliveries.c.key
    within = _range(at, key, wanted.since, wanted.until, after)
    parts = [
        select(
            select(deliveries, at.label("at"))
            .where(deliveries.c.state == literal(state.value), *within)
            .order_by(at.desc(), key.desc())
            .limit(bound)
            .subquery(f"some_{state}")
        )
        for state in sorted(wanted.states or State)
    ]
    every = union_all(*parts).subquery("every")
    return select(every).order_by(every.c.at.desc(), every.c.key.desc()).limit(bound)


def _range(at: Any, key: Any, since: datetime | None, until: datetime | None, after: Cursor | None) -> list[Any]:
    limits = []
    if since is not None:
        limits.append(at >= since)
    if until is not None:
        limits.append(at < until)
    if after is not None:
        limits.append(and_(at <= after.at, or_(at < after.at, key < after.key)))
    return limits


def _at_hand(wanted: DeliveryFilter) -> list[ColumnElement[bool]]:
    """What names few deliveries, found by their keys."""
    limits: list[ColumnElement[bool]] = []
    if wanted.keys:
        whole = [key for key in wanted.keys if len(key) >= KEY_LENGTH]
        begun = [_begins(key) for key in wanted.keys if len(key) < KEY_LENGTH]
        limits.append(or_(*([deliveries.c.key.in_(whole)] if whole else []), *begun))
    if wanted.execution is not None:
        limits.append(deliveries.c.event.in_(select(events.c.key).where(*of_execution(wanted.execution))))
    return limits


def _begins(key: str) -> ColumnElement[bool]:
    """Keys are hexadecimal, and "g" comes after all its digits. LIKE would pass the index by."""
    return and_(deliveries.c.key >= key, deliveries.c.key < f"{key}g")


def of_execution(text: str) -> list[ColumnElement[bool]]:
    """An event of it: `project/domain/name`, or a name alone."""
    if "/" not in text:
        return [named(text)]
    return [events.c.key.in_([f"{text}/{phase}" for phase in sorted(TERMINAL)])]


class named(ColumnElement[bool]):  # noqa: N801 - as SQLAlchemy's own
    """Whether an event is of an execution of that name, whoever's it is.

    On SQLite the owners are looked up, one after another by the key's own index, and then their executions: an index of
    names would be one more page to write for each event.
    """

    inherit_cache: bool | None = False

    def __init__(self, name: str) -> None:
        self.name = name


@compiles(named, "postgresql")
def _by_index(element: named, compiler: SQLCompiler, **how: Any) -> str:
    return compiler.process(events.c.name == element.name, **how)


@compiles(named, "sqlite")
def _by_owners(element: named, compiler: SQLCompiler, **how: Any) -> str:
    key, name = (compiler.process(one, **how) for one in (events.c.key, literal(element.name)))
    phases = compiler.process(literal(orjson.dumps(sorted(TERMINAL)).decode()), **how)
    return f"{key} IN ({_OWNED.format(name=name, phases=phases)})"


_OWNED = """
    WITH RECURSIVE owners (project, domain) AS (
      SELECT * FROM (SELECT project, domain FROM events ORDER BY key LIMIT 1)
      UNION
      SELECT next.project, next.domain FROM owners JOIN events AS next
      ON next.key = (SELECT min(key) FROM events WHERE key > owners.project || '/' || owners.domain || '0')
    )
    SELECT owners.project || '/' || owners.domain || '/' || {name} || '/' || phase.value
    FROM owners CROSS JOIN json_each({phases}) AS phase
"""
"""Keys are `project/domain/name/PHASE`, and "0" comes next after "/"."""


def _rest(wanted: DeliveryFilter, row: Any) -> list[ColumnElement[bool]]:
    """What is looked at row by row."""
    limits: list[ColumnElement[bool]] = []
    if wanted.states:
        limits.append(row.state.in_(sorted(wanted.states)))
    if wanted.channel is not None:
        limits.append(row.channel == wanted.channel)
    if wanted.launch_plan is not None:
        # A scalar, so that no planner turns it into a join that begins with the launch plan's million events.
        plan = select(events.c.launch_plan).where(events.c.key == row.event).scalar_subquery()
        limits.append(plan == wanted.launch_plan)
    if wanted.recipient is not None:
        line = (
            delivery_recipients.c.recipient == lower(wanted.recipient),
            delivery_recipients.c.created_at == row.created_at,
        )
        theirs = select(delivery_recipients.c.delivery).where(*line, delivery_recipients.c.delivery == row.key)
        limits.append(theirs.scalar_subquery() == row.key)
    return limits
