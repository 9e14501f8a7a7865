"""What a running service says of itself to Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from channels.contract import Answer, Receipt
from dispatcher.demo.fakes.inbox import MailReceiver
from dispatcher.flyte.decode import kind_of
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import BatchResult
from dispatcher.ledger import Backlog, RecordedEvent, Rejected, Settlement
from dispatcher.model.delivery import Dead, Retry, Sent, State
from dispatcher.model.event import Event, ExecutionId, Options
from dispatcher.model.phase import Phase
from dispatcher.observability.metrics import Metrics
from tests.packaging.test_alert_rules import needs_promtool, promtool
from tests.support import samples
from tests.support.builders import NOW, SECOND, a_delivery, a_notification, an_event
from tests.support.running import running

SENT = Sent(Receipt(answer=Answer("250")))


class Scrape:
    """One scrape's figures, by series."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.series = {
            (sample.name.removeprefix("dispatcher_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __getitem__(self, series: str | tuple[str, ...]) -> float:
        return self.series[(series,) if isinstance(series, str) else series]

    def get(self, *series: str) -> float | None:
        return self.series.get(series)


def scraped(telemetry: Metrics) -> Scrape:
    return Scrape(telemetry.page()[0].decode())


async def scrape(url: str, **headers: str) -> Scrape:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics", headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return Scrape(await answer.text())


async def until(url: str, what: Callable[[Scrape], bool]) -> Scrape:
    async with asyncio.timeout(30):
        while not what(seen := await scrape(url)):
            await asyncio.sleep(0.1)
    return seen


@pytest.fixture
async def relay() -> AsyncIterator[MailReceiver]:
    async with MailReceiver() as receiver:
        yield receiver


def settings(relay: MailReceiver, **more: Any) -> dict[str, Any]:
    mail = {"host": "127.0.0.1", "port": relay.port, "security": "none", "from": "Flyte <flyte@example.com>"}
    return {"channels": {"email": mail}, **more}


async def post(url: str, event: Event) -> None:
    message = write(event, Format.NATIVE)
    headers = {name.replace("ce_", "ce-", 1): value.decode() for name, value in message.headers}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/events", data=message.value, headers=headers) as answer,
    ):
        assert answer.status in {202, 400}


def a_failure(name: str, *, ago: timedelta = timedelta(), channel: str = "email") -> Event:
    told = a_notification("jane.doe@example.com", channel=channel)
    return Event(
        execution=ExecutionId(project="p", domain="d", name=name),
        phase=Phase.FAILED,
        occurred_at=datetime.now(UTC) - ago,
        options=Options(notifications=(told,)),
    )


async def test_an_events_way_can_be_followed_in_the_figures(tmp_path: Path, relay: MailReceiver) -> None:
    async with running(tmp_path, settings(relay)) as url:
        event = a_failure("one", ago=timedelta(seconds=40))
        await post(url, event)
        await post(url, event)
        seen = await until(url, lambda figures: figures["deliveries_total", "email", "sent"] == 1)

    assert seen["messages_total", "http"] == 2
    assert seen["events_total", "matched", "FAILED", "http", "native"] == 1
    assert seen["events_total", "duplicate", "FAILED", "http", "native"] == 1
    assert seen["attempts_total", "email", "sent"] == 1
    assert seen["attempt_duration_seconds_count", "email"] == 1
    assert seen["delivery_lag_seconds_bucket", "email", "30.0"] == 0
    assert seen["delivery_lag_seconds_bucket", "email", "60.0"] == 1
    assert seen["ready", "ledger"] == seen["collected", "ledger"] == seen["collected", "rooms"] == 1
    assert seen["process_resident_memory_bytes"] > 1e6


async def test_what_waits_is_counted_and_has_an_age(tmp_path: Path, relay: MailReceiver) -> None:
    nowhere = settings(relay)
    nowhere["channels"]["email"]["port"] = 1
    async with running(tmp_path, nowhere) as url:
        await post(url, a_failure("one"))
        await post(url, a_failure("two", channel="slack"))  # which is not configured
        seen = await until(url, lambda figures: (figures.get("attempts_total", "email", "retry") or 0) > 0)
        # figures of the ledger are kept for a while
        seen = await until(url, lambda figures: figures["deliveries_waiting", "email"] == 1)

    assert seen["oldest_waiting_seconds", "email"] > 0
    assert seen["breaker_open", "email"] == 1
    assert seen["deliveries_dead", "other"] == 1
    assert seen["deliveries_total", "other", "dead"] == 1


@needs_promtool
async def test_a_whole_scrape_is_as_prometheus_would_have_it(tmp_path: Path, relay: MailReceiver) -> None:
    async with running(tmp_path, settings(relay)) as url:
        await post(url, a_failure("one"))
        seen = await until(url, lambda figures: figures["deliveries_total", "email", "sent"] == 1)
        async with aiohttp.ClientSession() as session:
            accepts = {"Accept": "application/openmetrics-text;version=1.0.0"}
            async with session.get(f"{url}/metrics", headers=accepts) as answer:
                assert answer.content_type == "application/openmetrics-text"

    assert promtool("check", "metrics", given=seen.text) == ""


async def test_figures_are_for_those_who_may_read_unless_they_are_open(tmp_path: Path) -> None:
    tokens = [
        {"name": "prometheus", "token": "token-of-prometheus", "scopes": ["read"]},
        {"name": "flyte", "token": "token-of-the-engine", "scopes": ["publish"]},
    ]
    async with running(tmp_path, {"http": {"tokens": tokens}}) as url, aiohttp.ClientSession() as session:
        for token, status in (("token-of-prometheus", 200), ("token-of-the-engine", 403), ("", 401)):
            shown = {"Authorization": f"Bearer {token}"} if token else {}
            async with session.get(f"{url}/metrics", headers=shown) as answer:
                assert answer.status == status
    async with running(tmp_path, {"http": {"tokens": tokens, "metrics": "open"}}) as url:
        await scrape(url)


async def test_what_is_looked_up_is_kept_for_a_while(tmp_path: Path, relay: MailReceiver) -> None:
    async with running(tmp_path, settings(relay)) as url:
        first = await scrape(url)
        await post(url, a_failure("one"))
        second = await until(url, lambda figures: figures["deliveries_total", "email", "sent"] == 1)
        assert first["deliveries_dead", "email"] == second["deliveries_dead", "email"] == 0
        assert second["messages_total", "http"] == 1  # what is counted is never old


def recorded(
    *deliveries: Any, event: Event | None = None, verdict: str = "matched", kind: str = "flyte-v2"
) -> RecordedEvent:
    return RecordedEvent(
        event=event or an_event(),
        position="t/0@1",
        verdict=verdict,
        reason="",
        considered=[],
        deliveries=deliveries,
        kind=kind,
    )


def rejected(headers: Any = (), event: str | None = None) -> Rejected:
    return Rejected(
        id="a", position="t/0@1", received_at=NOW, reason="", headers=headers, body=b"", size=0, event=event
    )


def test_two_copies_in_one_batch_are_one_event_and_a_known_one() -> None:
    telemetry = Metrics()
    entry = recorded()
    telemetry.heard(BatchResult([entry, entry], new=frozenset({entry.event.key}), source="kafka", messages=9), now=NOW)

    seen = scraped(telemetry)
    assert seen["messages_total", "kafka"] == 9
    assert seen["events_total", "matched", "FAILED", "kafka", "flyte-v2"] == 1
    assert seen["events_total", "duplicate", "FAILED", "kafka", "flyte-v2"] == 1
    assert seen["last_batch_timestamp_seconds", "kafka"] == NOW.timestamp()


def test_no_text_from_outside_becomes_a_label() -> None:
    telemetry = Metrics()
    telemetry.channel("email")
    strange = a_delivery(channel="x" * 30, state=State.DEAD)
    noise = rejected([("ce_type", b"whatever")])
    telemetry.heard(
        BatchResult(
            [recorded(strange)], [noise, rejected(event="p/d/n/FAILED")], frozenset({an_event().key}), "t/3@9", 3
        ),
        now=NOW,
    )
    telemetry.backlog({"y" * 30: Backlog(NOW, 1, 0, 2, 0), "z" * 30: Backlog(NOW, 2, 0, 3, 0)}, now=NOW + SECOND)

    seen = scraped(telemetry)
    assert seen["events_total", "rejected", "", "replay", "other"] == 1
    assert seen["events_total", "rejected", "FAILED", "replay", "structured"] == 1
    assert seen["rejected_total", "replay"] == 2
    assert seen["deliveries_total", "other", "dead"] == 1
    assert (seen["deliveries_waiting", "other"], seen["deliveries_dead", "other"]) == (3, 5)
    assert (seen["oldest_waiting_seconds", "other"], seen["oldest_waiting_seconds", "email"]) == (1, 0)
    assert not [key for key in seen.series if any(text[:3] in {"xxx", "yyy", "zzz"} for text in key)]


def test_types_are_named_in_a_word() -> None:
    assert kind_of(samples.sample("v1-workflow-failed")[0]) == "flyte-v1"
    assert kind_of(samples.sample("v2-workflow-failed")[0]) == "flyte-v2"
    assert kind_of(samples.sample("v2-workflow-failed-structured")[0]) == "structured"
    assert kind_of(write(an_event(), Format.NATIVE).headers) == "native"


def test_reconciled_ends_are_counted_once() -> None:
    telemetry = Metrics()
    entry = recorded(kind="native")
    for new in (frozenset({entry.event.key}), frozenset[str]()):
        telemetry.heard(BatchResult([entry], new=new, source="reconcile", messages=1), now=NOW)
    assert scraped(telemetry)["reconciled_total"] == 1


def ending(outcome: Sent | Retry | Dead, **facts: Any) -> Settlement:
    delivery = a_delivery(occurred_at=NOW - 3 * SECOND, **facts)
    return Settlement(delivery=delivery, outcome=outcome, started_at=NOW, ended_at=NOW + SECOND)


def test_each_ending_is_counted_and_only_what_counted_settles() -> None:
    telemetry = Metrics()
    telemetry.channel("email")
    for outcome in (SENT, Retry(NOW, "later"), Retry(NOW, "lost", in_doubt=True), Dead("never")):
        telemetry.settled(ending(outcome), True)
    telemetry.settled(ending(SENT), False)
    refused = a_delivery(state=State.DEAD)
    telemetry.settled(replace(ending(SENT, fallback_for="another"), follow_ups=[refused]), True)

    seen = scraped(telemetry)
    attempts = {outcome: seen["attempts_total", "email", outcome] for outcome in ("sent", "retry", "in_doubt", "dead")}
    assert attempts == {"sent": 3, "retry": 1, "in_doubt": 1, "dead": 1}
    assert (seen["deliveries_total", "email", "sent"], seen["deliveries_total", "email", "dead"]) == (2, 2)
    assert seen["lost_leases_total", "email"] == 1
    assert seen["delivery_lag_seconds_count", "email"] == 1  # neither what came late nor what tells of a dead one
    assert seen["delivery_lag_seconds_sum", "email"] == 4


def test_a_clock_that_goes_wrong_makes_no_negative_lag() -> None:
    telemetry = Metrics()
    telemetry.settled(replace(ending(SENT), delivery=a_delivery(occurred_at=NOW + timedelta(hours=1))), True)
    assert scraped(telemetry)["delivery_lag_seconds_sum", "email"] == 0


def test_what_can_not_be_looked_up_is_left_out() -> None:
    telemetry = Metrics()
    telemetry.channel("email")
    telemetry.backlog({}, now=NOW)
    telemetry.kafka({("t", 0): 5}, {("t", 0): 1.0})
    assert scraped(telemetry)["kafka_lag_messages", "0", "t"] == 5
    telemetry.backlog(None, now=NOW)
    telemetry.kafka(None, {})
    seen = scraped(telemetry)
    assert seen.get("deliveries_waiting", "email") is None
    assert seen.get("kafka_lag_messages", "0", "t") is None
