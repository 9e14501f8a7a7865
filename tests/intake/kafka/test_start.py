"""Where reading begins without a committed offset, which messages are skipped, and what is said about it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from dispatcher.errors import LedgerUnavailable
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.kafka.check import check
from dispatcher.intake.kafka.config import KafkaConfig
from dispatcher.intake.kafka.consumer import KafkaSource
from dispatcher.intake.kafka.start import CompleteSince, StartPosition, start_positions
from dispatcher.ledger import Ledger
from tests.support.brokers import Broker
from tests.support.brokers.apache import ApacheKafka
from tests.support.brokers.fixtures import make_topic
from tests.support.builders import a_launch_plan, an_event, an_execution
from tests.support.kafka import Reader, config, numbered, publish
from tests.support.running import running

pytestmark = pytest.mark.broker

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


async def publish_at(servers: str, topic: str, at: datetime, values: list[bytes], partition: int = 0) -> None:
    """Publish messages with Kafka's timestamp `at`."""
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
        for value in values:
            milliseconds = int(at.timestamp() * 1000)
            await producer.send_and_wait(topic, value, partition=partition, timestamp_ms=milliseconds)


class Counts(dict[str, int]):
    def add(self, reason: str, number: int) -> None:
        self[reason] = self.get(reason, 0) + number


async def read(
    settings: KafkaConfig, until: set[bytes], since: datetime | CompleteSince = NOW, counts: Counts | None = None
) -> list[bytes]:
    """Read until the values have arrived, and return everything that was read."""

    async def complete_since() -> datetime:
        return since if isinstance(since, datetime) else await since()

    counts = Counts() if counts is None else counts
    reader = Reader(KafkaSource(settings, complete_since=complete_since, on_skipped=counts.add))
    task = asyncio.create_task(reader.run())
    try:
        await reader.until(lambda: until <= set(reader.values))
        await asyncio.sleep(0.3)  # for messages that must not arrive
    finally:
        reader.source.stop()
        await task
    return reader.values


async def committed(settings: KafkaConfig, partitions: int = 1) -> list[int | None]:
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers, group_id=settings.group_id)
    await consumer.start()
    try:
        return [await consumer.committed(TopicPartition(settings.topics[0], n)) for n in range(partitions)]
    finally:
        await consumer.stop()


@pytest.fixture
def settings(apache: ApacheKafka, topic: str) -> KafkaConfig:
    return config(apache.bootstrap_servers, topic)


async def test_a_new_group_skips_what_is_older_than_the_first_start_and_says_so_once(
    settings: KafkaConfig, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for partition in range(3):
        await publish_at(settings.bootstrap_servers, topic, NOW - HOUR, numbered(10), partition)
    await publish_at(settings.bootstrap_servers, topic, NOW + timedelta(seconds=1), [b"new"], 1)
    counts = Counts()

    for value in (b"new", b"newer"):  # the second time with committed offsets, also where nothing was read
        assert await read(settings, {value}, counts=counts) == [value]
        await publish_at(settings.bootstrap_servers, topic, NOW - HOUR, [b"newer"])  # its clock is slow

    assert counts == {"before_start": 30}
    lines = [line for line in capsys.readouterr().out.splitlines() if "older messages are skipped" in line]
    assert len(lines) == 1
    assert all(text in lines[0] for text in ("skipped=30", "kafka.start to earliest and kafka.group_id to a new name"))


@pytest.mark.parametrize(
    ("start", "expected"),
    [("earliest", [b"old", b"middle", b"new"]), (NOW - 2 * HOUR, [b"middle", b"new"])],
)
async def test_reading_begins_as_kafka_start_says(settings: KafkaConfig, topic: str, start: Any, expected: Any) -> None:
    for value, at in ((b"old", NOW - 3 * HOUR), (b"middle", NOW - HOUR), (b"new", NOW)):
        await publish_at(settings.bootstrap_servers, topic, at, [value])
    changed = KafkaConfig.model_validate(settings.model_dump() | {"start": start})
    assert await read(changed, {b"new"}, since=NOW) == expected


async def test_a_new_partition_and_expired_offsets_lose_nothing(settings: KafkaConfig, apache: ApacheKafka) -> None:
    topic = f"{settings.topics[0]}-grows"
    grows = config(apache.bootstrap_servers, topic)
    await make_topic(apache.bootstrap_servers, topic, partitions=1)
    await publish_at(apache.bootstrap_servers, topic, NOW - HOUR, [b"old"])
    await publish(apache.bootstrap_servers, topic, [b"one"])
    assert await read(grows, {b"one"}) == [b"one"]

    admin = AIOKafkaAdminClient(bootstrap_servers=apache.bootstrap_servers)
    await admin.start()
    await admin.create_partitions({topic: NewPartitions(2)})
    await admin.close()
    await publish_at(apache.bootstrap_servers, topic, datetime.now(UTC), [b"two"], 1)
    assert await read(grows, {b"two"}) == [b"two"]

    await publish(apache.bootstrap_servers, topic, [b"three"])
    forgotten = grows.model_copy(update={"group_id": f"{grows.group_id}-2"})  # as if the broker had deleted its offsets
    assert sorted(await read(forgotten, {b"three"})) == [b"one", b"three", b"two"]


async def test_a_new_installation_on_an_old_topic_sends_no_old_news(
    settings: KafkaConfig, topic: str, tmp_path: Path
) -> None:
    async def publish_event(name: str, at: datetime) -> None:
        event = write(an_event(name=name, launch_plan=a_launch_plan()), Format.NATIVE)
        async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
            milliseconds = int(at.timestamp() * 1000)
            headers = list(event.headers)
            await producer.send_and_wait(topic, event.value, partition=0, timestamp_ms=milliseconds, headers=headers)

    kafka = {"bootstrap_servers": settings.bootstrap_servers, "topics": [topic], "group_id": topic}
    mail = {
        "host": "127.0.0.1",
        "security": "none",
        "from": "flyte@example.com",
    }  # nobody is notified: there are no rules
    old, *recent = (f"{an_execution(name)}/FAILED" for name in ("days-ago", "just-before", "after"))
    await publish_event("days-ago", NOW - 72 * HOUR)  # Kafka deletes what is older than a week
    await publish_event("just-before", datetime.now(UTC) - timedelta(minutes=4))
    async with (
        running(tmp_path, {"kafka": kafka, "channels": {"email": mail}}) as url,
        Ledger(f"sqlite+aiosqlite:///{tmp_path}/dispatcher.db") as ledger,
        aiohttp.ClientSession() as session,
        asyncio.timeout(30),
    ):
        await publish_event("after", datetime.now(UTC))
        while recent[-1] not in (recorded := await ledger.history.seen([old, *recent])):
            await asyncio.sleep(0.05)
        assert recorded == set(recent)
        metrics = ""
        while 'dispatcher_kafka_skipped_total{reason="before_start"} 1.0' not in metrics:
            async with session.get(f"{url}/metrics") as answer:
                metrics = await answer.text()


async def test_a_message_that_arrives_while_the_start_is_looked_up_is_read(settings: KafkaConfig, topic: str) -> None:
    class Busy(AIOKafkaConsumer):  # type: ignore[misc]  # the base class has no types
        async def end_offsets(self, partitions: Any) -> Any:
            return await self._then_publish(super().end_offsets(partitions))

        async def offsets_for_times(self, timestamps: Any) -> Any:
            return await self._then_publish(super().offsets_for_times(timestamps))

        async def _then_publish(self, call: Any) -> Any:
            answer = await call
            await publish_at(settings.bootstrap_servers, topic, NOW, [b"meanwhile"])
            return answer

    await publish_at(settings.bootstrap_servers, topic, NOW - HOUR, [b"old"])
    partition = TopicPartition(topic, 0)
    async with Busy(bootstrap_servers=settings.bootstrap_servers) as consumer:
        positions = await start_positions(consumer, [partition], NOW + HOUR)
    assert positions == {partition: StartPosition(offset=1, skipped=1)}


async def test_without_a_ledger_intake_waits_and_then_begins(settings: KafkaConfig, topic: str) -> None:
    await publish_at(settings.bootstrap_servers, topic, NOW, [b"new"])
    calls = 0

    async def first_unavailable() -> datetime:
        nonlocal calls
        calls += 1
        if calls < 2:
            raise LedgerUnavailable("the ledger is locked")
        return NOW

    assert await read(settings, {b"new"}, since=first_unavailable) == [b"new"]


async def test_aborted_transactions_are_not_read_and_leave_no_lag(settings: KafkaConfig, topic: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, transactional_id=topic) as producer:
        for value, outcome in ((b"aborted", producer.abort_transaction), (b"committed", producer.commit_transaction)):
            await producer.begin_transaction()
            await producer.send_and_wait(topic, value, partition=0)
            await outcome()
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted too", partition=0)
        await producer.abort_transaction()

    reader = Reader(KafkaSource(settings))
    task = asyncio.create_task(reader.run())
    await reader.count(1)
    async with asyncio.timeout(10):
        while any((await reader.source.lag()).values()):
            await asyncio.sleep(0.05)
    reader.source.stop()
    await task
    assert reader.values == [b"committed"]

    began = time.monotonic()
    findings = await check(settings)
    assert "the newest message is of" in findings[1].message
    assert time.monotonic() - began < 5


async def test_tombstones_are_skipped_and_counted(broker: Broker, topic: str) -> None:
    settings = config(broker.bootstrap_servers, topic)
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers) as producer:
        for value, headers in ((b"one", []), (None, []), (None, [("ce_type", b"x")]), (b"two", [])):
            await producer.send_and_wait(topic, value, key=b"key", partition=0, headers=headers)
    counts = Counts()
    assert await read(settings, {b"two"}, counts=counts) == [b"one", b"two"]
    assert counts == {"tombstone": 2}
    assert await committed(settings) == [4]


@pytest.mark.parametrize(
    ("timestamps", "text"),
    [
        ([-1], "the newest message has no date; a producer writes -1"),
        ([1795981317409000, 1795981317409], "is of 2026-11-29 19:41:57 UTC; a producer writes 1795981317409000 as"),
        ([2**63 - 1], "the newest message has no date; a producer writes 9223372036854775807"),
        ([1795981317409], "the newest message is of 2026-11-29 19:41:57 UTC"),
    ],
)
async def test_check_reads_timestamps_that_are_no_dates(
    apache: ApacheKafka, topic: str, timestamps: list[int], text: str
) -> None:
    name = f"{topic}-dates"
    any_date = {"message.timestamp.after.max.ms": str(2**63 - 1), "message.timestamp.before.max.ms": str(2**63 - 1)}
    await make_topic(apache.bootstrap_servers, name, partitions=1, **any_date)
    async with AIOKafkaProducer(bootstrap_servers=apache.bootstrap_servers) as producer:
        for timestamp in timestamps:
            batch = producer.create_batch()
            batch.append(key=None, value=b"x", timestamp=timestamp)
            await (await producer.send_batch(batch, name, partition=0))
    findings = await check(config(apache.bootstrap_servers, name))
    assert text in findings[1].message, findings


@pytest.mark.parametrize("start", ["latest", "2026-11-29T08:00:00", "2026-11-29", 5, datetime(2026, 11, 29)])  # noqa: DTZ001
def test_a_start_that_is_no_time_with_a_zone_is_refused(start: object) -> None:
    with pytest.raises(ValueError, match="must be first-start, earliest, or a time with its zone, such as"):
        KafkaConfig.model_validate({"bootstrap_servers": "a:1", "start": start})
