"""Three providers fail at the same time: everything is delivered, no retry comes too early, and none is needless."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from dispatcher.model.delivery import State
from dispatcher.model.retry import FLOOR, RetryPolicy
from tests.faults.rig import Replica, an_event_for, publishing, reading_ledger, replicas
from tests.support.brokers.apache import ApacheKafka
from tests.support.standins import RETRY_AFTER, Handover, Reaction, StandIns

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

EVENTS = 100
CHANNELS = ("email", "slack", "pagerduty")
SLACK_CHANNELS = 20
CONCURRENCY = 20
DOWN = 60.0
"""Seconds for which the relay is unreachable."""
REFUSING = 15.0
"""Seconds for which it then answers 451."""
POLICY = RetryPolicy(initial=timedelta(seconds=1), ceiling=timedelta(seconds=4))
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds: the circuit breaker's first and longest pause; it doubles from one to the other."""
PAGERDUTY_TIMEOUT = 2
"""Seconds to wait for PagerDuty's answer."""
IN_FLIGHT = 0.5
"""Seconds: messages already in flight to a Slack channel may still arrive this long after a refusal there."""


class Failures:
    """Decides how each provider reacts to a message."""

    def __init__(self, rng: Random) -> None:
        self.relay_accepts = False
        self._rng = rng
        self._seen: set[str] = set()

    def reaction(self, channel: str, key: str) -> Reaction:
        match channel:
            case "email":
                return Reaction.TAKE if self.relay_accepts else Reaction.REFUSE
            case "slack":
                return self._rng.choice((Reaction.TAKE, Reaction.REFUSE))
            case _ if key in self._seen:
                return Reaction.TAKE
            case _:
                self._seen.add(key)
                return self._rng.choice((Reaction.TAKE, Reaction.TAKE, Reaction.NO_ANSWER, Reaction.DISCONNECT))


async def test_after_outages_everything_is_delivered_with_no_more_attempts_than_the_policy_allows(
    rng: Random, figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    failures = Failures(rng)
    async with StandIns(reaction=failures.reaction) as standins, reading_ledger(postgres_url) as ledger:
        channels = await standins.open(mail=False)
        for section in channels.values():
            section["concurrency"] = CONCURRENCY
            section["retry"] = {"initial": "1s", "ceiling": "4s"}
        channels["pagerduty"]["timeout"] = PAGERDUTY_TIMEOUT
        kafka = {"bootstrap_servers": apache.bootstrap_servers, "topics": [topic], "group_id": f"group-{topic}"}
        settings = {"kafka": kafka, "ledger": {"url": postgres_url}, "channels": channels}
        async with (
            replicas(Replica("one", tmp_path, settings)) as (replica,),
            publishing(apache.bootstrap_servers, topic) as publish,
        ):
            await replica.ready()
            down_at = time.time()
            for number in range(EVENTS):
                await publish(an_event_for(number, *CHANNELS, spread=SLACK_CHANNELS))
            await asyncio.sleep(DOWN)
            refusing_at = time.time()
            await standins.open_mail(channels["email"]["port"])
            await asyncio.sleep(REFUSING)
            failures.relay_accepts, accepting_at = True, time.time()
            states = await ledger.settled(EVENTS * len(CHANNELS), seconds=60)
            await replica.stop()
        rows = (await ledger.rows()).values()

    received = {channel: [one for one in standins.handovers if one.channel == channel] for channel in CHANNELS}
    reactions = {channel: Counter(one.reaction for one in handovers) for channel, handovers in received.items()}
    unanswered = reactions["pagerduty"][Reaction.NO_ANSWER] + reactions["pagerduty"][Reaction.DISCONNECT]
    while_down = sum(ended < refusing_at for row in rows if row.channel == "email" for _, ended, _ in row.attempts)
    detection = received["email"][0].arrived_at - refusing_at
    early = list(_early(received))
    delivered = max(one.decided_at for one in received["email"]) - accepting_at
    figures(
        f"{EVENTS} events, {dict(states)}; relay down {refusing_at - down_at:.0f} s: {while_down} attempts,"
        f" at most {_max_attempts_while_down()} allowed; its return detected in {detection:.1f} s;"
        f" 451 for {accepting_at - refusing_at:.0f} s: {reactions['email'][Reaction.REFUSE]} refused,"
        f" at most {_max_refused()} allowed, all delivered {delivered:.1f} s later;"
        f" Slack: {reactions['slack'][Reaction.REFUSE]} of {len(received['slack'])} posts answered 429;"
        f" PagerDuty: {unanswered} of {len(received['pagerduty'])} posts accepted without an answer,"
        f" {len({one.key for one in received['pagerduty']})} incidents; {len(early)} too early;"
        f" {time.monotonic() - began:.0f} s"
    )

    assert states == {State.SENT: EVENTS * len(CHANNELS)}, [row for row in rows if row.state is not State.SENT][:5]
    for channel in CHANNELS:
        assert {one.key for one in received[channel]} == {row.key for row in rows if row.channel == channel}
    assert len(received["email"]) == EVENTS + reactions["email"][Reaction.REFUSE]
    assert len(received["slack"]) == EVENTS + reactions["slack"][Reaction.REFUSE]
    assert len(received["pagerduty"]) == EVENTS + unanswered
    assert all(_identical(group) for group in _grouped(received["pagerduty"], lambda one: one.key))
    assert while_down <= _max_attempts_while_down()
    assert reactions["email"][Reaction.REFUSE] <= _max_refused()
    assert detection <= LONGEST_PAUSE + 2
    assert delivered <= POLICY.ceiling.total_seconds() + 5
    assert not early, early[:3]


def _early(received: dict[str, list[Handover]]) -> Iterator[tuple[Handover, Handover]]:
    """Yield a refused or unanswered message, and the next message to the same destination if it came too early."""
    for channel, handovers in received.items():
        min_wait = RETRY_AFTER if channel == "slack" else FLOOR.total_seconds()
        for group in _grouped(handovers, lambda one: one.key):
            yield from ((one, other) for one, other in pairwise(group) if other.arrived_at - one.decided_at < min_wait)
    for group in _grouped(received["slack"], lambda one: one.target):
        for refused in (one for one in group if not one.taken):
            yield from (
                (refused, one) for one in group if IN_FLIGHT < one.arrived_at - refused.decided_at < RETRY_AFTER
            )


def _grouped(handovers: list[Handover], key: Callable[[Handover], str]) -> Iterable[list[Handover]]:
    groups = defaultdict(list)
    for one in handovers:
        groups[key(one)].append(one)
    return groups.values()


def _identical(group: list[Handover]) -> bool:
    """True if PagerDuty received the same event each time, so that it merges them into one incident."""
    return len({(one.target, one.body) for one in group}) == 1


def _max_attempts_while_down() -> int:
    """Attempts on an unreachable relay: one per slot, then one after each pause of the breaker; the pauses grow."""
    probes, passed, pause = 0, 0.0, FIRST_PAUSE
    while passed < DOWN:
        probes, passed, pause = probes + 1, passed + pause, min(2 * pause, LONGEST_PAUSE)
    return CONCURRENCY + probes


def _max_refused() -> int:
    """Attempts on a relay that refuses each mail: as many as the policy's mean back-off allows in that time, plus 10 %.

    Full jitter draws evenly between 0 and the bound; a wait below the floor is raised to the floor.
    """
    attempts, passed, floor = 0, 0.0, FLOOR.total_seconds()
    while passed < REFUSING:
        attempts += 1
        bound = POLICY.bound(attempts).total_seconds()
        passed += floor + (bound - floor) ** 2 / (2 * bound)
    return math.ceil(EVENTS * attempts * 1.1)
