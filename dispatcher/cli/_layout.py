"""Lays out records and details as lines, for terminals that are too narrow for a table. No word is ever broken.

A word that is longer than the line stays whole: the terminal breaks it on the screen, and a copy of it is still whole.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from rich.text import Text

_INDENT = "  "
_SEPARATOR = "  "


def stacked(columns: Sequence[str], rows: Iterable[Sequence[Text]], *, head: int, width: int) -> Iterator[Text]:
    """Yield the lines of each row, as a record: the first `head` cells, and then the others with their columns' names.

    Empty cells are left out. Short cells share a line.
    """
    for row in rows:
        cells = [(column, cell) for column, cell in zip(columns, row, strict=True) if cell.plain]
        items = [cell if column in columns[:head] else _labelled(column, cell) for column, cell in cells]
        yield from _packed(items, width)


def _labelled(column: str, cell: Text) -> Text:
    return Text.assemble((f"{column.lower()} ", "dim"), cell)


def _packed(items: Iterable[Text], width: int) -> Iterator[Text]:
    """Yield lines with as many items as fit. The first line has no indentation."""
    line = Text()
    indent = ""
    for item in items:
        longer = Text.assemble(line, _SEPARATOR if line.plain.strip() else "", item)
        if "\n" not in item.plain and longer.cell_len <= width:
            line = longer
            continue
        if line.plain.strip():
            yield line
            indent = _INDENT
        *whole, line = _wrapped(item, width, first=indent, rest=indent + _INDENT)
        yield from whole
        indent = _INDENT
        if whole:  # a long item keeps its lines to itself
            yield line
            line = Text(indent)
    if line.plain.strip():
        yield line


def details(pairs: Sequence[tuple[str, Text]], *, width: int) -> Iterator[Text]:
    """Yield the lines of a list of names and values, with all values in one column."""
    column = max((len(name) for name, _ in pairs), default=0) + 2
    for name, value in pairs:
        lines = _wrapped(value, width, first=" " * column, rest=" " * column)
        lines[0] = Text.assemble((name.ljust(column), "dim"), lines[0][column:])
        yield from lines


def _wrapped(text: Text, width: int, *, first: str, rest: str) -> list[Text]:
    """Return the text's lines, broken at spaces, with the indentation of the first line and of the others."""
    lines: list[Text] = []
    for part in text.split("\n", allow_blank=True):
        limit = max(width - len(rest), 20)
        wrapper = textwrap.TextWrapper(
            limit, break_long_words=False, break_on_hyphens=False, expand_tabs=False, replace_whitespace=False
        )
        at = 0
        for chunk in wrapper.wrap(part.plain) or [""]:
            at = part.plain.index(chunk[:1], at) if chunk else at
            lines.append(Text.assemble(first if not lines else rest, part[at : at + len(chunk)]))
            at += len(chunk)
    return lines
