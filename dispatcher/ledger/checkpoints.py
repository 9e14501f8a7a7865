"""Stored timestamps: since when the ledger is complete, up to when it is reconciled, and which replica is elected."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, func, select, update

from dispatcher.ledger.engine import Database
from dispatcher.ledger.schema import checkpoints, events
from dispatcher.ledger.statements import insert, insert_new

HEAD_START = timedelta(minutes=5)
"""The first start is stored this much earlier, so that an event from just before it is sent, and an event from a
machine whose clock is slow."""
_COMPLETE_SINCE, _RECONCILED, _PINGED = "complete_since", "reconciled", "pinged"
_CHECKPOINT = select(checkpoints.c.at).where(checkpoints.c.name == bindparam("name"))
_OLDEST = select(func.min(events.c.recorded_at))


class Checkpoints:
    """The stored timestamps. Every method raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record_first_start(self, *, now: datetime) -> None:
        """At the first start, store since when the ledger has all events: `HEAD_START` before `now`, or the time of an
        older event.

        Later calls change nothing.
        """
        since = now - HEAD_START

        def write(connection: Connection) -> None:
            oldest = connection.scalar(_OLDEST)
            insert(connection, checkpoints, [{"name": _COMPLETE_SINCE, "at": min(oldest or since, since)}])

        await self._database.write(write)

    async def complete_since(self, *, now: datetime) -> datetime:
        """Return the time since which the ledger has all events: the first start, or the newest event that was purged.

        Returns `now` for a new ledger.
        """
        async with self._database.reading() as connection:
            since: datetime | None = await connection.scalar(_CHECKPOINT, {"name": _COMPLETE_SINCE})
            since = since or await connection.scalar(_OLDEST)
        return since or now

    async def reconciled_until(self) -> datetime | None:
        """Return the end of the time range that was reconciled last; None if nothing was reconciled yet."""
        async with self._database.reading() as connection:
            until: datetime | None = await connection.scalar(_CHECKPOINT, {"name": _RECONCILED})
        return until

    async def set_reconciled_until(self, until: datetime) -> None:
        """Store the end of the time range that was reconciled. If the stored time is later, it stays unchanged."""
        await self._database.write(lambda connection: _advance(connection, _RECONCILED, until))

    async def elect(self, name: str, at: datetime) -> bool:
        """Elect one of the replicas that call this with equal name and time. Returns True only to the first caller."""
        return await self._database.write(lambda connection: _advance(connection, name, at))

    async def ping(self, *, now: datetime) -> None:
        """Write one row to check the ledger, because a read would succeed even on a full disk.

        Raises LedgerUnavailable if the row can't be written.
        """

        def write(connection: Connection) -> None:
            insert(connection, checkpoints, [{"name": _PINGED, "at": now}])
            connection.execute(update(checkpoints).where(checkpoints.c.name == _PINGED).values(at=now))

        await self._database.write(write)


def _advance(connection: Connection, name: str, at: datetime) -> bool:
    """Set a checkpoint to this time, unless it is as late already. Returns True if it was set."""
    if insert_new(connection, checkpoints, [{"name": name, "at": at}]):
        return True
    later = update(checkpoints).where(checkpoints.c.name == name, checkpoints.c.at < at).values(at=at)
    return connection.execute(later).rowcount == 1


def complete_since_later(connection: Connection, at: datetime) -> None:
    """Move `complete_since` forward to this time, if it is stored and earlier."""
    stored = (checkpoints.c.name == _COMPLETE_SINCE, checkpoints.c.at < at)
    connection.execute(update(checkpoints).where(*stored).values(at=at))
