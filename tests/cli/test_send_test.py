"""`dispatcher send-test`, against fake providers that check their messages."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from dispatcher.demo.fakes.inbox import Conversation, Inbox, PagerDutyReceiver, SlackReceiver, WebhookReceiver
from dispatcher.demo.fakes.script import ScriptedReply
from dispatcher.ledger import Ledger
from dispatcher.model.phase import Phase
from tests.support.builders import NOW, a_launch_plan, an_event
from tests.support.ledger_steps import recorded
from tests.support.service import command
from tests.support.terminal import invoke

KEY = "0123456789abcdef0123456789abcdef"
TOKEN = "xoxb-secret-of-the-tests"
ALLOW_LOOPBACK = {"allow_http": True, "allow_networks": ["127.0.0.0/8"]}


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    slack = SlackReceiver(token=TOKEN, channels=[Conversation("C0000001", "alerts")])
    pagerduty, webhook = PagerDutyReceiver(services={KEY: "ML"}), WebhookReceiver(secret=TOKEN)
    async with Inbox(slack=slack, pagerduty=pagerduty, webhook=webhook) as opened:
        yield opened


@pytest.fixture
def config(inbox: Inbox, tmp_path: Path) -> str:
    """Settings without Kafka, and with an unreachable ledger."""
    email = {"host": "127.0.0.1", "port": inbox.mail.port, "security": "none", "from": "flyte@example.com"}
    settings = {
        "ledger": {"url": "postgresql+asyncpg://nobody@127.0.0.1:1/nothing"},
        "channels": {
            "email": email,
            "slack": {"token": TOKEN, "api_url": inbox.slack_url, "fallback": "email", "timeout": 2},
            "pagerduty": {"events_url": inbox.pagerduty_url, "services": {"ml": {"routing_key": KEY}}},
            "teams": {"targets": {"ml": {"url": f"{inbox.url}/teams/workflows/hidden"}}, **ALLOW_LOOPBACK},
            "webhook": {"targets": {"ops": {"url": f"{inbox.url}/hooks/hidden", "secret": TOKEN}}, **ALLOW_LOOPBACK},
        },
        "templates": {"path": ["own"]},
        "contacts": {
            "team": {"webhook": ["ops"], "timezone": "Asia/Tokyo", "severity": "critical"},
            "ml": {"pagerduty": ["ml"], "include": ["team"]},
        },
    }
    (tmp_path / "own").mkdir()
    file = tmp_path / "dispatcher.yaml"
    file.write_text(yaml.safe_dump(settings))
    return str(file)


async def test_a_test_message_arrives_marked_on_each_channel(inbox: Inbox, config: str) -> None:
    for channel, to in (
        ("slack", "#alerts"),
        ("email", "dev@example.com"),
        ("pagerduty", "ml"),
        ("teams", "ml"),
        ("webhook", "ops"),
    ):
        status, out, err = await command("send-test", "--channel", channel, "--to", to, "--config", config)
        assert (status, f"sent: {channel} accepted it" in out) == (0, True), err
        assert "hidden" not in out

    (posted,), (mail,), (incident,) = inbox.slack.messages, inbox.mail.mails, inbox.pagerduty.incidents
    (card,), (call,) = inbox.teams.cards, inbox.webhook.calls
    payload = incident.events[0]["payload"]
    assert "TEST: train.daily failed" in posted.body["text"]
    assert "TEST: train.daily failed" in mail.subject
    assert payload["summary"].startswith("TEST: train.daily failed")
    assert "TEST: train.daily failed" in card.body["fallbackText"]
    assert "TEST: train.daily failed" in call.body["text"]
    assert (call.body["severity"], payload["severity"]) == ("critical", "error")  # a contact's, the phase's
    status, _, err = await command("send-test", "--channel", "webhook", "--to", "team", "--config", config)
    assert status == 1
    assert "team is a contact: send the test to ops on webhook" in err
    for text in (
        str(posted.body),
        str(card.body),
        call.body["test"],
        mail.part("plain"),
        mail.part("html"),
        payload["custom_details"]["test"],
    ):
        assert "This is a test notification: no execution has finished." in text


async def test_the_message_is_about_an_event_in_a_file_or_an_execution_in_the_ledger(
    inbox: Inbox, config: str, tmp_path: Path
) -> None:
    arguments = ("send-test", "--channel", "slack", "--to", "#alerts", "--config", config)
    file = tmp_path / "event.json"
    file.write_text(an_event(launch_plan=a_launch_plan("of a file")).model_dump_json())
    status, _, err = await command(*arguments, "--event", str(file))
    assert (status, inbox.slack.messages[-1].body["text"]) == (
        0,
        "❌ TEST: of a file failed in flytesnacks/production",
    ), err

    ledger_url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    async with Ledger(ledger_url) as ledger:
        await ledger.record([recorded(event=an_event(Phase.ABORTED, name="real"))], [], now=NOW)
    environment = {**os.environ, "DISPATCHER__LEDGER__URL": ledger_url}
    status, _, err = await command(*arguments, "--execution", "flytesnacks/production/real", env=environment)
    assert (status, inbox.slack.messages[-1].body["text"]) == (
        0,
        "🛑 TEST: real was aborted in flytesnacks/production",
    ), err
    status, _, err = await command(*arguments, "--execution", "flytesnacks/production/other", env=environment)
    assert (status, "no event of flytesnacks/production/other" in err, len(inbox.slack.messages)) == (2, True, 2)


async def test_a_resolved_notice_is_sent_and_its_result_is_json(inbox: Inbox, config: str) -> None:
    arguments = ("send-test", "--channel", "slack", "--to", "#alerts", "--resolved", "--json", "--config", config)
    answer = await invoke(*arguments)
    (posted,) = inbox.slack.messages
    assert (answer.status, "TEST: " in posted.body["text"], "3 failures" in str(posted.body)) == (0, True, True)
    result = json.loads(answer.out)
    assert (result["channel"], result["accepted"], result["answer"]["status"]) == ("slack", True, "ok")
    refused = await invoke(*arguments, "--phase", "FAILED")
    assert (refused.status, "--resolved needs a success, and this phase is FAILED" in refused.err) == (2, True)


async def test_two_test_messages_are_two_incidents_in_the_given_phase(inbox: Inbox, config: str) -> None:
    for _ in range(2):
        await command("send-test", "--channel", "pagerduty", "--to", "ml", "--phase", "aborted", "--config", config)
    assert ["was aborted" in incident.events[0]["payload"]["summary"] for incident in inbox.pagerduty.incidents] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (ScriptedReply(429, b'{"ok":false,"error":"ratelimited"}'), "not accepted now"),
        (
            ScriptedReply(200, b'{"ok":false,"error":"is_archived"}'),
            "refused (a delivery would be dead): Slack refused: is_ar",
        ),
        (ScriptedReply(500, b"{}"), "in doubt: it may have arrived"),
    ],
)
async def test_an_answer_that_is_no_receipt_is_explained(
    inbox: Inbox, config: str, step: ScriptedReply, words: str
) -> None:
    inbox.slack.script.steps = [step]
    status, out, err = await command("send-test", "--channel", "slack", "--to", "#alerts", "--config", config)
    assert (status, out, words in err, "Traceback" in err, TOKEN in err) == (1, "", True, False, False), err


async def test_a_recipient_that_the_channel_cannot_serve_goes_to_the_fallback_or_is_an_error(
    inbox: Inbox, config: str
) -> None:
    mailbox = "alerts-x@team.slack.com"
    status, out, _ = await command("send-test", "--channel", "slack", "--to", mailbox, "--config", config)
    assert (status, f"slack doesn't serve {mailbox}: sending it through email" in out) == (0, True)
    assert inbox.mail.mails[0].recipients == (mailbox,)

    for channel, to, words in (
        ("pagerduty", "nobody", "add it to channels.pagerduty.services"),
        ("matrix", "x", "add channels.matrix to the settings"),
    ):
        status, _, err = await command("send-test", "--channel", channel, "--to", to, "--config", config)
        assert (status, words in err) == (1, True), err


async def test_nothing_is_sent_if_an_option_is_missing_or_the_phase_is_not_terminal(inbox: Inbox, config: str) -> None:
    for missing in (("--channel", "slack"), ("--to", "#alerts")):
        assert (await command("send-test", *missing, "--config", config))[0] == 2
    running = ("--channel", "slack", "--to", "#alerts", "--phase", "RUNNING")
    assert (await command("send-test", *running, "--config", config))[0] == 2
    assert inbox.arrivals == []


async def test_custom_templates_that_do_not_mark_a_test_are_refused(inbox: Inbox, config: str, tmp_path: Path) -> None:
    own = tmp_path / "own" / "slack" / "message.yaml"
    own.parent.mkdir(parents=True)
    arguments = ("send-test", "--channel", "slack", "--to", "#alerts", "--config", config)

    own.write_text("text: '{{ name }} is over'")
    status, _, err = await command(*arguments)
    assert (status, "use neither `what` nor `test`" in err, inbox.arrivals) == (1, True, [])

    own.write_text("text: '{{ what }} is over'")
    assert (await command(*arguments))[0] == 0
    assert inbox.slack.messages[0].body["text"] == "TEST: train.daily is over"
