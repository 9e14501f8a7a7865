"""The canary: one replica sends it in each period, all check it, and a miss is reported."""

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
from dispatcher.ledger import Filter, Ledger
from dispatcher.model.event import Event
from dispatcher.model.retry import RetryPolicy
from dispatcher.observability.canary import Canary, CanaryConfig, Publish, through_intake
from dispatcher.observability.metrics import Metrics
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rules import RuleBook
from tests.support.brokers import Broker
from tests.support.builders import SECOND, some_contacts
from tests.support.clock import ManualClock
from tests.support.metrics import scrape, scraped
from tests.support.running import running
from tests.support.waiting import until
from tests.support.workers import ScriptedChannel, a_worker, deliver_due

MINUTE = timedelta(minutes=1)
SLOT = ManualClock().now().replace(minute=10, second=0)
NAME = "dispatcher/canary/20261120T091000Z"


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as opened:
        yield opened


class DeliveringClock(ManualClock):
    """A clock whose `sleep` advances it and lets a worker deliver what is due."""

    def __init__(self, ledger: Ledger, answer: Any) -> None:
        super().__init__(SLOT + 2 * SECOND)
        self.channel = ScriptedChannel(lambda _: answer)
        self._ledger = ledger

    async def sleep(self, duration: timedelta) -> None:
        await super().sleep(duration)
        worker = a_worker(self._ledger, self.channel, clock=self, policy=RetryPolicy(initial=MINUTE), rng=Random(1))
        await deliver_due(worker)


RECEIPT = Receipt(answer=Answer("ok"))


def an_intake(ledger: Ledger, clock: ManualClock) -> Intake:
    contacts = some_contacts(oncall={"email": ["on-call@example.com"]})
    planner = Planner(addresses={"slack": str, "email": str}, fallbacks={}, contacts=contacts)
    return Intake(ledger, lambda: RuleBook({}), planner, Contents(lambda *_, **__: {"text": "canary"}), clock)


def a_canary(ledger: Ledger, clock: ManualClock, publish: Publish | None = None, **changes: Any) -> Canary:
    to_intake = through_intake(an_intake(ledger, clock))
    fields: dict[str, Any] = {
        "config": CanaryConfig(channel="slack", recipient="#canary"),
        "ledger": ledger,
        "clock": clock,
        "metrics": Metrics(),
        "publish": publish or to_intake,
        "publish_miss": to_intake,
        "fallback_recipients": ("oncall",),
        "stopping": asyncio.Event(),
        **changes,
    }
    return Canary(**fields)


async def lose(event: Event) -> None:
    del event


async def recipients(ledger: Ledger) -> dict[str, tuple[str, ...]]:
    """The recipients of each event's delivery."""
    return {one.delivery.event: one.delivery.recipients for one in await ledger.history.find(Filter(), limit=20)}


async def test_a_canary_that_arrives_is_counted_with_its_duration(ledger: Ledger) -> None:
    clock = DeliveringClock(ledger, RECEIPT)
    canary = a_canary(ledger, clock)
    await canary.send_and_check()

    assert await canary.unready_reason() is None
    assert await recipients(ledger) == {f"{NAME}/SUCCEEDED": ("#canary",)}
    assert len(clock.channel.sent) == 1
    seen = scraped(canary.metrics)
    assert (seen["canaries_total", "slack", "arrived"], seen.get("canaries_total", "slack", "missed")) == (1, None)
    assert 2 <= seen["canary_duration_seconds_sum", "slack"] < 5
    assert seen["canary_last_arrival_timestamp_seconds", "slack"] > SLOT.timestamp()


async def test_a_lost_canary_is_missed_and_the_fallback_recipients_are_notified_once(ledger: Ledger) -> None:
    clock = ManualClock(SLOT)
    canary = a_canary(ledger, clock, publish=lose)
    await canary.send_and_check()

    assert clock.now() >= SLOT + MINUTE
    assert (
        await canary.unready_reason()
        == "the last canary is missed: it is not in the ledger: events don't reach the dispatcher"
    )
    assert await recipients(ledger) == {f"{NAME}-missed/FAILED": ("on-call@example.com",)}
    (notice,) = await ledger.history.events(canary_execution("-missed"))
    assert notice.event.error is not None
    assert "did not arrive over slack within 60 s: it is not in the ledger" in notice.event.error.message
    clock.advance(5 * MINUTE)
    await canary.send_and_check()
    assert scraped(canary.metrics)["canaries_total", "slack", "missed"] == 2
    assert len(await recipients(ledger)) == 1


def canary_execution(suffix: str) -> Any:
    from dispatcher.model.event import ExecutionId

    return ExecutionId.parse(f"{NAME}{suffix}")


async def test_after_an_arrival_the_next_miss_is_notified_again(ledger: Ledger) -> None:
    clock = DeliveringClock(ledger, RECEIPT)
    canary = a_canary(ledger, clock, publish=lose)
    await canary.send_and_check()
    assert await canary.unready_reason() is not None
    clock.advance(5 * MINUTE)
    canary.publish = canary.publish_miss
    await canary.send_and_check()
    assert await canary.unready_reason() is None
    clock.advance(5 * MINUTE)
    canary.publish = lose
    await canary.send_and_check()
    assert len([event for event in await recipients(ledger) if event.endswith("-missed/FAILED")]) == 2


async def test_a_canary_that_waits_too_long_is_missed_with_the_providers_reason(ledger: Ledger) -> None:
    canary = a_canary(ledger, DeliveringClock(ledger, Later("Slack is down")))
    await canary.send_and_check()
    assert canary.missed == "it waits: Slack is down"


async def test_a_dead_canary_sends_only_the_usual_fallback_notice(ledger: Ledger) -> None:
    clock = DeliveringClock(ledger, Never("channel_not_found"))
    canary = a_canary(ledger, clock)
    await canary.send_and_check()
    assert canary.missed == "given up: channel_not_found"
    assert clock.now() < SLOT + 10 * SECOND  # a dead canary ends the wait
    assert not [event for event in await recipients(ledger) if "-missed" in event]


async def test_of_several_replicas_one_sends_and_all_check(ledger: Ledger) -> None:
    clock = DeliveringClock(ledger, RECEIPT)
    published: list[str] = []

    async def publish(event: Event) -> None:
        published.append(event.key)
        await through_intake(an_intake(ledger, clock))(event)

    replicas = [a_canary(ledger, clock, publish=publish) for _ in range(3)]
    for slot in range(3):
        for replica in replicas:
            await replica.send_and_check()
        clock.advance(5 * MINUTE)
        assert len(published) == len(set(published)) == slot + 1
    assert [await replica.unready_reason() for replica in replicas] == [None] * 3
    arrivals = [scraped(one.metrics).get("canaries_total", "slack", "arrived") or 0 for one in replicas]
    assert sum(arrivals) == 3


async def test_a_failure_to_publish_is_the_reason_of_the_miss(ledger: Ledger) -> None:
    async def fail(event: Event) -> None:
        raise DispatcherError("Kafka did not take the message: no answer in time")

    canary = a_canary(ledger, ManualClock(SLOT), publish=fail)
    await canary.send_and_check()
    assert canary.missed == "Kafka did not take the message: no answer in time"


async def test_a_replica_that_stops_meanwhile_records_no_miss(ledger: Ledger) -> None:
    canary = a_canary(ledger, ManualClock(SLOT), publish=lose)
    canary.stopping.set()
    await canary.send_and_check()
    await canary.run()
    assert canary.missed is None


def test_settings_with_overlapping_canaries_are_rejected() -> None:
    with pytest.raises(ValidationError, match="one canary at a time"):
        CanaryConfig(channel="slack", recipient="#canary", every=MINUTE, within=MINUTE)


@pytest.fixture
async def relay() -> AsyncIterator[MailReceiver]:
    async with MailReceiver() as receiver:
        yield receiver


def settings(relay: MailReceiver, **canary: Any) -> dict[str, Any]:
    mail = {"host": "127.0.0.1", "port": relay.port, "security": "none", "from": "Flyte <flyte@example.com>"}
    section = {"channel": "email", "recipient": "canary@example.com", "every": "10s", "within": "9s", "readiness": True}
    return {"channels": {"email": mail}, "canary": {**section, **canary}}


async def until_arrived(url: str) -> None:
    async def arrived() -> float | None:
        return (await scrape(url)).get("canaries_total", "email", "arrived")

    await until(arrived, 60)


async def test_a_canary_arrives_in_a_mailbox(tmp_path: Path, relay: MailReceiver) -> None:
    async with running(tmp_path, settings(relay)) as url:
        await until_arrived(url)
    assert relay.mails[0].recipients == ("canary@example.com",)
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/dispatcher.db") as ledger:
        (stored, *_) = await ledger.history.find(Filter(), limit=5)
    assert stored.delivery.event.startswith("dispatcher/canary/")


@pytest.mark.broker
async def test_a_canary_arrives_through_kafka(tmp_path: Path, relay: MailReceiver, broker: Broker, topic: str) -> None:
    kafka = {"bootstrap_servers": broker.bootstrap_servers, "topics": [topic], "group_id": f"group-{topic}"}
    async with running(tmp_path, {**settings(relay), "kafka": kafka}) as url:
        await until_arrived(url)
        seen = await scrape(url)
    assert (seen.get("events_total", "matched", "SUCCEEDED", "kafka", "native") or 0) >= 1
    assert relay.mails


async def test_an_unreachable_recipient_is_an_error_in_the_settings(tmp_path: Path, relay: MailReceiver) -> None:
    from dispatcher.errors import SettingsError

    with pytest.raises(SettingsError, match="canary: #c by slack: no such channel is configured"):
        async with running(tmp_path, settings(relay, channel="slack", recipient="#c")):
            pass
