"""Decoding: every message gives an Event, None, or Unreadable with a reason."""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.errors import Unreadable
from dispatcher.flyte.decode import NATIVE, decode, is_other_type, type_label
from dispatcher.flyte.encode import Format, write, write_lifecycle
from dispatcher.flyte.event_files import read_event, read_messages
from dispatcher.model.event import Event, ExecutionError, Options
from dispatcher.model.phase import Phase
from dispatcher.parsing.cloudevents import decode_http_attribute
from tests.support import samples
from tests.support.builders import a_launch_plan, a_notification, an_event

WORKFLOW_SAMPLES = [name for name in samples.NAMES if "-workflow-" in name]
OTHER_SAMPLES = [name for name in samples.NAMES if "-node-" in name or "-task-" in name]


@pytest.mark.parametrize("name", WORKFLOW_SAMPLES)
def test_every_workflow_sample_is_decoded(name: str) -> None:
    event = decode(*samples.sample(name))

    assert event is not None
    assert str(event.execution).startswith("flytesnacks/production/a")
    assert event.phase.name.lower() == name.split("-")[2]


@pytest.mark.parametrize("name", OTHER_SAMPLES)
def test_events_of_nodes_and_tasks_are_skipped(name: str) -> None:
    assert decode(*samples.sample(name)) is None


@pytest.mark.parametrize("name", OTHER_SAMPLES)
def test_a_message_of_another_type_is_skipped_before_its_value_is_parsed(name: str) -> None:
    headers, _ = samples.sample(name)

    assert decode(headers, b"\xff not even JSON") is None


def test_flytes_type_for_a_started_execution_is_skipped() -> None:
    """Flyteadmin defines this type and never sends it."""
    headers = [("ce_type", b"com.flyte.resource.cloudevents.ExecutionStart")]

    assert is_other_type(headers)
    assert decode(headers, b"{}") is None


NATIVE_DUPLICATE = (
    '{"execution": {"project": "p", "domain": "d", "name": "n"}, "phase": "FAILED", "phase": "SUCCEEDED"}'
)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([("ce_type", NATIVE.encode())], NATIVE_DUPLICATE),
        ([("ce_type", NATIVE.encode())], '{"labels": [{"phase": 1, "phase": 1}]}'),
        ([], f'{{"specversion": "1.0", "type": "{NATIVE}", "data": {NATIVE_DUPLICATE}}}'),
        ([], json.dumps({"specversion": "1.0", "type": NATIVE, "data": NATIVE_DUPLICATE})),
        ([], f'{{"specversion": "1.0", "type": "{NATIVE}", "phase": 1, "phase": 2, "data": {{}}}}'),
    ],
)
def test_an_event_written_by_hand_with_a_key_twice_is_refused(headers: list[tuple[str, bytes]], body: str) -> None:
    with pytest.raises(Unreadable, match="the key 'phase' is there twice: keep one of them"):
        decode(headers, body.encode())


def test_v1_and_v2_give_the_same_failure() -> None:
    v1 = decode(*samples.sample("v1-workflow-failed"))
    v2 = decode(*samples.sample("v2-workflow-failed"))

    assert v1 is not None
    assert v2 is not None
    assert v1.error == v2.error
    assert v1.error is not None
    assert v1.error.kind == "USER"
    assert "bad learning rate" in v1.error.message


def test_an_empty_error_and_a_missing_one_are_no_error_message() -> None:
    empty = decode(*samples.sample("v1-workflow-failed-empty-error"))
    aborted = decode(*samples.sample("v1-workflow-aborted-by-propeller"))

    assert empty is not None
    assert aborted is not None
    assert empty.error == ExecutionError()
    assert aborted.error is None


def test_structured_and_binary_mode_give_the_same_event() -> None:
    assert decode(*samples.structured("v2-workflow-failed-enriched")) == decode(
        *samples.sample("v2-workflow-failed-enriched")
    )


def test_an_enriched_event_names_its_launch_plan_and_labels() -> None:
    event = decode(*samples.sample("v2-workflow-failed-enriched"))

    assert event is not None
    assert str(event.launch_plan) == "flytesnacks/production/train.daily@v1"
    assert event.labels == {"cost": "a-b", "team": "ml"}


def test_a_structured_event_without_headers_is_recognised_by_its_envelope() -> None:
    _, value = samples.structured("v2-workflow-failed-enriched")

    assert decode([], value) is not None


def test_structured_data_may_be_base64() -> None:
    _, value = samples.structured("v2-workflow-failed-enriched")
    envelope = json.loads(value)
    envelope["data_base64"] = base64.b64encode(json.dumps(envelope.pop("data")).encode()).decode()

    event = decode([("content-type", b"application/cloudevents+json")], json.dumps(envelope).encode())

    assert event == decode(*samples.structured("v2-workflow-failed-enriched"))


@pytest.mark.parametrize(
    "content_type", [b"application/cloudevents+json", b"Application/CloudEvents+JSON; charset=utf-8"]
)
@pytest.mark.parametrize("type_", [b"com.flyte.resource.cloudevents.NodeExecution", NATIVE.encode(), b"\xff"])
@pytest.mark.parametrize("first", [True, False])
def test_the_content_type_decides_the_mode_and_not_the_type_header(
    content_type: bytes, type_: bytes, *, first: bool
) -> None:
    """Bridges leave the headers of binary mode beside a structured event (Kafka protocol binding, section 3)."""
    headers = [("content-type", content_type), ("ce_type", type_), ("ce_specversion", b"1.0")]
    headers = headers if first else headers[::-1]
    _, value = samples.structured("v2-workflow-failed-enriched")

    assert not is_other_type(headers)
    assert type_label(headers) == "structured"
    assert decode(headers, value) == decode(*samples.structured("v2-workflow-failed-enriched"))


@pytest.mark.parametrize("content_type", [b"application/cloudevents-batch+json", b"application/cloudevents+avro"])
def test_batches_and_other_formats_are_unreadable(content_type: bytes) -> None:
    _, value = samples.structured("v2-workflow-failed-enriched")
    with pytest.raises(Unreadable, match=r"send application/cloudevents\+json"):
        decode([("content-type", content_type), ("ce_type", NATIVE.encode())], value)


@pytest.mark.parametrize("data", ["§§§", "é", "\ud800", "a", "e30=\n"])
def test_data_that_is_no_base64_is_unreadable(data: str) -> None:
    envelope = {"specversion": "1.0", "type": NATIVE, "data_base64": data}
    with pytest.raises(Unreadable, match="data_base64 is not base64"):
        decode([], json.dumps(envelope).encode())


@pytest.mark.parametrize(
    ("header", "decoded"),
    [
        (b"com.flyte", b"com.flyte"),
        (b"com%2Eflyte%2e", b"com.flyte."),
        (b'"com.flyte"', b"com.flyte"),
        (b'"a \\"quoted\\" %41"', b'a "quoted" A'),
        (b"Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀".encode()),
        (b"100%, 5%zz, %25", b"100%, 5%zz, %"),
        (b'"open', b'"open'),
        (b"a+b", b"a+b"),
    ],
)
def test_the_encoding_of_http_headers_is_undone(header: bytes, decoded: bytes) -> None:
    assert decode_http_attribute(header) == decoded


@pytest.mark.parametrize("header", [b"%FF", b"%C0%A0", b"\xff", b'"%ED%A0%80"'])
def test_http_headers_that_are_not_utf8_are_unreadable(header: bytes) -> None:
    with pytest.raises(Unreadable, match="not UTF-8"):
        decode_http_attribute(header)


NATIVE_HEADERS = [("ce_type", NATIVE.encode())]
NATIVE_DATA = {
    "execution": {"project": "p", "domain": "d", "name": "n"},
    "phase": "FAILED",
    "occurred_at": "2026-11-20T09:14:21Z",
}


def native(**changes: object) -> Event | None:
    return decode(NATIVE_HEADERS, json.dumps({**NATIVE_DATA, **changes}).encode())


def test_the_native_event_takes_every_field_of_flytekits_options() -> None:
    event = native(
        options={
            "labels": {"values": {"team": "a"}},
            "annotations": {"note": "b"},
            "raw_output_data_config": {"output_location_prefix": "s3://x"},
            "security_context": {"run_as": {"k8s_service_account": "sa"}},
            "max_parallelism": 3,
            "notifications": [{"phases": ["FAILED"], "email": {"recipients_email": ["a@example.com"]}}],
            "disable_notifications": None,
            "overwrite_cache": True,
        }
    )

    assert event is not None
    assert event.options is not None
    assert event.options.labels == {"team": "a"}
    assert event.options.disable_notifications is False
    assert event.options.notifications[0].recipients == ("a@example.com",)


def test_native_names_may_be_in_lower_camel_case() -> None:
    event = native(
        launchPlan={"project": "p", "domain": "d", "name": "lp"},
        startedAt="2026-11-20T09:00:00Z",
        options={"disableNotifications": True, "notifications": []},
    )

    assert event is not None
    assert event.launch_plan is not None
    assert event.started_at is not None
    assert event.options is not None
    assert event.options.disable_notifications


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"phase": "EXPLODED"}, "unknown phase 'EXPLODED'"),
        ({"phase": 42}, "unknown phase 42"),
        ({"phase": "UNDEFINED"}, "names no phase"),
        ({"execution": None}, "execution: must be set"),
        ({"execution": {"project": "p", "domain": "d"}}, "execution.name: must be set"),
        ({"execution": {"project": "p", "domain": "d", "name": "a/b"}}, "execution.name"),
        ({"execution": {"project": "p", "domain": "d", "name": "a\0b"}}, "execution.name"),
        ({"launch_plan": {"project": "p", "domain": "d", "name": ""}}, "launch_plan.name"),
        ({"launch_plan": {"project": "p", "domain": "d", "name": "a\0b"}}, "launch_plan.name"),
        ({"launch_plan": {"project": "p/q", "domain": "d", "name": "n"}}, "launch_plan.project"),
        ({"workflow": {"project": "p", "domain": "d", "name": "n", "version": "\0"}}, "workflow.version"),
        ({"occurred_at": "2026-11-20T09:14:21"}, "occurred_at: must have timezone info"),
        ({"occurred_at": "yesterday"}, "occurred_at"),
        ({"labels": ["a"]}, "labels"),
        (
            {"options": {"notifications": [{"phases": ["RUNNING"], "email": {"recipients_email": ["a@b.c"]}}]}},
            "RUNNING is not a terminal phase",
        ),
        ({"options": {"notifications": [{"phases": [], "email": {"recipients_email": ["a@b.c"]}}]}}, "no phases"),
        ({"options": {"notifications": [{"phases": ["FAILED"], "email": {"recipients_email": []}}]}}, "no recipients"),
        (
            {"options": {"notifications": [{"phases": ["FAILED"], "email": {"recipients_email": [" "]}}]}},
            "an empty recipient",
        ),
        (
            {"options": {"notifications": [{"phases": ["FAILED"], "slack": {"recipients_email": ["#a\0b"]}}]}},
            "a recipient with control characters",
        ),
        (
            {"options": {"notifications": [{"phases": ["FAILED"], "fax": {"recipients_email": ["a@b.c"]}}]}},
            "unknown channel 'fax'",
        ),
        ({"options": {"notifications": [{"phases": ["FAILED"]}]}}, "exactly one channel"),
    ],
)
def test_an_invalid_event_is_refused_with_the_reason(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(Unreadable, match=re.escape(reason)):
        native(**changes)


@pytest.mark.parametrize(
    ("headers", "value", "reason"),
    [
        ([], None, "the message is empty"),
        ([], b"", "the message is empty"),
        ([], b"{", "broken JSON"),
        ([], b"\xff\xfe", "broken JSON"),
        ([], b"[]", "a JSON object was expected"),
        ([], b'{"a": 1}', "neither a ce_type header nor a structured envelope"),
        (NATIVE_HEADERS, b"[]", "no JSON object"),
        (NATIVE_HEADERS, b"[" * 100_000, "broken JSON"),
        ([("ce_type", samples.sample("v1-workflow-failed")[0][3][1])], b"{}", "no event in the data"),
        ([("ce_type", samples.sample("v2-workflow-failed")[0][3][1])], b"{}", "no rawEvent in the data"),
        ([("content-type", b"application/cloudevents+json")], b'{"type": "' + NATIVE.encode() + b'"}', "has no data"),
        (
            [("content-type", b"application/cloudevents+json")],
            b'{"type": "' + NATIVE.encode() + b'", "data_base64": "%%"}',
            "not base64",
        ),
    ],
)
def test_a_message_that_is_no_event_is_refused_with_the_reason(
    headers: list[tuple[str, bytes]], value: bytes | None, reason: str
) -> None:
    with pytest.raises(Unreadable, match=reason):
        decode(headers, value)


def test_an_event_with_half_a_surrogate_pair_is_decoded() -> None:
    value = json.dumps({**NATIVE_DATA, "error": {"message": "bad \ud83d"}}).encode()

    event = decode(NATIVE_HEADERS, value)

    assert event is not None
    assert event.error is not None
    assert event.error.message == "bad ?"


@given(
    st.lists(st.tuples(st.sampled_from(["ce_type", "content-type", "x"]), st.binary(max_size=40))),
    st.none() | st.binary(),
)
def test_any_message_gives_an_event_or_unreadable(headers: list[tuple[str, bytes]], value: bytes | None) -> None:
    try:
        decode(headers, value)
    except Unreadable as error:
        assert str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "phase", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)
KNOWN_FIELDS = [*Event.model_fields, "event", "rawEvent", "executionId", "launchPlanId", "type", "specversion", "data"]


@given(st.dictionaries(st.sampled_from(KNOWN_FIELDS), json_values, max_size=4))
def test_wrong_types_raise_unreadable_and_no_other_error(data: dict[str, object]) -> None:
    for headers in (
        samples.sample("v1-workflow-failed")[0],
        samples.sample("v2-workflow-failed")[0],
        NATIVE_HEADERS,
        [],
    ):
        try:
            decode(headers, json.dumps({**NATIVE_DATA, **data}).encode())
        except Unreadable as error:
            assert str(error)


def _fields(data: dict[str, Any], within: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in data.items():
        yield (*within, name)
        if isinstance(value, dict):
            yield from _fields(value, (*within, name))


@pytest.mark.parametrize(
    "depth", [900, 1015, 10_000]
)  # below, at and above the limits of the parser and of Python's stack
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("name", ["v1-workflow-failed", "v2-workflow-failed-enriched"])
def test_deeply_nested_values_are_unreadable_or_ignored(name: str, opening: bytes, closing: bytes, depth: int) -> None:
    headers, value = samples.sample(name)
    nested = opening * depth + b"1" + closing * depth
    for path in _fields(json.loads(value)):
        data = json.loads(value)
        place = functools.reduce(dict.__getitem__, path[:-1], data)
        place[path[-1]] = "HERE"
        with suppress(Unreadable):
            decode(headers, json.dumps(data).encode().replace(b'"HERE"', nested))


@pytest.mark.parametrize("form", [Format.FLYTE_V2, Format.NATIVE])
def test_an_encoded_event_is_decoded_to_the_same_event(form: Format) -> None:
    event = an_event(
        launch_plan=a_launch_plan(), principal="jane", labels={"team": "a"}, error={"message": "boom", "kind": "USER"}
    )

    written = write(event, form)

    assert decode(written.headers, written.value) == event


def test_options_are_encoded_in_flytes_form() -> None:
    event = an_event(options=Options(notifications=(a_notification("#a", channel="pagerduty"),)))

    written = write(event, Format.NATIVE)

    assert b'"pager_duty":{"recipients_email":["#a"]}' in written.value
    assert decode(written.headers, written.value) == event


@pytest.mark.parametrize("form", list(Format))
def test_a_lifecycle_ends_in_the_given_phase_and_has_one_terminal_event(form: Format) -> None:
    messages = list(write_lifecycle(an_event(Phase.ABORTED), form))
    events = [event for message in messages if isinstance(event := decode(message.headers, message.value), Event)]

    assert [event.phase for event in events] == [Phase.QUEUED, Phase.RUNNING, Phase.ABORTING, Phase.ABORTED]
    assert len(messages) > len(events) or form is Format.NATIVE


@pytest.mark.parametrize("name", WORKFLOW_SAMPLES)
def test_an_event_file_may_be_a_recorded_message(name: str) -> None:
    assert read_event(samples.FOLDER / f"{name}.json") == decode(*samples.sample(name))


def test_messages_in_a_file_are_read_by_line_and_an_invalid_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(json.dumps(NATIVE_DATA) + "\n\n" + "{oops}\n")
    with file.open("rb") as lines:
        messages = read_messages(lines)
        assert decode(*next(messages)) is not None
        with pytest.raises(Unreadable, match="line 3: broken JSON"):
            next(messages)
