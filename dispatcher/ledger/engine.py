"""Opening the database: one engine for SQLite or PostgreSQL, its migrations, and its faults in our words."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sqlite3
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
from datetime import timedelta
from pathlib import Path
from stat import S_ISDIR
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect, Engine, create_engine, delete, event, insert, inspect, select, text
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    InterfaceError,
    InvalidatePoolError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from channels.common.lean_imports import bare
from channels.common.secret import reveal
from dispatcher.errors import LedgerIncompatible, LedgerUnavailable, SettingsError
from dispatcher.ledger.schema import compatibility
from dispatcher.ledger.sqlite import Turn, Writer
from dispatcher.ledger.statements import run

with bare("sqlalchemy.ext.asyncio"):  # whose sessions bring the whole ORM along: 8 MiB
    from sqlalchemy.ext.asyncio.engine import AsyncConnection, AsyncEngine, create_async_engine

T = TypeVar("T")
HEAD = "0001_b8caccb3"
"""The newest migration: its number, and a hash of the tables that the migrations make. Tests compare both with the
scripts."""
COMPATIBLE = HEAD
"""The oldest version whose code can work with the tables of HEAD, and read what HEAD's code writes into them. The ledger
stores it, so that older replicas may start beside newer ones. It moves only when a migration removes or narrows something
that older code uses, or when HEAD's code writes something that older code can't read, such as contents packed in another
way."""
_VERSION = re.compile(r"(\d{4})_[0-9a-f]{8}")

_MIGRATION_LOCK = 0x666C797465  # "flyte": PostgreSQL's advisory lock, so that replicas migrate one after another
_MIGRATION_PATIENCE = "4s"
"""How long a migration waits for a table on PostgreSQL: whoever comes after it waits too, so it gives way and tries
again rather than hold up all deliveries behind one long transaction."""
_BUSY_SECONDS = 10
"""How long a transaction waits for others, or for the server to answer that we may connect."""
TIMEOUT = timedelta(seconds=30)
"""How long one statement may take on PostgreSQL."""
_UNINTERRUPTED_SECONDS = 0.5
"""How long of this SQLite waits at a stretch."""
_TROUBLES = ("08", "25006", "28", "3D", "40", "42501", "53", "55", "57", "58", "F0", "XX")
"""How PostgreSQL's codes begin where the statement is right and the database can't carry it out: connections,
a standby, logins, no such database, deadlocks, permissions, full disks, locks, shutdowns, input and output,
its files. Source: PostgreSQL's manual, appendix A."""
_CACHE = "cache_size=-4096"
"""The writer's, in KiB. A batch of 100 events changes a thousand pages of 4 KiB in a large ledger: by SQLite's own 2 MiB
it would read half of them twice."""
_LOG_PAGES, _PAGE_BYTES = 8000, 4096
"""SQLite's write-ahead log goes back into the file every 32 MB: in a large ledger each batch changes pages all over it.

By the commit that finds it full. Beside the writing it would hold up fewer, but before 3.51.3 that can lose commits:
sqlite.org/wal.html#walresetbug.
"""
_DUPLICATE_TABLE = "42P07"
_IN_MEMORY = ":memory:"


@dataclass(frozen=True, slots=True)
class Schema:
    """What tables a ledger has."""

    version: str | None
    """The newest migration that they have seen; None where there are none."""
    oldest: str | None
    """The oldest version whose code can work with them, as they say."""

    @property
    def newer(self) -> bool:
        """Whether a later release made them."""
        return _number(self.version) > _number(HEAD)

    @property
    def serves(self) -> bool:
        """Whether this code can work with the tables as they are."""
        return self.version == HEAD or (
            self.newer and (self.oldest == HEAD or 0 < _number(self.oldest) < _number(HEAD))
        )


def _number(version: str | None) -> int:
    """The number by which releases are ordered; 0 for a version without a hash, which no release has."""
    found = _VERSION.fullmatch(version or "")
    return int(found[1]) if found else 0


class Database:
    """Transactions on the ledger's database. Every fault of the database comes out as LedgerUnavailable."""

    def __init__(self, url: str, timeout: timedelta | None = TIMEOUT, password_file: Path | None = None) -> None:
        """Opens nothing yet. Raises SettingsError for a URL that can't be used.

        `timeout`: of one statement on PostgreSQL, or a server that hangs would keep a verb for ever; None: however
        long it takes. `password_file`: holds PostgreSQL's password, and is read at each connection.
        """
        self._password_file = password_file
        self.url = _checked(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self._place = _place(self.url)
        self._engine = _sqlite_engine(self.url) if self.sqlite else _postgres_engine(self.url, timeout, password_file)
        self._one_writer: AbstractAsyncContextManager[Any] = asyncio.Lock() if self.sqlite else nullcontext()
        self._writer = _writer(self.url, self._turn) if self.sqlite and self.url.database != _IN_MEMORY else None

    @property
    def dialect(self) -> Dialect:
        return self._engine.dialect

    async def migrate(self) -> Schema:
        """Bring the tables up to date; safe to call from several replicas at once, and beside older ones at work.

        Returns what the tables were before. A newer version's are left as they are where they say that this version
        can work with them. Raises LedgerIncompatible where they don't, or where an unreleased version or another program
        made them; LedgerUnavailable while the database can't be reached or others hold a table.
        """
        if self.sqlite:
            async with self.writing() as connection:
                return await connection.run_sync(_upgrade, self._place)
        found = await self.schema()
        if found.serves:
            return found
        patient = Database(self.url.render_as_string(hide_password=False), None, self._password_file)
        try:  # an index over millions of rows takes its time, and so do others who make it first
            async with patient.writing() as connection:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
                await connection.execute(text(f"SET LOCAL lock_timeout = '{_MIGRATION_PATIENCE}'"))
                return await connection.run_sync(_upgrade, self._place)
        finally:
            await patient.aclose()

    async def schema(self) -> Schema:
        """What tables there are; nothing is changed. Raises LedgerIncompatible where an unreleased version made them."""
        async with self.reading() as connection:
            return await connection.run_sync(_schema)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes: committed at the end, rolled back when anything is raised."""
        async with self._turn(), self._transaction("write") as connection:
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads; on SQLite it never waits for a writer."""
        async with self._transaction("read") as connection:
            yield connection

    async def write(self, work: Callable[[Connection], T], *, patient: bool = False) -> T:
        """What `work` returns, run as one transaction that writes: the quick way of what is done all the time.

        On SQLite it may share its transaction with others' work, and holds or fails alone all the same. `patient`: it may
        wait a few milliseconds for them.
        """
        if self._writer is None:
            async with self.writing() as connection:
                return await connection.run_sync(work)
        with self._troubles():
            return await self._writer.write(work, patient=patient)

    async def make_room(self) -> None:
        """Give SQLite's write-ahead log its full size at once, where there is room for it.

        A commit that makes a file larger waits for the file system's own journal too, and for whoever else writes there.
        """
        if self._writer is not None:
            with suppress(_Undone, LedgerUnavailable):
                await self.write(_stretch)

    async def aclose(self) -> None:
        if self._writer is not None:
            await self._writer.aclose()
        with suppress(TimeoutError):  # a server that hangs takes no leave
            async with asyncio.timeout(_BUSY_SECONDS):
                await self._engine.dispose()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """SQLite has one writer at a time; while a stranger locks the file, nobody waits long for his turn either."""
        with self._troubles():
            async with asyncio.timeout(_BUSY_SECONDS) as limit, self._one_writer:
                limit.reschedule(None)
                yield

    @asynccontextmanager
    async def _transaction(self, purpose: str) -> AsyncIterator[AsyncConnection]:
        with self._troubles():
            async with self._connected() as raw, AsyncExitStack() as ending:
                try:
                    connection = await raw.execution_options(purpose=purpose)
                    await _begin(connection, ending)
                    yield connection
                    await ending.aclose()
                except DBAPIError:
                    # What SQLite could only open for reading stays so, even where that is mended.
                    await raw.invalidate()
                    raise

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self._engine.connect())
            except (TypeError, ValueError, OverflowError) as error:  # parts of the URL that only the driver looks at
                raise SettingsError(f"ledger.url: {self._place} can't be connected to: {_cause(error)}") from error
            yield connection

    @contextmanager
    def _troubles(self) -> Iterator[None]:
        """The database's faults in our words. A mistake of ours goes through as it is."""
        try:
            yield
        except (TimeoutError, PoolTimeout, OSError) as error:
            raise LedgerUnavailable(f"ledger.url: {self._place} can't be used now: {_cause(error)}") from error
        except DBAPIError as error:
            if not _is_trouble(error):
                raise
            raise LedgerUnavailable(f"ledger.url: {self._place} can't be used now: {_cause(error)}") from error


class _Undone(Exception):
    """Its transaction has done what it was for, and is to leave no other trace."""


def _stretch(connection: Connection) -> None:
    """Write more than the cache holds: SQLite puts it into the log, and goes back to where it was."""
    run(connection, "CREATE TABLE stretching (room BLOB)")
    for _ in range(_LOG_PAGES * _PAGE_BYTES >> 20):
        run(connection, "INSERT INTO stretching VALUES (zeroblob(1048576))")
    raise _Undone


async def _begin(connection: AsyncConnection, ending: AsyncExitStack) -> None:
    """Begin, by short waits for a locked file: SQLite's own can't be cut short, and readiness has to answer."""
    now = asyncio.get_running_loop().time
    deadline = now() + _BUSY_SECONDS
    while True:
        try:
            _ = await ending.enter_async_context(connection.begin())
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY or now() >= deadline:
                raise
        else:
            return


def _is_trouble(error: DBAPIError) -> bool:
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return True
    if isinstance(error.orig, sqlite3.Error):
        return type(error) is DatabaseError  # the file is spoilt, or no database
    return str(getattr(error.orig, "sqlstate", None)).startswith(_TROUBLES)


def _checked(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise SettingsError("ledger.url: not a database URL; write sqlite+aiosqlite:///./dispatcher.db") from None
    if backend == "sqlite":
        return _checked_sqlite(parsed.set(drivername="sqlite+aiosqlite"))
    if backend in {"postgresql", "postgres"}:
        return parsed.set(drivername="postgresql+asyncpg")
    raise SettingsError(f"ledger.url: no such kind of ledger, {backend!r}; there are sqlite and postgresql")


def _checked_sqlite(url: URL) -> URL:
    if url.host or not url.database:
        raise SettingsError("ledger.url: names no file; write sqlite+aiosqlite:///./dispatcher.db")
    if url.query:
        raise SettingsError(f"ledger.url: a file takes no options, and there is {next(iter(url.query))!r}")
    if url.database != _IN_MEMORY:
        _look_at(Path(url.database))
    return url


def _look_at(file: Path) -> None:
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
    """As `Path.is_dir`, which says no to what can't be looked at, since Python 3.14. Raises OSError there, and
    ValueError for what is no name.
    """
    try:
        return S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _place(url: URL) -> str:
    """Where the ledger is, for people: without user and password."""
    if url.get_backend_name() == "sqlite":
        return f"the file {url.database}"
    server = f" at {url.host}{f':{url.port}' if url.port else ''}" if url.host else ""
    return f"PostgreSQL{server}"


def _postgres_engine(url: URL, timeout: timedelta | None, password_file: Path | None) -> AsyncEngine:
    password = {"password": lambda: reveal(None, password_file)} if password_file is not None else {}
    seconds = timeout.total_seconds() if timeout is not None else None
    try:
        engine = create_async_engine(
            url,
            pool_size=8,
            max_overflow=4,
            pool_timeout=_BUSY_SECONDS,
            connect_args={"timeout": _BUSY_SECONDS, "command_timeout": seconds, **password},
        )
    except (NoSuchModuleError, ModuleNotFoundError):
        raise SettingsError(
            "ledger.url: PostgreSQL needs the extra: pip install 'flyte-notification-dispatcher[postgres]'"
        ) from None

    @event.listens_for(engine.sync_engine, "checkout")
    def try_out(connection: Any, record: Any, _proxy: object) -> None:
        # As SQLAlchemy's own pre-ping, which takes a server's silence for an error of ours.
        if not record.fresh:
            try:
                connection.ping()
            except Exception as error:
                raise InvalidatePoolError from error

    if seconds is None:
        return engine

    @event.listens_for(engine.sync_engine, "connect")
    def bound(connection: Any, _record: object) -> None:
        # Should we vanish in mid-transaction, the server lets go of our locks. As statements: PgBouncer refuses
        # to open connections with such settings.
        cursor = connection.cursor()
        cursor.execute(f"SET idle_in_transaction_session_timeout = {2 * int(1000 * seconds)}")
        cursor.execute(f"SET lock_timeout = {int(1000 * min(seconds, _BUSY_SECONDS))}")
        cursor.close()
        connection.commit()

    @event.listens_for(engine.sync_engine, "handle_error")
    def give_up(context: ExceptionContext) -> None:
        # A connection that doesn't answer is of no more use, not even for a rollback; nor are its neighbours.
        if isinstance(context.original_exception, TimeoutError):
            context.is_disconnect = True

    return engine


def _sqlite_engine(url: URL) -> AsyncEngine:
    engine = create_async_engine(url, connect_args={"timeout": _UNINTERRUPTED_SECONDS})
    _prepare(engine.sync_engine)
    return engine


def _writer(url: URL, turn: Turn) -> Writer:
    engine = create_engine(
        url.set(drivername="sqlite+pysqlite"), pool_size=1, connect_args={"timeout": _UNINTERRUPTED_SECONDS}
    )
    _prepare(engine, _CACHE)
    return Writer(engine, turn, patience=_BUSY_SECONDS)


def _prepare(engine: Engine, *more: str) -> None:
    """SQLite as we want it, on every connection and at every beginning; `more`: pragmas of this engine alone."""

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we begin transactions ourselves
        try:
            cursor = connection.cursor()
            # FULL: a Kafka offset is committed on the strength of our commit, so it must survive a power cut.
            checkpoints = f"wal_autocheckpoint={_LOG_PAGES}"
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", checkpoints, *more):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()
        except sqlite3.Error:
            connection.close()  # SQLAlchemy drops it as it is, and its thread and its file would stay
            raise

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later would fail at once where another wrote in between.
        reads = connection.get_execution_options().get("purpose") == "read"
        run(connection, "BEGIN" if reads else "BEGIN IMMEDIATE")


def _schema(connection: Connection) -> Schema:
    """The version of the tables. Raises LedgerIncompatible for tables that no released version made."""
    tables = inspect(connection)
    version = (
        connection.scalar(text("SELECT version_num FROM alembic_version"))
        if tables.has_table("alembic_version")
        else None
    )
    says = tables.has_table(compatibility.name)
    found = Schema(version, connection.scalar(select(compatibility.c.oldest)) if says else None)
    if version is None or found.serves or found.newer or version in _earlier(connection):
        return found
    raise LedgerIncompatible(
        f"the ledger is at version {version}, made by an unreleased version: begin a new ledger; "
        f"this dispatcher's tables are version {HEAD}"
    )


def _earlier(connection: Connection) -> set[str]:
    """The versions from which this dispatcher can migrate."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - most starts find the tables at HEAD, and do without it

    return {script.revision for script in ScriptDirectory.from_config(alembic_config(connection)).walk_revisions()}


def _upgrade(connection: Connection, place: str) -> Schema:
    before = _schema(connection)
    if before.serves:
        return before
    from alembic import command  # noqa: PLC0415 - most starts find nothing to do, and do without its megabytes
    from alembic.util import CommandError  # noqa: PLC0415

    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        raise LedgerIncompatible(
            f"the ledger is at version {before.version}, this dispatcher knows versions up to {HEAD}: "
            "it was made by a newer one; upgrade this one"
        ) from error
    except DBAPIError as error:
        if not _is_taken(error):
            raise
        raise LedgerIncompatible(
            f"ledger.url: {place} has another program's tables ({_cause(error)}): the ledger wants a database of its own"
        ) from error
    compatibility.create(connection, checkfirst=True)
    connection.execute(delete(compatibility))
    connection.execute(insert(compatibility).values(oldest=COMPATIBLE))
    return before


def _is_taken(error: DBAPIError) -> bool:
    """Whether a table of ours could not be made because there is one of that name."""
    return getattr(error.orig, "sqlstate", None) == _DUPLICATE_TABLE or "already exists" in str(error.orig)


def alembic_config(connection: Connection) -> Any:
    """Alembic's configuration for our scripts, on an open connection."""
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _cause(error: BaseException) -> str:
    """The driver's own words: without the statement, and without the URL and its password."""
    origin = error.orig if isinstance(error, DBAPIError) else None
    match (origin and origin.__cause__) or origin or error:
        case socket.gaierror() as inner:
            return f"no such host: {inner.strerror}"
        case TimeoutError():
            return "no answer in time"
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number)
        case inner:
            return str(inner).partition("\n")[0] or type(inner).__name__
