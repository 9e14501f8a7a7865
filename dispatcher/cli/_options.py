"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The settings file.", envvar="DISPATCHER_CONFIG", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most, newest first.")]
Since = Annotated[
    str | None,
    typer.Option(
        "--since", help="Only newer ones: a span (24h, 7d) or a time (2026-11-20T09:00Z).", show_default=False
    ),
]


def moment(text: str | None, *, now: datetime) -> datetime | None:
    """Read `--since`: so long ago, or that time; one without a zone is UTC. Raises typer.BadParameter."""
    from dispatcher.parsing.duration import parse_moment

    if text is None:
        return None
    try:
        return parse_moment(text, now=now)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from None
