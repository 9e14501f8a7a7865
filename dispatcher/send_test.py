"""Sends one real message, marked as a test, for the command, the workbench, the console and its API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path
from typing import Protocol

import orjson

from channels.contract import Answer, Channel, ChannelError, Content, InDoubt, Later, Message, UnknownRecipient
from dispatcher.clock import Clock
from dispatcher.model.delivery import Outage, delivery_key
from dispatcher.model.event import Event
from dispatcher.planning.planner import Planner
from dispatcher.planning.targets import Target
from dispatcher.rendering.renderer import TEST_MARK

_UNMARKED = "not sent: the {} templates use neither `what` nor `test`, so the test would look like a real message"


class RenderTest(Protocol):
    """Renders a channel's message for an event. `test`: if true, the message says that it is a test."""

    def __call__(
        self,
        channel: str,
        event: Event,
        *,
        recipient: str,
        outage: Outage | None,
        test: bool,
        folders: tuple[Path, ...],
        zone: tzinfo | None,
        severity: str,
    ) -> Content: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SendTestResult:
    """What became of a test message."""

    channel: str
    """The channel that sent it: the rule's, or another one that serves the recipient instead."""
    accepted: bool
    """True if the provider accepted the message."""
    message: str
    """What happened, as a sentence for people."""
    answer: Answer | None = None
    reference: Mapping[str, str] = field(default_factory=dict)
    """Identifies the message at the provider (`Receipt.reference`)."""


@dataclass(frozen=True, slots=True)
class SendTest:
    """Sends test messages through the configured channels: one attempt each, without the ledger."""

    channels: Mapping[str, Channel]
    planner: Planner
    render: RenderTest
    clock: Clock

    async def send(
        self, channel: str, recipient: str, event: Event, *, templates_of: str = "", outage: Outage | None = None
    ) -> SendTestResult:
        """Send the event's message, marked as a test. A message that would not say that it is a test is not sent.

        `recipient`: written as in a rule. `templates_of`: the recipient whose template set is used, if it is another
        one. `outage`: what the message resolves, for a resolved notice.
        """
        sender = channel
        try:
            target = self.planner.target(channel, recipient)
            sender = target.channel
            options = self.planner.contacts.options(target.channel, target.address)
            content = await asyncio.to_thread(
                self.render,
                sender,
                event,
                recipient=templates_of or recipient,
                outage=outage,
                test=True,
                folders=options.templates,
                zone=options.timezone,
                severity=options.severity,
            )
            if TEST_MARK.strip() not in orjson.dumps(content).decode():
                return SendTestResult(channel=sender, accepted=False, message=_UNMARKED.format(sender))
            receipt = await self.channels[sender].send(self._message(target, event, content))
        except ChannelError as error:
            unknown, contacts = isinstance(error, UnknownRecipient), self.planner.contacts
            hint = contacts.hint(recipient, "send the test to") if unknown else ""
            message = f"{_meaning(error)}: {error.reason}{hint}"
            return SendTestResult(channel=sender, accepted=False, message=message, answer=error.answer)
        answer = receipt.answer
        message = f"{sender} accepted it, and answered {answer.status} {answer.text}".rstrip()
        return SendTestResult(
            channel=sender, accepted=True, message=message, answer=answer, reference=receipt.reference
        )

    def _message(self, target: Target, event: Event, content: Content) -> Message:
        """Create the message. Each test gets a new key, because PagerDuty merges messages with the same key."""
        now = self.clock.now()
        key = delivery_key(f"test {now.isoformat()} of {event.key}", target.channel, (target.address,))
        return Message(key=key, recipients=(target.address,), content=content, created_at=now)


def _meaning(error: ChannelError) -> str:
    match error:
        case Later():
            return "not accepted now (a delivery would be retried)"
        case InDoubt():
            return "in doubt: it may have arrived (a delivery would be retried)"
        case UnknownRecipient():
            return "unknown recipient (a delivery would go to the channel's fallback, or be dead)"
        case _:
            return "refused (a delivery would be dead)"
