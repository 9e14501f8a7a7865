"""A silence while the service runs: nothing is sent, and at its end each recipient is told of what still fails."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import aiohttp

from dispatcher.clock import SystemClock
from dispatcher.ledger import Filter, Ledger
from dispatcher.model.delivery import DropReason, Kind, State
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from tests.support.builders import a_launch_plan, an_event
from tests.support.inbox import an_inbox, inbox_settings, post_event
from tests.support.running import running
from tests.support.service import command
from tests.support.waiting import until


def an_end(name: str, plan: str, phase: Phase = Phase.FAILED) -> Event:
    """An execution that ran for a millisecond and ends now."""
    now = SystemClock().now()
    event = an_event(phase, name=name, launch_plan=a_launch_plan(plan))
    return event.model_copy(update={"occurred_at": now, "started_at": now - timedelta(milliseconds=1)})


async def test_what_a_silence_held_is_one_summary_and_a_page_for_each_launch_plan_that_still_fails(
    tmp_path: Path,
) -> None:
    config = ("--config", str(tmp_path / "dispatcher.yaml"))
    async with (
        an_inbox() as inbox,
        running(tmp_path, inbox_settings(tmp_path, inbox)) as url,
        aiohttp.ClientSession() as session,
    ):
        add = ("--match", "project=flytesnacks", "--for", "2h", "--reason", "upgrade")
        status, out, err = await command("silences", "add", *add, *config)
        assert status == 0, err
        for name, plan in (("a1", "a"), ("b1", "b"), ("b2", "b"), ("c1", "c")):
            await post_event(session, url, an_end(name, plan))
        await asyncio.sleep(0.02)
        await post_event(session, url, an_end("a2", "a", Phase.SUCCEEDED))
        assert (inbox.mail.mails, inbox.slack.messages, inbox.pagerduty.incidents) == ([], [], [])

        status, _, err = await command("silences", "end", out.split()[1], *config)
        assert status == 0, err
        await until(lambda: len(inbox.pagerduty.incidents) == 2 and bool(inbox.mail.mails and inbox.slack.messages))
        await post_event(session, url, an_end("d1", "d"))
        await until(lambda: len(inbox.pagerduty.incidents) == 3 and len(inbox.mail.mails) == 2)
        assert len(inbox.slack.messages) == 2
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        found = [one.delivery for one in await ledger.history.find(Filter(), limit=99)]
        summaries = [await ledger.summary(one) for one in found if one.kind is Kind.SUMMARY]
    assert [(one.number, one.resolved) for one in summaries if one is not None] == [(3, 1)] * 2
    resolved = [one for one in found if one.drop_reason is DropReason.SUPERSEDED]
    assert {one.event.split("/")[2] for one in resolved} == {"a1"}
    paged = {one.event.split("/")[2] for one in found if one.channel == "pagerduty" and one.state is State.SENT}
    assert paged == {"b2", "c1", "d1"}
