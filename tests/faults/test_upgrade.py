"""An upgrade and a rollback while messages are published: two replicas of each version on one ledger."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dispatcher.ledger import HEAD
from dispatcher.model.delivery import State
from tests.faults.rig import Publish, Replica, an_event_for, publishing, reading_ledger, replicas
from tests.support.brokers import Broker
from tests.support.next_version import NEXT, NextVersion
from tests.support.standins import StandIns

pytestmark = [pytest.mark.faults, pytest.mark.broker, pytest.mark.timeout(400)]

CHANNELS = ("email", "slack")
INTERVAL = 0.04
"""Seconds between events."""
STAGE_SECONDS = 2.0
"""Seconds of work at each stage."""
LATENCY = (0.0, 0.3)
"""Seconds that a provider takes to accept a message, and again to answer, so that some are always in flight."""


async def test_an_upgrade_and_a_rollback_under_load_lose_no_delivery_and_send_none_twice(
    rng: Random, figures: Callable[[str], None], broker: Broker, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    after = NextVersion(tmp_path / "next")
    async with StandIns(latency=lambda: rng.uniform(*LATENCY)) as standins, reading_ledger(postgres_url) as ledger:

        async def a_replica(name: str, version: NextVersion | None = None) -> Replica:
            settings = _settings(broker, topic, postgres_url, await standins.open(name))
            return Replica(name, tmp_path, settings, version=version)

        old = [await a_replica("old one"), await a_replica("old two")]
        new = [await a_replica("new one", after), await a_replica("new two", after)]
        done = asyncio.Event()
        async with replicas(*old), publishing(broker.bootstrap_servers, topic) as publish:
            try:
                async with asyncio.TaskGroup() as group:
                    publisher = group.create_task(_publish_until(done, publish))
                    await _upgrade(old, new, after, tmp_path)
                    await _roll_back(old, new)
                    done.set()
                states = await ledger.settled(publisher.result() * len(CHANNELS), seconds=120)
            finally:
                for replica in new:
                    await replica.remove()
            await old[0].stop()
        rows = await ledger.rows()

    received = Counter(handover.key for handover in standins.handovers)
    senders = Counter(handover.caller for handover in standins.handovers)
    lost = [row for key, row in rows.items() if key not in received]
    duplicates = {key: [one for one in standins.handovers if one.key == key] for key, n in received.items() if n > 1}
    figures(
        f"{publisher.result()} events during an upgrade and a rollback, {dict(states)}, sent by {dict(senders)};"
        f" lost {len(lost)}; duplicates {len(duplicates)}; {time.monotonic() - began:.0f} s"
    )
    assert states == {State.SENT: publisher.result() * len(CHANNELS)}, [
        row for row in rows.values() if row.state is not State.SENT
    ][:5]
    assert not lost, lost[:5]
    assert not duplicates, [(rows[key], handovers) for key, handovers in duplicates.items()][:5]
    assert all(row.attempt == 1 for row in rows.values()), [row for row in rows.values() if row.attempt != 1][:5]
    assert set(senders) == {replica.name for replica in (*old, *new)}, "each replica sent something"
    for replica in (*old, *new):
        errors = [line for line in replica.log_lines if line["level"] in {"error", "critical"}]
        assert not errors, (replica.name, errors)
    (restarted, untouched) = ([line["event"] for line in replica.log_lines] for replica in old)
    compatible = "a newer version has migrated the ledger; this version can use it too"
    counts = (restarted.count(compatible), untouched.count(compatible))
    assert counts == (2, 0), "once during the upgrade, once after the rollback"


async def _upgrade(old: list[Replica], new: list[Replica], after: NextVersion, folder: Path) -> None:
    """Migrate while the old replicas work; restart one of them; start the new replicas; drain the old ones."""
    for replica in old:
        await replica.ready()
    await asyncio.sleep(STAGE_SECONDS)
    output = await after.migrate(folder / "old one.yaml")
    assert output == f"ledger     migrated from version {HEAD} to {NEXT}\n"
    await asyncio.sleep(STAGE_SECONDS)
    await old[0].stop()
    await old[0].start()
    await old[0].ready()
    for replica in new:
        await replica.start()
        await replica.ready()
        await asyncio.sleep(STAGE_SECONDS)
    for replica in old:
        await replica.stop()
    await asyncio.sleep(STAGE_SECONDS)


async def _roll_back(old: list[Replica], new: list[Replica]) -> None:
    """Start one of the old replicas again, then stop the new ones."""
    await old[0].start()
    await old[0].ready()
    for replica in new:
        await replica.stop()
    await asyncio.sleep(STAGE_SECONDS)


async def _publish_until(done: asyncio.Event, publish: Publish) -> int:
    """Publish an event every INTERVAL until `done`. Returns the number of events."""
    for number in itertools.count():
        if done.is_set():
            return number
        await publish(an_event_for(number, *CHANNELS))
        await asyncio.sleep(INTERVAL)
    raise AssertionError


def _settings(kafka: Broker, topic: str, ledger: str, channels: dict[str, Any]) -> dict[str, Any]:
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
