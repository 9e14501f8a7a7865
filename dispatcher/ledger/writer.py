"""SQLite's one writer: whole transactions in a thread of their own."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection, Engine, RootTransaction
from sqlalchemy.exc import DBAPIError, OperationalError

T = TypeVar("T")


class Writer:
    """Runs transactions one after another, each from BEGIN to COMMIT without coming back to the event loop.

    Handing each statement over to a thread and waiting for it costs many times the statement itself.
    """

    def __init__(self, engine: Engine, *, patience: float) -> None:
        """`patience`: seconds that a transaction waits for a file that a stranger has locked."""
        self._engine = engine
        self._patience = patience
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, committed. Whoever is cancelled meanwhile has written nothing, or all of it."""
        given_up = threading.Event()
        writing = self._thread.submit(self._transaction, work, given_up)
        try:
            return await asyncio.wrap_future(writing)
        except asyncio.CancelledError:
            given_up.set()
            await _ended(writing)
            raise

    async def aclose(self) -> None:
        """Let what is being written end."""
        await asyncio.to_thread(self._thread.shutdown)
        self._engine.dispose()

    def _transaction(self, work: Callable[[Connection], T], given_up: threading.Event) -> T:
        with self._engine.connect() as connection:
            try:
                with self._begun(connection, given_up):
                    return work(connection)
            except DBAPIError:
                # What SQLite could only open for reading stays so, even where that is mended.
                connection.invalidate()
                raise

    def _begun(self, connection: Connection, given_up: threading.Event) -> RootTransaction:
        """Begin, by short waits for a locked file: SQLite's own can't be cut short."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return connection.begin()
            except OperationalError as error:
                busy = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
                if not busy or given_up.is_set() or time.monotonic() >= deadline:
                    raise


async def _ended(writing: Future[T]) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    writing.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
    await ended.wait()
