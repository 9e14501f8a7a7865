"""A ledger for tests, in SQLite and in PostgreSQL, and its database for what no method of the ledger does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from dispatcher.ledger import Ledger
from dispatcher.ledger.engine import Database


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new ledger. Each test that uses it runs with SQLite and with PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def ledger(ledger_url: str) -> AsyncIterator[Ledger]:
    """A new ledger, open. Some test files have a fixture of this name with SQLite alone."""
    async with Ledger(ledger_url) as opened:
        yield opened


@asynccontextmanager
async def opened_database(url: str) -> AsyncIterator[Database]:
    """The database at this URL, with connections of its own."""
    database = Database(url)
    try:
        yield database
    finally:
        await database.aclose()


@contextmanager
def captured_statements() -> Iterator[list[tuple[str, Any]]]:
    """Collect the statements that any ledger of this process executes in the block, with their parameters."""
    statements: list[tuple[str, Any]] = []

    def capture(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        statements.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", capture)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", capture)


async def execute(url: str, *statements: str) -> None:
    """Execute SQL statements in one transaction."""
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()
