"""200 events per second for ten minutes: no memory leak and no growing backlog."""

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
from tests.faults.rig import LedgerReader, Publish, Replica, an_event_for, publishing, reading_ledger, replicas
from tests.support.brokers.apache import ApacheKafka
from tests.support.standins import StandIns

SECONDS = 60 * float(os.environ.get("SOAK_MINUTES", "10"))
pytestmark = [pytest.mark.faults, pytest.mark.timeout(SECONDS + 600)]

RATE = 200
"""Events per second; each has one Slack delivery."""
WARM_UP = 60.0
"""Seconds after which memory should no longer grow."""
SAMPLE_EVERY = 5.0
MAX_GROWTH = 0.10
"""Largest allowed growth of resident memory after WARM_UP, as a ratio."""
BACKLOG_TIMEOUT = 300.0
"""Seconds after the last event within which the backlog must be gone, also on a busy machine."""


@dataclass
class Samples:
    """Periodic measurements of the replica."""

    at: list[float] = field(default_factory=list)
    """Seconds since the start."""
    resident: list[float] = field(default_factory=list)
    """Resident memory in MiB."""
    waiting: list[int] = field(default_factory=list)
    """Waiting deliveries."""

    def resident_between(self, begin: float, end: float) -> float:
        return statistics.median(mib for at, mib in zip(self.at, self.resident, strict=True) if begin <= at <= end)


async def test_ten_minutes_at_200_events_per_second_leave_no_backlog_and_no_leak(
    figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    samples = Samples()
    async with StandIns() as standins, reading_ledger(postgres_url) as ledger:
        kafka = {"bootstrap_servers": apache.bootstrap_servers, "topics": [topic], "group_id": f"group-{topic}"}
        channels = {"slack": (await standins.open())["slack"]}
        settings = {"kafka": kafka, "ledger": {"url": postgres_url}, "channels": channels}
        async with (
            replicas(Replica("one", tmp_path, settings)) as (replica,),
            publishing(apache.bootstrap_servers, topic) as publish,
        ):
            await replica.ready()
            began, before = time.monotonic(), _machine_ticks()
            async with asyncio.TaskGroup() as group:
                sampling = group.create_task(_sample(replica, ledger, samples, began))
                count = await _publish_evenly(publish, began)
                sampling.cancel()
            busy, ticks = (now - then for now, then in zip(_machine_ticks(), before, strict=True))
            backlog = (await ledger.states())[State.WAITING]
            published_at = time.monotonic()
            states = await ledger.settled(count, seconds=BACKLOG_TIMEOUT)
            backlog_seconds = time.monotonic() - published_at
            share = _cpu_seconds(replica.pid) / (time.monotonic() - began)
            await replica.stop()

    early = samples.resident_between(WARM_UP - 10, WARM_UP + 10)
    late = samples.resident_between(SECONDS - 20, SECONDS)
    growth = late / early - 1
    received = Counter(handover.key for handover in standins.handovers)
    figures(
        f"{count} events in {SECONDS:.0f} s ({count / SECONDS:.0f}/s), {dict(states)}; resident {early:.0f} MiB after"
        f" {WARM_UP:.0f} s, {late:.0f} MiB at the end ({growth:+.1%}), {max(samples.resident):.0f} at most;"
        f" waiting {max(samples.waiting)} at most, {backlog} at the end, 0 after {backlog_seconds:.1f} s;"
        f" {share:.0%} of a core, on a machine that was {busy / ticks:.0%} busy"
    )
    assert states == {State.SENT: count}
    assert len(received) == count
    assert received.total() == count, [key for key, number in received.items() if number > 1][:5]
    assert growth < MAX_GROWTH, samples.resident


async def _publish_evenly(publish: Publish, began: float) -> int:
    """Publish RATE events per second for SECONDS. Returns the number of events."""
    number = 0
    while (passed := time.monotonic() - began) < SECONDS:
        while number < passed * RATE:
            await publish(an_event_for(number, "slack"))
            number += 1
        await asyncio.sleep(0.05)
    return number


async def _sample(replica: Replica, ledger: LedgerReader, samples: Samples, began: float) -> None:
    while True:
        await asyncio.sleep(SAMPLE_EVERY)
        samples.at.append(time.monotonic() - began)
        samples.resident.append(_resident_mib(replica.pid))
        samples.waiting.append((await ledger.states())[State.WAITING])


def _resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return int(kib) / 1024


def _machine_ticks() -> tuple[int, int]:
    """The machine's busy clock ticks and all clock ticks since boot (proc(5), /proc/stat)."""
    ticks = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _cpu_seconds(pid: int) -> float:
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
