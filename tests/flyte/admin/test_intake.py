"""The running dispatcher with FlyteAdmin as its source of rules, also while FlyteAdmin is unavailable."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import yaml

from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin, OAuthServer
from dispatcher.flyte.encode import EncodedMessage, Format, write
from dispatcher.intake.kafka.config import KafkaConfig
from dispatcher.intake.kafka.publisher import KafkaPublisher
from dispatcher.model.event import Event, Options
from tests.support.brokers import Broker
from tests.support.builders import a_launch_plan, a_notification, an_event, an_execution
from tests.support.flyte_admin import a_finished_execution
from tests.support.kafka import committed
from tests.support.service import Replica, ask, command, serving

PLAN = (
    "launch_plan: {project: flytesnacks, domain: production, name: train.daily}\n"
    "notifications: [{phases: [FAILED], email: {recipients_email: [from-file@example.com]}}]"
)


@pytest.fixture
async def server() -> AsyncIterator[LocalFlyteAdmin]:
    async with LocalFlyteAdmin() as opened:
        yield opened


@asynccontextmanager
async def replica_of(folder: Path, server: LocalFlyteAdmin, **settings: Any) -> AsyncIterator[Replica]:
    """A replica whose rules come from the server."""
    admin: dict[str, Any] = {"endpoint": server.endpoint, "insecure": True, "timeout": "1s"}
    if server.oauth is not None:
        (folder / "secret").write_text(server.oauth.client_secret)
        admin |= {"client_id": server.oauth.client_id, "client_secret_file": "./secret"}
    async with serving(folder, {"rules": {"flyte_admin": admin}, **settings}) as replica:
        yield replica


async def post(replica: Replica, message: EncodedMessage) -> tuple[int, dict[str, Any], str | None]:
    headers = {name.replace("ce_", "ce-", 1): value.decode() for name, value in message.headers}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{replica.url}/events", data=message.value, headers=headers) as answer,
    ):
        return answer.status, await answer.json(), answer.headers.get("Retry-After")


async def ready(replica: Replica) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{replica.url}/readyz") as answer:
        readiness: dict[str, Any] = await answer.json()
        return readiness


def bare(name: str = an_execution().name) -> EncodedMessage:
    """A failure as Flyte sends it by default, without the launch plan."""
    return write(an_event(name=name), Format.FLYTE_V1)


def consuming(broker: Broker, topic: str) -> dict[str, Any]:
    return {
        "bootstrap_servers": broker.bootstrap_servers,
        "topics": [topic],
        "group_id": f"group-{topic}",
        "session_timeout": "3s",
    }


async def test_a_bare_failure_is_delivered_by_flyteadmins_rules(server: LocalFlyteAdmin, tmp_path: Path) -> None:
    server.add(a_finished_execution(spec={"labels": {"values": {"team": "ml"}}}))
    (tmp_path / "own" / "email").mkdir(parents=True)
    (tmp_path / "own" / "email" / "subject.txt.j2").write_text("by FlyteAdmin's facts")
    by_facts = {"mode": "manual", "parent": "none", "labels": {"team": "m*"}, "not": {"labels": {"tier": "3"}}}
    templates = {"match": [{**by_facts, "path": ["./own"]}]}
    async with replica_of(tmp_path, server, templates=templates) as replica:
        status, answer, _ = await post(replica, bare())
    assert (status, answer["status"], answer["verdict"], len(answer["deliveries"])) == (202, "recorded", "matched", 4)
    deliveries = await ask(tmp_path / "dispatcher.yaml", "deliveries", "list")
    assert sorted(recipient for entry in deliveries for recipient in entry["recipients"]) == [
        "#dev-alerts",
        "dev-team@example.com",
        "on-call@example.com",
        "pagerduty-service-key@example.com",
    ]
    (mail,) = [entry["key"] for entry in deliveries if entry["recipients"] == ["dev-team@example.com"]]
    shown = await ask(tmp_path / "dispatcher.yaml", "deliveries", "show", mail)
    assert shown["content"]["subject"] == "by FlyteAdmin's facts"


async def test_flyteadmin_is_not_asked_if_the_events_options_decide(server: LocalFlyteAdmin, tmp_path: Path) -> None:
    own = Options(notifications=(a_notification("own@example.com"),))
    async with replica_of(tmp_path, server) as replica:
        for number, options in enumerate((own, Options(disable_notifications=True))):
            _, answer, _ = await post(replica, write(an_event(name=f"n{number}", options=options), Format.NATIVE))
            assert answer["verdict"] == ("matched", "disabled")[number]
    assert server.requests_by_method["GetExecution"] == 0


async def test_files_apply_only_to_executions_that_flyteadmin_does_not_know(
    server: LocalFlyteAdmin, tmp_path: Path
) -> None:
    server.add(a_finished_execution())
    (tmp_path / "plan.yaml").write_text(PLAN)
    admin = {"endpoint": server.endpoint, "insecure": True}
    async with replica_of(tmp_path, server, rules={"flyte_admin": admin, "launch_plans": ["./plan.yaml"]}) as replica:
        _, known, _ = await post(replica, bare())
        stranger = an_event(name="stranger", launch_plan=a_launch_plan())
        _, unknown, _ = await post(replica, write(stranger, Format.NATIVE))
    assert (len(known["deliveries"]), len(unknown["deliveries"])) == (4, 1)
    assert "launch plan flytesnacks/production/train.daily (FlyteAdmin doesn't know execution" in unknown["reason"]
    recipients = [entry["recipients"] for entry in await ask(tmp_path / "dispatcher.yaml", "deliveries", "list")]
    assert recipients.count(["from-file@example.com"]) == 1


async def test_an_execution_that_flyteadmin_does_not_know_is_rejected_and_can_be_replayed(
    server: LocalFlyteAdmin, tmp_path: Path
) -> None:
    server.forbidden.add(str(an_execution("hidden")))
    async with replica_of(tmp_path, server) as replica:
        for name, words in ((an_execution().name, "FlyteAdmin doesn't know"), ("hidden", "doesn't let us see")):
            status, answer, _ = await post(replica, bare(name))
            assert (status, answer["status"]) == (202, "rejected")
            assert words in answer["reason"]
    config = str(tmp_path / "dispatcher.yaml")
    assert "0 accepted now" in (await command("rejected", "replay", "--all", "--config", config))[1]
    server.add(a_finished_execution())
    status, out, _ = await command("rejected", "replay", "--all", "--config", config)
    assert (status, "1 accepted now" in out) == (0, True)
    await server.stop()
    status, _, err = await command("rejected", "replay", "--all", "--config", config)
    assert (status, "rules.flyte_admin.endpoint" in err, "Traceback" in err) == (1, True, False)


async def test_http_publishers_get_503_while_flyteadmin_is_unavailable(server: LocalFlyteAdmin, tmp_path: Path) -> None:
    server.add(a_finished_execution())
    async with replica_of(tmp_path, server) as replica:
        await server.stop()
        status, answer, retry_after = await post(replica, bare())
        assert (status, answer["reason"], retry_after) == (503, "FlyteAdmin is unavailable; nothing was recorded", "5")
        assert "rules.flyte_admin.endpoint" in (await ready(replica))["why"]["flyte_admin"]
        await server.start()
        async with asyncio.timeout(20):
            while (await post(replica, bare()))[0] == 503:
                await asyncio.sleep(0.2)
        assert (await ready(replica))["status"] == "ready"
    assert len(await ask(tmp_path / "dispatcher.yaml", "deliveries", "list")) == 4


@pytest.mark.broker
async def test_kafka_offsets_wait_while_flyteadmin_is_unavailable(
    server: LocalFlyteAdmin, broker: Broker, topic: str, tmp_path: Path
) -> None:
    kafka = consuming(broker, topic)
    settings = KafkaConfig(**kafka)
    events = [an_event(name=f"n{number}") for number in range(200)]
    for event in events:
        server.add(a_finished_execution(event.execution))
    async with replica_of(tmp_path, server, kafka=kafka) as replica:
        server.answering.clear()
        await publish(settings, topic, events)
        await asyncio.sleep(3.5)
        await server.stop()
        await asyncio.sleep(3.5)
        assert await ask(tmp_path / "dispatcher.yaml", "deliveries", "list") == []
        assert await committed(broker.bootstrap_servers, settings) == 0
        assert replica.log.count("waiting for FlyteAdmin") < 8
        server.answering.set()
        await server.start()
        async with asyncio.timeout(40):
            while len(await ask(tmp_path / "dispatcher.yaml", "deliveries", "list", "--limit", "1000")) < 800:
                await asyncio.sleep(0.5)
    assert replica.log.count("partitions assigned") == 1
    assert await committed(broker.bootstrap_servers, settings) == 200
    assert await ask(tmp_path / "dispatcher.yaml", "rejected", "list") == []


@pytest.mark.broker
async def test_a_look_up_that_fails_delays_its_batch_and_the_other_look_ups_are_not_repeated(
    server: LocalFlyteAdmin, broker: Broker, topic: str, tmp_path: Path
) -> None:
    kafka = consuming(broker, topic)
    events = [an_event(name=f"n{number}") for number in range(50)]
    for event in events:
        server.add(a_finished_execution(event.execution))
    stuck = str(events[0].execution)
    server.errors_by_name[stuck] = grpc.StatusCode.UNAVAILABLE
    await publish(KafkaConfig(**kafka), topic, events)
    async with replica_of(tmp_path, server, kafka=kafka) as replica:
        async with asyncio.timeout(30):
            while replica.log.count("waiting for FlyteAdmin") < 2:
                await asyncio.sleep(0.2)
        server.errors_by_name.clear()
        async with asyncio.timeout(30):
            while len(await ask(tmp_path / "dispatcher.yaml", "deliveries", "list", "--limit", "1000")) < 200:
                await asyncio.sleep(0.5)
    assert server.lookups_by_execution.pop(stuck) > 2
    assert set(server.lookups_by_execution.values()) == {1}
    assert await committed(broker.bootstrap_servers, KafkaConfig(**kafka)) == 50


@pytest.mark.broker
async def test_a_wrong_secret_delays_the_topic_with_few_token_requests_and_can_be_fixed_without_a_restart(
    broker: Broker, topic: str, tmp_path: Path
) -> None:
    kafka = consuming(broker, topic)
    settings = KafkaConfig(**kafka)
    async with LocalFlyteAdmin(oauth=OAuthServer()) as server:
        assert server.oauth is not None
        events = [an_event(name=f"n{number}") for number in range(20)]
        for event in events:
            server.add(a_finished_execution(event.execution))
        async with replica_of(tmp_path, server, kafka=kafka) as replica:
            (tmp_path / "secret").write_text("expired")
            server.oauth.valid_tokens.clear()
            server.oauth.token_requests.clear()
            await publish(settings, topic, events)
            await asyncio.sleep(5)
            assert 1 <= len(server.oauth.token_requests) <= 8  # waits of 1, 2 and 4 s
            assert "rules.flyte_admin.client_secret: expired" in replica.log
            (tmp_path / "secret").write_text(server.oauth.client_secret)
            async with asyncio.timeout(40):
                while len(await ask(tmp_path / "dispatcher.yaml", "deliveries", "list", "--limit", "100")) < 80:
                    await asyncio.sleep(0.5)
        assert server.oauth.client_secret not in replica.log


async def publish(settings: KafkaConfig, topic: str, events: list[Event]) -> None:
    async with KafkaPublisher(settings) as publisher, asyncio.TaskGroup() as group:
        for event in events:
            message = write(event, Format.FLYTE_V1)
            group.create_task(publisher.send(topic, message.value, key=message.key, headers=list(message.headers)))


def test_the_error_for_a_missing_extra_names_the_extra(tmp_path: Path) -> None:
    file = tmp_path / "dispatcher.yaml"
    settings = {"http": {}, "channels": {"email": {"host": "relay", "sender": "flyte@example.com"}}}
    file.write_text(yaml.safe_dump(settings | {"rules": {"flyte_admin": {"endpoint": "flyte:81"}}}))
    without = "import sys; sys.modules['grpc'] = None; from dispatcher.cli import main; main()"

    def run(command: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", without, command, "--config", str(file)], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    for name in ("check", "serve"):
        status, error = run(name)
        assert (status, "pip install 'flyte-notification-dispatcher[flyte-admin]'" in error) == (1, True), error
        assert "Traceback" not in error
    file.write_text(yaml.safe_dump(settings))
    assert run("check") == (0, "")
