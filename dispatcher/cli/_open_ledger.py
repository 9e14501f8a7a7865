"""Opens the ledger for a command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from dispatcher.ledger import Ledger

_T = TypeVar("_T")


def with_ledger(config: Path | None, use: Callable[[Ledger], Awaitable[_T]]) -> _T:
    """Open the configured ledger, call `use` with the ledger, and return the result of `use`.

    Raises SettingsError, or an error of the ledger or of `use`.
    """
    import asyncio

    from dispatcher.config.settings import load
    from dispatcher.ledger import Ledger

    async def run() -> _T:
        section = load(config).ledger
        async with Ledger(section.url, password_file=section.password_file) as ledger:
            return await use(ledger)

    return asyncio.run(run())
