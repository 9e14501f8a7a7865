"""The tables and their version, on SQLite and on PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest


async def test_the_migrations_create_the_tables_that_the_code_expects(ledger_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import inspect
    from sqlalchemy.engine import Connection

    from dispatcher.ledger.engine import Database
    from dispatcher.ledger.schema import metadata
    from dispatcher.ledger.versions import HEAD, alembic_config

    database = Database(ledger_url)
    await database.migrate()

    def differences(connection: Connection) -> list[Any]:
        assert ScriptDirectory.from_config(alembic_config(connection)).get_current_head() == HEAD

        def for_this_dialect(table: Any, *_: object) -> bool:
            return bool(table.info.get("only", connection.dialect.name) == connection.dialect.name)

        context = MigrationContext.configure(connection, opts={"include_object": for_this_dialect})
        return list(compare_metadata(context, metadata))

    def indexes(connection: Connection) -> set[str | None]:
        return {index["name"] for index in inspect(connection).get_indexes("events")}

    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []
        assert ("ix_events_name" in await connection.run_sync(indexes)) == (not database.sqlite)
    await database.aclose()


async def test_a_ledger_of_a_newer_incompatible_version_is_refused(ledger_url: str) -> None:
    from sqlalchemy import text

    from dispatcher.errors import LedgerIncompatible
    from dispatcher.ledger.engine import Database

    database = Database(ledger_url)
    await database.migrate()
    async with database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999_00000000'"))
        await connection.execute(text("UPDATE compatibility SET oldest = '9999_00000000'"))
    with pytest.raises(LedgerIncompatible, match="made by a newer one"):
        await database.migrate()
    await database.aclose()
