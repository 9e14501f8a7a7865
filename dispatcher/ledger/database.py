"""Opening the database: one engine for SQLite or PostgreSQL, its migrations, and its faults in our words."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from dispatcher.errors import LedgerIncompatible, LedgerUnavailable, SettingsError

HEAD = "0001"
"""The newest migration; a test holds it to the scripts."""

_MIGRATION_LOCK = 0x666C797465  # "flyte": PostgreSQL's advisory lock, so that replicas migrate one after another
_BUSY_SECONDS = 10


class Database:
    """Transactions on the ledger's database. Every fault of the database comes out as LedgerUnavailable."""

    def __init__(self, url: str) -> None:
        """Opens nothing yet. Raises SettingsError for a URL that can't be used."""
        self.url = _checked(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self._engine = _engine(self.url, sqlite=self.sqlite)
        self._one_writer: AbstractAsyncContextManager[Any] = asyncio.Lock() if self.sqlite else nullcontext()

    async def migrate(self) -> None:
        """Bring the tables up to date; safe to call from several replicas at once.

        Raises LedgerIncompatible for a ledger from a newer version, LedgerUnavailable while it can't be reached.
        """
        async with self.writing() as connection:
            if not self.sqlite:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            await connection.run_sync(_upgrade)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes: committed at the end, rolled back when anything is raised."""
        async with self._one_writer, self._connected("write") as connection:
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads; on SQLite it never waits for a writer."""
        async with self._connected("read") as connection:
            yield connection

    async def aclose(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def _connected(self, purpose: str) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.connect() as raw:
                connection = await raw.execution_options(purpose=purpose)
                async with connection.begin():
                    yield connection
        except (TimeoutError, OperationalError, InterfaceError, PoolTimeout, OSError) as error:
            raise LedgerUnavailable(f"the ledger can't be used now: {_cause(error)}") from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise LedgerUnavailable(f"the ledger's connection broke: {_cause(error)}") from error
            raise


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise SettingsError("ledger.url: not a database URL; write sqlite+aiosqlite:///./dispatcher.db") from None
    if backend == "sqlite":
        return parsed.set(drivername="sqlite+aiosqlite")
    if backend in {"postgresql", "postgres"}:
        return parsed.set(drivername="postgresql+asyncpg")
    raise SettingsError(f"ledger.url: no such kind of ledger, {backend!r}; there are sqlite and postgresql")


def _engine(url: URL, *, sqlite: bool) -> AsyncEngine:
    try:
        if not sqlite:
            return create_async_engine(url, pool_size=8, max_overflow=4, pool_pre_ping=True, pool_timeout=10)
    except (NoSuchModuleError, ModuleNotFoundError):
        raise SettingsError(
            "ledger.url: PostgreSQL needs the extra: pip install 'flyte-notification-dispatcher[postgres]'"
        ) from None
    if url.database and url.database != ":memory:" and not (folder := Path(url.database).parent).is_dir():
        raise SettingsError(f"ledger.url: no such folder: {folder}")
    engine = create_async_engine(url, connect_args={"timeout": _BUSY_SECONDS})

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we begin transactions ourselves
        cursor = connection.cursor()
        # FULL: a Kafka offset is committed on the strength of our commit, so it must survive a power cut.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later would fail at once where another wrote in between.
        reads = connection.get_execution_options().get("purpose") == "read"
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _upgrade(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415 - slow to import, and most starts find nothing to do
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    version = MigrationContext.configure(connection).get_current_revision()
    if version == HEAD:
        return
    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        raise LedgerIncompatible(
            f"the ledger is at version {version}, this dispatcher knows versions up to {HEAD}: "
            "it was made by a newer one; upgrade this one"
        ) from error


def alembic_config(connection: Connection) -> Any:
    """Alembic's configuration for our scripts, on an open connection."""
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _cause(error: BaseException) -> str:
    """The driver's own words: without the statement, and without the URL and its password."""
    origin = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    inner = origin.__cause__ if isinstance(origin.__cause__, sqlite3.Error | OSError) else origin
    return f"{type(inner).__name__}: {str(inner).splitlines()[0] if str(inner) else 'no details'}"
