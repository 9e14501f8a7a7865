"""CloudEvents 1.0 over Kafka or HTTP: finds the type, and the data, in binary or structured mode.

Source: the CloudEvents specification 1.0.2, its Kafka and HTTP protocol bindings.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

import orjson

from dispatcher.errors import Unreadable

Headers = Sequence[tuple[str, bytes]]
"""As Kafka carries them; the HTTP intake renames `ce-type` to `ce_type`."""

_STRUCTURED = b"application/cloudevents+json"


def type_header(headers: Headers) -> bytes | None:
    """The event's type in binary mode, None where no header tells. The hot path: no parsing, no copies."""
    for name, value in headers:
        if name == "ce_type":
            return value
    return None


def trace_context(headers: Headers, value: bytes | None) -> dict[str, str]:
    """The W3C trace context of a message: `traceparent` and `tracestate`, as far as it brings them.

    What the transport says goes before the event's own attributes, which tell of where the event began. Source: the
    CloudEvents extension "distributed tracing".
    """
    found: dict[str, str] = {}
    for prefix in ("", "ce_"):
        if "traceparent" not in found:
            found = {
                name: content.decode("latin-1")
                for name in ("traceparent", "tracestate")
                for header, content in headers
                if header.lower() == prefix + name
            }
    if "traceparent" in found or type_header(headers) is not None:
        return found
    body = load_json(value)
    names = ("traceparent", "tracestate")
    return {name: body[name] for name in names if isinstance(body, dict) and isinstance(body.get(name), str)}


def load_json(value: bytes | None) -> Any:
    """Parse JSON. Raises Unreadable, saying where it breaks."""
    if not value:
        raise Unreadable("the message is empty")
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        if "surrogate" in str(error):
            return _with_lone_surrogates(value)
        raise Unreadable(f"broken JSON: {error}") from None


def _with_lone_surrogates(value: bytes) -> Any:
    """Valid JSON with half a surrogate pair, which UTF-8 can't hold: each becomes a question mark."""
    try:
        text = json.dumps(json.loads(value), ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"broken JSON: {error}") from None
    return orjson.loads(text.encode(errors="replace"))


def envelope(headers: Headers, value: bytes | None) -> tuple[str, Any]:
    """Open a structured-mode event: its type, and its data still to be understood.

    The content type decides; where a bridge has lost the headers, so does an envelope that shows
    `specversion`. Raises Unreadable for anything else.
    """
    declared = any(
        name.lower() == "content-type" and content.lower().startswith(_STRUCTURED) for name, content in headers
    )
    body = load_json(value)
    if not isinstance(body, dict):
        raise Unreadable("the message is no CloudEvent: a JSON object was expected")
    kind = body.get("type")
    if not isinstance(kind, str) or not kind or (not declared and "specversion" not in body):
        raise Unreadable("the message is no CloudEvent: it has neither a ce_type header nor a structured envelope")
    return kind, body


def enveloped_data(body: dict[str, Any]) -> Any:
    """The data of a structured-mode event. Raises Unreadable where there is none."""
    if "data" in body:
        data = body["data"]
        return load_json(data.encode()) if isinstance(data, str) else data
    encoded = body.get("data_base64")
    if not isinstance(encoded, str):
        raise Unreadable("the CloudEvent has no data")
    try:
        return load_json(base64.b64decode(encoded, validate=True))
    except binascii.Error:
        raise Unreadable("the CloudEvent's data_base64 is not base64") from None
