"""A hundred kills of one of two replicas, while 15,000 messages are on their way."""

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
from tests.faults.rig import Publish, Replica, Row, Truth, an_owing_event, publishing, replicas, the_truth
from tests.support.brokers.apache import ApacheKafka
from tests.support.standins import Handover, StandIns

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("FAULT_KILLS", "100"))
EVENTS = 50 * KILLS
MATCHED = ("email", "slack", "pagerduty")
HANDS = 5
"""A courier's hands: each carries one message at a time, and as many may be on their way into the ledger."""
GAP = (0.3, 3.0)
"""Seconds of work before a kill."""
YOUNG = 0.15
"""So many of the victims may be killed while they are still starting."""
STARTING = 0.3
"""Seconds: no process is up and sending so soon; what comes then was on the wire when its sender was killed."""
LATENCY = (0.0, 0.2)
"""Seconds that a provider takes to accept a message, and again to answer."""


async def test_a_hundred_kills_lose_nothing_and_repeat_only_what_was_in_flight(
    rng: Random, figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    async with StandIns(latency=lambda: rng.uniform(*LATENCY)) as standins, the_truth(postgres_url) as truth:
        two = [
            Replica(name, tmp_path, _settings(name, apache, topic, postgres_url, await standins.open(name)))
            for name in ("one", "two")
        ]
        async with replicas(*two), publishing(apache.bootstrap_servers, topic) as publish:
            for replica in two:
                await replica.ready()
            caught = await _kill_again_and_again(two, publish, truth, rng)
            states = await truth.settled(EVENTS * len(MATCHED), seconds=120)
            for replica in two:
                await replica.stop()
        account = Explanation(await truth.rows(), standins.handovers, {replica.name: replica.births for replica in two})
        figures(
            f"{KILLS} kills, {EVENTS} events, {dict(states)}; {sum(map(bool, caught))} kills caught"
            f" {sum(caught)} deliveries in hand, at most {max(caught)};"
            f" lost {len(account.lost)}; doubled {dict(account.doubled_by_channel)}, at most {account.worst} of a channel"
            f" at a kill; Slack looked {standins.history_requests} times; {time.monotonic() - began:.0f} s"
        )

    assert states == {State.SENT: EVENTS * len(MATCHED)}, account.owed[:5]
    assert not account.lost, account.lost[:5]
    account.check()
    assert sum(map(bool, caught)) >= KILLS / 2, "too few kills caught anything in hand to prove anything"


def _settings(name: str, kafka: ApacheKafka, topic: str, ledger: str, channels: dict[str, Any]) -> dict[str, Any]:
    for section in channels.values():
        section["concurrency"] = HANDS
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


async def _kill_again_and_again(two: list[Replica], publish: Publish, truth: Truth, rng: Random) -> list[int]:
    """Kill one of the two at random moments, with events coming all the time; how much each kill caught in hand."""
    numbers = iter(range(EVENTS))
    caught = []
    for _ in range(KILLS):
        victim, gap = rng.choice(two), rng.uniform(*GAP)
        if rng.random() > YOUNG:
            await victim.ready()
        for _ in range(EVENTS // KILLS):
            await publish(an_owing_event(next(numbers), *MATCHED))
            await asyncio.sleep(gap * KILLS / EVENTS)
        await victim.kill()
        caught.append((await truth.held_by(victim.pid)).total())
        await victim.start()
    return caught


class Explanation:
    """What the providers took, held against the ledger and the kills."""

    def __init__(self, rows: dict[str, Row], handovers: list[Handover], births: dict[str, list[float]]) -> None:
        self.rows = rows
        self.births = births
        self.taken: dict[str, list[Handover]] = defaultdict(list)
        for handover in handovers:
            self.taken[handover.key].append(handover)
        self.owed = [row for row in rows.values() if row.state is not State.SENT]
        self.lost = [row for key, row in rows.items() if key not in self.taken]
        self.doubled = {key: took for key, took in self.taken.items() if len(took) > 1}
        self.doubled_by_channel = Counter(took[0].channel for took in self.doubled.values() for _ in took[1:])
        self.orphans = [
            handover
            for key, took in self.taken.items()
            for handover in took
            if key in rows and not self._told(handover)
        ]
        """Messages that were taken, and whose sender did not live to write it down: in flight at a kill."""
        self.caught = Counter(map(self._kill, self.orphans))
        self.worst = max(
            Counter(self._kill(one) for one in self.orphans if one.key in self.doubled).values(), default=0
        )

    def check(self) -> None:
        """Nothing unknown was sent, and whatever came twice was in flight at a kill, in a hand of the killed."""
        assert set(self.taken) == set(self.rows)
        for key, took in self.doubled.items():
            row = self.rows[key]
            said = f"{row}: {took}"
            assert row.channel != "slack", f"Slack was told twice, though it can be asked first: {said}"
            assert len({handover.body for handover in took}) == 1, f"repeated with another body: {said}"
            assert sum(self._told(handover) for handover in took) <= 1, f"sent twice by workers that lived: {said}"
            assert len(took) - 1 <= row.untold, f"repeated more often than it was caught in flight: {said}"
        for (caller, life, channel), number in self.caught.items():
            assert number <= 2 * HANDS, f"{number} messages of {channel} in flight at kill {life + 1} of {caller}"
            assert life < len(self.births[caller]) - 1, f"unwritten, though {caller} lived on"

    def _told(self, handover: Handover) -> bool:
        """Whether an attempt in the ledger tells of this handover."""
        return any(began <= handover.decided_at <= ended for began, ended, _ in self.rows[handover.key].spans)

    def _kill(self, handover: Handover) -> tuple[str, int, str]:
        return handover.caller, self._life(handover), handover.channel

    def _life(self, handover: Handover) -> int:
        """Which of the replica's processes it came from, counted from 0."""
        return bisect.bisect(self.births[handover.caller], handover.arrived_at - STARTING) - 1
