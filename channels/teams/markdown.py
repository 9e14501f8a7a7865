"""Escapes values for the Markdown of a Teams TextBlock or Fact.

Teams reads a subset of CommonMark, decodes HTML entities, and ignores white space at the start of a line. Source: "Text
features" in Microsoft's documentation of Adaptive Cards.
"""

from __future__ import annotations

import re
from html import unescape as unescape_html

from channels.contract import Markup

_SPECIAL = re.compile(r"[\\`*_~\[\]()]")
_LINE_START = re.compile(r"(^|[\n\r])([ \t]*)([-+#=>|:]|[0-9]{1,9}\.(?=\s|$))?")
"""The start of a line, with its white space and with a mark that Markdown reads as a list, heading, quotation or table.
"""
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])|&(?:amp|lt|gt|quot);|\xa0")


def escape_markdown(text: object) -> str:
    """Escape a value, so that data can't contain links, tags or formatting. White space at the start of a line is
    replaced by no-break spaces.
    """
    escaped = _SPECIAL.sub(lambda found: "\\" + found[0], str(text).replace("&", "&amp;").replace("<", "&lt;"))
    return _LINE_START.sub(_escape_line_start, escaped)


def _escape_line_start(found: re.Match[str]) -> str:
    end_of_line, indent, mark = found[1], found[2], found[3] or ""
    escaped = f"{mark[:-1]}\\{mark[-1]}" if mark else ""
    return end_of_line + indent.expandtabs(4).replace(" ", "\xa0") + escaped


def unescape(text: str) -> str:
    """Return the text that a reader sees: without backslashes that escape, and with HTML entities decoded."""
    return _ESCAPED.sub(lambda found: found[1] or unescape_html(found[0]).replace("\xa0", " "), text)


MARKDOWN = Markup(escape_markdown, unescape=unescape)
