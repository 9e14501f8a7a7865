"""Counts failures by their cause."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from dispatcher.ledger.engine import Database
from dispatcher.ledger.records import Cursor, Filter, Page
from dispatcher.ledger.rows import read
from dispatcher.ledger.search import event_conditions, newest_events

MAX_EVENTS = 10_000
"""Failures are counted among this many of the newest events that an index finds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedCause:
    """A cause, with the number of executions that failed for it."""

    cause: str
    """The fingerprint."""
    cause_name: str
    number: int
    first_at: datetime
    last_at: datetime
    """When the first and the last of these executions ended."""
    newest: str
    """The execution that was recorded last, as `project/domain/name`."""


class Causes:
    """Every method raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def most_frequent(self, wanted: Filter, *, limit: int, among: int = MAX_EVENTS) -> Page[CountedCause]:
        """Count the executions that match the filter by their cause. The most frequent cause comes first.

        The page is `cut`, and its cursor says where, if only the newest events were counted, which are `among` events.
        """
        some = newest_events(wanted, None, among).subquery("some")
        of_cause = some.c.cause
        newest_first = (some.c.at.desc(), some.c.key.desc())
        counted = (
            select(
                of_cause,
                some.c.cause_name,
                func.count().over(partition_by=of_cause).label("number"),
                func.min(some.c.occurred_at).over(partition_by=of_cause).label("first_at"),
                func.max(some.c.occurred_at).over(partition_by=of_cause).label("last_at"),
                (some.c.project + "/" + some.c.domain + "/" + some.c.name).label("newest"),
                func.row_number().over(partition_by=of_cause, order_by=newest_first).label("place"),
            )
            .where(of_cause.is_not(None), *event_conditions(wanted, some.c))
            .subquery("counted")
        )
        query = select(counted).where(counted.c.place == 1)
        query = query.order_by(counted.c.number.desc(), counted.c.last_at.desc(), counted.c.cause).limit(limit)
        last_read = select(some.c.at, some.c.key).order_by(*newest_first).offset(among - 1).limit(1)
        async with self._database.reading() as connection:
            found = [read(CountedCause, row) for row in await connection.execute(query)]
            last = (await connection.execute(last_read)).first()
        return Page(found, Cursor(last.at, last.key) if last is not None else None, last is not None)
