"""The canary: sent once in each slot, judged by everybody, told when it is missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import ValidationError

from channels.contract import Answer, Later, Never, Receipt
from dispatcher.demo.fakes.inbox import MailReceiver
from dispatcher.errors import DispatcherError
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import DeliveryFilter, Ledger
from dispatcher.model.event import Event
from dispatcher.model.retry import RetryPolicy
from dispatcher.observability.canary import Canary, CanaryConfig, Release, through_intake
from dispatcher.observability.metrics import Metrics
from dispatcher.planning.planner import Planner
from dispatcher.rules import RuleBook
from tests.delivering.test_worker import Scripted, a_courier
from tests.observability.test_metrics import scrape, scraped
from tests.support.brokers import Broker
from tests.support.builders import SECOND
from tests.support.clock import ManualClock
from tests.support.running import running

MINUTE = timedelta(minutes=1)
SLOT = ManualClock().now().replace(minute=10, second=0)
NAME = "dispatcher/canary/20261120T091000Z"


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as opened:
        yield opened


class Delivering(ManualClock):
    """While somebody waits, time passes, and a courier works."""

    def __init__(self, ledger: Ledger, answer: Any) -> None:
        super().__init__(SLOT + 2 * SECOND)
        self.channel = Scripted(lambda _: answer)
        self._ledger = ledger

    async def sleep(self, span: timedelta) -> None:
        await super().sleep(span)
        courier = a_courier(self._ledger, self.channel, clock=self, policy=RetryPolicy(initial=MINUTE), rng=Random(1))
        for delivery in await courier._claim():
            await courier._carry(delivery, probing=False)


RECEIPT = Receipt(answer=Answer("ok"))


def an_intake(ledger: Ledger, clock: ManualClock) -> Intake:
    planner = Planner(addresses={"slack": str, "email": str}, fallbacks={}, render=lambda *_, **__: {"text": "tweet"})
    return Intake(ledger, lambda: RuleBook({}), planner, clock)


def a_canary(ledger: Ledger, clock: ManualClock, release: Release | None = None, **changes: Any) -> Canary:
    way = through_intake(an_intake(ledger, clock))
    facts: dict[str, Any] = {
        "config": CanaryConfig(channel="slack", recipient="#canary"),
        "ledger": ledger,
        "clock": clock,
        "telemetry": Metrics(),
        "release": release or way,
        "alarm": way,
        "fallbacks": {"email": ("on-call@example.com",)},
        "stopping": asyncio.Event(),
        **changes,
    }
    return Canary(**facts)


async def into_the_void(event: Event) -> None:
    del event


async def told(ledger: Ledger) -> dict[str, tuple[str, ...]]:
    """Who is owed what, by event."""
    return {one.delivery.event: one.delivery.recipients for one in await ledger.find(DeliveryFilter(), limit=20)}


async def test_a_canary_that_arrives_is_counted_with_the_time_it_took(ledger: Ledger) -> None:
    clock = Delivering(ledger, RECEIPT)
    canary = a_canary(ledger, clock)
    await canary.fly()

    assert await canary.trouble() is None
    assert await told(ledger) == {f"{NAME}/SUCCEEDED": ("#canary",)}
    assert len(clock.channel.sent) == 1
    seen = scraped(canary.metrics)
    assert (seen["canaries_total", "slack", "arrived"], seen.get("canaries_total", "slack", "missed")) == (1, None)
    assert 2 <= seen["canary_duration_seconds_sum", "slack"] < 5
    assert seen["canary_last_arrival_timestamp_seconds", "slack"] > SLOT.timestamp()


async def test_what_never_reaches_us_is_missed_and_the_fallback_recipients_are_told_once(ledger: Ledger) -> None:
    clock = ManualClock(SLOT)
    canary = a_canary(ledger, clock, release=into_the_void)
    await canary.fly()

    assert clock.now() >= SLOT + MINUTE
    assert await canary.trouble() == "the last canary is missed: it is not in the ledger: events don't reach us"
    assert await told(ledger) == {f"{NAME}-missed/FAILED": ("on-call@example.com",)}
    (alarm,) = await ledger.known(replace_name("-missed"))
    assert alarm.event.error is not None
    assert "did not arrive by slack within 60 s: it is not in the ledger" in alarm.event.error.message
    clock.advance(5 * MINUTE)
    await canary.fly()
    assert scraped(canary.metrics)["canaries_total", "slack", "missed"] == 2
    assert len(await told(ledger)) == 1


def replace_name(suffix: str) -> Any:
    from dispatcher.model.event import ExecutionId

    return ExecutionId.parse(f"{NAME}{suffix}")


async def test_one_that_arrives_after_a_miss_ends_the_trouble_and_the_next_miss_is_told_again(ledger: Ledger) -> None:
    clock = Delivering(ledger, RECEIPT)
    canary = a_canary(ledger, clock, release=into_the_void)
    await canary.fly()
    assert await canary.trouble() is not None
    clock.advance(5 * MINUTE)
    canary.release = canary.alarm
    await canary.fly()
    assert await canary.trouble() is None
    clock.advance(5 * MINUTE)
    canary.release = into_the_void
    await canary.fly()
    assert len([event for event in await told(ledger) if event.endswith("-missed/FAILED")]) == 2


async def test_one_that_waits_too_long_is_missed_with_the_providers_reason(ledger: Ledger) -> None:
    canary = a_canary(ledger, Delivering(ledger, Later("Slack is down")))
    await canary.fly()
    assert canary.missed == "it waits: Slack is down"


async def test_of_one_that_is_given_up_the_usual_notice_is_enough(ledger: Ledger) -> None:
    clock = Delivering(ledger, Never("channel_not_found"))
    canary = a_canary(ledger, clock)
    await canary.fly()
    assert canary.missed == "given up: channel_not_found"
    assert clock.now() < SLOT + 10 * SECOND  # nobody waits for what is dead
    assert not [event for event in await told(ledger) if "-missed" in event]


async def test_of_several_replicas_one_sends_and_all_judge(ledger: Ledger) -> None:
    clock = Delivering(ledger, RECEIPT)
    released: list[str] = []

    async def release(event: Event) -> None:
        released.append(event.key)
        await through_intake(an_intake(ledger, clock))(event)

    replicas = [a_canary(ledger, clock, release=release) for _ in range(3)]
    for slot in range(3):
        for replica in replicas:
            await replica.fly()
        clock.advance(5 * MINUTE)
        assert len(released) == len(set(released)) == slot + 1
    assert [await replica.trouble() for replica in replicas] == [None] * 3
    counted = [scraped(one.metrics).get("canaries_total", "slack", "arrived") or 0 for one in replicas]
    assert sum(counted) == 3


async def test_a_way_that_is_closed_is_the_reason(ledger: Ledger) -> None:
    async def closed(event: Event) -> None:
        raise DispatcherError("Kafka did not take the message: no answer in time")

    canary = a_canary(ledger, ManualClock(SLOT), release=closed)
    await canary.fly()
    assert canary.missed == "Kafka did not take the message: no answer in time"


async def test_a_replica_that_stops_meanwhile_judges_nothing(ledger: Ledger) -> None:
    canary = a_canary(ledger, ManualClock(SLOT), release=into_the_void)
    canary.stopping.set()
    await canary.fly()
    await canary.run()
    assert canary.missed is None


def test_settings_that_would_overlap_are_refused() -> None:
    with pytest.raises(ValidationError, match="one canary at a time"):
        CanaryConfig(channel="slack", recipient="#canary", every=MINUTE, within=MINUTE)


@pytest.fixture
async def relay() -> AsyncIterator[MailReceiver]:
    async with MailReceiver() as receiver:
        yield receiver


def settings(relay: MailReceiver, **canary: Any) -> dict[str, Any]:
    mail = {"host": "127.0.0.1", "port": relay.port, "security": "none", "from": "Flyte <flyte@example.com>"}
    bird = {"channel": "email", "recipient": "canary@example.com", "every": "10s", "within": "9s", "readiness": True}
    return {"channels": {"email": mail}, "canary": {**bird, **canary}}


async def arrives(url: str) -> None:
    async with asyncio.timeout(60):
        while not (await scrape(url)).get("canaries_total", "email", "arrived"):
            await asyncio.sleep(0.2)


async def test_it_flies_the_whole_way_to_a_mailbox(tmp_path: Path, relay: MailReceiver) -> None:
    async with running(tmp_path, settings(relay)) as url:
        await arrives(url)
    assert relay.mails[0].recipients == ("canary@example.com",)
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/dispatcher.db") as ledger:
        (filed, *_) = await ledger.find(DeliveryFilter(), limit=5)
    assert filed.delivery.event.startswith("dispatcher/canary/")


@pytest.mark.broker
async def test_it_flies_the_whole_way_through_kafka(
    tmp_path: Path, relay: MailReceiver, broker: Broker, topic: str
) -> None:
    kafka = {"bootstrap_servers": broker.bootstrap_servers, "topics": [topic], "group_id": f"group-{topic}"}
    async with running(tmp_path, {**settings(relay), "kafka": kafka}) as url:
        await arrives(url)
        seen = await scrape(url)
    assert (seen.get("events_total", "matched", "SUCCEEDED", "kafka", "native") or 0) >= 1
    assert relay.mails


async def test_a_recipient_who_can_not_be_reached_is_a_mistake_in_the_settings(
    tmp_path: Path, relay: MailReceiver
) -> None:
    from dispatcher.errors import SettingsError

    with pytest.raises(SettingsError, match="canary: #c by slack: no such channel is configured"):
        async with running(tmp_path, settings(relay, channel="slack", recipient="#c")):
            pass
