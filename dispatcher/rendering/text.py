"""Cleans untrusted text of all that is not to be shown."""

from __future__ import annotations

import re

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, except tab and line feed
    "\u202a-\u202e\u2066-\u2069"  # bidirectional overrides: they reorder the text that a reader sees
    "\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)


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
