"""Publishes to a topic, reads it with our source, and reads committed offsets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from dispatcher.flyte.encode import EncodedMessage
from dispatcher.intake.kafka.batch import KafkaBatch
from dispatcher.intake.kafka.config import KafkaConfig
from dispatcher.intake.kafka.consumer import KafkaSource
from dispatcher.intake.kafka.session import ConsumerSession, HeaderFilter
from dispatcher.intake.kafka.start import always
from dispatcher.intake.source import REST, Batch
from tests.support.brokers import Broker
from tests.support.waiting import until


def config(servers: str, topic: str, **changes: Any) -> KafkaConfig:
    return KafkaConfig(
        bootstrap_servers=servers, topics=(topic,), group_id=f"group-{topic}", session_timeout="6s", **changes
    )


async def publish(servers: str, topic: str, values: Sequence[bytes], **options: Any) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", **options)
    await producer.start()
    try:
        async with asyncio.TaskGroup() as group:
            for value in values:
                group.create_task(producer.send_and_wait(topic, value, headers=[("ce_type", b"x")]))
    finally:
        await producer.stop()


class Reader:
    """Reads a source in the background and keeps the messages."""

    def __init__(self, source: KafkaSource, *, handle: Callable[[Batch], Any] | None = None) -> None:
        self.source = source
        self.values: list[bytes] = []
        self.positions: list[str] = []
        self.undecodable: list[tuple[str, str]] = []
        self._handle = handle

    async def run(self) -> None:
        async for batch in self.source.batches():
            if self._handle is not None:
                await self._handle(batch)
            self.undecodable.extend(batch.undecodable)
            for message in batch.messages:
                self.values.append(message.value or b"")
                self.positions.append(batch.position(message))
            await batch.commit()

    async def until(self, enough: Callable[[], bool], seconds: float = 40) -> None:
        await until(enough, seconds)

    async def count(self, number: int) -> None:
        await self.until(lambda: len(self.values) >= number)


@asynccontextmanager
async def reading(
    settings: KafkaConfig | KafkaSource,
    *,
    skip: HeaderFilter = lambda _: False,
    handle: Callable[[Batch], Any] | None = None,
) -> AsyncIterator[Reader]:
    source = settings if isinstance(settings, KafkaSource) else KafkaSource(settings, skip)
    reader = Reader(source, handle=handle)
    task = asyncio.create_task(reader.run())
    try:
        yield reader
    finally:
        reader.source.stop()
        async with asyncio.timeout(40):
            await task


@asynccontextmanager
async def joined(settings: KafkaConfig) -> AsyncIterator[tuple[ConsumerSession, KafkaBatch]]:
    """A consumer that has joined its group, and its first batch. Nothing reads on."""
    session = ConsumerSession(settings, lambda _: False, always, lambda _reason, _number: None, REST)
    try:
        await session.open()
        yield session, await until(session.read)
    finally:
        await session.watch.stop()
        await session.consumer.stop()


def connections(logs: Sequence[Mapping[str, Any]]) -> int:
    """How often sources have connected, each time with a new consumer, according to these log entries."""
    return [entry["event"] for entry in logs].count("connected to Kafka")


async def committed(servers: str, settings: KafkaConfig, partitions: int = 4) -> int:
    """The sum of the committed offsets of all partitions."""
    (topic,) = settings.topics
    return sum(offset or 0 for offset in await offsets(servers, settings.group_id, topic, partitions))


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [str(number).encode() for number in range(start, start + count)]


async def offsets(servers: str, group: str, topic: str, partitions: int = 1) -> list[int | None]:
    """The committed offset of each partition; None if there is none."""
    async with asyncio.timeout(20):
        consumer = AIOKafkaConsumer(bootstrap_servers=servers, group_id=group, enable_auto_commit=False)
        await consumer.start()
        try:
            return [await consumer.committed(TopicPartition(topic, number)) for number in range(partitions)]
        finally:
            await consumer.stop()


async def publish_messages(broker: Broker, topic: str, messages: list[EncodedMessage]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, acks="all", max_request_size=16 * 2**20)
    await producer.start()
    for message in messages:
        await producer.send(topic, message.value, key=message.key, headers=list(message.headers))
    await producer.stop()
