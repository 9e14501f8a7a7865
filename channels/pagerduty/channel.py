"""The PagerDuty channel: sends events to the Events API v2. The client library blocks, so it runs in threads.

Limits follow PagerDuty's developer documentation, "Events API v2 Overview" and "Send an Alert Event".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from channels.common.drawing import mapping
from channels.common.network import HttpUrl
from channels.common.secret import HeaderToken, HeaderTokenFile, reject_both, reveal
from channels.contract import (
    NOTE,
    Answer,
    Channel,
    ChannelType,
    Content,
    Finding,
    InDoubt,
    Later,
    Message,
    Receipt,
    ThreadBy,
    UnknownRecipient,
    WirePreview,
)
from channels.pagerduty.answers import MASK, OUTCOMES, NoAnswer, Response, Unreachable, answer_of, error_of
from channels.pagerduty.change_event import change_event
from channels.pagerduty.limits import EVENT, FORM, Severity
from channels.pagerduty.preview import STYLE, draw
from channels.pagerduty.threads import DaemonThreads, NoFreeThread, Overtime

if TYPE_CHECKING:
    from channels.pagerduty.client import Session

log = logging.getLogger(__name__)

MAX_DEDUP_KEY = 255
"""Maximum number of characters in PagerDuty's dedup key. A longer key is cut."""
ROUTING_KEY_LENGTH = 32
"""Number of characters in a PagerDuty routing key."""
ALERT_PATH = "/v2/enqueue"
CHANGE_PATH = "/v2/change/enqueue"
IMPORT_TIMEOUT = 60.0
"""Maximum number of seconds for importing the client library, before the first event is sent."""
SPARE_THREADS = 32
"""Number of threads, in addition to `connections`, that replace threads that still wait for an answer after the timeout.
The circuit breaker opens before all of them wait: after five events in a row without an answer, one event at a time
tests PagerDuty."""
_INVALID_EVENT = {"event_action": "none"}
"""The event that `check` sends. PagerDuty checks the routing key first and then refuses the unknown action, so the
answer shows whether the key is known."""


class PagerDutyService(BaseModel):
    """A PagerDuty service, addressed through its Events API v2 integration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    routing_key: HeaderToken | None = None
    routing_key_file: HeaderTokenFile | None = None
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

    events_url: HttpUrl = "https://events.pagerduty.com"
    """The URL of the Events API. In PagerDuty's EU region it is `https://events.eu.pagerduty.com`. The URL of an
    endpoint (`…/v2/enqueue`) is accepted, too, because other programs ask for this URL."""
    services: Mapping[str, PagerDutyService] = Field(default_factory=dict)
    change_events: bool = False
    """If true, a change event is sent when a launch plan has run in a new version for the first time. PagerDuty pages
    nobody for change events."""
    incident: ThreadBy = "launch_plan"
    """Whether one incident covers all executions of a launch plan or a single execution. In both cases, the launch
    plan's next success resolves the incident."""
    fallback: Literal["email", "none"] = "none"
    """The channel that notifies recipients who are not in `services`. `none`: no other channel does."""
    timeout: float = Field(20, gt=0, le=100)
    """Maximum number of seconds until PagerDuty has answered. Half of it is for connecting."""
    connections: int = Field(8, ge=1, le=100)
    """Maximum number of events that are sent at the same time. Each is sent by its own thread and connection."""

    @field_validator("events_url")
    @classmethod
    def _without_endpoint(cls, url: str) -> str:
        base = url.rstrip("/")
        for endpoint in (CHANGE_PATH, ALERT_PATH, "/v2"):
            base = base.removesuffix(endpoint)
        return base.rstrip("/")


class PagerDutyChannel(Channel):
    """Sends events to PagerDuty services.

    Content: an event without `routing_key` and `dedup_key`. A change event also has no `event_action`. The messages of
    a thread share a dedup key, so they belong to one PagerDuty incident. The resolved notice resolves the incident.
    """

    def __init__(self, config: PagerDutyConfig) -> None:
        self._config = config
        self._threads = DaemonThreads(config.connections, config.connections + SPARE_THREADS)
        self._idle_sessions: list[Session] = []
        """Sessions that no thread uses. Threads take and return them."""
        self._client_imported = False
        self._closed = False

    def address(self, recipient: str) -> str:
        if recipient not in self._config.services:
            raise UnknownRecipient("no such PagerDuty service here: add it to channels.pagerduty.services")
        return recipient

    def thread_by(self, address: str) -> ThreadBy | None:
        del address
        return self._config.incident

    def wire_preview(self, message: Message) -> WirePreview:
        event = {"routing_key": MASK, **self._event(message)}
        return WirePreview("application/json", orjson.dumps(event, option=orjson.OPT_INDENT_2))

    async def send(self, message: Message) -> Receipt:
        alias = message.recipients[0]
        service = self._config.services.get(alias)
        if service is None:
            raise UnknownRecipient("no such PagerDuty service here any more: add it to channels.pagerduty.services")
        try:
            routing_key = reveal(service.routing_key, service.routing_key_file) or ""
        except OSError as error:
            raise Later(f"the routing key's file can't be read: {error.strerror}") from None
        thread = message.thread
        if thread is not None and thread.resolves and not thread.earlier:
            return Receipt(answer=Answer("none", "no trigger had arrived: there was nothing to resolve"))
        event = self._event(message)
        response = await self._post(routing_key, event)
        answer = answer_of(response, routing_key)
        if (refusal := error_of(response, answer, alias)) is not None:
            raise refusal
        return Receipt(answer=answer, reference={"dedup_key": event["dedup_key"]} if "dedup_key" in event else {})

    async def check(self) -> Sequence[Finding]:
        """Send an invalid event to each service: the answer shows whether the routing key is known. No incident is
        opened.
        """
        if not self._config.services:
            return [Finding("channels.pagerduty.services is empty: nobody can be paged", ok=False)]
        return [await self._check_service(name) for name in self._config.services]

    async def _check_service(self, name: str) -> Finding:
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
            response = await self._post(routing_key, _INVALID_EVENT)
        except (Later, InDoubt) as error:
            return Finding(f"{name}: {error}; check channels.pagerduty.events_url: {url}", ok=False)
        if response.status == 429:
            return Finding(f"{name}: PagerDuty is reached, and takes no more events of this service for now")
        if response.status == 400 and "routing" not in response.text.lower():
            return Finding(f"{name}: PagerDuty is reached and has nothing against the routing key")
        refusal = error_of(response, answer_of(response, routing_key), name)
        return Finding(f"{name}: {refusal or f'{url} takes invalid events, so it is not PagerDuty'}", ok=False)

    async def aclose(self) -> None:
        self._closed = True
        while self._idle_sessions:
            self._idle_sessions.pop().close()

    async def _post(self, routing_key: str, event: Mapping[str, Any]) -> Response:
        """Send the event once and return PagerDuty's answer. Raises `Later` if nothing was sent, or `InDoubt`."""
        path = ALERT_PATH if "event_action" in event else CHANGE_PATH
        body = orjson.dumps({**event, "routing_key": routing_key})
        timeout = self._config.timeout
        try:
            if not self._client_imported:
                await self._threads.run(_import_client, IMPORT_TIMEOUT)
                self._client_imported = True
            return await self._threads.run(partial(self._post_in_thread, path, body), timeout)
        except Unreachable as error:
            raise Later(f"PagerDuty can't be reached: {error}", provider_wide=True) from None
        except NoFreeThread:
            raise Later(
                f"PagerDuty is too slow: all threads still wait for answers after {timeout:g} s", provider_wide=True
            ) from None
        except NoAnswer as error:
            raise InDoubt(f"PagerDuty did not answer: {error}; it may have taken the event") from None
        except Overtime:
            log.warning(
                "PagerDuty did not answer within %g s: %d threads wait for its answers",
                timeout,
                self._threads.threads,
            )
            raise InDoubt(f"PagerDuty did not answer within {timeout:g} s; it may have taken the event") from None

    def _post_in_thread(self, path: str, body: bytes) -> Response:
        from channels.pagerduty.client import Session  # noqa: PLC0415

        try:
            session = self._idle_sessions.pop()
        except IndexError:
            session = Session(self._config.events_url, self._config.timeout)
        try:
            return session.post(path, body)
        finally:
            if self._closed:
                session.close()
            else:
                self._idle_sessions.append(session)

    def _event(self, message: Message) -> dict[str, Any]:
        if "event_action" not in message.content:  # change events have no dedup key ("Send change events")
            return _limit_size(dict(message.content))
        thread = message.thread
        dedup_key = (thread.key if thread is not None else message.key)[:MAX_DEDUP_KEY]
        if thread is not None and thread.resolves:
            return {"event_action": "resolve", "dedup_key": dedup_key}
        event = {**_with_note(message), "dedup_key": dedup_key}
        service = self._config.services.get(message.recipients[0])
        if service is not None and service.severity is not None and "payload" in event:
            event["payload"] = {**event["payload"], "severity": service.severity}
        return _limit_size(event)


def _with_note(message: Message) -> Content:
    """Return the event with the note as the first of its details."""
    payload = message.content.get("payload")
    if not message.note or not isinstance(payload, Mapping):
        return message.content
    details = {"note": message.note, **mapping(payload.get("custom_details"))}
    return {**message.content, "payload": {**payload, "custom_details": details}}


def _limit_size(event: dict[str, Any]) -> dict[str, Any]:
    """Replace the details of an event that is too large for PagerDuty. The summary is kept, because the person who is
    paged needs it.
    """
    if len(orjson.dumps(event)) <= EVENT - 1024 or "payload" not in event:
        return event
    note = mapping(event["payload"].get("custom_details")).get("note")
    details = {"left_out": "the details were too large for PagerDuty", **({"note": str(note)[:NOTE]} if note else {})}
    return {**event, "payload": {**event["payload"], "custom_details": details}}


def _import_client() -> None:
    """Import pdpyras. This takes too long for the event loop, and for the start of every command."""
    import channels.pagerduty.client  # noqa: F401, PLC0415


CHANNEL_TYPE = ChannelType(
    config=PagerDutyConfig,
    open=PagerDutyChannel,
    title="PagerDuty",
    rate="120/min",  # the limit of a routing key (PagerDuty, "Events API v2 rate limits")
    burst=10,
    pages=True,
    form=FORM,
    document="event.yaml",
    change_event=change_event,
    severities=True,
    headline=("payload", "summary"),
    draw=draw,
    style=STYLE,
    example={"services": {"example-service": {"routing_key": "example"}}},
    aliases="services",
    outcomes=OUTCOMES,
)
