"""Digests in a running service: a burst becomes few messages, and PagerDuty is paged for each failure."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from pathlib import Path

import aiohttp

from dispatcher.ledger import Filter, Ledger
from dispatcher.model.delivery import DropReason, Kind, State
from dispatcher.model.event import Event
from tests.support.builders import NOW, a_launch_plan, an_event
from tests.support.inbox import an_inbox, inbox_settings, post_event
from tests.support.running import running
from tests.support.waiting import until

FAILURES = 8


def failure(number: int) -> Event:
    event = an_event(name=f"a{number}", launch_plan=a_launch_plan(f"plan-{number}"))
    return event.model_copy(update={"occurred_at": NOW + number * timedelta(minutes=1)})


async def test_a_burst_is_told_in_few_messages_and_each_failure_pages(tmp_path: Path) -> None:
    options = {"after": 2, "within": "1h", "every": "1500ms"}
    async with (
        an_inbox() as inbox,
        running(tmp_path, inbox_settings(tmp_path, inbox, digest=options)) as url,
        aiohttp.ClientSession() as session,
    ):
        await asyncio.gather(*(post_event(session, url, failure(number)) for number in range(FAILURES)))
        await until(lambda: len(inbox.slack.messages) >= 3 and len(inbox.mail.mails) >= 3)
        await until(lambda: len(inbox.pagerduty.incidents) == FAILURES)
        first, second, digest, *_ = inbox.slack.messages
        assert (first.thread, second.thread) == (None, None)
        assert digest.thread in {first.ts, second.ts}  # the one that was recorded first
        assert re.match(r"❌ \d failed in 1 minute: plan-\d: 1 failed", str(digest.body["text"])), digest.body["text"]
        subjects = [mail.subject for mail in inbox.mail.mails]
        assert [one for one in subjects if one.endswith(" failed in 1 minute · flytesnacks/production")], subjects
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        everything = [one.delivery for one in await ledger.history.find(Filter(), limit=99)]
        told = [await ledger.summary(one) for one in everything if one.kind is Kind.DIGEST]
    failures = [one for one in everything if one.kind is Kind.NOTIFICATION]
    assert {one.state for one in failures if one.channel == "pagerduty"} == {State.SENT}
    for channel in ("slack", "email"):
        mine = [one for one in failures if one.channel == channel]
        singly, members = ([one for one in mine if one.state is state] for state in (State.SENT, State.DROPPED))
        assert (len(mine), len(singly) >= 2) == (FAILURES, True)
        assert {one.drop_reason for one in members} == {DropReason.DIGEST}
        assert len({one.included_in for one in members}) < len(members)
    assert sum(one.number for one in told if one is not None) == sum(one.state is State.DROPPED for one in everything)
