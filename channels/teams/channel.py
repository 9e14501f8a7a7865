"""The Microsoft Teams channel: POSTs an Adaptive Card to the webhook URL of a Power Automate workflow.

The Power Automate workflow must have the trigger "When a Teams webhook request is received".

Limits, and the meaning of answers, follow "Create and send messages" in Microsoft's Teams platform documentation
(webhooks and connectors). A message has at most 28 kB. An answer with HTTP status 200 may report a failure in its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from pydantic import Field

from channels.common.ssrf import SsrfGuard
from channels.contract import (
    Answer,
    ChannelError,
    Content,
    Finding,
    InDoubt,
    Message,
    Receipt,
    ThreadBy,
    UnknownRecipient,
    WirePreview,
)
from channels.webhook.targets import Target, TargetOptions, Targets, error_for_status, masked_answer, url_of

MAX_BYTES = 28 * 1024
"""Maximum number of bytes in one message: the card and the JSON around it."""
CARD = "application/vnd.microsoft.card.adaptive"
_TRUNCATED_NOTE = "Some of it was too large for Teams and is left out."
_INNER_ERROR = re.compile(r"HTTP error (\d{3})")
_HEADERS = {"Content-Type": "application/json"}


class TeamsConfig(TargetOptions):
    """The settings of the Teams channel. `targets`: mapping from the alias that rules use to the webhook URL of a Power
    Automate workflow.
    """

    targets: Mapping[str, Target] = Field(default_factory=dict)


class TeamsChannel:
    """Sends Adaptive Cards to Teams channels and chats. Content: an Adaptive Card."""

    def __init__(self, config: TeamsConfig) -> None:
        self._config = config
        guard = SsrfGuard("channels.teams", (), config.allow_networks, config.allow_http)
        self._targets = Targets(guard, config)

    def address(self, recipient: str) -> str:
        if recipient in self._config.targets:
            return recipient
        if "://" in recipient:
            raise UnknownRecipient(
                "a workflow's URL is a secret: name it in channels.teams.targets, and use that name in rules"
            )
        raise UnknownRecipient("no such Teams workflow here: add it to channels.teams.targets")

    def destination(self, recipients: tuple[str, ...]) -> str:
        return recipients[0]

    def thread_by(self, address: str) -> ThreadBy | None:
        del address
        return None

    def wire_preview(self, message: Message) -> WirePreview:
        return WirePreview("application/json", _message(message.content))

    async def send(self, message: Message) -> Receipt:
        """Send the card once. If it is unknown whether it arrived, a retry may show it twice, because Teams has no
        deduplication key.
        """
        (name,) = message.recipients
        url = url_of(self._config.targets[self.address(name)], name)
        response = await self._targets.post(url, _message(message.content), _HEADERS, name)
        answer = masked_answer(response, url)
        if (error := _error(response.status, name, answer, response.headers)) is not None:
            raise error
        return Receipt(answer=answer)

    async def check(self) -> Sequence[Finding]:
        """Connect to the server of each Power Automate workflow, without sending a request."""
        if not self._config.targets:
            return [Finding("channels.teams.targets is empty: nobody can be notified", ok=False)]
        return await self._targets.check(self._config.targets)

    async def aclose(self) -> None:
        await self._targets.aclose()


def _error(status: int, name: str, answer: Answer, headers: Mapping[str, str]) -> ChannelError | None:
    """Return the error for Teams' answer; None if Teams accepted the card.

    A Power Automate workflow accepts a card with status 202 and an empty body. A connector accepts it with status 200
    and the text `1`.
    """
    if not 200 <= status <= 299:
        return error_for_status(status, name, answer, headers)
    if inner := _INNER_ERROR.search(answer.text):
        return error_for_status(int(inner[1]), name, Answer(inner[1], answer.text), headers)
    if "delivery failed" in answer.text or answer.text.startswith("<"):  # `<`: an HTML page, probably from a proxy
        return InDoubt(
            f"{name} answered {status} with words that are not Teams'; it may have taken the card", answer=answer
        )
    return None


def _message(card: Content) -> bytes:
    """Return the message that contains the card.

    While the card is too large, the largest part after the first one is removed; the first part is the headline.
    """
    body: Any = card.get("body")
    encoded = _encode(card)
    while len(encoded) > MAX_BYTES and isinstance(body, list) and len(body) > 1:
        sizes = [len(orjson.dumps(part)) for part in body]
        largest = max(range(1, len(body)), key=sizes.__getitem__)
        body = body[:largest] + body[largest + 1 :]
        encoded = _encode({**card, "body": [*body, {"type": "TextBlock", "text": _TRUNCATED_NOTE, "wrap": True}]})
    return encoded


def _encode(card: Mapping[str, Any]) -> bytes:
    attachment = {"contentType": CARD, "contentUrl": None, "content": card}
    return orjson.dumps({"type": "message", "attachments": [attachment]})
