"""The useful part of an error: the exception's own line, and the last frames of the user's code."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dispatcher.rendering.text import clean, one_line

LONGEST = 100_000
"""Characters of an error that are looked at; of a longer one the beginning and, rather, the end."""
FRAMES = 3
_FRAME = re.compile(r'^\s*File "(?P<file>[^"\n]{1,500})", line (?P<line>\d+), in (?P<where>.{1,200})$')
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]{0,200}(?:Error|Exception|Warning|Interrupt|Exit|Timeout|Failure)\b.*")
_LIBRARY = re.compile(r"site-packages|dist-packages|/lib/python\d|flytekit|<frozen ")


@dataclass(frozen=True, slots=True)
class Story:
    """What an error message tells, in the order in which people want to know."""

    summary: str
    """The exception line; the first line where it is no traceback."""
    frames: str
    """The last frames of the user's own code, a few lines each."""
    message: str
    """All of it, cleaned."""


def tell(message: str) -> Story:
    """Read an error message as Flyte brings it."""
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 5]}\n…\n{message[-LONGEST * 4 // 5 :]}"
    text = clean(message).strip()
    lines = text.split("\n")
    return Story(one_line(_summary(lines)), _frames(lines), text)


def _summary(lines: list[str]) -> str:
    for index, line in enumerate(lines):
        if line.strip() == "Message:":  # flytekit's own way to close a traceback
            return next((after for after in lines[index + 1 :] if after.strip()), "")
    for line in reversed(lines):
        if _EXCEPTION.match(line.strip()):
            return line
    return next((line for line in lines if line.strip()), "")


def _frames(lines: list[str]) -> str:
    frames = []
    for index, line in enumerate(lines):
        if _FRAME.match(line):
            source = lines[index + 1] if index + 1 < len(lines) and not _FRAME.match(lines[index + 1]) else ""
            frames.append((line.strip(), source.strip()))
    own = [frame for frame in frames if not _LIBRARY.search(frame[0])] or frames
    return "\n".join(f"{head}\n    {source}" if source else head for head, source in own[-FRAMES:])
