"""One of two replicas is killed a hundred times while 15,000 messages are sent."""

from __future__ import annotations

import asyncio
import bisect
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dispatcher.model.delivery import State
from tests.faults.rig import LedgerReader, Publish, Replica, Row, an_event_for, publishing, reading_ledger, replicas
from tests.support.brokers.apache import ApacheKafka
from tests.support.standins import Handover, StandIns

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("FAULT_KILLS", "100"))
EVENTS = 50 * KILLS
CHANNELS = ("email", "slack", "pagerduty")
CONCURRENCY = 5
"""A worker's slots: each sends one message at a time. As many more outcomes may be on their way to the ledger."""
GAP = (0.3, 3.0)
"""Seconds of work before a kill."""
YOUNG = 0.15
"""Share of the kills that may hit a process that is still starting."""
STARTING = 0.3
"""Seconds: a process sends nothing so soon after its start, so a message that arrives then is from its predecessor."""
LATENCY = (0.0, 0.2)
"""Seconds that a provider takes to accept a message, and again to answer."""


async def test_a_hundred_kills_lose_nothing_and_repeat_only_what_was_in_flight(
    rng: Random, figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    async with StandIns(latency=lambda: rng.uniform(*LATENCY)) as standins, reading_ledger(postgres_url) as ledger:
        two = [
            Replica(name, tmp_path, _settings(name, apache, topic, postgres_url, await standins.open(name)))
            for name in ("one", "two")
        ]
        async with replicas(*two), publishing(apache.bootstrap_servers, topic) as publish:
            for replica in two:
                await replica.ready()
            caught = await _kill_repeatedly(two, publish, ledger, rng)
            states = await ledger.settled(EVENTS * len(CHANNELS), seconds=120)
            for replica in two:
                await replica.stop()
        comparison = Comparison(
            await ledger.rows(), standins.handovers, {replica.name: replica.started_at for replica in two}
        )
        figures(
            f"{KILLS} kills, {EVENTS} events, {dict(states)}; {sum(map(bool, caught))} kills hit"
            f" {sum(caught)} deliveries in flight, at most {max(caught)};"
            f" lost {len(comparison.lost)}; duplicates {dict(comparison.duplicates_by_channel)}, at most"
            f" {comparison.max_duplicates} on a channel per kill; {standins.history_requests} searches in Slack;"
            f" {time.monotonic() - began:.0f} s"
        )

    assert states == {State.SENT: EVENTS * len(CHANNELS)}, comparison.unsent[:5]
    assert not comparison.lost, comparison.lost[:5]
    comparison.check()
    assert sum(map(bool, caught)) >= KILLS / 2, "too few kills hit a delivery in flight to prove anything"


def _settings(name: str, kafka: ApacheKafka, topic: str, ledger: str, channels: dict[str, Any]) -> dict[str, Any]:
    for section in channels.values():
        section["concurrency"] = CONCURRENCY
        section["retry"] = {"initial": "1s", "ceiling": "5s"}
    return {
        "kafka": {
            "bootstrap_servers": kafka.bootstrap_servers,
            "topics": [topic],
            "group_id": f"group-{topic}",
            "group_instance_id": name,
            "session_timeout": "6s",
        },
        "ledger": {"url": ledger, "lease": "5s"},
        "channels": channels,
    }


async def _kill_repeatedly(two: list[Replica], publish: Publish, ledger: LedgerReader, rng: Random) -> list[int]:
    """Kill one of the two at random times while events are published. Returns how many deliveries each kill hit."""
    numbers = iter(range(EVENTS))
    caught = []
    for _ in range(KILLS):
        victim, gap = rng.choice(two), rng.uniform(*GAP)
        if rng.random() > YOUNG:
            await victim.ready()
        for _ in range(EVENTS // KILLS):
            await publish(an_event_for(next(numbers), *CHANNELS))
            await asyncio.sleep(gap * KILLS / EVENTS)
        await victim.kill()
        caught.append((await ledger.claimed_by(victim.pid)).total())
        await victim.start()
    return caught


class Comparison:
    """Compares the messages that the providers received with the ledger's rows and the kills."""

    def __init__(self, rows: dict[str, Row], handovers: list[Handover], started_at: dict[str, list[float]]) -> None:
        self.rows = rows
        self.started_at = started_at
        self.received: dict[str, list[Handover]] = defaultdict(list)
        for handover in handovers:
            self.received[handover.key].append(handover)
        self.unsent = [row for row in rows.values() if row.state is not State.SENT]
        self.lost = [row for key, row in rows.items() if key not in self.received]
        self.duplicates = {key: received for key, received in self.received.items() if len(received) > 1}
        self.duplicates_by_channel = Counter(
            received[0].channel for received in self.duplicates.values() for _ in received[1:]
        )
        self.unrecorded = [
            handover
            for key, received in self.received.items()
            for handover in received
            if key in rows and not self._recorded(handover)
        ]
        """Messages in flight at a kill: the provider received them, and the sender was killed before it recorded that."""
        self.in_flight = Counter(map(self._kill, self.unrecorded))
        self.max_duplicates = max(
            Counter(self._kill(one) for one in self.unrecorded if one.key in self.duplicates).values(), default=0
        )

    def check(self) -> None:
        """Every message belongs to a row, and every duplicate was in flight at a kill, in a slot of the killed worker."""
        assert set(self.received) == set(self.rows)
        for key, received in self.duplicates.items():
            row = self.rows[key]
            details = f"{row}: {received}"
            assert row.channel != "slack", f"a duplicate in Slack, which can be searched first: {details}"
            assert len({handover.body for handover in received}) == 1, f"repeated with another body: {details}"
            assert sum(map(self._recorded, received)) <= 1, f"sent twice by workers that were not killed: {details}"
            assert len(received) - 1 <= row.unrecorded, f"repeated more often than in flight at a kill: {details}"
        for (caller, process, channel), number in self.in_flight.items():
            limit = 2 * CONCURRENCY
            assert number <= limit, f"{number} messages of {channel} in flight at kill {process + 1} of {caller}"
            assert process < len(self.started_at[caller]) - 1, f"not recorded, though {caller} was not killed"

    def _recorded(self, handover: Handover) -> bool:
        """True if the ledger has an attempt for this message."""
        return any(began <= handover.decided_at <= ended for began, ended, _ in self.rows[handover.key].attempts)

    def _kill(self, handover: Handover) -> tuple[str, int, str]:
        return handover.caller, self._process(handover), handover.channel

    def _process(self, handover: Handover) -> int:
        """The number of the replica's process that sent the message, from 0."""
        return bisect.bisect(self.started_at[handover.caller], handover.arrived_at - STARTING) - 1
