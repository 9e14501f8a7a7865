"""5,000 executions fail within a minute, for three causes, while replicas are killed: a few messages tell of all."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row, Select, select
from sqlalchemy.ext.asyncio import create_async_engine

from dispatcher.demo.fakes.inbox import Conversation, Inbox
from dispatcher.ledger.schema import deliveries, events
from dispatcher.model.delivery import Kind, State
from dispatcher.model.event import Event, ExecutionError, Options
from tests.faults.rig import Publish, Replica, publishing, reading_ledger, replicas
from tests.support.brokers.apache import ApacheKafka
from tests.support.builders import a_launch_plan, a_notification, an_event

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

EVENTS, SECONDS = 5000, 60
AFTER, EVERY = 3, 15
"""What the contact's option `digest` says: messages that go out at once, and seconds from digest to digest."""
PAUSE = timedelta(seconds=EVERY - 3)
"""A digest without members is at least so long, by the times at which messages were planned."""
KILL_EVERY = 5.0
CHANNELS = ("email", "slack", "teams")
CAUSES = {
    "extract": "ConnectionError: db-{0}.internal:5432 refused the connection {1}",
    "train": "ValueError: learning rate 0.{0} is too high for run {1}",
    "report": "FileNotFoundError: s3://reports/2026/{0}/{1}.parquet",
}
"""The error of each launch plan; the numbers differ from execution to execution."""
TOLD = re.compile(r"(\d+) failed: (extract|train|report)\b")


async def test_a_storm_is_a_few_messages_that_count_every_failure(
    seed: int, figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    inbox = Inbox()
    inbox.slack.channels = [Conversation("C0000001", "storm")]
    async with inbox, reading_ledger(postgres_url) as ledger:
        two = [Replica(name, tmp_path, _settings(name, inbox, apache, topic, postgres_url)) for name in ("one", "two")]
        async with replicas(*two), publishing(apache.bootstrap_servers, topic) as publish:
            for replica in two:
                await replica.ready()
            began = time.monotonic()
            storm = asyncio.create_task(_storm(publish))
            kills = 0
            for victim in itertools.cycle(two):
                await asyncio.sleep(KILL_EVERY)
                if storm.done():
                    break
                await victim.ready()
                await victim.kill()
                await victim.start()
                kills += 1
            failed = await storm
            states = await ledger.settled(EVENTS * len(CHANNELS), seconds=240)
            seconds = time.monotonic() - began
            for replica in two:
                await replica.stop()
        rows = await _rows(postgres_url)

    received = {channel: _received(inbox, channel) for channel in CHANNELS}
    figures(
        f"{EVENTS} failures of {len(CAUSES)} causes in {SECONDS} s, {kills} kills: { ({str(state): number for state, number in states.items()}) };"
        f" different messages { ({channel: len(set(texts)) for channel, texts in received.items()}) },"
        f" repeated { ({channel: len(texts) - len(set(texts)) for channel, texts in received.items()}) };"
        f" the first after {_first_lag(rows):.1f} s, all told of after {seconds:.0f} s"
    )
    assert set(states) == {State.SENT, State.DROPPED}, states
    assert len({row.cause for row in rows if row.cause}) == len(CAUSES)
    for channel in CHANNELS:
        own = [row for row in rows if row.channel == channel]
        assert Counter(row.launch_plan for row in own if row.event) == failed
        _check_recipient(own, failed, sorted(set(received[channel])))


def _check_recipient(rows: Sequence[Row[Any]], failed: Counter[str], received: Sequence[str]) -> None:
    """Nothing is lost, each failure is told of once, and there are at most as many messages as the contact wants."""
    singly = [row for row in rows if row.event and row.state == State.SENT]
    digests = sorted((row for row in rows if row.kind == Kind.DIGEST), key=lambda row: row.created_at)
    assert Counter(row.included_in for row in rows if row.event and row.state == State.DROPPED).keys() == {
        row.key for row in digests
    }
    recorded = sorted(row.created_at for row in rows if row.event)
    # The digests end if none of the replicas records anything for so long.
    bursts = 1 + sum(later - earlier > PAUSE for earlier, later in itertools.pairwise(recorded))
    assert AFTER <= sum(row.held_since is None for row in singly) <= AFTER * bursts
    closed = [row.created_at for row in digests]
    assert all(later - earlier >= timedelta(seconds=EVERY) for earlier, later in itertools.pairwise(closed))
    lasted = (closed[-1] - min(row.created_at for row in rows)).total_seconds()
    assert len(received) == len(singly) + len(digests) <= AFTER * bursts + ceil(lasted / EVERY)
    told = Counter(row.launch_plan for row in singly)
    for text in received:
        told.update({plan: int(number) for number, plan in TOLD.findall(text)})
    assert told == failed


def _settings(name: str, inbox: Inbox, kafka: ApacheKafka, topic: str, ledger: str) -> dict[str, Any]:
    contact = {"email": ["ops@example.com"], "slack": ["#storm"], "teams": ["storm"]}
    retry = {"initial": "1s", "ceiling": "5s"}
    return {
        "kafka": {
            "bootstrap_servers": kafka.bootstrap_servers,
            "topics": [topic],
            "group_id": f"group-{topic}",
            "group_instance_id": name,
            "session_timeout": "6s",
        },
        "ledger": {"url": ledger, "lease": "5s"},
        "contacts": {"ops": {**contact, "digest": {"after": AFTER, "within": "10m", "every": f"{EVERY}s"}}},
        "channels": {
            "email": {
                "host": "127.0.0.1",
                "port": inbox.mail.port,
                "security": "none",
                "from": "Flyte <flyte@example.com>",
                "retry": retry,
            },
            "slack": {"token": inbox.slack.token, "api_url": inbox.slack_url, "retry": retry},
            "teams": {
                "allow_http": True,
                "allow_networks": ["127.0.0.0/8"],
                "targets": {"storm": {"url": f"{inbox.url}/teams/workflows/storm"}},
                "retry": retry,
            },
        },
    }


async def _storm(publish: Publish) -> Counter[str]:
    """Publish the failures evenly. Returns how many executions of each launch plan failed."""
    began, failed = time.monotonic(), Counter[str]()
    for number in range(EVENTS):
        plan = [*CAUSES][(number * number) % 7 % len(CAUSES)]
        failed[plan] += 1
        await publish(_a_failure(number, plan))
        await asyncio.sleep(max(began + (number + 1) * SECONDS / EVENTS - time.monotonic(), 0))
    return failed


def _a_failure(number: int, plan: str) -> Event:
    message = CAUSES[plan].format(number, f"a{number * 7919:019x}")
    notifications = tuple(a_notification("ops", channel=channel) for channel in CHANNELS)
    event = an_event(
        name=f"run{number}",
        launch_plan=a_launch_plan(plan),
        error=ExecutionError(code="USER", message=message, kind="USER"),
        options=Options(notifications=notifications),
    )
    return event.model_copy(update={"occurred_at": datetime.now(UTC)})


async def _rows(url: str) -> Sequence[Row[Any]]:
    """All deliveries with the launch plans and causes of their events."""
    columns = ("key", "channel", "event", "kind", "state", "included_in", "held_since", "created_at", "settled_at")
    of_events = (events.c.launch_plan, events.c.cause, events.c.occurred_at)
    query: Select[Any] = select(*(deliveries.c[name] for name in columns), *of_events)
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        rows: Sequence[Row[Any]] = (
            await connection.execute(query.outerjoin(events, events.c.key == deliveries.c.event))
        ).all()
    await engine.dispose()
    return rows


def _received(inbox: Inbox, channel: str) -> list[str]:
    """The texts of all messages that arrived."""
    if channel == "email":
        return [f"{mail.message_id} {mail.part('plain')}" for mail in inbox.mail.mails]
    if channel == "slack":
        return [json.dumps(message.body) for message in inbox.slack.messages]
    return [json.dumps(card.body) for card in inbox.teams.cards]


def _first_lag(rows: Sequence[Row[Any]]) -> float:
    lags = [row.settled_at - row.occurred_at for row in rows if row.event and row.state == State.SENT]
    return min(lags, default=timedelta()).total_seconds()
