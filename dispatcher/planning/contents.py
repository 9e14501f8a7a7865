"""Renders the content of deliveries: at intake before they are recorded, or by the worker at the first claim.

The worker renders what only the ledger can plan (resolved notices, change events, digests and summaries) and what an
outcome causes (notices to fallback recipients and deliveries on a fallback channel). No template is rendered in a
transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import Protocol

from channels.contract import Content
from dispatcher.model.delivery import SUMMARIES, Delivery, Kind, Outage
from dispatcher.model.event import Event
from dispatcher.model.summary import Summary
from dispatcher.planning.contacts import NO_CONTACTS, Contacts, Options
from dispatcher.planning.planner import TemplateSetOf, same_templates


class Render(Protocol):
    """Renders a channel's message for an event."""

    def __call__(
        self,
        channel: str,
        event: Event,
        *,
        recipient: str = "",
        template: str | None = None,
        undelivered: str = "",
        outage: Outage | None = None,
        folders: tuple[Path, ...] = (),
        zone: tzinfo | None = None,
        severity: str = "",
    ) -> Content:
        """Return the content of the message.

        `recipient`: one of the message's recipients, because all of them share a template set.
        `template`: the template that the rule names; None if the rule names no template.
        `undelivered`: who could not be notified, and why. Used only in notices to fallback recipients.
        `outage`: what the message resolves. Used only in resolved notices.
        `folders`, `zone`: the template folders and the time zone of the recipient's contact, if it has any.
        `severity`: the severity that routes and contacts give; if it is empty, the settings or the phase give one.
        """


class RenderSummary(Protocol):
    """Renders a channel's message of a digest or summary. The arguments are those of `Render`."""

    def __call__(
        self,
        channel: str,
        summary: Summary,
        *,
        recipient: str = "",
        undelivered: str = "",
        folders: tuple[Path, ...] = (),
        zone: tzinfo | None = None,
        severity: str = "",
    ) -> Content: ...


def no_summary(channel: str, summary: Summary, **_: object) -> Content:
    raise NotImplementedError(f"{channel} has no digests, and one was recorded: {summary.key}")


def no_change_event(channel: str, event: Event) -> Content:
    raise NotImplementedError(f"{channel} has no change events, and one was recorded for {event.key}")


@dataclass(frozen=True, slots=True)
class Contents:
    """Renders the content of deliveries."""

    render: Render
    template_set: TemplateSetOf = same_templates
    contacts: Contacts = NO_CONTACTS
    change_event: Callable[[str, Event], Content] = no_change_event
    render_summary: RenderSummary = no_summary
    waits: bool = False
    """True if `render` may wait for another process, for a few seconds. Then the methods must not be called in the event
    loop's thread."""

    def fill(self, event: Event, deliveries: Sequence[Delivery]) -> tuple[Delivery, ...]:
        """Return the deliveries of one event with their content. Equal messages are rendered once.

        Notices to fallback recipients stay without content. So does what may be held, because a digest or a summary may
        tell of it instead. It is rendered now all the same if its rule names a template, which the ledger does not store.
        """
        rendered: dict[Hashable, Content] = {}
        filled = []
        for delivery in deliveries:
            may_be_held = delivery.digest is not None or delivery.quiet is not None
            if delivery.kind is not Kind.NOTIFICATION or (may_be_held and delivery.template is None):
                filled.append(delivery)
                continue
            options = self._options(delivery)
            template_set = self.template_set(event, delivery.recipients[0], options.templates)
            same = (delivery.channel, delivery.template, template_set, options.timezone, delivery.severity)
            if same not in rendered:
                rendered[same] = self.content(event, delivery)
            filled.append(delivery._replace(content=rendered[same]))
        return tuple(filled)

    def content(self, event: Event, delivery: Delivery, outage: Outage | None = None) -> Content:
        """Return the content of one delivery. A notice to fallback recipients says what its `reason` says, and a resolved
        notice which `outage` it resolves.
        """
        if delivery.kind is Kind.CHANGE_EVENT:
            return self.change_event(delivery.channel, event)
        options = self._options(delivery)
        return self.render(
            delivery.channel,
            event,
            recipient=delivery.recipients[0],
            template=delivery.template,
            undelivered=delivery.reason if delivery.fallback_for else "",
            outage=outage,
            folders=options.templates,
            zone=options.timezone,
            severity=delivery.severity,
        )

    def summary(self, summary: Summary, delivery: Delivery) -> Content:
        """Return the content of a digest or summary, or of a notice about one, which also says what its `reason` says."""
        options = self._options(delivery)
        return self.render_summary(
            delivery.channel,
            summary,
            recipient=delivery.recipients[0],
            undelivered="" if delivery.kind in SUMMARIES else delivery.reason,
            folders=options.templates,
            zone=options.timezone,
            severity=delivery.severity,
        )

    def _options(self, delivery: Delivery) -> Options:
        """Return the options of the recipient's contact. All recipients of a message have the same."""
        return self.contacts.options(delivery.channel, (delivery.addresses or delivery.recipients)[0])
