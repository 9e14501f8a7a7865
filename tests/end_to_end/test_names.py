"""Launch plans, workflows and versions have any name that Flyte accepts, from the message to every page and header."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import select
from yarl import URL

from dispatcher.demo.fakes.inbox import Conversation, Inbox, PagerDutyReceiver, SlackReceiver
from dispatcher.flyte.decode import Headers
from dispatcher.flyte.encode import Format, write
from dispatcher.ledger import Filter, Ledger
from dispatcher.ledger.schema import launch_plan_versions
from dispatcher.model.delivery import State
from dispatcher.model.event import MAX_SHORT, EntityId, Event, shortened
from dispatcher.model.phase import Phase
from dispatcher.rules.rulebook import PlanKey
from tests.support import samples
from tests.support.builders import NOW, an_event
from tests.support.ledgers import opened_database
from tests.support.running import running
from tests.support.service import ROUTING_KEY

NAMES = {
    "slashes": "a/b/c//d/",
    "line breaks": "\r\nBcc: x@example.com\n\nbody",
    "terminal codes": "\x1b]52;c;x\x07\x9b2J\u202e",
    "markup": "<script>alert(1)</script> `*_~|&amp;",
    "path": "..\\../%2f?#@v7",
    "a pattern": "*",
    "blanks": "x \t y",
    "300 letters of two bytes": "п" * 300,
    "255 letters of four bytes": "🧯" * 255,
    "50,000 letters": "é\n" * 25_000,
}
CHANNELS = ("email", "slack", "pagerduty")
RECIPIENTS = {"email": "a@example.com", "slack": "#alerts", "pagerduty": "ml"}
RULES = """\
launch_plan: {project: flytesnacks, domain: production, name: "team/nightly"}
notifications: [{phases: [FAILED], email: {recipients_email: [slash@example.com]}}]
---
launch_plan: {project: flytesnacks, domain: production, name: "two\\nlines"}
notifications: [{phases: [FAILED], email: {recipients_email: [lines@example.com]}}]
"""


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    inbox = Inbox(
        slack=SlackReceiver(channels=[Conversation("C0000001", "alerts")]),
        pagerduty=PagerDutyReceiver(services={ROUTING_KEY: "ML platform"}),
    )
    async with inbox:
        yield inbox


@pytest.fixture
async def url(inbox: Inbox, ledger_url: str, tmp_path: Path) -> AsyncIterator[str]:
    (tmp_path / "rules.yaml").write_text(RULES)
    settings: dict[str, Any] = {
        "ledger": {"url": ledger_url},
        "http": {"console": True},
        "rules": {"launch_plans": [str(tmp_path / "rules.yaml")]},
        "channels": {
            "email": {
                "host": "127.0.0.1",
                "port": inbox.mail.port,
                "security": "none",
                "from": "Flyte <flyte@example.com>",
            },
            "slack": {"token": inbox.slack.token, "api_url": inbox.slack_url, "rate": "none"},
            "pagerduty": {
                "events_url": inbox.pagerduty_url,
                "services": {"ml": {"routing_key": ROUTING_KEY}},
                "rate": "none",
                "change_events": True,
            },
        },
    }
    async with running(tmp_path, settings) as url:
        yield url


async def post(url: str, headers: Headers, value: bytes) -> None:
    names = {name.replace("ce_", "ce-", 1): content.decode() for name, content in headers if content}
    async with aiohttp.ClientSession() as session, session.post(f"{url}/events", data=value, headers=names) as answer:
        assert answer.status == 202, await answer.text()
        assert (await answer.json()).get("rejected", 0) == 0, await answer.text()


async def get(url: str, path: str, **query: str) -> Any:
    async with (
        aiohttp.ClientSession() as session,
        session.get(URL(f"{url}/{path}", encoded=not query), params=query) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return await answer.json() if answer.content_type == "application/json" else await answer.text()


async def settled(ledger_url: str, number: int) -> None:
    async with Ledger(ledger_url) as ledger, asyncio.timeout(30):
        while True:
            found = await ledger.history.find(Filter(), limit=200)
            if len(found) >= number and all(one.settled_at for one in found):
                assert {one.delivery.state for one in found} == {State.SENT}
                assert len(found) == number
                return
            await asyncio.sleep(0.05)


def finished(name: str, number: int, phase: Phase) -> Event:
    """The event of an execution of a launch plan with this name; workflow and version have the name too."""
    plan = EntityId(project="flytesnacks", domain="production", name=name, version=f"{name}{phase}")
    notifications = [
        {"phases": ["FAILED"], "channel": channel, "recipients": [RECIPIENTS[channel]]} for channel in CHANNELS
    ]
    event = an_event(
        phase, name=f"e{number}-{phase.lower().replace('_', '-')}", launch_plan=plan, workflow=plan, options=None
    )
    return Event.model_validate(
        {
            **event.model_dump(exclude_defaults=True),
            "occurred_at": NOW + timedelta(minutes=phase is Phase.SUCCEEDED),
            "options": {"notifications": notifications},
        }
    )


async def test_any_name_is_delivered_shown_and_found(url: str, ledger_url: str, inbox: Inbox) -> None:
    for name in ("slash", "newline"):
        await post(url, *samples.sample(f"v2-workflow-failed-enriched-launch-plan-with-{name}"))
    await settled(ledger_url, 2)
    assert [(mail.recipients, mail.subject.partition(" · ")[0]) for mail in inbox.mail.mails] == [
        (("slash@example.com",), "❌ team/nightly failed"),
        (("lines@example.com",), "❌ two lines failed"),
    ]
    inbox.mail.mails.clear()
    for phase in (Phase.FAILED, Phase.SUCCEEDED):
        for number, name in enumerate(NAMES.values()):
            message = write(finished(name, number, phase), Format.NATIVE)
            await post(url, message.headers, message.value)
        # a success resolves the thread and the incident, and PagerDuty gets a change event for its version
        await settled(ledger_url, 2 + {Phase.FAILED: 3, Phase.SUCCEEDED: 6}[phase] * len(NAMES))

    assert [incident.status for incident in inbox.pagerduty.incidents] == ["resolved"] * len(NAMES)
    assert len({mail.parsed["References"] for mail in inbox.mail.mails}) == len(NAMES)
    assert len({mail.parsed["List-Id"] for mail in inbox.mail.mails}) == len(NAMES)
    for mail in inbox.mail.mails:
        assert not mail.parsed.defects
        assert mail.parsed["Bcc"] is None
        assert len(mail.parsed["Subject"]) <= 210
        assert max(map(len, mail.raw.split(b"\r\n"))) <= 998
        assert not {"\x1b", "\x9b", "\u202e"} & set(mail.parsed["Subject"] + mail.part("plain") + mail.part("html"))
        assert "<script>" not in mail.part("html")
    listed = await get(url, "console/executions")
    links = {unescape(link) for link in re.findall(r'href="/([^"]*launch_plan=[^"]*)"', listed)}
    shown = [frozenset(re.findall(r"production/(e\d+|av2oe)-", await get(url, link))) for link in links]
    assert sorted(map(len, shown)) == [1] * (len(NAMES) + 2)
    assert len(set(shown)) == len(NAMES) + 1
    for number, name in enumerate(NAMES.values()):
        for wanted in (name, shortened(name)):
            if len(wanted) <= 3000:
                page = await get(url, "api/v1/executions", launch_plan=wanted)
                assert [one["execution"]["name"] for one in page["entries"]] == [
                    f"e{number}-succeeded",
                    f"e{number}-failed",
                ]
                found = await get(url, "api/v1/deliveries", launch_plan=wanted)
                assert len(found["entries"]) == 6
        page = await get(url, f"console/executions/flytesnacks/production/e{number}-failed")
        assert "<script>alert" not in page
    async with opened_database(ledger_url) as database, database.reading() as connection:
        rows = (await connection.execute(select(launch_plan_versions))).all()
    assert len(set(rows)) == 2 * len(NAMES)
    assert max(len(text) for row in rows for text in row) <= MAX_SHORT


def test_a_long_text_is_shortened_to_its_beginning_and_a_hash() -> None:
    longest = "x" * MAX_SHORT
    assert shortened(longest) == longest
    one, other = shortened(f"{longest}1"), shortened(f"{longest}2")
    assert one != other
    assert len(one) == len(other) == MAX_SHORT
    assert one.startswith("x" * 100)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_reasons_and_logs_contain_no_long_name(name: str) -> None:
    entity = EntityId(project="p", domain="d", name=name, version=name)
    assert len(str(entity)) < 3 * MAX_SHORT
    assert len(str(PlanKey("p", "d", name, name))) < 3 * MAX_SHORT
    assert len(entity.key) <= MAX_SHORT
