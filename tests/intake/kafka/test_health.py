"""Silent brokers, and two replicas with one static membership, show in /readyz and in the log."""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import timedelta

import pytest
from aiokafka import TopicPartition

from dispatcher.intake.kafka.config import KafkaConfig
from dispatcher.intake.kafka.consumer import KafkaSource
from dispatcher.intake.kafka.health import StaticMembership
from tests.support.brokers.apache import ApacheKafka
from tests.support.kafka import Reader, config, numbered, publish, reading

pytestmark = pytest.mark.broker


def quick(settings: KafkaConfig) -> KafkaConfig:
    return settings.model_copy(update={"session_timeout": timedelta(seconds=2)})


async def until_unready(source: KafkaSource, text: str, seconds: float) -> float:
    """Wait until the reason has this text. Returns how long that took, in seconds."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while text not in (await source.unready_reason() or ""):
            await asyncio.sleep(0.02)
    return time.monotonic() - began


async def until_ready(source: KafkaSource, seconds: float = 40) -> None:
    async with asyncio.timeout(seconds):
        while await source.unready_reason() is not None:
            await asyncio.sleep(0.02)


async def test_a_frozen_broker_shows_within_the_session_timeout(
    apache: ApacheKafka, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = quick(config(apache.bootstrap_servers, topic))
    async with reading(settings) as reader:
        await until_ready(reader.source)
        apache.signal(signal.SIGSTOP)
        assert await until_unready(reader.source, "the brokers do not answer: no answer in time", 20) < 2
        assert "Kafka's brokers do not answer" in capsys.readouterr().out
        apache.signal(signal.SIGCONT)
        await until_ready(reader.source)
        await publish(apache.bootstrap_servers, topic, numbered(5))
        await reader.count(5)


async def test_two_replicas_with_one_group_instance_id_are_named(
    apache: ApacheKafka, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = quick(config(apache.bootstrap_servers, topic, group_instance_id="dispatcher-0"))
    async with reading(settings) as one:
        await until_ready(one.source)
        second = Reader(KafkaSource(settings))
        task = asyncio.create_task(second.run())
        for source in (one.source, second.source):
            await until_unready(source, "another replica seems to have kafka.group_instance_id 'dispatcher-0' too", 20)
        second.source.stop()
        await task
        await until_ready(one.source, seconds=20)
        await publish(apache.bootstrap_servers, topic, numbered(5))
        await one.count(5)
    assert "two replicas have one kafka.group_instance_id" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("partitions", "every", "named"),
    [
        ([{1, 2}] * 4, 1.0, True),
        ([{1, 2}] * 4, 9.0, False),  # slower than heartbeats: the session timeout is 15 s
        ([{1, 2, 3, 4}, {1, 2}, {1}, {1, 2}, {1, 2, 3, 4}], 1.0, False),  # other replicas come and go
        ([set()] * 4, 1.0, False),  # more replicas than partitions
    ],
)
def test_other_rebalances_are_no_sign_of_a_second_replica(
    partitions: list[set[int]], every: float, named: bool
) -> None:
    membership = StaticMembership("dispatcher-0", session_timeout=15.0)
    for number, assigned in enumerate(partitions):
        membership.assigned([TopicPartition("t", partition) for partition in assigned], number * every)
    assert (membership.problem(every * len(partitions)) is not None) is named
