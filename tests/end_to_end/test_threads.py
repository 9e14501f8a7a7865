"""Whole threads through the real service: failures and a success, with restarts and a provider outage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from dispatcher.config.settings import load
from dispatcher.demo.fakes.inbox import Conversation, Inbox, PagerDutyReceiver, SlackReceiver
from dispatcher.demo.fakes.script import ScriptedReply
from dispatcher.flyte.encode import Format, write
from dispatcher.ledger import Filter, Ledger, StoredDelivery
from dispatcher.model.event import Options
from dispatcher.model.phase import Phase
from dispatcher.runtime.service import Service
from tests.support.builders import NOW, a_launch_plan, an_event, an_execution
from tests.support.service import ROUTING_KEY
from tests.support.waiting import until

RULES = {
    "launch_plan": {"project": "flytesnacks", "domain": "production", "name": "train.daily"},
    "notifications": [
        {"phases": ["FAILED"], "slack": {"recipients_email": ["#alerts"]}},
        {"phases": ["FAILED"], "pager_duty": {"recipients_email": ["ml"]}},
    ],
}
DOWN = [ScriptedReply(503) for _ in range(1000)]


class Team:
    """A team's Slack and PagerDuty, and the dispatcher that notifies them."""

    def __init__(self, inbox: Inbox, folder: Path, ledger_url: str, options: dict[str, Any]) -> None:
        self.inbox = inbox
        self._folder = folder
        self._ledger_url = ledger_url
        self._options = options
        self._url = ""
        self._minutes = 0

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """Run the dispatcher during the block. The ledger is kept between runs."""
        service = Service(load(self._settings()))
        started: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        service.on_ready = started.set_result
        running = asyncio.create_task(service.run())
        running.add_done_callback(lambda _: started.done() or started.cancel())
        try:
            self._url = f"{await started}/events"
            yield
        finally:
            service.stop()
            await running

    async def finish(
        self,
        name: str,
        phase: Phase,
        *,
        minute: int | None = None,
        started: int | None = None,
        again: str | None = None,
        version: str = "v1",
        options: Options | None = None,
    ) -> None:
        """Post the event of an execution that finishes a minute after the last one, or at `minute`.

        `started`: the minute of its start, if the event tells it. `again`: the execution that it relaunches.
        """
        self._minutes += 1
        at = NOW + timedelta(minutes=self._minutes if minute is None else minute)
        event = an_event(phase, name=name, launch_plan=a_launch_plan(version=version), options=options).model_copy(
            update={
                "occurred_at": at,
                "started_at": None if started is None else NOW + timedelta(minutes=started),
                "reference_execution": None if again is None else an_execution(again),
            }
        )
        message = write(event, Format.NATIVE)
        headers = {header.replace("ce_", "ce-", 1): value.decode() for header, value in message.headers}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self._url, data=message.value, headers=headers) as answer,
        ):
            assert answer.status == 202, await answer.text()

    async def until(self, enough: Callable[[list[StoredDelivery]], bool]) -> list[StoredDelivery]:
        """Wait until `enough` is true of the ledger's deliveries, and return them."""
        async with Ledger(self._ledger_url) as ledger:

            async def matching() -> list[StoredDelivery] | None:
                found = await ledger.history.find(Filter(), limit=100)
                return found if enough(found) else None

            return await until(matching)

    async def settled(self, count: int) -> list[StoredDelivery]:
        """Wait until there are at least `count` deliveries and all of them are settled."""
        return await self.until(lambda all_: len(all_) >= count and all(one.settled_at for one in all_))

    @property
    def slack(self) -> SlackReceiver:
        return self.inbox.slack

    @property
    def actions(self) -> list[list[str]]:
        """The actions of each incident's events."""
        return [[event["event_action"] for event in incident.events] for incident in self.inbox.pagerduty.incidents]

    def _settings(self) -> Path:
        (self._folder / "rules.yaml").write_text(yaml.safe_dump(RULES))
        retry = {"initial": "50ms", "ceiling": "200ms"}
        settings = {
            "http": {"listen": "127.0.0.1:0"},
            "ledger": {"url": self._ledger_url},
            "rules": {"launch_plans": [str(self._folder / "rules.yaml")]},
            "channels": {
                "slack": {
                    "token": self.slack.token,
                    "api_url": self.inbox.slack_url,
                    "rate": "none",
                    "retry": retry,
                    **self._options.get("slack", {}),
                },
                "pagerduty": {
                    "events_url": self.inbox.pagerduty_url,
                    "services": {"ml": {"routing_key": ROUTING_KEY}},
                    "rate": "none",
                    "retry": retry,
                    **self._options.get("pagerduty", {}),
                },
            },
        }
        file = self._folder / "dispatcher.yaml"
        file.write_text(yaml.safe_dump(settings))
        return file


@pytest.fixture
def options() -> dict[str, Any]:
    """Additional channel settings; tests override this fixture."""
    return {}


@pytest.fixture
async def team(tmp_path: Path, ledger_url: str, options: dict[str, Any]) -> AsyncIterator[Team]:
    inbox = Inbox(
        slack=SlackReceiver(channels=[Conversation("C0000001", "alerts")]),
        pagerduty=PagerDutyReceiver(services={ROUTING_KEY: "ML platform"}),
    )
    async with inbox:
        yield Team(inbox, tmp_path, ledger_url, options)


def assert_one_thread(team: Team, actions: Sequence[Sequence[str]] = (("trigger", "trigger", "resolve"),)) -> None:
    """Two failures and a success made one thread with an edited first message, and one incident, resolved once."""
    root, *replies = team.slack.messages
    assert root.thread is None
    assert root.edits == 1
    assert root.body["text"].startswith("✅ train.daily succeeded")
    assert root.body["attachments"][0]["color"] == "#2eb67d"
    since = f"<!date^{int((NOW + timedelta(minutes=1)).timestamp())}^"
    for resolved in (root, replies[-1]):
        (says,) = resolved.body["blocks"][1]["elements"]
        assert says["text"].startswith(f"after 2 failures, down since {since}")
        assert says["text"].endswith(", for 2 minutes")
    assert [reply.thread for reply in replies] == [root.ts] * 2
    assert [reply.body["text"][0] for reply in replies] == ["❌", "✅"]
    assert team.actions == [[*one] for one in actions]
    assert [incident.status for incident in team.inbox.pagerduty.incidents] == ["resolved"]


STEPS = [("one", Phase.FAILED, 2), ("two", Phase.FAILED, 4), ("three", Phase.SUCCEEDED, 6)]


async def test_two_failures_and_a_success_are_one_thread_and_one_incident(team: Team) -> None:
    async with team.served():
        for name, phase, deliveries in STEPS:
            await team.finish(name, phase)
            await team.settled(deliveries)
        assert_one_thread(team)
        await team.finish("four", Phase.SUCCEEDED)
        await team.finish("three", Phase.SUCCEEDED, minute=3)  # a duplicate
        await team.finish("five", Phase.FAILED)
        await team.settled(8)

    assert len(team.actions) == 2
    assert team.actions[1] == ["trigger"]
    assert [message.thread for message in team.slack.messages][-1] is None


async def test_two_failures_and_a_success_are_one_thread_with_a_restart_after_each(team: Team) -> None:
    for name, phase, deliveries in STEPS:
        async with team.served():
            await team.finish(name, phase)
            await team.settled(deliveries)
    assert_one_thread(team)


async def test_two_failures_and_a_success_are_one_thread_with_an_outage_during_the_second(team: Team) -> None:
    async with team.served():
        await team.finish("one", Phase.FAILED)
        await team.settled(2)
        team.slack.script.steps, team.inbox.pagerduty.script.steps = [*DOWN], [*DOWN]
        await team.finish("two", Phase.FAILED)
        await team.until(lambda all_: sum(one.delivery.attempt > 1 for one in all_) >= 2)
        await team.finish("three", Phase.SUCCEEDED)
        waiting = await team.until(lambda all_: len(all_) == 6)
        assert sum(one.settled_at is None for one in waiting) == 4
    async with team.served():
        team.slack.script.steps, team.inbox.pagerduty.script.steps = [], []
        await team.settled(6)
    assert_one_thread(team, [["trigger", "resolve"]])  # nobody is paged of the second failure: it is over


async def test_a_message_that_waits_is_sent_before_its_resolved_notice_and_a_page_not_at_all(team: Team) -> None:
    team.slack.script.steps, team.inbox.pagerduty.script.steps = [*DOWN], [*DOWN]
    async with team.served():
        await team.finish("one", Phase.FAILED)
        await team.finish("two", Phase.SUCCEEDED)
        await team.until(lambda all_: len(all_) == 4)
        team.slack.script.steps, team.inbox.pagerduty.script.steps = [], []
        await team.settled(4)
    assert team.actions == []
    root, reply = team.slack.messages
    assert (root.edits, reply.thread) == (1, root.ts)


async def test_a_failure_that_arrives_after_a_newer_success_pages_nobody(team: Team) -> None:
    async with team.served():
        await team.finish("new", Phase.SUCCEEDED, minute=9)
        await team.finish("old", Phase.FAILED, minute=5)
        found = await team.settled(2)
        await team.finish("newest", Phase.SUCCEEDED, minute=10)
        await team.settled(3)
    assert team.actions == []
    late, resolved = team.slack.messages
    assert (late.edits, resolved.thread) == (1, late.ts)
    reasons = {one.delivery.channel: (one.delivery.state, one.delivery.reason) for one in found}
    assert reasons == {
        "slack": ("sent", ""),
        "pagerduty": ("dropped", "nobody was paged: a run that started later has succeeded"),
    }


async def test_only_a_run_that_began_after_the_failure_ended_resolves_it_or_stands_in_its_way(team: Team) -> None:
    async with team.served():
        await team.finish("overlapping", Phase.SUCCEEDED, minute=9, started=1)
        await team.finish("failed", Phase.FAILED, minute=5)
        await team.settled(2)
        assert team.actions == [["trigger"]]
        await team.finish("overlapping too", Phase.SUCCEEDED, minute=10, started=4)
        await team.finish("later", Phase.SUCCEEDED, minute=11, started=6)
        await team.settled(4)
    assert team.actions == [["trigger", "resolve"]]


@pytest.mark.parametrize("options", [{"pagerduty": {"incident": "execution"}}])
async def test_the_success_of_another_execution_swallows_no_page(team: Team) -> None:
    async with team.served():
        await team.finish("other", Phase.SUCCEEDED, minute=5)
        await team.finish("failed", Phase.FAILED, minute=0)
        await team.settled(2)
        assert team.actions == [["trigger"]]
        await team.finish("another", Phase.SUCCEEDED, minute=8)
        await team.finish("relaunched", Phase.FAILED, minute=9, again="failed")
        await team.until(lambda all_: _settled_pages(all_) == 2)
        await team.finish("again", Phase.SUCCEEDED, minute=12, started=10, again="relaunched")
        await team.until(lambda all_: _settled_pages(all_) == 3)
    assert team.actions == [["trigger", "trigger", "resolve"]]


def _settled_pages(deliveries: list[StoredDelivery]) -> int:
    return [one.delivery.channel for one in deliveries if one.settled_at].count("pagerduty")


async def test_a_success_with_disabled_notifications_resolves_nothing(team: Team) -> None:
    async with team.served():
        await team.finish("one", Phase.FAILED)
        await team.finish("two", Phase.SUCCEEDED, options=Options(disable_notifications=True))
        await team.settled(2)
        assert team.actions == [["trigger"]]
        await team.finish("three", Phase.SUCCEEDED)
        await team.settled(4)
    assert team.actions == [["trigger", "resolve"]]


@pytest.mark.parametrize("options", [{"slack": {"thread": "execution"}, "pagerduty": {"incident": "execution"}}])
async def test_threads_by_execution_are_resolved_by_the_success_of_a_relaunch_only(team: Team) -> None:
    async with team.served():
        for name, phase, again, deliveries in [
            ("one", Phase.FAILED, None, 2),
            ("two", Phase.FAILED, None, 4),
            ("three", Phase.SUCCEEDED, None, 4),
            ("one again", Phase.SUCCEEDED, "one", 6),
        ]:
            await team.finish(name, phase, again=again)
            await team.settled(deliveries)
    assert team.actions == [["trigger", "resolve"], ["trigger"]]
    first, second, reply = team.slack.messages
    assert (first.thread, second.thread, first.edits, second.edits) == (None, None, 1, 0)
    assert reply.thread == first.ts


@pytest.mark.parametrize("options", [{"slack": {"thread": "none"}}])
async def test_without_threads_slack_gets_no_resolved_notice(team: Team) -> None:
    async with team.served():
        for name, phase, deliveries in [
            ("one", Phase.FAILED, 2),
            ("two", Phase.FAILED, 4),
            ("three", Phase.SUCCEEDED, 5),
        ]:
            await team.finish(name, phase)
            await team.settled(deliveries)
    assert [(message.thread, message.edits) for message in team.slack.messages] == [(None, 0)] * 2
    assert team.actions == [["trigger", "trigger", "resolve"]]


@pytest.mark.parametrize("options", [{"pagerduty": {"change_events": True}}])
async def test_the_first_run_in_a_new_version_is_one_change_event_that_pages_nobody(team: Team) -> None:
    for version in ("v1", "v1", "v2", "v2", "v1", "v3"):
        async with team.served():
            await team.finish(f"run-{version}", Phase.SUCCEEDED, version=version)
            await team.finish(f"again-{version}", Phase.SUCCEEDED, version=version)
    async with team.served():
        await team.settled(2)

    changes = [change["payload"]["custom_details"]["version"] for change in team.inbox.pagerduty.changes]
    assert changes == ["v2", "v3"]
    assert team.inbox.pagerduty.changes[0]["payload"]["summary"].startswith("train.daily has run in version v2")
    assert team.actions == []


async def test_without_the_setting_a_new_version_sends_no_change_event(team: Team) -> None:
    async with team.served():
        for version in ("v1", "v2"):
            await team.finish(f"run-{version}", Phase.FAILED, version=version)
        await team.settled(4)
    assert team.inbox.pagerduty.changes == []


async def test_a_revoked_token_holds_messages_back_until_it_works_again(team: Team) -> None:
    right = team.slack.token
    async with team.served():
        team.slack.token = "xoxb-another"
        for name in ("one", "two"):
            await team.finish(name, Phase.FAILED)
        waiting = await team.until(lambda all_: sum("invalid_auth" in one.delivery.reason for one in all_) == 1)
        assert {one.delivery.state for one in waiting if one.delivery.channel == "slack"} == {"waiting"}
        team.slack.token = right
        await team.settled(4)
    first, second = team.slack.messages
    assert second.thread == first.ts


async def test_failures_after_a_locked_thread_form_a_new_one(team: Team) -> None:
    async with team.served():
        await team.finish("one", Phase.FAILED)
        await team.settled(2)
        team.slack.locked_threads.add(team.slack.messages[0].ts)
        for count, name in ((4, "two"), (6, "three")):
            await team.finish(name, Phase.FAILED)
            await team.settled(count)
        await team.finish("four", Phase.SUCCEEDED)
        found = await team.settled(8)
    assert {one.delivery.state for one in found} == {"sent"}
    _, second, third, resolved = team.slack.messages
    assert (second.thread, third.thread, resolved.thread) == (None, second.ts, second.ts)
    assert second.edits == 1
