"""A silence while the service runs: nothing is sent, and at its end each recipient is told of what still fails."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from dispatcher.clock import SystemClock
from dispatcher.demo.fakes.inbox import Conversation, Inbox, PagerDutyReceiver, SlackReceiver
from dispatcher.flyte.encode import Format, write
from dispatcher.ledger import Filter, Ledger
from dispatcher.model.delivery import DropReason, Kind, State
from dispatcher.model.phase import Phase
from tests.support.builders import a_launch_plan, an_event
from tests.support.running import running
from tests.support.service import ROUTING_KEY, command
from tests.support.waiting import until


def settings(folder: Path, inbox: Inbox) -> dict[str, Any]:
    routes = [{"name": "all", "match": {"phase": "FAILED"}, "notify": ["ml-team"]}]
    (folder / "routes.yaml").write_text(yaml.safe_dump({"routes": routes}))
    return {
        "ledger": {"url": f"sqlite+aiosqlite:///{folder}/ledger.db"},
        "rules": {"routes": [str(folder / "routes.yaml")]},
        "contacts": {"ml-team": {"email": ["ml@example.com"], "slack": ["#alerts"], "pagerduty": ["ml"]}},
        "channels": {
            "email": {"host": "127.0.0.1", "port": inbox.mail.port, "security": "none", "from": "flyte@example.com"},
            "slack": {"token": inbox.slack.token, "api_url": inbox.slack_url},
            "pagerduty": {"events_url": inbox.pagerduty_url, "services": {"ml": {"routing_key": ROUTING_KEY}}},
        },
    }


async def post(session: aiohttp.ClientSession, url: str, name: str, plan: str, phase: Phase = Phase.FAILED) -> None:
    now = SystemClock().now()
    event = an_event(phase, name=name, launch_plan=a_launch_plan(plan))
    ended = event.model_copy(update={"occurred_at": now, "started_at": now - timedelta(milliseconds=1)})
    message = write(ended, Format.NATIVE)
    headers = {name.replace("ce_", "ce-", 1): value.decode() for name, value in message.headers}
    async with session.post(f"{url}/events", data=message.value, headers=headers) as answer:
        assert answer.status == 202, await answer.text()


async def test_what_a_silence_held_is_one_summary_and_a_page_for_each_launch_plan_that_still_fails(
    tmp_path: Path,
) -> None:
    slack = SlackReceiver(channels=[Conversation("C0000001", "alerts")])
    pagerduty = PagerDutyReceiver(services={ROUTING_KEY: "ML"})
    config = ("--config", str(tmp_path / "dispatcher.yaml"))
    async with (
        Inbox(slack=slack, pagerduty=pagerduty) as inbox,
        running(tmp_path, settings(tmp_path, inbox)) as url,
        aiohttp.ClientSession() as session,
    ):
        add = ("--match", "project=flytesnacks", "--for", "2h", "--reason", "upgrade")
        status, out, err = await command("silences", "add", *add, *config)
        assert status == 0, err
        for name, plan in (("a1", "a"), ("b1", "b"), ("b2", "b"), ("c1", "c")):
            await post(session, url, name, plan)
        await asyncio.sleep(0.02)
        await post(session, url, "a2", "a", Phase.SUCCEEDED)
        assert (inbox.mail.mails, inbox.slack.messages, inbox.pagerduty.incidents) == ([], [], [])

        status, _, err = await command("silences", "end", out.split()[1], *config)
        assert status == 0, err
        await until(lambda: len(inbox.pagerduty.incidents) == 2 and bool(inbox.mail.mails and inbox.slack.messages))
        await post(session, url, "d1", "d")
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
