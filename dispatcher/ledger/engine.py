"""Opens the ledger's database, SQLite or PostgreSQL, and runs transactions and migrations on it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from dispatcher.errors import DispatcherError, LedgerUnavailable, SettingsError
from dispatcher.ledger import sqlite
from dispatcher.ledger.database_url import checked_url, file_exists, place
from dispatcher.ledger.failures import cause, failed, is_unavailable, refuses_value
from dispatcher.ledger.postgres import postgres_engine
from dispatcher.ledger.sqlalchemy_internals import AsyncConnection, create_async_engine
from dispatcher.ledger.versions import Schema, read_schema, upgrade

T = TypeVar("T")
# Key of the PostgreSQL advisory lock that lets only one replica migrate at a time. It spells "flyte" in ASCII.
_MIGRATION_LOCK = 0x666C797465
_MIGRATION_LOCK_TIMEOUT = "4s"
"""Maximum time that a migration waits for a table's lock on PostgreSQL. Then the migration gives up and is tried again
later. Without this limit, all later transactions would queue behind the migration, so one long transaction of another
client would stop all deliveries."""
_BUSY_SECONDS = 10
"""Maximum number of seconds to wait for a lock, a pooled connection or a new connection to the server."""
TIMEOUT = timedelta(seconds=30)
"""Maximum time for one statement on PostgreSQL."""


class RollBack(Exception):
    """Raised on purpose in a write, to roll the transaction back."""


class Database:
    """Runs transactions on the ledger's database. Raises LedgerUnavailable while the database can't be used."""

    def __init__(self, url: str, timeout: timedelta | None = TIMEOUT, password_file: Path | None = None) -> None:
        """Check the URL, but open no connection yet. Raises SettingsError if the URL can't be used.

        `timeout`: maximum time for one statement on PostgreSQL, so that a hanging server does not block a caller
        forever; None if there is no limit. `password_file`: the file that contains PostgreSQL's password; it is read
        again for each connection.
        """
        self._password_file = password_file
        self.url = checked_url(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self._place = place(self.url)
        self._writer: sqlite.Writer | None = None
        if self.sqlite:
            self._engine = create_async_engine(self.url, connect_args=sqlite.CONNECT_ARGUMENTS)
            sqlite.prepare(self._engine.sync_engine)
            self._writer = sqlite.open_writer(self.url, busy_seconds=_BUSY_SECONDS)
        else:
            self._engine = postgres_engine(self.url, timeout, password_file, busy_seconds=_BUSY_SECONDS)

    async def migrate(self) -> Schema:
        """Create or upgrade the tables, and return the schema as it was before the migration.

        Several replicas may call this at once, and older replicas may keep running. A newer version's tables are left
        unchanged if they are compatible with this version.

        Raises LedgerIncompatible if a newer version's tables are not compatible, or if an unreleased version or another
        program created the tables. Raises LedgerUnavailable while the database can't be reached or another transaction
        locks a table.
        """
        schema = await self.schema()
        if schema.compatible:
            return schema
        if self.sqlite:
            return await self.write(partial(upgrade, place=self._place))
        # No statement timeout: creating an index over millions of rows takes long, and so does waiting while another
        # replica migrates.
        unlimited = Database(self.url.render_as_string(hide_password=False), None, self._password_file)
        try:
            async with unlimited.writing() as connection:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
                await connection.execute(text(f"SET LOCAL lock_timeout = '{_MIGRATION_LOCK_TIMEOUT}'"))
                return await connection.run_sync(upgrade, self._place)
        finally:
            await unlimited.aclose()

    async def schema(self) -> Schema:
        """Read the version of the tables, and create no SQLite file. Raises LedgerIncompatible if an unreleased version
        created them.
        """
        if self.sqlite and not file_exists(self.url):
            return Schema(version=None, oldest=None)
        async with self.reading() as connection:
            return await connection.run_sync(read_schema)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that may write. The end of the block commits it; an error in the block rolls it back."""
        async with self._transaction("write") as connection:
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that only reads. On SQLite it never waits for a writer."""
        async with self._transaction("read") as connection:
            yield connection

    async def write(self, work: Callable[[Connection], T], *, patience: float = 0.0) -> T:
        """Run `work` in a transaction and return its result.

        On SQLite, writes that wait at the same time share one transaction. Each write has its own savepoint, so that
        one write can fail without the others. `patience`: wait up to this many seconds for an urgent write, so that both
        writes share one transaction. If `work` raises `RollBack`, the transaction is rolled back, and the error is
        raised. Every other unforeseen error is raised as LedgerFailed.
        """
        try:
            if self._writer is None:
                async with self.writing() as connection:
                    return await connection.run_sync(work)
            with self._translated_errors():
                return await self._writer.write(work, patience=patience)
        except (DispatcherError, RollBack):
            raise
        except Exception as error:
            raise failed(error) from error

    async def clock_offset(self, now: Callable[[], datetime]) -> timedelta:
        """Return how far `now` is ahead of the database's clock, at least; negative if it is behind.

        The time that the query takes is left out, so a slow database is no difference. Always 0 on SQLite, which has no
        clock.
        """
        if self.sqlite:
            return timedelta()
        async with self.reading() as connection:
            before = now()
            there: datetime = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
            after = now()
        return max(before - there, min(after - there, timedelta()))

    async def aclose(self) -> None:
        if self._writer is not None:
            await self._writer.aclose()
        with suppress(TimeoutError):  # a hanging server never confirms that its connections are closed
            async with asyncio.timeout(_BUSY_SECONDS):
                await self._engine.dispose()

    @asynccontextmanager
    async def _transaction(self, purpose: str) -> AsyncIterator[AsyncConnection]:
        with self._translated_errors():
            async with self._connected() as raw, AsyncExitStack() as commit:
                try:
                    connection = await raw.execution_options(purpose=purpose)
                    _ = await commit.enter_async_context(connection.begin())
                    yield connection
                    await commit.aclose()
                except DBAPIError as error:
                    # Close this connection. SQLite keeps a connection read-only if the file was read-only when the
                    # connection was opened, and a proxy keeps a connection to a PostgreSQL that became a standby.
                    if self.sqlite or is_unavailable(error):
                        await raw.invalidate()
                    raise

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self._engine.connect())
            except ssl.SSLCertVerificationError:  # it is a ValueError too
                raise
            except (TypeError, ValueError, OverflowError, KeyError, InterfaceError) as error:
                if isinstance(error, InterfaceError) and not refuses_value(error):
                    raise
                # Only the driver checks these parts of the URL. KeyError: this process's user has no name.
                raise SettingsError(f"ledger.url: {self._place} can't be connected to: {cause(error)}") from error
            yield connection

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Turn the database's errors into LedgerUnavailable, or into LedgerFailed if a retry would not help."""
        try:
            yield
        except (TimeoutError, PoolTimeout, OSError) as error:
            raise LedgerUnavailable(f"ledger.url: {self._place} can't be used now: {cause(error)}") from error
        except DBAPIError as error:
            if not is_unavailable(error):
                raise failed(error) from error
            raise LedgerUnavailable(f"ledger.url: {self._place} can't be used now: {cause(error)}") from error
