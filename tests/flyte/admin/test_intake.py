"""The running dispatcher with FlyteAdmin as its source of rules: nothing lost while it is away, nothing asked in vain."""

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

from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin, Login
from dispatcher.flyte.encode import EncodedMessage, Format, write
from dispatcher.intake.kafka.consumer import KafkaConfig, KafkaPublisher
from dispatcher.model.event import Event, Options
from tests.intake.kafka.test_consumer import committed
from tests.support.brokers import Broker
from tests.support.builders import a_notification, an_event, an_execution
from tests.support.flyte_admin import an_ended
from tests.support.service import Replica, ask, command, serving

ALL = (
    "launch_plan: {project: flytesnacks, domain: production, name: '*'}\n"
    "notifications: [{phases: [FAILED], email: {recipients_email: [from-file@example.com]}}]"
)


@pytest.fixture
async def server() -> AsyncIterator[LocalFlyteAdmin]:
    async with LocalFlyteAdmin() as opened:
        yield opened


@asynccontextmanager
async def dispatching(folder: Path, server: LocalFlyteAdmin, **settings: Any) -> AsyncIterator[Replica]:
    """A replica that asks the server."""
    admin: dict[str, Any] = {"endpoint": server.endpoint, "insecure": True, "timeout": "1s"}
    if server.login is not None:
        (folder / "secret").write_text(server.login.client_secret)
        admin |= {"client_id": server.login.client_id, "client_secret_file": "./secret"}
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
        said: dict[str, Any] = await answer.json()
        return said


def bare(name: str = an_execution().name) -> EncodedMessage:
    """A failure as Flyte tells it by default: it names no launch plan."""
    return write(an_event(name=name), Format.FLYTE_V1)


def consuming(broker: Broker, topic: str) -> dict[str, Any]:
    return {
        "bootstrap_servers": broker.bootstrap_servers,
        "topics": [topic],
        "group_id": f"group-{topic}",
        "session_timeout": "3s",
    }


async def test_a_bare_failure_is_told_to_whom_flyteadmin_names(server: LocalFlyteAdmin, tmp_path: Path) -> None:
    server.add(an_ended())
    async with dispatching(tmp_path, server) as replica:
        status, answer, _ = await post(replica, bare())
    assert (status, answer["status"], answer["verdict"], len(answer["deliveries"])) == (202, "recorded", "matched", 4)
    deliveries = await ask(tmp_path / "dispatcher.yaml", "deliveries", "list")
    assert sorted(recipient for entry in deliveries for recipient in entry["recipients"]) == [
        "#dev-alerts",
        "dev-team@example.com",
        "on-call@example.com",
        "pagerduty-service-key@example.com",
    ]


async def test_an_event_that_decides_for_itself_asks_nobody(server: LocalFlyteAdmin, tmp_path: Path) -> None:
    own = Options(notifications=(a_notification("own@example.com"),))
    async with dispatching(tmp_path, server) as replica:
        for number, options in enumerate((own, Options(disable_notifications=True))):
            _, answer, _ = await post(replica, write(an_event(name=f"n{number}", options=options), Format.NATIVE))
            assert answer["verdict"] == ("matched", "disabled")[number]
    assert server.asked["GetExecution"] == 0


async def test_files_serve_what_flyteadmin_does_not_know_and_nothing_else(
    server: LocalFlyteAdmin, tmp_path: Path
) -> None:
    server.add(an_ended())
    (tmp_path / "all.yaml").write_text(ALL)
    admin = {"endpoint": server.endpoint, "insecure": True}
    async with dispatching(tmp_path, server, rules={"flyte_admin": admin, "launch_plans": ["./all.yaml"]}) as replica:
        _, known, _ = await post(replica, bare())
        _, unknown, _ = await post(replica, bare("stranger"))
    assert (len(known["deliveries"]), len(unknown["deliveries"])) == (4, 1)
    assert "the rules of flytesnacks/production/* (FlyteAdmin doesn't know execution" in unknown["reason"]
    recipients = [entry["recipients"] for entry in await ask(tmp_path / "dispatcher.yaml", "deliveries", "list")]
    assert recipients.count(["from-file@example.com"]) == 1


async def test_an_execution_that_flyteadmin_does_not_know_is_rejected_and_can_be_replayed(
    server: LocalFlyteAdmin, tmp_path: Path
) -> None:
    server.forbidden.add(str(an_execution("hidden")))
    async with dispatching(tmp_path, server) as replica:
        for name, words in ((an_execution().name, "FlyteAdmin doesn't know"), ("hidden", "doesn't let us see")):
            status, answer, _ = await post(replica, bare(name))
            assert (status, answer["status"]) == (202, "rejected")
            assert words in answer["reason"]
    config = str(tmp_path / "dispatcher.yaml")
    assert "0 understood now" in (await command("rejected", "replay", "--all", "--config", config))[1]
    server.add(an_ended())
    status, out, _ = await command("rejected", "replay", "--all", "--config", config)
    assert (status, "1 understood now" in out) == (0, True)
    await server.stop()
    status, _, err = await command("rejected", "replay", "--all", "--config", config)
    assert (status, "rules.flyte_admin.endpoint" in err, "Traceback" in err) == (1, True, False)


async def test_publishers_are_asked_to_come_again_while_flyteadmin_is_away(
    server: LocalFlyteAdmin, tmp_path: Path
) -> None:
    server.add(an_ended())
    async with dispatching(tmp_path, server) as replica:
        await server.stop()
        status, answer, again = await post(replica, bare())
        assert (status, answer["reason"], again) == (503, "FlyteAdmin is away; nothing was recorded", "5")
        assert "rules.flyte_admin.endpoint" in (await ready(replica))["why"]["flyte_admin"]
        await server.start()
        async with asyncio.timeout(20):
            while (await post(replica, bare()))[0] == 503:
                await asyncio.sleep(0.2)
        assert (await ready(replica))["status"] == "ready"
    assert len(await ask(tmp_path / "dispatcher.yaml", "deliveries", "list")) == 4


@pytest.mark.broker
async def test_kafka_waits_while_flyteadmin_is_away_and_keeps_its_place(
    server: LocalFlyteAdmin, broker: Broker, topic: str, tmp_path: Path
) -> None:
    kafka = consuming(broker, topic)
    settings = KafkaConfig(**kafka)
    events = [an_event(name=f"n{number}") for number in range(200)]
    for event in events:
        server.add(an_ended(event.execution))
    async with dispatching(tmp_path, server, kafka=kafka) as replica:
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
async def test_one_look_up_that_waits_holds_its_batch_and_the_others_are_not_asked_again(
    server: LocalFlyteAdmin, broker: Broker, topic: str, tmp_path: Path
) -> None:
    kafka = consuming(broker, topic)
    events = [an_event(name=f"n{number}") for number in range(50)]
    for event in events:
        server.add(an_ended(event.execution))
    stuck = str(events[0].execution)
    server.broken[stuck] = grpc.StatusCode.UNAVAILABLE
    await publish(KafkaConfig(**kafka), topic, events)
    async with dispatching(tmp_path, server, kafka=kafka) as replica:
        async with asyncio.timeout(30):
            while replica.log.count("waiting for FlyteAdmin") < 2:
                await asyncio.sleep(0.2)
        server.broken.clear()
        async with asyncio.timeout(30):
            while len(await ask(tmp_path / "dispatcher.yaml", "deliveries", "list", "--limit", "1000")) < 200:
                await asyncio.sleep(0.5)
    assert server.looked_up.pop(stuck) > 2
    assert set(server.looked_up.values()) == {1}
    assert await committed(broker.bootstrap_servers, KafkaConfig(**kafka)) == 50


@pytest.mark.broker
async def test_a_wrong_secret_holds_the_topic_up_without_hammering_and_is_mended_while_running(
    broker: Broker, topic: str, tmp_path: Path
) -> None:
    kafka = consuming(broker, topic)
    settings = KafkaConfig(**kafka)
    async with LocalFlyteAdmin(login=Login()) as server:
        assert server.login is not None
        events = [an_event(name=f"n{number}") for number in range(20)]
        for event in events:
            server.add(an_ended(event.execution))
        async with dispatching(tmp_path, server, kafka=kafka) as replica:
            (tmp_path / "secret").write_text("expired")
            server.login.valid.clear()
            server.login.requested.clear()
            await publish(settings, topic, events)
            await asyncio.sleep(5)
            assert 1 <= len(server.login.requested) <= 8  # waits of 1, 2 and 4 s
            assert "rules.flyte_admin.client_secret: expired" in replica.log
            (tmp_path / "secret").write_text(server.login.client_secret)
            async with asyncio.timeout(40):
                while len(await ask(tmp_path / "dispatcher.yaml", "deliveries", "list", "--limit", "100")) < 80:
                    await asyncio.sleep(0.5)
        assert server.login.client_secret not in replica.log


async def publish(settings: KafkaConfig, topic: str, events: list[Event]) -> None:
    async with KafkaPublisher(settings) as publisher, asyncio.TaskGroup() as group:
        for event in events:
            message = write(event, Format.FLYTE_V1)
            group.create_task(publisher.send(topic, message.value, key=message.key, headers=list(message.headers)))


def test_without_the_extra_the_settings_say_which_one_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "dispatcher.yaml"
    file.write_text(yaml.safe_dump({"http": {}, "rules": {"flyte_admin": {"endpoint": "flyte:81"}}}))
    without = "import sys; sys.modules['grpc'] = None; from dispatcher.cli import main; main()"

    def run(command: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", without, command, "--config", str(file)], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    for name in ("check", "serve"):
        status, said = run(name)
        assert (status, "pip install 'flyte-notification-dispatcher[flyte-admin]'" in said) == (1, True), said
        assert "Traceback" not in said
    file.write_text(yaml.safe_dump({"http": {}}))
    assert run("check") == (0, "")
