"""Teams' limits on messages. Source: "Create and send messages" in Microsoft's Teams documentation (webhooks and
connectors).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from channels.common.drawing import is_link, mappings
from channels.contract import Content, ContentForm, Place, TextKind
from channels.teams.markdown import MARKDOWN

MESSAGE = 28 * 1024
"""Maximum number of bytes of a message, which consists of the card and the JSON around the card."""
_ENVELOPE = 150
"""Number of the message's bytes that are reserved for the JSON around the card."""
_TEXT, _URL = 3000, 2000
"""Limits of single texts, which are the dispatcher's choice."""


def text_kind(place: Place, parent: Mapping[str, Any]) -> TextKind:
    if place[-1] == "url":
        return TextKind(_URL)
    return TextKind(_TEXT, MARKDOWN if parent.get("type") == "TextBlock" or "facts" in place else None)


def lint(content: Content) -> Iterator[str]:
    if content.get("type") != "AdaptiveCard":
        yield "type is not AdaptiveCard"
    if not isinstance(content.get("version"), str):
        yield "version is missing: a text, as '1.4'"
    if not mappings(content.get("body")):
        yield "the card has no body"
    for action in mappings(content.get("actions")):
        if not action.get("type"):
            yield "an action without type"
        if action.get("type") == "Action.OpenUrl" and not is_link(action.get("url", "")):
            yield "an action whose url is no link"


FORM = ContentForm(text_kind=text_kind, max_bytes=MESSAGE - _ENVELOPE, lint=lint)
