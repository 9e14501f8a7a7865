"""How commands ask the ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from dispatcher.ledger import Ledger

_T = TypeVar("_T")


def ask(config: Path | None, question: Callable[[Ledger], Awaitable[_T]]) -> _T:
    """Open the configured ledger for one question. Raises what `settings.load` and the ledger raise."""
    import asyncio

    from dispatcher.config.settings import load
    from dispatcher.ledger import Ledger

    async def asking() -> _T:
        section = load(config).ledger
        async with Ledger(section.url, password_file=section.password_file) as ledger:
            return await question(ledger)

    return asyncio.run(asking())
