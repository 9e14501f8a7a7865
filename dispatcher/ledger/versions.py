"""The version of the ledger's tables: which version this code needs, and the migration to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError

from dispatcher.errors import LedgerIncompatible
from dispatcher.ledger.failures import cause
from dispatcher.ledger.schema import compatibility

HEAD = "0001_b1168e4c"
"""The version of the newest migration: its number, and a hash of the tables that all migrations create. A test checks
both."""
COMPATIBLE = HEAD
"""The oldest version whose code can work with the tables of `HEAD` and read the rows that this version writes.

The ledger stores this value, so that older replicas may start beside newer replicas. Raise it only when a migration
removes or narrows something that older code uses, or when this version writes something that older code can't read,
such as contents with another compression.
"""
_VERSION = re.compile(r"(\d{4})_[0-9a-f]{8}")
_DUPLICATE_TABLE = "42P07"


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

    def require_compatible(self) -> Schema:
        """Return this schema. Raises LedgerIncompatible, with what to do, if this code can't work with the tables."""
        if self.compatible:
            return self
        if self.newer:
            raise LedgerIncompatible(
                f"the ledger is at version {self.version}, this dispatcher knows versions up to {HEAD}: "
                "it was made by a newer one; upgrade this one"
            )
        state = "has no tables yet" if self.version is None else f"is at version {self.version}"
        raise LedgerIncompatible(
            f"the ledger {state}, and this dispatcher needs version {HEAD}: run `dispatcher ledger migrate`"
        )


def _number(version: str | None) -> int:
    """Return a version's number, which is higher in later releases; 0 if the text is no version of a release."""
    parsed = _VERSION.fullmatch(version or "")
    return int(parsed[1]) if parsed else 0


def read_schema(connection: Connection) -> Schema:
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


def upgrade(connection: Connection, place: str) -> Schema:
    before = read_schema(connection)
    if before.compatible or before.newer:
        return before.require_compatible()
    from alembic import command  # noqa: PLC0415 - imported only here, because Alembic takes megabytes of memory and few starts migrate

    try:
        command.upgrade(alembic_config(connection), "head")
    except DBAPIError as error:
        if not _is_duplicate_table(error):
            raise
        raise LedgerIncompatible(
            f"ledger.url: {place} has another program's tables ({cause(error)}): the ledger needs its own database"
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
