"""Reads what the ledger has of executions: events, deliveries, their contents and attempts, and operators' actions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, LargeBinary, and_, func, or_, select, type_coerce

from dispatcher.ledger.column_types import from_compressed_json
from dispatcher.ledger.engine import Database
from dispatcher.ledger.records import Action, Attempt, Filter, StoredDelivery, StoredEvent
from dispatcher.ledger.rows import read, read_stored_delivery
from dispatcher.ledger.schema import action_deliveries, actions, attempts, contents, deliveries, events, rejected
from dispatcher.ledger.search import conditions, in_chunks, of_execution
from dispatcher.ledger.sqlalchemy_internals import AsyncConnection
from dispatcher.model.delivery import STUMBLED, Delivery, Kind
from dispatcher.model.event import Event, ExecutionId

LARGE_FACTS = 4096
"""Number of stored bytes from which on an event is decoded in another thread. Most events are far smaller."""
EVENTS_READ = 500
"""`History.notified_since` reads this many events at a time."""
_FOR_RULES = (Kind.NOTIFICATION, Kind.RESOLVED_NOTICE)
"""What the ledger records for the recipients of rules. A resolved notice stands in the place of a notification if rules
name its recipient too."""
_WITH_CONTENT = select(deliveries, contents.c.body).outerjoin(contents, contents.c.content_hash == deliveries.c.content)


class History:
    """Reads recorded events and deliveries. Every method raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, wanted: Filter, *, limit: int) -> list[StoredDelivery]:
        """The newest deliveries that match the filter, newest first."""
        query = _WITH_CONTENT.where(*conditions(wanted)).order_by(deliveries.c.created_at.desc(), deliveries.c.key)
        async with self._database.reading() as connection:
            return [read_stored_delivery(row, row.body) for row in await connection.execute(query.limit(limit))]

    async def delivery(self, key: str) -> StoredDelivery | None:
        """Return the delivery with this key; None if the ledger has no such delivery."""
        async with self._database.reading() as connection:
            row = (await connection.execute(_WITH_CONTENT.where(deliveries.c.key == key))).first()
        return read_stored_delivery(row, row.body) if row is not None else None

    async def attempts(self, delivery: str) -> list[Attempt]:
        """Return the delivery's attempts, in order. An attempt during which the worker crashed is missing."""
        query = select(attempts).where(attempts.c.delivery == delivery).order_by(attempts.c.number, attempts.c.id)
        async with self._database.reading() as connection:
            return [read(Attempt, row) for row in await connection.execute(query)]

    async def actions(self, delivery: str) -> list[Action]:
        """Return the actions of operators that concerned the delivery, in order."""
        return (await self.actions_of([delivery])).get(delivery, [])

    async def actions_of(self, keys: Sequence[str]) -> dict[str, list[Action]]:
        """Return the actions of operators that concerned these deliveries, in order, by the delivery's key."""
        concerned = action_deliveries.c.delivery
        query = select(actions, concerned).join(action_deliveries, action_deliveries.c.action == actions.c.id)
        found: dict[str, list[Action]] = {}
        async with self._database.reading() as connection:
            for chunk in in_chunks(keys):
                rows = await connection.execute(query.where(concerned.in_(chunk)).order_by(actions.c.id))
                for row in rows:
                    found.setdefault(row.delivery, []).append(read(Action, row))
        return found

    async def latest_actions(self, *, limit: int, since: datetime | None = None) -> list[Action]:
        """Return the newest actions of operators, newest first."""
        query = select(actions).order_by(actions.c.at.desc(), actions.c.id.desc()).limit(limit)
        if since is not None:
            query = query.where(actions.c.at >= since)
        async with self._database.reading() as connection:
            return [read(Action, row) for row in await connection.execute(query)]

    async def stumbles(self, delivery: Delivery) -> int:
        """Return how often the dispatcher itself has failed with this delivery since it was created or redriven."""
        query = select(func.count()).where(
            attempts.c.delivery == delivery.key,
            attempts.c.status == STUMBLED,
            attempts.c.started_at >= delivery.retry_window_start,
        )
        async with self._database.reading() as connection:
            return await connection.scalar(query) or 0

    async def event(self, key: str) -> Event | None:
        """Return the recorded event with this key; None if the ledger has no such event, as for a delivery without one.

        A large event is decoded in another thread, so that the event loop does not wait.
        """
        async with self._database.reading() as connection:
            facts = await connection.scalar(select(type_coerce(events.c.facts, LargeBinary)).where(events.c.key == key))
        if facts is None:
            return None
        return _event(facts) if len(facts) < LARGE_FACTS else await asyncio.to_thread(_event, facts)

    async def events(self, execution: ExecutionId) -> list[StoredEvent]:
        """Return the terminal events of an execution, in the order of recording.

        Flyte sends one terminal event for each execution, because its database rejects a second one. Other workflow
        engines may send several.
        """
        query = (
            select(events)
            .where(*of_execution(str(execution)))
            .order_by(events.c.recorded_at, events.c.occurred_at, events.c.key)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [read(StoredEvent, row, event=Event.model_validate(row.facts)) for row in rows]

    async def notified_since(self, since: datetime) -> AsyncIterator[tuple[StoredEvent, frozenset[tuple[str, str]]]]:
        """Yield the events that were recorded since then, in the order of recording, with whom they were to notify.

        Those are pairs of channel and address, without those to whom follow-ups went, such as a fallback channel's, and
        with those whose notification became a resolved notice. Reads `EVENTS_READ` events at a time.
        """
        at, key = events.c.recorded_at, events.c.key
        start: ColumnElement[bool] = at >= since
        while True:
            query = select(events).where(start).order_by(at, key).limit(EVENTS_READ)
            async with self._database.reading() as connection:
                rows = (await connection.execute(query)).all()
                page = [read(StoredEvent, row, event=Event.model_validate(row.facts)) for row in rows]
                notified = await _notified(connection, page)
            for stored in page:
                yield stored, frozenset(notified[stored.event.key])
            if len(page) < EVENTS_READ:
                return
            last = rows[-1]
            start = and_(at >= last.recorded_at, or_(at > last.recorded_at, key > last.key))

    async def newest(self) -> tuple[str, datetime] | None:
        """Return the key and time of the event that was recorded last; None if the ledger has no events."""
        query = select(events.c.key, events.c.recorded_at).order_by(events.c.recorded_at.desc()).limit(1)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else (row.key, row.recorded_at)

    async def seen(self, keys: Iterable[str]) -> frozenset[str]:
        """Return the keys of those events that the ledger has, recorded or rejected."""
        found: set[str] = set()
        async with self._database.reading() as connection:
            for chunk in in_chunks(sorted(set(keys))):
                found |= set(await connection.scalars(select(events.c.key).where(events.c.key.in_(chunk))))
                found |= set(await connection.scalars(select(rejected.c.event).where(rejected.c.event.in_(chunk))))
        return frozenset(found)

    async def notified(self, event: str) -> frozenset[tuple[str, str]]:
        """Return the (channel, address) pairs to which the event has deliveries."""
        query = select(deliveries.c.channel, deliveries.c.addresses).where(deliveries.c.event == event)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return frozenset((row.channel, address) for row in rows for address in row.addresses)


async def _notified(connection: AsyncConnection, recorded: Sequence[StoredEvent]) -> Mapping[str, set[tuple[str, str]]]:
    """Return the (channel, address) pairs that the rules of these events name, by the event's key."""
    known = {one.event.key: one for one in recorded}
    found: dict[str, set[tuple[str, str]]] = {key: set() for key in known}
    for chunk in in_chunks(sorted(known)):
        query = select(deliveries).where(deliveries.c.event.in_(chunk), deliveries.c.kind.in_(_FOR_RULES))
        for row in await connection.execute(query):
            one = known[row.event]
            matched = {(rule["name"], rule["defined_at"]) for rule in one.considered if rule["matched"]}
            joined = row.kind is Kind.NOTIFICATION or not matched.isdisjoint(ref.rule for ref in row.rules)
            if joined and row.created_at <= one.recorded_at:
                found[row.event].update((row.channel, address) for address in row.addresses)
    return found


def _event(facts: bytes) -> Event:
    return Event.model_validate(from_compressed_json(facts))
