"""Contacts in a running service: rules and routes name them, and their messages have their options."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from dispatcher.demo.fakes.inbox import Conversation, Inbox, SlackReceiver
from dispatcher.flyte.encode import Format, write
from dispatcher.ledger import Filter, Ledger
from dispatcher.model.delivery import Kind
from dispatcher.model.phase import Phase
from tests.support.builders import NOW, a_launch_plan, an_event
from tests.support.running import running
from tests.support.waiting import until

PLAN = {
    "launch_plan": {"project": "flytesnacks", "domain": "production", "name": "train.daily"},
    "notifications": [
        {"phases": ["FAILED"], "email": {"recipients_email": ["ml-team", "boss@example.com", "dev@example.com"]}},
        {"phases": ["FAILED"], "slack": {"recipients_email": ["#nowhere"]}},
        {"phases": ["SUCCEEDED"], "slack": {"recipients_email": ["ml-team"]}},
    ],
}
ROUTES = {
    "routes": [
        {
            "name": "production",
            "match": {"domain": "production", "phase": "FAILED"},
            "notify": ["ml-team", {"email": ["dev@example.com"]}],
            "severity": "warning",
        }
    ]
}
CONTACTS = {
    "ml-team": {
        "email": ["ML@example.com"],
        "slack": ["#alerts"],
        "webhook": ["audit"],
        "timezone": "Asia/Tokyo",
        "templates": ["./ml"],
        "severity": "critical",
    },
    "boss": {"email": ["boss@example.com"], "timezone": "America/New_York"},
    "on-call": {"email": ["on-call@example.com"], "timezone": "Europe/Berlin"},
}
SHOWN = "{{ phase }} {{ severity }} {{ finished.local }}"


def settings(folder: Path, inbox: Inbox) -> dict[str, Any]:
    (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    (folder / "routes.yaml").write_text(yaml.safe_dump(ROUTES))
    for file, text in {
        "ml/slack/message.yaml": f'text: "{SHOWN}"',
        "ml/webhook/body.yaml": f'text: "{SHOWN}"',
        "ml/email/subject.txt.j2": "for the team",
        "all/email/text.txt.j2": SHOWN,
    }.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return {
        "ledger": {"url": "sqlite+aiosqlite:///./ledger.db"},
        "rules": {"launch_plans": ["./plan.yaml"], "routes": ["./routes.yaml"]},
        "templates": {"path": ["./all"]},
        "contacts": CONTACTS,
        "channels": {
            "email": {"host": "127.0.0.1", "port": inbox.mail.port, "security": "none", "from": "flyte@example.com"},
            "slack": {
                "token": inbox.slack.token,
                "api_url": inbox.slack_url,
                "rate": "none",
                "fallback_recipients": ["on-call"],
            },
            "webhook": {
                "targets": {"audit": {"url": f"{inbox.url}/hooks/audit"}},
                "allow_http": True,
                "allow_networks": ["127.0.0.0/8"],
            },
        },
    }


async def post(url: str, phase: Phase, minute: int) -> None:
    event = an_event(phase, name=f"a{minute}", launch_plan=a_launch_plan())
    message = write(event.model_copy(update={"occurred_at": NOW + minute * timedelta(minutes=1)}), Format.NATIVE)
    headers = {name.replace("ce_", "ce-", 1): value.decode() for name, value in message.headers}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/events", data=message.value, headers=headers) as answer,
    ):
        assert answer.status == 202, await answer.text()


async def test_a_contacts_messages_have_its_zone_templates_and_severity(tmp_path: Path) -> None:
    async with (
        Inbox(slack=SlackReceiver(channels=[Conversation("C0000001", "alerts")])) as inbox,
        running(tmp_path, settings(tmp_path, inbox)) as url,
    ):
        await post(url, Phase.FAILED, 0)
        await until(lambda: len(inbox.mail.mails) == 4 and inbox.slack.messages and inbox.webhook.calls)
        mails = {mail.recipients: (mail.subject, mail.part("plain").strip()) for mail in inbox.mail.mails}
        usual = mails[("dev@example.com",)][0]
        assert mails == {
            ("ML@example.com",): ("for the team", "failed critical 2026-11-20 18:14:21 UTC+09:00"),
            ("boss@example.com",): (usual, "failed error 2026-11-20 04:14:21 UTC-05:00"),
            ("dev@example.com",): (usual, "failed warning 2026-11-20 09:14:21 UTC"),
            ("on-call@example.com",): (f"Not delivered: {usual}", "failed error 2026-11-20 10:14:21 UTC+01:00"),
        }
        in_tokyo = "failed critical 2026-11-20 18:14:21 UTC+09:00"
        assert ([one.body["text"] for one in inbox.slack.messages], inbox.webhook.calls[0].body["text"]) == (
            [in_tokyo],
            in_tokyo,
        )

        await post(url, Phase.SUCCEEDED, 1)
        await until(lambda: len(inbox.slack.messages) == 2)
        assert inbox.slack.messages[-1].body["text"] == "succeeded critical 2026-11-20 18:15:21 UTC+09:00"
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        failed = [one.delivery for one in await ledger.history.find(Filter(execution="a0"), limit=9)]
        found = [one.delivery for one in await ledger.history.find(Filter(execution="a1"), limit=9)]
    names = {recipient: {rule.name for rule in one.rules} for one in failed for recipient in one.recipients}
    assert names == {
        **dict.fromkeys(("ML@example.com", "#alerts", "audit", "dev@example.com"), frozenset({"", "production"})),
        **dict.fromkeys(("boss@example.com", "#nowhere", "on-call@example.com"), frozenset({""})),
    }
    assert {
        (one.channel, one.kind, one.severity, one.rules[-1].defined_at.partition("plan.yaml")[2]) for one in found
    } == {
        ("email", Kind.NOTIFICATION, "critical", ":18"),
        ("slack", Kind.RESOLVED_NOTICE, "critical", ":18"),
        ("webhook", Kind.NOTIFICATION, "critical", ":18"),
    }
