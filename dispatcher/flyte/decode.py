"""Decodes one message from Kafka or HTTP to an Event.

`dispatcher.parsing.cloudevents` parses both CloudEvents modes, and `payloads` parses Flyte's own data. The data of a
native event (the dispatcher's own format) has the same fields as Event, so it needs no parser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from dispatcher.errors import Unreadable
from dispatcher.flyte import payloads
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from dispatcher.parsing.cloudevents import (
    Headers,
    envelope,
    enveloped_data,
    is_structured,
    load_json,
    load_json_of_people,
    trace_context,
    type_header,
)
from dispatcher.parsing.validation_errors import first_problem

NATIVE = "dispatcher.execution.phase_changed.v1"
"""The CloudEvents type of a native event, which is an event in the dispatcher's own format. Workflow engines other than
Flyte can send native events."""

_PARSERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    payloads.V1: payloads.v1,
    payloads.V2: payloads.v2,
    NATIVE: dict,
}
_TYPE_BY_HEADER = {event_type.encode(): event_type for event_type in _PARSERS}
_LABELS = {
    payloads.V1.encode(): "flyte-v1",
    payloads.V2.encode(): "flyte-v2",
    NATIVE.encode(): "native",
    None: "structured",
}

__all__ = ["NATIVE", "Headers", "decode", "is_other_type", "trace_context", "type_label"]


def type_label(headers: Headers) -> str:
    """Return the metric label for a message's type: `flyte-v1`, `flyte-v2`, `native`, `structured` or `other`.

    A message is `structured` if its content type says so, or if it has no type header: its body contains the type.
    """
    return _LABELS.get(type_header(headers), "other")


def is_other_type(headers: Headers) -> bool:
    """True if the type header of an event in binary mode names a type that the dispatcher does not decode.

    The Kafka consumer skips such messages with this function, which is fast because it does not read the value.
    """
    for name, value in headers:
        if name == "ce_type":
            return value not in _TYPE_BY_HEADER and not is_structured(headers)
    return False


def decode(headers: Headers, value: bytes | None) -> Event | None:
    """Decode one message to an Event.

    Returns None for CloudEvents of types that the dispatcher does not decode, which most messages on Flyte's topic are.
    If such a CloudEvent has a type header, its value is not parsed. Raises Unreadable with a reason for the operator.
    """
    header = type_header(headers)
    if header is not None:
        event_type = _TYPE_BY_HEADER.get(header)
        if event_type is None:
            return None
        return _event(event_type, load_json_of_people(value) if event_type == NATIVE else load_json(value))
    event_type, body = envelope(headers, value)
    return _event(event_type, enveloped_data(body)) if event_type in _PARSERS else None


def _event(event_type: str, data: Any) -> Event:
    if not isinstance(data, dict):
        raise Unreadable("the event's data is no JSON object")
    try:
        event = Event.model_validate(_PARSERS[event_type](data))
    except ValidationError as error:
        raise Unreadable(first_problem(error)) from None
    if event.phase is Phase.UNDEFINED:
        raise Unreadable("phase: the event names no phase")
    return event
