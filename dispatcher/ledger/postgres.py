"""Connects to PostgreSQL: TLS as libpq means it, connection poolers, time-outs of the server."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import Dialect, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import InvalidatePoolError, NoSuchModuleError

from channels.common.network import MAX_PORT
from channels.common.secret import reveal
from dispatcher.errors import SettingsError
from dispatcher.ledger.sqlalchemy_internals import AsyncEngine, create_async_engine

_TLS_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_TLS_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_TLS_OPTIONS = frozenset(
    {"sslmode", *_TLS_FILES, "sslpassword", "sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version"}
)
"""The options for TLS in a URL that libpq and asyncpg understand in the same way (PostgreSQL's manual, 34.1.2)."""
_SYSTEM = "system"
"""The value of `sslrootcert` that means the system's certificates."""
_UNPREPARED: Mapping[str, Any] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: "",
}
"""Options with which each statement is prepared without a name, immediately before it is executed."""


def checked_url(url: URL) -> URL:
    """Return the URL for asyncpg. Raises SettingsError if its host, port or options for TLS can't be used."""
    if "@" in (url.host or ""):  # a part of the password, which would be shown as the host
        raise SettingsError(
            "ledger.url: two @ are in it: write an @ in the password as %40, or use ledger.password_file"
        )
    if url.port is not None and not 0 < url.port <= MAX_PORT:
        raise SettingsError(f"ledger.url: no such port: ports are 1 to {MAX_PORT}")
    given = {name: value for name, value in url.query.items() if name in _TLS_OPTIONS}
    if not given:
        return url.set(drivername="postgresql+asyncpg")
    if "ssl" in url.query:
        raise SettingsError("ledger.url: ssl and sslmode mean the same; write sslmode")
    for name, value in given.items():
        if not isinstance(value, str):
            raise SettingsError(f"ledger.url: {name} is there twice")
    mode, roots = given.get("sslmode"), given.get("sslrootcert")
    if mode is not None and mode not in _TLS_MODES:
        raise SettingsError(f"ledger.url: sslmode={mode} does not exist; there are {', '.join(_TLS_MODES)}")
    if roots == _SYSTEM and mode not in {None, "verify-full"}:
        raise SettingsError(f"ledger.url: sslmode={mode} is too weak for sslrootcert=system; write sslmode=verify-full")
    for name in _TLS_FILES:
        if name in given and given[name] != _SYSTEM:
            _check_file(name, str(given[name]))
    return url.set(drivername="postgresql+asyncpg")


def _check_file(option: str, name: str) -> None:
    try:
        with Path(name).open("rb"):
            return
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise SettingsError(f"ledger.url: {option}={name} can't be read: {why}") from None


def postgres_engine(
    url: URL, timeout: timedelta | None, password_file: Path | None, *, busy_seconds: float
) -> AsyncEngine:
    """Return an engine that opens no connection yet.

    `timeout`: maximum time for one statement; None if there is no limit. `busy_seconds`: maximum number of seconds to
    wait for a lock, a pooled connection or a new connection. Raises SettingsError if the driver is missing.
    """
    _leave_unreadable_home()
    password = {"password": lambda: reveal(None, password_file)} if password_file is not None else {}
    seconds = timeout.total_seconds() if timeout is not None else None
    try:
        engine = create_async_engine(
            url.difference_update_query(_TLS_OPTIONS),
            pool_size=8,
            max_overflow=4,
            pool_timeout=busy_seconds,
            connect_args={"timeout": busy_seconds, "command_timeout": seconds, **_tls_options(url), **password},
        )
    except (NoSuchModuleError, ModuleNotFoundError):
        raise SettingsError(
            "ledger.url: PostgreSQL needs the extra: pip install 'flyte-notification-dispatcher[postgres]'"
        ) from None
    _detect_poolers(engine)
    _replace_broken_connections(engine)
    if seconds is not None:
        _set_timeouts(engine, seconds, busy_seconds)
    return engine


def _tls_options(url: URL) -> dict[str, Any]:
    """Return asyncpg's options for the URL's options for TLS. asyncpg understands them only in its own URL, the DSN."""
    given = {name: value for name, value in url.query.items() if name in _TLS_OPTIONS}
    if given.get("sslrootcert") != _SYSTEM:
        return {"dsn": f"postgresql://?{urlencode(given)}"} if given else {}
    context = ssl.create_default_context()
    if "sslcert" in given:
        context.load_cert_chain(str(given["sslcert"]), given.get("sslkey"), str(given.get("sslpassword", "")))  # type: ignore[arg-type]
    return {"ssl": context}


def _leave_unreadable_home() -> None:
    """If this user may not read HOME, act as if there were no home folder.

    asyncpg looks there for certificates and passwords, as libpq does, and would fail. Containers that run as another
    user than their image's often have such a HOME.
    """
    try:
        (Path.home() / ".postgresql" / "postgresql.crt").stat()
    except PermissionError:
        os.environ["HOME"] = "/nonexistent"  # noqa: TID251 - the only way to tell asyncpg
    except (OSError, RuntimeError):
        pass


def _detect_poolers(engine: AsyncEngine) -> None:
    """Use no named prepared statements behind a connection pooler such as PgBouncer in transaction mode.

    There, the next transaction may run on another connection to PostgreSQL, which does not have the statement, or has
    another statement of the same name. A direct connection keeps its prepared statements, because they save time.
    """
    seen = False

    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Dialect, _record: object, arguments: list[Any], options: dict[str, Any]) -> Any:
        nonlocal seen
        if not seen:
            connection: Any = dialect.connect(*arguments, **options)
            try:
                seen = connection.run_async(_is_pooled)
            except BaseException as error:
                connection.driver_connection.terminate()
                if isinstance(error, Exception):
                    raise ConnectionError(f"the connection broke: {error}") from error
                raise
            if not seen:
                return connection
            connection.close()
        return dialect.connect(*arguments, **{**options, **_UNPREPARED})


async def _is_pooled(connection: Any) -> bool:
    """True if another process executes the statements than the one that asyncpg is connected to.

    A pooler invents the process id that it tells asyncpg. The query needs no prepared statement.
    """
    status: str = await connection.execute(f"SELECT 1 WHERE pg_backend_pid() <> {connection.get_server_pid()}")
    return status != "SELECT 0"


def _replace_broken_connections(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "checkout")
    def ping(connection: Any, record: Any, _proxy: object) -> None:
        # If a pooled connection does not answer, replace the whole pool. SQLAlchemy's own pre-ping would raise the
        # timeout error of a hanging server instead.
        if "used" in record.info:
            try:
                connection.ping()
            except Exception as error:
                raise InvalidatePoolError from error
        record.info["used"] = True


def _set_timeouts(engine: AsyncEngine, seconds: float, busy_seconds: float) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def set_timeouts(connection: Any, _record: object) -> None:
        # With these timeouts, the server releases our locks if this process dies in a transaction. They are set with
        # SQL statements, because PgBouncer refuses connections that set them as connection parameters.
        cursor = connection.cursor()
        cursor.execute(f"SET idle_in_transaction_session_timeout = {2 * int(1000 * seconds)}")
        cursor.execute(f"SET lock_timeout = {int(1000 * min(seconds, busy_seconds))}")
        cursor.close()
        connection.commit()

    @event.listens_for(engine.sync_engine, "handle_error")
    def drop_after_timeout(context: ExceptionContext) -> None:
        # A connection whose server does not answer can't even roll back. `is_disconnect` makes SQLAlchemy drop the
        # whole pool.
        if isinstance(context.original_exception, TimeoutError):
            context.is_disconnect = True
