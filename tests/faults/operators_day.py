"""The operator's day: two replicas, the providers, Prometheus, a browser, and the tools that an operator has."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from playwright.async_api import Page

from dispatcher.demo.fakes.inbox import Conversation, Inbox
from tests.faults.rig import Replica
from tests.support.brokers.apache import ApacheKafka
from tests.support.chromium import opened
from tests.support.next_version import NextVersion
from tests.support.prometheus import Watcher, watching
from tests.support.service import command, free_port

MAILBOX, SLACK_CHANNEL = "dev-team@example.com", "dev-alerts"
OLD_TOKEN, NEW_TOKEN = "xoxb-of-yesterday", "xoxb-of-today"
OPERATOR, DASHBOARD = "operator-0123456789abcdef", "dashboard-0123456789abcdef"
REFUSAL = "550 5.7.1 relaying denied"
DEFERRAL = "451 4.7.1 greylisted"
NAME = "flytesnacks/development/train.daily"
PLAN = {
    "launch_plan": {"project": "flytesnacks", "domain": "development", "name": "train.daily"},
    "notifications": [
        {"phases": ["FAILED"], "email": {"recipients_email": [MAILBOX]}},
        {"phases": ["FAILED"], "channel": "slack", "recipients": [f"#{SLACK_CHANNEL}"]},
    ],
}
ARRIVAL_TIMEOUT = 60
"""Seconds within which notifications must arrive, also on a busy machine."""


@dataclass
class Day:
    """The replicas, the providers and the operator's tools."""

    folder: Path
    settings: dict[str, Any]
    inbox: Inbox
    watcher: Watcher
    session: aiohttp.ClientSession
    page: Page
    running: dict[Replica, str] = field(default_factory=dict)
    """URL of each running replica."""
    failed: list[str] = field(default_factory=list)
    """The names of all executions that have failed."""
    dropped: Counter[str] = field(default_factory=Counter)
    """The number of deliveries that the operator dropped on each channel."""

    @property
    def config(self) -> Path:
        """The settings file for commands: one replica's, as the replicas' settings differ only in the port."""
        return self.folder / "one.yaml"

    @property
    def url(self) -> str:
        """The URL of one replica."""
        return next(iter(self.running.values()))

    async def start(self, name: str, version: NextVersion | None = None) -> Replica:
        """Start a replica, wait until it is ready, and add it to Prometheus."""
        listen = f"127.0.0.1:{free_port()}"
        settings = {**self.settings, "http": {**self.settings["http"], "listen": listen}}
        replica = Replica(name, self.folder, settings, version=version)
        self.running[replica] = f"http://{listen}"
        await replica.start()
        await replica.ready()
        self.watcher.watch(list(self.running.values()))
        return replica

    async def drain(self, replica: Replica) -> None:
        """Remove the replica from Prometheus, then stop it with SIGTERM; it must exit with status 0."""
        url = self.running.pop(replica)
        self.watcher.watch(list(self.running.values()))
        try:
            await replica.stop()
        except BaseException:
            self.running[replica] = url
            raise

    async def fail(self, name: str, count: int, *, rate: float = 0) -> None:
        """Publish `count` failures of the launch plan, `rate` per second."""
        self.failed += [f"{name}-{number}" for number in range(1, count + 1)]
        options = {"to": "kafka", "launch-plan": "train.daily", "error": "ValueError: boom", "rate": rate}
        given = [f"--{option}={value}" for option, value in {**options, "name": name, "count": count}.items()]
        assert (await self.run("publish", *given)).splitlines()[-1:] == [f"published {count} messages"]

    async def run(self, *arguments: str) -> str:
        """What the command prints. It must end with status 0."""
        status, out, err = await command(*arguments, "--config", str(self.config))
        assert status == 0, out + err
        return out

    async def expect_all_arrived(self, *channels: str) -> None:
        """Wait until the notifications of all failures have arrived on these channels."""

        def all_arrived(_: Inbox) -> bool:
            return all(len(self.arrived(one)) >= len(self.failed) - self.dropped[one] for one in channels)

        complete = await self.inbox.until(all_arrived, seconds=ARRIVAL_TIMEOUT)
        assert complete, {channel: len(self.arrived(channel)) for channel in channels}

    def arrived(self, channel: str) -> list[str]:
        """The keys of the deliveries that arrived on the channel."""
        if channel == "slack":
            return [message.key for message in self.inbox.slack.messages]
        return [mail.message_id.strip("<>").partition("@")[0] for mail in self.inbox.mail.mails]

    async def deliveries(self, **query: str) -> Sequence[dict[str, Any]]:
        """The deliveries that the API lists for the query."""
        headers = {"Authorization": f"Bearer {DASHBOARD}"}
        async with self.session.get(f"{self.url}/api/v1/deliveries", params=query, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            entries: Sequence[dict[str, Any]] = (await answer.json())["entries"]
            return entries


@asynccontextmanager
async def a_day(apache: ApacheKafka, topic: str, postgres_url: str, folder: Path) -> AsyncIterator[Day]:
    """Start the fakes, Prometheus and a browser; at the end, kill replicas that still run."""
    inbox = Inbox()
    inbox.slack.token = OLD_TOKEN
    inbox.slack.channels = [Conversation("C0000001", SLACK_CHANNEL)]
    _write(folder)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        await enter(inbox)
        day = Day(
            folder=folder,
            settings=_settings(inbox, apache.bootstrap_servers, topic, postgres_url, folder),
            inbox=inbox,
            watcher=await enter(watching(folder / "prometheus", folder / "dashboard-token")),
            session=await enter(aiohttp.ClientSession()),
            page=await (await enter(opened())).new_page(),
        )
        try:
            yield day
        finally:
            for replica in day.running:
                await replica.remove()


def _write(folder: Path) -> None:
    """Write the files that the settings name."""
    secrets = {"slack": OLD_TOKEN, "operator": OPERATOR, "dashboard": DASHBOARD, "session": "one-key-for-both"}
    for name, secret in secrets.items():
        (folder / f"{name}-token").write_text(secret)
    (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN))


def _settings(inbox: Inbox, kafka: str, topic: str, ledger: str, folder: Path) -> dict[str, Any]:
    def token(name: str, *scopes: str) -> dict[str, Any]:
        return {"name": name, "token_file": f"{name}-token", "scopes": list(scopes)}

    return {
        "kafka": {"bootstrap_servers": kafka, "topics": [topic], "group_id": f"group-{topic}"},
        "http": {
            "console": True,
            "tokens": [token("operator", "read", "operate"), token("dashboard", "read")],
            "session_key_file": "session-token",
        },
        "ledger": {"url": ledger},
        "rules": {"launch_plans": ["plan.yaml"]},
        "channels": {
            "email": {
                "host": "127.0.0.1",
                "port": inbox.mail.port,
                "security": "none",
                "from": "Flyte <flyte@example.com>",
                "retry": {"initial": "1h", "ceiling": "1h"},  # a mail that is deferred is not sent by itself
            },
            "slack": {
                "token_file": "slack-token",
                "api_url": inbox.slack_url,
                "rate": "none",
                "retry": {"initial": "1s", "ceiling": "2s"},
            },
            "webhook": {
                "allow_http": True,
                "allow_networks": ["127.0.0.0/8"],
                "targets": {"canary": {"url": f"{inbox.url}/hooks/canary"}},
            },
        },
        "canary": {"channel": "webhook", "recipient": "canary", "every": "30s", "within": "25s"},
    }
