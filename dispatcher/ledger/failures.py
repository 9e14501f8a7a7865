"""Tells errors of the database apart: it can't be used now, or it refuses what it was given. Words them for people."""

from __future__ import annotations

import os
import socket
import sqlite3
import ssl

from sqlalchemy.exc import DatabaseError, DBAPIError, InterfaceError, OperationalError

from channels.common.tls import untrusted_certificate
from dispatcher.errors import LedgerFailed

_UNAVAILABLE_SQLSTATES = ("08", "25006", "28", "3D", "40", "42501", "53", "55", "57", "58", "F0", "XX")
"""Prefixes of PostgreSQL's error codes which mean that the statement is correct, but the database can't execute it now.
In this order: lost connection, read-only standby, refused login, missing database, deadlock, missing permission, full
disk, lock not available, shutdown, I/O error, and two for broken files. Source: PostgreSQL's manual, appendix A."""
_REASON_CHARACTERS = 300
"""Maximum number of characters of an error's text, because asyncpg's errors contain the values of a whole column."""


def is_unavailable(error: DBAPIError) -> bool:
    """True if the database can't execute a correct statement now; False for a wrong statement."""
    if refuses_value(error):
        return False
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return True
    if isinstance(error.orig, sqlite3.Error):
        return type(error) is DatabaseError  # raised if the file is damaged or is no database
    return str(getattr(error.orig, "sqlstate", None)).startswith(_UNAVAILABLE_SQLSTATES)


def refuses_value(error: DBAPIError) -> bool:
    """True if asyncpg itself can't use a value: of a statement (`DataError`), or of the URL's options. SQLAlchemy takes
    these errors for an InterfaceError.
    """
    return isinstance(getattr(error.orig, "__cause__", None), ValueError)


def failed(error: Exception) -> LedgerFailed:
    """Return the error for callers. Its kind is the type of the driver's error, or of Python's error."""
    origin = error.orig if isinstance(error, DBAPIError) else None
    kind = type((origin and origin.__cause__) or origin or error).__name__
    return LedgerFailed(kind, cause(error)[:_REASON_CHARACTERS])


def cause(error: BaseException) -> str:
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
