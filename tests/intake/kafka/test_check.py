"""The Kafka findings of `dispatcher check --live`."""

from __future__ import annotations

import pytest

from dispatcher.intake.kafka.check import check
from dispatcher.intake.kafka.config import KafkaConfig
from tests.support.brokers import Broker
from tests.support.brokers.mock import Failure, MockBroker, Request
from tests.support.kafka import config, numbered, publish, reading
from tests.support.service import free_port


async def found(settings: KafkaConfig) -> list[tuple[bool, str]]:
    return [(finding.ok, finding.message) for finding in await check(settings)]


@pytest.mark.broker
async def test_the_findings_name_the_topic_its_newest_message_and_the_groups_lag(broker: Broker, topic: str) -> None:
    settings = config(broker.bootstrap_servers, topic)
    reached, there, lag = await found(settings)
    assert reached == (True, f"{broker.bootstrap_servers} is reached")
    assert there == (
        True,
        f"topic {topic} is there, 4 partitions; no message has come yet: is cloudEvents.enable set in flyteadmin?",
    )
    assert lag[1] == (
        f"group {settings.group_id} has read nothing of {topic} yet; it begins with messages since five minutes before"
        " its first start (kafka.start); the topic has 0 messages"
    )

    await publish(broker.bootstrap_servers, topic, numbered(30))
    async with reading(settings) as reader:
        await reader.count(30)
    for number in numbered(7):  # one by one: the light broker counts a partition's last batch as one message
        await publish(broker.bootstrap_servers, topic, [number])
    _, (_, there_now), (ok, lag_now) = await found(settings)
    assert "; the newest message is of 20" in there_now
    assert (ok, lag_now) == (True, f"group {settings.group_id} is 7 messages behind on {topic}")


@pytest.mark.broker
async def test_a_missing_topic_is_a_problem_and_is_not_created(broker: Broker, topic: str) -> None:
    for _ in range(2):
        _, (ok, text) = await found(config(broker.bootstrap_servers, f"{topic}-missing"))
        assert (ok, "cloudEvents.eventsPublisher.topicName" in text) == (False, True)


async def test_an_unreachable_broker_is_a_problem() -> None:
    ((ok, text),) = await found(config(f"127.0.0.1:{free_port()}", "t"))
    assert (ok, "can't be reached" in text, "kafka.bootstrap_servers" in text) == (False, True, True)


@pytest.mark.parametrize(
    ("request_", "failure", "words"),
    [
        (Request.FETCH, Failure.TOPIC_AUTHORIZATION_FAILED, "topic events may not be read by our user, give it READ"),
        (Request.OFFSET_FETCH, Failure.GROUP_AUTHORIZATION_FAILED, "group group-events may not be used by our user"),
    ],
)
async def test_missing_rights_are_problems(
    mock_broker: MockBroker, request_: Request, failure: Failure, words: str
) -> None:
    mock_broker.create_topic("events")
    await publish(mock_broker.bootstrap_servers, "events", numbered(3))
    mock_broker.fail(request_, failure, times=1000)
    findings = await found(config(mock_broker.bootstrap_servers, "events"))
    assert [words in text for ok, text in findings if not ok] == [True], findings
