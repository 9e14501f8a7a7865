"""A night of quiet hours: of 300 failures, 280 are resolved by the morning. A replica is killed, too."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dispatcher.demo.fakes.inbox import Conversation, Inbox
from dispatcher.model.delivery import State
from dispatcher.model.event import Event, Options
from dispatcher.model.phase import Phase
from tests.faults.rig import LedgerReader, Replica, publishing, reading_ledger, replicas
from tests.support.brokers.apache import ApacheKafka
from tests.support.builders import a_launch_plan, a_notification, an_event
from tests.support.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

PLANS, EACH, STILL_FAIL = 30, 10, 2
"""Launch plans, the failures of each, and how many of the launch plans still fail in the morning."""
FAILURES, RESOLVED = PLANS * EACH, (PLANS - STILL_FAIL) * EACH
NIGHT = timedelta(seconds=70)
"""The quiet hours last at least so long. They begin before the test does."""
CHANNELS = ("email", "slack", "pagerduty")
EVERY = len(CHANNELS) * FAILURES
ROUTING_KEY = f"{7:032x}"


async def test_one_summary_tells_of_the_night_and_each_launch_plan_that_still_fails_pages_once(
    figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    inbox = Inbox()
    inbox.slack.channels = [Conversation("C0000001", "night")]
    inbox.pagerduty.services = {ROUTING_KEY: "night"}
    async with inbox, reading_ledger(postgres_url) as ledger:
        morning = (datetime.now(UTC) + NIGHT + timedelta(minutes=1)).replace(second=0, microsecond=0)
        two = [
            Replica(name, tmp_path, _settings(name, inbox, apache, topic, postgres_url, morning))
            for name in ("one", "two")
        ]
        async with replicas(*two), publishing(apache.bootstrap_servers, topic) as publish:
            for replica in two:
                await replica.ready()
            for number in range(FAILURES):
                await publish(_ended(Phase.FAILED, number, number % PLANS))
            await until(lambda: _all(ledger, {State.WAITING: EVERY}), 40)
            await two[0].kill()
            await two[0].start()
            for plan in range(STILL_FAIL, PLANS):
                await publish(_ended(Phase.SUCCEEDED, FAILURES + plan, plan))
            resolved = len(CHANNELS) * RESOLVED
            await until(lambda: _all(ledger, {State.WAITING: EVERY - resolved, State.DROPPED: resolved}), 40)
            assert datetime.now(UTC) < morning, "the night was too short for this machine"
            assert inbox.arrivals == []

            await asyncio.sleep((morning - datetime.now(UTC)).total_seconds())
            woke = time.monotonic()
            assert await inbox.until(lambda one: len(one.arrivals) >= 2 + STILL_FAIL, seconds=60), inbox.arrivals
            seconds = time.monotonic() - woke
            states = await ledger.settled(EVERY, seconds=30)
            in_the_morning = Counter(type(one).__name__ for one in inbox.arrivals)
            _check_morning(inbox)

            await publish(_ended(Phase.SUCCEEDED, 2 * FAILURES, 0))
            await until(lambda: Counter(one.status for one in inbox.pagerduty.incidents)["resolved"] == 1)
            await until(lambda: len(inbox.slack.messages) == 2)
            for replica in two:
                await replica.stop()
        figures(
            f"{FAILURES} failures in the night, {RESOLVED} of them resolved by the morning: { ({str(state): number for state, number in states.items()}) };"
            f" {dict(in_the_morning)} within {seconds:.1f} s"
        )
    assert in_the_morning == {"Mail": 1, "SlackMessage": 1, "Incident": STILL_FAIL}
    assert states == {State.SENT: 2 + STILL_FAIL, State.DROPPED: EVERY - STILL_FAIL}
    summary, notice = inbox.slack.messages
    assert (notice.thread, len(inbox.mail.mails)) == (summary.ts, 1)


def _check_morning(inbox: Inbox) -> None:
    """The summary counts what still fails and what was resolved; each page counts the failures of its launch plan."""
    (mail,), (posted,) = inbox.mail.mails, inbox.slack.messages
    for text in (mail.part("plain"), json.dumps(posted.body)):
        assert f"{FAILURES - RESOLVED} failed" in text, text
        assert all(f"{EACH} failed: plan{number}" in text for number in range(STILL_FAIL)), text
        assert f"{RESOLVED} further failures were resolved" in text, text
    pages = [json.dumps(one.events) for one in inbox.pagerduty.incidents]
    assert sorted(f"plan{number}" for number in range(PLANS) for page in pages if f'plan{number}"' in page) == [
        f"plan{number}" for number in range(STILL_FAIL)
    ]
    assert all(len(one.events) == 1 and one.status == "triggered" for one in inbox.pagerduty.incidents)
    assert all(f"{EACH - 1} more failures" in page for page in pages), pages


def _settings(
    name: str, inbox: Inbox, kafka: ApacheKafka, topic: str, ledger: str, morning: datetime
) -> dict[str, Any]:
    evening = morning - timedelta(hours=9)
    quiet = {"from": f"{evening:%H:%M}", "to": f"{morning:%H:%M}", "zone": "UTC"}
    contact = {"email": ["ops@example.com"], "slack": ["#night"], "pagerduty": ["night"]}
    return {
        "kafka": {
            "bootstrap_servers": kafka.bootstrap_servers,
            "topics": [topic],
            "group_id": f"group-{topic}",
            "group_instance_id": name,
            "session_timeout": "6s",
        },
        "ledger": {"url": ledger, "lease": "5s"},
        "contacts": {"ops": {**contact, "quiet": quiet}},
        "channels": {
            "email": {
                "host": "127.0.0.1",
                "port": inbox.mail.port,
                "security": "none",
                "from": "Flyte <flyte@example.com>",
            },
            "slack": {"token": inbox.slack.token, "api_url": inbox.slack_url},
            "pagerduty": {"events_url": inbox.pagerduty_url, "services": {"night": {"routing_key": ROUTING_KEY}}},
        },
    }


def _ended(phase: Phase, number: int, plan: int) -> Event:
    """An execution of a launch plan that ends now, and if it succeeds, began after all that have ended before."""
    now = datetime.now(UTC)
    rules = tuple(a_notification("ops", channel=channel) for channel in CHANNELS)
    event = an_event(
        phase, name=f"run{number}", launch_plan=a_launch_plan(f"plan{plan}"), options=Options(notifications=rules)
    )
    return event.model_copy(update={"occurred_at": now, "started_at": now if phase is Phase.SUCCEEDED else None})


async def _all(ledger: LedgerReader, states: dict[State, int]) -> bool:
    return await ledger.states() == states
