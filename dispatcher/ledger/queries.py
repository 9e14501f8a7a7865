"""Read-only queries for the console, its API and metrics: pages of lists, status, activity, backlog.

Each query starts from an index and reads a limited number of rows, because a ledger may have millions of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, func, literal, select, union_all

from dispatcher.ledger.claim import DUE
from dispatcher.ledger.engine import Database
from dispatcher.ledger.holds import IS_HELD
from dispatcher.ledger.records import (
    Activity,
    Backlog,
    Count,
    Cursor,
    EventSummary,
    Filter,
    LedgerStatus,
    Page,
    RejectedSummary,
    StoredDelivery,
    TimeBucket,
)
from dispatcher.ledger.rows import read, read_stored_delivery
from dispatcher.ledger.schema import attempts, deliveries, delivery_recipients, destinations, events, rejected
from dispatcher.ledger.search import (
    between,
    conditions,
    deliveries_by_one_index,
    delivery_conditions,
    event_conditions,
    events_by_one_index,
    lower,
    newest_deliveries,
    newest_events,
    of_execution,
    of_launch_plan,
)
from dispatcher.ledger.sqlalchemy_internals import AsyncConnection
from dispatcher.ledger.waiting import with_waits
from dispatcher.model.delivery import State, uncounted
from dispatcher.model.rate_limit import FAILURES_TO_OPEN
from dispatcher.model.status import DeliveryStatus, status

MAX_ROWS_READ = 10_000
"""Maximum number of rows that a query reads for one page, if no single index covers all conditions of the filter."""
MAX_COUNT = 10_000
"""Rows are counted only up to this number."""
DUE_COUNTED = 10_000
"""`Queries.backlog` counts at most this many due deliveries of each channel."""
LAG_SAMPLE = 200
"""The lags of a time bucket are computed from at most this many of its deliveries."""


class Queries:
    """Queries for pages and numbers. Every method raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def deliveries(self, wanted: Filter, *, limit: int, after: Cursor | None = None) -> Page[StoredDelivery]:
        """Return a page of the deliveries that match the filter. `after`: the cursor of the previous page."""
        max_rows = _max_rows(limit, one_index=deliveries_by_one_index(wanted))
        newest = newest_deliveries(wanted, after, max_rows)
        async with self._database.reading() as connection:
            matches = partial(delivery_conditions, wanted)
            rows, cursor, cut = await _page(connection, newest, matches, limit, max_rows)
        return Page([read_stored_delivery(row) for row in rows], cursor, cut)

    async def with_waits(self, found: Sequence[StoredDelivery], *, now: datetime) -> list[StoredDelivery]:
        """Return the deliveries in the same order, each waiting one with what it waits for (`model/waiting.py`), each one
        that is or was held with what holds it, and each one that another message tells of with that message.
        """
        async with self._database.reading() as connection:
            return await connection.run_sync(with_waits, found, now)

    async def count(self, wanted: Filter) -> Count:
        """Count the deliveries that match the filter, up to `MAX_COUNT`."""
        some = select(literal(1)).select_from(deliveries).where(*conditions(wanted)).limit(MAX_COUNT + 1)
        async with self._database.reading() as connection:
            return await _count(connection, some)

    async def reasons(self, wanted: Filter, *, limit: int) -> tuple[Count, Sequence[tuple[str, str, int]]]:
        """Count the deliveries that match the filter, up to `MAX_COUNT`, and say why they are dead.

        Returns their number, and up to `limit` reasons, most frequent first, as (channel, reason, number of deliveries).
        """
        matching = select(deliveries.c.channel, deliveries.c.reason).where(*conditions(wanted))
        some = matching.limit(MAX_COUNT + 1).subquery()
        number = func.count().label("number")
        query = select(some.c.channel, some.c.reason, number).group_by(some.c.channel, some.c.reason)
        found: Counter[tuple[str, str]] = Counter()
        async with self._database.reading() as connection:
            for row in await connection.execute(query):
                found[row.channel, uncounted(row.reason)] += row.number
        most = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:limit]
        return _as_count(found.total()), [(channel, reason, count) for (channel, reason), count in most]

    async def events(self, wanted: Filter, *, limit: int, after: Cursor | None = None) -> Page[EventSummary]:
        """Return a page of the terminal events that match the filter. `after`: the cursor of the previous page."""
        max_rows = _max_rows(limit, one_index=events_by_one_index(wanted))
        newest = newest_events(wanted, after, max_rows)
        async with self._database.reading() as connection:
            matches = partial(event_conditions, wanted)
            rows, cursor, cut = await _page(connection, newest, matches, limit, max_rows)
            counts = await _counts_by_status(connection, [row.key for row in rows])
        return Page([read(EventSummary, row, deliveries=counts.get(row.key, {})) for row in rows], cursor, cut)

    async def rejected(
        self, *, limit: int, after: Cursor | None = None, replayed: bool | None = None
    ) -> Page[RejectedSummary]:
        """Return a page of rejected messages. `after`: the cursor of the previous page.

        `replayed`: if True, only replayed messages; if False, only messages that are neither replayed nor dismissed; if
        None, all messages.
        """
        at, key = rejected.c.received_at, rejected.c.id
        columns = [column for column in rejected.c if column.name not in {"headers", "body"}]
        some = select(*columns, at.label("at"), key.label("key")).where(*between(at, key, None, None, after))
        max_rows = _max_rows(limit, one_index=replayed is None)

        def matches(row: Any) -> list[ColumnElement[bool]]:
            if replayed is None:
                return []
            if replayed:
                return [row.replayed_at.is_not(None)]
            return [row.replayed_at.is_(None), row.dismissed_at.is_(None)]

        async with self._database.reading() as connection:
            newest = some.order_by(at.desc(), key.desc()).limit(max_rows)
            rows, cursor, cut = await _page(connection, newest, matches, limit, max_rows)
        return Page([read(RejectedSummary, row) for row in rows], cursor, cut)

    async def latest(self, *, limit: int, since: datetime | None = None) -> list[Activity]:
        """Return the newest events, attempts and rejected messages, at most `limit` of each kind, from old to new."""
        recorded = select(events).order_by(events.c.recorded_at.desc()).limit(limit)
        newest_rejected = select(rejected).order_by(rejected.c.received_at.desc()).limit(limit)
        if since is not None:
            recorded = recorded.where(events.c.recorded_at >= since)
            newest_rejected = newest_rejected.where(rejected.c.received_at >= since)
        some = select(attempts).order_by(attempts.c.id.desc()).limit(limit).subquery("some")
        newest_attempts = select(some, *(deliveries.c[name] for name in ("channel", "recipients", "event", "kind")))
        newest_attempts = newest_attempts.join(deliveries, deliveries.c.key == some.c.delivery)
        if since is not None:
            newest_attempts = newest_attempts.where(some.c.ended_at >= since)
        async with self._database.reading() as connection:
            activity = [
                *(_activity("event", "key", "recorded_at", row) for row in await connection.execute(recorded)),
                *(_activity("attempt", "id", "ended_at", row) for row in await connection.execute(newest_attempts)),
                *(_activity("rejected", "id", "received_at", row) for row in await connection.execute(newest_rejected)),
            ]
        return sorted(activity, key=lambda one: (one.at, one.id))

    async def status(self) -> LedgerStatus:
        """Count the waiting, held and dead deliveries and the rejected messages."""
        state, at, hold = deliveries.c.state, deliveries.c.created_at, deliveries.c.hold
        done_at = func.coalesce(rejected.c.replayed_at, rejected.c.dismissed_at).label("done_at")
        newest = select(done_at).order_by(rejected.c.received_at.desc()).limit(MAX_COUNT + 1).subquery()
        async with self._database.reading() as connection:
            of_state = {one: state == literal(one.value) for one in (State.WAITING, State.DEAD)}
            waiting, held, dead = [
                await _count(connection, select(literal(1)).where(*conditions).limit(MAX_COUNT + 1))
                for conditions in (
                    (of_state[State.WAITING], hold.is_(None)),
                    IS_HELD,
                    (of_state[State.DEAD],),
                )
            ]
            done = (await connection.scalars(select(newest.c.done_at))).all()
            never_held = (of_state[State.WAITING], deliveries.c.held_since.is_(None))
            oldest = select(at).where(*never_held).order_by(at).limit(1)
            return LedgerStatus(
                waiting=waiting,
                held=held,
                dead=dead,
                rejected=Count(number=sum(one is None for one in done[:MAX_COUNT]), more=len(done) > MAX_COUNT),
                oldest_waiting=await connection.scalar(oldest),
                newest_event=await connection.scalar(
                    select(events.c.recorded_at).order_by(events.c.recorded_at.desc()).limit(1)
                ),
            )

    async def time_buckets(self, begin: datetime, end: datetime, *, number: int) -> list[TimeBucket]:
        """Divide the time between `begin` and `end` into `number` buckets, and read each bucket's deliveries."""
        width = (end - begin) / number
        bounds = [(begin + width * at, begin + width * (at + 1)) for at in range(number)]
        async with self._database.reading() as connection:
            counts = (await connection.execute(_bucket_counts(bounds))).all()
            lags = (await connection.execute(_bucket_lags(bounds))).all()
        return [
            TimeBucket(
                begin=start,
                end=stop,
                by_state={State(row.state): row.number for row in counts if row.bucket == at},
                lags=sorted(max(row.settled_at - row.occurred_at, timedelta()) for row in lags if row.bucket == at),
            )
            for at, (start, stop) in enumerate(bounds)
        ]

    async def identify(self, text: str) -> Mapping[str, str]:
        """Find what a search text may mean, such as a delivery or a launch plan. Returns one match of each kind.

        The result maps each kind that has a match to the key, name or id of the match. Kinds: `delivery`, `execution`,
        `launch_plan`, `cause`, `recipient`, `rejected`.
        """
        queries = {
            "delivery": _by_key_prefix(text),
            "execution": select(events.c.key).where(*of_execution(text)),
            "launch_plan": select(events.c.launch_plan).where(of_launch_plan(events.c.launch_plan, text)),
            "cause": select(events.c.cause).where(events.c.cause == text),
            "recipient": select(delivery_recipients.c.recipient).where(delivery_recipients.c.recipient == lower(text)),
            "rejected": select(rejected.c.id).where(rejected.c.id == text),
        }
        async with self._database.reading() as connection:
            found = {kind: await connection.scalar(query.limit(1)) for kind, query in queries.items()}
        return {kind: str(key) for kind, key in found.items() if key is not None}

    async def counts(self) -> Mapping[tuple[str, State], int]:
        """Number of deliveries by channel and state."""
        query = select(deliveries.c.channel, deliveries.c.state, func.count().label("number")).group_by(
            deliveries.c.channel, deliveries.c.state
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return {(row.channel, row.state): row.number for row in rows}

    async def backlog(self, *, now: datetime) -> Mapping[str, Backlog]:
        """Return the backlog of each channel. Cheap, because it reads indexes of waiting and dead deliveries, and rows
        only of held ones.
        """
        channel, number, at = deliveries.c.channel, func.count(), deliveries.c.created_at
        waiting = deliveries.c.state == State.WAITING
        queries = (
            select(channel, number).where(waiting).group_by(channel),
            select(channel, number).where(*IS_HELD).group_by(channel),
            select(channel, number).where(deliveries.c.state == State.DEAD).group_by(channel),
            select(destinations.c.channel, number)
            .where(destinations.c.failures >= FAILURES_TO_OPEN)
            .group_by(destinations.c.channel),
        )
        due: dict[str, int] = {}
        oldest: dict[str, datetime | None] = {}
        async with self._database.reading() as connection:
            unfinished, held, dead, open_breakers = [
                Counter({row[0]: row[1] for row in await connection.execute(one)}) for one in queries
            ]
            for name in unfinished:
                unheld = (channel == name, waiting, deliveries.c.hold.is_(None))
                never_held = (*unheld, deliveries.c.held_since.is_(None))
                oldest[name] = await connection.scalar(select(at).where(*never_held).order_by(at).limit(1))
                due_rows = select(channel).where(*unheld, deliveries.c.due_at <= now)
                counted = due_rows.limit(DUE_COUNTED).subquery()
                due[name] = await connection.scalar(select(number).select_from(counted)) or 0
        return {
            name: Backlog(
                oldest=oldest.get(name),
                waiting=unfinished[name] - held[name],
                due=due.get(name, 0),
                dead=dead[name],
                open_breakers=open_breakers[name],
                held=held[name],
            )
            for name in unfinished.keys() | dead.keys() | open_breakers.keys()
        }

    async def overdue(self, channel: str, *, before: datetime) -> bool:
        """True if a delivery was due at `before`, is not in flight, and waits for no other delivery of its thread."""
        async with self._database.reading() as connection:
            found = await connection.execute(DUE, {"channel": channel, "now": before, "size": 1})
            return found.first() is not None


def _by_key_prefix(text: str) -> Select[Any]:
    """Select deliveries whose key begins with the text, if it has 6 characters or more; fewer match too many keys."""
    return select(deliveries.c.key).where(*conditions(Filter(keys=[text])), literal(len(text) >= 6))


def _max_rows(limit: int, *, one_index: bool) -> int:
    """Return how many rows to read for a page. `one_index`: an index covers all conditions of the filter."""
    return limit + 1 if one_index else max(MAX_ROWS_READ, limit + 1)


async def _page(
    connection: AsyncConnection,
    newest: Select[Any],
    conditions: Callable[[Any], Iterable[ColumnElement[bool]]],
    limit: int,
    max_rows: int,
) -> tuple[Sequence[Row[Any]], Cursor | None, bool]:
    """Read up to `limit` rows of `newest` that meet the conditions.

    `newest`: selects up to `max_rows` rows, newest first by its columns `at` and `key`. Returns the rows, the cursor of
    the next page, and True if the search stopped at `max_rows`.
    """
    some = newest.subquery("some")
    order = (some.c.at.desc(), some.c.key.desc())
    matching = select(some).where(*conditions(some.c)).order_by(*order).limit(limit + 1)
    rows = (await connection.execute(matching)).all()
    if len(rows) > limit:
        last = rows[limit - 1]
        return rows[:limit], Cursor(last.at, last.key), False
    last_read = select(some.c.at, some.c.key).order_by(*order)
    stopped = (await connection.execute(last_read.offset(max_rows - 1).limit(1))).first()
    return rows, Cursor(stopped.at, stopped.key) if stopped is not None else None, stopped is not None


async def _count(connection: AsyncConnection, some: Select[Any]) -> Count:
    return _as_count(await connection.scalar(select(func.count()).select_from(some.subquery())) or 0)


def _as_count(number: int) -> Count:
    """`number`: counted up to `MAX_COUNT + 1`."""
    return Count(number=min(number, MAX_COUNT), more=number > MAX_COUNT)


async def _counts_by_status(
    connection: AsyncConnection, keys: Sequence[str]
) -> Mapping[str, Mapping[DeliveryStatus, int]]:
    """Count the deliveries of each event, by status."""
    columns = [deliveries.c[name] for name in ("event", "state", "hold", "included_in")]
    query = select(*columns, func.count().label("number")).where(deliveries.c.event.in_(keys)).group_by(*columns)
    counts: dict[str, Counter[DeliveryStatus]] = {}
    for row in await connection.execute(query):
        counts.setdefault(row.event, Counter())[status(row.state, row.hold, row.included_in)] += row.number
    return counts


def _created_between(state: State, begin: datetime, end: datetime) -> tuple[Any, ...]:
    at = deliveries.c.created_at
    return deliveries.c.state == literal(state.value), at >= begin, at < end


def _bucket_counts(bounds: Sequence[tuple[datetime, datetime]]) -> Any:
    return union_all(
        *(
            select(
                literal(at).label("bucket"),
                literal(state.value).label("state"),
                select(func.count())
                .select_from(deliveries)
                .where(*_created_between(state, *bound))
                .scalar_subquery()
                .label("number"),
            )
            for at, bound in enumerate(bounds)
            for state in State
        )
    )


def _bucket_lags(bounds: Sequence[tuple[datetime, datetime]]) -> Any:
    parts = []
    for at, bound in enumerate(bounds):
        sent = select(deliveries.c.settled_at, deliveries.c.occurred_at).where(
            *_created_between(State.SENT, *bound), deliveries.c.held_since.is_(None)
        )
        sample = sent.order_by(deliveries.c.created_at.desc()).limit(LAG_SAMPLE).subquery(f"sample_{at}")
        parts.append(select(literal(at).label("bucket"), sample.c.settled_at, sample.c.occurred_at))
    return union_all(*parts)


_DETAILS = {
    "event": ("key", "project", "domain", "name", "phase", "launch_plan", "verdict", "reason"),
    "attempt": (
        "delivery",
        "number",
        "channel",
        "recipients",
        "event",
        "kind",
        "outcome",
        "status",
        "answer",
        "reason",
    ),
    "rejected": ("id", "position", "reason", "event"),
}
"""The columns that an entry of the activity list shows, by its kind."""


def _activity(kind: str, key: str, at: str, row: Row[Any]) -> Activity:
    details = {name: getattr(row, name) for name in _DETAILS[kind]}
    return Activity(id=f"{kind} {getattr(row, key)}", kind=kind, at=getattr(row, at), details=details)
