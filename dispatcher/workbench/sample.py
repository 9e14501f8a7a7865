"""Proofs: messages made exactly as they would be sent, and shown instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from channels.contract import Content, Message
from channels.registry import CHANNEL_TYPES
from dispatcher.config.settings import Settings
from dispatcher.errors import SettingsError, Unreadable
from dispatcher.model.delivery import delivery_key
from dispatcher.model.event import Event
from dispatcher.preview.html import page, plain_text
from dispatcher.rendering import TemplateError, lint
from dispatcher.runtime.service import make_renderer

CHANNELS: tuple[str, ...] = tuple(CHANNEL_TYPES)
_EXAMPLES: dict[str, dict[str, Any]] = {
    "email": {"host": "localhost", "security": "none", "from": "Flyte <flyte@example.com>"},
    "slack": {"token": "example"},
    "pagerduty": {"services": {"example-service": {"routing_key": "example"}}},
    "teams": {"targets": {"example-team": {"url": "https://example.com/workflows/example"}}},
    "webhook": {"targets": {"example-hook": {"url": "https://example.com/hooks/example"}}},
}
_RECIPIENTS = {"email": "you@example.com", "slack": "#alerts"}


@dataclass(frozen=True, slots=True)
class Proof:
    """One message, in every form in which it can be looked at."""

    channel: str
    content: Content
    wire: bytes
    """What would be sent, byte for byte."""
    problems: list[str]
    """What the provider would refuse, a sentence each."""

    @property
    def headline(self) -> str:
        """What a reader sees first: a mail's subject, Slack's notification, an incident's summary."""
        match self.channel:
            case "email":
                return str(self.content.get("subject", ""))
            case "pagerduty":
                payload = self.content.get("payload")
                return str(payload.get("summary", "")) if isinstance(payload, Mapping) else ""
            case "teams":
                return str(self.content.get("fallbackText", ""))
            case _:
                return str(self.content.get("text", ""))

    @property
    def html(self) -> str:
        """A page: a mail's own HTML, another message as its readers see it."""
        return str(self.content["html"]) if self.channel == "email" else page(self.channel, self.content)

    @property
    def text(self) -> str:
        return plain_text(self.channel, self.content)

    @property
    def json(self) -> bytes:
        """The message as data, in an order and form that people can compare."""
        return orjson.dumps(self.content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    @property
    def files(self) -> Mapping[str, bytes]:
        """Every form, by the ending of a file that holds it."""
        forms = {"html": self.html.encode(), "txt": self.text.encode()}
        return {**forms, "eml": self.wire} if self.channel == "email" else {**forms, "json": self.json}


class Press:
    """Makes proofs with the settings' templates and channels; a channel that isn't configured is an example's."""

    def __init__(self, settings: Settings, first: Sequence[Path] = ()) -> None:
        """`first`: folders of templates that go before the settings'. Raises TemplateError, as Renderer does."""
        self._settings = settings
        self._renderer = make_renderer(settings, first)

    def proof(self, channel: str, event: Event, recipient: str = "") -> Proof:
        """`recipient`: as a rule writes it; without, one that the channel serves, or an example. Raises TemplateError,
        SettingsError where nothing is known of such a channel, and Unserved.
        """
        section = self._settings.channel_sections.get(channel)
        if section is None and channel not in _EXAMPLES:
            raise SettingsError(f"a preview of {channel} needs channels.{channel} in the settings")
        section = section or CHANNEL_TYPES[channel].config.model_validate(_EXAMPLES[channel])
        known = next(filter(None, (getattr(section, name, None) for name in ("services", "recipients", "targets"))), ())
        someone = recipient or next(iter(known), _RECIPIENTS.get(channel, ""))
        example = not someone
        content = self._renderer.draft(channel, event, recipient=someone)
        opened = CHANNEL_TYPES[channel].open(section)
        address = "example" if example else opened.address(someone)
        message = Message(
            key=delivery_key(event.key, channel, (address,)),
            recipients=(address,),
            content=content,
            created_at=event.occurred_at,
        )
        return Proof(channel, content, opened.wire_preview(message).body, lint(channel, content))


def changed(event: Event, changes: Sequence[str]) -> Event:
    """The event with `NAME=VALUE` applied, `error.message=boom` for a part. Raises Unreadable, naming the change."""
    facts = event.model_dump(mode="json")
    named: list[list[str]] = []
    for change in changes:
        name, equals, value = change.partition("=")
        *owners, last = name.split(".")
        part = facts
        for owner in owners:
            if not isinstance(part.get(owner), dict):
                part[owner] = {}
            part = part[owner]
        if not equals or not last:
            raise Unreadable(f"{change!r} is no change: write NAME=VALUE, as error.message=boom")
        part[last] = value
        named.append([*owners, last])
    try:
        event = Event.model_validate(facts)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise Unreadable(f"no event any more with {', '.join(changes)}: {wrong}") from None
    understood = event.model_dump(mode="json")
    for path in named:
        if not _says(understood, path):
            raise Unreadable(f"an event has no {'.'.join(path)}")
    return event


def _says(facts: Any, name: Sequence[str]) -> bool:
    for step in name:
        if not isinstance(facts, dict) or step not in facts:
            return False
        facts = facts[step]
    return True


def difference(before: Proof, after: Proof, name: str) -> str:
    """What a reader would notice, line by line; empty where nothing changes."""
    pairs = [(before.json, after.json)] if before.channel != "email" else []
    if before.channel == "email":
        pairs = [(before.text.encode(), after.text.encode()), (before.html.encode(), after.html.encode())]
    lines: list[str] = []
    for (old, new), kind in zip(pairs, ("txt", "html") if before.channel == "email" else ("json",), strict=True):
        left, right = (side.decode().splitlines(keepends=True) for side in (old, new))
        lines += unified_diff(left, right, f"{name}.{kind}", f"{name}.{kind} (with the other templates)")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


__all__ = ["CHANNELS", "Press", "Proof", "TemplateError", "changed", "difference"]
