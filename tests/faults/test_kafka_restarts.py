"""Kafka goes away three times, and two replicas join and leave without end: nobody misses anything, nobody is told twice."""

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
from tests.faults.rig import Publish, Replica, an_owing_event, publishing, replicas, the_truth
from tests.support.brokers.apache import ApacheKafka
from tests.support.standins import StandIns

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

EVENTS = 2000
MATCHED = ("email", "slack")
RESTARTS = (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)
"""How Kafka ends each time."""
STAY = 5.0
"""Seconds that a replica stays, and Kafka between its restarts, at least."""
LATENCY = (0.0, 0.05)


async def test_kafka_restarts_and_replicas_that_come_and_go_lose_and_double_nothing(
    rng: Random, figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    async with StandIns(latency=lambda: rng.uniform(*LATENCY)) as standins, the_truth(postgres_url) as truth:
        two = [
            Replica(name, tmp_path, _settings(apache, topic, postgres_url, await standins.open(name)))
            for name in ("one", "two")
        ]
        over = asyncio.Event()
        async with replicas(*two), publishing(apache.bootstrap_servers, topic) as publish:
            async with asyncio.TaskGroup() as group:
                comings = [group.create_task(_come_and_go(replica, over, rng)) for replica in two]
                group.create_task(_publish_until(over, publish))
                downs = await _restart_again_and_again(apache, rng)
                over.set()
            published = time.monotonic() - began
            states = await truth.settled(EVENTS * len(MATCHED), seconds=90)
            for replica in two:
                await replica.stop()
        rows = await truth.rows()

    stops = [took for coming in comings for took in coming.result()]
    taken = Counter(handover.key for handover in standins.handovers)
    lost = [row for key, row in rows.items() if key not in taken]
    doubled = {key: [one for one in standins.handovers if one.key == key] for key, n in taken.items() if n > 1}
    figures(
        f"{len(RESTARTS)} restarts of Kafka, away for {', '.join(f'{down:.1f}' for down in downs)} s;"
        f" {len(stops)} replicas joined and left, the slowest in {max(stops):.1f} s; {EVENTS} events in {published:.0f} s,"
        f" {dict(states)}; lost {len(lost)}; doubled {len(doubled)}; {time.monotonic() - began:.0f} s"
    )
    assert states == {State.SENT: EVENTS * len(MATCHED)}, [row for row in rows.values() if row.state is not State.SENT][
        :5
    ]
    assert not lost, lost[:5]
    assert not doubled, [(rows[key], told) for key, told in doubled.items()][:5]
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


async def _come_and_go(replica: Replica, over: asyncio.Event, rng: Random) -> list[float]:
    """Leave and join anew every few seconds; how long each leave took."""
    stops = []
    await _unless(over, rng.uniform(0, STAY))
    while not over.is_set():
        await replica.ready()
        await _unless(over, STAY)
        stops.append(await replica.stop())
        await replica.start()
    return stops


async def _publish_until(over: asyncio.Event, publish: Publish) -> None:
    """Events all the time, also while Kafka is away; what is left when it is over comes at once."""
    for number in range(EVENTS):
        await publish(an_owing_event(number, *MATCHED))
        await _unless(over, 0.02)


async def _restart_again_and_again(kafka: ApacheKafka, rng: Random) -> list[float]:
    """How long Kafka was away each time."""
    downs = []
    for number in RESTARTS:
        await asyncio.sleep(STAY * rng.uniform(1, 2))
        gone = time.monotonic()
        await asyncio.to_thread(kafka.halt, number)
        await asyncio.to_thread(kafka.start)
        downs.append(time.monotonic() - gone)
    await asyncio.sleep(STAY)
    return downs


async def _unless(over: asyncio.Event, seconds: float) -> None:
    """Let time pass, unless it is over."""
    try:
        async with asyncio.timeout(seconds):
            await over.wait()
    except TimeoutError:
        return
