"""Traces as a collector receives them: one for each event, from its message to the provider."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiokafka import AIOKafkaProducer
from pydantic import ValidationError

from dispatcher.flyte.decode import NATIVE, trace_context
from dispatcher.tracing import NO_SPAN, OFF, TracingConfig
from tests.support.brokers import Broker
from tests.support.collector import ExportedSpan, spans
from tests.support.http import ScriptedHttp, answer
from tests.support.service import serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"


@pytest.fixture
async def collector() -> AsyncIterator[ScriptedHttp]:
    async with ScriptedHttp() as server:
        yield server


@pytest.fixture
async def hook() -> AsyncIterator[ScriptedHttp]:
    async with ScriptedHttp() as server:
        yield server


def settings(collector: ScriptedHttp, hook: ScriptedHttp, **tracing: Any) -> dict[str, Any]:
    return {
        "ledger": {"url": "sqlite+aiosqlite:///./ledger.db"},
        "log": "json",
        "channels": {
            "webhook": {
                "targets": {"ops": {"url": f"{hook.url}/ops"}},
                "allow_http": True,
                "allow_networks": ["127.0.0.0/8"],
                "retry": {"initial": "100ms"},
            }
        },
        "tracing": {"endpoint": collector.url, "headers": {"x-key": "of-the-collector"}, **tracing},
    }


def failed(name: str) -> bytes:
    rule = {"phases": ["FAILED"], "channel": "webhook", "recipients": ["ops"]}
    event = {
        "execution": {"project": "p", "domain": "d", "name": name},
        "phase": "FAILED",
        "occurred_at": "2026-11-20T09:14:21Z",
        "options": {"notifications": [rule]},
    }
    return json.dumps(event).encode()


async def post(url: str, name: str, headers: Mapping[str, str]) -> None:
    binary = {"ce-type": NATIVE, "ce-specversion": "1.0", "content-type": "application/json", **headers}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/events", data=failed(name), headers=binary) as got,
    ):
        assert got.status == 202, await got.text()


def only(spans: list[ExportedSpan], name: str) -> ExportedSpan:
    """The only span of this name."""
    (span,) = [span for span in spans if span.name == name]
    return span


@pytest.mark.broker
async def test_an_events_trace_continues_from_its_kafka_header_to_the_provider(
    collector: ScriptedHttp, hook: ScriptedHttp, broker: Broker, topic: str, tmp_path: Path
) -> None:
    kafka = {"bootstrap_servers": broker.bootstrap_servers, "topics": [topic], "group_id": f"group-{topic}"}
    headers = [("ce_type", NATIVE), ("traceparent", TRACEPARENT), ("tracestate", "vendor=its-own")]
    async with serving(tmp_path, {**settings(collector, hook), "kafka": kafka}) as replica:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers) as producer:
            for _copy in range(2):
                await producer.send_and_wait(
                    topic, failed("traced"), headers=[(key, value.encode()) for key, value in headers], partition=0
                )
            # On the same partition: when this event is delivered, both copies were read.
            await producer.send_and_wait(topic, failed("alone"), headers=[("ce_type", NATIVE.encode())], partition=0)
        await hook.until(lambda: len(hook.requests) == 2)
    logged = replica.log

    seen = spans(collector)
    traced = [span for span in seen if span.trace == TRACE]
    intakes = {span.attributes["dispatcher.verdict"]: span for span in traced if span.name == "dispatcher.intake"}
    duplicate = intakes.pop("duplicate")
    (new,) = intakes.values()
    assert new.parent == PARENT
    assert new.state == "vendor=its-own"
    assert new.attributes["dispatcher.event"] == "p/d/traced/FAILED"
    deliver = only(traced, "dispatcher.deliver")
    assert deliver.parent == new.id
    assert (deliver.attributes["dispatcher.outcome"], deliver.attributes["dispatcher.attempt"]) == ("sent", 1)
    assert deliver.links == ()
    sent = only(traced, "dispatcher.send")
    assert sent.parent == only(traced, "dispatcher.settle").parent == deliver.id
    assert {span.parent for span in traced if span.name == "dispatcher.record"} == {new.id, duplicate.id}
    by_name = {request.headers["idempotency-key"]: request for request in hook.requests}
    request = by_name[deliver.attributes["dispatcher.delivery"]]
    assert request.headers["traceparent"] == f"00-{TRACE}-{sent.id}-01"
    assert request.headers["tracestate"] == "vendor=its-own"

    others = [span for span in seen if span.trace != TRACE]
    (new_trace,) = {span.trace for span in others}  # an event without a trace context starts a trace
    assert only(others, "dispatcher.intake").parent == ""
    assert only(others, "dispatcher.deliver").trace == new_trace
    assert {span.service for span in seen} == {"flyte-notification-dispatcher"}
    assert {request.headers["x-key"] for request in collector.requests} == {"of-the-collector"}
    lines = [json.loads(line) for line in logged.splitlines()]
    (line,) = [line for line in lines if line["event"] == "sent" and line["execution"] == "p/d/traced/FAILED"]
    assert line["trace_id"] == TRACE
    assert "ops" not in json.dumps([span.attributes for span in seen])  # no recipient is in a span


async def test_a_later_attempt_starts_a_trace_that_is_linked_to_the_events(
    collector: ScriptedHttp, hook: ScriptedHttp, tmp_path: Path
) -> None:
    hook.steps.append(answer(503))
    async with serving(tmp_path, settings(collector, hook)) as replica:
        await post(replica.url, "late", {"traceparent": TRACEPARENT})
        await hook.until(lambda: len(hook.requests) == 2)
    seen = spans(collector)
    intake = only(seen, "dispatcher.intake")
    first, second = sorted(
        (span for span in seen if span.name == "dispatcher.deliver"),
        key=lambda one: one.attributes["dispatcher.attempt"],
    )
    assert (first.trace, first.parent, first.links, first.failed) == (TRACE, intake.id, (), True)
    assert first.attributes["dispatcher.outcome"] == "retry"
    assert second.trace != TRACE
    assert (second.parent, second.links, second.failed) == ("", ((TRACE, intake.id),), False)
    assert second.attributes["dispatcher.outcome"] == "sent"
    assert second.attributes["dispatcher.delivery"] == first.attributes["dispatcher.delivery"]


async def test_retries_are_sampled_only_if_their_event_was(
    collector: ScriptedHttp, hook: ScriptedHttp, tmp_path: Path
) -> None:
    hook.steps.append(answer(503))
    async with serving(tmp_path, settings(collector, hook)) as replica:
        await post(replica.url, "unsampled", {"traceparent": UNSAMPLED})
        await hook.until(lambda: len(hook.requests) == 2)
        await post(replica.url, "seen", {"traceparent": TRACEPARENT})
        await hook.until(lambda: len(hook.requests) == 3)
    assert hook.requests[0].headers["traceparent"].endswith("-00")
    assert {span.trace for span in spans(collector)} == {TRACE}
    assert {span.attributes.get("dispatcher.event", "p/d/seen/FAILED") for span in spans(collector)} == {
        "p/d/seen/FAILED"
    }


async def test_an_unreachable_collector_delays_nothing(hook: ScriptedHttp, tmp_path: Path) -> None:
    async with ScriptedHttp() as gone:
        pass
    started = asyncio.get_running_loop().time()
    async with serving(tmp_path, settings(gone, hook)) as replica:
        await post(replica.url, "unseen", {})
        await hook.until(lambda: len(hook.requests) == 1)
    assert asyncio.get_running_loop().time() - started < 50
    assert "of-the-collector" not in replica.log


@pytest.mark.parametrize(
    ("headers", "body", "found"),
    [
        ([("traceparent", b"a"), ("tracestate", b"b")], b"", {"traceparent": "a", "tracestate": "b"}),
        ([("ce_type", b"x"), ("ce_traceparent", b"a")], b"", {"traceparent": "a"}),
        ([("ce_traceparent", b"origin"), ("traceparent", b"hop")], b"", {"traceparent": "hop"}),
        ([("ce_type", b"x")], b'{"traceparent": "of the data"}', {}),
        ([], b'{"specversion": "1.0", "traceparent": "a", "tracestate": 1}', {"traceparent": "a"}),
        ([], b"[]", {}),
    ],
)
def test_the_trace_context_comes_from_the_transport_or_the_event(
    headers: list[tuple[str, bytes]], body: bytes, found: dict[str, str]
) -> None:
    assert trace_context(headers, body) == found


def test_without_the_section_no_trace_context_is_read_and_opentelemetry_is_not_imported() -> None:
    def never() -> dict[str, str]:
        raise AssertionError("a trace context was read although tracing is off")

    assert OFF.intake(never) is NO_SPAN
    assert OFF.attempt(TRACEPARENT, first=True).child("dispatcher.send") is NO_SPAN
    script = (
        "import sys, dispatcher.runtime.service, dispatcher.config.settings; sys.exit('opentelemetry' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_the_extra_the_message_says_what_to_install() -> None:
    script = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
from dispatcher.errors import SettingsError
from dispatcher.tracing import OFF, TracingConfig, open_tracing
assert open_tracing(None) is OFF
try:
    open_tracing(TracingConfig(endpoint="http://127.0.0.1:4318"))
except SettingsError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "tracing needs OpenTelemetry: pip install 'flyte-notification-dispatcher[tracing]'\n"


@pytest.mark.parametrize("wrong", [{"endpoint": "collector:4318"}, {"endpoint": "http://c", "sample": 1.5}, {}])
def test_invalid_settings_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TracingConfig.model_validate(wrong)
