"""Makes untrusted text safe to show: cleans it, cuts it with an ellipsis, and escapes it for HTML, Slack or
Markdown.
"""

from __future__ import annotations

import re
from bisect import bisect_right

import regex
from markupsafe import Markup, escape

ELLIPSIS = "…"
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, except tab and line feed
    "\u202a-\u202e\u2066-\u2069"  # bidirectional overrides: they reorder the text that a reader sees
    "\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)
_MARKDOWN = re.compile(r"[\\`*_~\[\]()]")
_LINE_START = re.compile(r"(^|[\n\r])([ \t]*)([-+#=>|:]|[0-9]{1,9}\.(?=\s|$))?")
"""The start of a line, with its white space and with a mark that Markdown reads as a list, heading, quotation or table.
"""
_TORN = re.compile(r"(?:&[a-z]{0,3}|<[^<>]*)$")
_FENCE = "```"
_GRAPHEME = regex.compile(r"[\U0001f1e6-\U0001f1ff]{2}[\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}]*+|\X")
"""Matches one grapheme (Unicode Standard Annex 29). Flags have an alternative of their own: at each of them, `\\X` alone
would count all flags before it, which takes quadratic time."""
_BOUNDARY = regex.compile(
    r"(?r)[\p{GCB=Other}\p{GCB=Control}\p{GCB=LF}](?=[\p{GCB=Other}\p{GCB=Control}\p{GCB=LF}\p{GCB=CR}])"
)
"""Searches backwards for the last place that is the end of a grapheme whatever text is before and after it."""


class Escaped(str):
    """Text that is escaped already, so `escape_slack` does not escape it again."""

    __slots__ = ()


def clean(text: str) -> str:
    """Remove terminal colours; replace control characters, bidirectional overrides and lone surrogates with U+FFFD."""
    if text.replace("\n", "").replace("\t", "").isprintable():  # most texts are clean, and this is faster than a regex
        return text
    text = _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    return _UNPRINTABLE.sub("\ufffd", text)


def one_line(text: str) -> str:
    """Clean the text and join its lines with single spaces, for headers, titles and summaries."""
    if text.isprintable() and "  " not in text:  # already one line: U+0020 is the only printable white space
        return text.strip()
    return " ".join(clean(text).split())


def cut(text: str, limit: int) -> str:
    """Cut the text to `limit` UTF-16 units, because providers count these. If the text was longer, it then ends with an
    ellipsis.

    Never splits a grapheme, which is several characters that a reader sees as one.
    """
    return text if _fits(text, limit) else _first_graphemes(text, limit - len(ELLIPSIS)).rstrip() + ELLIPSIS


def escape_html(text: object) -> str:
    """Escape text for HTML and its attributes, exactly as MarkupSafe does. `Markup` is returned unchanged, because it
    is escaped already.
    """
    if type(text) is not str:
        return text if type(text) is Markup else escape(text)
    escaped = text.replace("&", "&amp;").replace(">", "&gt;").replace("<", "&lt;")
    return escaped.replace("'", "&#39;").replace('"', "&#34;")


def escape_slack(text: object) -> str:
    """Escape text for mrkdwn, Slack's markup language, so that data can't contain mentions, links or code fences.

    Source: Slack's documentation, "Formatting text".
    """
    if isinstance(text, Escaped):
        return text
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace(_FENCE, "'''")


def escape_markdown(text: object) -> str:
    """Escape text for the Markdown of a Teams TextBlock or Fact, so that data can't contain links, tags or formatting.

    Teams reads a subset of CommonMark, decodes HTML entities, and ignores white space at the start of a line, which is
    therefore replaced by no-break spaces. Source: "Text features" in Microsoft's documentation of Adaptive Cards.
    """
    escaped = _MARKDOWN.sub(lambda found: "\\" + found[0], str(text).replace("&", "&amp;").replace("<", "&lt;"))
    return _LINE_START.sub(_escape_line_start, escaped)


def _escape_line_start(found: re.Match[str]) -> str:
    end_of_line, indent, mark = found[1], found[2], found[3] or ""
    escaped = f"{mark[:-1]}\\{mark[-1]}" if mark else ""
    return end_of_line + indent.expandtabs(4).replace(" ", "\xa0") + escaped


def cut_mrkdwn(text: str, limit: int) -> str:
    """Cut a text in Slack's mrkdwn to `limit` UTF-16 units. The result contains no part of an entity or link, and no
    code block without its end.
    """
    if _fits(text, limit):
        return text
    short = _without_torn_markup(text, limit)
    if short.count(_FENCE) % 2:
        short = _without_torn_markup(text, limit - len(_FENCE))
    closing = _FENCE if short.count(_FENCE) % 2 else ""
    return short + ELLIPSIS + closing


def cut_for_slack(text: object, limit: int) -> Escaped:
    """Escape the text for Slack and then cut it, in this order, because Slack's limit applies to the escaped text."""
    return Escaped(cut_mrkdwn(escape_slack(text), limit))


def _without_torn_markup(text: str, limit: int) -> str:
    return _TORN.sub("", _first_graphemes(text, limit - len(ELLIPSIS))).rstrip().rstrip("`")


def _first_graphemes(text: str, limit: int) -> str:
    """Return the longest prefix that consists of whole graphemes and has at most `limit` UTF-16 units."""
    longest = bisect_right(range(max(limit, 0) + 1), limit, key=lambda length: _units(text[:length])) - 1
    start = _BOUNDARY.search(text, 0, longest + 1)
    end = start.end() if start is not None else 0
    # One more character shows whether the last grapheme goes on.
    for grapheme in _GRAPHEME.finditer(text, end, longest + 1):
        if grapheme.end() > longest:
            break
        end = grapheme.end()
    return text[:end]


def _fits(text: str, limit: int) -> bool:
    return len(text) * 2 <= limit or (len(text) <= limit and _units(text) <= limit)


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
