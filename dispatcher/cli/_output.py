"""Prints tables for people and JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

console = Console(width=None if sys.stdout.isatty() else 200)
_NO_WRAP = {"KEY", "ID", "STATE", "CHANNEL", "ATTEMPTS", "ATTEMPT", "DURATION", "BYTES"}
STATE_STYLES = {"sent": "green", "waiting": "yellow", "dead": "red", "retry": "yellow", "in_doubt": "yellow"}


def write_json(data: Any) -> None:
    """Print one JSON document on standard output."""
    sys.stdout.buffer.write(
        orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)
    )
    sys.stdout.buffer.flush()


def write_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table. Rich's markup in a cell, such as `[red]`, is printed as it is and has no effect."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in _NO_WRAP)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    console.print(table)


def write_details(details: Iterable[tuple[str, Any]]) -> None:
    """Print one line for each pair of a name and a value. Pairs with an empty value are skipped."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in details:
        if value not in ("", None, (), []):
            table.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    console.print(table)


def state_text(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(state, ""))


def time_text(time: datetime | None) -> str:
    """Format a UTC time as `2026-11-20 09:14:21`. Returns an empty text for None."""
    return time.strftime("%Y-%m-%d %H:%M:%S") if time is not None else ""
