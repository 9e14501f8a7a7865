"""Encodes an Event as a message for Kafka or HTTP. `dispatcher publish`, the demo and the tests use this module.

This module is the reverse of `decode`. A message in one of Flyte's formats lacks the fields that Flyte does not send;
for example, v1 has no launch plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import orjson

from dispatcher.flyte import payloads
from dispatcher.flyte.decode import NATIVE, Headers
from dispatcher.model.event import EntityId, Event, ExecutionId
from dispatcher.model.notification import FIELDS
from dispatcher.model.phase import Phase

_SOURCE = "https://github.com/flyteorg/flyte/flyteadmin"
_V1_TYPE = "com.flyte.resource.flyteidl.admin.{}ExecutionEventRequest"
_V2_TYPE = "com.flyte.resource.cloudevents.{}Execution"


class Format(StrEnum):
    """The format of an encoded event: one of Flyte's formats, or the dispatcher's own format `native`."""

    FLYTE_V1 = "flyte-v1"
    FLYTE_V2 = "flyte-v2"
    NATIVE = "native"


@dataclass(frozen=True, slots=True)
class EncodedMessage:
    """One message, with Kafka's header names, such as `ce_type`. HTTP needs a hyphen in the names, as in `ce-type`."""

    key: bytes
    headers: Headers
    value: bytes
    summary: str
    """The message in one line for people, such as `p/d/n FAILED`."""


def write(event: Event, form: Format) -> EncodedMessage:
    """Encode one event as a CloudEvent in binary mode: the attributes are headers, and the data is the body."""
    event_type, data = _ENCODERS[form](event)
    return _message(
        event_type,
        data,
        _text_form(event.execution, event.phase),
        event.occurred_at,
        f"{event.execution} {event.phase}",
    )


def write_lifecycle(event: Event, form: Format) -> Iterator[EncodedMessage]:
    """Yield all messages about one execution: its earlier phases, a node event, a task event, and last `event`.

    `event` is the terminal event. The native format has no node events and no task events.
    """
    steps = list(_phases_before(event.phase))
    for index, phase in enumerate(steps):
        earlier = event.occurred_at - timedelta(seconds=2 * (len(steps) - index))
        started = event.model_copy(update={"phase": phase, "occurred_at": earlier, "error": None, "options": None})
        yield write(started, form)
        if phase is Phase.RUNNING and form is not Format.NATIVE:
            for part in ("Node", "Task"):
                yield _inner_message(started, form, part)
    yield write(event, form)


def _phases_before(last: Phase) -> Iterator[Phase]:
    yield from (Phase.QUEUED, Phase.RUNNING)
    ending = {Phase.SUCCEEDED: Phase.SUCCEEDING, Phase.FAILED: Phase.FAILING, Phase.ABORTED: Phase.ABORTING}
    if last in ending:
        yield ending[last]


def _v1(event: Event) -> tuple[str, dict[str, Any]]:
    return payloads.V1, {"event": _workflow_event(event)}


def _v2(event: Event) -> tuple[str, dict[str, Any]]:
    data: dict[str, Any] = {"rawEvent": _workflow_event(event)}
    if event.launch_plan is not None:
        data["launchPlanId"] = {
            "resourceType": event.launch_plan.resource_type or "LAUNCH_PLAN",
            **_identifier(event.launch_plan),
        }
    if event.labels:
        data["labels"] = event.labels
    if event.principal:
        data["principal"] = event.principal
    if event.reference_execution is not None:
        data["referenceExecution"] = event.reference_execution.model_dump()
    return payloads.V2, data


def _native(event: Event) -> tuple[str, dict[str, Any]]:
    data = event.model_dump(mode="json", exclude_defaults=True)
    if event.options is not None and event.options.notifications:
        data["options"]["notifications"] = [_notification(rule) for rule in event.options.notifications]
    return NATIVE, data


_ENCODERS: dict[Format, Callable[[Event], tuple[str, dict[str, Any]]]] = {
    Format.FLYTE_V1: _v1,
    Format.FLYTE_V2: _v2,
    Format.NATIVE: _native,
}


def _workflow_event(event: Event) -> dict[str, Any]:
    data: dict[str, Any] = {
        "executionId": event.execution.model_dump(),
        "producerId": "propeller",
        "phase": event.phase,
        "occurredAt": _time(event.occurred_at),
    }
    if event.error is not None:
        data["error"] = event.error.model_dump()
    return data


def _identifier(entity: EntityId) -> dict[str, str]:
    return {name: value for name, value in entity.model_dump().items() if value}


def _notification(rule: Any) -> dict[str, Any]:
    if rule.channel not in FIELDS:  # Flyte has no field for a plug-in's channel
        return {"phases": list(rule.phases), "channel": rule.channel, "recipients": list(rule.recipients)}
    body: dict[str, Any] = {"recipients_email": list(rule.recipients)}
    if rule.template:
        body["template"] = rule.template
    return {"phases": list(rule.phases), FIELDS[rule.channel]: body}


def _inner_message(event: Event, form: Format, part: str) -> EncodedMessage:
    """Encode an event of a node or a task. Most messages on a real topic are such events; the dispatcher skips them."""
    event_type = (_V1_TYPE if form is Format.FLYTE_V1 else _V2_TYPE).format(part)
    inner = {"id": {"nodeId": "n0", "executionId": event.execution.model_dump()}, "phase": "RUNNING"}
    data = {"event" if form is Format.FLYTE_V1 else "rawEvent": inner}
    identity = f'node_id:"n0" execution_id:{{{_text_form(event.execution, Phase.RUNNING)}}}'
    return _message(event_type, data, identity, event.occurred_at, f"{event.execution} {part.lower()} n0 RUNNING")


def _text_form(execution: ExecutionId, phase: Phase) -> str:
    """Return the event's id as flyteadmin writes it: the execution's id in protobuf's text form, and the phase.

    The event's id is also the key of the Kafka message.
    """
    return f'project:"{execution.project}" domain:"{execution.domain}" name:"{execution.name}".{phase}'


def _message(event_type: str, data: dict[str, Any], identity: str, time: datetime, summary: str) -> EncodedMessage:
    headers = {
        "ce_specversion": "1.0",
        "ce_id": identity,
        "ce_source": _SOURCE,
        "ce_type": event_type,
        "ce_time": _time(time),
        "content-type": "application/json",
    }
    return EncodedMessage(
        key=identity.encode(),
        headers=[(name, value.encode()) for name, value in headers.items()],
        value=orjson.dumps(data),
        summary=summary,
    )


def _time(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
