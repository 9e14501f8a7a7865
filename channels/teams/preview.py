"""Shows an Adaptive Card as Teams does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from channels.common.drawing import (
    Block,
    Box,
    Code,
    Heading,
    Links,
    Paragraph,
    Span,
    Style,
    Table,
    is_link,
    mapping,
    mappings,
)
from channels.contract import Content
from channels.teams.markdown import unescape

STYLE = """
.teams{font:14px/20px "Segoe UI",system-ui,sans-serif;border:1px solid #d1d1d1;border-radius:6px;padding:12px 16px}
.teams .box{margin:-12px -16px 8px;padding:12px 16px}
.teams .good{background:#e7f2da}.teams .attention{background:#fde7e9}.teams .warning{background:#fff4ce}
.teams h3{font-size:18px;font-weight:600}.teams a{color:#5b5fc7}
@media (prefers-color-scheme:dark){.teams .good{background:#1e3a1a}.teams .attention{background:#442726}.teams .warning{background:#433519}.teams a{color:#9ea2ff}}
"""


_DATE = re.compile(r"\{\{(DATE|TIME)\(([0-9T:Z+-]+)(?:, *[A-Z]+)?\)\}\}")


def draw(content: Content) -> Iterator[Block]:
    yield from _elements(content.get("body"))
    actions = [(str(one.get("title", "")), str(one.get("url", ""))) for one in mappings(content.get("actions"))]
    yield Links([(title or url, url) for title, url in actions if is_link(url)])


def _elements(elements: Any) -> Iterator[Block]:
    for element in mappings(elements):
        match element.get("type"):
            case "Container":
                yield Box([*_elements(element.get("items"))], tone=str(element.get("style", "")))
            case "RichTextBlock":
                yield _text(mappings(element.get("inlines")))
            case "TextBlock":
                yield _text([{**element, "text": _shown(str(element.get("text", "")))}])
            case "FactSet":
                facts = mappings(element.get("facts"))
                yield Table([(unescape(str(one.get("title", ""))), _shown(str(one.get("value", "")))) for one in facts])
            case "CodeBlock":
                yield Code(str(element.get("codeSnippet", "")))
            case kind:
                yield Paragraph(f"[{kind}]", faint=True)


def _text(runs: list[Mapping[str, Any]]) -> Block:
    spans = [_span(run) for run in runs]
    return Heading(spans) if any(run.get("size") == "Large" for run in runs) else Paragraph(spans)


def _span(run: Mapping[str, Any]) -> Span:
    styles: tuple[Style, ...] = ("strong",) if run.get("weight") == "Bolder" else ()
    styles = (*styles, "code") if run.get("fontType") == "Monospace" else styles
    url = str(mapping(run.get("selectAction")).get("url", ""))
    return Span(str(run.get("text", "")), styles, url if is_link(url) else "")


def _shown(text: str) -> str:
    """Return Markdown as its reader sees it. Teams shows times in the reader's zone, and previews show them in UTC."""
    return unescape(_DATE.sub(_date, text))


def _date(found: re.Match[str]) -> str:
    try:
        time = datetime.fromisoformat(found[2])
    except ValueError:
        return found[0]
    time = time.astimezone(UTC) if time.tzinfo is not None else time
    return time.strftime("%Y-%m-%d" if found[1] == "DATE" else "%H:%M UTC")
