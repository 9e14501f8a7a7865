"""Foreign text made harmless: cleaned, cut with a visible ellipsis, and escaped, one function a sink."""

from __future__ import annotations

import re

import regex
from markupsafe import Markup, escape

ELLIPSIS = "…"
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters; tab and line feed stay
    "\u202a-\u202e\u2066-\u2069"  # bidirectional overrides: they make text read as what it is not
    "\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)
_MARKDOWN = re.compile(r"[\\`*_~\[\]()]")
_TORN = re.compile(r"(?:&[a-z]{0,3}|<[^<>]*)$")
_FENCE = "```"
_GRAPHEME = regex.compile(r"\X")


class Escaped(str):
    """Text that has been through its sink's escape already."""

    __slots__ = ()


def clean(text: str) -> str:
    """Text without terminal colours, control characters, bidirectional overrides and torn surrogates."""
    if text.replace("\n", "").replace("\t", "").isprintable():  # nearly always, and no pattern is as fast
        return text
    text = _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    return _UNPRINTABLE.sub("\ufffd", text)


def one_line(text: str) -> str:
    """Cleaned text on one line, for headers, titles and summaries."""
    if text.isprintable() and "  " not in text:  # of all spaces only U+0020 is printable
        return text.strip()
    return " ".join(clean(text).split())


def cut(text: str, limit: int) -> str:
    """At most `limit` UTF-16 units, as providers count, ending in an ellipsis where something is missing.

    Never cuts what a reader sees as one character.
    """
    return text if _fits(text, limit) else _beginning(text, limit - len(ELLIPSIS)).rstrip() + ELLIPSIS


def escape_html(text: object) -> str:
    """For HTML, in text and in attributes, as MarkupSafe does it; what that calls safe stays as it is."""
    if type(text) is not str:
        return text if type(text) is Markup else escape(text)
    harmless = text.replace("&", "&amp;").replace(">", "&gt;").replace("<", "&lt;")
    return harmless.replace("'", "&#39;").replace('"', "&#34;")


def escape_slack(text: object) -> str:
    """For Slack's mrkdwn: with these three gone no data can mention or link (Slack, "Formatting text")."""
    if isinstance(text, Escaped):
        return text
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace(_FENCE, "'''")


def escape_markdown(text: object) -> str:
    """For Markdown, as Teams' TextBlock reads it: data can neither link nor format."""
    return _MARKDOWN.sub(lambda found: "\\" + found[0], str(text))


def cut_mrkdwn(text: str, limit: int) -> str:
    """`cut` for text in Slack's mark-up: leaves no entity, link or code block torn."""
    if _fits(text, limit):
        return text
    short = _whole(text, limit)
    if short.count(_FENCE) % 2:
        short = _whole(text, limit - len(_FENCE))
    closing = _FENCE if short.count(_FENCE) % 2 else ""
    return short + ELLIPSIS + closing


def cut_for_slack(text: object, limit: int) -> Escaped:
    """Escape, then cut, so that the budget holds for what is sent."""
    return Escaped(cut_mrkdwn(escape_slack(text), limit))


def _whole(text: str, limit: int) -> str:
    return _TORN.sub("", _beginning(text, limit - len(ELLIPSIS))).rstrip().rstrip("`")


def _beginning(text: str, limit: int) -> str:
    """As many whole characters as fit; only so much of the text is looked at."""
    end = used = 0
    for grapheme in _GRAPHEME.finditer(text[: max(limit, 0) + 1]):
        used += _units(grapheme.group())
        if used > limit:
            break
        end = grapheme.end()
    return text[:end]


def _fits(text: str, limit: int) -> bool:
    return len(text) * 2 <= limit or (len(text) <= limit and _units(text) <= limit)


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
