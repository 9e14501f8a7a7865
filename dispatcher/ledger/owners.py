"""Keeps whose executions have no known owner: one row for each principal and label value, however many executions."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from sqlalchemy import Connection, bindparam, case, select, update

from dispatcher.ledger.engine import Database
from dispatcher.ledger.schema import unresolved_owners
from dispatcher.ledger.statements import insert
from dispatcher.model.event import shortened
from dispatcher.model.owner import UnresolvedOwner

_COLUMNS = unresolved_owners.c
_NEWER = _COLUMNS.last_at <= bindparam("at")
_ADD = (
    update(unresolved_owners)
    .where(_COLUMNS.principal == bindparam("who"), _COLUMNS.label == bindparam("of"))
    .values(
        events=_COLUMNS.events + bindparam("number"),
        reason=case((_NEWER, bindparam("why", type_=_COLUMNS.reason.type)), else_=_COLUMNS.reason),
        instead=case((_NEWER, bindparam("other", type_=_COLUMNS.instead.type)), else_=_COLUMNS.instead),
        event=case((_NEWER, bindparam("newest", type_=_COLUMNS.event.type)), else_=_COLUMNS.event),
        last_at=case((_NEWER, bindparam("at", type_=_COLUMNS.last_at.type)), else_=_COLUMNS.last_at),
    )
)


def add(connection: Connection, several: Iterable[UnresolvedOwner]) -> None:
    """Count the events of unresolved owners.

    The last statement of a transaction, because it locks rows that the other replicas' batches need too.
    """
    merged: dict[tuple[str, str], UnresolvedOwner] = {}
    for one in sorted(several, key=attrgetter("last_at")):
        key = shortened(one.principal), shortened(one.label)
        first = merged.get(key, one._replace(events=0))
        events = first.events + one.events
        merged[key] = one._replace(principal=key[0], label=key[1], first_at=first.first_at, events=events)
    if not merged:
        return
    rows = [merged[key] for key in sorted(merged)]  # all replicas lock in this order, so that they can't deadlock
    insert(connection, unresolved_owners, [{**row._asdict(), "events": 0} for row in rows])
    connection.execute(_ADD, [_parameters(row) for row in rows])


def _parameters(row: UnresolvedOwner) -> dict[str, object]:
    return {
        "who": row.principal,
        "of": row.label,
        "number": row.events,
        "why": row.reason,
        "other": row.instead,
        "newest": row.event,
        "at": row.last_at,
    }


class Owners:
    """Reads unresolved owners. Raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def unresolved(self, *, limit: int) -> list[UnresolvedOwner]:
        """Return the unresolved owners whose newest events were recorded last, newest first."""
        newest = select(unresolved_owners).order_by(_COLUMNS.last_at.desc(), _COLUMNS.principal, _COLUMNS.label)
        async with self._database.reading() as connection:
            rows = await connection.execute(newest.limit(limit))
            return [UnresolvedOwner(**row._mapping) for row in rows]  # noqa: SLF001 - SQLAlchemy's public name for it
