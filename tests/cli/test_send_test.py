"""`dispatcher send-test`, as a user runs it, against servers that check what they get."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from dispatcher.demo.fakes.inbox import Conversation, Inbox, PagerDutyReceiver, SlackReceiver, WebhookReceiver
from dispatcher.demo.fakes.script import Misstep
from tests.support.service import command

KEY = "0123456789abcdef0123456789abcdef"
TOKEN = "xoxb-secret-of-the-tests"
HERE = {"allow_http": True, "allow_networks": ["127.0.0.0/8"]}


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    slack = SlackReceiver(token=TOKEN, channels=[Conversation("C0000001", "alerts")])
    pagerduty, webhook = PagerDutyReceiver(services={KEY: "ML"}), WebhookReceiver(secret=TOKEN)
    async with Inbox(slack=slack, pagerduty=pagerduty, webhook=webhook) as opened:
        yield opened


@pytest.fixture
def config(inbox: Inbox, tmp_path: Path) -> str:
    """No Kafka, and a ledger that can't be."""
    email = {"host": "127.0.0.1", "port": inbox.mail.port, "security": "none", "from": "flyte@example.com"}
    settings = {
        "ledger": {"url": "postgresql+asyncpg://nobody@127.0.0.1:1/nothing"},
        "channels": {
            "email": email,
            "slack": {"token": TOKEN, "api_url": inbox.slack_url, "fallback": "email", "timeout": 2},
            "pagerduty": {"events_url": inbox.pagerduty_url, "services": {"ml": {"routing_key": KEY}}},
            "teams": {"targets": {"ml": {"url": f"{inbox.url}/teams/workflows/hidden"}}, **HERE},
            "webhook": {"targets": {"ops": {"url": f"{inbox.url}/hooks/hidden", "secret": TOKEN}}, **HERE},
        },
        "templates": {"path": ["own"]},
    }
    (tmp_path / "own").mkdir()
    file = tmp_path / "dispatcher.yaml"
    file.write_text(yaml.safe_dump(settings))
    return str(file)


async def test_a_test_arrives_marked_over_each_channel(inbox: Inbox, config: str) -> None:
    for channel, to in (
        ("slack", "#alerts"),
        ("email", "dev@example.com"),
        ("pagerduty", "ml"),
        ("teams", "ml"),
        ("webhook", "ops"),
    ):
        status, out, err = await command("send-test", "--channel", channel, "--to", to, "--config", config)
        assert (status, f"sent: {channel} took it" in out) == (0, True), err
        assert "hidden" not in out

    (posted,), (mail,), (incident,) = inbox.slack.messages, inbox.mail.mails, inbox.pagerduty.incidents
    (card,), (call,) = inbox.teams.cards, inbox.webhook.calls
    payload = incident.events[0]["payload"]
    assert "TEST: train.daily failed" in posted.body["text"]
    assert "TEST: train.daily failed" in mail.subject
    assert payload["summary"].startswith("TEST: train.daily failed")
    assert "TEST: train.daily failed" in card.body["fallbackText"]
    assert "TEST: train.daily failed" in call.body["text"]
    for told in (
        str(posted.body),
        str(card.body),
        call.body["test"],
        mail.part("plain"),
        mail.part("html"),
        payload["custom_details"]["test"],
    ):
        assert "This is a test of the notifications: no execution has ended." in told


async def test_two_tests_are_two_incidents_and_the_phase_is_as_asked(inbox: Inbox, config: str) -> None:
    for _ in range(2):
        await command("send-test", "--channel", "pagerduty", "--to", "ml", "--phase", "aborted", "--config", config)
    assert ["was aborted" in incident.events[0]["payload"]["summary"] for incident in inbox.pagerduty.incidents] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Misstep(429, b'{"ok":false,"error":"ratelimited"}'), "not taken for now"),
        (
            Misstep(200, b'{"ok":false,"error":"is_archived"}'),
            "refused (a delivery would be dead): Slack refused: is_ar",
        ),
        (Misstep(500, b"{}"), "in doubt: it may have arrived"),
    ],
)
async def test_an_answer_that_is_no_receipt_is_explained(inbox: Inbox, config: str, step: Misstep, words: str) -> None:
    inbox.slack.script.steps = [step]
    status, out, err = await command("send-test", "--channel", "slack", "--to", "#alerts", "--config", config)
    assert (status, out, words in err, "Traceback" in err, TOKEN in err) == (1, "", True, False, False), err


async def test_whom_the_channel_cannot_serve_gets_it_by_the_fallback_or_nobody_does(inbox: Inbox, config: str) -> None:
    mailbox = "alerts-x@team.slack.com"
    status, out, _ = await command("send-test", "--channel", "slack", "--to", mailbox, "--config", config)
    assert (status, f"slack doesn't serve {mailbox}: it goes by email" in out) == (0, True)
    assert inbox.mail.mails[0].recipients == (mailbox,)

    for channel, to, words in (
        ("pagerduty", "nobody", "add it to channels.pagerduty.services"),
        ("matrix", "x", "add channels.matrix to the settings"),
    ):
        status, _, err = await command("send-test", "--channel", channel, "--to", to, "--config", config)
        assert (status, words in err) == (1, True), err


async def test_nobody_is_told_by_accident(inbox: Inbox, config: str) -> None:
    for missing in (("--channel", "slack"), ("--to", "#alerts")):
        assert (await command("send-test", *missing, "--config", config))[0] == 2
    running = ("--channel", "slack", "--to", "#alerts", "--phase", "RUNNING")
    assert (await command("send-test", *running, "--config", config))[0] == 2
    assert inbox.arrivals == []


async def test_templates_of_an_operators_own_cannot_pass_a_test_for_the_real_thing(
    inbox: Inbox, config: str, tmp_path: Path
) -> None:
    own = tmp_path / "own" / "slack" / "message.yaml"
    own.parent.mkdir(parents=True)
    arguments = ("send-test", "--channel", "slack", "--to", "#alerts", "--config", config)

    own.write_text("text: '{{ name }} is over'")
    status, _, err = await command(*arguments)
    assert (status, "say neither `what` nor `test`" in err, inbox.arrivals) == (1, True, [])

    own.write_text("text: '{{ what }} is over'")
    assert (await command(*arguments))[0] == 0
    assert inbox.slack.messages[0].body["text"] == "TEST: train.daily is over"
