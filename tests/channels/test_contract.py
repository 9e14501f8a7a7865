"""Runs the contract tests for each built-in channel."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from channels.contract import Channel, Content, Message
from channels.email.channel import EmailChannel
from channels.email.config import EmailConfig
from channels.pagerduty.channel import PagerDutyChannel, PagerDutyConfig
from channels.slack.channel import SlackChannel, SlackConfig
from channels.teams.channel import TeamsChannel, TeamsConfig
from channels.webhook.channel import WebhookChannel, WebhookConfig
from tests.channels.contract import ChannelContract, HttpProvider, Provider, Reaction
from tests.support.http import Request, ScriptedHttp, answer
from tests.support.mail import CONTENT
from tests.support.smtp import HALF, HANG, TAKE_AND_DROP, ScriptedRelay

NOW = datetime(2026, 11, 20, 9, 14, 21, tzinfo=UTC)
UNREACHABLE_URL = "http://127.0.0.1:1"
SECRET = "0123456789abcdef0123456789abcdef"


def messages_to(recipient: str, content: Content) -> Callable[[str], Message]:
    """A function that creates a message with the given key."""
    return lambda key: Message(key=key, recipients=(recipient,), content=content, created_at=NOW)


@dataclass(slots=True)
class MailProvider:
    """A mail relay. The message's key is in its Message-ID."""

    relay: ScriptedRelay

    def next(self, reaction: Reaction) -> None:
        replies = {
            Reaction.TRY_LATER: "451 4.3.0 not now",
            Reaction.REFUSE: "554 5.6.0 refused",
            Reaction.DISCONNECT: TAKE_AND_DROP,
            Reaction.NO_ANSWER: HANG,
            Reaction.PARTIAL_ANSWER: HALF,
            Reaction.INVALID_ANSWER: "HTTP/1.1 400 Bad Request",
        }
        self.relay.script.append(("mail", replies[reaction]))

    @property
    def seen(self) -> Sequence[str]:
        found = (re.search(rb"\r\nMessage-ID: <([^@>]+)@", raw) for raw in self.relay.received)
        return [match[1].decode() if match else "a mail without a Message-ID" for match in found]

    @property
    def open(self) -> int:
        return self.relay.open

    @property
    def connections(self) -> int:
        return len(self.relay.sessions)

    async def until(self, condition: Callable[[], bool]) -> None:
        await self.relay.until(condition)


class TestEmail(ChannelContract):
    secrets: Sequence[str] = ("the-password",)

    @pytest.fixture
    async def provider(self) -> AsyncIterator[Provider]:
        async with ScriptedRelay(extensions=("AUTH PLAIN",), always={"AUTH": "235 welcome"}) as relay:
            yield MailProvider(relay)

    @pytest.fixture
    def new_channel(self, provider: MailProvider) -> Channel:
        return self._channel(provider.relay.port)

    @pytest.fixture
    def unreachable_channel(self) -> Channel:
        return self._channel(1)

    @pytest.fixture
    def message(self) -> Callable[[str], Message]:
        return messages_to("a@example.com", CONTENT)

    def _channel(self, port: int) -> Channel:
        options = {"host": "127.0.0.1", "port": port, "security": "none", "from": "flyte@example.com", "timeout": 1}
        login = {"username": "flyte", "password": self.secrets[0]}
        return EmailChannel(EmailConfig.model_validate({**options, **login}))


class TestSlack(ChannelContract):
    secrets: Sequence[str] = ("xoxb-secret",)

    @pytest.fixture
    async def provider(self) -> AsyncIterator[Provider]:
        async with ScriptedHttp(default=answer(200, b'{"ok":true,"channel":"C0000001","ts":"1.2"}')) as server:
            answers = {
                Reaction.TRY_LATER: answer(429, b'{"ok":false,"error":"ratelimited"}'),
                Reaction.REFUSE: answer(200, b'{"ok":false,"error":"invalid_blocks"}'),
            }
            yield HttpProvider(server, self._key, answers)

    @pytest.fixture
    def new_channel(self, provider: HttpProvider) -> Channel:
        return self._channel(provider.server.url)

    @pytest.fixture
    def unreachable_channel(self) -> Channel:
        return self._channel(UNREACHABLE_URL)

    @pytest.fixture
    def message(self) -> Callable[[str], Message]:
        return messages_to("C0000001", {"text": "train.daily failed"})

    def _channel(self, url: str) -> Channel:
        return SlackChannel(SlackConfig(token=self.secrets[0], api_url=f"{url}/api/", timeout=1))

    def _key(self, request: Request) -> str | None:
        assert request.headers["authorization"] == f"Bearer {self.secrets[0]}"
        if request.path != "/api/chat.postMessage":
            return None
        key: str = request.json["metadata"]["event_payload"]["key"]
        return key


class TestPagerDuty(ChannelContract):
    secrets: Sequence[str] = (SECRET,)

    @pytest.fixture
    async def provider(self) -> AsyncIterator[Provider]:
        async with ScriptedHttp(default=answer(202, b'{"status":"success"}')) as server:
            answers = {Reaction.TRY_LATER: answer(429, b"{}"), Reaction.REFUSE: answer(400, SECRET.encode())}
            yield HttpProvider(server, self._key, answers)

    @pytest.fixture
    def new_channel(self, provider: HttpProvider) -> Channel:
        return self._channel(provider.server.url)

    @pytest.fixture
    def unreachable_channel(self) -> Channel:
        return self._channel(UNREACHABLE_URL)

    @pytest.fixture
    def message(self) -> Callable[[str], Message]:
        payload = {"summary": "train.daily failed", "source": "p/d/n", "severity": "error"}
        return messages_to("ml", {"event_action": "trigger", "payload": payload})

    def _channel(self, url: str) -> Channel:
        services = {"ml": {"routing_key": SECRET}}
        return PagerDutyChannel(PagerDutyConfig.model_validate({"events_url": url, "services": services, "timeout": 1}))

    def _key(self, request: Request) -> str | None:
        event: Any = request.json
        assert event["routing_key"] == SECRET
        if event["event_action"] == "none":  # sent by check()
            return None
        key: str = event["dedup_key"]
        return key


class TestTeams(ChannelContract):
    secrets: Sequence[str] = ("sig-of-the-workflow",)

    @pytest.fixture
    async def provider(self) -> AsyncIterator[Provider]:
        async with ScriptedHttp(default=answer(202)) as server:
            failed = b"Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error "
            answers = {
                Reaction.TRY_LATER: answer(200, failed + b"429 with ContextId x"),
                Reaction.REFUSE: answer(400, SECRET.encode()),
            }
            yield HttpProvider(server, self._key, answers)

    @pytest.fixture
    def new_channel(self, provider: HttpProvider) -> Channel:
        return self._channel(provider.server.url)

    @pytest.fixture
    def unreachable_channel(self) -> Channel:
        return self._channel(UNREACHABLE_URL)

    @pytest.fixture
    def message(self) -> Callable[[str], Message]:
        """A Teams message has no key, so the card's text is the key."""
        return lambda key: Message(
            key=key,
            recipients=("ml",),
            content={"type": "AdaptiveCard", "version": "1.4", "body": [{"type": "TextBlock", "text": key}]},
            created_at=NOW,
        )

    def _channel(self, url: str) -> Channel:
        targets = {"ml": {"url": f"{url}/workflows/1?sig={self.secrets[0]}"}}
        options = {"allow_http": True, "allow_networks": ["127.0.0.0/8"], "timeout": 1}
        return TeamsChannel(TeamsConfig.model_validate({"targets": targets, **options}))

    def _key(self, request: Request) -> str | None:
        assert request.path == f"/workflows/1?sig={self.secrets[0]}"
        (attachment,) = request.json["attachments"]
        assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
        key: str = attachment["content"]["body"][0]["text"]
        return key


class TestWebhook(ChannelContract):
    secrets: Sequence[str] = ("whsec_c2VjcmV0LW9mLXRoZS10ZXN0cw==", "Bearer hidden", "/hooks/hidden-path")

    @pytest.fixture
    async def provider(self) -> AsyncIterator[Provider]:
        async with ScriptedHttp(default=answer(204)) as server:
            answers = {
                Reaction.TRY_LATER: answer(503, b"", Retry_After="3"),
                Reaction.REFUSE: answer(422, " ".join(self.secrets).encode()),
            }
            yield HttpProvider(server, self._key, answers)

    @pytest.fixture
    def new_channel(self, provider: HttpProvider) -> Channel:
        return self._channel(provider.server.url)

    @pytest.fixture
    def unreachable_channel(self) -> Channel:
        return self._channel(UNREACHABLE_URL)

    @pytest.fixture
    def message(self) -> Callable[[str], Message]:
        return messages_to("ops", {"text": "train.daily failed"})

    def _channel(self, url: str) -> Channel:
        secret, header, path = self.secrets
        targets = {"ops": {"url": f"{url}{path}", "secret": secret, "headers": {"Authorization": header}}}
        options = {"allow_http": True, "allow_networks": ["127.0.0.0/8"], "timeout": 1}
        return WebhookChannel(WebhookConfig.model_validate({"targets": targets, **options}))

    def _key(self, request: Request) -> str | None:
        assert (request.path, request.headers["authorization"]) == (self.secrets[2], self.secrets[1])
        assert request.headers["webhook-signature"].startswith("v1,")
        return request.headers["idempotency-key"]
