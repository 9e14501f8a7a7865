"""Traces, as a collector sees them: one an event, from the message's own context to the provider."""

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
from dispatcher.tracing import OFF, UNSEEN, TracingConfig
from tests.support.brokers import Broker
from tests.support.collector import Seen, spans
from tests.support.http import ScriptedHttp, answer
from tests.support.service import serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
LEFT_OUT = f"00-{TRACE}-{PARENT}-00"


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


def named(seen: list[Seen], name: str) -> Seen:
    (one,) = [span for span in seen if span.name == name]
    return one


@pytest.mark.broker
async def test_an_events_trace_goes_on_from_its_kafka_header_to_the_provider(
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
            # One partition: who was told of this one has both copies behind them.
            await producer.send_and_wait(topic, failed("alone"), headers=[("ce_type", NATIVE.encode())], partition=0)
        await hook.until(lambda: len(hook.requests) == 2)
    logged = replica.log

    seen = spans(collector)
    ours = [span for span in seen if span.trace == TRACE]
    intakes = {span.facts["dispatcher.verdict"]: span for span in ours if span.name == "dispatcher.intake"}
    known = intakes.pop("duplicate")
    (new,) = intakes.values()
    assert new.parent == PARENT
    assert new.state == "vendor=its-own"
    assert new.facts["dispatcher.event"] == "p/d/traced/FAILED"
    deliver = named(ours, "dispatcher.deliver")
    assert deliver.parent == new.id
    assert (deliver.facts["dispatcher.outcome"], deliver.facts["dispatcher.attempt"]) == ("sent", 1)
    assert deliver.links == ()
    sent = named(ours, "dispatcher.send")
    assert sent.parent == named(ours, "dispatcher.settle").parent == deliver.id
    assert {span.parent for span in ours if span.name == "dispatcher.record"} == {new.id, known.id}
    by_name = {request.headers["idempotency-key"]: request for request in hook.requests}
    request = by_name[deliver.facts["dispatcher.delivery"]]
    assert request.headers["traceparent"] == f"00-{TRACE}-{sent.id}-01"
    assert request.headers["tracestate"] == "vendor=its-own"

    others = [span for span in seen if span.trace != TRACE]
    (its_own,) = {span.trace for span in others}  # an event without a context has one trace too, of its own
    assert named(others, "dispatcher.intake").parent == ""
    assert named(others, "dispatcher.deliver").trace == its_own
    assert {span.service for span in seen} == {"flyte-notification-dispatcher"}
    assert {request.headers["x-key"] for request in collector.requests} == {"of-the-collector"}
    lines = [json.loads(line) for line in logged.splitlines()]
    (line,) = [line for line in lines if line["event"] == "sent" and line["execution"] == "p/d/traced/FAILED"]
    assert line["trace_id"] == TRACE
    assert "ops" not in json.dumps([span.facts for span in seen])  # no recipient is in a span


async def test_a_later_attempt_is_a_trace_of_its_own_linked_to_the_events(
    collector: ScriptedHttp, hook: ScriptedHttp, tmp_path: Path
) -> None:
    hook.steps.append(answer(503))
    async with serving(tmp_path, settings(collector, hook)) as replica:
        await post(replica.url, "late", {"traceparent": TRACEPARENT})
        await hook.until(lambda: len(hook.requests) == 2)
    seen = spans(collector)
    intake = named(seen, "dispatcher.intake")
    first, second = sorted(
        (span for span in seen if span.name == "dispatcher.deliver"), key=lambda one: one.facts["dispatcher.attempt"]
    )
    assert (first.trace, first.parent, first.links, first.failed) == (TRACE, intake.id, (), True)
    assert first.facts["dispatcher.outcome"] == "retry"
    assert second.trace != TRACE
    assert (second.parent, second.links, second.failed) == ("", ((TRACE, intake.id),), False)
    assert second.facts["dispatcher.outcome"] == "sent"
    assert second.facts["dispatcher.delivery"] == first.facts["dispatcher.delivery"]


async def test_what_the_sender_or_the_sample_leaves_out_is_left_out_in_retries_too(
    collector: ScriptedHttp, hook: ScriptedHttp, tmp_path: Path
) -> None:
    hook.steps.append(answer(503))
    async with serving(tmp_path, settings(collector, hook)) as replica:
        await post(replica.url, "left-out", {"traceparent": LEFT_OUT})
        await hook.until(lambda: len(hook.requests) == 2)
        await post(replica.url, "seen", {"traceparent": TRACEPARENT})
        await hook.until(lambda: len(hook.requests) == 3)
    assert hook.requests[0].headers["traceparent"].endswith("-00")
    assert {span.trace for span in spans(collector)} == {TRACE}
    assert {span.facts.get("dispatcher.event", "p/d/seen/FAILED") for span in spans(collector)} == {"p/d/seen/FAILED"}


async def test_a_collector_that_is_away_holds_nothing_up(hook: ScriptedHttp, tmp_path: Path) -> None:
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
def test_the_context_is_the_transports_or_the_events_own(
    headers: list[tuple[str, bytes]], body: bytes, found: dict[str, str]
) -> None:
    assert trace_context(headers, body) == found


def test_without_the_section_nothing_is_looked_for_and_nothing_loaded() -> None:
    def never() -> dict[str, str]:
        raise AssertionError("a message was searched for a trace that nobody wants")

    assert OFF.intake(never) is UNSEEN
    assert OFF.attempt(TRACEPARENT, first=True).part("dispatcher.send") is UNSEEN
    script = (
        "import sys, dispatcher.runtime.service, dispatcher.config.settings; sys.exit('opentelemetry' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_the_extra_the_section_is_refused_with_what_to_install() -> None:
    script = """
import sys
sys.modules["opentelemetry"] = None  # as where it isn't installed
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
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TracingConfig.model_validate(wrong)
