"""Known pitfalls of aiokafka: corrupt data, stalls, frozen brokers and rebalances lose no message."""

from __future__ import annotations

import asyncio
import signal
import struct
import time
from datetime import timedelta
from pathlib import Path

import certifi
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.record.util import calc_crc32c_py
from structlog.testing import capture_logs

from dispatcher.intake.kafka.config import KafkaConfig
from dispatcher.intake.kafka.consumer import KafkaSource
from dispatcher.intake.source import Batch
from tests.support.brokers import Broker
from tests.support.brokers.apache import PASSWORD, USER, ApacheKafka
from tests.support.brokers.fixtures import make_topic
from tests.support.brokers.mock import Failure, MockBroker, Request
from tests.support.kafka import Reader, committed, config, connections, joined, numbered, offsets, publish, reading
from tests.support.waiting import until

pytestmark = pytest.mark.broker


@pytest.fixture
def mock_topic(mock_broker: MockBroker) -> str:
    mock_broker.create_topic("events")
    return "events"


async def publish_batch(servers: str, partition: TopicPartition, values: list[bytes], header: str = "ce_type") -> None:
    """Publish one record batch, which the broker stores as it is."""
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
        batch = producer.create_batch()
        for value in values:
            batch.append(key=None, value=value, timestamp=None, headers=[(header, b"x")])
        await (await producer.send_batch(batch, partition.topic, partition=partition.partition))


def segment(apache: ApacheKafka, partition: TopicPartition) -> Path:
    return apache.folder / "data" / f"{partition.topic}-{partition.partition}" / f"{0:020}.log"


def tamper(log: Path, old: bytes, new: bytes, *, sealed: bool) -> None:
    """Change a running broker's log file; `sealed` corrects the batch's checksum."""
    content = bytearray(log.read_bytes())
    at = content.index(old)
    content[at : at + len(old)] = new
    if sealed:
        start = 0
        while (length := struct.unpack_from(">i", content, start + 8)[0]) + start + 12 <= at:
            start += length + 12
        checksum = calc_crc32c_py(bytes(content[start + 21 : start + 12 + length]))
        struct.pack_into(">I", content, start + 17, checksum)
    with log.open("r+b") as file:
        file.write(content)


async def test_a_corrupt_batch_loses_its_own_records_only(apache: ApacheKafka, topic: str) -> None:
    """When aiokafka raises for one partition, it has already taken the others' records out of its buffers."""
    for number in range(4):
        for part in range(3):
            await publish_batch(
                apache.bootstrap_servers,
                TopicPartition(topic, number),
                [f"{number}-{part}-{n}".encode() for n in range(20)],
            )
    tamper(segment(apache, TopicPartition(topic, 2)), b"2-1-7", b"2-X-7", sealed=False)

    async with reading(config(apache.bootstrap_servers, topic)) as reader:
        await reader.until(lambda: len(reader.values) + len(reader.undecodable) >= 240)

    lost = {f"{topic}/2@{offset}" for offset in range(20, 40)}
    assert {where for where, _ in reader.undecodable} == lost
    assert len(set(reader.positions)) == 220
    assert len(reader.positions) == 220


async def test_a_record_whose_header_name_is_not_utf8_is_undecodable(apache: ApacheKafka, topic: str) -> None:
    partition = TopicPartition(topic, 1)
    for value, header in ((b"one", "ce_type"), (b"two", "bad_type"), (b"three", "ce_type")):
        await publish_batch(apache.bootstrap_servers, partition, [value], header)
    tamper(segment(apache, partition), b"bad_type", b"b\xffd_type", sealed=True)

    async with reading(config(apache.bootstrap_servers, topic)) as reader:
        await reader.until(lambda: len(reader.values) + len(reader.undecodable) >= 3)

    assert reader.values == [b"one", b"three"]
    assert reader.undecodable == [(f"{topic}/1@1", "unreadable record: the name of a header is not UTF-8")]


async def test_undecodable_records_are_committed_with_the_rest(apache: ApacheKafka, topic: str) -> None:
    partition = TopicPartition(topic, 0)
    for value in (b"one", b"two-is-last"):
        await publish_batch(apache.bootstrap_servers, partition, [value])
    tamper(segment(apache, partition), b"two-is", b"TWO-is", sealed=False)
    settings = config(apache.bootstrap_servers, topic)

    async with reading(settings) as reader:
        await reader.until(lambda: len(reader.undecodable) == 1)

    assert await offsets(apache.bootstrap_servers, settings.group_id, topic) == [2]


async def test_a_server_error_to_a_heartbeat_replaces_the_consumer_and_loses_nothing(
    mock_broker: MockBroker, mock_topic: str
) -> None:
    with capture_logs() as logs:
        async with reading(config(mock_broker.bootstrap_servers, mock_topic)) as reader:
            await publish(mock_broker.bootstrap_servers, mock_topic, numbered(5))
            await reader.count(5)
            mock_broker.fail(Request.HEARTBEAT, Failure.UNKNOWN_SERVER_ERROR)
            await until(lambda: connections(logs) == 2)
            await publish(mock_broker.bootstrap_servers, mock_topic, numbered(5, start=5))
            await reader.count(10)

    assert set(reader.values) == set(numbered(10))
    assert "heartbeat" in str(logs)


async def test_a_consumer_that_gets_no_messages_is_replaced(mock_broker: MockBroker, mock_topic: str) -> None:
    settings = config(mock_broker.bootstrap_servers, mock_topic, stall_timeout="2s")
    with capture_logs() as logs:
        async with reading(settings) as reader:
            await publish(mock_broker.bootstrap_servers, mock_topic, numbered(1))
            await reader.count(1)
            mock_broker.fail(Request.FETCH, Failure.UNKNOWN_SERVER_ERROR, times=10_000)
            await publish(mock_broker.bootstrap_servers, mock_topic, numbered(1, start=1))
            await until(lambda: connections(logs) == 2)
            mock_broker.clear(Request.FETCH)
            await until(lambda: b"1" in reader.values)


async def test_a_running_commit_is_cancelled_when_a_rebalance_begins(mock_broker: MockBroker, mock_topic: str) -> None:
    """If it were repeated in the next generation, the broker would accept it and set back the partition's new owner."""
    settings = config(mock_broker.bootstrap_servers, mock_topic)
    await publish(mock_broker.bootstrap_servers, mock_topic, numbered(5))
    async with joined(settings) as (session, batch):
        mock_broker.fail(Request.OFFSET_COMMIT, Failure.NOT_COORDINATOR, times=10_000)
        await batch.commit()
        before = session.assignment
        flush = asyncio.create_task(session.flush())
        await asyncio.sleep(0.1)
        assert not flush.done(), "aiokafka repeats the commit"

        mock_broker.fail(Request.HEARTBEAT, Failure.REBALANCE_IN_PROGRESS)
        await until(lambda: session.assignment is not before and session.assignment.joined)
        mock_broker.clear(Request.OFFSET_COMMIT)

        async with asyncio.timeout(5):
            await flush
        assert await offsets(mock_broker.bootstrap_servers, settings.group_id, mock_topic) == [0], "where it began"


async def test_a_late_commit_does_not_set_the_group_back(broker: Broker, topic: str) -> None:
    settings = config(broker.bootstrap_servers, topic, max_poll_records=10)
    await publish(broker.bootstrap_servers, topic, numbered(40))
    async with joined(settings) as (slow, late):
        async with reading(settings) as other:  # gets some partitions and reads them to their end
            await other.until(lambda: bool(other.values))
            assert 0 < len(slow.consumer.assignment()) < 4
            await asyncio.sleep(1)
        before = await offsets(broker.bootstrap_servers, settings.group_id, topic, 4)
        await until(lambda: len(slow.consumer.assignment()) == 4)

        await late.commit()  # all four partitions are assigned again, but this batch is older
        await slow.flush()

        assert await offsets(broker.bootstrap_servers, settings.group_id, topic, 4) == before


async def test_a_batch_in_process_does_not_delay_a_rebalance_or_leave_the_group(broker: Broker, topic: str) -> None:
    """Longer than the session timeout, without a call to the source."""
    settings = config(broker.bootstrap_servers, topic).model_copy(update={"session_timeout": timedelta(seconds=2)})
    await publish(broker.bootstrap_servers, topic, numbered(20))
    async with joined(settings) as (session, _):
        before = session.assignment

        await asyncio.sleep(5)

        assert session.assignment is before
        async with reading(settings):
            await until(lambda: len(session.consumer.assignment()) == 2)
        coordinator = session.consumer._coordinator  # noqa: SLF001 - its limit is five minutes unless we set another
        assert coordinator._max_poll_interval > timedelta(days=365).total_seconds()  # noqa: SLF001


async def test_an_event_loop_blocked_longer_than_the_session_timeout_recovers(broker: Broker, topic: str) -> None:
    settings = config(broker.bootstrap_servers, topic).model_copy(update={"session_timeout": timedelta(seconds=1)})
    blocked = False

    async def block(_: Batch) -> None:
        nonlocal blocked
        if not blocked:
            blocked = True
            time.sleep(3)  # noqa: ASYNC251 - the test blocks the event loop on purpose

    await publish(broker.bootstrap_servers, topic, numbered(20))
    async with reading(settings, handle=block) as reader:
        await reader.count(20)
        await publish(broker.bootstrap_servers, topic, numbered(20, start=20))
        await until(lambda: set(reader.values) == set(numbered(40)))

        async def all_committed() -> bool:
            return await committed(broker.bootstrap_servers, settings) == 40

        await until(all_committed)


async def test_a_recreated_topic_is_read_from_its_beginning(apache: ApacheKafka, topic: str) -> None:
    settings = config(apache.bootstrap_servers, topic)
    for part in range(4):  # more in each than later: an offset that the new topic has too would not be noticed
        old = numbered(10, start=10 * part)
        await publish_batch(apache.bootstrap_servers, TopicPartition(topic, part), old)
    async with reading(settings) as reader:
        await reader.count(40)
    before = await offsets(apache.bootstrap_servers, settings.group_id, topic, 4)
    admin = AIOKafkaAdminClient(bootstrap_servers=apache.bootstrap_servers)
    await admin.start()
    await admin.delete_topics([topic])
    async with asyncio.timeout(20):
        while topic in await admin.list_topics():
            await asyncio.sleep(0.05)
    await admin.close()
    await make_topic(apache.bootstrap_servers, topic)
    consumer = AIOKafkaConsumer(bootstrap_servers=apache.bootstrap_servers, group_id=settings.group_id)
    await consumer.start()  # the group still has its committed offsets
    consumer.assign([TopicPartition(topic, number) for number in range(4)])
    await consumer.commit({TopicPartition(topic, n): offset for n, offset in enumerate(before) if offset})
    await consumer.stop()
    await publish(apache.bootstrap_servers, topic, numbered(4, start=100))

    async with reading(settings) as reader:
        await reader.until(lambda: set(reader.values) == set(numbered(4, start=100)))
    assert sum(offset or 0 for offset in await offsets(apache.bootstrap_servers, settings.group_id, topic, 4)) < 40


async def test_an_expired_offset_beside_partitions_without_an_offset_stops_nothing(
    apache: ApacheKafka, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(apache.bootstrap_servers, topic)
    for part in range(4):
        values = numbered(10, start=10 * part)
        await publish_batch(apache.bootstrap_servers, TopicPartition(topic, part), values[:5])
        await publish_batch(apache.bootstrap_servers, TopicPartition(topic, part), values[5:])
    options = {"group_id": settings.group_id, "enable_auto_commit": False}
    consumer = AIOKafkaConsumer(bootstrap_servers=apache.bootstrap_servers, **options)
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])
    await consumer.commit({TopicPartition(topic, 0): 2})
    await consumer.stop()
    admin = AIOKafkaAdminClient(bootstrap_servers=apache.bootstrap_servers)
    await admin.start()
    await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(5)})
    await admin.close()

    async with reading(settings) as reader:
        await reader.until(lambda: set(reader.values) == set(numbered(35, start=5)))

    log = capsys.readouterr().out
    assert "missed=3" in log
    assert "Kafka failed" not in log


async def test_a_frozen_broker_does_not_prevent_a_stop(apache: ApacheKafka, topic: str) -> None:
    settings = config(apache.bootstrap_servers, topic)
    await publish(apache.bootstrap_servers, topic, numbered(5))
    reader = Reader(KafkaSource(settings))
    task = asyncio.create_task(reader.run())
    await reader.count(5)
    apache.signal(signal.SIGSTOP)
    try:
        reader.source.stop()
        async with asyncio.timeout(15):
            await task
    finally:
        apache.signal(signal.SIGCONT)
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, 40)


async def refused(reader: Reader) -> bool:
    """True if the source says that its login failed."""
    return "refused the login" in (await reader.source.unready_reason() or "")


async def test_the_unready_reason_names_the_failed_login_and_not_the_password(
    apache: ApacheKafka, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"security_protocol": "SASL_PLAINTEXT", "username": USER, "password": f"not-{PASSWORD}"}
    async with reading(config(apache.address("SASL_PLAINTEXT"), topic, **wrong)) as reader:
        await until(lambda: refused(reader))
    assert PASSWORD not in capsys.readouterr().out


async def test_a_replaced_password_file_is_used_by_the_next_connection(
    apache: ApacheKafka, topic: str, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(f"not-{PASSWORD}")
    security = {"security_protocol": "SASL_PLAINTEXT", "username": USER, "password_file": file}
    await publish_batch(apache.bootstrap_servers, TopicPartition(topic, 0), numbered(1))
    async with reading(config(apache.address("SASL_PLAINTEXT"), topic, **security)) as reader:
        await until(lambda: refused(reader))
        file.write_text(f"{PASSWORD}\n")
        await reader.count(1)


async def test_lag_counts_unread_messages(broker: Broker, topic: str, apache: ApacheKafka) -> None:
    settings = config(broker.bootstrap_servers, topic, max_poll_records=1)
    await publish_batch(broker.bootstrap_servers, TopicPartition(topic, 1), numbered(20))
    source = KafkaSource(settings)
    batches = source.batches()
    await anext(batches)
    async with asyncio.timeout(20):  # one message is in process and one is read ahead
        while (lag := await source.lag())[(topic, 1)] != 18:
            await asyncio.sleep(0.02)
    assert lag == {(topic, 0): 0, (topic, 1): 18, (topic, 2): 0, (topic, 3): 0}
    source.stop()
    await anext(batches, None)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"password": "x", "username": "u"}, "PLAINTEXT logs nobody in"),
        ({"security_protocol": "SASL_PLAINTEXT", "username": "u"}, "needs username and password"),
        ({"security_protocol": "SSL", "key_file": __file__}, "key_file needs cert_file"),
        ({"ca_file": certifi.where()}, "PLAINTEXT encrypts nothing"),
        ({"security_protocol": "SSL", "ca_file": "/nowhere/ca.pem"}, "no such file: /nowhere/ca.pem"),
        ({"topics": []}, "topics"),
        ({"bootstrap_server": "a:1"}, "bootstrap_server"),
    ],
)
def test_contradictory_settings_are_refused(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        KafkaConfig.model_validate({"bootstrap_servers": "a:1"} | given)
