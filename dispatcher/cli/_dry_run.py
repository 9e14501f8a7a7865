"""Makes a dry run for a command."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dispatcher.cli._output import write_line

if TYPE_CHECKING:
    from dispatcher.config.settings import Settings
    from dispatcher.dry_run import DryRun
    from dispatcher.rules import RuleBook

_T = TypeVar("_T")


def dry_run(settings: Settings, use: Callable[[DryRun], Awaitable[_T]]) -> _T:
    """Call `use` with a dry run by the settings' rules, and return the result of `use`.

    Prints the invalid rules on standard error. Raises SettingsError, or an error of `use`.
    """
    import asyncio

    from dispatcher.clock import SystemClock
    from dispatcher.dry_run import DryRun
    from dispatcher.runtime.wiring import configured_flyte_admin, make_planner, open_channels

    book = rules_in_files(settings)

    async def run() -> _T:
        clock = SystemClock()
        async with configured_flyte_admin(settings, clock) as admin:
            return await use(DryRun(lambda: book, make_planner(settings, open_channels(settings)), clock, admin))

    return asyncio.run(run())


def rules_in_files(settings: Settings, routes: Sequence[Path] | None = None) -> RuleBook:
    """Return the rules in files, and print the invalid ones on standard error.

    `routes`: files and folders with routes, in place of those in the settings.
    """
    from dispatcher.runtime.wiring import make_rule_files

    rules = make_rule_files(settings, routes)
    rules.load()
    for refused in rules.problems:
        write_line(str(refused), err=True)
    return rules.book
