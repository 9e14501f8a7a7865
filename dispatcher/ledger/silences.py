"""Stores silences, and goes through what waits when one of them begins or is changed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select, update

from dispatcher.holding.covering import HELD_KINDS
from dispatcher.holding.silences import Silence
from dispatcher.ledger.actions import insert_action
from dispatcher.ledger.engine import Database
from dispatcher.ledger.holds import IS_HELD
from dispatcher.ledger.records import Action
from dispatcher.ledger.rows import read_event
from dispatcher.ledger.schema import deliveries, events, silences
from dispatcher.ledger.silence_lock import VERSION, change
from dispatcher.ledger.silencing import SLICE, Covers, hold_waiting, let_go
from dispatcher.ledger.statements import among, insert
from dispatcher.model.event import Event
from dispatcher.model.hold import HoldReason

_BY_SILENCE = (*IS_HELD, deliveries.c.hold == HoldReason.SILENCE)
TestOf = Callable[[Silence], Covers | None]
"""Returns the test of a silence's matcher (`rules.silences.test_of`); None if a newer version wrote it."""


class Silences:
    """The silences. Every method raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database, longest_hold: timedelta) -> None:
        """`longest_hold`: no delivery is held longer."""
        self._database = database
        self.longest_hold = longest_hold

    async def load(self, *, now: datetime) -> tuple[int, list[Silence]]:
        """Return the version of the silences, and those that may cover what is recorded from now on, the oldest first.

        Silences that ended longer ago than anything may be held cover nothing that occurred while they were in force.
        The version is read first: if somebody changes silences meanwhile, it is too old, and nothing is recorded by it.
        """
        later = select(silences).where(silences.c.ends_at > now - self.longest_hold)
        async with self._database.reading() as connection:
            version: int = (await connection.execute(VERSION)).scalar_one()
            rows = await connection.execute(later.order_by(silences.c.created_at, silences.c.id))
            return version, [_read(row) for row in rows]

    async def find(self, id_starts: str = "", *, ended_after: datetime | None = None, limit: int) -> list[Silence]:
        """Return silences whose id begins so, and that end after this time, the newest first."""
        query = select(silences).where(silences.c.id.startswith(id_starts, autoescape=True))
        if ended_after is not None:
            query = query.where(silences.c.ends_at > ended_after)
        async with self._database.reading() as connection:
            rows = await connection.execute(query.order_by(silences.c.created_at.desc(), silences.c.id).limit(limit))
            return [_read(row) for row in rows]

    async def held(self) -> Mapping[str, int]:
        """Return how many deliveries each silence holds now, by its id."""
        query = (
            select(deliveries.c.held_by, func.count().label("number"))
            .where(*_BY_SILENCE)
            .group_by(deliveries.c.held_by)
        )
        async with self._database.reading() as connection:
            return {row.held_by: row.number for row in await connection.execute(query)}

    async def held_for(self, identity: str, *, limit: int) -> list[tuple[str, tuple[str, ...], int]]:
        """Return for whom a silence holds most deliveries now: the channel, the addresses and the number."""
        columns, number = (deliveries.c.channel, deliveries.c.addresses), func.count().label("number")
        query = select(*columns, number).where(*_BY_SILENCE, deliveries.c.held_by == identity).group_by(*columns)
        async with self._database.reading() as connection:
            rows = await connection.execute(query.order_by(number.desc(), *columns).limit(limit))
            return [(row.channel, row.addresses, row.number) for row in rows]

    async def might_hold(self, *, since: datetime) -> AsyncIterator[tuple[Event, str, tuple[str, ...]]]:
        """Yield the deliveries of a kind that silences hold, of the events that were recorded since then: the event, the
        channel and the addresses.
        """
        at, key = events.c.recorded_at, deliveries.c.key
        columns = (events.c.facts, at, key, deliveries.c.channel, deliveries.c.addresses)
        query = select(*columns).join(deliveries, deliveries.c.event == events.c.key)
        query = query.where(deliveries.c.kind.in_(sorted(HELD_KINDS))).order_by(at, key).limit(SLICE)
        start: ColumnElement[bool] = at >= since
        while True:
            async with self._database.reading() as connection:
                rows = (await connection.execute(query.where(start))).all()
            for row in rows:
                if (event := read_event(row.facts)) is not None:
                    yield event, row.channel, row.addresses
            if len(rows) < SLICE:
                return
            start = and_(at >= rows[-1].recorded_at, or_(at > rows[-1].recorded_at, key > rows[-1].key))

    async def events(self, keys: Iterable[str]) -> Mapping[str, Event]:
        """Return the events with these keys, by key."""
        query = select(events.c.key, events.c.facts).where(among(events.c.key, "keys"))
        async with self._database.reading() as connection:
            rows = await connection.execute(query, {"keys": [*keys]})
            read = {row.key: read_event(row.facts) for row in rows}
        return {key: event for key, event in read.items() if event is not None}

    async def add(self, silence: Silence, action: Action) -> None:
        """Store a new silence. From then on, nothing is recorded that does not go by it."""
        row = {**{name: getattr(silence, name) for name in _SAME}, "at_end": silence.then}

        def work(connection: Connection) -> None:
            change(connection)
            insert(connection, silences, [row])
            insert_action(connection, action)

        await self._database.write(work)

    async def move(self, old: Silence, action: Action, *, starts_at: datetime, ends_at: datetime) -> Silence | None:
        """Change when a silence is in force. Returns the changed silence; None if somebody changed it meanwhile."""
        values = {"starts_at": starts_at, "ends_at": ends_at, "begun": False}

        def work(connection: Connection) -> Silence | None:
            change(connection)
            moved = connection.execute(
                update(silences).where(*_unchanged(old)).values(values).returning(silences)
            ).first()
            if moved is None:
                return None
            insert_action(connection, action)
            return _read(moved)

        return await self._database.write(work)

    async def follow(self, silence: Silence, test: Covers | None, *, now: datetime) -> None:
        """Go through what waits after a silence was added or moved: hold what it covers, or let go of it.

        Returns when that is done. If this process ends before, or the ledger is unavailable, `begin_due` does the rest.
        """
        if silence.starts_at > now:
            return
        if silence.ends_at <= now:
            while await self._database.write(partial(let_go, silence=silence, now=now)):
                pass
        elif test is None or not await hold_waiting(self._database, silence, test, now=now, longest=self.longest_hold):
            return
        done = update(silences).where(*_unchanged(silence)).values(begun=True)
        await self._database.write(lambda connection: connection.execute(done))

    async def begin_due(self, test_of: TestOf, *, now: datetime) -> None:
        """Go through what waits for each silence whose time has come, and for those that nobody has finished following."""
        due = select(silences).where(~silences.c.begun, silences.c.starts_at <= now).order_by(silences.c.id)
        async with self._database.reading() as connection:
            found = [_read(row) for row in await connection.execute(due)]
        for silence in found:
            test = test_of(silence)
            if test is None and silence.in_force(now):
                continue
            # What was about to be recorded by an earlier time than the silence's start is matched anew.
            await self._database.write(change)
            await self.follow(silence, test, now=now)


def _unchanged(silence: Silence) -> tuple[ColumnElement[bool], ...]:
    """SQL conditions: nobody has changed the silence since it was read."""
    times = (silences.c.starts_at == silence.starts_at, silences.c.ends_at == silence.ends_at)
    return (silences.c.id == silence.id, *times)


_SAME = ("id", "matcher", "author", "reason", "starts_at", "ends_at", "created_at", "begun")
"""The fields of a silence that are columns of the same name."""


def _read(row: Row[Any]) -> Silence:
    return Silence(**{name: getattr(row, name) for name in _SAME}, then=row.at_end)
