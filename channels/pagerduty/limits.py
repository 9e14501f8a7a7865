"""PagerDuty's limits on events. Sources: the overview of Events API v2 and its OpenAPI schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, get_args

from channels.common.drawing import is_link, mapping, mappings
from channels.common.text import units
from channels.contract import Content, ContentForm, Place, TextKind

EVENT = 512 * 1024
"""Maximum number of bytes of an event."""
SUMMARY = 1024
_FIELD, _DETAIL, _URL = 1000, 20_000, 2000
"""Limits of other texts, which are the dispatcher's choice."""
Severity = Literal["critical", "error", "warning", "info"]
_SEVERITIES: tuple[str, ...] = get_args(Severity)
_ACTIONS = ("trigger", "acknowledge", "resolve")


def text_kind(place: Place, parent: Mapping[str, Any]) -> TextKind:
    del parent
    if place[-1] == "summary":
        return TextKind(SUMMARY)
    if place[-1] in {"href", "src", "client_url"}:
        return TextKind(_URL)
    return TextKind(_DETAIL if "custom_details" in place else _FIELD)


def lint(content: Content) -> Iterator[str]:
    if content.get("event_action") not in _ACTIONS:
        yield f"event_action is none of {', '.join(_ACTIONS)}"
    payload = mapping(content.get("payload"))
    if not payload.get("summary"):
        yield "payload.summary is missing"
    if units(str(payload.get("summary", ""))) > SUMMARY:
        yield f"payload.summary is longer than {SUMMARY}"
    if not payload.get("source"):
        yield "payload.source is missing"
    if payload.get("severity") not in _SEVERITIES:
        yield f"payload.severity is none of {', '.join(_SEVERITIES)}"
    if "timestamp" in payload and not _has_zone(str(payload["timestamp"])):
        yield "payload.timestamp is no ISO 8601 time with a zone"
    for link in mappings(content.get("links")):
        if not is_link(link.get("href", "")):
            yield "a link without href"


def _has_zone(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


FORM = ContentForm(text_kind=text_kind, max_bytes=EVENT, lint=lint)
