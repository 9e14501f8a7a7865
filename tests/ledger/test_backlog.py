"""The backlog, on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from dispatcher.ledger import Backlog, Deed, Filter, Ledger
from dispatcher.model.delivery import State
from dispatcher.model.hold import Quiet
from tests.support.builders import NOW, SECOND, a_delivery
from tests.support.ledger_steps import MINUTE, an_action, claim, recorded
from tests.support.ledgers import captured_statements


async def test_the_backlog_counts_waiting_due_and_dead_deliveries_by_channel(ledger: Ledger) -> None:
    waiting = [a_delivery(key=f"w{number}", due_at=NOW + number * MINUTE) for number in range(3)]
    dead = [a_delivery(key="d", channel="slack", state=State.DEAD)]
    older = a_delivery(key="o", channel="slack", created_at=NOW - MINUTE)
    night = Quiet(NOW + SECOND, "contact ml")
    held = a_delivery(key="h", channel="slack", to="#ml", created_at=NOW - 9 * MINUTE, quiet=night)
    await ledger.record([recorded(*waiting, *dead, older, held)], [], now=NOW)
    assert len(await claim(ledger, 1)) == 1

    assert await ledger.queries.backlog(now=NOW + SECOND) == {
        "email": Backlog(oldest=NOW, waiting=3, due=0, dead=0, open_breakers=0),
        "slack": Backlog(oldest=NOW - MINUTE, waiting=1, due=1, dead=1, open_breakers=0, held=1),
    }
    status = await ledger.queries.status()
    assert (status.waiting.number, status.held.number, status.oldest_waiting) == (4, 1, NOW - MINUTE)

    assert await ledger.change(Filter(keys=["h"]), an_action(Deed.RETRY_NOW)) == 1
    released = (await ledger.queries.backlog(now=NOW + SECOND))["slack"]
    assert released == Backlog(oldest=NOW - MINUTE, waiting=2, due=2, dead=1), "its time in the hold is no delay"
    assert (await ledger.queries.status()).oldest_waiting == NOW - MINUTE
    assert (await ledger.queries.backlog(now=NOW + MINUTE))["email"].due == 2


async def test_the_backlog_reads_only_indexes_of_waiting_and_dead_deliveries(tmp_path: Path) -> None:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        await ledger.record([recorded(a_delivery())], [], now=NOW)
        with captured_statements() as asked:
            await ledger.queries.backlog(now=NOW)
    asked = [(query, given) for query, given in asked if "FROM deliveries" in query]
    assert len(asked) == 5
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        for query, given in asked:
            plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}", [str(one) for one in given])]
            indexes = {"ix_deliveries_backlog", "ix_deliveries_dead", "ix_deliveries_due", "ix_deliveries_held"}
            assert any(index in step for step in plan for index in indexes), plan
