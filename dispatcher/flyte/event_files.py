"""Reads events from files, in every format that intake reads. A file has one JSON document, or one per line.

The limits of `dispatcher.parsing.composer` hold for each document.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from dispatcher.errors import Unreadable
from dispatcher.flyte import payloads
from dispatcher.flyte.decode import NATIVE, Headers, decode
from dispatcher.model.event import Event
from dispatcher.parsing.yaml import MAX_BYTES, Malformed, parse, read_text

_TYPE_BY_FIELD = {"event": payloads.V1, "rawEvent": payloads.V2, "raw_event": payloads.V2, "execution": NATIVE}


def read_event(file: Path | BinaryIO) -> Event:
    """Read a file that contains one event. `file`: its path, or the file itself, open.

    Raises Unreadable if the content is not an event, or OSError.
    """
    try:
        text = read_text(file)
    except Malformed as error:
        raise Unreadable(str(error)) from None
    headers, value = _as_message(_load(text))
    event = decode(headers, value)
    if event is None:
        raise Unreadable("the file holds an event of another type, not a workflow's phase change")
    return event


def read_messages(file: BinaryIO) -> Iterator[tuple[Headers, bytes]]:
    """Yield the message on each line of an open file of JSON Lines.

    Raises Unreadable with the number of an invalid line.
    """
    for number, line in enumerate(iter(lambda: file.readline(MAX_BYTES + 1), b""), start=1):
        if not line.strip():
            continue
        try:
            if len(line) > MAX_BYTES:
                raise Unreadable(f"longer than {MAX_BYTES // 2**20} MiB")
            yield _as_message(_load(line.decode("utf-8-sig")))
        except UnicodeDecodeError:
            raise Unreadable(f"line {number}: not UTF-8") from None
        except Unreadable as error:
            raise Unreadable(f"line {number}: {error}") from None


def _load(text: str) -> Any:
    try:
        (document,) = parse(text, json=True)
    except Malformed as error:
        raise Unreadable(f"{error} (line {error.line})" if error.line > 1 else str(error)) from None
    return document.data


def _as_message(document: Any) -> tuple[Headers, bytes]:
    """Return the headers and the value of a message.

    `document` is a recorded Kafka message, a structured CloudEvent, or only the data of an event.
    """
    if not isinstance(document, dict):
        raise Unreadable("a JSON object was expected")
    if "headers" in document and "value" in document:
        return _recorded(document)
    if "specversion" in document:
        return [("content-type", b"application/cloudevents+json")], orjson.dumps(document)
    for field, event_type in _TYPE_BY_FIELD.items():
        if field in document:
            headers = [
                ("ce_specversion", b"1.0"),
                ("ce_type", event_type.encode()),
                ("content-type", b"application/json"),
            ]
            return headers, orjson.dumps(document)
    raise Unreadable("neither a CloudEvent, nor a recorded Kafka message, nor an event's data")


def _recorded(document: dict[str, Any]) -> tuple[Headers, bytes]:
    pairs = document["headers"].items() if isinstance(document["headers"], dict) else document["headers"]
    value = document["value"]
    try:
        headers = [(str(name), str(content).encode()) for name, content in pairs]
    except (TypeError, ValueError):
        raise Unreadable("headers must be a mapping, or a list of pairs") from None
    return headers, value.encode() if isinstance(value, str) else orjson.dumps(value)
