"""Stores how each replica is: one row a replica, which the replica itself writes again and again."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, delete, select

from dispatcher.ledger.engine import Database
from dispatcher.ledger.schema import replicas
from dispatcher.ledger.statements import insert
from dispatcher.model.replica import Replica

KEPT = timedelta(hours=1)
"""A row that was not written for this long is deleted."""


class Replicas:
    """The replicas' rows. Every method raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, replica: Replica) -> None:
        """Write the replica's row, and delete the rows of replicas that have written nothing for `KEPT`."""
        row = replica.model_dump(mode="python")
        forgotten = delete(replicas).where(replicas.c.seen_at < replica.seen_at - KEPT)

        def write(connection: Connection) -> None:
            insert(connection, replicas, [row], overwrite=True)
            connection.execute(forgotten)

        await self._database.write(write)

    async def remove(self, name: str) -> None:
        """Delete the row of a replica that has stopped."""
        stopped = delete(replicas).where(replicas.c.name == name)
        await self._database.write(lambda connection: connection.execute(stopped))

    async def all(self) -> list[Replica]:
        """Return all replicas, sorted by name. `Replica.seen` tells those that most likely run."""
        async with self._database.reading() as connection:
            return await connection.run_sync(read_replicas)


def read_replicas(connection: Connection) -> list[Replica]:
    """Return all replicas, sorted by name."""
    rows = connection.execute(select(replicas).order_by(replicas.c.name))
    return [Replica.model_validate(row) for row in rows]
