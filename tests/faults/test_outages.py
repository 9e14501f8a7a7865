"""Three providers in trouble at once: all is delivered, nobody is bothered early, and nobody more than needed."""

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
from tests.faults.rig import Replica, an_owing_event, publishing, replicas, the_truth
from tests.support.brokers.apache import ApacheKafka
from tests.support.standins import RETRY_AFTER, Handover, Reaction, StandIns

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

EVENTS = 100
MATCHED = ("email", "slack", "pagerduty")
SLACK_CHANNELS = 20
HANDS = 20
DOWN = 60.0
"""Seconds for which the relay can't be reached."""
BUSY = 15.0
"""Seconds for which it then answers 451."""
POLICY = RetryPolicy(initial=timedelta(seconds=1), ceiling=timedelta(seconds=4))
FIRST_REST, LONGEST_REST = 0.5, 10.0
"""Seconds for which a provider that is away is left alone: doubling from the one to the other."""
PAGERDUTY_PATIENCE = 2
"""Seconds after which an answer of PagerDuty's is no longer waited for."""
ON_THE_WAY = 0.5
"""Seconds: what was on its way to a Slack channel when another message was refused there may still come."""


class Troubles:
    """The providers' moods, and the exact number of times that each should have been bothered."""

    def __init__(self, rng: Random) -> None:
        self.relay_takes_mail = False
        self._rng = rng
        self._swallowed: set[str] = set()

    def reaction(self, channel: str, key: str) -> Reaction:
        match channel:
            case "email":
                return Reaction.TAKE if self.relay_takes_mail else Reaction.REFUSE
            case "slack":
                return self._rng.choice((Reaction.TAKE, Reaction.REFUSE))
            case _ if key in self._swallowed:
                return Reaction.TAKE
            case _:
                self._swallowed.add(key)
                return self._rng.choice((Reaction.TAKE, Reaction.TAKE, Reaction.NO_ANSWER, Reaction.DISCONNECT))


async def test_outages_delay_and_double_nothing_and_nobody_is_bothered_more_than_the_policy_says(
    rng: Random, figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    troubles = Troubles(rng)
    async with StandIns(reaction=troubles.reaction) as standins, the_truth(postgres_url) as truth:
        channels = await standins.open(mail=False)
        for section in channels.values():
            section["concurrency"] = HANDS
            section["retry"] = {"initial": "1s", "ceiling": "4s"}
        channels["pagerduty"]["timeout"] = PAGERDUTY_PATIENCE
        kafka = {"bootstrap_servers": apache.bootstrap_servers, "topics": [topic], "group_id": f"group-{topic}"}
        settings = {"kafka": kafka, "ledger": {"url": postgres_url}, "channels": channels}
        async with (
            replicas(Replica("one", tmp_path, settings)) as (replica,),
            publishing(apache.bootstrap_servers, topic) as publish,
        ):
            await replica.ready()
            down = time.time()
            for number in range(EVENTS):
                await publish(an_owing_event(number, *MATCHED, spread=SLACK_CHANNELS))
            await asyncio.sleep(DOWN)
            busy = time.time()
            await standins.open_mail(channels["email"]["port"])
            await asyncio.sleep(BUSY)
            troubles.relay_takes_mail, well = True, time.time()
            states = await truth.settled(EVENTS * len(MATCHED), seconds=60)
            await replica.stop()
        rows = (await truth.rows()).values()

    asked = {channel: [one for one in standins.handovers if one.channel == channel] for channel in MATCHED}
    reactions = {channel: Counter(one.reaction for one in handovers) for channel, handovers in asked.items()}
    swallowed = reactions["pagerduty"][Reaction.NO_ANSWER] + reactions["pagerduty"][Reaction.DISCONNECT]
    in_vain = sum(ended < busy for row in rows if row.channel == "email" for _, ended, _ in row.spans)
    found_out = asked["email"][0].arrived_at - busy
    early = list(_early(asked))
    delivered = max(one.decided_at for one in asked["email"]) - well
    figures(
        f"{EVENTS} events, {dict(states)}; relay down {busy - down:.0f} s: {in_vain} attempts of {_in_vain_budget()};"
        f" its return found out in {found_out:.1f} s; 451 for {well - busy:.0f} s:"
        f" {reactions['email'][Reaction.REFUSE]} refused of {_refused_budget()}, all delivered {delivered:.1f} s later;"
        f" Slack: {reactions['slack'][Reaction.REFUSE]} of {len(asked['slack'])} posts answered 429;"
        f" PagerDuty: {swallowed} of {len(asked['pagerduty'])} posts taken without an answer,"
        f" {len({one.key for one in asked['pagerduty']})} incidents; {len(early)} too early; {time.monotonic() - began:.0f} s"
    )

    assert states == {State.SENT: EVENTS * len(MATCHED)}, [row for row in rows if row.state is not State.SENT][:5]
    for channel in MATCHED:
        assert {one.key for one in asked[channel]} == {row.key for row in rows if row.channel == channel}
    assert len(asked["email"]) == EVENTS + reactions["email"][Reaction.REFUSE]
    assert len(asked["slack"]) == EVENTS + reactions["slack"][Reaction.REFUSE]
    assert len(asked["pagerduty"]) == EVENTS + swallowed
    assert all(_alike(told) for told in _by(asked["pagerduty"], lambda one: one.key))
    assert in_vain <= _in_vain_budget()
    assert reactions["email"][Reaction.REFUSE] <= _refused_budget()
    assert found_out <= LONGEST_REST + 2
    assert delivered <= POLICY.ceiling.total_seconds() + 5
    assert not early, early[:3]


def _early(asked: dict[str, list[Handover]]) -> Iterator[tuple[Handover, Handover]]:
    """What was refused, or taken in silence, and what then came too soon."""
    for channel, handovers in asked.items():
        wish = RETRY_AFTER if channel == "slack" else FLOOR.total_seconds()
        for told in _by(handovers, lambda one: one.key):
            yield from ((one, other) for one, other in pairwise(told) if other.arrived_at - one.decided_at < wish)
    for told in _by(asked["slack"], lambda one: one.target):
        for refused in (one for one in told if not one.taken):
            yield from ((refused, one) for one in told if ON_THE_WAY < one.arrived_at - refused.decided_at < RETRY_AFTER)


def _by(handovers: list[Handover], what: Callable[[Handover], str]) -> Iterable[list[Handover]]:
    groups = defaultdict(list)
    for one in handovers:
        groups[what(one)].append(one)
    return groups.values()


def _alike(told: list[Handover]) -> bool:
    """Whether PagerDuty was told the very same each time, and so makes one incident of it."""
    return len({(one.target, one.body) for one in told}) == 1


def _in_vain_budget() -> int:
    """Attempts on a relay that is away: one of each hand, then a single one after each rest, and rests grow."""
    knocks, passed, rest = 0, 0.0, FIRST_REST
    while passed < DOWN:
        knocks, passed, rest = knocks + 1, passed + rest, min(2 * rest, LONGEST_REST)
    return HANDS + knocks


def _refused_budget() -> int:
    """Attempts on a relay that refuses each mail by itself: what the policy's mean waits make of that time, and a tenth.

    Full jitter draws evenly up to the bound, and what falls below the floor waits for the floor.
    """
    attempts, passed, floor = 0, 0.0, FLOOR.total_seconds()
    while passed < BUSY:
        attempts += 1
        bound = POLICY.bound(attempts).total_seconds()
        passed += floor + (bound - floor) ** 2 / (2 * bound)
    return math.ceil(EVENTS * attempts * 1.1)
