"""The metrics of a running service, and how its parts are counted."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from channels.contract import Answer, Receipt
from dispatcher.demo.fakes.inbox import MailReceiver
from dispatcher.flyte.decode import type_label
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import BatchResult
from dispatcher.ledger import Backlog, HoldFigures, RecordedEvent, Rejected, Settlement
from dispatcher.ledger.held import HeldBy, HeldNumbers
from dispatcher.model.delivery import Dead, Retry, Sent, State
from dispatcher.model.event import Event
from dispatcher.model.hold import HoldReason
from dispatcher.observability.metrics import Metrics
from tests.support import samples
from tests.support.builders import NOW, SECOND, a_delivery, a_failure, an_event
from tests.support.metrics import Scrape, scrape, scraped
from tests.support.prometheus import needs_promtool, promtool
from tests.support.running import running
from tests.support.waiting import until

SENT = Sent(Receipt(answer=Answer("250")))


async def scraped_until(url: str, condition: Callable[[Scrape], bool]) -> Scrape:
    async def matching() -> Scrape | None:
        seen = await scrape(url)
        return seen if condition(seen) else None

    return await until(matching)


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


async def test_an_event_is_counted_at_each_step(tmp_path: Path, relay: MailReceiver) -> None:
    async with running(tmp_path, settings(relay)) as url:
        event = a_failure("one", ago=timedelta(seconds=40))
        await post(url, event)
        await post(url, event)
        seen = await scraped_until(url, lambda values: values["deliveries_total", "email", "sent"] == 1)

    assert seen["messages_total", "http"] == 2
    assert seen["events_total", "matched", "FAILED", "http", "native"] == 1
    assert seen["events_total", "duplicate", "FAILED", "http", "native"] == 1
    assert seen["attempts_total", "email", "sent"] == 1
    assert seen["attempt_duration_seconds_count", "email"] == 1
    assert seen["delivery_lag_seconds_bucket", "email", "30.0"] == 0
    assert seen["delivery_lag_seconds_bucket", "email", "60.0"] == 1
    assert seen["ready", "ledger"] == 1
    assert seen["scrape_collector_success", "ledger"] == seen["scrape_collector_success", "components"] == 1
    assert seen["process_resident_memory_bytes"] > 1e6


async def test_waiting_deliveries_are_counted_with_the_age_of_the_oldest(tmp_path: Path, relay: MailReceiver) -> None:
    unreachable = settings(relay)
    unreachable["channels"]["email"]["port"] = 1
    async with running(tmp_path, unreachable) as url:
        await post(url, a_failure("one"))
        await post(url, a_failure("two", channel="slack"))  # a channel that is not configured
        seen = await scraped_until(url, lambda values: (values.get("attempts_total", "email", "retry") or 0) > 0)
        # metrics of the ledger are cached for a while
        seen = await scraped_until(url, lambda values: values["deliveries_waiting", "email"] == 1)

    assert seen["oldest_waiting_seconds", "email"] > 0
    assert seen["breaker_open", "email"] == 1
    assert seen["deliveries_dead", "other"] == 1
    assert seen["deliveries_total", "other", "dead"] == 1


@needs_promtool
async def test_promtool_accepts_a_whole_scrape(tmp_path: Path, relay: MailReceiver) -> None:
    async with running(tmp_path, settings(relay)) as url:
        await post(url, a_failure("one"))
        seen = await scraped_until(url, lambda values: values["deliveries_total", "email", "sent"] == 1)
        async with aiohttp.ClientSession() as session:
            headers = {"Accept": "application/openmetrics-text;version=1.0.0"}
            async with session.get(f"{url}/metrics", headers=headers) as answer:
                assert answer.content_type == "application/openmetrics-text"

    assert promtool("check", "metrics", given=seen.text) == ""


async def test_metrics_need_the_scope_read_unless_they_are_open(tmp_path: Path) -> None:
    tokens = [
        {"name": "prometheus", "token": "token-of-prometheus", "scopes": ["read"]},
        {"name": "flyte", "token": "token-of-the-engine", "scopes": ["publish"]},
    ]
    async with running(tmp_path, {"http": {"tokens": tokens}}) as url, aiohttp.ClientSession() as session:
        for token, status in (("token-of-prometheus", 200), ("token-of-the-engine", 403), ("", 401)):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with session.get(f"{url}/metrics", headers=headers) as answer:
                assert answer.status == status
    async with running(tmp_path, {"http": {"tokens": tokens, "metrics": "open"}}) as url:
        await scrape(url)


async def test_collected_values_are_cached_and_counters_are_not(tmp_path: Path, relay: MailReceiver) -> None:
    async with running(tmp_path, settings(relay)) as url:
        first = await scrape(url)
        await post(url, a_failure("one"))
        second = await scraped_until(url, lambda values: values["deliveries_total", "email", "sent"] == 1)
        assert first["deliveries_dead", "email"] == second["deliveries_dead", "email"] == 0
        assert second["messages_total", "http"] == 1  # counters are never cached


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


def test_two_copies_in_one_batch_are_one_event_and_one_duplicate() -> None:
    metrics = Metrics()
    entry = recorded()
    metrics.batch_recorded(
        BatchResult([entry, entry], new=frozenset({entry.event.key}), source="kafka", messages=9), now=NOW
    )

    seen = scraped(metrics)
    assert seen["messages_total", "kafka"] == 9
    assert seen["events_total", "matched", "FAILED", "kafka", "flyte-v2"] == 1
    assert seen["events_total", "duplicate", "FAILED", "kafka", "flyte-v2"] == 1
    assert seen["last_batch_timestamp_seconds", "kafka"] == NOW.timestamp()


def test_no_text_from_events_becomes_a_label() -> None:
    metrics = Metrics()
    metrics.add_channel("email")
    undeliverable = a_delivery(channel="x" * 30, state=State.DEAD)
    unreadable = rejected([("ce_type", b"whatever")])
    metrics.batch_recorded(
        BatchResult(
            [recorded(undeliverable)],
            [unreadable, rejected(event="p/d/n/FAILED")],
            frozenset({an_event().key}),
            "t/3@9",
            3,
        ),
        now=NOW,
    )
    metrics.backlog({"y" * 30: Backlog(NOW, 1, 0, 2, 0), "z" * 30: Backlog(NOW, 2, 0, 3, 0)}, now=NOW + SECOND)

    seen = scraped(metrics)
    assert seen["events_total", "rejected", "", "replay", "other"] == 1
    assert seen["events_total", "rejected", "FAILED", "replay", "structured"] == 1
    assert seen["rejected_total", "replay"] == 2
    assert seen["deliveries_total", "other", "dead"] == 1
    assert (seen["deliveries_waiting", "other"], seen["deliveries_dead", "other"]) == (3, 5)
    assert (seen["oldest_waiting_seconds", "other"], seen["oldest_waiting_seconds", "email"]) == (1, 0)
    assert not [key for key in seen.series if any(text[:3] in {"xxx", "yyy", "zzz"} for text in key)]


def test_message_types_have_short_labels() -> None:
    assert type_label(samples.sample("v1-workflow-failed")[0]) == "flyte-v1"
    assert type_label(samples.sample("v2-workflow-failed")[0]) == "flyte-v2"
    assert type_label(samples.structured("v2-workflow-failed")[0]) == "structured"
    assert type_label(write(an_event(), Format.NATIVE).headers) == "native"


def test_reconciled_executions_are_counted_once() -> None:
    metrics = Metrics()
    entry = recorded(kind="native")
    for new in (frozenset({entry.event.key}), frozenset[str]()):
        metrics.batch_recorded(BatchResult([entry], new=new, source="reconcile", messages=1), now=NOW)
    assert scraped(metrics)["reconciled_total"] == 1


def settlement(outcome: Sent | Retry | Dead, **fields: Any) -> Settlement:
    delivery = a_delivery(occurred_at=NOW - 3 * SECOND, **fields)
    return Settlement(delivery=delivery, outcome=outcome, started_at=NOW, ended_at=NOW + SECOND)


def test_every_attempt_is_counted_and_deliveries_only_if_the_lease_was_held() -> None:
    metrics = Metrics()
    metrics.add_channel("email")
    for outcome in (SENT, Retry(NOW, "later"), Retry(NOW, "lost", in_doubt=True), Dead("never")):
        metrics.settled(settlement(outcome), True)
    metrics.settled(settlement(SENT), False)
    refused = a_delivery(state=State.DEAD)
    metrics.settled(replace(settlement(SENT, fallback_for="another"), follow_ups=[refused]), True)

    seen = scraped(metrics)
    attempts = {outcome: seen["attempts_total", "email", outcome] for outcome in ("sent", "retry", "in_doubt", "dead")}
    assert attempts == {"sent": 3, "retry": 1, "in_doubt": 1, "dead": 1}
    assert (seen["deliveries_total", "email", "sent"], seen["deliveries_total", "email", "dead"]) == (2, 2)
    assert seen["lost_leases_total", "email"] == 1
    assert (
        seen["delivery_lag_seconds_count", "email"] == 1
    )  # not counted: an attempt that lost its lease, and a fallback notice
    assert seen["delivery_lag_seconds_sum", "email"] == 4


def test_an_event_from_the_future_has_a_lag_of_zero() -> None:
    metrics = Metrics()
    metrics.settled(replace(settlement(SENT), delivery=a_delivery(occurred_at=NOW + timedelta(hours=1))), True)
    assert scraped(metrics)["delivery_lag_seconds_sum", "email"] == 0


def test_what_is_held_has_metrics_of_its_own() -> None:
    metrics = Metrics()
    metrics.add_channel("email")
    figures = HoldFigures(
        held={
            HeldBy("email", HoldReason.SILENCE): HeldNumbers(3, NOW - 60 * SECOND, NOW - 20 * SECOND),
            HeldBy("y" * 30, HoldReason.DIGEST): HeldNumbers(2, NOW, NOW + SECOND),
        },
        open_digests={"y" * 30: 1},
        silences_in_force=2,
    )
    metrics.holds(figures, now=NOW)
    metrics.released("email", {"sent": 1, "included": 4, "dropped": 2, "held_again": 8})

    seen = scraped(metrics)
    assert (seen["deliveries_held", "email", "silence"], seen["deliveries_held", "email", "window"]) == (3, 0)
    assert (seen["oldest_held_seconds", "email", "silence"], seen["overdue_hold_seconds", "email", "silence"]) == (
        60,
        20,
    )
    assert (seen["deliveries_held", "other", "digest"], seen["digests_open", "other"]) == (2, 1)
    assert (seen["digests_open", "email"], seen["silences_in_force"]) == (0, 2)
    assert (seen["releases_total", "email", "included"], seen["releases_total", "email", "held_again"]) == (4, 8)
    assert seen["deliveries_total", "email", "dropped"] == 6
    metrics.holds(HoldFigures(), now=NOW)
    assert scraped(metrics)["overdue_hold_seconds", "email", "silence"] == 0
    metrics.holds(None, now=NOW)
    seen = scraped(metrics)
    assert seen.get("deliveries_held", "email", "silence") is seen.get("digests_open", "email") is None
    assert math.isnan(seen["silences_in_force"])


def test_metrics_that_can_not_be_collected_are_left_out() -> None:
    metrics = Metrics()
    metrics.add_channel("email")
    metrics.backlog({}, now=NOW)
    metrics.kafka({("t", 0): 5}, {("t", 0): 1.0})
    assert scraped(metrics)["kafka_lag_messages", "0", "t"] == 5
    metrics.backlog(None, now=NOW)
    metrics.kafka(None, {})
    seen = scraped(metrics)
    assert seen.get("deliveries_waiting", "email") is None
    assert seen.get("kafka_lag_messages", "0", "t") is None
