"""Bytes in, an Event out, or the reason why not.

`decode` reads one message from Kafka or HTTP; `cloudevents` knows the two modes, `flyte` the engine's
payloads; the native event is the Event itself. `files` reads events that people keep in files.
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
    load_json,
    trace_context,
    type_header,
)
from dispatcher.parsing.validation_errors import first_problem

NATIVE = "dispatcher.execution.phase_changed.v1"
"""The CloudEvents type of the native event, for engines other than Flyte."""

_FACTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    payloads.V1: payloads.v1,
    payloads.V2: payloads.v2,
    NATIVE: dict,
}
_OURS = {kind.encode(): kind for kind in _FACTS}
_SHORT = {
    payloads.V1.encode(): "flyte-v1",
    payloads.V2.encode(): "flyte-v2",
    NATIVE.encode(): "native",
    None: "structured",
}

__all__ = ["NATIVE", "Headers", "decode", "is_foreign", "kind_of", "trace_context"]


def kind_of(headers: Headers) -> str:
    """A message's type in a word, for counting: one of five. Of what has its envelope in its body, no more than that."""
    return _SHORT.get(type_header(headers), "other")


def is_foreign(headers: Headers) -> bool:
    """Whether a glance at the headers tells that the message is of another type. Costs next to nothing."""
    for name, value in headers:
        if name == "ce_type":
            return value not in _OURS
    return False


def decode(headers: Headers, value: bytes | None) -> Event | None:
    """Understand one message.

    None where it is a CloudEvent of another type: on Flyte's topic that is most of them, and a type
    header settles it before the value is touched. Raises Unreadable, with a reason for the operator.
    """
    header = type_header(headers)
    if header is not None:
        kind = _OURS.get(header)
        return None if kind is None else _event(kind, load_json(value))
    kind, body = envelope(headers, value)
    return _event(kind, enveloped_data(body)) if kind in _FACTS else None


def _event(kind: str, data: Any) -> Event:
    if not isinstance(data, dict):
        raise Unreadable("the event's data is no JSON object")
    try:
        facts = _FACTS[kind](data)
        event = Event.model_validate(facts)
    except ValidationError as error:
        raise Unreadable(first_problem(error)) from None
    if event.phase is Phase.UNDEFINED:
        raise Unreadable("phase: the event names no phase")
    return event
