"""SQLite's one writer: pieces of work in a thread of their own, all that wait in one transaction."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, RootTransaction
from sqlalchemy.exc import DBAPIError, OperationalError

from dispatcher.ledger.statements import run

COMPANY = 0.005
"""Seconds that patient work waits for some that isn't."""
T = TypeVar("T")
Turn = Callable[[], AbstractAsyncContextManager[None]]
"""While it is held, nobody else in this process writes."""


@dataclass(slots=True, eq=False)
class _Piece:
    """One caller's work, and what came of it."""

    work: Callable[[Connection], Any]
    done: asyncio.Future[Any]
    """The caller waits for it; cancelled where he has given up."""
    patient: bool
    """It may wait a moment for company."""
    writing: Future[None] | None = None
    """The transaction that it is in."""
    value: Any = None
    trouble: Exception | None = None

    def tell(self, trouble: Exception | None = None) -> None:
        """Tell the caller what came of it, or of the whole transaction."""
        trouble = trouble or self.trouble
        if self.done.done():
            return
        if trouble is not None:
            self.done.set_exception(trouble)
        else:
            self.done.set_result(self.value)


class Writer:
    """Carries pieces of work out one after another, from BEGIN to COMMIT without coming back to the event loop.

    Handing each statement over to a thread and waiting for it costs many times the statement itself. And a commit, which
    waits for the disk, costs the same for one piece as for many: what comes while others are written shares the next
    transaction. Each piece holds whole or not at all, whatever becomes of its neighbours.
    """

    def __init__(self, engine: Engine, turn: Turn, *, patience: float) -> None:
        """`turn`: taken for each transaction. `patience`: seconds that one waits for a file that a stranger has locked."""
        self._engine = engine
        self._turn = turn
        self._patience = patience
        self._waiting: list[_Piece] = []
        self._at_work: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._connection: Connection | None = None
        """The thread's, kept: taking one out of the engine's pool and putting it back costs as much as a statement."""
        self._hurry = asyncio.Event()
        """Somebody has come who can't wait."""

    async def write(self, work: Callable[[Connection], T], *, patient: bool = False) -> T:
        """What `work` returns, committed. Whoever is cancelled meanwhile has written nothing, or all of it.

        `patient`: a transaction of its own is not worth its while if somebody else's begins in a moment.
        """
        piece = _Piece(work, asyncio.get_running_loop().create_future(), patient)
        self._waiting.append(piece)
        if not patient:
            self._hurry.set()
        if self._at_work is None or self._at_work.done():
            self._at_work = asyncio.create_task(self._write_waiting())  # noqa: TID251 - `aclose` waits for it
        try:
            value: T = await piece.done
        except asyncio.CancelledError:
            if piece.writing is None:
                self._waiting.remove(piece)
            else:
                await _ended(piece.writing)
            raise
        return value

    async def aclose(self) -> None:
        """Let what is being written end."""
        if self._at_work is not None:
            await asyncio.wait([self._at_work])
        await asyncio.to_thread(self._thread.shutdown)
        if self._connection is not None:
            self._connection.close()
        self._engine.dispose()

    async def _write_waiting(self) -> None:
        """Write what waits, and what comes meanwhile. On its own: whoever is cancelled leaves the others' work alone."""
        group: list[_Piece] = []
        while self._waiting:
            await self._company()
            try:
                async with self._turn():
                    group, self._waiting = self._waiting, []
                    await self._written(group)
            except Exception as trouble:  # noqa: BLE001 - each caller gets it, at its own await
                for piece in [*group, *self._waiting]:  # a file that is locked for some is so for all
                    piece.tell(trouble)
                self._waiting.clear()
            for piece in group:
                piece.tell()
            await asyncio.sleep(0)  # noqa: TID251 - what those who were told bring next is in time for the next transaction

    async def _company(self) -> None:
        """Where nobody is in a hurry, wait a moment for somebody who is: one commit is cheaper than two."""
        if any(not piece.patient for piece in self._waiting):
            return
        self._hurry.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(COMPANY):
                await self._hurry.wait()

    async def _written(self, group: Sequence[_Piece]) -> None:
        writing = self._thread.submit(self._transaction, group)
        for piece in group:
            piece.writing = writing
        await asyncio.wrap_future(writing)

    def _transaction(self, group: Sequence[_Piece]) -> None:
        connection = self._connection = self._connection or self._engine.connect()
        try:
            with self._begun(connection, group) as transaction:
                for piece in group:
                    _carry_out(piece, connection, in_company=len(group) > 1)
                if all(piece.trouble is not None for piece in group):
                    transaction.rollback()
        except Exception:
            self._renounce(connection)
            raise
        if any(isinstance(piece.trouble, DBAPIError) for piece in group):
            self._renounce(connection)

    def _renounce(self, connection: Connection) -> None:
        """Open a new one next time: nothing of what went wrong may stay with this one.

        What SQLite could only open for reading stays so, even where that is mended.
        """
        self._connection = None
        connection.invalidate()
        connection.close()

    def _begun(self, connection: Connection, group: Sequence[_Piece]) -> RootTransaction:
        """Begin, by short waits for a locked file: SQLite's own can't be cut short."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return connection.begin()
            except OperationalError as error:
                busy = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
                given_up = all(piece.done.cancelled() for piece in group)
                if not busy or given_up or time.monotonic() >= deadline:
                    raise


def _carry_out(piece: _Piece, connection: Connection, *, in_company: bool) -> None:
    """Do the work, or undo all of it. Raises where SQLite has given up the whole transaction over it, as on a full disk."""
    if in_company:
        run(connection, "SAVEPOINT piece")
    try:
        piece.value = piece.work(connection)
    except Exception as trouble:  # noqa: BLE001 - the caller gets it
        piece.trouble = trouble
        if in_company:
            try:
                run(connection, "ROLLBACK TO piece")
            except DBAPIError:
                raise trouble from None
    if in_company:
        run(connection, "RELEASE piece")


async def _ended(writing: Future[None]) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    writing.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
    await ended.wait()
