"""Reads rejected messages, and marks them as replayed or dismissed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select, update

from dispatcher.ledger.actions import insert_action
from dispatcher.ledger.engine import Database
from dispatcher.ledger.records import BODY_KEPT, Action, Rejected
from dispatcher.ledger.rows import read
from dispatcher.ledger.schema import deliveries, rejected
from dispatcher.ledger.search import in_chunks
from dispatcher.model.event import ExecutionId
from dispatcher.model.phase import TERMINAL


class RejectedMessages:
    """The rejected messages. Every method raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(
        self,
        *,
        limit: int,
        since: datetime | None = None,
        id_starts: str = "",
        execution: ExecutionId | None = None,
    ) -> list[Rejected]:
        """Return the newest rejected messages, newest first.

        `execution`: selects only messages whose event key or stored bytes contain this execution. Such a search reads
        every rejected message, so it is slow.
        """
        query = select(rejected).order_by(rejected.c.received_at.desc(), rejected.c.id).limit(limit)
        if since is not None:
            query = query.where(rejected.c.received_at >= since)
        if id_starts:
            query = query.where(rejected.c.id.startswith(id_starts, autoescape=True))
        if execution is not None:
            query = query.where(self._names_execution(execution))
        async with self._database.reading() as connection:
            return [_read_rejected(row) for row in await connection.execute(query)]

    async def of_executions(self, executions: Iterable[ExecutionId]) -> list[Rejected]:
        """Return the events of these executions that were rejected and are not replayed yet.

        Rejected messages that could not be decoded are left out, because they name no execution.
        """
        keys = [f"{execution}/{phase}" for execution in executions for phase in sorted(TERMINAL)]
        entries = []
        async with self._database.reading() as connection:
            for chunk in in_chunks(keys):
                query = select(rejected).where(rejected.c.event.in_(chunk), rejected.c.replayed_at.is_(None))
                entries += [_read_rejected(row) for row in await connection.execute(query)]
        return entries

    async def mark_replayed(self, identity: str, *, event: str | None, action: Action) -> None:
        """Store that a rejected message was replayed successfully, and the action that did it.

        `event`: the key of the event that the message reports; None if it reports no terminal event.
        """

        def write(connection: Connection) -> None:
            connection.execute(update(rejected).where(rejected.c.id == identity).values(replayed_at=action.at))
            insert_action(connection, action, deliveries.c.event == event)

        await self._database.write(write)

    async def dismiss(self, ids: Sequence[str], action: Action) -> int:
        """Store that nobody needs these rejected messages, and the action. Returns the number of dismissed messages.

        Leaves out messages that were replayed or dismissed before.
        """
        undecided = (rejected.c.replayed_at.is_(None), rejected.c.dismissed_at.is_(None))

        def write(connection: Connection) -> int:
            number = 0
            for chunk in in_chunks(ids):
                dismissed = update(rejected).where(rejected.c.id.in_(chunk), *undecided).values(dismissed_at=action.at)
                number += connection.execute(dismissed).rowcount
            if number:
                insert_action(connection, action)
            return number

        return await self._database.write(write)

    def _names_execution(self, execution: ExecutionId) -> ColumnElement[bool]:
        """SQL condition: a rejected message's event key, or its bytes if it has no key, contains the execution."""
        search = func.instr if self._database.sqlite else func.pg_catalog.position
        parts = (search(rejected.c.body, orjson.dumps(part)) > 0 for part in execution.model_dump().values())
        return or_(
            rejected.c.event.startswith(f"{execution}/", autoescape=True), and_(rejected.c.event.is_(None), *parts)
        )


def rejected_row(entry: Rejected) -> dict[str, Any]:
    """Return the row of a rejected message."""
    row = {column.name: getattr(entry, column.name) for column in rejected.c}
    headers = [[name, value.decode("latin-1")] for name, value in entry.headers]
    return row | {"headers": headers, "body": entry.body[:BODY_KEPT]}


def _read_rejected(row: Row[Any]) -> Rejected:
    return read(Rejected, row, headers=[(name, value.encode("latin-1")) for name, value in row.headers])
