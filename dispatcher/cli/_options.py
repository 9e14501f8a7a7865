"""Options that several commands share, and the parser for `--since`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The settings file.", envvar="DISPATCHER_CONFIG", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="Maximum number of entries to print, newest first.")]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        help="Only entries since this time: a duration before now (24h, 7d) or a time (2026-11-20T09:00Z).",
        show_default=False,
    ),
]


def parse_since(text: str | None, *, now: datetime) -> datetime | None:
    """Return the time that `--since` names: a time, or a duration before `now` such as 24h.

    A time without zone is UTC. Returns None if `text` is None. Raises typer.BadParameter if `text` is
    neither a duration nor a time.
    """
    from dispatcher.parsing.duration import parse_time

    if text is None:
        return None
    try:
        return parse_time(text, now=now)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from None


def no_such_channel(given: str, names: Iterable[str]) -> typer.BadParameter:
    """Return the error for a channel that is not one of `names`."""
    return typer.BadParameter(f"there is no channel {given!r}: {nearest(given, names)}")


def nearest(given: str, names: Iterable[str]) -> str:
    """Return a hint for a name that is not one of `names`: the nearest name, or else all names."""
    import difflib

    known = list(names)
    close = difflib.get_close_matches(given, known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known) or 'none'}"
