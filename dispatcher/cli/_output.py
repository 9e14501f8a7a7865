"""Writes everything that commands print: lines, tables and facts for people, JSON for programs.

Commands print only through this module. It makes text safe to show (`dispatcher.safe_text`), so nothing from an event
or a provider's answer can control the terminal. It works on terminals that are not UTF-8.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

from dispatcher.safe_text import ascii_only, visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_NO_WRAP = {
    *("KEY", "ID", "STATE", "CHANNEL", "PHASE", "ATTEMPTS", "ATTEMPT", "DURATION", "BYTES", "OUTCOME", "MATCHED"),
    *("EVENT", "EXECUTION", "POSITION", "CREATED", "OCCURRED", "RECEIVED", "DUE", "LAST"),
}
"""The columns whose cells are never broken."""
MIN_TABLE = 120
"""On a narrower terminal, a table whose cells would be broken into lines is shown as records."""
_UNLIMITED = 100_000
KEY_DIGITS = 12
"""A list shows this many digits of each key. Keys of about the same time share their first five digits, so several
more are needed to tell keys apart."""
STATE_STYLES = {
    "sent": "green",
    "waiting": "yellow",
    "held": "cyan",
    "included": "cyan",
    "dead": "red",
    "retry": "yellow",
    "in_doubt": "yellow",
}


def log_warnings_only() -> None:
    """Configure the log for a command that prints its result itself."""
    import logging

    from dispatcher.observability import logs

    logs.configure("console", level=logging.WARNING)


def prepare_streams() -> None:
    """Let standard output and standard error escape what their encoding doesn't have, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write_line(text: str = "", *, err: bool = False) -> None:
    """Print one line on standard output, or on standard error."""
    _write(visible(text) + "\n", sys.stderr if err else sys.stdout)


def write_text(text: str, *, err: bool = False) -> None:
    """Print text of any number of lines as it is, without a line feed at its end."""
    _write("\r\n".join(visible(part, lines=True) for part in text.split("\r\n")), sys.stderr if err else sys.stdout)


def write_json(data: Any) -> None:
    """Print one JSON document on standard output."""
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z
    write_json_text(orjson.dumps(data, option=options).decode())


def write_json_text(document: str) -> None:
    """Print a JSON document on standard output. Its strings keep their values: the escapes are JSON's."""
    shown = visible(document, lines=True)
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf8")
    _write(shown if is_utf8 else ascii_only(shown), sys.stdout)


def write_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, head: int = 3) -> None:
    """Print a table. Rich's markup in a cell, such as `[red]`, is printed as it is and has no effect.

    On a terminal that is too narrow for it, each row is a record of some lines instead. It begins with the first `head`
    cells, and the others have their column's name.
    """
    from rich.measure import Measurement
    from rich.table import Table

    cells = [[*map(_cell, row)] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in _NO_WRAP)
    for row in cells:
        table.add_row(*row)
    screen = console()
    if not cells and screen.is_terminal:
        write_line("nothing found")
        return
    needed = Measurement.get(screen, screen.options.update(max_width=_UNLIMITED), table)
    if not screen.is_terminal:
        screen.width = max(screen.width, needed.maximum)  # one line a row, for programs that read lines
    if needed.minimum > screen.width or (screen.width < MIN_TABLE and needed.maximum > screen.width):
        from dispatcher.cli._layout import stacked

        for line in stacked(columns, cells, head=head, width=screen.width):
            screen.print(line, soft_wrap=True)
    else:
        screen.print(table)


def write_details(details: Iterable[tuple[str, Any]]) -> None:
    """Print one line for each pair of a name and a value. Pairs with an empty value are skipped."""
    from dispatcher.cli._layout import details as lines_of

    screen = console()
    given = [(visible(name), _cell(value)) for name, value in details if value not in ("", None, (), [])]
    for line in lines_of(given, width=screen.width):
        screen.print(line, soft_wrap=True)


def write_rule() -> None:
    """Print a line across the terminal."""
    console().rule(style="dim")


def write_rendered(rendered: RenderableType) -> None:
    """Print what Rich renders. The text in it has to be safe already."""
    console().print(rendered)


def console() -> Console:
    """Return Rich's console on standard output. Text from outside goes through this module's other functions."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)


def styled(text: str, style: str) -> Text:
    """Return a table's cell with a style."""
    from rich.text import Text

    return Text(visible(text, lines=True), style=style)


def state_text(state: str) -> Text:
    return styled(state, STATE_STYLES.get(state, ""))


def number_text(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 delivery` or `2 deliveries`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def time_text(time: datetime | None) -> str:
    """Format a UTC time as `2026-11-20 09:14:21`. Returns an empty text for None."""
    return time.strftime("%Y-%m-%d %H:%M:%S") if time is not None else ""


def age_text(time: datetime | None, *, now: datetime) -> str:
    """Format a time relative to now, such as `5 min ago` or `in 2 h`. Returns an empty text for None."""
    if time is None:
        return ""
    seconds = (now - time).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if abs(seconds) >= 2 * size or size == 1:
            text = f"{abs(seconds) // size:.0f} {unit}"
            return f"{text} ago" if seconds >= 0 else f"in {text}"
    raise AssertionError("a second is the last unit")


def when_text(time: datetime | None, *, now: datetime) -> str:
    """Format a time for a list: relative to now on a terminal, and in UTC for a program that reads the list."""
    return age_text(time, now=now) if sys.stdout.isatty() else time_text(time)


def waits_text(delivery: Mapping[str, Any]) -> str:
    """Return what a delivery waits for as one text, or an empty text. `delivery`: as `explain.delivery_data` returns it."""
    texts = []
    for one in delivery.get("waits_for", ()):
        key = f" ({one['delivery'][:KEY_DIGITS]})" if one["delivery"] else ""
        until = f", {time_text(one['until'])}" if one["until"] else ""
        texts.append(f"{one['text']}{key}{until}")
    return "; ".join(texts)


def _cell(value: Any) -> Text:
    from rich.text import Text

    return value if isinstance(value, Text) else styled(str(value), "")


def _write(text: str, stream: TextIO) -> None:
    stream.write(text)
    stream.flush()
