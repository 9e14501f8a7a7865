"""The PagerDuty channel: sends events to the Events API v2. The client library blocks, so it runs in threads.

Limits, and the meaning of answers, follow PagerDuty's developer documentation, "Events API v2 overview" and "Rate
limits".
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
    from channels.pagerduty.client import Response, Session

MAX_EVENT_BYTES = 512 * 1024
MAX_DEDUP_KEY = 255
"""Maximum number of characters in PagerDuty's dedup key. A longer key is cut."""
ROUTING_KEY_LENGTH = 32
"""Number of characters in a PagerDuty routing key."""
MASK = "********"
_INVALID_EVENT = {"event_action": "none"}
"""The event that `check` sends. PagerDuty checks the routing key first and then refuses the unknown action, so the
answer shows whether the key is known."""


Severity = Literal["critical", "error", "warning", "info"]


class SeverityRule(BaseModel):
    """Sets the severity of executions that meet all conditions of the rule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    severity: Severity
    phases: tuple[Literal["SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT"], ...] = ()
    """The execution must have one of these phases. If empty, any phase matches."""
    domains: tuple[str, ...] = ()
    """The execution's domain must match one of these patterns, in which `*` matches any characters. If empty, any
    domain matches."""
    labels: Mapping[str, str] = Field(default_factory=dict)
    """The execution must have each of these labels, and each label's value must match the pattern given for it."""

    def matches(self, phase: str, domain: str, labels: Mapping[str, str]) -> bool:
        return (
            (not self.phases or phase in self.phases)
            and (not self.domains or any(fnmatchcase(domain, pattern) for pattern in self.domains))
            and all(fnmatchcase(labels[name], want) if name in labels else False for name, want in self.labels.items())
        )


class PagerDutyService(BaseModel):
    """A PagerDuty service, addressed through its Events API v2 integration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    routing_key: SecretStr | None = None
    routing_key_file: SecretFile | None = None
    severity: Severity | None = None
    """The severity of all events that are sent to this PagerDuty service. If set, `severities` and the template's
    severity are ignored."""

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        reject_both("routing_key", self.routing_key, self.routing_key_file)
        if self.routing_key is None and self.routing_key_file is None:
            raise ValueError("give routing_key or routing_key_file: the integration key of the service's Events API v2")
        return self


class PagerDutyConfig(BaseModel):
    """The settings of the PagerDuty channel. `services`: mapping from the alias that rules use to the PagerDuty
    service.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    events_url: str = Field("https://events.pagerduty.com", pattern=r"^https?://\S+$")
    """The URL of the Events API. In PagerDuty's EU region it is `https://events.eu.pagerduty.com`."""
    services: Mapping[str, PagerDutyService] = Field(default_factory=dict)
    change_events: bool = False
    """If true, a change event is sent when a launch plan has run in a new version for the first time. PagerDuty pages
    nobody for change events."""
    severities: tuple[SeverityRule, ...] = ()
    """Rules that determine the value of `severity` in templates. The first rule that matches is used. If no rule
    matches, the value depends on the phase."""
    incident: ThreadBy = "launch_plan"
    """Whether one incident covers all executions of a launch plan or a single execution. In both cases, the launch
    plan's next success resolves the incident."""
    fallback: Literal["email", "none"] = "none"
    """The channel that notifies recipients who are not in `services`. `none`: no other channel does."""
    timeout: float = Field(20, gt=0, le=100)
    """Maximum number of seconds for connecting, and for waiting for PagerDuty's answer."""
    connections: int = Field(8, ge=1, le=100)
    """Number of threads that send events. Each thread has its own connection."""

    def severity_of(self, phase: str, domain: str, labels: Mapping[str, str]) -> Severity | None:
        """Return the severity from the first rule in `severities` that matches; None if no rule matches."""
        return next((rule.severity for rule in self.severities if rule.matches(phase, domain, labels)), None)


class PagerDutyChannel:
    """Sends events to PagerDuty services.

    Content: an event without `routing_key` and `dedup_key`. A change event also has no `event_action`. The messages of
    a thread share a dedup key, so they belong to one PagerDuty incident. The resolved notice resolves the incident.
    """

    def __init__(self, config: PagerDutyConfig) -> None:
        self._config = config
        self._executor = ThreadPoolExecutor(config.connections, thread_name_prefix="pagerduty")
        self._thread_local = threading.local()
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
        # Imported late: at the top of the file, pdpyras would slow down every command.
        from channels.pagerduty.client import NoAnswer, Unreachable  # noqa: PLC0415

        service = self._config.services.get(message.recipients[0])
        if service is None:
            raise UnknownRecipient("no such PagerDuty service here any more: add it to channels.pagerduty.services")
        try:
            routing_key = reveal(service.routing_key, service.routing_key_file) or ""
        except OSError as error:
            raise Later(f"the routing key's file can't be read: {error.strerror}") from None
        thread = message.thread
        if thread is not None and thread.superseded:
            since = "nothing was resolved: it has failed" if thread.resolves else "nobody was paged: it has succeeded"
            raise Never(f"{since} since then")
        if thread is not None and thread.resolves and not thread.earlier:
            return Receipt(answer=Answer("none", "no trigger had arrived: there was nothing to resolve"))
        event = self._event(message)
        try:
            response = await asyncio.get_running_loop().run_in_executor(self._executor, self._post, routing_key, event)
        except Unreachable as error:
            raise Later(f"PagerDuty can't be reached: {error}", provider_wide=True) from None
        except NoAnswer as error:
            raise InDoubt(f"PagerDuty did not answer: {error}; it may have taken the event") from None
        reference = {"dedup_key": event["dedup_key"]} if "dedup_key" in event else {}
        return _receipt(response, reference, routing_key)

    async def check(self) -> Sequence[Finding]:
        """Send an invalid event to each service: the answer shows whether the routing key is known. No incident is
        opened.
        """
        if not self._config.services:
            return [Finding("channels.pagerduty.services is empty: nobody can be paged", ok=False)]
        return [await self._check_service(name) for name in self._config.services]

    async def _check_service(self, name: str) -> Finding:
        from channels.pagerduty.client import NoAnswer, Unreachable  # noqa: PLC0415

        service, url = self._config.services[name], self._config.events_url
        try:
            routing_key = reveal(service.routing_key, service.routing_key_file) or ""
        except OSError as error:
            return Finding(f"{name}: routing_key_file can't be read: {error.strerror}", ok=False)
        if len(routing_key) != ROUTING_KEY_LENGTH:
            problem = f"{len(routing_key)} characters, not {ROUTING_KEY_LENGTH}"
            advice = "give the integration key of the service's Events API v2"
            return Finding(f"{name}: the routing key has {problem}: {advice}", ok=False)
        try:
            response = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._post, routing_key, _INVALID_EVENT
            )
        except (Unreachable, NoAnswer) as error:
            return Finding(f"{url} can't be reached: {error}; check channels.pagerduty.events_url", ok=False)
        if response.status == 429:
            return Finding(f"{name}: PagerDuty is reached, and takes no more events of this service for now")
        if response.status != 400:
            problem = f"{url} answered {response.status}: is channels.pagerduty.events_url PagerDuty's?"
            return Finding(f"{name}: {problem}", ok=False)
        if "routing" in response.text.lower():
            return Finding(
                f"{name}: PagerDuty doesn't know the routing key: check channels.pagerduty.services", ok=False
            )
        return Finding(f"{name}: PagerDuty is reached and has nothing against the routing key")

    async def aclose(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        for session in self._sessions:
            session.close()

    def _post(self, routing_key: str, event: Mapping[str, Any]) -> Response:
        from channels.pagerduty.client import Session  # noqa: PLC0415

        session: Session | None = getattr(self._thread_local, "session", None)
        if session is None:
            session = self._thread_local.session = Session(self._config.events_url, self._config.timeout)
            self._sessions.append(session)
        return session.post("/v2/enqueue" if "event_action" in event else "/v2/change/enqueue", routing_key, event)

    def _event(self, message: Message) -> dict[str, Any]:
        if "event_action" not in message.content:  # change events have no dedup key ("Send change events")
            return _limit_size(dict(message.content))
        thread = message.thread
        dedup_key = (thread.key if thread is not None else message.key)[:MAX_DEDUP_KEY]
        if thread is not None and thread.resolves:
            return {"event_action": "resolve", "dedup_key": dedup_key}
        event = {**message.content, "dedup_key": dedup_key}
        service = self._config.services.get(message.recipients[0])
        if service is not None and service.severity is not None and "payload" in event:
            event["payload"] = {**event["payload"], "severity": service.severity}
        return _limit_size(event)


def _limit_size(event: dict[str, Any]) -> dict[str, Any]:
    """Replace the details of an event that is too large for PagerDuty. The summary is kept, because the person who is
    paged needs it.
    """
    if len(orjson.dumps(event)) <= MAX_EVENT_BYTES - 1024 or "payload" not in event:
        return event
    details = {"note": "the details were too large for PagerDuty and were left out"}
    return {**event, "payload": {**event["payload"], "custom_details": details}}


def _receipt(response: Response, reference: Mapping[str, str], routing_key: str) -> Receipt:
    """Return the receipt if PagerDuty accepted the event, else raise the error. The routing key is masked in the
    answer's text.
    """
    text = " ".join(response.text.split()).replace(routing_key, MASK)[:EXCERPT]
    answer = Answer(str(response.status), text)
    if response.status == 202:
        return Receipt(answer=answer, reference=reference)
    raise _error(response, answer)


def _error(response: Response, answer: Answer) -> ChannelError:
    match response.status:
        case 400 | 413:
            return Never(
                f"PagerDuty refused the event: {answer.text or response.status}; check the service's routing key",
                answer=answer,
            )
        case 401 | 403 | 404:
            return Never(
                f"PagerDuty answered {response.status}: check channels.pagerduty.events_url and the routing key",
                answer=answer,
            )
        case 429:
            delay = retry_after(response.headers)
            return Later("PagerDuty takes no more events of this service for now", answer=answer, retry_after=delay)
        case status if status >= 500:
            delay = retry_after(response.headers)
            return Later(f"PagerDuty is in trouble: {status}", answer=answer, retry_after=delay, provider_wide=True)
        case status:
            return InDoubt(f"PagerDuty gave an answer that means nothing to us: {status}", answer=answer)
