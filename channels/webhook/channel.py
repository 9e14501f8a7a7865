"""The webhook channel: POSTs JSON or a CloudEvent to a URL.

The signature and the header names follow the Standard Webhooks specification, so that receivers can verify messages
with existing libraries. The modes `binary` and `structured` follow the HTTP protocol binding of CloudEvents 1.0,
sections 3.1 and 3.2.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from channels.common.network import HEADER_NAME
from channels.common.secret import HeaderLine, HeaderLineFile, Secret, SecretFile, header_line, reject_both, reveal
from channels.common.ssrf import Forbidden, HostPattern, SsrfGuard, is_address, origin, without_port
from channels.contract import (
    Answer,
    Channel,
    ChannelType,
    ContentForm,
    Finding,
    Message,
    Never,
    Receipt,
    UnknownRecipient,
    WirePreview,
)
from channels.webhook.answers import OUTCOMES, error_for, masked_answer
from channels.webhook.targets import (
    CommaList,
    Target,
    TargetOptions,
    Targets,
    check_targets,
    reveal_or_wait,
    url_of,
)

EVENT_TYPE = "dispatcher.notification.v1"
"""The CloudEvents attribute `type` of every message."""
_RESERVED_HEADER = re.compile(
    r"(content-.*|host|transfer-encoding|connection|idempotency-key|webhook-.*|ce-.*)", re.IGNORECASE
)
_UNENCODED = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')
"""The characters that an attribute of a CloudEvent may have in a header (HTTP protocol binding, section 3.1.3.2)."""
_URL = re.compile(r"https?:", re.IGNORECASE)
ORIGIN_CACHE_SIZE = 256
"""Maximum number of URLs from rules whose origin (scheme, host and port) is cached, because several steps of a delivery
need the origin."""


class HeaderValue(BaseModel):
    """An HTTP header's value, or the file that contains it. The value is never shown, because it may be a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: HeaderLine | None = None
    value_file: HeaderLineFile | None = None

    @model_validator(mode="after")
    def _has_a_value(self) -> Self:
        reject_both("value", self.value, self.value_file)
        if self.value is None and self.value_file is None:
            raise ValueError("give value or value_file")
        return self


def _accept_string(value: Any) -> Any:
    return {"value": value} if isinstance(value, str) else value


Header = Annotated[HeaderValue, BeforeValidator(_accept_string)]
Mode = Literal["json", "binary", "structured"]


class WebhookTarget(Target):
    """The URL of a receiver, and how requests to it are authenticated."""

    mode: Mode = "json"
    """With `json`, the request's body is the rendered template. With `binary` or `structured`, the request is a
    CloudEvent, and the rendered template is its data."""
    secret: Secret | None = None
    """The key that signs each message: `whsec_` followed by base64, or any other text."""
    secret_file: SecretFile | None = None
    headers: Mapping[str, Header] = Field(default_factory=dict)
    """Additional HTTP headers. Each has a value, or a file that contains the value: `Authorization: {value_file:
    /run/secrets/ops}`."""

    @model_validator(mode="after")
    def _secret_can_sign(self) -> Self:
        reject_both("secret", self.secret, self.secret_file)
        if (secret := reveal(self.secret, self.secret_file)) is not None:
            _signing_key(secret)
        return self

    @field_validator("headers")
    @classmethod
    def _no_reserved_headers(cls, headers: Mapping[str, Header]) -> Mapping[str, Header]:
        for name in headers:
            if not re.fullmatch(HEADER_NAME, name):
                raise ValueError(f"{name!r} is no header's name")
            if _RESERVED_HEADER.fullmatch(name):
                raise ValueError(f"{name} is a header that the channel sets by itself")
        return headers


class WebhookConfig(TargetOptions):
    """The settings of the webhook channel: the targets, and the hosts that URLs in rules may use."""

    targets: Mapping[str, WebhookTarget] = Field(default_factory=dict)
    allow_hosts: CommaList[HostPattern] = ()
    """Hosts that URLs in rules may use: `hooks.example.com`, `*.example.com`, `example.com:8443`. If empty, rules can't
    contain URLs, only the aliases of targets."""
    mode: Mode = "json"
    """The mode of messages to URLs in rules. Messages to a target use the target's own mode."""
    source: str = Field("/flyte-notification-dispatcher", pattern=r"^[!-~]+$")
    """The CloudEvents attribute `source`, a URI reference."""

    @field_validator("targets")
    @classmethod
    def _aliases_are_no_urls(cls, targets: Mapping[str, WebhookTarget]) -> Mapping[str, WebhookTarget]:
        if any(_URL.match(name) for name in targets):
            raise ValueError("a target's name is an alias, no URL")
        return targets

    @property
    def guard(self) -> SsrfGuard:
        return SsrfGuard("channels.webhook", self.allow_hosts, self.allow_networks, self.allow_http)

    @model_validator(mode="after")
    def _urls_are_allowed(self) -> Self:
        check_targets(self.targets, self.guard)
        for pattern in self.allow_hosts:
            if is_address(host := without_port(pattern)) and not self.guard.allows_address(host):
                raise ValueError(f"allow_hosts: {host} is a private or reserved address: add it to allow_networks too")
        return self


class WebhookChannel(Channel):
    """Sends messages to targets and to URLs in rules. Content: any JSON object."""

    def __init__(self, config: WebhookConfig) -> None:
        self._config = config
        guard = config.guard
        self._targets = Targets(guard, config)
        self._origin = lru_cache(ORIGIN_CACHE_SIZE)(lambda address: origin(guard.check_url(address)))

    def address(self, recipient: str) -> str:
        """Return a target's alias as it is. Return a URL if the settings allow it, else raise `UnknownRecipient`."""
        if recipient in self._config.targets:
            return recipient
        if not _URL.match(recipient):
            raise UnknownRecipient("no such webhook here: add it to channels.webhook.targets")
        try:
            url = self._targets.guard.check_url(recipient)
        except Forbidden as error:
            raise UnknownRecipient(str(error)) from None
        if not self._targets.guard.allows_host(url):
            raise UnknownRecipient("rules may not name URLs of this host: add it to channels.webhook.allow_hosts")
        return str(url)

    def destination(self, recipients: tuple[str, ...]) -> str:
        (address,) = recipients
        try:
            return address if address in self._config.targets else self._origin(address)
        except Forbidden:
            return address

    def wire_preview(self, message: Message) -> WirePreview:
        body, headers = self._request(message)
        return WirePreview(headers["Content-Type"].partition(";")[0], body)

    async def send(self, message: Message) -> Receipt:
        """Send the message to the target or URL.

        The headers `Idempotency-Key` and `webhook-id` contain the delivery's key, so that receivers recognize a
        repeated message.
        """
        (address,) = message.recipients
        target = self._config.targets.get(address)
        if target is None:  # a URL in a rule; raises if the target was removed from the settings
            address = self.address(address)
        name = address if target is not None else self._origin(address)
        url = url_of(target, name) if target is not None else address
        body, headers = self._request(message)
        secrets: list[str] = []
        if target is not None:
            custom, secret = (
                _custom_headers(target, name),
                reveal_or_wait(target.secret, target.secret_file, f"{name}: secret_file"),
            )
            secrets = [*_header_secrets(custom), *([secret, secret.removeprefix("whsec_")] if secret else [])]
            headers |= {**message.trace, **custom} | (_signature(secret, name, message.key, body) if secret else {})
        response = await self._targets.post(url, body, headers, name)
        # The text of an answer from a URL in a rule is not shown. The server may be internal, although the guard allows
        # it, and the author of the rule must not read its answers.
        status = response.status
        answer = masked_answer(response, url, secrets) if target is not None else Answer(str(status))
        if 200 <= status <= 299:
            return Receipt(answer=answer, reference={"idempotency_key": message.key})
        raise error_for(response, name, answer)

    async def check(self) -> Sequence[Finding]:
        """Connect to the server of each target, without sending a request."""
        if not self._config.targets and not self._config.allow_hosts:
            return [Finding("channels.webhook has neither targets nor allow_hosts: nobody can be notified", ok=False)]
        return await self._targets.check(self._config.targets)

    async def aclose(self) -> None:
        await self._targets.aclose()

    def _request(self, message: Message) -> tuple[bytes, dict[str, str]]:
        """Return the body and the headers of the request. Both are the same at every attempt."""
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
        content = {"note": message.note, **message.content} if message.note else message.content
        match mode:
            case "json":
                return orjson.dumps(content), headers
            case "binary":
                attributes = {f"ce-{name}": quote(value, safe=_UNENCODED) for name, value in event.items()}
                return orjson.dumps(content), headers | attributes
            case "structured":
                whole = {**event, "datacontenttype": "application/json", "data": content}
                media_type = "application/cloudevents+json; charset=utf-8"
                return orjson.dumps(whole), headers | {"Content-Type": media_type}


def _custom_headers(target: WebhookTarget, name: str) -> dict[str, str]:
    """Return the target's additional headers. Raises `Misconfigured` if a file can't be read, `Never` if a value is invalid."""
    headers = {}
    for header, setting in target.headers.items():
        value = reveal_or_wait(setting.value, setting.value_file, f"{name}: header {header}'s value_file") or ""
        try:
            headers[header] = header_line(value)
        except ValueError:
            raise Never(f"{name}: header {header}'s value_file must hold one line of ASCII") from None
    return headers


def _header_secrets(headers: Mapping[str, str]) -> Iterator[str]:
    """Yield what a receiver may repeat of the headers: each value, what follows its first word, as in `Bearer TOKEN`,
    and the login and password of a Basic credential.
    """
    for value in headers.values():
        scheme, _, credential = value.partition(" ")
        yield from (value, credential.strip())
        if scheme.lower() == "basic":
            with suppress(ValueError):
                login = base64.b64decode(credential).decode()
                yield from (login, *login.split(":", 1))


def _signing_key(secret: str) -> bytes:
    """Return the key of the signature. Raises `ValueError` if the secret starts with `whsec_` but is not valid base64."""
    try:
        return base64.b64decode(secret[6:], validate=True) if secret.startswith("whsec_") else secret.encode()
    except ValueError:
        raise ValueError("what follows whsec_ in the secret must be base64") from None


def _signature(secret: str, name: str, key: str, body: bytes) -> dict[str, str]:
    """Return the headers with the signature and its timestamp.

    The signature is the HMAC-SHA256 of `ID.TIMESTAMP.BODY`: ID is the delivery's key, TIMESTAMP the Unix time of this
    attempt. Raises `Never` if the secret starts with `whsec_` but is not valid base64.
    """
    try:
        signing_key = _signing_key(secret)
    except ValueError as error:
        raise Never(f"{name}: {error}") from None
    timestamp = str(int(time.time()))  # noqa: TID251 - real time, because receivers compare it with their clock
    digest = hmac.new(signing_key, b".".join((key.encode(), timestamp.encode(), body)), hashlib.sha256).digest()
    return {"webhook-timestamp": timestamp, "webhook-signature": f"v1,{base64.b64encode(digest).decode()}"}


CHANNEL_TYPE = ChannelType(
    config=WebhookConfig,
    open=WebhookChannel,
    title="Webhook",
    form=ContentForm(max_bytes=256 * 1024),  # the dispatcher's choice
    document="body.yaml",
    example={"targets": {"example-hook": {"url": "https://example.com/hooks/example"}}},
    aliases="targets",
    outcomes=OUTCOMES,
)
