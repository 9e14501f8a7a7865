"""Opens the ledger's database, SQLite or PostgreSQL: URL checks, engines, migrations, transactions, error messages."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sqlite3
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from stat import S_ISDIR
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect, Engine, create_engine, delete, event, insert, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    InterfaceError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from channels.common.lean_imports import without_package_init
from channels.common.tls import untrusted_certificate
from dispatcher.errors import (
    DispatcherError,
    LedgerFailed,
    LedgerIncompatible,
    LedgerUnavailable,
    SettingsError,
)
from dispatcher.ledger.postgres import checked_url, postgres_engine
from dispatcher.ledger.schema import compatibility
from dispatcher.ledger.sqlite import Writer, WriterLock
from dispatcher.ledger.statements import run

with without_package_init("sqlalchemy.ext.asyncio"):  # avoids an import of the ORM, which takes 8 MiB
    from sqlalchemy.ext.asyncio.engine import AsyncConnection, AsyncEngine, create_async_engine

T = TypeVar("T")
HEAD = "0001_e0f4d27a"
"""The version of the newest migration: its number, and a hash of the tables that all migrations create. A test checks
both."""
COMPATIBLE = HEAD
"""The oldest version whose code can work with the tables of `HEAD` and read the rows that this version writes.

The ledger stores this value, so that older replicas may start beside newer replicas. Raise it only when a migration
removes or narrows something that older code uses, or when this version writes something that older code can't read,
such as contents with another compression.
"""
_VERSION = re.compile(r"(\d{4})_[0-9a-f]{8}")

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
_BUSY_POLL_SECONDS = 0.5
"""Number of seconds that SQLite itself waits for a locked file. This wait can't be cancelled, so it is short. `_begin`
repeats it until `_BUSY_SECONDS` have passed."""
_UNAVAILABLE_SQLSTATES = ("08", "25006", "28", "3D", "40", "42501", "53", "55", "57", "58", "F0", "XX")
"""Prefixes of PostgreSQL's error codes which mean that the statement is correct, but the database can't execute it now.
In this order: lost connection, read-only standby, refused login, missing database, deadlock, missing permission, full
disk, lock not available, shutdown, I/O error, and two for broken files. Source: PostgreSQL's manual, appendix A."""
_CACHE = "cache_size=-4096"
"""The pragma that sets the writer's page cache to 4096 KiB. In a large ledger, a batch of 100 events changes a thousand
pages of 4 KiB. With SQLite's default cache of 2 MiB, the batch would read half of these pages twice."""
_WAL_PAGES = 8000
"""SQLite copies its write-ahead log into the database file each time the log has grown to 8000 pages of 4 KiB (32 MB). This
limit is high, because each batch changes pages in all parts of a large ledger.

The commit that reaches the limit also does the copy. A copy in a background thread would delay fewer commits, but
SQLite before 3.51.3 can then lose commits: sqlite.org/wal.html#walresetbug.
"""
_DUPLICATE_TABLE = "42P07"
_REASON_CHARACTERS = 300
"""Maximum number of characters of an error's text, because asyncpg's errors contain the values of a whole column."""
_IN_MEMORY = ":memory:"


@dataclass(frozen=True, slots=True)
class Schema:
    """The version of a ledger's tables."""

    version: str | None
    """The last migration that was applied; None if the ledger has no tables."""
    oldest: str | None
    """The oldest version of the dispatcher whose code can work with the tables, read from the table `compatibility`."""

    @property
    def newer(self) -> bool:
        """True if a later release created the tables."""
        return _number(self.version) > _number(HEAD)

    @property
    def compatible(self) -> bool:
        """True if this code can work with the tables without a migration."""
        return self.version == HEAD or (
            self.newer and (self.oldest == HEAD or 0 < _number(self.oldest) < _number(HEAD))
        )


def _number(version: str | None) -> int:
    """Return a version's number, which is higher in later releases; 0 if the text is no version of a release."""
    parsed = _VERSION.fullmatch(version or "")
    return int(parsed[1]) if parsed else 0


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
        self.url = _checked(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self._place = _place(self.url)
        self._engine = (
            _sqlite_engine(self.url)
            if self.sqlite
            else postgres_engine(self.url, timeout, password_file, busy_seconds=_BUSY_SECONDS)
        )
        self._write_lock: AbstractAsyncContextManager[Any] = asyncio.Lock() if self.sqlite else nullcontext()
        self._writer = _writer(self.url, self._locked) if self.sqlite and self.url.database != _IN_MEMORY else None

    @property
    def dialect(self) -> Dialect:
        return self._engine.dialect

    async def migrate(self) -> Schema:
        """Create or upgrade the tables, and return the schema as it was before the migration.

        Several replicas may call this at once, and older replicas may keep running. A newer version's tables are left
        unchanged if they are compatible with this version.

        Raises LedgerIncompatible if a newer version's tables are not compatible, or if an unreleased version or another
        program created the tables. Raises LedgerUnavailable while the database can't be reached or another transaction
        locks a table.
        """
        if self.sqlite:
            async with self.writing() as connection:
                return await connection.run_sync(_upgrade, self._place)
        schema = await self.schema()
        if schema.compatible:
            return schema
        # No statement timeout: creating an index over millions of rows takes long, and so does waiting while another
        # replica migrates.
        unlimited = Database(self.url.render_as_string(hide_password=False), None, self._password_file)
        try:
            async with unlimited.writing() as connection:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
                await connection.execute(text(f"SET LOCAL lock_timeout = '{_MIGRATION_LOCK_TIMEOUT}'"))
                return await connection.run_sync(_upgrade, self._place)
        finally:
            await unlimited.aclose()

    async def schema(self) -> Schema:
        """Read the version of the tables. Raises LedgerIncompatible if an unreleased version created them."""
        async with self.reading() as connection:
            return await connection.run_sync(_schema)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that may write. The end of the block commits it; an error in the block rolls it back."""
        async with self._locked(), self._transaction("write") as connection:
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that only reads. On SQLite it never waits for a writer."""
        async with self._transaction("read") as connection:
            yield connection

    async def write(self, work: Callable[[Connection], T], *, patience: float = 0.0) -> T:
        """Run `work` in a transaction and return its result. This is the fast path for frequent writes.

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
            raise _failed(error) from error

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
    async def _locked(self) -> AsyncIterator[None]:
        """Hold this process's write lock, because SQLite allows only one writer at a time.

        Raises LedgerUnavailable if the lock is not free after `_BUSY_SECONDS`. In this case, the writer that holds the
        lock is waiting for another process that has locked the file.
        """
        with self._translated_errors():
            async with asyncio.timeout(_BUSY_SECONDS) as limit, self._write_lock:
                limit.reschedule(None)
                yield

    @asynccontextmanager
    async def _transaction(self, purpose: str) -> AsyncIterator[AsyncConnection]:
        with self._translated_errors():
            async with self._connected() as raw, AsyncExitStack() as commit:
                try:
                    connection = await raw.execution_options(purpose=purpose)
                    await _begin(connection, commit)
                    yield connection
                    await commit.aclose()
                except DBAPIError as error:
                    # Close this connection. SQLite keeps a connection read-only if the file was read-only when the
                    # connection was opened, and a proxy keeps a connection to a PostgreSQL that became a standby.
                    if self.sqlite or _is_unavailable(error):
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
                if isinstance(error, InterfaceError) and not _refuses_value(error):
                    raise
                # Only the driver checks these parts of the URL. KeyError: this process's user has no name.
                raise SettingsError(f"ledger.url: {self._place} can't be connected to: {_cause(error)}") from error
            yield connection

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Turn the database's errors into LedgerUnavailable, or into LedgerFailed if a retry would not help."""
        try:
            yield
        except (TimeoutError, PoolTimeout, OSError) as error:
            raise LedgerUnavailable(f"ledger.url: {self._place} can't be used now: {_cause(error)}") from error
        except DBAPIError as error:
            if not _is_unavailable(error):
                raise _failed(error) from error
            raise LedgerUnavailable(f"ledger.url: {self._place} can't be used now: {_cause(error)}") from error


def _failed(error: Exception) -> LedgerFailed:
    """Return the error for callers. Its kind is the type of the driver's error, or of Python's error."""
    origin = error.orig if isinstance(error, DBAPIError) else None
    kind = type((origin and origin.__cause__) or origin or error).__name__
    return LedgerFailed(kind, _cause(error)[:_REASON_CHARACTERS])


async def _begin(connection: AsyncConnection, commit: AsyncExitStack) -> None:
    """Begin a transaction; while the file is locked, try again until `_BUSY_SECONDS` have passed.

    Each single wait inside SQLite is short, because it can't be cancelled, and /readyz must answer in time.
    """
    now = asyncio.get_running_loop().time
    deadline = now() + _BUSY_SECONDS
    while True:
        try:
            _ = await commit.enter_async_context(connection.begin())
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY or now() >= deadline:
                raise
        else:
            return


def _is_unavailable(error: DBAPIError) -> bool:
    """True if the database can't execute a correct statement now; False for a wrong statement."""
    if _refuses_value(error):
        return False
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return True
    if isinstance(error.orig, sqlite3.Error):
        return type(error) is DatabaseError  # raised if the file is damaged or is no database
    return str(getattr(error.orig, "sqlstate", None)).startswith(_UNAVAILABLE_SQLSTATES)


def _refuses_value(error: DBAPIError) -> bool:
    """True if asyncpg itself can't use a value: of a statement (`DataError`), or of the URL's options. SQLAlchemy takes
    these errors for an InterfaceError.
    """
    return isinstance(getattr(error.orig, "__cause__", None), ValueError)


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise SettingsError(
            "ledger.url: not a database URL; write sqlite+aiosqlite:///./dispatcher.db, or "
            "postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
        ) from None
    if backend == "sqlite":
        return _checked_sqlite(parsed.set(drivername="sqlite+aiosqlite"))
    if backend in {"postgresql", "postgres"}:
        return checked_url(parsed)
    raise SettingsError(f"ledger.url: no such kind of ledger, {backend!r}; there are sqlite and postgresql")


def _checked_sqlite(url: URL) -> URL:
    if url.host or not url.database:
        raise SettingsError("ledger.url: names no file; write sqlite+aiosqlite:///./dispatcher.db")
    if url.query:
        raise SettingsError(f"ledger.url: a file takes no options, and there is {next(iter(url.query))!r}")
    if url.database != _IN_MEMORY:
        _check_file(Path(url.database))
    return url


def _check_file(file: Path) -> None:
    try:
        if not _is_folder(file.parent):
            raise SettingsError(f"ledger.url: no such folder: {file.parent}")
        if _is_folder(file):
            raise SettingsError(f"ledger.url: {file} is a folder; name a file in it")
    except OSError as error:
        raise SettingsError(f"ledger.url: {file} can't be had: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"ledger.url: {str(file)!r} can't be the name of a file") from None


def _is_folder(path: Path) -> bool:
    """Like `Path.is_dir`, but raises OSError if the path can't be read.

    `Path.is_dir` returns False for such a path since Python 3.14. Raises ValueError for an invalid name.
    """
    try:
        return S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _place(url: URL) -> str:
    """Return the database's location for error messages, without user and password."""
    if url.get_backend_name() == "sqlite":
        return f"the file {url.database}"
    server = f" at {url.host}{f':{url.port}' if url.port else ''}" if url.host else ""
    return f"PostgreSQL{server}"


def _sqlite_engine(url: URL) -> AsyncEngine:
    engine = create_async_engine(url, connect_args={"timeout": _BUSY_POLL_SECONDS})
    _prepare(engine.sync_engine)
    return engine


def _writer(url: URL, lock: WriterLock) -> Writer:
    engine = create_engine(
        url.set(drivername="sqlite+pysqlite"), pool_size=1, connect_args={"timeout": _BUSY_POLL_SECONDS}
    )
    _prepare(engine, _CACHE)
    return Writer(engine, lock, busy_seconds=_BUSY_SECONDS)


def _prepare(engine: Engine, *more: str) -> None:
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
        run(connection, "BEGIN" if reads else "BEGIN IMMEDIATE")


def _schema(connection: Connection) -> Schema:
    """Read the version of the tables.

    Raises LedgerIncompatible if an unreleased version created them, or if the database can't store every text.
    """
    if connection.dialect.name != "sqlite":
        _check_encoding(str(connection.scalar(text("SHOW server_encoding"))))
    tables = inspect(connection)
    version = (
        connection.scalar(text("SELECT version_num FROM alembic_version"))
        if tables.has_table("alembic_version")
        else None
    )
    stored = tables.has_table(compatibility.name)
    schema = Schema(version, connection.scalar(select(compatibility.c.oldest)) if stored else None)
    if version is None or schema.compatible or schema.newer or version in _upgradable_versions(connection):
        return schema
    raise LedgerIncompatible(
        f"the ledger is at version {version}, made by an unreleased version: begin a new ledger; "
        f"this dispatcher's tables are version {HEAD}"
    )


def _check_encoding(encoding: str) -> None:
    """Raise LedgerIncompatible if PostgreSQL's database is not in UTF-8: it could not store names and answers."""
    if encoding != "UTF8":
        raise LedgerIncompatible(
            f"ledger.url: the database's encoding must be UTF8, and it is {encoding}: "
            "create it again, WITH TEMPLATE template0 ENCODING 'UTF8'"
        )


def _upgradable_versions(connection: Connection) -> set[str]:
    """Return the versions of the tables that this dispatcher can upgrade."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - imported only here, because most starts find tables that are up to date and need no Alembic

    return {script.revision for script in ScriptDirectory.from_config(alembic_config(connection)).walk_revisions()}


def _upgrade(connection: Connection, place: str) -> Schema:
    before = _schema(connection)
    if before.compatible:
        return before
    from alembic import command  # noqa: PLC0415 - imported only here, because Alembic takes megabytes of memory and few starts migrate
    from alembic.util import CommandError  # noqa: PLC0415

    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        raise LedgerIncompatible(
            f"the ledger is at version {before.version}, this dispatcher knows versions up to {HEAD}: "
            "it was made by a newer one; upgrade this one"
        ) from error
    except DBAPIError as error:
        if not _is_duplicate_table(error):
            raise
        raise LedgerIncompatible(
            f"ledger.url: {place} has another program's tables ({_cause(error)}): the ledger needs its own database"
        ) from error
    compatibility.create(connection, checkfirst=True)
    connection.execute(delete(compatibility))
    connection.execute(insert(compatibility).values(oldest=COMPATIBLE))
    return before


def _is_duplicate_table(error: DBAPIError) -> bool:
    """True if a table could not be created because a table of that name exists."""
    return getattr(error.orig, "sqlstate", None) == _DUPLICATE_TABLE or "already exists" in str(error.orig)


def alembic_config(connection: Connection) -> Any:
    """Return Alembic's configuration for the ledger's migrations on an open connection."""
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))  # Alembic takes % for a variable
    config.attributes["connection"] = connection
    return config


def _cause(error: BaseException) -> str:
    """Return the driver's error message, without the statement and without the URL and its password."""
    origin = error.orig if isinstance(error, DBAPIError) else None
    match (origin and origin.__cause__) or origin or error:
        case socket.gaierror() as inner:
            return f"no such host: {inner.strerror}"
        case TimeoutError():
            return "no answer in time"
        case ssl.SSLCertVerificationError() as inner:
            return f"its certificate is not trusted: {untrusted_certificate(inner, 'sslrootcert in ledger.url')}"
        case ssl.SSLError(reason=str(reason)):
            return f"TLS failed: {reason}"
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number)
        case inner:
            return str(inner).partition("\n")[0] or type(inner).__name__
