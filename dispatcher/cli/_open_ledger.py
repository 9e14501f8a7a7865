"""Opens the ledger for a command."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from dispatcher.config.settings import Settings
    from dispatcher.ledger import Ledger

_T = TypeVar("_T")


@asynccontextmanager
async def open_ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """Open the ledger. Changes no tables: raises LedgerIncompatible if they are missing or have to be migrated."""
    from contextlib import aclosing

    from dispatcher.ledger import Ledger

    where, longest = settings.ledger, settings.holds.longest
    async with aclosing(Ledger(where.url, password_file=where.password_file, longest_hold=longest)) as ledger:
        await ledger.require_tables()
        yield ledger


def with_ledger(config: Path | None, use: Callable[[Ledger], Awaitable[_T]]) -> _T:
    """Open the configured ledger, call `use` with the ledger, and return the result of `use`.

    Raises SettingsError, or an error of the ledger or of `use`.
    """
    import asyncio

    from dispatcher.config.settings import load

    async def run() -> _T:
        async with open_ledger(load(config)) as ledger:
            return await use(ledger)

    return asyncio.run(run())
