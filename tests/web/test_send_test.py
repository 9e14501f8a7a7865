"""Test messages through the console and its API: to recipients of rules, and to anybody for operators."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dispatcher.demo.fakes.inbox import Conversation, Inbox, SlackReceiver
from dispatcher.rules import PlanKey, PlanRules, RuleBook
from tests.support.builders import a_rule
from tests.support.console import ConsoleServer, serve_console

READER, OPERATOR = "reader-0123456789abcdef", "operator-0123456789abcdef"
TOKENS = [
    {"name": "dashboard", "token": READER, "scopes": ["read"]},
    {"name": "oncall", "token": OPERATOR, "scopes": ["read", "operate"]},
]
PLAN = PlanKey("flytesnacks", "production", "train.daily")
RULES = RuleBook({PLAN: PlanRules(PLAN, (a_rule("#in-a-file", channel="slack"),))})


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    names = ("in-a-file", "dev-alerts", "elsewhere")
    channels = [Conversation(f"C000000{number}", name) for number, name in enumerate(names)]
    async with Inbox(slack=SlackReceiver(channels=channels)) as opened:
        yield opened


@pytest.fixture
async def console(inbox: Inbox, tmp_path: Path) -> AsyncIterator[ConsoleServer]:
    slack = {"token": inbox.slack.token, "api_url": inbox.slack_url}
    ledger_url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    async with serve_console(
        ledger_url, given={"channels": {"slack": slack}}, rules=lambda: RULES, tokens=TOKENS
    ) as server:
        yield server


async def ask(console: ConsoleServer, token: str, **body: str) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{console.url}/api/v1/send-test", json={"channel": "slack", **body}) as answer,
    ):
        return answer.status, await answer.json()


async def test_a_reader_sends_tests_to_recipients_of_rules_and_an_operator_to_anybody(
    console: ConsoleServer, inbox: Inbox
) -> None:
    await console.finish("a7failed", channels=["slack"])  # its rule names #dev-alerts
    for recipient in ("#in-a-file", "#dev-alerts"):
        status, sent = await ask(console, READER, recipient=recipient)
        assert (status, sent["accepted"], sent["channel"]) == (200, True, "slack")
        assert sent["reference"]["ts"] == inbox.slack.messages[-1].ts
    status, refused = await ask(console, READER, recipient="#elsewhere")
    assert (status, "no rule names #elsewhere on slack" in refused["detail"]) == (403, True)
    assert len(inbox.slack.messages) == 2

    status, sent = await ask(console, OPERATOR, recipient="#elsewhere", execution="flytesnacks/production/a7failed")
    assert (status, sent["accepted"]) == (200, True)
    *_, real = inbox.slack.messages
    assert real.body["text"].startswith("❌ TEST: train.daily failed")
    assert "bad learning rate: &lt;0.0&gt;" in real.body["text"]
    status, sent = await ask(console, OPERATOR, recipient="#nowhere", phase="ABORTED")
    assert (status, sent["accepted"], sent["answer"]["status"]) == (200, False, "channel_not_found")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"phase": "RUNNING"}, 400, "not a terminal phase"),
        ({"execution": "x"}, 400, "names no execution"),
        ({"execution": "p/d/unknown"}, 404, "nothing is recorded of p/d/unknown"),
    ],
)
async def test_a_test_of_nothing_is_refused(
    console: ConsoleServer, inbox: Inbox, body: dict[str, str], status: int, words: str
) -> None:
    answer = await ask(console, OPERATOR, recipient="#elsewhere", **body)
    assert (answer[0], words in answer[1]["detail"], inbox.slack.messages) == (status, True, [])


async def test_the_consoles_page_sends_a_test_and_shows_the_answer(console: ConsoleServer, inbox: Inbox) -> None:
    await console.finish("a7failed", channels=["slack"])
    (delivery,) = await console.deliver("slack")
    async with aiohttp.ClientSession(console.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.get("/login") as page:
            token = re.search(r'name="csrf_token" value="([^"]+)"', await page.text())
        form = {"token": READER, **({"csrf_token": token[1]} if token else {})}
        async with session.post("/login", data=form) as answer:
            assert answer.status == 200
        async with session.get(f"/console/deliveries/{delivery.key}") as answer:
            link = re.search(r'href="([^"]+send-test[^"]+)"', await answer.text())
        assert link
        async with session.get(link[1].replace("&amp;", "&"), allow_redirects=False) as answer:
            page_text = await answer.text()
        fields = dict(re.findall(r'name="(recipient|execution|csrf_token)" value="([^"]*)"', page_text))
        assert (fields["recipient"], fields["execution"]) == ("#dev-alerts", "flytesnacks/production/a7failed")
        async with session.post("/console/send-test", data={"channel": "slack", **fields}) as answer:
            assert (answer.status, "Sent: slack accepted it" in await answer.text()) == (200, True)
        other = {"channel": "slack", **fields, "recipient": "#elsewhere"}
        async with session.post("/console/send-test", data=other) as answer:
            assert (answer.status, "no rule names #elsewhere" in await answer.text()) == (403, True)
        async with session.post("/console/send-test", data={"csrf_token": fields["csrf_token"]}) as answer:
            assert answer.status == 400
    assert [message.channel for message in inbox.slack.messages] == ["C0000001"]
