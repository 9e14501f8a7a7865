"""Slack's limits on messages. Lengths are in UTF-16 units, because Slack counts these.

Sources, on docs.slack.dev: the page of each block and object under "Blocks", and the pages of chat.postMessage and
chat.update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from channels.common.drawing import is_link, mapping, mappings
from channels.common.text import units
from channels.contract import Content, ContentForm, Place, TextKind
from channels.slack.mrkdwn import MRKDWN

TEXT = 4000
"""Maximum length of a message's `text`. chat.update refuses longer texts with `msg_too_long`. chat.postMessage cuts
texts only after 40,000 characters, but Slack recommends this limit."""
BLOCKS = 50
_FIELDS = 10
_BUDGETS = {"header": 150, "section": 3000, "field": 2000, "context": 2000, "button": 75, "url": 3000}
_ELEMENTS = {"context": 10, "actions": 25}


def text_kind(place: Place, parent: Mapping[str, Any]) -> TextKind:
    if place[-1] in {"url", "color", "when"}:
        return TextKind(_BUDGETS["url"])
    if place[-1] == "fallback" or parent.get("type") == "plain_text":
        return TextKind(_BUDGETS["button" if "elements" in place else "header"])
    if len(place) == 1:
        return TextKind(TEXT, MRKDWN)
    return TextKind(_BUDGETS["field" if "fields" in place or "elements" in place else "section"], MRKDWN)


def lint(content: Content) -> Iterator[str]:
    if not str(content.get("text", "")).strip():
        yield "no text: notifications and screen readers would have nothing to say"
    if units(str(content.get("text", ""))) > TEXT:
        yield f"text: longer than {TEXT}"
    attachments = mappings(content.get("attachments"))
    for attachment in attachments:
        if not any(attachment.get(part) for part in ("blocks", "text", "fallback")):
            yield "an attachment without blocks"
    for blocks in (mappings(part.get("blocks")) for part in (content, *attachments)):
        if len(blocks) > BLOCKS:
            yield f"more than {BLOCKS} blocks"
        for index, block in enumerate(blocks):
            yield from (f"blocks[{index}] {problem}" for problem in _block(block))


def _block(block: Mapping[str, Any]) -> Iterator[str]:
    kind = str(block.get("type", ""))
    if not kind:
        yield "has no type"
    if kind in {"header", "section"}:
        if not block.get("text") and not block.get("fields"):
            yield f"({kind}) is empty"
        yield from _text(block.get("text"), _BUDGETS[kind], kind)
    if kind == "header" and mapping(block.get("text")).get("type") != "plain_text":
        yield "(header) takes plain_text only"
    fields = mappings(block.get("fields"))
    if len(fields) > _FIELDS:
        yield f"(section) has more than {_FIELDS} fields"
    for field in fields:
        yield from _text(field, _BUDGETS["field"], "field")
    if kind in _ELEMENTS:
        elements = mappings(block.get("elements"))
        if not elements:
            yield f"({kind}) is empty"
        if len(elements) > _ELEMENTS[kind]:
            yield f"({kind}) has more than {_ELEMENTS[kind]} elements"
        for element in elements:
            yield from (
                _button(element) if element.get("type") == "button" else _text(element, _BUDGETS["context"], kind)
            )


def _button(button: Mapping[str, Any]) -> Iterator[str]:
    yield from _text(button.get("text"), _BUDGETS["button"], "button")
    if mapping(button.get("text")).get("type") != "plain_text":
        yield "(button) takes plain_text only"
    url = str(button.get("url", ""))
    if len(url) > _BUDGETS["url"]:
        yield "(button) has a url that is too long"
    if url and not is_link(url):
        yield "(button) has a url that is no link"


def _text(text: Any, budget: int, role: str) -> Iterator[str]:
    if mapping(text).get("type") not in ("mrkdwn", "plain_text"):
        return
    if not text.get("text"):
        yield f"({role}) has an empty text"
    elif units(str(text["text"])) > budget:
        yield f"({role}) is longer than {budget}"


FORM = ContentForm(text_kind=text_kind, lint=lint)
