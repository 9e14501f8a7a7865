"""`dispatcher ledger`: the ledger's tables, brought up to date before the replicas that need them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dispatcher.cli._options import Config

if TYPE_CHECKING:
    from dispatcher.ledger import Schema

ledger = typer.Typer(name="ledger", help="The ledger's tables: what version they are, and bringing them up to date.")


@ledger.command()
def migrate(config: Config = None) -> None:
    """Bring the tables up to date, beside replicas at work; `serve` does so too. Waits half a minute for the ledger."""
    import asyncio
    import logging

    from dispatcher.config.settings import load
    from dispatcher.ledger import HEAD
    from dispatcher.observability import logs
    from dispatcher.runtime.service import migrated

    logs.configure("console", level=logging.WARNING)
    before = asyncio.run(migrated(load(config).ledger))
    if before.version is None:
        typer.echo(f"ledger     made, at version {HEAD}")
    elif before.serves:
        typer.echo(f"ledger     {_as_it_is(before)}")
    else:
        typer.echo(f"ledger     brought from version {before.version} to {HEAD}")


@ledger.command()
def status(config: Config = None) -> None:
    """Say what version the tables are. Exit status 1 where this dispatcher has to migrate them, or can't use them."""
    import asyncio

    from dispatcher.config.settings import LedgerSettings, load
    from dispatcher.ledger import Ledger

    async def ask(section: LedgerSettings) -> Schema:
        asked = Ledger(section.url, section.timeout, section.password_file)
        try:
            return await asked.schema()
        finally:
            await asked.aclose()

    found = asyncio.run(ask(load(config).ledger))
    typer.echo(f"ledger     {_as_it_is(found)}")
    if not found.serves:
        typer.echo("upgrade this dispatcher" if found.newer else "run dispatcher ledger migrate, or serve", err=True)
        raise typer.Exit(1)


def _as_it_is(found: Schema) -> str:
    from dispatcher.ledger import HEAD

    if found.version is None:
        return f"has no tables yet; this dispatcher's are version {HEAD}"
    if found.version == HEAD:
        return f"at version {HEAD}, this dispatcher's own"
    if not found.newer:
        return f"at version {found.version}, and this dispatcher's is {HEAD}"
    since = f"versions from {found.oldest} on" if found.oldest else "newer versions alone"
    return f"at version {found.version}, which serves {since}; this dispatcher's is {HEAD}"
