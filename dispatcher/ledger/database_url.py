"""Checks the ledger's URL before anything is opened, and names its database in messages, without the password."""

from __future__ import annotations

from pathlib import Path
from stat import S_ISDIR

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from dispatcher.errors import SettingsError
from dispatcher.ledger import postgres


def checked_url(url: str) -> URL:
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
        return postgres.checked_url(parsed)
    raise SettingsError(f"ledger.url: no such kind of ledger, {backend!r}; there are sqlite and postgresql")


def _checked_sqlite(url: URL) -> URL:
    if url.host or not url.database or url.database == ":memory:":  # which SQLite keeps in one connection only
        raise SettingsError("ledger.url: names no file; write sqlite+aiosqlite:///./dispatcher.db")
    if url.query:
        raise SettingsError(f"ledger.url: a file takes no options, and there is {next(iter(url.query))!r}")
    _check_file(Path(url.database))
    return url


def file_exists(url: URL) -> bool:
    """True if the file of an SQLite URL exists. A connection would create it."""
    return Path(str(url.database)).exists()


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


def place(url: URL) -> str:
    """Return the database's location for error messages, without user and password."""
    if url.get_backend_name() == "sqlite":
        return f"the file {url.database}"
    server = f" at {url.host}{f':{url.port}' if url.port else ''}" if url.host else ""
    return f"PostgreSQL{server}"
