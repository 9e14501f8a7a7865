"""Stores since when a provider refuses the dispatcher itself, for all replicas together."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, select, update

from dispatcher.ledger.engine import Database
from dispatcher.ledger.schema import refusals
from dispatcher.ledger.statements import insert

REFUSAL_ENDS = timedelta(hours=1)
"""A refusal that no replica has seen for this long is over."""


class Refusals:
    """The refusals of channels. Every method raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, channel: str, *, now: datetime) -> datetime:
        """Store that a provider refuses the dispatcher itself. Returns since when it does.

        If the last refusal was stored more than `REFUSAL_ENDS` ago, a new one begins.
        """

        def write(connection: Connection) -> datetime:
            row = refusals.c.channel == channel
            insert(connection, refusals, [{"channel": channel, "since": now, "last_at": now}])
            ended = refusals.c.last_at < now - REFUSAL_ENDS
            connection.execute(update(refusals).where(row, ended).values(since=now))
            connection.execute(update(refusals).where(row, refusals.c.last_at < now).values(last_at=now))
            since: datetime = connection.execute(select(refusals.c.since).where(row)).scalar_one()
            return since

        return await self._database.write(write)

    async def since(self, channel: str) -> datetime | None:
        """Return since when a provider refuses the dispatcher itself; None if the ledger has no refusal."""
        async with self._database.reading() as connection:
            since: datetime | None = await connection.scalar(
                select(refusals.c.since).where(refusals.c.channel == channel)
            )
        return since

    async def end(self, channel: str) -> None:
        """Remove the channel's refusal, because the provider has accepted a message."""
        ended = delete(refusals).where(refusals.c.channel == channel)
        await self._database.write(lambda connection: connection.execute(ended))
