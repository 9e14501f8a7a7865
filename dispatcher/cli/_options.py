"""Options that several commands share, and the parser for `--since`."""

from __future__ import annotations

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
