"""An operator's day, from the first replica to the last, using only commands, pages, metrics, signals and files."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from playwright.async_api import Page, expect

from dispatcher.demo.fakes.inbox import Conversation, Inbox
from dispatcher.ledger import HEAD
from tests.faults.rig import Replica
from tests.support.brokers.apache import ApacheKafka
from tests.support.chromium import needs_a_browser, opened
from tests.support.next_version import NEXT, NextVersion
from tests.support.prometheus import DEAD, Watcher, watching
from tests.support.service import ask, command, free_port
from tests.support.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.broker, pytest.mark.timeout(400)]

MAILBOX, SLACK_CHANNEL = "dev-team@example.com", "dev-alerts"
OLD_TOKEN, NEW_TOKEN = "xoxb-of-yesterday", "xoxb-of-today"
OPERATOR, DASHBOARD = "operator-0123456789abcdef", "dashboard-0123456789abcdef"
REFUSAL = "550 5.7.1 relaying denied"
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
        status, out, err = await command("publish", "--config", str(self.config), *given)
        assert (status, out.splitlines()[-1:]) == (0, [f"published {count} messages"]), out + err

    async def expect_all_arrived(self, *channels: str) -> None:
        """Wait until the notifications of all failures have arrived on these channels."""

        def all_arrived(_: Inbox) -> bool:
            return all(len(self.arrived(channel)) >= len(self.failed) for channel in channels)

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


@needs_a_browser
async def test_an_operators_day(
    figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    async with a_day(apache, topic, postgres_url, tmp_path) as day:
        await deploy(day)
        await rotate_the_slack_token(day)
        dead = await break_the_relay(day)
        await wait_for_the_alert(day)
        await find_the_dead_deliveries_and_their_reason(day, dead)
        await fix_and_redrive(day, dead)
        during = await upgrade(day)
        await wait_until_the_alert_is_resolved(day)
        canaries = await drain(day)
        await check_that_each_failure_arrived_once(day)
        figures(
            f"{len(day.failed)} failures, {during} of them during the upgrade, each notified once by mail and on Slack;"
            f" {dead} were dead and redriven; canaries that arrived: {canaries}; monitored by {day.watcher.name};"
            f" {time.monotonic() - began:.0f} s"
        )


async def deploy(day: Day) -> None:
    """Start two replicas; failures arrive by mail and on Slack."""
    await asyncio.gather(day.start("one"), day.start("two"))
    # Otherwise it would miss the first dead delivery.
    await until(day.watcher.sees_all, 60)
    await day.fail("first", 4)
    await day.expect_all_arrived("email", "slack")
    assert await day.watcher.firing() == set()


async def rotate_the_slack_token(day: Day) -> None:
    """Write a new token to the file; Slack then refuses the old one. No replica is restarted."""
    (day.folder / "slack-token").write_text(NEW_TOKEN)
    day.inbox.slack.token = NEW_TOKEN
    await day.fail("rotated", 3)
    await day.expect_all_arrived("email", "slack")
    assert not await day.deliveries(state="dead")


async def break_the_relay(day: Day) -> int:
    """The relay refuses the recipient, and Slack works. Returns the number of dead deliveries."""
    day.inbox.mail.refuse = {MAILBOX: REFUSAL}
    count = 3
    await day.fail("broken", count)
    await day.expect_all_arrived("slack")

    async def all_dead() -> bool:
        return len(await day.deliveries(state="dead")) == count

    await until(all_dead, 60)
    return count


async def wait_for_the_alert(day: Day) -> None:
    """Wait until the alert about dead deliveries fires."""

    async def fires() -> bool:
        return DEAD in await day.watcher.firing()

    await until(fires, 60)


async def find_the_dead_deliveries_and_their_reason(day: Day, dead: int) -> None:
    """In the console: log in, open the list of dead deliveries, open one."""
    page = day.page
    await page.goto(f"{day.url}/console/")
    await page.get_by_label("Token").fill(OPERATOR)
    await page.get_by_role("button", name="Log in").click()
    await page.get_by_role("link", name=f"{dead} dead").click()
    found = page.get_by_role("link", name=f"Email to {MAILBOX}")
    await expect(found).to_have_count(dead)
    await found.first.click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"Email to {MAILBOX}")
    await expect(page.locator(".attempts .answer")).to_have_text(REFUSAL)
    await expect(page.frame_locator("iframe.preview").locator("body")).to_contain_text("ValueError: boom")


async def fix_and_redrive(day: Day, dead: int) -> None:
    """Nothing is redriven before the confirmation; after it the mails arrive."""
    day.inbox.mail.refuse = {}
    page = day.page
    await page.goto(f"{day.url}/console/deliveries?state=dead")
    await page.get_by_role("link", name="Redrive all matching…").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"Redrive {dead} dead deliveries?")
    await expect(page.locator(".reasons")).to_contain_text("relaying denied")
    assert len(await day.deliveries(state="dead")) == dead
    await page.get_by_role("button", name=f"Redrive {dead}").click()
    await expect(page.get_by_role("status")).to_have_text(f"{dead} deliveries will be retried now.")
    await day.expect_all_arrived("email", "slack")
    assert not await day.deliveries(state="dead")


async def upgrade(day: Day) -> int:
    """Migrate the tables, then replace the replicas one by one, while executions fail. Returns how many failed."""
    before, done = len(day.failed), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(_keep_failing(day, done))
        after = NextVersion(day.folder / "next")
        assert await after.migrate(day.config) == f"ledger     migrated from version {HEAD} to {NEXT}\n"
        for number, old in enumerate(list(day.running), start=1):
            await day.start(f"upgraded {number}", after)
            await day.drain(old)
        done.set()
    await day.expect_all_arrived("email", "slack")
    await day.page.goto(f"{day.url}/console/")  # the session is valid on the new replicas too
    await expect(day.page.get_by_role("link", name="0 dead", exact=True)).to_be_visible()
    return len(day.failed) - before


async def _keep_failing(day: Day, done: asyncio.Event) -> None:
    for number in itertools.count():
        if done.is_set():
            return
        await day.fail(f"upgrade-{number}", 10, rate=10)


async def wait_until_the_alert_is_resolved(day: Day) -> None:
    """Wait until no alert fires; the alert must have been the only one of the day."""

    async def quiet() -> bool:
        return not await day.watcher.firing()

    await until(quiet, 60)
    assert await day.watcher.fired() == {DEAD}


async def drain(day: Day) -> int:
    """Stop all replicas; no delivery is waiting afterwards. Returns the number of canaries that arrived."""

    def one_arrived(inbox: Inbox) -> bool:
        return bool(inbox.webhook.calls)

    assert await day.inbox.until(one_arrived, seconds=ARRIVAL_TIMEOUT), "no canary arrived"
    for replica in list(day.running):
        await day.drain(replica)
    assert await ask(day.config, "deliveries", "list", "--state=waiting", "--state=dead") == []
    return len(day.inbox.webhook.calls)


async def check_that_each_failure_arrived_once(day: Day) -> None:
    """Each failure has one delivery per channel in the ledger, and the fakes received each delivery once."""
    for channel in ("email", "slack"):
        stored = await ask(day.config, "deliveries", "list", f"--channel={channel}", "--limit=100000")
        assert sorted(one["execution"]["name"] for one in stored) == sorted(day.failed)
        assert Counter(day.arrived(channel)) == Counter(one["key"] for one in stored), channel


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
