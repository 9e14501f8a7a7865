"""The Microsoft Teams channel: POSTs an Adaptive Card to the webhook URL of a Power Automate workflow.

The Power Automate workflow must have the trigger "When a Teams webhook request is received".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import orjson
from pydantic import Field, model_validator

from channels.common.ssrf import SsrfGuard
from channels.contract import Channel, ChannelType, Content, Finding, Message, Receipt, UnknownRecipient, WirePreview
from channels.teams.answers import OUTCOMES, error_of
from channels.teams.limits import FORM, MESSAGE
from channels.teams.preview import STYLE, draw
from channels.webhook.answers import masked_answer
from channels.webhook.targets import Target, TargetOptions, Targets, check_targets, url_of

CARD = "application/vnd.microsoft.card.adaptive"
_TRUNCATED_NOTE = "Some of it was too large for Teams and is left out."
_HEADERS = {"Content-Type": "application/json"}


class TeamsConfig(TargetOptions):
    """The settings of the Teams channel. `targets`: mapping from the alias that rules use to the webhook URL of a Power
    Automate workflow.
    """

    targets: Mapping[str, Target] = Field(default_factory=dict)

    @property
    def guard(self) -> SsrfGuard:
        return SsrfGuard("channels.teams", (), self.allow_networks, self.allow_http)

    @model_validator(mode="after")
    def _urls_are_allowed(self) -> Self:
        check_targets(self.targets, self.guard)
        return self


class TeamsChannel(Channel):
    """Sends Adaptive Cards to Teams channels and chats. Content: an Adaptive Card."""

    def __init__(self, config: TeamsConfig) -> None:
        self._config = config
        self._targets = Targets(config.guard, config)

    def address(self, recipient: str) -> str:
        if recipient in self._config.targets:
            return recipient
        if "://" in recipient:
            raise UnknownRecipient(
                "a workflow's URL is a secret: name it in channels.teams.targets, and use that name in rules"
            )
        raise UnknownRecipient("no such Teams workflow here: add it to channels.teams.targets")

    def wire_preview(self, message: Message) -> WirePreview:
        return WirePreview("application/json", _message(_with_note(message)))

    async def send(self, message: Message) -> Receipt:
        """Send the card once. If it is unknown whether it arrived, a retry may show it twice, because Teams has no
        deduplication key.
        """
        (name,) = message.recipients
        url = url_of(self._config.targets[self.address(name)], name)
        response = await self._targets.post(url, _message(_with_note(message)), _HEADERS, name)
        answer = masked_answer(response, url)
        if (error := error_of(response, name, answer)) is not None:
            raise error
        return Receipt(answer=answer)

    async def check(self) -> Sequence[Finding]:
        """Connect to the server of each Power Automate workflow, without sending a request."""
        if not self._config.targets:
            return [Finding("channels.teams.targets is empty: nobody can be notified", ok=False)]
        return await self._targets.check(self._config.targets)

    async def aclose(self) -> None:
        await self._targets.aclose()


def _with_note(message: Message) -> Content:
    """Return the card with the note after the first part, the headline. A TextRun shows its text unchanged."""
    body = message.content.get("body")
    if not message.note or not isinstance(body, list):
        return message.content
    note = {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "isSubtle": True, "text": message.note}]}
    return {**message.content, "body": [*body[:1], note, *body[1:]]}


def _message(card: Content) -> bytes:
    """Return the message that contains the card.

    While the card is too large, the largest part after the first one is removed; the first part is the headline.
    """
    body: Any = card.get("body")
    encoded = _encode(card)
    while len(encoded) > MESSAGE and isinstance(body, list) and len(body) > 1:
        sizes = [len(orjson.dumps(part)) for part in body]
        largest = max(range(1, len(body)), key=sizes.__getitem__)
        body = body[:largest] + body[largest + 1 :]
        encoded = _encode({**card, "body": [*body, {"type": "TextBlock", "text": _TRUNCATED_NOTE, "wrap": True}]})
    return encoded


def _encode(card: Mapping[str, Any]) -> bytes:
    attachment = {"contentType": CARD, "contentUrl": None, "content": card}
    return orjson.dumps({"type": "message", "attachments": [attachment]})


CHANNEL_TYPE = ChannelType(
    config=TeamsConfig,
    open=TeamsChannel,
    title="Teams",
    # Microsoft documents no limit for Power Automate workflows, only that clients must respect status 429. So this
    # limit is our choice.
    rate="2/s",
    burst=2,
    form=FORM,
    document="card.yaml",
    headline=("fallbackText",),
    draw=draw,
    style=STYLE,
    example={"targets": {"example-team": {"url": "https://example.com/workflows/example"}}},
    aliases="targets",
    outcomes=OUTCOMES,
)
