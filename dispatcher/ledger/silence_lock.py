"""Lets nothing be recorded by silences that have changed.

Matchers are compared with events before the transaction that records, by silences of one version. This transaction takes
a shared lock and compares the version. A transaction that changes silences takes the exclusive lock and counts the
version up. So whatever was recorded by the old silences is committed before the change, and `silencing` finds it among
what waits.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, bindparam, select, update

from dispatcher.errors import SilencesChanged
from dispatcher.ledger.schema import silences, silences_version

# Key of the PostgreSQL advisory lock of silences. It spells "silence" in ASCII. SQLite has one writer at a time.
_LOCK = 0x73696C656E6365
_SHARED = "SELECT pg_advisory_xact_lock_shared($1)"
_EXCLUSIVE = "SELECT pg_advisory_xact_lock($1)"
VERSION = select(silences_version.c.version)
_LATER = select(silences.c.id).where(silences.c.ends_at > bindparam("since")).limit(1)
_CHANGED = update(silences_version).values(version=silences_version.c.version + 1)


def require_version(connection: Connection, version: int) -> None:
    """Keep silences from being changed until the transaction ends. Raises SilencesChanged if they have another version."""
    share(connection)
    if connection.scalar(VERSION) != version:
        raise SilencesChanged


def any_may_cover(connection: Connection, since: datetime) -> bool:
    """True if there are silences that end after this time. Keeps silences from being changed until the transaction ends."""
    share(connection)
    return connection.scalar(_LATER, {"since": since}) is not None


def share(connection: Connection) -> None:
    """Keep silences from being changed until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_SHARED, (_LOCK,))


def change(connection: Connection) -> None:
    """Wait until nothing is being recorded by the silences as they are, and count their version up."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_EXCLUSIVE, (_LOCK,))
    connection.execute(_CHANGED)
