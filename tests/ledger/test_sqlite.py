"""The SQLite writer: writes that wait together share a transaction, and each is committed or fails alone."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from dispatcher.errors import LedgerFailed, LedgerUnavailable
from dispatcher.ledger.engine import Database

Work = Callable[[Connection], str]


@asynccontextmanager
async def a_database(folder: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{folder}/x.db")
    await database.write(lambda connection: connection.exec_driver_sql("CREATE TABLE t (name TEXT PRIMARY KEY)"))
    try:
        yield database
    finally:
        await database.aclose()


def insert(*names: str) -> Work:
    def work(connection: Connection) -> str:
        for name in names:
            connection.exec_driver_sql("INSERT INTO t VALUES (?)", (name,))
        return names[-1]

    return work


def names_in_table(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "x.db")) as other:
        return [name for (name,) in other.execute("SELECT name FROM t ORDER BY name")]


class BlockingWork:
    """Work that blocks the writer until `release` is set, so that later writes wait together."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self._started = threading.Event()

    def __call__(self, connection: Connection) -> str:
        self._started.set()
        self.release.wait(10)
        return insert("first")(connection)

    async def started(self) -> None:
        assert await asyncio.to_thread(self._started.wait, 10)


async def write_together(database: Database, works: Sequence[Work]) -> list[str | BaseException]:
    """Write works that all arrive during another write; return their results or errors."""
    blocker = BlockingWork()
    first = asyncio.create_task(database.write(blocker))
    await blocker.started()
    others = [asyncio.create_task(database.write(work)) for work in works]
    await asyncio.sleep(0)  # they wait now
    blocker.release.set()
    await first
    return await asyncio.gather(*others, return_exceptions=True)


async def test_writes_that_arrive_during_another_share_one_transaction(tmp_path: Path) -> None:
    transactions: list[object] = []

    def record_transaction(connection: Connection) -> str:
        transactions.append(connection.get_transaction())
        return insert(f"n{len(transactions)}")(connection)

    async with a_database(tmp_path) as database:
        results = await write_together(database, [record_transaction] * 5)

    assert results == ["n1", "n2", "n3", "n4", "n5"]
    assert len(set(map(id, transactions))) == 1
    assert names_in_table(tmp_path) == ["first", "n1", "n2", "n3", "n4", "n5"]


async def test_a_patient_write_shares_an_urgent_ones_transaction_and_is_written_alone_without_one(
    tmp_path: Path,
) -> None:
    transactions = []

    def record_transaction(connection: Connection) -> str:
        transactions.append(connection.get_transaction())
        return insert(f"n{len(transactions)}")(connection)

    async with a_database(tmp_path) as database:
        for _ in range(5):  # on a busy machine the urgent write may come too late
            transactions.clear()
            await database.write(lambda connection: connection.exec_driver_sql("DELETE FROM t"))
            patient = asyncio.create_task(database.write(record_transaction, patience=0.02))
            await asyncio.sleep(0)
            await database.write(record_transaction)
            await patient
            if transactions[0] is transactions[1]:
                break
        assert transactions[0] is transactions[1]
        assert await database.write(insert("alone"), patience=0.02) == "alone"

    assert names_in_table(tmp_path) == ["alone", "n1", "n2"]


async def test_a_write_that_fails_is_undone_completely_and_the_others_are_committed(tmp_path: Path) -> None:
    def failing(connection: Connection) -> str:
        insert("half")(connection)
        raise RuntimeError("a bug")

    async with a_database(tmp_path) as database:
        results = await write_together(
            database, [insert("a"), failing, insert("b", "b"), insert("c", "first"), insert("d")]
        )

    assert results[0] == "a"
    assert list(map(str, results[1:4])) == [
        "RuntimeError: a bug",
        "IntegrityError: UNIQUE constraint failed: t.name",
        "IntegrityError: UNIQUE constraint failed: t.name",
    ]
    assert results[4] == "d"
    assert names_in_table(tmp_path) == ["a", "d", "first"]


async def test_if_sqlite_rolls_back_the_whole_transaction_all_writes_fail_and_nothing_is_stored(tmp_path: Path) -> None:
    def rolling_back(connection: Connection) -> str:
        return str(connection.exec_driver_sql("INSERT OR ROLLBACK INTO t VALUES ('first')"))

    async with a_database(tmp_path) as database:
        results = await write_together(database, [insert("a"), rolling_back, insert("b")])
        assert all(isinstance(result, LedgerFailed | LedgerUnavailable) for result in results)
        assert names_in_table(tmp_path) == ["first"]
        assert await database.write(insert("after")) == "after"


async def test_a_bug_that_rolls_back_the_whole_transaction_does_not_affect_the_next_one(tmp_path: Path) -> None:
    def failing(connection: Connection) -> str:
        try:
            connection.exec_driver_sql("INSERT OR ROLLBACK INTO t VALUES ('first')")
        except IntegrityError as error:
            raise RuntimeError("a bug") from error
        return "never"

    async with a_database(tmp_path) as database:
        results = await write_together(database, [insert("a"), failing, insert("b")])
        assert {str(result) for result in results} == {"RuntimeError: a bug"}
        assert await database.write(insert("after")) == "after"
        assert names_in_table(tmp_path) == ["after", "first"]


async def test_a_write_cancelled_while_it_waits_writes_nothing(tmp_path: Path) -> None:
    async with a_database(tmp_path) as database:
        blocker = BlockingWork()
        first = asyncio.create_task(database.write(blocker))
        await blocker.started()
        waiting, other = (asyncio.create_task(database.write(insert(name))) for name in ("waiting", "other"))
        await asyncio.sleep(0)  # they wait now
        waiting.cancel()
        blocker.release.set()
        results = await asyncio.gather(first, waiting, other, return_exceptions=True)

    assert isinstance(results[1], asyncio.CancelledError)
    assert names_in_table(tmp_path) == ["first", "other"]


async def test_a_write_cancelled_in_its_transaction_returns_after_the_commit(tmp_path: Path) -> None:
    async with a_database(tmp_path) as database:
        blocker = BlockingWork()
        first = asyncio.create_task(database.write(blocker))
        await blocker.started()
        first.cancel()
        await asyncio.sleep(0.05)
        assert not first.done()
        blocker.release.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert names_in_table(tmp_path) == ["first"]


@settings(max_examples=20, deadline=None)
@given(plan=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_each_write_is_committed_completely_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[bool, bool]]
) -> None:
    """`plan`: for each write, if it fails and if it is cancelled. A cancelled one has written everything or nothing."""
    folder = tmp_path_factory.mktemp("writes")

    def numbered(number: int, *, fails: bool) -> Work:
        return insert(f"{number:02}a", f"{number:02}b", *(["first"] if fails else []))

    async def run() -> list[str | BaseException]:
        async with a_database(folder) as database:
            await database.write(insert("first"))
            tasks = [
                asyncio.create_task(database.write(numbered(at, fails=fails))) for at, (fails, _) in enumerate(plan)
            ]
            for task, (_, cancelled) in zip(tasks, plan, strict=True):
                await asyncio.sleep(0)
                if cancelled:
                    task.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(run())

    found = names_in_table(folder)
    for at, (result, (fails, cancelled)) in enumerate(zip(results, plan, strict=True)):
        rows = [name for name in found if name.startswith(f"{at:02}")]
        if fails or not cancelled:
            assert len(rows) == (0 if fails else 2)
        assert len(rows) in {0, 2}
        assert isinstance(result, BaseException) == (fails or isinstance(result, asyncio.CancelledError))
