"""Kafka restarts three times while two replicas keep joining and leaving: no delivery is lost, none is sent twice."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dispatcher.model.delivery import State
from tests.faults.rig import Publish, Replica, an_event_for, publishing, reading_ledger, replicas
from tests.support.brokers.apache import ApacheKafka
from tests.support.standins import StandIns

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

EVENTS = 2000
CHANNELS = ("email", "slack")
RESTARTS = (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)
"""The signal for each stop of Kafka."""
MIN_UPTIME = 5.0
"""Seconds: minimum uptime of a replica, and of Kafka between restarts."""
LATENCY = (0.0, 0.05)


async def test_restarts_of_kafka_and_of_replicas_lose_no_delivery_and_send_none_twice(
    rng: Random, figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    async with StandIns(latency=lambda: rng.uniform(*LATENCY)) as standins, reading_ledger(postgres_url) as ledger:
        two = [
            Replica(name, tmp_path, _settings(apache, topic, postgres_url, await standins.open(name)))
            for name in ("one", "two")
        ]
        done = asyncio.Event()
        async with replicas(*two), publishing(apache.bootstrap_servers, topic) as publish:
            async with asyncio.TaskGroup() as group:
                restarts = [group.create_task(_restart_replica(replica, done, rng)) for replica in two]
                group.create_task(_publish_until(done, publish))
                downtimes = await _restart_kafka(apache, rng)
                done.set()
            published = time.monotonic() - began
            states = await ledger.settled(EVENTS * len(CHANNELS), seconds=90)
            for replica in two:
                await replica.stop()
        rows = await ledger.rows()

    stops = [seconds for task in restarts for seconds in task.result()]
    received = Counter(handover.key for handover in standins.handovers)
    lost = [row for key, row in rows.items() if key not in received]
    duplicates = {key: [one for one in standins.handovers if one.key == key] for key, n in received.items() if n > 1}
    figures(
        f"{len(RESTARTS)} restarts of Kafka, down for {', '.join(f'{seconds:.1f}' for seconds in downtimes)} s;"
        f" {len(stops)} replica restarts, the slowest stop took {max(stops):.1f} s; {EVENTS} events in {published:.0f} s,"
        f" {dict(states)}; lost {len(lost)}; duplicates {len(duplicates)}; {time.monotonic() - began:.0f} s"
    )
    assert states == {State.SENT: EVENTS * len(CHANNELS)}, [
        row for row in rows.values() if row.state is not State.SENT
    ][:5]
    assert not lost, lost[:5]
    assert not duplicates, [(rows[key], handovers) for key, handovers in duplicates.items()][:5]
    assert all(row.attempt == 1 for row in rows.values()), [row for row in rows.values() if row.attempt != 1][:5]


def _settings(kafka: ApacheKafka, topic: str, ledger: str, channels: dict[str, Any]) -> dict[str, Any]:
    return {
        "kafka": {
            "bootstrap_servers": kafka.bootstrap_servers,
            "topics": [topic],
            "group_id": f"group-{topic}",
            "session_timeout": "6s",
        },
        "ledger": {"url": ledger},
        "channels": channels,
    }


async def _restart_replica(replica: Replica, done: asyncio.Event, rng: Random) -> list[float]:
    """Restart the replica every few seconds until `done`. Returns the duration of each stop in seconds."""
    stops = []
    await _sleep_unless(done, rng.uniform(0, MIN_UPTIME))
    while not done.is_set():
        await replica.ready()
        await _sleep_unless(done, MIN_UPTIME)
        stops.append(await replica.stop())
        await replica.start()
    return stops


async def _publish_until(done: asyncio.Event, publish: Publish) -> None:
    """Publish events at a steady rate, also while Kafka is down; after `done`, publish the rest at once."""
    for number in range(EVENTS):
        await publish(an_event_for(number, *CHANNELS))
        await _sleep_unless(done, 0.02)


async def _restart_kafka(kafka: ApacheKafka, rng: Random) -> list[float]:
    """Stop and start Kafka, once for each of RESTARTS. Returns the downtimes in seconds."""
    downtimes = []
    for number in RESTARTS:
        await asyncio.sleep(MIN_UPTIME * rng.uniform(1, 2))
        stopped_at = time.monotonic()
        await asyncio.to_thread(kafka.halt, number)
        await asyncio.to_thread(kafka.start)
        downtimes.append(time.monotonic() - stopped_at)
    await asyncio.sleep(MIN_UPTIME)
    return downtimes


async def _sleep_unless(done: asyncio.Event, seconds: float) -> None:
    """Sleep, but return as soon as `done` is set."""
    try:
        async with asyncio.timeout(seconds):
            await done.wait()
    except TimeoutError:
        return
