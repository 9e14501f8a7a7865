"""Stored timestamps, on SQLite and on PostgreSQL."""

from __future__ import annotations

from dispatcher.ledger import Ledger
from dispatcher.ledger.checkpoints import HEAD_START
from tests.support.builders import NOW, SECOND
from tests.support.ledger_steps import MINUTE, recorded


async def test_a_ping_writes_a_row(ledger: Ledger, ledger_url: str) -> None:
    from sqlalchemy import text

    from dispatcher.ledger.engine import Database

    for now in (NOW, NOW + MINUTE, NOW):
        await ledger.checkpoints.ping(now=now)
        database = Database(ledger_url)
        async with database.reading() as connection:
            query = text("SELECT extract(epoch FROM at) FROM checkpoints WHERE name = 'pinged'")
            if database.sqlite:
                query = text("SELECT unixepoch(at) FROM checkpoints WHERE name = 'pinged'")
            assert int(await connection.scalar(query)) == NOW.timestamp() + (now - NOW).total_seconds()
        await database.aclose()


async def test_the_ledger_is_complete_since_five_minutes_before_its_first_start(ledger: Ledger) -> None:
    assert await ledger.checkpoints.complete_since(now=NOW) == NOW
    await ledger.checkpoints.record_first_start(now=NOW)
    await ledger.checkpoints.record_first_start(now=NOW + MINUTE)
    assert await ledger.checkpoints.complete_since(now=NOW + MINUTE) == NOW - HEAD_START
    await ledger.purge(NOW + SECOND, limit=10)
    assert await ledger.checkpoints.complete_since(now=NOW + MINUTE) == NOW - HEAD_START, "nothing was deleted"


async def test_a_ledger_with_older_events_is_complete_since_its_oldest_event(ledger: Ledger) -> None:
    await ledger.record([recorded()], [], now=NOW - 10 * MINUTE)
    assert await ledger.checkpoints.complete_since(now=NOW) == NOW - 10 * MINUTE
    await ledger.checkpoints.record_first_start(now=NOW)
    assert await ledger.checkpoints.complete_since(now=NOW) == NOW - 10 * MINUTE


async def test_reconciled_until_never_goes_back(ledger: Ledger) -> None:
    assert await ledger.checkpoints.reconciled_until() is None
    for until in (NOW, NOW + MINUTE, NOW - MINUTE):
        await ledger.checkpoints.set_reconciled_until(until)
    assert await ledger.checkpoints.reconciled_until() == NOW + MINUTE
