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
_OUTPUT = re.compile(r"terminated with exit code \(.{1,40}\bMessage:\s*$")
"""A container's end, in flyteplugins' words (`flytek8s/pod_helper.go`). The last lines of the container's output follow."""
_WORD = re.compile(r"[^\W_]")
_MARGIN = " \t|"


class ErrorSummary(NamedTuple):
    """The parts of an error message, most useful first."""

    summary: str
    """The line with the exception, or the first line if the message is not a traceback."""
    detail: str
    """The line below it; empty if that line is blank. The output of a container may begin anywhere, so there it is the
    last line."""
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
    return _summarized(message)


@lru_cache(maxsize=16)  # cached, because intake reads a message for the event's cause, and again for what it shows
def _summarized(message: str) -> ErrorSummary:
    text = clean(message).strip()
    lines = text.split("\n")
    frames = _frames(lines) if 'File "' in text else []
    node = _NODE.search(text) if "Node[" in text else None
    index, first = _summary(lines, frames)
    summary, detail = [cut(one_line(one), LONGEST_SUMMARY) for one in (first, _detail(lines, index, first))]
    return ErrorSummary(summary, detail, _user_frames(frames, lines), node[1] if node else "", text)


def _frames(lines: list[str]) -> list[_Frame]:
    return [
        _Frame(index, *match.groups())
        for index, line in enumerate(lines)
        if 'File "' in line and (match := _FRAME.match(line))
    ]


def _summary(lines: list[str], frames: list[_Frame]) -> tuple[int, str]:
    """Return the index of the line that says most, and what it says."""
    for index, line in enumerate(lines):
        if line.strip() == "Message:":  # flytekit puts the exception after this line
            return next(((at, lines[at]) for at in range(index + 1, len(lines)) if lines[at].strip()), (index, ""))
    if frames:  # the line with the exception follows its frames, with a smaller indent
        last = frames[-1]
        for index, line in enumerate(lines[last.line + 1 :], last.line + 1):
            text = line.lstrip(_MARGIN)
            if text and len(line) - len(text) < len(last.margin):
                return index, text
    for index in reversed(range(len(lines))):
        if _EXCEPTION.match(lines[index].strip()):
            return index, lines[index]
    texts = ((index, _ATTEMPT.sub("", line).strip()) for index, line in enumerate(lines))
    return next(((index, text) for index, text in texts if text), (0, ""))


def _detail(lines: list[str], index: int, summary: str) -> str:
    """Return the line that says more than the summary, which is the line with this index."""
    below = lines[index + 1 :]
    if _OUTPUT.search(summary):
        below = [line for line in below if _WORD.search(line)][-1:]
    return below[0].lstrip(_MARGIN) if below else ""


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
