"""SQLite: how its connections are prepared, and one thread for all writes.

Writes that wait at the same time are committed in one transaction.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, RootTransaction, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, OperationalError

from dispatcher.clock import is_set_within

_BUSY_POLL_SECONDS = 0.5
"""Number of seconds that SQLite itself waits for a locked file. This wait can't be cancelled, so it is short. `Writer`
repeats it."""
_CACHE = "cache_size=-4096"
"""The pragma that sets the writer's page cache to 4096 KiB. In a large ledger, a batch of 100 events changes a thousand
pages of 4 KiB. With SQLite's default cache of 2 MiB, the batch would read half of these pages twice."""
_WAL_PAGES = 8000
"""SQLite copies its write-ahead log into the database file each time the log has grown to 8000 pages of 4 KiB (32 MB).
This limit is high, because each batch changes pages in all parts of a large ledger.

The commit that reaches the limit also does the copy. A copy in a background thread would delay fewer commits, but
SQLite before 3.51.3 can then lose commits: sqlite.org/wal.html#walresetbug.
"""
CONNECT_ARGUMENTS = {"timeout": _BUSY_POLL_SECONDS}
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Write:
    """The work of one call of `Writer.write`, and its result."""

    work: Callable[[Connection], Any]
    done: asyncio.Future[Any]
    """The future that the caller waits for. It is cancelled if the caller was cancelled."""
    patience: float
    """Maximum number of seconds that the write waits for an urgent write whose transaction it can share."""
    transaction: Future[None] | None = None
    """The transaction in which the work runs; None while the work still waits."""
    result: Any = None
    error: Exception | None = None

    def complete(self, transaction_error: Exception | None = None) -> None:
        """Give the caller the result, the work's error, or the error of the whole transaction."""
        error = transaction_error or self.error
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(self.result)


class Writer:
    """Runs writes one after another in a thread, from BEGIN to COMMIT without a switch to the event loop.

    If each statement were sent to a thread separately, the switches would cost many times more than the statement. A
    commit waits for the disk, and costs the same for one write as for many. So the writes that arrive during a
    transaction share the next transaction. Each write is committed completely or not at all, even if other writes of
    the same transaction fail.
    """

    def __init__(self, engine: Engine, *, busy_seconds: float) -> None:
        """`busy_seconds`: maximum number of seconds to wait for another process's lock."""
        self._engine = engine
        self._busy_seconds = busy_seconds
        self._waiting: list[_Write] = []
        self._task: asyncio.Task[None] | None = None
        """The task that runs the transactions. It ends when no write waits."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._connection: Connection | None = None
        """The thread's connection. It stays open, because a checkout from the engine's pool costs as much as a
        statement."""
        self._urgent_write = asyncio.Event()
        """Set when an urgent write arrives, which means a write without `patience`."""

    async def write(self, work: Callable[[Connection], T], *, patience: float = 0.0) -> T:
        """Run `work`, commit, and return its result. If the caller is cancelled, all of `work` or nothing is committed.

        `patience`: wait up to this many seconds for an urgent write, so that both writes share one transaction.
        """
        write = _Write(work, asyncio.get_running_loop().create_future(), patience)
        self._waiting.append(write)
        if not patience:
            self._urgent_write.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_waiting())  # noqa: TID251 - allowed here, because `aclose` waits for this task
        try:
            result: T = await write.done
        except asyncio.CancelledError:
            if write.transaction is None:
                self._waiting.remove(write)
            else:
                await _finished(write.transaction)
            raise
        return result

    async def aclose(self) -> None:
        """Finish the waiting writes, then close the connection and stop the thread."""
        if self._task is not None:
            await asyncio.wait([self._task])
        await asyncio.to_thread(self._thread.shutdown)
        if self._connection is not None:
            self._connection.close()
        self._engine.dispose()

    async def _write_waiting(self) -> None:
        """Run transactions until no write waits.

        This runs in a separate task, so that a cancelled caller does not stop the writes of other callers.
        """
        while self._waiting:
            await self._wait_for_urgent_write()
            group, self._waiting = self._waiting, []
            try:
                await self._run_group(group)
            except Exception as error:  # noqa: BLE001 - every error is passed on to the callers that wait
                for write in [*group, *self._waiting]:  # the waiting writes would fail too, because the file is locked
                    write.complete(error)
                self._waiting.clear()
            for write in group:
                write.complete()
            await asyncio.sleep(0)  # noqa: TID251 - sleep(0) lets other tasks run, which may add writes to the next transaction

    async def _wait_for_urgent_write(self) -> None:
        """If only patient writes wait, give urgent writes time to join the transaction."""
        patience = min(write.patience for write in self._waiting)
        if patience:
            self._urgent_write.clear()
            await is_set_within(self._urgent_write, patience)

    async def _run_group(self, group: Sequence[_Write]) -> None:
        transaction = self._thread.submit(self._transaction, group)
        for write in group:
            write.transaction = transaction
        await asyncio.wrap_future(transaction)

    def _transaction(self, group: Sequence[_Write]) -> None:
        connection = self._connection = self._connection or self._engine.connect()
        try:
            with self._begin(connection, group) as transaction:
                for write in group:
                    _run_work(write, connection, with_savepoint=len(group) > 1)
                if all(write.error is not None for write in group):
                    transaction.rollback()
        except Exception:
            self._drop(connection)
            raise
        if any(isinstance(write.error, DBAPIError) for write in group):
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        """Close the connection after an error; the next transaction opens a new connection.

        SQLite keeps a connection read-only if the file was read-only when the connection was opened.
        """
        self._connection = None
        connection.invalidate()
        connection.close()

    def _begin(self, connection: Connection, group: Sequence[_Write]) -> RootTransaction:
        """Begin a transaction; while the file is locked, try again until `busy_seconds` have passed.

        Each single wait inside SQLite is short, because it can't be cancelled.
        """
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                return connection.begin()
            except OperationalError as error:
                busy = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
                all_cancelled = all(write.done.cancelled() for write in group)
                if not busy or all_cancelled or time.monotonic() >= deadline:
                    raise


def _run_work(write: _Write, connection: Connection, *, with_savepoint: bool) -> None:
    """Run one write. If its work fails, undo the work and store the error in `write.error`.

    Raises the error if SQLite rolled back the whole transaction because of it, for example on a full disk.
    """
    if with_savepoint:
        connection.exec_driver_sql("SAVEPOINT one_write")
    try:
        write.result = write.work(connection)
    except Exception as error:  # noqa: BLE001 - `write.error` passes the error on to the caller
        write.error = error
        if with_savepoint:
            try:
                connection.exec_driver_sql("ROLLBACK TO one_write")
            except DBAPIError:
                raise error from None
    if with_savepoint:
        connection.exec_driver_sql("RELEASE one_write")


async def _finished(transaction: Future[None]) -> None:
    """Wait until the transaction is committed or has failed. If it has failed, no error is raised here."""
    finished = asyncio.Event()
    loop = asyncio.get_running_loop()
    transaction.add_done_callback(lambda _: loop.call_soon_threadsafe(finished.set))
    await finished.wait()


def open_writer(url: URL, *, busy_seconds: float) -> Writer:
    """Return a writer that opens no connection yet. See `Writer.__init__`."""
    engine = create_engine(url.set(drivername="sqlite+pysqlite"), pool_size=1, connect_args=CONNECT_ARGUMENTS)
    prepare(engine, _CACHE)
    return Writer(engine, busy_seconds=busy_seconds)


def prepare(engine: Engine, *more: str) -> None:
    """Set pragmas on every new SQLite connection, and choose how each transaction begins. `more`: further pragmas."""

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must send no BEGIN, because `begin` below sends it
        try:
            cursor = connection.cursor()
            # synchronous=FULL makes a commit survive a power cut. This is necessary, because the Kafka offset is
            # committed after the ledger's commit, and Kafka then does not send the event again.
            autocheckpoint = f"wal_autocheckpoint={_WAL_PAGES}"
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", autocheckpoint, *more):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()
        except sqlite3.Error:
            connection.close()  # SQLAlchemy would not close this connection, so its thread and file would stay open
            raise

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # BEGIN IMMEDIATE takes the write lock at once. Without it, a transaction that reads first and writes later
        # would fail if another transaction wrote in between.
        reads = connection.get_execution_options().get("purpose") == "read"
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
