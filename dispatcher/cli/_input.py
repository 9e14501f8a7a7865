"""Reads the files and the lists of keys that users give to commands. `-` is standard input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import typer

if TYPE_CHECKING:
    from dispatcher.model.event import Event

STDIN = Path("-")
MAX_NAMED = 500
"""Maximum number of keys or ids that one command takes."""


def opened(file: Path) -> AbstractContextManager[BinaryIO]:
    """Open a file to read its bytes. Raises BadParameter, which names the file, if it can't be opened."""
    if file == STDIN:
        return nullcontext(sys.stdin.buffer)
    try:
        return file.open("rb")
    except OSError as error:
        raise typer.BadParameter(f"{file}: can't be read: {error.strerror}") from None


def name_of(file: Path) -> str:
    """Return what a message calls the file."""
    return "standard input" if file == STDIN else str(file)


def event_in(file: Path) -> Event:
    """Return the event in a file. Raises BadParameter, which names the file, if there is none."""
    from dispatcher.errors import Unreadable
    from dispatcher.flyte.event_files import read_event

    try:
        with opened(file) as content:
            return read_event(content)
    except Unreadable as problem:
        raise typer.BadParameter(f"{name_of(file)}: {problem}") from None


def named(arguments: Sequence[str] | None) -> list[str]:
    """Return the keys or ids that the user gives, with the lines of standard input in place of `-`.

    Raises BadParameter if they are too many, or if standard input has none: without keys, a command may mean all.
    """
    given = [*(arguments or ())]
    if "-" in given:
        lines = [line.strip() for line in sys.stdin if line.strip()]
        if not lines:
            raise typer.BadParameter("standard input names nothing: write one on each line")
        at = given.index("-")
        given[at : at + 1] = lines
    if len(given) > MAX_NAMED:
        raise typer.BadParameter(f"at most {MAX_NAMED} at a time: use filters, or split the list, as xargs -n does")
    return given
