"""An operator's day, from the first replica to the last, using only commands, pages, metrics, signals and files."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.async_api import expect

from dispatcher.demo.fakes.inbox import Inbox
from dispatcher.ledger import HEAD
from tests.faults.operators_day import (
    ARRIVAL_TIMEOUT,
    DEFERRAL,
    MAILBOX,
    NAME,
    NEW_TOKEN,
    OPERATOR,
    REFUSAL,
    SLACK_CHANNEL,
    Day,
    a_day,
)
from tests.support.brokers.apache import ApacheKafka
from tests.support.chromium import needs_a_browser
from tests.support.next_version import NEXT, NextVersion
from tests.support.prometheus import DEAD
from tests.support.service import ask
from tests.support.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.broker, pytest.mark.timeout(400)]


@needs_a_browser
async def test_an_operators_day(
    figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    async with a_day(apache, topic, postgres_url, tmp_path) as day:
        await deploy(day)
        await ask_who_would_be_notified(day)
        await replace_the_revoked_slack_token(day)
        await cancel_and_retry_what_the_relay_defers(day)
        dead = await break_the_relay(day)
        await wait_for_the_alert(day)
        await find_the_dead_deliveries_and_their_reason(day, dead)
        await dismiss_one(day)
        await fix_and_redrive(day, dead - 1)
        await dismiss_what_could_not_be_read(day)
        during = await upgrade(day)
        await wait_until_the_alert_is_resolved(day)
        canaries = await drain(day)
        await check_that_a_purge_asks_first_and_the_actions_are_recorded(day)
        await check_that_each_failure_arrived_once(day)
        figures(
            f"{len(day.failed)} failures, {during} of them during the upgrade, each notified once by mail and on Slack,"
            f" but for {day.dropped.total()} mails that the operator dropped; {dead - 1} were dead and redriven;"
            f" canaries that arrived: {canaries}; monitored by {day.watcher.name}; {time.monotonic() - began:.0f} s"
        )


async def deploy(day: Day) -> None:
    """Start two replicas, log in, and look whether all is well; failures arrive by mail and on Slack."""
    await asyncio.gather(day.start("one"), day.start("two"))
    # Otherwise it would miss the first dead delivery.
    await until(day.watcher.sees_all, 60)
    await day.page.goto(f"{day.url}/console/")
    await day.page.get_by_label("Token").fill(OPERATOR)
    await day.page.get_by_role("button", name="Log in").click()
    await all_is_well(day, replicas=2)
    await day.fail("first", 4)
    await day.expect_all_arrived("email", "slack")
    assert await day.watcher.firing() == set()


async def all_is_well(day: Day, *, replicas: int) -> None:
    """Wait until the health page says that every component works, in this number of replicas."""
    await day.page.goto(f"{day.url}/console/health")
    tiles = day.page.locator(".tiles li")
    for words in ("0 not working", "0 circuit breakers open", f"{replicas} replicas running"):
        await expect(tiles.filter(has_text=words)).to_be_visible(timeout=30_000)


async def ask_who_would_be_notified(day: Day) -> None:
    """A command and a page say who hears of a failure, by which rule."""
    forecast = await ask(day.config, "rules", "who", NAME, "--phase=FAILED")
    (failed,) = forecast["phases"]
    found = {one["channel"]: (one["recipients"], one["rules"][0]["defined_at"]) for one in failed["deliveries"]}
    assert {channel: recipients for channel, (recipients, _) in found.items()} == {
        "email": [MAILBOX],
        "slack": [f"#{SLACK_CHANNEL}"],
    }
    assert all("plan.yaml" in defined_at for _, defined_at in found.values())
    await day.page.goto(f"{day.url}/console/rules?launch_plan={NAME}&phase=FAILED")
    await expect(day.page.locator(".rules .yes")).to_have_count(2)


async def replace_the_revoked_slack_token(day: Day) -> None:
    """Slack refuses the token: lists and the health page say what its deliveries wait for, and why. When the file has a
    new token they are sent, and no replica is restarted.
    """
    day.inbox.slack.token = NEW_TOKEN
    await day.fail("revoked", 3)
    await day.expect_all_arrived("email")

    async def the_breaker_is_open() -> bool:
        listed = await day.run("deliveries", "list", "--state=waiting", "--channel=slack")
        return "the next probe of slack's circuit breaker" in listed and "an earlier message of its thread" in listed

    await until(the_breaker_is_open, 60)
    await day.page.goto(f"{day.url}/console/health")
    channels = day.page.get_by_role("region", name="Channels")
    for words in ("The circuit breaker is open in", "The provider refuses the dispatcher itself", "3 waiting"):
        await expect(channels).to_contain_text(words, timeout=30_000)
    (day.folder / "slack-token").write_text(NEW_TOKEN)
    await day.expect_all_arrived("email", "slack")
    assert not await day.deliveries(state="dead")
    await expect(channels).not_to_contain_text("The provider refuses the dispatcher itself", timeout=30_000)


async def cancel_and_retry_what_the_relay_defers(day: Day) -> None:
    """The relay defers the recipient, and the next attempts are far away. One mail is cancelled in the console; the others
    are sent at once by a command, after the relay's rule is fixed.
    """
    day.inbox.mail.refuse = {MAILBOX: DEFERRAL}
    count = 3
    await day.fail("deferred", count)
    await day.expect_all_arrived("slack")

    async def all_deferred() -> list[str]:
        waiting = await day.deliveries(state="waiting", channel="email")
        waits = [one["key"] for one in waiting if [wait["kind"] for wait in one["waits_for"]] == ["retry"]]
        return waits if len(waits) == count else []

    key, *_ = await until(all_deferred)
    page = day.page
    await page.goto(f"{day.url}/console/deliveries/{key}")
    await expect(page.get_by_text("Waits for its next attempt")).to_be_visible()
    await page.get_by_role("link", name="Cancel…").click()
    await page.get_by_label("Reason").fill("its owner knows")
    await page.get_by_role("button", name="Cancel 1").click()
    await expect(page.locator(".why")).to_have_text("cancelled by operator: its owner knows")
    day.dropped["email"] += 1
    day.inbox.mail.refuse = {}
    selected = ("--channel=email", "--launch-plan=train.daily")
    assert "2 deliveries would be due now" in await day.run("deliveries", "retry-now", *selected, "--dry-run")
    retried = await day.run("deliveries", "retry-now", *selected, "--by=ada", "--reason=the relay is fixed")
    assert retried.startswith("2 deliveries are due now\n")
    await day.expect_all_arrived("email", "slack")


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
    """In the console: open the list of dead deliveries, open one."""
    page = day.page
    await page.goto(f"{day.url}/console/")
    await page.get_by_role("link", name=f"{dead} dead").click()
    found = page.get_by_role("link", name=f"Email to {MAILBOX}")
    await expect(found).to_have_count(dead)
    await found.first.click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"Email to {MAILBOX}")
    await expect(page.locator(".attempts .answer")).to_have_text(REFUSAL)
    await expect(page.frame_locator("iframe.preview").locator("body")).to_contain_text("ValueError: boom")


async def dismiss_one(day: Day) -> None:
    """Nobody needs one of the dead deliveries any more."""
    key, *_ = [one["key"] for one in await day.deliveries(state="dead")]
    dismissed = await day.run("deliveries", "dismiss", key[:12], "--by=ada", "--reason=told by phone")
    assert dismissed == "1 delivery is dismissed\n"
    day.dropped["email"] += 1


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


async def dismiss_what_could_not_be_read(day: Day) -> None:
    """An event that names no launch plan is rejected. Its author has published it again, so nobody needs it."""
    await day.run("publish", "--to=kafka", "--format=flyte-v1", "--name=unnamed")
    page = day.page

    async def rejected() -> bool:
        await page.goto(f"{day.url}/console/")
        return await page.get_by_role("link", name="1 rejected", exact=True).is_visible()

    await until(rejected)
    assert "launch plan" in await day.run("rejected", "list")
    dismissed = await day.run("rejected", "dismiss", "--all", "--by=ada", "--reason=published again")
    assert dismissed == "1 message dismissed\n"
    await page.goto(f"{day.url}/console/")
    await expect(page.get_by_role("link", name="0 rejected", exact=True)).to_be_visible()


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
    await all_is_well(day, replicas=2)  # the session is valid on the new replicas too
    await day.page.goto(f"{day.url}/console/")
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


async def check_that_a_purge_asks_first_and_the_actions_are_recorded(day: Day) -> None:
    """A purge counts what it would delete, and deletes nothing of it. The ledger knows who did what today, and why."""
    would = await ask(day.config, "deliveries", "purge", "--older-than=1s", "--dry-run")
    assert would["entries"] > len(day.failed)
    actions = await ask(day.config, "ledger", "actions")
    assert [(one["what"], one["who"], one["why"]) for one in reversed(actions)] == [
        ("cancel", "operator", "its owner knows"),
        ("retry_now", "ada", "the relay is fixed"),
        ("dismiss", "ada", "told by phone"),
        ("redrive", "operator", ""),
        ("dismiss", "ada", "published again"),
    ]


async def check_that_each_failure_arrived_once(day: Day) -> None:
    """Each failure has one delivery per channel in the ledger. The fakes received each once, and no dropped one."""
    for channel in ("email", "slack"):
        stored = await ask(day.config, "deliveries", "list", f"--channel={channel}", "--limit=100000")
        assert sorted(one["execution"]["name"] for one in stored) == sorted(day.failed)
        wanted = Counter(one["key"] for one in stored if one["state"] != "dropped")
        assert Counter(day.arrived(channel)) == wanted, channel
        assert len(stored) - wanted.total() == day.dropped[channel]
