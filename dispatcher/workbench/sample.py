"""Renders sample messages in the same way as real messages, to show them instead of sending them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import unified_diff
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from channels.contract import ChannelType, Content, Message
from channels.registry import CHANNEL_TYPES
from dispatcher.config.settings import Settings
from dispatcher.errors import SettingsError, Unreadable
from dispatcher.model.delivery import Outage, delivery_key
from dispatcher.model.event import Event
from dispatcher.model.severity import highest
from dispatcher.model.summary import Summary
from dispatcher.parsing.validation_errors import every_problem
from dispatcher.planning.contacts import Contacts, Recipient
from dispatcher.preview.html import headline, page, plain_text
from dispatcher.rendering.variables import Variable, variables
from dispatcher.rules import RouteBook
from dispatcher.runtime.wiring import make_contacts, make_renderer, make_rule_files

_OUTAGE = timedelta(hours=5)
"""How long before its success the first failure of a sample resolved notice finished."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One message in every form that the preview shows."""

    channel: str
    kind: ChannelType
    content: Content
    wire: bytes
    """The bytes that the channel would send."""

    @property
    def is_mail(self) -> bool:
        return self.kind.form.mail is not None

    @property
    def problems(self) -> list[str]:
        """Why the provider would refuse the message, one sentence per reason."""
        return self.kind.form.problems(self.content)

    @property
    def headline(self) -> str:
        """The line that a reader sees first."""
        return headline(self.kind, self.content)

    @property
    def html(self) -> str:
        """A whole HTML page: a mail's own HTML, or another channel's message as its readers see it."""
        return page(self.channel, self.kind, self.content)

    @property
    def text(self) -> str:
        return plain_text(self.kind, self.content)

    @property
    def json(self) -> bytes:
        """The content as indented JSON, for people to read and compare."""
        return orjson.dumps(self.content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    @property
    def files(self) -> Mapping[str, bytes]:
        """Mapping from a file name extension to the message in that form."""
        forms = {"html": self.html.encode(), "txt": self.text.encode()}
        return {**forms, "eml": self.wire} if self.is_mail else {**forms, "json": self.json}


class SampleRenderer:
    """Renders samples with the templates and channels of the settings.

    A channel that the settings don't configure gets its example configuration, if it has one.
    """

    def __init__(self, settings: Settings, first: Sequence[Path] = ()) -> None:
        """`first`: template folders that are searched before the template folders of the settings.

        Raises SettingsError for a folder that doesn't exist.
        """
        self._settings = settings
        self._renderer = make_renderer(settings, first)

    @property
    def channels(self) -> list[str]:
        """The names of the channels that have an example or are configured."""
        sections = self._settings.channel_sections
        return [name for name, kind in CHANNEL_TYPES.items() if kind.example is not None or name in sections]

    @property
    def contacts(self) -> Contacts:
        """The contacts in the settings."""
        return make_contacts(self._settings)

    def variables(self, channel: str, about: Event | Summary, outage: Outage | None = None) -> list[Variable]:
        """Return the variables that templates get, with their meanings and values. The arguments are those of `render`."""
        if isinstance(about, Summary):
            return [*variables(self._renderer.summary_variables(channel, about))]
        return [*variables(self._renderer.variables(about, outage))]

    def render(self, channel: str, about: Event | Summary, recipient: str = "", outage: Outage | None = None) -> Sample:
        """Render the message that the channel would send about an event, or of a digest or summary.

        `recipient`: the recipient as a rule writes it. If it is empty, a recipient from the channel's settings is used,
        or else an example. `outage`: what the message resolves, if it is a resolved notice.

        Raises TemplateError or UnknownRecipient, and SettingsError if the channel is not configured and has no
        example.
        """
        kind, section = CHANNEL_TYPES[channel], self._settings.channel_sections.get(channel)
        if section is None and kind.example is None:
            raise SettingsError(f"a preview of {channel} needs channels.{channel} in the settings")
        section = section or kind.config.model_validate(kind.example)
        aliases = getattr(section, kind.aliases) if kind.aliases else ()
        recipient = recipient or next(iter(aliases), kind.example_recipient)
        opened = kind.open(section)
        address = opened.address(recipient) if recipient else "example"
        contacts = make_contacts(self._settings, {channel: opened})
        options = contacts.options(channel, address)
        draft: Callable[..., Content]
        if isinstance(about, Summary):
            draft, severity, at = partial(self._renderer.draft_summary, channel, about), options.severity, about.until
        else:
            draft, at = partial(self._renderer.draft, channel, about, outage=outage), about.occurred_at
            severity = highest(options.severity, *self._severities(about, contacts, (channel, recipient)))
        content = draft(recipient=recipient, folders=options.templates, zone=options.timezone, severity=severity)
        key = delivery_key(about.key, channel, (address,))
        message = Message(key=key, recipients=(address,), content=content, created_at=at)
        return Sample(channel, kind, content, opened.wire_preview(message).body)

    def _severities(self, event: Event, contacts: Contacts, to: Recipient) -> Iterator[str]:
        """Yield the severities that the matching routes to a recipient give."""
        for route in self._routes.decide(event).matched:
            for rule in route.rules:
                channel, names = rule.notification.channel, rule.notification.recipients
                if any(to in (contacts.expand(name) or [(channel, name)]) for name in names):
                    yield rule.severity

    @cached_property
    def _routes(self) -> RouteBook:
        files = make_rule_files(self._settings)
        files.load()
        return files.book.routes


def sample_outage(success: Event) -> Outage:
    """Return what a sample resolved notice resolves: three failures in the five hours before the success."""
    return Outage(3, success.occurred_at - _OUTAGE)


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
        raise Unreadable(f"no event any more with {', '.join(changes)}: {every_problem(error)}") from None
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
    lines: list[str] = []
    old, new = before.files, after.files
    for extension in ("txt", "html") if before.is_mail else ("json",):
        left, right = (files[extension].decode().splitlines(keepends=True) for files in (old, new))
        lines += unified_diff(left, right, f"{name}.{extension}", f"{name}.{extension} (with the other templates)")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
