"""Shows a Slack message as Slack does (docs.slack.dev, "Blocks" and "Formatting text")."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from channels.common import drawing
from channels.common.drawing import Block, Span, Style, mapping, mappings
from channels.contract import Content
from channels.slack.mrkdwn import unescape_mrkdwn

_PIECE = re.compile(
    r"```(?P<pre>.*?)```|<(?P<url>https?://[^|<>\s]+)(?:\|(?P<label>[^<>]*))?>|<!date\^[^|<>]*\|(?P<date>[^<>]*)>",
    re.DOTALL,
)
_MARKS: tuple[tuple[str, Style, re.Pattern[str]], ...] = (
    ("`", "code", re.compile(r"`([^`\n]+)`")),
    ("*", "strong", re.compile(r"(?<!\w)\*([^*\n]+)\*(?!\w)")),
    ("_", "em", re.compile(r"(?<!\w)_([^_\n]+)_(?!\w)")),
    ("~", "s", re.compile(r"(?<!\w)~([^~\n]+)~(?!\w)")),
)
STYLE = """
.slack{font:15px/22px Lato,"Helvetica Neue",Arial,sans-serif}
.slack .box{border-left:4px solid var(--bar,#ddd);padding:2px 0 2px 12px;border-radius:2px}
.slack h3{font-size:18px}
.slack a{color:#1264a3;text-decoration:none}
.slack a.button{display:inline-block;border:1px solid #bbb;border-radius:4px;padding:5px 12px;color:#1d1c1d;font-weight:700;font-size:14px;margin:4px 0}
@media (prefers-color-scheme:dark){.slack a{color:#5db0e8}.slack a.button{color:#e8e8e8}}
"""


def draw(content: Content) -> Iterator[Block]:
    blocks = mappings(content.get("blocks"))
    # If a message has no top-level blocks, Slack shows the message's `text`, even if there are attachments.
    yield from _blocks(blocks) if blocks else [drawing.Paragraph(mrkdwn(str(content.get("text", ""))))]
    for attachment in mappings(content.get("attachments")):
        inner = [*_blocks(mappings(attachment.get("blocks")))]
        text = str(attachment.get("text") or attachment.get("fallback") or "")
        yield drawing.Box(inner or [drawing.Paragraph(mrkdwn(text))], color=str(attachment.get("color", "")))


def _blocks(blocks: list[Mapping[str, Any]]) -> Iterator[Block]:
    for block in blocks:
        elements = mappings(block.get("elements"))
        match block.get("type"):
            case "header":
                yield drawing.Heading(_line(block.get("text")))
            case "section":
                if block.get("text"):
                    yield drawing.Paragraph(_line(block["text"]))
                if fields := mappings(block.get("fields")):
                    yield drawing.Columns([_line(field) for field in fields])
            case "context":
                spans = [span for element in elements for span in (Span(" "), *_line(element))]
                yield drawing.Paragraph(spans[1:], faint=True)
            case "actions":
                yield drawing.Links(
                    [
                        (unescape_mrkdwn(str(mapping(one.get("text")).get("text", ""))), str(one.get("url", "")))
                        for one in elements
                    ]
                )
            case "divider":
                yield drawing.Divider()
            case kind:
                yield drawing.Paragraph(f"[{kind}]", faint=True)


def _line(text: Any) -> tuple[Span, ...]:
    if not isinstance(text, Mapping):
        return (Span(str(text or "")),)
    value = str(text.get("text", ""))
    return mrkdwn(value) if text.get("type") == "mrkdwn" else (Span(value),)


def mrkdwn(text: str) -> tuple[Span, ...]:
    """Return a text in mrkdwn, Slack's markup language, as its reader sees it."""
    spans: list[Span] = []
    end = 0
    for piece in _PIECE.finditer(text):
        spans += _marked(text[end : piece.start()])
        if piece["pre"] is not None:
            spans.append(Span(unescape_mrkdwn(piece["pre"]), ("pre",)))
        elif piece["date"] is not None:  # Slack shows the date in the reader's time zone
            spans.append(Span(unescape_mrkdwn(piece["date"])))
        else:
            spans.append(Span(unescape_mrkdwn(piece["label"] or piece["url"]), (), unescape_mrkdwn(piece["url"])))
        end = piece.end()
    return (*spans, *_marked(text[end:]))


def _marked(text: str, styles: tuple[Style, ...] = (), marks: int = 0) -> list[Span]:
    """Return the spans of a text without links and code blocks. `marks`: how many kinds of marks are already found."""
    while marks < len(_MARKS) and _MARKS[marks][0] not in text:
        marks += 1
    if marks == len(_MARKS):
        return [Span(unescape_mrkdwn(text), styles)] if text else []
    _, style, pattern = _MARKS[marks]
    spans: list[Span] = []
    end = 0
    for found in pattern.finditer(text):
        spans += _marked(text[end : found.start()], styles, marks + 1)
        spans += _marked(found[1], (*styles, style), marks + 1)
        end = found.end()
    return spans + _marked(text[end:], styles, marks + 1)
