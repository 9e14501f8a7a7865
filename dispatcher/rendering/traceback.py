"""Extracts parts of an error message: the line with the exception, the last frames of the user's code, and the failed
node.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from channels.common.text import cut
from dispatcher.rendering.text import clean, one_line

LONGEST = 100_000
"""Maximum number of characters of an error message that are read. The middle of a longer message is left out."""
LONGEST_SUMMARY = 1000
FRAMES = 3
LONGEST_LINE = 300
_FRAME = re.compile(r'^(?P<margin>[\s|]*)(?P<head>File "(?P<file>[^"\n]{1,500})", line \d+(?:, in .{1,200})?)$')
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]{0,200}(?:Error|Exception|Warning|Interrupt|Exit|Timeout|Failure)\b.*")
_LIBRARY = re.compile(r"site-packages|dist-packages|/lib/python\d|/flytekit/|<frozen ")
_ATTEMPT = re.compile(r"^\[\d+/\d+\] currentAttempt done\. Last Error: [A-Z]+::\s*")
_NODE = re.compile(r"\bNode\[([\w-]{1,100})\]")
_MARGIN = " \t|"


class ErrorSummary(NamedTuple):
    """The parts of an error message, most useful first."""

    summary: str
    """The line with the exception, or the first line if the message is not a traceback."""
    frames: str
    """The last frames of the user's own code, a few lines each."""
    node: str
    """The name of the node that failed, if the message names it."""
    message: str
    """The whole message after `clean`, which makes it safe to show."""


class _Frame(NamedTuple):
    line: int
    margin: str
    head: str
    file: str


def summarize(message: str) -> ErrorSummary:
    """Extract the parts of a Flyte event's error message that a notification shows."""
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 5]}\n…\n{message[-LONGEST * 4 // 5 :]}"
    text = clean(message).strip()
    lines = text.split("\n")
    frames = _frames(lines) if 'File "' in text else []
    node = _NODE.search(text) if "Node[" in text else None
    summary = cut(one_line(_summary(lines, frames)), LONGEST_SUMMARY)
    return ErrorSummary(summary, _user_frames(frames, lines), node[1] if node else "", text)


def _frames(lines: list[str]) -> list[_Frame]:
    return [
        _Frame(index, *match.groups())
        for index, line in enumerate(lines)
        if 'File "' in line and (match := _FRAME.match(line))
    ]


def _summary(lines: list[str], frames: list[_Frame]) -> str:
    for index, line in enumerate(lines):
        if line.strip() == "Message:":  # flytekit puts the exception after this line
            return next((after for after in lines[index + 1 :] if after.strip()), "")
    if frames:  # the line with the exception follows its frames, with a smaller indent
        last = frames[-1]
        for line in lines[last.line + 1 :]:
            text = line.lstrip(_MARGIN)
            if text and len(line) - len(text) < len(last.margin):
                return text
    for line in reversed(lines):
        if _EXCEPTION.match(line.strip()):
            return line
    return next((text for line in lines if (text := _ATTEMPT.sub("", line).strip())), "")


def _user_frames(frames: list[_Frame], lines: list[str]) -> str:
    """Format the last `FRAMES` frames, each with its source line. Frames in libraries are left out, unless all frames
    are in libraries.
    """
    selected = [frame for frame in frames if not _in_library(frame.file)] or frames
    heads = {frame.line for frame in frames}
    shown = []
    for frame in selected[-FRAMES:]:
        shown.append(frame.head)
        source = lines[frame.line + 1].strip(_MARGIN) if frame.line + 1 < len(lines) else ""
        if source and frame.line + 1 not in heads:
            shown.append(f"    {cut(source, LONGEST_LINE)}")
    return "\n".join(shown)


@lru_cache(maxsize=1024)  # cached, because tracebacks name the same files again and again
def _in_library(file: str) -> bool:
    return _LIBRARY.search(file) is not None
