"""Opens the ledger for a command."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from dispatcher.config.sections import LedgerSettings
    from dispatcher.ledger import Ledger

_T = TypeVar("_T")


@asynccontextmanager
async def open_ledger(section: LedgerSettings) -> AsyncIterator[Ledger]:
    """Open the ledger. Changes no tables: raises LedgerIncompatible if they are missing or have to be migrated."""
    from contextlib import aclosing

    from dispatcher.ledger import Ledger

    async with aclosing(Ledger(section.url, password_file=section.password_file)) as ledger:
        await ledger.require_tables()
        yield ledger


def with_ledger(config: Path | None, use: Callable[[Ledger], Awaitable[_T]]) -> _T:
    """Open the configured ledger, call `use` with the ledger, and return the result of `use`.

    Raises SettingsError, or an error of the ledger or of `use`.
    """
    import asyncio

    from dispatcher.config.settings import load

    async def run() -> _T:
        async with open_ledger(load(config).ledger) as ledger:
            return await use(ledger)

    return asyncio.run(run())
