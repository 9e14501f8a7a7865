"""Webhooks: a JSON body, POSTed to a URL.

Signature and names of headers: the Standard Webhooks specification, so that receivers find libraries that verify it. Modes
`binary` and `structured`: CloudEvents 1.0, HTTP protocol binding, 3.1 and 3.2.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

from channels.common.secret import SecretFile, one_of
from channels.common.ssrf import Forbidden, Guard, origin
from channels.contract import Answer, Finding, Message, Never, Receipt, ThreadBy, UnknownRecipient, WirePreview
from channels.webhook.targets import HookOptions, Hooks, HookTarget, Listed, answer_of, meaning, revealed, url_of

EVENT_TYPE = "dispatcher.notification.v1"
"""The CloudEvents type of what we post."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")
_OURS = re.compile(r"(content-.*|host|transfer-encoding|connection|idempotency-key|webhook-.*|ce-.*)", re.IGNORECASE)
_URL = re.compile(r"https?:", re.IGNORECASE)
URLS = 256
"""Of rules, whose servers are known, so that they are not read again at each step of a delivery."""


class HeaderValue(BaseModel):
    """A header's value, or the file that holds it; a value may be a secret, so it is never shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: SecretStr | None = None
    value_file: SecretFile | None = None

    @model_validator(mode="after")
    def _has_a_value(self) -> Self:
        one_of("value", self.value, self.value_file)
        if self.value is None and self.value_file is None:
            raise ValueError("give value or value_file")
        if self.value is not None and not _VALUE.fullmatch(self.value.get_secret_value()):
            raise ValueError("a header's value is one line of ASCII")
        return self


def _plain_value(given: Any) -> Any:
    return {"value": given} if isinstance(given, str) else given


Header = Annotated[HeaderValue, BeforeValidator(_plain_value)]
Mode = Literal["json", "binary", "structured"]


class WebhookTarget(HookTarget):
    """A receiver, and how it knows that it is us."""

    mode: Mode = "json"
    """`json`: the templates' message. `binary`, `structured`: the same as a CloudEvent's data."""
    secret: SecretStr | None = None
    """Signs each message: `whsec_` and base64, or any text."""
    secret_file: SecretFile | None = None
    headers: Mapping[str, Header] = Field(default_factory=dict)
    """More headers: `Authorization: {value_file: /run/secrets/ops}`, or a value as it is."""

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        one_of("secret", self.secret, self.secret_file)
        return self

    @field_validator("headers")
    @classmethod
    def _headers_are_not_ours(cls, headers: Mapping[str, Header]) -> Mapping[str, Header]:
        for name in headers:
            if not _TOKEN.fullmatch(name):
                raise ValueError(f"{name!r} is no header's name")
            if _OURS.fullmatch(name):
                raise ValueError(f"{name} is a header that the channel sets by itself")
        return headers


class WebhookConfig(HookOptions):
    """The targets, by the names that rules use for them, and the hosts that rules may name by URL."""

    targets: Mapping[str, WebhookTarget] = Field(default_factory=dict)
    allow_hosts: Listed[str] = ()
    """Hosts to which URLs in rules may lead: `hooks.example.com`, `*.example.com`, `example.com:8443`; none without it."""
    mode: Mode = "json"
    """For URLs in rules."""
    source: str = Field("/flyte-notification-dispatcher", pattern=r"^[!-~]+$")
    """The CloudEvents source: a URI reference."""

    @field_validator("targets")
    @classmethod
    def _names_are_no_urls(cls, targets: Mapping[str, WebhookTarget]) -> Mapping[str, WebhookTarget]:
        if any(_URL.match(name) for name in targets):
            raise ValueError("a target's name is an alias, no URL")
        return targets


class WebhookChannel:
    """POSTs to targets and to URLs in rules. Content: any JSON object."""

    def __init__(self, config: WebhookConfig) -> None:
        self._config = config
        guard = Guard("channels.webhook", config.allow_hosts, config.allow_networks, config.allow_http)
        self._hooks = Hooks(guard, config)
        self._server = lru_cache(URLS)(lambda address: origin(guard.url(address)))

    def address(self, recipient: str) -> str:
        """An alias stays one. A URL must be one that the settings allow rules to name."""
        if recipient in self._config.targets:
            return recipient
        if not _URL.match(recipient):
            raise UnknownRecipient("no such webhook here: add it to channels.webhook.targets")
        try:
            url = self._hooks.guard.url(recipient)
        except Forbidden as error:
            raise UnknownRecipient(str(error)) from None
        if not self._hooks.guard.lists(url):
            raise UnknownRecipient("rules may not name URLs of this host: add it to channels.webhook.allow_hosts")
        return str(url)

    def destination(self, recipients: tuple[str, ...]) -> str:
        (address,) = recipients
        try:
            return address if address in self._config.targets else self._server(address)
        except Forbidden:
            return address

    def thread_by(self, address: str) -> ThreadBy | None:
        del address
        return None

    def wire_preview(self, message: Message) -> WirePreview:
        body, headers = self._letter(message)
        return WirePreview(headers["Content-Type"].partition(";")[0], body)

    async def send(self, message: Message) -> Receipt:
        """The key goes as `Idempotency-Key` and `webhook-id`, so that a repetition is known for one."""
        (address,) = message.recipients
        target = self._config.targets.get(address)
        if target is None:  # a URL of a rule's; or what was one of our targets when the message was made
            address = self.address(address)
        name = address if target is not None else self._server(address)
        url = url_of(target, name) if target is not None else address
        body, headers = self._letter(message)
        secrets: list[str] = []
        if target is not None:
            own, secret = _own_headers(target, name), _secret(target, name)
            secrets = [*own.values(), *([secret] if secret else [])]
            headers |= {**message.trace, **own} | (_signature(secret, name, message.key, body) if secret else {})
        reply = await self._hooks.post(url, body, headers, name)
        # what a server of a rule's choice says is not shown: it may be one of ours that the guard doesn't know
        answer = answer_of(reply, url, secrets) if target is not None else Answer(str(reply.status))
        if 200 <= reply.status <= 299:
            return Receipt(answer=answer, reference={"idempotency_key": message.key})
        raise meaning(reply.status, name, answer, reply.headers)

    async def check(self) -> Sequence[Finding]:
        """Connects to each target, and says nothing."""
        if not self._config.targets and not self._config.allow_hosts:
            return [Finding("channels.webhook has neither targets nor allow_hosts: nobody can be told", ok=False)]
        return await self._hooks.check(self._config.targets)

    async def aclose(self) -> None:
        await self._hooks.aclose()

    def _letter(self, message: Message) -> tuple[bytes, dict[str, str]]:
        """Body and headers, the same at every attempt."""
        target = self._config.targets.get(message.recipients[0])
        mode = target.mode if target is not None else self._config.mode
        headers = {"Content-Type": "application/json", "Idempotency-Key": message.key, "webhook-id": message.key}
        event = {
            "specversion": "1.0",
            "id": message.key,
            "source": self._config.source,
            "type": EVENT_TYPE,
            "time": message.created_at.isoformat(),
        }
        match mode:
            case "json":
                return orjson.dumps(message.content), headers
            case "binary":
                return orjson.dumps(message.content), headers | {f"ce-{name}": value for name, value in event.items()}
            case "structured":
                whole = {**event, "datacontenttype": "application/json", "data": message.content}
                media_type = "application/cloudevents+json; charset=utf-8"
                return orjson.dumps(whole), headers | {"Content-Type": media_type}


def _own_headers(target: WebhookTarget, name: str) -> dict[str, str]:
    """The settings' headers. Raises Later or Never where a value can't be had or can't be sent."""
    headers = {}
    for header, given in target.headers.items():
        value = revealed(given.value, given.value_file, f"{name}: header {header}'s value_file") or ""
        if not _VALUE.fullmatch(value):
            raise Never(f"{name}: header {header}'s value_file must hold one line of ASCII")
        headers[header] = value
    return headers


def _secret(target: WebhookTarget, name: str) -> str | None:
    """What signs. Raises Later or Never where it can't be had: nothing goes out unsigned for that."""
    secret = revealed(target.secret, target.secret_file, f"{name}: secret_file")
    if secret is not None and not secret:
        raise Never(f"{name}: the secret is empty")
    return secret


def _signature(secret: str, name: str, key: str, body: bytes) -> dict[str, str]:
    """HMAC-SHA256 over `ID.TIMESTAMP.BODY`, with the seconds since 1970 of this attempt. Raises Never for a bad secret."""
    try:
        by = base64.b64decode(secret[6:], validate=True) if secret.startswith("whsec_") else secret.encode()
    except ValueError:
        raise Never(f"{name}: what follows whsec_ in the secret must be base64") from None
    at = str(int(time.time()))  # noqa: TID251 - receivers compare it with their clock's time
    digest = hmac.new(by, b".".join((key.encode(), at.encode(), body)), hashlib.sha256).digest()
    return {"webhook-timestamp": at, "webhook-signature": f"v1,{base64.b64encode(digest).decode()}"}
