"""Kafka, by aiokafka: a source that keeps its place in the group whatever happens, and a publisher for tests.

A consumer object that has failed is never mended but replaced; every call has a deadline; a poll is never
cancelled (aiokafka then stops enforcing its own poll interval). Offsets are committed by us alone, after
the ledger's transaction, and never for partitions that a rebalance has taken away since: what is read
twice is a no-op in the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import CorruptRecordException, KafkaConnectionError, KafkaError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from tenacity import RetryCallState, Retrying, wait_random_exponential

from channels.secret import SecretFile, one_of, reveal
from dispatcher.duration import Duration
from dispatcher.errors import DispatcherError
from dispatcher.source import Batch

log = structlog.get_logger(__name__)

POLL_MS = 500
"""How long an empty poll lasts, and so how soon a stop is noticed."""
CALL_SECONDS = 15
"""The deadline of any single call to the broker."""
COMMIT_EVERY = 1.0
"""Seconds. Offsets lag behind the ledger by that much; a crash re-reads it, and the ledger knows it already."""
STALL_SECONDS = 60
"""So long without a message, while the broker has some for us, and the consumer is replaced."""


def _comma_separated(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class KafkaConfig(BaseModel):
    """Where the engine's events are, and how to get in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap_servers: Annotated[str, BeforeValidator(_comma_separated)]
    """HOST:PORT, several with commas."""
    topics: Annotated[tuple[str, ...], BeforeValidator(_split), Field(min_length=1)] = ("flyte-cloudevents",)
    group_id: str = "notification-dispatcher"
    group_instance_id: str | None = None
    """A name of its own for each replica: a quick restart then doesn't make the group share out anew."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    username: str | None = None
    password: SecretStr | None = None
    password_file: SecretFile | None = None
    ca_file: Path | None = None
    """Certificates to trust, PEM; without it those of the system."""
    cert_file: Path | None = None
    """Our own certificate, PEM, where the broker asks for one."""
    key_file: Path | None = None
    session_timeout: Duration = timedelta(seconds=15)
    """A replica that dies leaves its partitions silent for so long."""
    max_poll_records: int = Field(2000, ge=1, le=100_000)
    """Messages a batch at most."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        one_of("password", self.password, self.password_file)
        if self.security_protocol.startswith("SASL") and (
            self.username is None or (self.password is None and self.password_file is None)
        ):
            raise ValueError(f"{self.security_protocol} needs username and password or password_file")
        if self.ca_file is not None and not self.ca_file.is_file():
            raise ValueError(f"ca_file: no such file: {self.ca_file}")
        return self

    def connection(self) -> dict[str, Any]:
        """Aiokafka's options for reaching the cluster, for consumers and producers alike."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
            "request_timeout_ms": CALL_SECONDS * 1000,
            "metadata_max_age_ms": 10_000,  # a topic that appears later is found this soon
        }
        if self.security_protocol.endswith("SSL"):
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
            options["ssl_context"] = context
        if self.security_protocol.startswith("SASL"):
            options["sasl_mechanism"] = self.sasl_mechanism
            options["sasl_plain_username"] = self.username
            options["sasl_plain_password"] = reveal(self.password, self.password_file)
        return options


@dataclass(slots=True)
class _Reading(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """One consumer's life: what it has read, what is done with, what a rebalance has taken."""

    consumer: AIOKafkaConsumer
    generation: int = 0
    """Counts rebalances: work begun in an earlier one must not be committed in this one."""
    following: dict[TopicPartition, int] = field(default_factory=dict)
    """The offset after the last message read, by partition."""
    done: dict[TopicPartition, int] = field(default_factory=dict)
    """Offsets to commit at the next occasion."""
    held: list[ConsumerRecord] = field(default_factory=list)
    """Read while nothing was wanted, to be brought next."""
    committed_at: float = 0.0
    heard_at: float = 0.0

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """The assignors are eager: every rebalance takes all partitions away. Nothing slow may happen here."""
        log.info("partitions revoked", partitions=_named(revoked))
        self.generation += 1
        self.following.clear()
        self.done.clear()
        self.held.clear()

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        log.info("partitions assigned", partitions=_named(assigned))


@dataclass(frozen=True, slots=True)
class _KafkaBatch:
    messages: Sequence[ConsumerRecord]
    spoilt: Sequence[tuple[str, str]]
    _reading: _Reading
    _generation: int
    _following: Mapping[TopicPartition, int]

    def position(self, message: ConsumerRecord) -> str:
        return f"{message.topic}/{message.partition}@{message.offset}"

    async def commit(self) -> None:
        if self._generation == self._reading.generation:
            self._reading.done.update(self._following)


class KafkaSource:
    """The topics' messages, in batches. See `dispatcher.source.Source` for what it promises."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._stopping = asyncio.Event()
        self._reading: _Reading | None = None
        self._trouble: str | None = "not connected yet"
        self._failures = 0

    async def batches(self) -> AsyncIterator[Batch]:
        try:
            while not self._stopping.is_set():
                try:
                    batch = await self._next_batch()
                except (KafkaError, TimeoutError, OSError) as error:
                    await self._give_up_consumer(error)
                    continue
                if batch is not None:
                    yield batch
        finally:
            await self._close()

    async def wait(self, span: timedelta) -> None:
        reading = self._reading
        if reading is None:
            await self._pause(span.total_seconds())
            return
        try:
            until = _now() + span.total_seconds()
            while (left := until - _now()) > 0 and not self._stopping.is_set():
                reading.consumer.pause(*reading.consumer.assignment())
                reading.held.extend(await self._poll(reading, min(left, POLL_MS / 1000)))
        except (KafkaError, TimeoutError, OSError) as error:
            await self._give_up_consumer(error)
        else:
            reading.consumer.resume(*reading.consumer.paused())

    def stop(self) -> None:
        self._stopping.set()

    async def trouble(self) -> str | None:
        if self._trouble is not None:
            return self._trouble
        if self._reading is None or not self._reading.consumer.assignment():
            return "no partitions assigned: the topics may not exist yet, or other replicas have them all"
        return None

    async def _next_batch(self) -> Batch | None:
        reading = self._reading or await self._connect()
        spoilt: list[tuple[str, str]] = []
        records, reading.held = reading.held, []
        if not records:
            try:
                records = await self._poll(reading, POLL_MS / 1000)
            except CorruptRecordException:
                records, spoilt = await self._around_corrupt(reading)
        self._failures = 0
        generation = reading.generation
        if not records and not spoilt:
            await self._commit(reading)
            await self._look_for_stall(reading)
            return None
        reading.heard_at = _now()
        following = await self._follow(reading, records)
        if _now() - reading.committed_at > COMMIT_EVERY:
            await self._commit(reading)
        return _KafkaBatch(records, spoilt, reading, generation, following)

    async def _poll(self, reading: _Reading, seconds: float) -> list[ConsumerRecord]:
        found = await reading.consumer.getmany(
            timeout_ms=int(seconds * 1000), max_records=self._config.max_poll_records
        )
        return [record for records in found.values() for record in records]

    async def _follow(self, reading: _Reading, records: Sequence[ConsumerRecord]) -> Mapping[TopicPartition, int]:
        """Where each partition goes on; tells of messages that the broker threw away before we read them."""
        following: dict[TopicPartition, int] = {}
        for record in records:
            partition = TopicPartition(record.topic, record.partition)
            if partition not in following:
                await self._look_for_gap(reading, partition, record.offset)
            following[partition] = record.offset + 1
        reading.following.update(following)
        return following

    async def _look_for_gap(self, reading: _Reading, partition: TopicPartition, offset: int) -> None:
        expected = reading.following.get(partition)
        if expected is None:
            expected = await _bounded(reading.consumer.committed(partition))
        if expected is not None and offset > expected:
            first = (await _bounded(reading.consumer.beginning_offsets([partition])))[partition]
            if first > expected:
                log.error(
                    "messages expired before they were read: raise the topic's retention",
                    partition=f"{partition.topic}/{partition.partition}",
                    missed=first - expected,
                    expected=expected,
                    first=first,
                )

    async def _around_corrupt(self, reading: _Reading) -> tuple[list[ConsumerRecord], list[tuple[str, str]]]:
        """Read again from where we stood, one record at a time, and step over the one that can't be read.

        aiokafka raises before it hands out the good records of the same fetch, and would then skip them.
        """
        records: list[ConsumerRecord] = []
        spoilt: list[tuple[str, str]] = []
        for partition in reading.consumer.assignment():
            reading.consumer.seek(partition, await _bounded(reading.consumer.position(partition)))
            for _ in range(self._config.max_poll_records):
                try:
                    found = await reading.consumer.getmany(partition, timeout_ms=POLL_MS, max_records=1)
                except CorruptRecordException as error:
                    offset = await _bounded(reading.consumer.position(partition))
                    where = f"{partition.topic}/{partition.partition}@{offset}"
                    log.error("a corrupt record was set aside", position=where, reason=str(error))
                    spoilt.append((where, "corrupt record: its checksum does not fit its bytes"))
                    reading.consumer.seek(partition, offset + 1)
                    break
                if not found:
                    break
                records.extend(found[partition])
        return records, spoilt

    async def _commit(self, reading: _Reading) -> None:
        """Commit what is done with. A commit that fails is only re-read work."""
        done, reading.done = reading.done, {}
        reading.committed_at = _now()
        if not done:
            return
        assigned = reading.consumer.assignment()
        try:
            await _bounded(reading.consumer.commit({part: at for part, at in done.items() if part in assigned}))
        except KafkaError as error:
            log.warning("offsets were not committed: those messages may be read again", reason=_words(error))

    async def _look_for_stall(self, reading: _Reading) -> None:
        """A consumer can look healthy while nothing arrives (aiokafka #1037): then the broker knows more than we."""
        if _now() - reading.heard_at < STALL_SECONDS:
            return
        reading.heard_at = _now()
        partitions = list(reading.consumer.assignment())
        if not partitions:
            return
        ends = await _bounded(reading.consumer.end_offsets(partitions))
        for partition in partitions:
            if ends[partition] > await _bounded(reading.consumer.position(partition)):
                raise KafkaError(f"no messages for {STALL_SECONDS} s although {partition.topic} has some for us")

    async def _connect(self) -> _Reading:
        consumer = AIOKafkaConsumer(
            **self._config.connection(),
            group_id=self._config.group_id,
            group_instance_id=self._config.group_instance_id,
            client_id="flyte-notification-dispatcher",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=int(self._config.session_timeout.total_seconds() * 1000),
            heartbeat_interval_ms=int(self._config.session_timeout.total_seconds() * 1000 / 5),
            max_partition_fetch_bytes=4 * 2**20,
        )
        reading = _Reading(consumer, heard_at=_now())
        consumer.subscribe(topics=list(self._config.topics), listener=reading)
        self._reading = reading
        await _bounded(consumer.start(), 2 * CALL_SECONDS)
        self._trouble = None
        log.info("connected to Kafka", topics=self._config.topics, group=self._config.group_id)
        return reading

    async def _give_up_consumer(self, error: BaseException) -> None:
        """A consumer that has failed stays failed: close it, wait a little, and let the next poll build a new one."""
        self._failures += 1
        self._trouble = _words(error)
        pause = _pause_after(self._failures)
        log.warning("Kafka is in trouble: connecting anew", reason=self._trouble, after_seconds=round(pause, 1))
        await self._close(commit=False)
        await self._pause(pause)

    async def _close(self, *, commit: bool = True) -> None:
        reading, self._reading = self._reading, None
        if reading is None:
            return
        try:
            if commit:
                await self._commit(reading)
            await _bounded(reading.consumer.stop())
        except (KafkaError, TimeoutError, OSError) as error:
            log.warning("the consumer did not close in time: left behind", reason=_words(error))

    async def _pause(self, seconds: float) -> None:
        """Wait, unless we are stopped."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return


def _named(partitions: Sequence[TopicPartition]) -> list[str]:
    return sorted(f"{part.topic}/{part.partition}" for part in partitions)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _bounded(call: Any, seconds: float = CALL_SECONDS) -> Any:
    """Aiokafka's calls may never return while the broker is away. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        return await call


def _pause_after(failures: int) -> float:
    state = RetryCallState(retry_object=Retrying(), fn=None, args=(), kwargs={})
    state.attempt_number = failures
    return wait_random_exponential(multiplier=0.5, max=15)(state)


class _LastWords(logging.Handler):
    """aiokafka only logs why a connection failed, and raises that it failed: the reason is what people need."""

    words = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.words = record.getMessage()


_last_words = _LastWords(logging.ERROR)
logging.getLogger("aiokafka").addHandler(_last_words)


def _words(error: BaseException) -> str:
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if not isinstance(error, KafkaConnectionError) or not _last_words.words:
        return said
    reason, _last_words.words = _last_words.words, ""
    return f"{said}; {reason}"


@dataclass(frozen=True, slots=True)
class Published:
    """Where a message went."""

    topic: str
    partition: int
    offset: int


class KafkaPublisher:
    """Writes messages; for test events, so that it needs nothing of the broker but to accept them."""

    def __init__(self, config: KafkaConfig) -> None:
        self._producer = AIOKafkaProducer(
            **config.connection(),
            acks="all",
            linger_ms=5,
            client_id="flyte-notification-dispatcher",
            max_request_size=16 * 2**20,
        )
        self._servers = config.bootstrap_servers

    async def __aenter__(self) -> Self:
        try:
            await _bounded(self._producer.start(), CALL_SECONDS)
        except (KafkaError, TimeoutError, OSError) as error:
            await _bounded(self._producer.stop())
            raise DispatcherError(f"Kafka at {self._servers} can't be reached: {_words(error)}") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _bounded(self._producer.stop(), 2 * CALL_SECONDS)

    async def send(
        self, topic: str, value: bytes, *, key: bytes | None = None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> Published:
        """Write one message and wait until the broker has it. Raises DispatcherError where it doesn't take it."""
        try:
            sent = await _bounded(
                self._producer.send_and_wait(topic, value, key=key, headers=list(headers)), 2 * CALL_SECONDS
            )
        except (KafkaError, TimeoutError) as error:
            raise DispatcherError(f"Kafka did not take the message: {_words(error)}") from None
        return Published(sent.topic, sent.partition, sent.offset)
