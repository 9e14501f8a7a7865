"""Measures and cuts text in UTF-16 units, because Slack, PagerDuty and Teams count these."""

from __future__ import annotations

from bisect import bisect_right

import regex

ELLIPSIS = "…"
_GRAPHEME = regex.compile(r"[\U0001f1e6-\U0001f1ff]{2}[\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}]*+|\X")
"""Matches one grapheme (Unicode Standard Annex 29). Flags have a separate alternative: at each of them, `\\X` alone
would count all flags before it, which takes quadratic time."""
_BOUNDARY = regex.compile(
    r"(?r)[\p{GCB=Other}\p{GCB=Control}\p{GCB=LF}](?=[\p{GCB=Other}\p{GCB=Control}\p{GCB=LF}\p{GCB=CR}])"
)
"""Searches backwards for the last place that is the end of a grapheme whatever text is before and after it."""


def cut(text: str, limit: int) -> str:
    """Cut the text to `limit` UTF-16 units. If the text was longer, it then ends with an ellipsis.

    Never splits a grapheme, which is several characters that a reader sees as one.
    """
    return text if fits(text, limit) else first_graphemes(text, limit - len(ELLIPSIS)).rstrip() + ELLIPSIS


def first_graphemes(text: str, limit: int) -> str:
    """Return the longest prefix that consists of whole graphemes and has at most `limit` UTF-16 units."""
    longest = bisect_right(range(max(limit, 0) + 1), limit, key=lambda length: units(text[:length])) - 1
    start = _BOUNDARY.search(text, 0, longest + 1)
    end = start.end() if start is not None else 0
    # One more character shows whether the last grapheme goes on.
    for grapheme in _GRAPHEME.finditer(text, end, longest + 1):
        if grapheme.end() > longest:
            break
        end = grapheme.end()
    return text[:end]


def fits(text: str, limit: int) -> bool:
    """True if the text has at most `limit` UTF-16 units."""
    return len(text) * 2 <= limit or (len(text) <= limit and units(text) <= limit)


def units(text: str) -> int:
    """Return the text's length in UTF-16 units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
