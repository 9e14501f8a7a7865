"""Finds HTML and CSS that Gmail, Outlook or Apple Mail don't support. All three support the built-in mail template.

Sources: Gmail's list of supported CSS (developers.google.com/gmail/design/css), Microsoft's list of what Outlook's Word
engine renders, and the tables at caniemail.com.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_CONSTRUCTS = tuple(
    (re.compile(pattern, re.IGNORECASE), message)
    for pattern, message in (
        (r"<script\b|<iframe\b|<object\b|<embed\b", "is removed by every mail program"),
        (r"<form\b|<input\b|<textarea\b|<select\b", "is removed or does nothing in most mail programs: link to a page"),
        (r"<video\b|<audio\b|<svg\b|<canvas\b", "is not shown by Gmail and Outlook"),
        (r"<link\b[^<>]*stylesheet|@import\b|@font-face\b", "is not loaded: write the rules into email/style.css"),
        (r"<img\b[^<>]*\bsrc\s*=\s*[\"']?(?:https?:|//|\{\{)", "is a remote image: most people don't see it"),
        (r"\bon[a-z]{3,20}\s*=\s*[\"']", "is removed by every mail program"),
        (r"\bdisplay\s*:\s*(?:inline-)?(?:flex|grid)\b", "does nothing in Outlook: use a table"),
        (r"\bposition\s*:\s*(?:absolute|fixed|sticky|relative)\b", "is removed by Gmail and Outlook: use a table"),
        (r"\b(?:float|clip-path|filter|transform|animation)\s*:", "does nothing in Outlook"),
        (r"\bbackground(?:-image)?\s*:[^:;\"'}]*url\(", "is not shown by Outlook, and remote"),
        (r"\bvar\(\s*--|\bcalc\(", "is removed by Gmail and Outlook: write the value"),
    )
)


def unsupported(source: str) -> Iterator[tuple[int, str]]:
    """Yield each unsupported construct of an HTML template: its line number, counted from 1, and a sentence that
    describes it.
    """
    for pattern, message in _CONSTRUCTS:
        for found in pattern.finditer(source):
            yield source.count("\n", 0, found.start()) + 1, f"{' '.join(found[0].split())} {message}"
