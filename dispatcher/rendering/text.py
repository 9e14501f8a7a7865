"""Foreign text made harmless: cleaned, cut with a visible ellipsis, and escaped, one function a sink."""

from __future__ import annotations

import re

import regex

ELLIPSIS = "…"
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters; tab and line feed stay
    "\u202a-\u202e\u2066-\u2069"  # bidirectional overrides: they make text read as what it is not
    "\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)
_BREAKS = re.compile(r"\s+")
_ENTITY_TORN = re.compile(r"&[a-z]{0,3}$")
_GRAPHEME = regex.compile(r"\X")


class Escaped(str):
    """Text that has been through its sink's escape already."""

    __slots__ = ()


def clean(text: str) -> str:
    """Text without terminal colours, control characters, bidirectional overrides and torn surrogates."""
    if text.isprintable():
        return text
    text = _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    return _UNPRINTABLE.sub("\ufffd", text)


def one_line(text: str) -> str:
    """Cleaned text on one line, for headers, titles and summaries."""
    return _BREAKS.sub(" ", clean(text)).strip()


def cut(text: str, limit: int) -> str:
    """At most `limit` UTF-16 units, as providers count, ending in an ellipsis where something is missing.

    Never cuts what a reader sees as one character, nor an entity in half.
    """
    if len(text) * 2 <= limit or _units(text) <= limit:
        return text
    kept: list[str] = []
    room = limit - len(ELLIPSIS)
    for match in _GRAPHEME.finditer(text[: limit + 1]):
        grapheme = match.group()
        room -= _units(grapheme)
        if room < 0:
            break
        kept.append(grapheme)
    return _ENTITY_TORN.sub("", "".join(kept)).rstrip() + ELLIPSIS


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def escape_slack(text: object) -> Escaped:
    """For Slack's mrkdwn: with these three gone no data can mention or link (Slack, "Formatting text")."""
    if isinstance(text, Escaped):
        return text
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Escaped(escaped.replace("```", "'''"))


def cut_for_slack(text: object, limit: int) -> Escaped:
    """Escape, then cut, so that the budget holds for what is sent."""
    return Escaped(cut(escape_slack(text), limit))
