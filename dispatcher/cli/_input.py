"""Reads the files and the lists of keys that users give to commands. `-` is standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import typer

if TYPE_CHECKING:
    from dispatcher.model.event import Event

STDIN = Path("-")


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """Open a file to read its bytes. Raises OSError."""
    if file == STDIN:
        yield sys.stdin.buffer
        return
    with file.open("rb") as content:
        yield content


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
    except (OSError, Unreadable) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise typer.BadParameter(f"{name_of(file)}: {reason}") from None


def named(arguments: Sequence[str] | None) -> list[str]:
    """Return the keys or ids that the user gives, with the lines of standard input in place of `-`.

    Raises BadParameter if standard input has none, because a command without keys may mean all deliveries.
    """
    given = [*(arguments or ())]
    if "-" not in given:
        return given
    lines = [line.strip() for line in sys.stdin if line.strip()]
    if not lines:
        raise typer.BadParameter("standard input names nothing: give one on each line")
    at = given.index("-")
    return [*given[:at], *lines, *given[at + 1 :]]
