"""The whole way in a separate process: real Kafka, a real SMTP server with STARTTLS and login."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import trustme

from dispatcher.demo.fakes.inbox import Conversation, Inbox, MailReceiver, PagerDutyReceiver, SlackReceiver
from dispatcher.flyte.encode import EncodedMessage, Format, write, write_lifecycle
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from tests.support import samples
from tests.support.brokers import Broker
from tests.support.builders import a_launch_plan, an_event
from tests.support.kafka import offsets, publish_messages
from tests.support.postgres import Cluster
from tests.support.service import ROUTING_KEY, Replica, ask, command, serving, start
from tests.support.waiting import until

pytestmark = pytest.mark.broker

LOGIN = ("flyte", "pass-of-the-relay")


@pytest.fixture
async def inbox(tmp_path: Path) -> AsyncIterator[Inbox]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    opened = Inbox(
        mail=MailReceiver(login=LOGIN, tls=context),
        slack=SlackReceiver(
            channels=[Conversation("C0000001", "dev-alerts")], people={"jane.doe@example.com": "U0000001"}
        ),
        pagerduty=PagerDutyReceiver(services={ROUTING_KEY: "ML platform"}),
    )
    async with opened:
        yield opened


@pytest.fixture
def settings(inbox: Inbox, broker: Broker, topic: str, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "password").write_text(LOGIN[1] + "\n")
    return {
        "kafka": {
            "bootstrap_servers": broker.bootstrap_servers,
            "topics": [topic],
            "group_id": f"group-{topic}",
            "session_timeout": "6s",
        },
        "ledger": {"url": "sqlite+aiosqlite:///./ledger.db"},
        "rules": {"launch_plans": [samples.rules_for_any_version(tmp_path)]},
        "channels": {
            "email": {
                "host": "localhost",
                "port": inbox.mail.port,
                "security": "starttls",
                "username": LOGIN[0],
                "password_file": "./password",
                "ca_file": "./ca.pem",
                "from": "Flyte <flyte@example.com>",
            },
            "slack": {
                "token": inbox.slack.token,
                "api_url": inbox.slack_url,
                "fallback": "email",
                "rate": "none",
                "thread": "none",
            },
            "pagerduty": {
                "rate": "none",
                "incident": "execution",  # all executions have the same launch plan, and each needs an incident
                "events_url": inbox.pagerduty_url,
                "services": {"pagerduty-service-key@example.com": {"routing_key": ROUTING_KEY, "severity": "critical"}},
            },
        },
        "console_url": "https://flyte.example.com/console",
    }


def recorded(name: str) -> EncodedMessage:
    headers, value = samples.sample(name)
    return EncodedMessage(key=name.encode(), headers=headers, value=value, summary=name)


def terminal_events(count: int, start: int = 0) -> list[Event]:
    return [an_event(name=f"n{number}", launch_plan=a_launch_plan()) for number in range(start, start + count)]


def assignments(replica: Replica) -> list[list[str]]:
    """The partitions of each assignment in the replica's log."""
    lines = [json.loads(text) for text in replica.log.splitlines() if '"partitions assigned"' in text]
    return [line["partitions"] for line in lines]


def each_arrived_once(inbox: Inbox, events: int) -> bool:
    """Whether every channel got exactly one message for each of the events."""
    mails = [mail.message_id for mail in inbox.mail.mails]
    slack = [message.key for message in inbox.slack.messages]
    pages = [incident.dedup_key for incident in inbox.pagerduty.incidents for _ in incident.events]
    return all(len(keys) == len(set(keys)) == events for keys in (mails, slack, pages))


async def test_flytes_own_events_reach_exactly_the_launch_plans_recipients(
    inbox: Inbox, settings: dict[str, Any], broker: Broker, topic: str, tmp_path: Path
) -> None:
    bad, good = "v2-workflow-failed-enriched", "v2-workflow-succeeded-enriched"
    bare = [name for name in samples.NAMES if "enriched" not in name and not name.startswith("v2-workflow-succeeded")]
    names = [*bare, bad, good]
    async with serving(tmp_path, settings) as replica:
        await publish_messages(broker, topic, [recorded(name) for name in names if name != good for _copy in range(2)])
        assert await inbox.until(lambda box: len(box.arrivals) >= 3, seconds=40), replica.log[-3000:]
        await publish_messages(broker, topic, [recorded(good) for _copy in range(2)])
        assert await inbox.until(lambda box: len(box.arrivals) >= 4, seconds=40), replica.log[-3000:]
        await asyncio.sleep(1)

    mails = {mail.recipients: mail for mail in inbox.mail.mails}
    assert set(mails) == {("manager@example.com",), ("dev-team@example.com", "on-call@example.com")}
    assert len(inbox.mail.mails) == 2
    assert mails["manager@example.com",].subject.startswith("✅ train.daily succeeded")
    mail = mails["dev-team@example.com", "on-call@example.com"]
    assert (
        mail.part("html").strip().startswith("<p>train.daily failed in production.")
    )  # the launch plan's own template
    (thread,) = {str(mail.parsed["references"]) for mail in inbox.mail.mails}
    assert thread.startswith("<thread-")
    (slack,) = inbox.slack.messages
    assert slack.name == "dev-alerts"
    assert "bad learning rate: &lt;lr&gt;" in slack.body["text"]
    (incident,) = inbox.pagerduty.incidents
    assert [event["event_action"] for event in incident.events] == ["trigger"]  # the success is another execution's
    assert incident.events[0]["payload"]["severity"] == "critical"
    deliveries = await ask(tmp_path / "dispatcher.yaml", "deliveries", "list")
    assert Counter(entry["state"] for entry in deliveries) == {"sent": 4}
    assert {mail.message_id for mail in inbox.mail.mails} == {
        entry["reference"]["message_id"] for entry in deliveries if entry["channel"] == "email"
    }
    rejected = await ask(tmp_path / "dispatcher.yaml", "rejected", "list")
    assert all("launch plan unknown" in entry["reason"] for entry in rejected)
    assert {entry["event"].rpartition("/")[2] for entry in rejected} == {"SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT"}


async def test_undecodable_messages_are_rejected_and_the_next_one_is_processed(
    inbox: Inbox, settings: dict[str, Any], broker: Broker, topic: str, tmp_path: Path
) -> None:
    header = [("ce_type", b"dispatcher.execution.phase_changed.v1")]
    noise = [b"{oops", b"\xff\xfe\x00", b"[]", b'{"execution": 3}', b"x" * 900_000, b""]
    good = write(an_event(Phase.SUCCEEDED, launch_plan=a_launch_plan()), Format.NATIVE)
    async with serving(tmp_path, settings):
        await publish_messages(broker, topic, [*(EncodedMessage(b"k", header, value, "") for value in noise), good])
        assert await inbox.until(lambda box: len(box.mail.mails) == 1, seconds=40)
        async with asyncio.timeout(20):
            while len(await ask(tmp_path / "dispatcher.yaml", "rejected", "list")) < len(noise):
                await asyncio.sleep(0.2)

    entries = await ask(tmp_path / "dispatcher.yaml", "rejected", "list")
    assert len(entries) == len(noise)
    assert all(entry["position"].startswith(f"{topic}/") for entry in entries)
    (large,) = [entry for entry in entries if entry["size"] == 900_000]
    shown = await ask(tmp_path / "dispatcher.yaml", "rejected", "show", large["id"])
    assert (len(shown["body"]), shown["complete"]) == (65536, False)


async def test_a_restart_in_the_middle_loses_nothing_and_sends_nothing_twice(
    inbox: Inbox, settings: dict[str, Any], broker: Broker, topic: str, tmp_path: Path
) -> None:
    messages = [message for event in terminal_events(60) for message in write_lifecycle(event, Format.FLYTE_V2)]
    async with serving(tmp_path, settings):
        await publish_messages(broker, topic, messages)
        assert await inbox.until(lambda box: len(box.arrivals) >= 20, seconds=40)
    async with serving(tmp_path, settings):
        assert await inbox.until(lambda box: len(box.arrivals) >= 180, seconds=60)
        await asyncio.sleep(1)

    assert len(inbox.arrivals) == 180
    assert len({mail.message_id for mail in inbox.mail.mails}) == len(inbox.mail.mails) == 60
    assert len({message.key for message in inbox.slack.messages}) == len(inbox.slack.messages) == 60
    assert all(len(incident.events) == 1 for incident in inbox.pagerduty.incidents)


async def test_a_killed_process_loses_nothing(
    inbox: Inbox, settings: dict[str, Any], broker: Broker, topic: str, tmp_path: Path
) -> None:
    messages = [message for event in terminal_events(40) for message in write_lifecycle(event, Format.FLYTE_V2)]
    replica = await start(tmp_path, settings)
    await publish_messages(broker, topic, messages)
    assert await inbox.until(lambda box: len(box.arrivals) >= 5, seconds=40)
    await replica.stop(signal.SIGKILL)
    sent = {entry["key"] for entry in await ask(tmp_path / "dispatcher.yaml", "deliveries", "list", "--state", "sent")}
    assert len(sent) < 120
    replica.process = (await start(tmp_path, settings)).process
    waiting = ("deliveries", "list", "--state", "waiting", "--limit", "500")
    async with asyncio.timeout(60):
        # Deliveries that the killed process had claimed wait for their leases; all others are delivered now.
        while any(entry["attempt"] == 0 for entry in await ask(tmp_path / "dispatcher.yaml", *waiting)):
            await asyncio.sleep(0.5)
    claimed = {entry["key"] for entry in await ask(tmp_path / "dispatcher.yaml", *waiting)}
    await replica.stop()

    everything = await ask(tmp_path / "dispatcher.yaml", "deliveries", "list", "--limit", "500")
    assert len(everything) == 120
    done = {entry["key"] for entry in everything if entry["state"] == "sent"}
    assert done | claimed == {entry["key"] for entry in everything}
    assert len(claimed) <= 60
    assert Counter(message.key for message in inbox.slack.messages).most_common(1)[0][1] == 1


async def test_two_replicas_in_one_group_share_the_work(
    inbox: Inbox, settings: dict[str, Any], broker: Broker, topic: str, tmp_path: Path, postgres_url: str
) -> None:
    settings["ledger"] = {"url": postgres_url}
    async with serving(tmp_path, settings, name="one"), serving(tmp_path, settings, name="two"):
        await publish_messages(broker, topic, [write(event, Format.FLYTE_V2) for event in terminal_events(100)])
        assert await inbox.until(lambda box: len(box.arrivals) >= 300, seconds=60)
        await asyncio.sleep(1)

    assert len(inbox.arrivals) == 300
    assert len({mail.message_id for mail in inbox.mail.mails}) == 100


@pytest.mark.slow
async def test_a_replica_frozen_beyond_its_session_is_replaced_and_sends_nothing_twice_afterwards(
    inbox: Inbox, settings: dict[str, Any], broker: Broker, topic: str, tmp_path: Path, postgres_url: str
) -> None:
    settings["ledger"] = {"url": postgres_url}
    settings["kafka"]["session_timeout"] = "3s"
    without_rate_limits(settings)
    group = settings["kafka"]["group_id"]
    async with serving(tmp_path, settings, name="frozen") as frozen, serving(tmp_path, settings, name="other") as other:
        await until(lambda: [len(assignments(one)[-1]) for one in (frozen, other) if assignments(one)] == [2, 2])
        await publish_messages(broker, topic, [write(event, Format.FLYTE_V2) for event in terminal_events(30)])
        await until(lambda: '"recorded"' in frozen.log)  # and not committed yet
        frozen.process.send_signal(signal.SIGSTOP)
        try:
            await until(lambda: len(assignments(other)[-1]) == 4)
            await publish_messages(broker, topic, [write(event, Format.FLYTE_V2) for event in terminal_events(20, 30)])
            async with asyncio.timeout(30):
                while sum(at or 0 for at in await offsets(broker.bootstrap_servers, group, topic, 4)) < 50:
                    await asyncio.sleep(0.2)
            before = assignments(frozen)
        finally:
            frozen.process.send_signal(signal.SIGCONT)
        await until(lambda: assignments(frozen) != before)  # it has noticed, and joined again
        assert sum(at or 0 for at in await offsets(broker.bootstrap_servers, group, topic, 4)) == 50
        await publish_messages(broker, topic, [write(event, Format.FLYTE_V2) for event in terminal_events(10, 50)])
        assert await inbox.until(lambda box: len(box.arrivals) >= 180, seconds=40)
        async with asyncio.timeout(30):
            while sum(at or 0 for at in await offsets(broker.bootstrap_servers, group, topic, 4)) < 60:
                await asyncio.sleep(0.2)

    assert each_arrived_once(inbox, 60)


@pytest.fixture
def own_postgres() -> Iterator[Cluster]:
    """A PostgreSQL server that the test may stop."""
    cluster = Cluster()
    cluster.start()
    yield cluster
    cluster.remove()


@pytest.mark.slow
async def test_while_the_ledger_is_down_intake_waits_in_its_group_and_continues_afterwards(
    inbox: Inbox, settings: dict[str, Any], broker: Broker, topic: str, tmp_path: Path, own_postgres: Cluster
) -> None:
    session = 2
    settings["ledger"] = {"url": own_postgres.url}
    settings["kafka"]["session_timeout"] = f"{session}s"
    without_rate_limits(settings)
    group = settings["kafka"]["group_id"]
    headers, value = samples.sample("v2-workflow-succeeded")
    shown = {name.replace("ce_", "ce-"): text.decode() for name, text in headers}
    async with serving(tmp_path, settings) as replica, aiohttp.ClientSession() as session_:
        await publish_messages(broker, topic, [write(event, Format.FLYTE_V2) for event in terminal_events(5)])
        assert await inbox.until(lambda box: len(box.arrivals) >= 15, seconds=40), replica.log[-3000:]
        async with asyncio.timeout(20):
            while sum(at or 0 for at in await offsets(broker.bootstrap_servers, group, topic, 4)) < 5:
                await asyncio.sleep(0.2)

        await asyncio.to_thread(own_postgres.kill)
        await publish_messages(broker, topic, [write(event, Format.FLYTE_V2) for event in terminal_events(20, 5)])
        await until(lambda: '"dispatcher.intake.pipeline"' in replica.log.rpartition('"waiting for the ledger"')[2])
        process, lines, began = psutil.Process(replica.process.pid), len(replica.log.splitlines()), time.monotonic()
        cpu_before = sum(process.cpu_times()[:2])
        posts = 0
        while time.monotonic() < began + 3 * session:
            posts += 1
            async with session_.post(f"{replica.url}/events", data=value, headers=shown) as answer:
                assert (answer.status, answer.headers.get("Retry-After")) == (503, "5")
            await asyncio.sleep(0.5)
        seconds = time.monotonic() - began
        assert sum(process.cpu_times()[:2]) - cpu_before < seconds / 4
        # Per second one line from each of three workers, intake and the releaser, and one more each at the edges; one per
        # POST.
        assert len(replica.log.splitlines()) - lines - posts <= 5 * (seconds + 1)
        assert sum(at or 0 for at in await offsets(broker.bootstrap_servers, group, topic, 4)) == 5

        await asyncio.to_thread(own_postgres.start)
        assert await inbox.until(lambda box: len(box.arrivals) >= 75, seconds=40), replica.log[-3000:]
        async with session_.post(f"{replica.url}/events", data=value, headers=shown) as answer:
            assert answer.status == 202
        assert len(assignments(replica)) == 1
        assert "Traceback" not in replica.log
        assert "exception" not in replica.log
        assert await inbox.until(lambda box: len(box.mail.mails) == 26, seconds=20)

    assert len({mail.message_id for mail in inbox.mail.mails}) == 26
    assert len({message.key for message in inbox.slack.messages}) == len(inbox.slack.messages) == 25


def without_rate_limits(settings: dict[str, Any]) -> None:
    """Remove rate limits, which these tests are not about."""
    for channel in ("slack", "pagerduty"):
        settings["channels"][channel] |= {"rate": "none", "concurrency": 100}


async def test_publish_prints_where_each_message_is(
    inbox: Inbox, settings: dict[str, Any], broker: Broker, topic: str, tmp_path: Path
) -> None:
    async with serving(tmp_path, settings) as replica:
        config = str(tmp_path / "dispatcher.yaml")
        plan = ("--project", "flytesnacks", "--domain", "production", "--launch-plan", "train.daily@v1.4.2")
        status, out, err = await command(
            "publish", "--config", config, "--to", "kafka", "--format", "flyte-v2", "--phase", "SUCCEEDED", *plan,
            "--name", "by-kafka", "--lifecycle", "--label", "team=a",
        )  # fmt: skip
        assert status == 0, err
        assert out.count(f"{topic}/") == 6
        assert "@" in out
        status, out, err = await command(
            "publish",
            "--config",
            config,
            "--to",
            "http",
            "--url",
            replica.url,
            "--phase",
            "SUCCEEDED",
            *plan,
            "--count",
            "3",
        )
        assert status == 0, err
        assert out.count(f"{replica.url}/events: recorded") == 3
        assert await inbox.until(lambda box: len(box.mail.mails) == 4, seconds=40)

        events = tmp_path / "events.jsonl"
        lines = [
            json.dumps(json.loads((samples.FOLDER / f"{name}.json").read_text()))
            for name in ("v1-node-failed", "v2-workflow-succeeded")
        ]
        events.write_text("\n".join(lines))
        status, out, err = await command(
            "publish", "--to", "http", "--url", replica.url, "--file", str(events), "--json"
        )
        answers = {one["message"]: one["answer"]["status"] for one in json.loads(out)["messages"]}
        assert (status, answers) == (0, {"event 1": "ignored", "event 2": "recorded"}), err
        assert await inbox.until(lambda box: len(box.mail.mails) == 5, seconds=40)
