"""The Kafka source with a real broker: no message is lost and the source never hangs."""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from structlog.testing import capture_logs

from dispatcher.errors import DispatcherError
from dispatcher.flyte.decode import is_other_type
from dispatcher.intake.kafka.config import KafkaConfig
from dispatcher.intake.kafka.consumer import KafkaSource
from dispatcher.intake.kafka.publisher import KafkaPublisher
from dispatcher.intake.kafka.session import FETCH_BYTES
from dispatcher.intake.source import Batch
from tests.support.brokers import Broker
from tests.support.brokers.apache import PASSWORD, USER, ApacheKafka
from tests.support.brokers.fixtures import make_topic
from tests.support.kafka import Reader, committed, config, joined, numbered, publish, reading
from tests.support.waiting import until

pytestmark = pytest.mark.broker


async def test_skipped_messages_are_counted_and_committed(broker: Broker, topic: str) -> None:
    await publish(broker.bootstrap_servers, topic, numbered(500))
    skipped: list[int] = []
    settings = config(broker.bootstrap_servers, topic)

    async def count(batch: Batch) -> None:
        skipped.append(batch.skipped)

    async with reading(settings, skip=is_other_type, handle=count) as reader:
        await reader.until(lambda: sum(skipped) >= 500)

    assert (sum(skipped), reader.values) == (500, [])
    assert await committed(broker.bootstrap_servers, settings) == 500


async def test_a_backlog_of_skipped_messages_is_read_in_batches_larger_than_one_fetch(
    broker: Broker, topic: str
) -> None:
    await publish(broker.bootstrap_servers, topic, [bytes(1000)] * 4000, linger_ms=20, max_batch_size=64 * 1024)
    skipped: list[int] = []

    async def count(batch: Batch) -> None:
        skipped.append(batch.skipped)

    settings = config(broker.bootstrap_servers, topic)
    async with reading(settings, skip=is_other_type, handle=count) as reader:
        await reader.until(lambda: sum(skipped) >= 4000)

    assert sum(skipped) == 4000
    assert max(skipped) > 4 * FETCH_BYTES / 1000  # four partitions


async def test_the_next_batch_is_read_ahead_and_not_committed_with_the_current_one(broker: Broker, topic: str) -> None:
    await publish(broker.bootstrap_servers, topic, numbered(40))
    settings = config(broker.bootstrap_servers, topic, max_poll_records=10)
    source = KafkaSource(settings)
    batches = source.batches()
    first = await anext(batches)
    async with asyncio.timeout(20):
        while sum((await source.lag()).values()) >= 40 - len(first.messages):
            await asyncio.sleep(0.02)

    await first.commit()
    source.stop()
    assert await anext(batches, None) is None

    assert await committed(broker.bootstrap_servers, settings) == len(first.messages)


async def test_all_partitions_are_read_from_the_beginning_and_committed(broker: Broker, topic: str) -> None:
    await publish(broker.bootstrap_servers, topic, numbered(500))
    settings = config(broker.bootstrap_servers, topic)

    async with reading(settings) as reader:
        await reader.count(500)
        assert await reader.source.unready_reason() is None

    assert sorted(reader.values) == sorted(numbered(500))
    assert len(set(reader.positions)) == 500
    assert await committed(broker.bootstrap_servers, settings) == 500


async def test_uncommitted_messages_are_read_again_after_a_restart(broker: Broker, topic: str) -> None:
    await publish(broker.bootstrap_servers, topic, numbered(20))
    settings = config(broker.bootstrap_servers, topic)
    source = KafkaSource(settings)
    batches = source.batches()
    first = await anext(batches)
    assert first.messages
    source.stop()
    assert await anext(batches, None) is None  # stopped before the batch was committed

    async with reading(settings) as reader:
        await reader.count(20)

    assert sorted(reader.values) == sorted(numbered(20))


async def test_committed_messages_are_not_read_again(broker: Broker, topic: str) -> None:
    settings = config(broker.bootstrap_servers, topic)
    await publish(broker.bootstrap_servers, topic, numbered(20))
    async with reading(settings) as first:
        await first.count(20)
    await publish(broker.bootstrap_servers, topic, numbered(5, start=100))

    async with reading(settings) as second:
        await second.count(5)

    assert sorted(second.values) == sorted(numbered(5, start=100))


async def test_two_consumers_of_one_group_share_the_work_and_lose_nothing(broker: Broker, topic: str) -> None:
    settings = config(broker.bootstrap_servers, topic)
    async with reading(settings) as one:
        await publish(broker.bootstrap_servers, topic, numbered(200))
        await one.count(200)
        async with reading(settings) as other:
            await until(other.source.lag)
            await publish(broker.bootstrap_servers, topic, numbered(400, start=200))
            await one.until(lambda: len({*one.values, *other.values}) >= 600)
            assert other.values
        await publish(broker.bootstrap_servers, topic, numbered(100, start=600))
        await one.until(lambda: len({*one.values, *other.values}) >= 700)

    assert {*one.values, *other.values} == set(numbered(700))


async def test_work_that_began_before_a_rebalance_is_not_committed_after_it(broker: Broker, topic: str) -> None:
    settings = config(broker.bootstrap_servers, topic)
    await publish(broker.bootstrap_servers, topic, numbered(50))
    async with joined(settings) as (session, batch):
        session.on_partitions_revoked([])  # as aiokafka calls it when a member joins
        await batch.commit()
        await session.flush()

        assert session.assignment.offsets_to_commit == {}
    assert await committed(broker.bootstrap_servers, settings) == 0


async def test_while_a_batch_waits_the_consumer_stays_in_the_group_and_loses_nothing(
    broker: Broker, topic: str
) -> None:
    """It waits longer than the session timeout: without heartbeats the group would reassign the partitions."""
    held = False

    async def hold(_: Batch) -> None:
        nonlocal held
        if not held:
            held = True
            await publish(broker.bootstrap_servers, topic, numbered(30, start=30))
            for _second in range(8):
                await reader.source.wait(timedelta(seconds=1))

    await publish(broker.bootstrap_servers, topic, numbered(30))
    with capture_logs() as logs:
        async with reading(config(broker.bootstrap_servers, topic), handle=hold) as reader:
            await reader.count(60)
            assert [entry["event"] for entry in logs].count("partitions assigned") == 1

    assert sorted(reader.values) == sorted(numbered(60))


async def test_messages_that_arrive_while_a_batch_is_processed_join_the_next_batch(broker: Broker, topic: str) -> None:
    """The next batch is read ahead as soon as its first message arrives; later messages are added to it."""
    sizes: list[int] = []

    async def slow(batch: Batch) -> None:
        sizes.append(len(batch.messages))
        if len(sizes) == 1:
            for number in range(1, 6):
                await publish(broker.bootstrap_servers, topic, numbered(1, start=number))
            await asyncio.sleep(1)

    await publish(broker.bootstrap_servers, topic, numbered(1))
    async with reading(config(broker.bootstrap_servers, topic), handle=slow) as reader:
        await reader.count(6)

    assert sizes[0] == 1
    assert sizes[1] > 1
    assert sorted(reader.values) == sorted(numbered(6))


@pytest.mark.parametrize("rest", [timedelta(seconds=4), timedelta()])
async def test_after_a_batch_of_few_messages_the_next_batch_has_all_messages_of_the_rest(
    broker: Broker, topic: str, rest: timedelta
) -> None:
    sizes: list[int] = []

    async def note(batch: Batch) -> None:
        sizes.append(len(batch.messages))

    source = KafkaSource(config(broker.bootstrap_servers, topic), rest=rest)
    async with reading(source, handle=note) as reader:
        await publish(broker.bootstrap_servers, topic, numbered(1))
        await reader.count(1)
        for number in range(1, 6):
            await publish(broker.bootstrap_servers, topic, numbered(1, start=number))
        await reader.count(6)

    assert sizes == [1, 5] if rest else len(sizes) > 2


async def test_neither_a_message_after_a_silence_nor_a_backlog_waits_for_a_rest(broker: Broker, topic: str) -> None:
    source = KafkaSource(config(broker.bootstrap_servers, topic, max_poll_records=200), rest=timedelta(seconds=1))
    async with reading(source) as reader:
        await publish(broker.bootstrap_servers, topic, numbered(1))
        await reader.count(1)
        await asyncio.sleep(1.2)
        began = time.monotonic()
        await publish(broker.bootstrap_servers, topic, numbered(1, start=1))
        await reader.count(2)
        assert time.monotonic() - began < 1

        await asyncio.sleep(1.2)
        began = time.monotonic()
        await publish(broker.bootstrap_servers, topic, numbered(2000, start=2), linger_ms=20)
        await reader.count(2002)
        assert time.monotonic() - began < 4  # ten batches; a rest after each would take ten seconds


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_batches_are_read(broker: Broker, topic: str, codec: str) -> None:
    await publish(broker.bootstrap_servers, topic, numbered(50), compression_type=codec)

    async with reading(config(broker.bootstrap_servers, topic)) as reader:
        await reader.count(50)

    assert sorted(reader.values) == sorted(numbered(50))


async def test_a_large_message_does_not_stop_the_others(apache: ApacheKafka) -> None:
    await make_topic(apache.bootstrap_servers, "large", partitions=1, **{"max.message.bytes": str(12 * 2**20)})
    values = [b"before", b"x" * 10 * 2**20, b"after"]
    for value in values:
        await publish(apache.bootstrap_servers, "large", [value], max_request_size=16 * 2**20)

    async with reading(config(apache.bootstrap_servers, "large")) as reader:
        await reader.count(3)

    assert reader.values == values


async def test_a_topic_that_appears_later_is_found(apache: ApacheKafka) -> None:
    async with reading(config(apache.bootstrap_servers, "appears-later")) as reader:
        await asyncio.sleep(1)
        assert "appears-later" in (await reader.source.unready_reason() or "")
        await make_topic(apache.bootstrap_servers, "appears-later")
        await publish(apache.bootstrap_servers, "appears-later", numbered(10))
        await reader.count(10)


async def test_messages_that_expired_unread_are_logged_and_reading_continues(
    apache: ApacheKafka, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(apache.bootstrap_servers, topic)
    await publish(apache.bootstrap_servers, topic, numbered(40))
    async with reading(settings) as reader:
        await reader.count(40)
    await publish(apache.bootstrap_servers, topic, numbered(400, start=40))
    admin = AIOKafkaAdminClient(bootstrap_servers=apache.bootstrap_servers)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, number): RecordsToDelete(60) for number in range(4)})
    await admin.close()

    async with reading(settings) as later:
        await later.count(200)

    assert all(int(position.rpartition("@")[2]) >= 60 for position in later.positions)
    assert "messages expired before they were read" in capsys.readouterr().out


@pytest.mark.slow
async def test_a_killed_broker_shows_within_the_session_timeout_and_loses_no_message(
    apache: ApacheKafka, topic: str
) -> None:
    settings = config(apache.bootstrap_servers, topic)
    async with reading(settings) as reader:
        await publish(apache.bootstrap_servers, topic, numbered(50))
        await reader.count(50)
        assert await reader.source.unready_reason() is None
        apache.halt(signal.SIGKILL)
        async with asyncio.timeout(settings.session_timeout.total_seconds()):
            while "the brokers do not answer" not in (await reader.source.unready_reason() or ""):
                await asyncio.sleep(0.02)
        apache.start()
        await publish(apache.bootstrap_servers, topic, numbered(50, start=50))
        await reader.until(lambda: set(reader.values) == set(numbered(100)), seconds=60)


@pytest.mark.slow
async def test_a_stop_while_the_broker_is_down_does_not_hang(topic: str, apache: ApacheKafka) -> None:
    source = KafkaSource(config("127.0.0.1:9", topic))
    task = asyncio.create_task(Reader(source).run())
    await asyncio.sleep(2)
    assert await source.unready_reason() is not None

    source.stop()

    async with asyncio.timeout(35):
        await task


def _corrupt(log: Path, marker: bytes) -> None:
    content = bytearray(log.read_bytes())
    at = content.index(marker)
    content[at] ^= 0xFF
    log.write_bytes(content)


@pytest.mark.slow
async def test_a_corrupt_record_is_undecodable_and_its_neighbours_are_read(apache: ApacheKafka) -> None:
    await make_topic(apache.bootstrap_servers, "corrupt", partitions=1)
    for value in (b"one", b"two-to-be-broken", b"three"):
        await publish(apache.bootstrap_servers, "corrupt", [value])
    apache.halt()
    _corrupt(apache.folder / "data" / "corrupt-0" / "00000000000000000000.log", b"two-to-be-broken")
    apache.start()

    async with reading(config(apache.bootstrap_servers, "corrupt")) as reader:
        await reader.until(lambda: b"three" in reader.values)

    assert reader.values == [b"one", b"three"]
    assert reader.undecodable == [("corrupt/0@1", "corrupt record: its checksum does not fit its bytes")]


@pytest.mark.parametrize(
    ("protocol", "mechanism"),
    [
        ("SSL", "PLAIN"),
        ("SASL_PLAINTEXT", "PLAIN"),
        ("SASL_PLAINTEXT", "SCRAM-SHA-256"),
        ("SASL_SSL", "PLAIN"),
        ("SASL_SSL", "SCRAM-SHA-512"),
    ],
)
async def test_every_security_protocol_connects(apache: ApacheKafka, topic: str, protocol: str, mechanism: str) -> None:
    security: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        security["ca_file"] = apache.ca_file
    if protocol.startswith("SASL"):
        security |= {"sasl_mechanism": mechanism, "username": USER, "password": PASSWORD}
    settings = config(apache.address(protocol), topic, **security)
    async with KafkaPublisher(settings) as publisher:
        sent = await publisher.send(topic, b"hello", key=b"k", headers=[("a", b"b")])

    async with reading(settings) as reader:
        await reader.count(1)

    assert reader.positions == [sent]
    assert PASSWORD not in repr(settings)


async def test_a_wrong_password_raises_an_error_that_names_authentication_and_not_the_password(
    apache: ApacheKafka, topic: str
) -> None:
    wrong = config(
        apache.address("SASL_PLAINTEXT"), topic, security_protocol="SASL_PLAINTEXT", username=USER, password="wrong-one"
    )
    with pytest.raises(DispatcherError, match=r"Authentication|SASL|authenticat") as caught:
        async with KafkaPublisher(wrong):
            pass

    assert "wrong-one" not in str(caught.value)


def test_a_sasl_protocol_without_a_password_is_refused() -> None:
    with pytest.raises(ValueError, match="SASL_SSL needs username and password"):
        KafkaConfig(bootstrap_servers="a:1", security_protocol="SASL_SSL")
