"""PagerDuty's Events API v2. The client library blocks, so it works on threads of its own.

Limits and answers: PagerDuty's developer documentation, "Events API v2 overview" and "Rate limits".
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from channels.common.retry_after import retry_after
from channels.common.secret import SecretFile, reject_both, reveal
from channels.contract import (
    EXCERPT,
    Answer,
    ChannelError,
    Finding,
    InDoubt,
    Later,
    Message,
    Never,
    Receipt,
    ThreadBy,
    UnknownRecipient,
    WirePreview,
)

if TYPE_CHECKING:
    from channels.pagerduty.client import Reply, Session

LARGEST = 512 * 1024
"""Bytes of one event."""
LONGEST_KEY = 255
KEY_LENGTH = 32
"""Characters of a routing key."""
MASK = "********"
_NO_EVENT = {"event_action": "none"}
"""What PagerDuty refuses after it has looked at the key: the actions are trigger, acknowledge and resolve."""


Severity = Literal["critical", "error", "warning", "info"]


class SeverityRule(BaseModel):
    """A severity for some executions: where all that is said of them is true."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    severity: Severity
    phases: tuple[Literal["SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT"], ...] = ()
    """Any of them; empty for every phase."""
    domains: tuple[str, ...] = ()
    """Any of them, as the execution's; `*` stands for any characters. Empty for every domain."""
    labels: Mapping[str, str] = Field(default_factory=dict)
    """Of the execution: each must be there, with a value that its pattern matches."""

    def holds(self, phase: str, domain: str, labels: Mapping[str, str]) -> bool:
        return (
            (not self.phases or phase in self.phases)
            and (not self.domains or any(fnmatchcase(domain, pattern) for pattern in self.domains))
            and all(fnmatchcase(labels[name], want) if name in labels else False for name, want in self.labels.items())
        )


class PagerDutyService(BaseModel):
    """A service's Events API v2 integration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    routing_key: SecretStr | None = None
    routing_key_file: SecretFile | None = None
    severity: Severity | None = None
    """Instead of what the template says, and before `severities`."""

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        reject_both("routing_key", self.routing_key, self.routing_key_file)
        if self.routing_key is None and self.routing_key_file is None:
            raise ValueError("give routing_key or routing_key_file: the integration key of the service's Events API v2")
        return self


class PagerDutyConfig(BaseModel):
    """The services, by the names that launch plans use for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    events_url: str = Field("https://events.pagerduty.com", pattern=r"^https?://\S+$")
    """`https://events.eu.pagerduty.com` for the EU region."""
    services: Mapping[str, PagerDutyService] = Field(default_factory=dict)
    change_events: bool = False
    """Whether a launch plan's first run in a new version is told as a change event, which pages nobody."""
    severities: tuple[SeverityRule, ...] = ()
    """What templates have as `severity`: by the first that holds, else by the phase."""
    incident: ThreadBy = "launch_plan"
    """What one incident is about. The launch plan's next success resolves it, whichever it is."""
    fallback: Literal["email", "none"] = "none"
    """Where a recipient goes that is no service here."""
    timeout: float = Field(20, gt=0, le=100)
    """Seconds to wait for an answer."""
    connections: int = Field(8, ge=1, le=100)
    """Threads, each with a connection of its own."""

    def severity_of(self, phase: str, domain: str, labels: Mapping[str, str]) -> Severity | None:
        """The severity that the settings want for such an execution; None where they leave it to the phase."""
        return next((rule.severity for rule in self.severities if rule.holds(phase, domain, labels)), None)


class PagerDutyChannel:
    """Events for services. Content: the event without routing_key and dedup_key; without event_action a change event.

    A conversation is an incident: its messages share a dedup key, and its recovery resolves it.
    """

    def __init__(self, config: PagerDutyConfig) -> None:
        self._config = config
        self._threads = ThreadPoolExecutor(config.connections, thread_name_prefix="pagerduty")
        self._own = threading.local()
        self._sessions: list[Session] = []

    def address(self, recipient: str) -> str:
        if recipient not in self._config.services:
            raise UnknownRecipient("no such PagerDuty service here: add it to channels.pagerduty.services")
        return recipient

    def destination(self, recipients: tuple[str, ...]) -> str:
        return recipients[0]

    def thread_by(self, address: str) -> ThreadBy | None:
        del address
        return self._config.incident

    def wire_preview(self, message: Message) -> WirePreview:
        event = {"routing_key": MASK, **self._event(message)}
        return WirePreview("application/json", orjson.dumps(event, option=orjson.OPT_INDENT_2))

    async def send(self, message: Message) -> Receipt:
        from channels.pagerduty.client import NoAnswer, Unreachable  # noqa: PLC0415 - kept out of the command line's start

        service = self._config.services.get(message.recipients[0])
        if service is None:
            raise UnknownRecipient("no such PagerDuty service here any more: add it to channels.pagerduty.services")
        try:
            key = reveal(service.routing_key, service.routing_key_file) or ""
        except OSError as error:
            raise Later(f"the routing key's file can't be read: {error.strerror}") from None
        talk = message.thread
        if talk is not None and talk.superseded:
            since = "nothing was resolved: it has failed" if talk.resolves else "nobody was paged: it has succeeded"
            raise Never(f"{since} since then")
        if talk is not None and talk.resolves and not talk.earlier:
            return Receipt(answer=Answer("none", "no trigger had arrived: there was nothing to resolve"))
        event = self._event(message)
        try:
            reply = await asyncio.get_running_loop().run_in_executor(self._threads, self._post, key, event)
        except Unreachable as error:
            raise Later(f"PagerDuty can't be reached: {error}", provider_wide=True) from None
        except NoAnswer as error:
            raise InDoubt(f"PagerDuty did not answer: {error}; it may have taken the event") from None
        reference = {"dedup_key": event["dedup_key"]} if "dedup_key" in event else {}
        return _receipt(reply, reference, key)

    async def check(self) -> Sequence[Finding]:
        """Each service's key is shown with an event whose action doesn't exist: PagerDuty refuses it, and opens nothing."""
        if not self._config.services:
            return [Finding("channels.pagerduty.services is empty: nobody can be paged", ok=False)]
        return [await self._check_service(name) for name in self._config.services]

    async def _check_service(self, name: str) -> Finding:
        from channels.pagerduty.client import NoAnswer, Unreachable  # noqa: PLC0415

        service, url = self._config.services[name], self._config.events_url
        try:
            key = reveal(service.routing_key, service.routing_key_file) or ""
        except OSError as error:
            return Finding(f"{name}: routing_key_file can't be read: {error.strerror}", ok=False)
        if len(key) != KEY_LENGTH:
            said = f"{len(key)} characters, not {KEY_LENGTH}: give the integration key of the service's Events API v2"
            return Finding(f"{name}: the routing key has {said}", ok=False)
        try:
            reply = await asyncio.get_running_loop().run_in_executor(self._threads, self._post, key, _NO_EVENT)
        except (Unreachable, NoAnswer) as error:
            return Finding(f"{url} can't be reached: {error}; check channels.pagerduty.events_url", ok=False)
        if reply.status == 429:
            return Finding(f"{name}: PagerDuty is reached, and takes no more events of this service for now")
        if reply.status != 400:
            said = f"{url} answered {reply.status}: is channels.pagerduty.events_url PagerDuty's?"
            return Finding(f"{name}: {said}", ok=False)
        if "routing" in reply.text.lower():
            return Finding(
                f"{name}: PagerDuty doesn't know the routing key: check channels.pagerduty.services", ok=False
            )
        return Finding(f"{name}: PagerDuty is reached and has nothing against the routing key")

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for session in self._sessions:
            session.close()

    def _post(self, routing_key: str, event: Mapping[str, Any]) -> Reply:
        from channels.pagerduty.client import Session  # noqa: PLC0415

        session: Session | None = getattr(self._own, "session", None)
        if session is None:
            session = self._own.session = Session(self._config.events_url, self._config.timeout)
            self._sessions.append(session)
        return session.post("/v2/enqueue" if "event_action" in event else "/v2/change/enqueue", routing_key, event)

    def _event(self, message: Message) -> dict[str, Any]:
        if "event_action" not in message.content:  # PagerDuty, "Send change events": they have no dedup key
            return _within_limit(dict(message.content))
        talk = message.thread
        dedup_key = (talk.key if talk is not None else message.key)[:LONGEST_KEY]
        if talk is not None and talk.resolves:
            return {"event_action": "resolve", "dedup_key": dedup_key}
        event = {**message.content, "dedup_key": dedup_key}
        service = self._config.services.get(message.recipients[0])
        if service is not None and service.severity is not None and "payload" in event:
            event["payload"] = {**event["payload"], "severity": service.severity}
        return _within_limit(event)


def _within_limit(event: dict[str, Any]) -> dict[str, Any]:
    """An event that is too large loses its details first: who is paged needs the summary."""
    if len(orjson.dumps(event)) <= LARGEST - 1024 or "payload" not in event:
        return event
    details = {"note": "the details were too large for PagerDuty and were left out"}
    return {**event, "payload": {**event["payload"], "custom_details": details}}


def _receipt(reply: Reply, reference: Mapping[str, str], routing_key: str) -> Receipt:
    """Read the answer. Raises the ChannelError that it means."""
    text = " ".join(reply.text.split()).replace(routing_key, MASK)[:EXCERPT]
    answer = Answer(str(reply.status), text)
    if reply.status == 202:
        return Receipt(answer=answer, reference=reference)
    raise _error(reply, answer)


def _error(reply: Reply, answer: Answer) -> ChannelError:
    match reply.status:
        case 400 | 413:
            return Never(
                f"PagerDuty refused the event: {answer.text or reply.status}; check the service's routing key",
                answer=answer,
            )
        case 401 | 403 | 404:
            return Never(
                f"PagerDuty answered {reply.status}: check channels.pagerduty.events_url and the routing key",
                answer=answer,
            )
        case 429:
            wish = retry_after(reply.headers)
            return Later("PagerDuty takes no more events of this service for now", answer=answer, retry_after=wish)
        case status if status >= 500:
            wish = retry_after(reply.headers)
            return Later(f"PagerDuty is in trouble: {status}", answer=answer, retry_after=wish, provider_wide=True)
        case status:
            return InDoubt(f"PagerDuty gave an answer that means nothing to us: {status}", answer=answer)
