"""`dispatcher ledger`: shows the version of the ledger's tables, migrates them, and lists operators' actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dispatcher.cli._open_ledger import with_ledger
from dispatcher.cli._operations import write_actions
from dispatcher.cli._options import AsJson, Config, Limit, Since, parse_since
from dispatcher.cli._output import log_warnings_only, write_json, write_line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dispatcher.config.sections import LedgerSettings
    from dispatcher.ledger import Ledger, Schema

ledger = typer.Typer(name="ledger", help="Show or migrate the ledger's tables, or list actions.")


@ledger.command()
def migrate(config: Config = None, as_json: AsJson = False) -> None:
    """Create the ledger's tables, or migrate them to this version. Replicas can run during the
    migration. Of the other commands, only `serve` changes tables, when it starts. If the ledger cannot be
    reached, the command tries again for up to 30 seconds.
    """
    import asyncio

    from dispatcher.config.settings import load
    from dispatcher.ledger import HEAD
    from dispatcher.runtime import migration

    log_warnings_only()
    before = asyncio.run(_with_ledger(load(config).ledger, migration.open_tables))
    if as_json:
        write_json({"version": before.version if before.compatible else HEAD, "version_before": before.version})
    elif before.version is None:
        write_line(f"ledger     created, at version {HEAD}")
    elif before.compatible:
        write_line(f"ledger     {_describe(before)}")
    else:
        write_line(f"ledger     migrated from version {before.version} to {HEAD}")


@ledger.command()
def status(config: Config = None, as_json: AsJson = False) -> None:
    """Show the version of the tables. Exit status 1 if the tables must be migrated, or this dispatcher is too old."""
    import asyncio

    from dispatcher.config.settings import load
    from dispatcher.ledger import HEAD, Ledger

    found = asyncio.run(_with_ledger(load(config).ledger, Ledger.schema))
    if as_json:
        write_json({"version": found.version, "needed": HEAD, "compatible": found.compatible, "newer": found.newer})
    else:
        write_line(f"ledger     {_describe(found)}")
    if not found.compatible:
        write_line("upgrade this dispatcher" if found.newer else "run dispatcher ledger migrate, or serve", err=True)
        raise typer.Exit(1)


async def _with_ledger(section: LedgerSettings, read: Callable[[Ledger], Awaitable[Schema]]) -> Schema:
    """Call `read` with a ledger that is not migrated."""
    from contextlib import aclosing

    from dispatcher.ledger import Ledger

    async with aclosing(Ledger(section.url, section.timeout, section.password_file)) as unopened:
        return await read(unopened)


@ledger.command()
def actions(config: Config = None, since: Since = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List what operators did, newest first. These are redrives, retries, cancellations, dismissals, replays and purges."""
    from dataclasses import asdict

    from dispatcher.clock import SystemClock

    start = parse_since(since, now=SystemClock().now())
    found = with_ledger(config, lambda ledger: ledger.history.latest_actions(limit=limit, since=start))
    data = [asdict(action) for action in found]
    write_json(data) if as_json else write_actions(data)


def _describe(found: Schema) -> str:
    from dispatcher.ledger import HEAD

    if found.version is None:
        return f"has no tables yet; this dispatcher needs version {HEAD}"
    if found.version == HEAD:
        return f"at version {HEAD}, up to date"
    if not found.newer:
        return f"at version {found.version}; this dispatcher needs {HEAD}"
    usable_by = f"usable by versions from {found.oldest} on" if found.oldest else "usable by newer versions only"
    return f"at version {found.version}, {usable_by}; this dispatcher's is {HEAD}"
