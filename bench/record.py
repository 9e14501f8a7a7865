"""Terminal events per second recorded in the ledger, with three deliveries each, compared with the bare database driver.

    python -m bench.record [--events 3000] [--rounds 5]

The baseline writes the same rows, prepared, into an empty ledger with the same schema, in transactions of the same size:
with sqlite3's `executemany` and the same pragmas, or with asyncpg's `executemany` on PostgreSQL.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg

from bench.figures import Figure, Goal, as_markdown
from bench.workload import DELIVERIES, recorded
from dispatcher.clock import SystemClock
from dispatcher.ledger import Ledger, RecordedEvent
from dispatcher.observability import logs
from dispatcher.runtime import event_loop
from tests.support.postgres import Cluster

EVENTS = 3000
BATCH = 100
"""Events per transaction."""
TABLES = ("events", "contents", "deliveries")
"""The tables that a batch is written to, in order. The first column of each is its key."""
RECIPIENTS = "delivery_recipients"
"""The table that the ledger also writes on SQLite. On PostgreSQL a trigger writes it, for the baseline too."""

Tables = Mapping[str, Sequence[Sequence[Any]]]
"""The driver's rows, by table."""


def batches(entries: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(entries), BATCH):
        yield entries[begin : begin + BATCH]


async def ours(url: str, entries: Sequence[RecordedEvent]) -> float:
    """Events per second with `Ledger.record`."""
    now = SystemClock().now()
    async with Ledger(url) as ledger:
        began = time.perf_counter()
        for batch in batches(entries):
            await ledger.record(batch, (), now=now)
        seconds = time.perf_counter() - began
        stored = sum((await ledger.queries.counts()).values())
    if stored != len(entries) * DELIVERIES:
        raise RuntimeError(f"{stored} deliveries were recorded: this measurement is void")
    return len(entries) / seconds


def statement(table: str, width: int, mark: Callable[[int], str]) -> str:
    return f"INSERT INTO {table} VALUES ({', '.join(mark(number + 1) for number in range(width))})"


def rows_by_batch(rows: Tables) -> list[list[tuple[str, Sequence[Sequence[Any]]]]]:
    """Each batch's rows, by table, in the order of their keys."""
    events, contents, deliveries = (rows[table] for table in TABLES)
    recipients: dict[str, list[Sequence[Any]]] = {}
    for row in rows.get(RECIPIENTS, ()):
        recipients.setdefault(row[2], []).append(row)
    deliveries_of: dict[str, list[Sequence[Any]]] = {}
    for row in deliveries:
        deliveries_of.setdefault(row[1], []).append(row)
    bodies = {row[0]: row for row in contents}
    result = []
    for batch in batches(events):
        batch_deliveries = [row for event in batch for row in deliveries_of[event[0]]]
        parts = {
            **dict(zip(TABLES, (batch, [bodies[row[5]] for row in batch_deliveries], batch_deliveries), strict=True)),
            RECIPIENTS: [row for delivery in batch_deliveries for row in recipients.get(delivery[0], ())],
        }
        result.append([(table, sorted(part, key=itemgetter(0))) for table, part in parts.items() if part])
    return result


def opened(file: Path) -> sqlite3.Connection:
    """A connection with the ledger's pragmas."""
    connection = sqlite3.connect(file, isolation_level=None)
    pragmas = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "wal_autocheckpoint=8000", "cache_size=-4096")
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")
    return connection


def sqlite_rows(file: Path) -> Tables:
    with closing(opened(file)) as connection:
        return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in (*TABLES, RECIPIENTS)}


def bare_sqlite(file: Path, rows: Tables, count: int) -> float:
    work = rows_by_batch(rows)
    with closing(opened(file)) as connection:
        began = time.perf_counter()
        for batch in work:
            connection.execute("BEGIN IMMEDIATE")
            for table, some in batch:
                connection.executemany(statement(table, len(some[0]), "?{}".format), some)
            connection.execute("COMMIT")
        return count / (time.perf_counter() - began)


async def postgres_rows(url: str) -> Tables:
    connection = await asyncpg.connect(url)
    try:
        return {table: [tuple(row) for row in await connection.fetch(f"SELECT * FROM {table}")] for table in TABLES}
    finally:
        await connection.close()


async def bare_postgres(url: str, rows: Tables, count: int) -> float:
    connection = await asyncpg.connect(url)
    work = rows_by_batch(rows)
    try:
        began = time.perf_counter()
        for batch in work:
            async with connection.transaction():
                for table, some in batch:
                    await connection.executemany(statement(table, len(some[0]), "${}".format), some)
        return count / (time.perf_counter() - began)
    finally:
        await connection.close()


async def migrated(url: str) -> None:
    async with Ledger(url):
        pass


async def empty_database(server: str, name: str) -> str:
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(f"DROP DATABASE IF EXISTS {name}")
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return f"{server.rpartition('/')[0]}/{name}"


async def sqlite_pair(count: int) -> tuple[float, float]:
    entries = [recorded(number) for number in range(count)]
    with TemporaryDirectory() as folder:
        mine, bare = Path(folder, "ours.db"), Path(folder, "bare.db")
        event_loop.freeze_garbage_collector()  # as the service does
        found = await ours(f"sqlite+aiosqlite:///{mine}", entries)
        await migrated(f"sqlite+aiosqlite:///{bare}")
        return found, bare_sqlite(bare, sqlite_rows(mine), count)


async def postgres_pair(count: int, server: str) -> tuple[float, float]:
    entries = [recorded(number) for number in range(count)]
    mine, bare = [await empty_database(server, name) for name in ("ours", "bare")]
    event_loop.freeze_garbage_collector()
    found = await ours(mine, entries)
    await migrated(bare)
    return found, await bare_postgres(bare, await postgres_rows(mine), count)


def measure(pair: Callable[..., Coroutine[Any, Any, tuple[float, float]]], *arguments: Any) -> tuple[float, float]:
    logs.configure("json", level=40)
    return event_loop.run(pair(*arguments))


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server with fsync, as in production."""
    cluster = Cluster()
    cluster.start(fsync=True)
    try:
        yield cluster.url.replace("+asyncpg", "")
    finally:
        cluster.remove()


def figures(rounds: int, *, smoke: bool, count: int = EVENTS) -> Iterable[Figure]:
    count = 2 * BATCH if smoke else count
    work = f"{count:,} terminal events with {DELIVERIES} deliveries each, {BATCH} in a transaction"
    context = multiprocessing.get_context("spawn")
    with postgres() as server, ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as processes:
        kinds = {"SQLite": (sqlite_pair, count), "PostgreSQL": (postgres_pair, count, server)}
        drivers = {"SQLite": "sqlite3, executemany", "PostgreSQL": "asyncpg, executemany"}
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, task in kinds.items():
                found[kind].append(processes.submit(measure, *task).result())
    for kind, pairs in found.items():
        mine, theirs = zip(*pairs, strict=True)
        yield Figure(
            path="record",
            work=f"{work}, {kind}",
            baseline=f"the same rows by {drivers[kind]}",
            ours=mine,
            theirs=theirs,
            goal=Goal("at least", 0.7),
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--events", type=int, default=EVENTS)
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    print(as_markdown(figures(arguments.rounds, smoke=False, count=arguments.events)))


if __name__ == "__main__":
    main()
