"""An upgrade and a rollback with messages flowing all the time: two replicas of each version on one ledger."""

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
from tests.faults.rig import Publish, Replica, an_owing_event, publishing, replicas, the_truth
from tests.support.brokers import Broker
from tests.support.next_version import NEXT, NextVersion
from tests.support.standins import StandIns

pytestmark = [pytest.mark.faults, pytest.mark.broker, pytest.mark.timeout(400)]

MATCHED = ("email", "slack")
BETWEEN = 0.04
"""Seconds between events."""
WHILE = 2.0
"""Seconds of work at each stage."""
LATENCY = (0.0, 0.3)
"""Seconds that a provider takes to accept a message, and again to answer: some are on their way at any moment."""


async def test_an_upgrade_and_a_rollback_under_load_lose_and_double_nothing(
    rng: Random, figures: Callable[[str], None], broker: Broker, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    after = NextVersion(tmp_path / "next")
    async with StandIns(latency=lambda: rng.uniform(*LATENCY)) as standins, the_truth(postgres_url) as truth:

        async def a_replica(name: str, version: NextVersion | None = None) -> Replica:
            settings = _settings(broker, topic, postgres_url, await standins.open(name))
            return Replica(name, tmp_path, settings, version=version)

        old = [await a_replica("old one"), await a_replica("old two")]
        new = [await a_replica("new one", after), await a_replica("new two", after)]
        over = asyncio.Event()
        async with replicas(*old), publishing(broker.bootstrap_servers, topic) as publish:
            try:
                async with asyncio.TaskGroup() as group:
                    flow = group.create_task(_publish_until(over, publish))
                    await _upgrade(old, new, after, tmp_path)
                    await _roll_back(old, new)
                    over.set()
                states = await truth.settled(flow.result() * len(MATCHED), seconds=120)
            finally:
                for replica in new:
                    await replica.remove()
            await old[0].stop()
        rows = await truth.rows()

    taken = Counter(handover.key for handover in standins.handovers)
    carried = Counter(handover.caller for handover in standins.handovers)
    lost = [row for key, row in rows.items() if key not in taken]
    doubled = {key: [one for one in standins.handovers if one.key == key] for key, n in taken.items() if n > 1}
    figures(
        f"{flow.result()} events through an upgrade and a rollback, {dict(states)}, carried by {dict(carried)};"
        f" lost {len(lost)}; doubled {len(doubled)}; {time.monotonic() - began:.0f} s"
    )
    assert states == {State.SENT: flow.result() * len(MATCHED)}, [
        row for row in rows.values() if row.state is not State.SENT
    ][:5]
    assert not lost, lost[:5]
    assert not doubled, [(rows[key], told) for key, told in doubled.items()][:5]
    assert all(row.attempt == 1 for row in rows.values()), [row for row in rows.values() if row.attempt != 1][:5]
    assert set(carried) == {replica.name for replica in (*old, *new)}, "each of them had its part"
    for replica in (*old, *new):
        troubles = [line for line in replica.said if line["level"] in {"error", "critical"}]
        assert not troubles, (replica.name, troubles)
    (restarted, untouched) = ([line["event"] for line in replica.said] for replica in old)
    serves = "a newer version has migrated the ledger; this version can use it too"
    assert (restarted.count(serves), untouched.count(serves)) == (2, 0), "once in mid-upgrade, once rolled back"


async def _upgrade(old: list[Replica], new: list[Replica], after: NextVersion, folder: Path) -> None:
    """The migration beside the old ones at work; one of them restarts; the new ones join; the old ones drain."""
    for replica in old:
        await replica.ready()
    await asyncio.sleep(WHILE)
    said = await after.migrate(folder / "old one.yaml")
    assert said == f"ledger     migrated from version {HEAD} to {NEXT}\n"
    await asyncio.sleep(WHILE)
    await old[0].stop()
    await old[0].start()
    await old[0].ready()
    for replica in new:
        await replica.start()
        await replica.ready()
        await asyncio.sleep(WHILE)
    for replica in old:
        await replica.stop()
    await asyncio.sleep(WHILE)


async def _roll_back(old: list[Replica], new: list[Replica]) -> None:
    """One of the old ones comes again, and the new ones go."""
    await old[0].start()
    await old[0].ready()
    for replica in new:
        await replica.stop()
    await asyncio.sleep(WHILE)


async def _publish_until(over: asyncio.Event, publish: Publish) -> int:
    """An event every now and then; how many it were."""
    for number in itertools.count():
        if over.is_set():
            return number
        await publish(an_owing_event(number, *MATCHED))
        await asyncio.sleep(BETWEEN)
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
