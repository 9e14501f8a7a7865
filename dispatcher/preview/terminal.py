"""Shows messages in a terminal, similar to how recipients see them.

Text that looks like Rich's markup is shown as it is, and the URL of each link is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import ROUNDED, Box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from channels.contract import Content
from dispatcher.preview.html import plain_text, unmarked
from dispatcher.safe_text import visible, visible_data

WIDTH = 100
_TITLES = {
    "email": "Email",
    "slack": "Slack",
    "pagerduty": "PagerDuty",
    "teams": "Microsoft Teams",
    "webhook": "Webhook",
}
_BELOW = (0, 0, 1, 0)
_BAR = Box("▌   \n▌   \n▌   \n▌   \n▌   \n▌   \n▌   \n▌   \n")
_PIECES = re.compile(
    r"```(?P<code>.*?)```|<(?P<url>https?://[^|<>\s]+)(?:\|(?P<label>[^<>]*))?>|\*(?P<bold>[^*\n]+)\*", re.DOTALL
)
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_STYLES = {"good": "green", "warning": "yellow", "attention": "red"}
_SEVERITIES = {
    "critical": "white on red3",
    "error": "white on red3",
    "warning": "black on yellow3",
    "info": "white on blue",
}


def to_panel(channel: str, content: Content) -> RenderableType:
    """Return one message in a frame with the channel's name. Its text is made safe to show."""
    content = visible_data(content)
    bodies = {"email": _mail, "slack": _slack, "pagerduty": _incident, "teams": _card}
    inner = bodies[channel](content) if channel in bodies else [Text(plain_text(channel, content).strip("\n"))]
    title = Text(_TITLES.get(channel, visible(channel)))
    return Panel(Group(*inner), box=ROUNDED, title=title, title_align="left", width=WIDTH)


def _mail(content: Content) -> Iterator[RenderableType]:
    yield Text(str(content["subject"]), style="bold")
    yield Rule(style="dim")
    yield Text(str(content["text"]).strip("\n"))


def _slack(content: Content) -> Iterator[RenderableType]:
    blocks = _mappings(content.get("blocks"))
    if not blocks:  # if there are no top-level blocks, Slack shows `text`
        yield _mrkdwn(str(content.get("text", "")))
    yield from _blocks(blocks)
    for attachment in _mappings(content.get("attachments")):
        color = str(attachment.get("color", ""))
        style = color if _COLOR.fullmatch(color) else "dim"
        inner = _blocks(_mappings(attachment.get("blocks")))
        yield Panel(Group(*inner), box=_BAR, border_style=style, padding=(0, 1))


def _blocks(blocks: list[Mapping[str, Any]]) -> Iterator[RenderableType]:
    for block in blocks:
        match block.get("type"):
            case "header":
                yield Padding(Text(_text_of(block.get("text")), style="bold"), _BELOW)
            case "section":
                if block.get("text"):
                    yield Padding(_text(block["text"]), _BELOW)
                if block.get("fields"):
                    yield Padding(_fields(_mappings(block["fields"])), _BELOW)
            case "context":
                elements = _mappings(block.get("elements"))
                yield Text("  ").join(Text(_mrkdwn(_text_of(element)).plain, style="dim") for element in elements)
            case "actions":
                for button in _mappings(block.get("elements")):
                    yield Padding(_button(_text_of(button.get("text")), str(button.get("url", ""))), _BELOW)
            case "divider":
                yield Rule(style="dim")
            case kind:
                yield Text(f"[{kind}]", style="dim")


def _fields(fields: list[Mapping[str, Any]]) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
    grid.add_column(ratio=1, overflow="fold")
    grid.add_column(ratio=1, overflow="fold")
    for left in range(0, len(fields), 2):
        grid.add_row(*(_text(field) for field in fields[left : left + 2]))
    return grid


def _text(text: Any) -> RenderableType:
    plain = _text_of(text)
    return _mrkdwn(plain) if isinstance(text, Mapping) and text.get("type") == "mrkdwn" else Text(plain)


def _mrkdwn(text: str) -> Text:
    formatted = Text()
    end = 0
    for piece in _PIECES.finditer(text):
        formatted.append(_plain(text[end : piece.start()]))
        if piece["code"] is not None:
            formatted.append(_plain(piece["code"]), style="on grey15")
        elif piece["url"] is not None:
            formatted.append(_link(_plain(piece["label"] or ""), _plain(piece["url"])))
        else:
            formatted.append(_plain(piece["bold"]), style="bold")
        end = piece.end()
    return formatted.append(_plain(text[end:]))


def _incident(content: Content) -> Iterator[RenderableType]:
    payload = _mapping(content.get("payload"))
    severity = str(payload.get("severity", content.get("event_action", "")))
    tag = Text(f" {severity.upper()} ", style=_SEVERITIES.get(severity, "reverse"))
    yield Padding(tag + Text("  ") + Text(str(payload.get("summary", "")), style="bold"), _BELOW)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in {**payload, **_mapping(payload.get("custom_details"))}.items():
        if name not in {"summary", "severity", "custom_details"}:
            table.add_row(Text(str(name).replace("_", " ")), Text(str(value)))
    yield table
    for link in _mappings(content.get("links")):
        href = str(link.get("href", ""))
        yield Padding(_link(str(link.get("text", "")), href), (1, 0, 0, 0))


def _card(content: Content) -> Iterator[RenderableType]:
    for element in _mappings(content.get("body")):
        yield from _element(element, "")
    for action in _mappings(content.get("actions")):
        url = str(action.get("url", ""))
        yield _button(str(action.get("title", "")), url)


def _element(element: Mapping[str, Any], style: str) -> Iterator[RenderableType]:
    match element.get("type"):
        case "Container":
            inner = _STYLES.get(str(element.get("style", "")), "")
            for item in _mappings(element.get("items")):
                yield from _element(item, inner)
            yield Text("")
        case "RichTextBlock":
            yield Text("").join(_run(run, style) for run in _mappings(element.get("inlines")))
        case "TextBlock":
            yield _run({**element, "text": unmarked(str(element.get("text", "")))}, style)
        case "FactSet":
            table = Table.grid(padding=(0, 2, 0, 0))
            table.add_column(style="dim", no_wrap=True)
            table.add_column(overflow="fold")
            for fact in _mappings(element.get("facts")):
                table.add_row(Text(str(fact.get("title", ""))), Text(unmarked(str(fact.get("value", "")))))
            yield Padding(table, (1, 0, 1, 0))
        case "CodeBlock":
            yield Padding(Text(str(element.get("codeSnippet", "")), style="on grey15"), _BELOW)
        case kind:
            yield Text(f"[{kind}]", style="dim")


def _run(run: Mapping[str, Any], style: str) -> Text:
    bold = "bold " if run.get("weight") == "Bolder" else ""
    return Text(str(run.get("text", "")), style=f"{bold}{style}".strip())


def _link(label: str, url: str) -> Text:
    shown = f"{label} ({url})" if label and label != url else url
    return Text(shown, style="blue underline")


def _button(label: str, url: str) -> Text:
    return Text.assemble((f" {label} ", "reverse"), f" {url}")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings of a list. Other items can't be shown and are left out."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _text_of(text: Any) -> str:
    return str(text.get("text", "")) if isinstance(text, Mapping) else str(text or "")


def _plain(text: str) -> str:
    """Replace Slack's entities for `&`, `<` and `>` with these characters."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
