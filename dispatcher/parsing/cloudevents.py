"""Reads CloudEvents 1.0 that arrive over Kafka or HTTP: an event's type and data, in binary or structured mode.

Source: the CloudEvents specification 1.0.2, with its Kafka and HTTP protocol bindings.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from dispatcher.errors import Unreadable

Headers = Sequence[tuple[str, bytes]]
"""The names and values of a message's headers. The names are those of Kafka messages, such as `ce_type`, so the HTTP
intake renames HTTP's `ce-type`."""

_CLOUDEVENTS = b"application/cloudevents"
_BINARY_JSON = ("content-type", b"application/json")
"""The header of flyteadmin's events, which are in binary mode."""
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def is_structured(headers: Headers) -> bool:
    """True if the content type says that the value is a whole CloudEvent, or a batch of them.

    Then headers such as `ce_type` have no meaning. Source: section 3 of the Kafka and of the HTTP protocol binding.
    """
    return _BINARY_JSON not in headers and _event_format(headers) is not None  # the first condition is for speed


def _event_format(headers: Headers) -> bytes | None:
    """Return what follows `application/cloudevents` in the content type, such as `+json`; None if it is another type.

    Parameters such as `charset` are left out.
    """
    for name, value in headers:
        if name.lower() == "content-type" and value[: len(_CLOUDEVENTS)].lower() == _CLOUDEVENTS:
            return value[len(_CLOUDEVENTS) :].partition(b";")[0].strip().lower()
    return None


def type_header(headers: Headers) -> bytes | None:
    """Return the event's type from the header `ce_type`; None if the event is not in binary mode."""
    for name, value in headers:
        if name == "ce_type":
            return None if is_structured(headers) else value
    return None


def decode_http_attribute(value: bytes) -> bytes:
    """Return the value of an HTTP header such as `ce-type` without its encoding, as it is in a Kafka message.

    A string in double quotes is unquoted, then `%57` is one byte. Raises Unreadable if the result is not UTF-8.
    Source: section 3.1.3.2 of the HTTP protocol binding.
    """
    if _QUOTED.fullmatch(value):
        value = _ESCAPED.sub(rb"\1", value[1:-1])
    decoded = unquote_to_bytes(value)
    try:
        decoded.decode()
    except UnicodeDecodeError:
        raise Unreadable("not UTF-8 after percent-decoding") from None
    return decoded


def trace_context(headers: Headers, value: bytes | None) -> dict[str, str]:
    """Return the W3C trace context of a message: `traceparent` and `tracestate`, if the message has them.

    The headers of Kafka or HTTP take precedence over the event's attributes, because these attributes describe the
    trace in which the event was created. Source: the CloudEvents extension "distributed tracing".
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
    """Parse JSON. Raises Unreadable if it is invalid; the error's text names the position."""
    if not value:
        raise Unreadable("the message is empty")
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        if "surrogate" in str(error):
            return _with_lone_surrogates(value)
        raise Unreadable(f"broken JSON: {error}") from None


def load_json_of_people(value: bytes | None) -> Any:
    """Parse JSON, and refuse an object that has a key twice, because readers of JSON disagree about its value (RFC 8259,
    section 4). Takes nine times as long as `load_json`, so it is not for Flyte's events, which come from protobuf.

    Raises Unreadable.
    """
    data = load_json(value)
    try:
        json.loads(value or b"", object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"broken JSON: {error}") from None
    return data


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:60]!r} is there twice: keep one of them")
    return unique


def _with_lone_surrogates(value: bytes) -> Any:
    """Parse JSON that contains lone surrogates. UTF-8 can't encode them, so each is replaced by a question mark."""
    try:
        text = json.dumps(json.loads(value), ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"broken JSON: {error}") from None
    return orjson.loads(text.encode(errors="replace"))


def envelope(headers: Headers, value: bytes | None) -> tuple[str, Any]:
    """Return the type and the JSON object of a structured-mode event.

    An event is in structured mode if its content type says so. A bridge between two systems may have lost the headers;
    then the attribute `specversion` in the body is enough. Raises Unreadable if the message is not such an event.
    """
    event_format = _event_format(headers)
    if event_format not in {None, b"", b"+json"}:
        raise Unreadable("the content type is no single CloudEvent in JSON: send application/cloudevents+json")
    body = load_json_of_people(value)
    if not isinstance(body, dict):
        raise Unreadable("the message is no CloudEvent: a JSON object was expected")
    kind = body.get("type")
    if event_format is not None and (not isinstance(kind, str) or not kind):
        raise Unreadable("the content type is that of a structured CloudEvent, but the body names no type")
    if not isinstance(kind, str) or not kind or (event_format is None and "specversion" not in body):
        raise Unreadable("the message is no CloudEvent: it has neither a ce_type header nor a structured envelope")
    return kind, body


def enveloped_data(body: dict[str, Any]) -> Any:
    """Return the data of a structured-mode event. Raises Unreadable if the event has no data."""
    if "data" in body:
        data = body["data"]
        return load_json_of_people(data.encode()) if isinstance(data, str) else data
    encoded = body.get("data_base64")
    if not isinstance(encoded, str):
        raise Unreadable("the CloudEvent has no data")
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError:  # also for characters beyond ASCII
        raise Unreadable("the CloudEvent's data_base64 is not base64") from None
    return load_json_of_people(data)
