"""Stores silences. What is recorded while somebody changes silences goes by the silences before or after the change.

Matchers are compared with events before the transaction that records, by silences of one version. This transaction takes
a shared lock and compares the version. A transaction that changes silences takes the exclusive lock and counts the
version up. So whatever was recorded by the old silences is committed before the change, and is found among what waits.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, select, update

from dispatcher.errors import SilencesChanged
from dispatcher.holding.silences import Silence
from dispatcher.ledger.actions import insert_action
from dispatcher.ledger.engine import Database
from dispatcher.ledger.records import Action
from dispatcher.ledger.schema import silences, silences_version
from dispatcher.ledger.statements import insert

# Key of the PostgreSQL advisory lock of silences. It spells "silence" in ASCII. SQLite has one writer at a time.
_LOCK = 0x73696C656E6365
_SHARED = "SELECT pg_advisory_xact_lock_shared($1)"
_EXCLUSIVE = "SELECT pg_advisory_xact_lock($1)"
_VERSION = select(silences_version.c.version)
_CHANGED = update(silences_version).values(version=silences_version.c.version + 1)


class Silences:
    """The silences. Every method raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database, longest_hold: timedelta) -> None:
        """`longest_hold`: no delivery is held longer."""
        self._database = database
        self._longest_hold = longest_hold

    async def load(self, *, now: datetime) -> tuple[int, list[Silence]]:
        """Return the version of the silences, and those that may cover what is recorded from now on, the oldest first.

        Silences that ended longer ago than anything may be held cover nothing that occurred while they were in force.
        The version is read first: if somebody changes silences meanwhile, it is too old, and nothing is recorded by it.
        """
        later = select(silences).where(silences.c.ends_at > now - self._longest_hold)
        async with self._database.reading() as connection:
            version: int = (await connection.execute(_VERSION)).scalar_one()
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

    async def add(self, silence: Silence, action: Action) -> None:
        """Store a new silence. From then on, nothing is recorded that does not go by it."""
        row = {**{name: getattr(silence, name) for name in _SAME}, "at_end": silence.then}

        def work(connection: Connection) -> None:
            _change(connection)
            insert(connection, silences, [row])
            insert_action(connection, action)

        await self._database.write(work)

    async def move(self, old: Silence, action: Action, *, starts_at: datetime, ends_at: datetime) -> Silence | None:
        """Change when a silence is in force. Returns the changed silence; None if somebody changed it meanwhile."""
        unchanged = (
            silences.c.id == old.id,
            silences.c.starts_at == old.starts_at,
            silences.c.ends_at == old.ends_at,
        )
        values = {"starts_at": starts_at, "ends_at": ends_at, "begun": False}

        def work(connection: Connection) -> Silence | None:
            _change(connection)
            moved = connection.execute(update(silences).where(*unchanged).values(values).returning(silences)).first()
            if moved is None:
                return None
            insert_action(connection, action)
            return _read(moved)

        return await self._database.write(work)


_SAME = ("id", "matcher", "author", "reason", "starts_at", "ends_at", "created_at", "begun")
"""The fields of a silence that are columns of the same name."""


def require_version(connection: Connection, version: int) -> None:
    """Keep silences from being changed until the transaction ends. Raises SilencesChanged if they have another version."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_SHARED, (_LOCK,))
    if connection.scalar(_VERSION) != version:
        raise SilencesChanged


def _change(connection: Connection) -> None:
    """Wait until nothing is being recorded by the silences as they are, and count their version up."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_EXCLUSIVE, (_LOCK,))
    connection.execute(_CHANGED)


def _read(row: Row[Any]) -> Silence:
    return Silence(**{name: getattr(row, name) for name in _SAME}, then=row.at_end)
