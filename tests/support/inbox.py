"""A running service that notifies the demo's inbox by mail, Slack and PagerDuty, and events for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import yaml

from dispatcher.demo.fakes.inbox import Conversation, Inbox, PagerDutyReceiver, SlackReceiver
from dispatcher.flyte.encode import Format, write
from dispatcher.model.event import Event
from tests.support.service import ROUTING_KEY


def an_inbox() -> Inbox:
    """An inbox with the Slack channel #alerts and one PagerDuty service."""
    slack = SlackReceiver(channels=[Conversation("C0000001", "alerts")])
    return Inbox(slack=slack, pagerduty=PagerDutyReceiver(services={ROUTING_KEY: "ML"}))


def inbox_settings(folder: Path, inbox: Inbox, **options: Any) -> dict[str, Any]:
    """Settings by which a contact on all three channels is notified of failures. `options`: those of the contact."""
    routes = [{"name": "all", "match": {"domain": "production", "phase": "FAILED"}, "notify": ["ml-team"]}]
    (folder / "routes.yaml").write_text(yaml.safe_dump({"routes": routes}))
    recipients = {"email": ["ml@example.com"], "slack": ["#alerts"], "pagerduty": ["ml"]}
    return {
        "ledger": {"url": "sqlite+aiosqlite:///./ledger.db"},
        "rules": {"routes": ["./routes.yaml"]},
        "contacts": {"ml-team": {**recipients, **options}},
        "channels": {
            "email": {"host": "127.0.0.1", "port": inbox.mail.port, "security": "none", "from": "flyte@example.com"},
            "slack": {"token": inbox.slack.token, "api_url": inbox.slack_url, "rate": "none"},
            "pagerduty": {
                "events_url": inbox.pagerduty_url,
                "services": {"ml": {"routing_key": ROUTING_KEY}},
                "rate": "none",
            },
        },
    }


async def post_event(session: aiohttp.ClientSession, url: str, event: Event) -> None:
    """Publish an event to the service."""
    message = write(event, Format.NATIVE)
    headers = {name.replace("ce_", "ce-", 1): value.decode() for name, value in message.headers}
    async with session.post(f"{url}/events", data=message.value, headers=headers) as answer:
        assert answer.status == 202, await answer.text()
