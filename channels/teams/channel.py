"""Microsoft Teams by a workflow's webhook ("When a Teams webhook request is received"): an Adaptive Card, POSTed.

Limits and answers: Microsoft's Teams platform documentation, "Create and send messages" of webhooks and connectors: a message
has at most 28 kB; a failure behind the webhook is told in the text of an answer with HTTP status 200.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from pydantic import Field

from channels.common.ssrf import Guard
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
from channels.webhook.targets import HookOptions, Hooks, HookTarget, answer_of, meaning, url_of

LARGEST = 28 * 1024
"""Bytes of one message, its wrapping included."""
CARD = "application/vnd.microsoft.card.adaptive"
_LEFT_OUT = "Some of it was too large for Teams and is left out."
_INNER_ERROR = re.compile(r"HTTP error (\d{3})")
_HEADERS = {"Content-Type": "application/json"}


class TeamsConfig(HookOptions):
    """The workflows, by the names that rules use for them."""

    targets: Mapping[str, HookTarget] = Field(default_factory=dict)


class TeamsChannel:
    """Cards for channels and chats. Content: an Adaptive Card."""

    def __init__(self, config: TeamsConfig) -> None:
        self._config = config
        guard = Guard("channels.teams", (), config.allow_networks, config.allow_http)
        self._hooks = Hooks(guard, config)

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
        """Teams knows no key to tell a repetition by: one after an unknown outcome may show the card twice."""
        (name,) = message.recipients
        url = url_of(self._config.targets[self.address(name)], name)
        reply = await self._hooks.post(url, _message(message.content), _HEADERS, name)
        answer = answer_of(reply, url)
        if (error := _error(reply.status, name, answer, reply.headers)) is not None:
            raise error
        return Receipt(answer=answer)

    async def check(self) -> Sequence[Finding]:
        """Connects to each workflow's server, and says nothing."""
        if not self._config.targets:
            return [Finding("channels.teams.targets is empty: nobody can be told", ok=False)]
        return await self._hooks.check(self._config.targets)

    async def aclose(self) -> None:
        await self._hooks.aclose()


def _error(status: int, name: str, answer: Answer, headers: Mapping[str, str]) -> ChannelError | None:
    """What an answer means; None where the card was taken: a workflow says 202 and nothing, a connector 200 and `1`."""
    if not 200 <= status <= 299:
        return meaning(status, name, answer, headers)
    if inner := _INNER_ERROR.search(answer.text):
        return meaning(int(inner[1]), name, Answer(inner[1], answer.text), headers)
    if "delivery failed" in answer.text or answer.text.startswith("<"):  # a proxy's page, perhaps
        return InDoubt(
            f"{name} answered {status} with words that are not Teams'; it may have taken the card", answer=answer
        )
    return None


def _message(card: Content) -> bytes:
    """The message that carries the card. From one that is too large its largest parts go, the headline never."""
    body: Any = card.get("body")
    written = _written(card)
    while len(written) > LARGEST and isinstance(body, list) and len(body) > 1:
        sizes = [len(orjson.dumps(part)) for part in body]
        largest = max(range(1, len(body)), key=sizes.__getitem__)
        body = body[:largest] + body[largest + 1 :]
        written = _written({**card, "body": [*body, {"type": "TextBlock", "text": _LEFT_OUT, "wrap": True}]})
    return written


def _written(card: Mapping[str, Any]) -> bytes:
    attachment = {"contentType": CARD, "contentUrl": None, "content": card}
    return orjson.dumps({"type": "message", "attachments": [attachment]})
