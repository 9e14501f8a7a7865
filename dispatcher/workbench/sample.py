"""Renders sample messages in the same way as real messages, to show them instead of sending them."""

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
from dispatcher.runtime.wiring import make_renderer

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
class Sample:
    """One message in every form that the preview shows."""

    channel: str
    content: Content
    wire: bytes
    """The bytes that the channel would send."""
    problems: list[str]
    """Why the provider would refuse the message, one sentence per reason."""

    @property
    def headline(self) -> str:
        """The line that a reader sees first: a mail's subject, the text of Slack's notification, or an incident's
        summary.
        """
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
        """A whole HTML page: a mail's own HTML, or another channel's message as its readers see it."""
        return str(self.content["html"]) if self.channel == "email" else page(self.channel, self.content)

    @property
    def text(self) -> str:
        return plain_text(self.channel, self.content)

    @property
    def json(self) -> bytes:
        """The content as indented JSON, for people to read and compare."""
        return orjson.dumps(self.content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    @property
    def files(self) -> Mapping[str, bytes]:
        """Mapping from a file name extension to the message in that form."""
        forms = {"html": self.html.encode(), "txt": self.text.encode()}
        return {**forms, "eml": self.wire} if self.channel == "email" else {**forms, "json": self.json}


class SampleRenderer:
    """Renders samples with the templates and channels of the settings.

    A built-in channel that the settings don't configure gets an example configuration.
    """

    def __init__(self, settings: Settings, first: Sequence[Path] = ()) -> None:
        """`first`: template folders that are searched before the template folders of the settings.

        Raises TemplateError for a folder that doesn't exist.
        """
        self._settings = settings
        self._renderer = make_renderer(settings, first)

    def render(self, channel: str, event: Event, recipient: str = "") -> Sample:
        """Render the message that the channel would send.

        `recipient`: the recipient as a rule writes it. If it is empty, a recipient from the channel's settings is used,
        or else an example.

        Raises TemplateError or UnknownRecipient, and SettingsError if a plug-in package's channel isn't configured.
        """
        section = self._settings.channel_sections.get(channel)
        if section is None and channel not in _EXAMPLES:
            raise SettingsError(f"a preview of {channel} needs channels.{channel} in the settings")
        section = section or CHANNEL_TYPES[channel].config.model_validate(_EXAMPLES[channel])
        aliases = next(
            filter(None, (getattr(section, name, None) for name in ("services", "recipients", "targets"))), ()
        )
        recipient = recipient or next(iter(aliases), _RECIPIENTS.get(channel, ""))
        content = self._renderer.draft(channel, event, recipient=recipient)
        opened = CHANNEL_TYPES[channel].open(section)
        address = opened.address(recipient) if recipient else "example"
        message = Message(
            key=delivery_key(event.key, channel, (address,)),
            recipients=(address,),
            content=content,
            created_at=event.occurred_at,
        )
        return Sample(channel, content, opened.wire_preview(message).body, lint(channel, content))


def with_changes(event: Event, changes: Sequence[str]) -> Event:
    """Return the event with the given changes. A change is written `NAME=VALUE`; `error.message=boom` changes one part
    of a field.

    Raises Unreadable if a change is invalid; the error's text names the change.
    """
    data = event.model_dump(mode="json")
    paths: list[list[str]] = []
    for change in changes:
        name, equals, value = change.partition("=")
        *owners, last = name.split(".")
        part = data
        for owner in owners:
            if not isinstance(part.get(owner), dict):
                part[owner] = {}
            part = part[owner]
        if not equals or not last:
            raise Unreadable(f"{change!r} is no change: write NAME=VALUE, as error.message=boom")
        part[last] = value
        paths.append([*owners, last])
    try:
        event = Event.model_validate(data)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise Unreadable(f"no event any more with {', '.join(changes)}: {wrong}") from None
    validated = event.model_dump(mode="json")
    for path in paths:
        if not _has_path(validated, path):
            raise Unreadable(f"an event has no {'.'.join(path)}")
    return event


def _has_path(data: Any, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True


def difference(before: Sample, after: Sample, name: str) -> str:
    """Return a unified diff of the two messages; empty if a reader would see no difference.

    Mail is compared by its text and HTML, other channels by their JSON. `name` becomes the diff's file name.
    """
    pairs = [(before.json, after.json)] if before.channel != "email" else []
    if before.channel == "email":
        pairs = [(before.text.encode(), after.text.encode()), (before.html.encode(), after.html.encode())]
    lines: list[str] = []
    for (old, new), extension in zip(pairs, ("txt", "html") if before.channel == "email" else ("json",), strict=True):
        left, right = (side.decode().splitlines(keepends=True) for side in (old, new))
        lines += unified_diff(left, right, f"{name}.{extension}", f"{name}.{extension} (with the other templates)")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


__all__ = ["CHANNELS", "Sample", "SampleRenderer", "TemplateError", "difference", "with_changes"]
