"""What people look at: pages of what is recorded, owed and refused; how it stands; what has just happened.

Reads alone, each from an index, a bounded number of rows at a time: the ledger may hold millions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy import Row, Select, func, literal, select, union_all

from dispatcher.ledger.engine import Database
from dispatcher.ledger.records import DeliveryFilter, EventFilter
from dispatcher.ledger.schema import attempts, deliveries, delivery_recipients, events, rejected
from dispatcher.ledger.search import Cursor, conditions, found, found_events, lower, of_execution
from dispatcher.model.delivery import State

if TYPE_CHECKING:  # `database` has it without the ORM
    from sqlalchemy.ext.asyncio import AsyncConnection

LOOKED_THROUGH = 10_000
"""Rows that one page looks through at most, where not everything that it asks for is in one index."""
COUNTED = 10_000
"""Beyond this a number is `many`."""
SAMPLE = 200
"""Deliveries whose lag is looked at, for each stretch of time."""
_Entry = TypeVar("_Entry")


@dataclass(frozen=True, slots=True)
class Page(Generic[_Entry]):
    """Some entries, newest first."""

    entries: Sequence[_Entry]
    after: Cursor | None
    """Where the next page begins; None where there is nothing older."""
    cut: bool = False
    """Enough was looked through before the page was full: there may be older ones that fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySummary:
    """A delivery as lists show it."""

    key: str
    event: str
    channel: str
    recipients: tuple[str, ...]
    addresses: tuple[str, ...]
    rule: str
    state: State
    reason: str
    attempt: int
    in_doubt: bool
    created_at: datetime
    due_at: datetime
    settled_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSummary:
    """An execution's end as lists show it, with how many deliveries of it stand how."""

    key: str
    project: str
    domain: str
    name: str
    phase: str
    launch_plan: str
    occurred_at: datetime
    recorded_at: datetime
    verdict: str
    reason: str
    deliveries: Mapping[State, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedSummary:
    """A rejected message as lists show it."""

    id: str
    position: str
    received_at: datetime
    reason: str
    event: str | None
    size: int
    replayed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Something that was written into the ledger: an event, an attempt's end, a rejected message."""

    id: str
    """The same whenever it is read."""
    kind: str
    """`event`, `attempt` or `rejected`."""
    at: datetime
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many there are, as far as was counted."""

    number: int
    many: bool = False
    """There are more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerStatus:
    """How the ledger stands."""

    waiting: Count
    dead: Count
    rejected: Count
    """Not replayed yet."""
    oldest_waiting: datetime | None
    """When the oldest delivery that still waits was made."""
    newest_event: datetime | None
    """When the last event was recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeBucket:
    """What was made in a stretch of time, how it stands now, and the lags of some that were sent."""

    begin: datetime
    end: datetime
    numbers: Mapping[State, int]
    lags: Sequence[timedelta]
    """From an event's own time to the provider's acceptance, ascending; of the newest `SAMPLE`."""

    def lag(self, share: float) -> float | None:
        """Seconds within which that share of the sample was accepted; None where there is none."""
        if not self.lags:
            return None
        return self.lags[max(math.ceil(share * len(self.lags)) - 1, 0)].total_seconds()


class Queries:
    """Every view raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def deliveries(
        self, wanted: DeliveryFilter, *, limit: int, after: Cursor | None = None
    ) -> Page[DeliverySummary]:
        """A page of the deliveries that fit."""
        bound = limit + 1 if _one_index(wanted) else LOOKED_THROUGH
        query, end = found(wanted, after, limit=limit + 1, bound=max(bound, limit + 1))
        async with self._database.reading() as connection:
            rows, after, cut = await _page(connection, query, end, limit)
        return Page([_delivery_line(row) for row in rows], after, cut)

    async def count(self, wanted: DeliveryFilter) -> Count:
        """How many deliveries fit."""
        some = select(literal(1)).select_from(deliveries).where(*conditions(wanted)).limit(COUNTED + 1)
        async with self._database.reading() as connection:
            return await _count(connection, some)

    async def reasons(self, wanted: DeliveryFilter, *, limit: int) -> Sequence[tuple[str, str, int]]:
        """Channels and reasons of the deliveries that fit, the most frequent first, of `COUNTED` at most."""
        some = select(deliveries.c.channel, deliveries.c.reason).where(*conditions(wanted)).limit(COUNTED).subquery()
        number = func.count().label("number")
        query = select(some.c.channel, some.c.reason, number).group_by(some.c.channel, some.c.reason)
        async with self._database.reading() as connection:
            rows = await connection.execute(query.order_by(number.desc(), some.c.channel, some.c.reason).limit(limit))
            return [(row.channel, row.reason, row.number) for row in rows]

    async def events(self, wanted: EventFilter, *, limit: int, after: Cursor | None = None) -> Page[EventSummary]:
        """A page of the terminal events that fit."""
        named = [getattr(wanted, name) for name in ("launch_plan", "phase", "verdict", "project", "domain")]
        alone = named == [wanted.launch_plan, None, None, None, None] and not (wanted.execution and wanted.launch_plan)
        bound = limit + 1 if alone else LOOKED_THROUGH
        query, end = found_events(wanted, after, limit=limit + 1, bound=max(bound, limit + 1))
        async with self._database.reading() as connection:
            rows, after, cut = await _page(connection, query, end, limit)
            numbers = await _tallies(connection, [row.key for row in rows])
        return Page([_event_line(row, numbers.get(row.key, {})) for row in rows], after, cut)

    async def rejected(
        self, *, limit: int, after: Cursor | None = None, replayed: bool | None = None
    ) -> Page[RejectedSummary]:
        """A page of rejected messages; `replayed`: only those that were, or were not."""
        at, key = rejected.c.received_at, rejected.c.id
        columns = [column for column in rejected.c if column.name not in {"headers", "body"}]
        some = select(*columns, at.label("at"), key.label("key"))
        if after is not None:
            some = some.where(at <= after.at, (at < after.at) | (key < after.key))
        bound = limit + 1 if replayed is None else LOOKED_THROUGH
        window = some.order_by(at.desc(), key.desc()).limit(bound).subquery("some")
        fitting = select(window).order_by(window.c.at.desc(), window.c.key.desc()).limit(limit + 1)
        if replayed is not None:
            there = window.c.replayed_at
            fitting = fitting.where(there.is_not(None) if replayed else there.is_(None))
        end = select(window.c.at, window.c.key).order_by(window.c.at.desc(), window.c.key.desc())
        async with self._database.reading() as connection:
            rows, after, cut = await _page(connection, fitting, end.offset(bound - 1).limit(1), limit)
        return Page([_rejected_line(row) for row in rows], after, cut)

    async def latest(self, *, limit: int, since: datetime | None = None) -> list[Activity]:
        """The newest that happened, oldest first, `limit` at most of each kind."""
        heard = select(events).order_by(events.c.recorded_at.desc()).limit(limit)
        refused = select(rejected).order_by(rejected.c.received_at.desc()).limit(limit)
        if since is not None:
            heard = heard.where(events.c.recorded_at >= since)
            refused = refused.where(rejected.c.received_at >= since)
        tried = select(attempts).order_by(attempts.c.id.desc()).limit(limit).subquery("tried")
        carried = select(tried, deliveries.c.channel, deliveries.c.recipients, deliveries.c.event)
        carried = carried.join(deliveries, deliveries.c.key == tried.c.delivery)
        if since is not None:
            carried = carried.where(tried.c.ended_at >= since)
        async with self._database.reading() as connection:
            happenings = [
                *(_of_event(row) for row in await connection.execute(heard)),
                *(_of_attempt(row) for row in await connection.execute(carried)),
                *(_of_rejected(row) for row in await connection.execute(refused)),
            ]
        return sorted(happenings, key=lambda one: (one.at, one.id))

    async def standing(self) -> LedgerStatus:
        """How the ledger stands now."""
        state, at = deliveries.c.state, deliveries.c.created_at
        newest = select(rejected.c.replayed_at).order_by(rejected.c.received_at.desc()).limit(COUNTED + 1).subquery()
        async with self._database.reading() as connection:
            waiting, dead = [
                await _count(connection, select(literal(1)).where(state == literal(one.value)).limit(COUNTED + 1))
                for one in (State.WAITING, State.DEAD)
            ]
            noise = (await connection.scalars(select(newest.c.replayed_at))).all()
            oldest = select(at).where(state == literal(State.WAITING.value)).order_by(at).limit(1)
            return LedgerStatus(
                waiting=waiting,
                dead=dead,
                rejected=Count(number=sum(one is None for one in noise[:COUNTED]), many=len(noise) > COUNTED),
                oldest_waiting=await connection.scalar(oldest),
                newest_event=await connection.scalar(
                    select(events.c.recorded_at).order_by(events.c.recorded_at.desc()).limit(1)
                ),
            )

    async def time_buckets(self, begin: datetime, end: datetime, *, number: int) -> list[TimeBucket]:
        """The time between cut into so many stretches, and what was made in each."""
        each = (end - begin) / number
        bounds = [(begin + each * at, begin + each * (at + 1)) for at in range(number)]
        async with self._database.reading() as connection:
            numbers = (await connection.execute(_numbers(bounds))).all()
            lags = (await connection.execute(_lags(bounds))).all()
        return [
            TimeBucket(
                begin=start,
                end=stop,
                numbers={State(row.state): row.number for row in numbers if row.stretch == at},
                lags=sorted(max(row.settled_at - row.occurred_at, timedelta()) for row in lags if row.stretch == at),
            )
            for at, (start, stop) in enumerate(bounds)
        ]

    async def meant(self, text: str) -> Mapping[str, str]:
        """What a word that somebody searches for may be: `delivery`, `execution`, `launch_plan`, `recipient`, `rejected`."""
        asked = {
            "delivery": conditions_of_key(text),
            "execution": select(events.c.key).where(*of_execution(text)),
            "launch_plan": select(events.c.launch_plan).where(events.c.launch_plan == text),
            "recipient": select(delivery_recipients.c.recipient).where(delivery_recipients.c.recipient == lower(text)),
            "rejected": select(rejected.c.id).where(rejected.c.id == text),
        }
        async with self._database.reading() as connection:
            answers = {what: await connection.scalar(query.limit(1)) for what, query in asked.items()}
        return {what: str(answer) for what, answer in answers.items() if answer is not None}


def conditions_of_key(text: str) -> Select[Any]:
    """A delivery whose key begins so; shorter than 6 digits it could be anything."""
    return select(deliveries.c.key).where(*conditions(DeliveryFilter(keys=[text])), literal(len(text) >= 6))


def _one_index(wanted: DeliveryFilter) -> bool:
    """Whether one index has all that is asked for, so that what it gives first is what is wanted."""
    few = wanted.execution is not None or bool(wanted.keys)
    given = (wanted.recipient is not None, wanted.launch_plan is not None, bool(wanted.states), few)
    return wanted.channel is None and sum(given) <= 1


async def _page(
    connection: AsyncConnection, query: Select[Any], end: Select[Any], limit: int
) -> tuple[Sequence[Row[Any]], Cursor | None, bool]:
    rows = (await connection.execute(query)).all()
    if len(rows) > limit:
        last = rows[limit - 1]
        return rows[:limit], Cursor(last.at, last.key), False
    stopped = (await connection.execute(end)).first()
    return rows, Cursor(stopped.at, stopped.key) if stopped is not None else None, stopped is not None


async def _count(connection: AsyncConnection, some: Select[Any]) -> Count:
    number: int = await connection.scalar(select(func.count()).select_from(some.subquery())) or 0
    return Count(number=min(number, COUNTED), many=number > COUNTED)


async def _tallies(connection: AsyncConnection, keys: Sequence[str]) -> Mapping[str, Mapping[State, int]]:
    query = select(deliveries.c.event, deliveries.c.state, func.count().label("number"))
    query = query.where(deliveries.c.event.in_(keys)).group_by(deliveries.c.event, deliveries.c.state)
    numbers: dict[str, dict[State, int]] = {}
    for row in await connection.execute(query):
        numbers.setdefault(row.event, {})[State(row.state)] = row.number
    return numbers


def _made(state: State, begin: datetime, end: datetime) -> tuple[Any, ...]:
    at = deliveries.c.created_at
    return deliveries.c.state == literal(state.value), at >= begin, at < end


def _numbers(bounds: Sequence[tuple[datetime, datetime]]) -> Any:
    return union_all(
        *(
            select(
                literal(at).label("stretch"),
                literal(state.value).label("state"),
                select(func.count())
                .select_from(deliveries)
                .where(*_made(state, *bound))
                .scalar_subquery()
                .label("number"),
            )
            for at, bound in enumerate(bounds)
            for state in State
        )
    )


def _lags(bounds: Sequence[tuple[datetime, datetime]]) -> Any:
    parts = []
    for at, bound in enumerate(bounds):
        some = select(deliveries.c.settled_at, deliveries.c.occurred_at).where(*_made(State.SENT, *bound))
        some_ = some.order_by(deliveries.c.created_at.desc()).limit(SAMPLE).subquery(f"some_{at}")
        parts.append(select(literal(at).label("stretch"), some_.c.settled_at, some_.c.occurred_at))
    return union_all(*parts)


def _delivery_line(row: Row[Any]) -> DeliverySummary:
    names = ("key", "event", "channel", "recipients", "addresses", "rule", "reason", "attempt", "in_doubt")
    times = ("created_at", "due_at", "settled_at")
    return DeliverySummary(state=State(row.state), **{name: getattr(row, name) for name in (*names, *times)})


def _event_line(row: Row[Any], numbers: Mapping[State, int]) -> EventSummary:
    names = (
        "key",
        "project",
        "domain",
        "name",
        "phase",
        "launch_plan",
        "occurred_at",
        "recorded_at",
        "verdict",
        "reason",
    )
    return EventSummary(deliveries=numbers, **{name: getattr(row, name) for name in names})


def _rejected_line(row: Row[Any]) -> RejectedSummary:
    names = ("id", "position", "received_at", "reason", "event", "size", "replayed_at")
    return RejectedSummary(**{name: getattr(row, name) for name in names})


def _of_event(row: Row[Any]) -> Activity:
    names = ("key", "project", "domain", "name", "phase", "launch_plan", "verdict", "reason")
    facts = {name: getattr(row, name) for name in names}
    return Activity(id=f"event {row.key}", kind="event", at=row.recorded_at, facts=facts)


def _of_attempt(row: Row[Any]) -> Activity:
    names = ("delivery", "number", "channel", "recipients", "event", "outcome", "status", "answer", "reason")
    facts = {name: getattr(row, name) for name in names}
    return Activity(id=f"attempt {row.id}", kind="attempt", at=row.ended_at, facts=facts)


def _of_rejected(row: Row[Any]) -> Activity:
    facts = {name: getattr(row, name) for name in ("id", "position", "reason", "event")}
    return Activity(id=f"rejected {row.id}", kind="rejected", at=row.received_at, facts=facts)
