"""What is written at once shares a transaction, and holds or fails alone."""

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
from sqlalchemy import Connection, inspect
from sqlalchemy.exc import IntegrityError

from dispatcher.errors import LedgerUnavailable
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


def adding(*names: str) -> Work:
    def work(connection: Connection) -> str:
        for name in names:
            connection.exec_driver_sql("INSERT INTO t VALUES (?)", (name,))
        return names[-1]

    return work


def there(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "x.db")) as other:
        return [name for (name,) in other.execute("SELECT name FROM t ORDER BY name")]


class Held:
    """Work that keeps the writer at it until it is let go: what comes meanwhile comes together."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self._begun = threading.Event()

    def __call__(self, connection: Connection) -> str:
        self._begun.set()
        self.go.wait(10)
        return adding("first")(connection)

    async def begun(self) -> None:
        assert await asyncio.to_thread(self._begun.wait, 10)


async def behind_one_another(database: Database, works: Sequence[Work]) -> list[str | BaseException]:
    """What becomes of works that come while another is written."""
    held = Held()
    first = asyncio.create_task(database.write(held))
    await held.begun()
    others = [asyncio.create_task(database.write(work)) for work in works]
    await asyncio.sleep(0)  # they have come
    held.go.set()
    await first
    return await asyncio.gather(*others, return_exceptions=True)


async def test_what_comes_while_others_are_written_is_one_transaction(tmp_path: Path) -> None:
    begun: list[object] = []

    def noted(connection: Connection) -> str:
        begun.append(connection.get_transaction())
        return adding(f"n{len(begun)}")(connection)

    async with a_database(tmp_path) as database:
        ends = await behind_one_another(database, [noted] * 5)

    assert ends == ["n1", "n2", "n3", "n4", "n5"]
    assert len(set(map(id, begun))) == 1
    assert there(tmp_path) == ["first", "n1", "n2", "n3", "n4", "n5"]


async def test_patient_work_shares_the_transaction_of_what_comes_in_a_moment_and_is_done_alone_where_nothing_does(
    tmp_path: Path,
) -> None:
    begun = []

    def noted(connection: Connection) -> str:
        begun.append(connection.get_transaction())
        return adding(f"n{len(begun)}")(connection)

    async with a_database(tmp_path) as database:
        for _ in range(5):  # the machine may be busy with others for longer than that moment
            begun.clear()
            await database.write(lambda connection: connection.exec_driver_sql("DELETE FROM t"))
            patient = asyncio.create_task(database.write(noted, patient=True))
            await asyncio.sleep(0)
            await database.write(noted)
            await patient
            if begun[0] is begun[1]:
                break
        assert begun[0] is begun[1]
        assert await database.write(adding("alone"), patient=True) == "alone"

    assert there(tmp_path) == ["alone", "n1", "n2"]


async def test_what_fails_in_company_is_undone_whole_and_costs_its_neighbours_nothing(tmp_path: Path) -> None:
    def stumbling(connection: Connection) -> str:
        adding("half")(connection)
        raise RuntimeError("a mistake of ours")

    async with a_database(tmp_path) as database:
        ends = await behind_one_another(
            database, [adding("a"), stumbling, adding("b", "b"), adding("c", "first"), adding("d")]
        )

    assert ends[0] == "a"
    assert isinstance(ends[1], RuntimeError)
    assert isinstance(ends[2], IntegrityError)
    assert isinstance(ends[3], IntegrityError)
    assert ends[4] == "d"
    assert there(tmp_path) == ["a", "d", "first"]


async def test_what_sqlite_gives_up_whole_fails_for_all_and_nothing_of_it_stays(tmp_path: Path) -> None:
    def giving_up(connection: Connection) -> str:
        return str(connection.exec_driver_sql("INSERT OR ROLLBACK INTO t VALUES ('first')"))

    async with a_database(tmp_path) as database:
        ends = await behind_one_another(database, [adding("a"), giving_up, adding("b")])
        assert all(isinstance(end, IntegrityError | LedgerUnavailable) for end in ends)
        assert there(tmp_path) == ["first"]
        assert await database.write(adding("after")) == "after"


async def test_a_mistake_of_ours_that_cost_the_whole_transaction_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    def stumbling(connection: Connection) -> str:
        try:
            connection.exec_driver_sql("INSERT OR ROLLBACK INTO t VALUES ('first')")
        except IntegrityError as error:
            raise RuntimeError("a mistake of ours") from error
        return "never"

    async with a_database(tmp_path) as database:
        ends = await behind_one_another(database, [adding("a"), stumbling, adding("b")])
        assert all(isinstance(end, RuntimeError) for end in ends)
        assert await database.write(adding("after")) == "after"
        assert there(tmp_path) == ["after", "first"]


async def test_who_gives_up_while_he_waits_has_written_nothing(tmp_path: Path) -> None:
    async with a_database(tmp_path) as database:
        held = Held()
        first = asyncio.create_task(database.write(held))
        await held.begun()
        waiting, other = (asyncio.create_task(database.write(adding(name))) for name in ("waiting", "other"))
        await asyncio.sleep(0)  # they have come
        waiting.cancel()
        held.go.set()
        ends = await asyncio.gather(first, waiting, other, return_exceptions=True)

    assert isinstance(ends[1], asyncio.CancelledError)
    assert there(tmp_path) == ["first", "other"]


async def test_who_gives_up_in_the_middle_comes_back_when_it_is_written(tmp_path: Path) -> None:
    async with a_database(tmp_path) as database:
        held = Held()
        first = asyncio.create_task(database.write(held))
        await held.begun()
        first.cancel()
        await asyncio.sleep(0.05)
        assert not first.done()
        held.go.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert there(tmp_path) == ["first"]


@settings(max_examples=20, deadline=None)
@given(plan=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12))
def test_each_piece_holds_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[bool, bool]]
) -> None:
    """By (fails, is cancelled); who was cancelled may have written all or nothing."""
    folder = tmp_path_factory.mktemp("pieces")

    def piece(number: int, *, fails: bool) -> Work:
        return adding(f"{number:02}a", f"{number:02}b", *(["first"] if fails else []))

    async def run() -> list[str | BaseException]:
        async with a_database(folder) as database:
            await database.write(adding("first"))
            tasks = [asyncio.create_task(database.write(piece(at, fails=fails))) for at, (fails, _) in enumerate(plan)]
            for task, (_, cancelled) in zip(tasks, plan, strict=True):
                await asyncio.sleep(0)
                if cancelled:
                    task.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    ends = asyncio.run(run())

    found = there(folder)
    for at, (end, (fails, cancelled)) in enumerate(zip(ends, plan, strict=True)):
        rows = [name for name in found if name.startswith(f"{at:02}")]
        if fails or not cancelled:
            assert len(rows) == (0 if fails else 2)
        assert len(rows) in {0, 2}
        assert isinstance(end, BaseException) == (fails or isinstance(end, asyncio.CancelledError))


async def test_the_log_gets_its_full_size_at_once_and_nothing_else_is_left_of_it(tmp_path: Path) -> None:
    log = tmp_path / "x.db-wal"
    async with a_database(tmp_path) as database:
        await asyncio.gather(database.make_room(), database.write(adding("a")))
        grown = log.stat().st_size
        assert grown > 20 * 1024**2
        for name in "bcd":
            await database.write(adding(name))
        assert log.stat().st_size == grown
        assert there(tmp_path) == ["a", "b", "c", "d"]
        async with database.reading() as connection:
            tables = await connection.run_sync(lambda one: inspect(one).get_table_names())
        assert tables == ["t"]


async def test_where_the_disk_has_no_room_for_the_log_things_go_on_without(tmp_path: Path) -> None:
    async with a_database(tmp_path) as database:
        await database.write(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 100"))
        await database.make_room()
        await database.write(adding("a"))
    assert "a" in there(tmp_path)
