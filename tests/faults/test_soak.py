"""Two hundred events a second, for as long as it takes to see a leak or a backlog."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dispatcher.model.delivery import State
from tests.faults.rig import Publish, Replica, Truth, an_owing_event, publishing, replicas, the_truth
from tests.support.brokers.apache import ApacheKafka
from tests.support.standins import StandIns

SECONDS = 60 * float(os.environ.get("SOAK_MINUTES", "10"))
pytestmark = [pytest.mark.faults, pytest.mark.timeout(SECONDS + 600)]

RATE = 200
"""Events a second; each owes one Slack message."""
SETTLED_IN = 60.0
"""Seconds after which memory should no longer grow."""
LOOK_EVERY = 5.0
MOST_GROWTH = 0.10
LAG_GONE_IN = 300.0
"""Seconds after the last event: a busy machine may let some deliveries wait, but not for ever more."""


@dataclass
class Looks:
    """What was seen of the replica, again and again."""

    at: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    """MiB."""
    waiting: list[int] = field(default_factory=list)

    def resident_between(self, begin: float, end: float) -> float:
        return statistics.median(mib for at, mib in zip(self.at, self.resident, strict=True) if begin <= at <= end)


async def test_ten_minutes_at_two_hundred_events_a_second_leave_no_backlog_and_no_leak(
    figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    looks = Looks()
    async with StandIns() as standins, the_truth(postgres_url) as truth:
        kafka = {"bootstrap_servers": apache.bootstrap_servers, "topics": [topic], "group_id": f"group-{topic}"}
        channels = {"slack": (await standins.open())["slack"]}
        settings = {"kafka": kafka, "ledger": {"url": postgres_url}, "channels": channels}
        async with (
            replicas(Replica("one", tmp_path, settings)) as (replica,),
            publishing(apache.bootstrap_servers, topic) as publish,
        ):
            await replica.ready()
            began, before = time.monotonic(), _busy_and_all()
            async with asyncio.TaskGroup() as group:
                looking = group.create_task(_look(replica, truth, looks, began))
                count = await _publish_evenly(publish, began)
                looking.cancel()
            busy, ticks = (now - then for now, then in zip(_busy_and_all(), before, strict=True))
            lag = (await truth.states())[State.WAITING]
            behind = time.monotonic()
            states = await truth.settled(count, seconds=LAG_GONE_IN)
            behind = time.monotonic() - behind
            share = _cpu_seconds(replica.pid) / (time.monotonic() - began)
            await replica.stop()

    early = looks.resident_between(SETTLED_IN - 10, SETTLED_IN + 10)
    late = looks.resident_between(SECONDS - 20, SECONDS)
    growth = late / early - 1
    taken = Counter(handover.key for handover in standins.handovers)
    figures(
        f"{count} events in {SECONDS:.0f} s ({count / SECONDS:.0f}/s), {dict(states)}; resident {early:.0f} MiB after"
        f" {SETTLED_IN:.0f} s, {late:.0f} MiB at the end ({growth:+.1%}), {max(looks.resident):.0f} at most;"
        f" waiting {max(looks.waiting)} at most, {lag} at the end, 0 after {behind:.1f} s;"
        f" {share:.0%} of a core, on a machine that was {busy / ticks:.0%} busy"
    )
    assert states == {State.SENT: count}
    assert len(taken) == count
    assert taken.total() == count, [key for key, number in taken.items() if number > 1][:5]
    assert growth < MOST_GROWTH, looks.resident


async def _publish_evenly(publish: Publish, began: float) -> int:
    """Publish at the rate for all the time; how many there were."""
    number = 0
    while (passed := time.monotonic() - began) < SECONDS:
        while number < passed * RATE:
            await publish(an_owing_event(number, "slack"))
            number += 1
        await asyncio.sleep(0.05)
    return number


async def _look(replica: Replica, truth: Truth, looks: Looks, began: float) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY)
        looks.at.append(time.monotonic() - began)
        looks.resident.append(_resident_mib(replica.pid))
        looks.waiting.append((await truth.states())[State.WAITING])


def _resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return int(kib) / 1024


def _busy_and_all() -> tuple[int, int]:
    """The machine's clock ticks so far: those in which it did something, and all."""
    ticks = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _cpu_seconds(pid: int) -> float:
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
