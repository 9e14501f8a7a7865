"""Kafka, by aiokafka: a source that keeps its place in the group whatever happens, and a publisher for tests.

A consumer object that has failed is never mended but replaced; every call has a deadline; a poll of a consumer
that lives on is never cancelled. Offsets are committed by us alone, after the ledger's transaction, and never
for work begun before a rebalance: what is read twice is a no-op in the ledger.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import math
import ssl
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import cramjam
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    CorruptRecordException,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from channels.common.comma_list import listed
from channels.common.secret import SecretFile, one_of, reveal
from channels.contract import Finding
from dispatcher.errors import DispatcherError
from dispatcher.intake.source import Batch
from dispatcher.parsing.duration import Duration

log = structlog.get_logger(__name__)

Glance = Callable[[Sequence[tuple[str, bytes]]], bool]
"""Whether a message's headers tell that nobody here wants it."""

FETCH_BYTES = 256 * 1024
"""Of a partition, fetched at once and held until it is read. aiokafka has an answer of the broker three times over while
it takes it apart, and of the one before once."""
PORTION = 500
"""Messages taken out of aiokafka's buffers at a time: what is foreign among them is let go while it is still in the
processor's caches."""
MANY = 100
"""So many messages at one look are a backlog's."""
GATHER_SECONDS = 0.05
"""How long a batch of a backlog may wait for more: it costs its transaction, however few of its messages are ours."""
POLL_MS = 500
"""How long an empty poll lasts, and so how soon a stop is noticed."""
CALL_SECONDS = 15
"""The deadline of any single call to the broker."""
CLOSE_SECONDS = 3
"""The deadline while we are stopping; a consumer that takes longer to leave ends in the background."""
CALM_SECONDS = 60
"""A consumer that has lived so long was well: the next failure is a first one."""
COMMIT_EVERY = 1.0
"""Seconds. Offsets lag behind the ledger by that much; a crash re-reads it, and the ledger knows it already."""
NEVER_MS = 10**12
"""aiokafka's own poll interval is switched off: intake may hold a batch for as long as the ledger is away.
Heartbeats and rejoining go on without polls, and what is prefetched stays (pausing would throw it away)."""

_LOST = (KafkaError, TimeoutError, OSError)
"""What a consumer object doesn't outlive."""
_DENIED = (TopicAuthorizationFailedError, GroupAuthorizationFailedError)
_UNREADABLE = (
    CorruptRecordException,
    UnicodeDecodeError,
    cramjam.DecompressionError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
)
"""What aiokafka raises, for ever, over bytes that it can't take apart."""


def _comma_separated(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


class KafkaConfig(BaseModel):
    """Where the engine's events are, and how to get in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap_servers: Annotated[str, BeforeValidator(_comma_separated), Field(min_length=1)]
    """HOST:PORT, several with commas."""
    topics: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)] = ("flyte-cloudevents",)
    group_id: str = Field("notification-dispatcher", min_length=1)
    group_instance_id: str | None = None
    """A name of its own for each replica: a quick restart then doesn't make the group share out anew."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    username: str | None = None
    password: SecretStr | None = None
    password_file: SecretFile | None = None
    ca_file: SecretFile | None = None
    """Certificates to trust, PEM; without it those of the system."""
    cert_file: SecretFile | None = None
    """Our own certificate, PEM, where the broker asks for one."""
    key_file: SecretFile | None = None
    session_timeout: Duration = Field(timedelta(seconds=15), ge=timedelta(seconds=1))
    """A replica that dies leaves its partitions silent for so long."""
    stall_timeout: Duration = Field(timedelta(seconds=60), gt=timedelta())
    """So long without a message, while the broker has some for us, and the consumer is replaced."""
    max_poll_records: int = Field(5000, ge=1, le=100_000)
    """Messages a batch at most."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        one_of("password", self.password, self.password_file)
        has_password = self.password is not None or self.password_file is not None
        if self.security_protocol.startswith("SASL"):
            if self.username is None or not has_password:
                raise ValueError(f"{self.security_protocol} needs username and password or password_file")
        elif self.username is not None or has_password:
            raise ValueError(f"{self.security_protocol} logs nobody in: set security_protocol to SASL_SSL")
        files = [name for name in ("ca_file", "cert_file", "key_file") if getattr(self, name) is not None]
        if files and not self.security_protocol.endswith("SSL"):
            raise ValueError(f"{self.security_protocol} encrypts nothing: {files[0]} needs SSL or SASL_SSL")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file needs cert_file")
        return self

    def connection(self) -> dict[str, Any]:
        """Aiokafka's options for reaching the cluster, for consumers and producers alike.

        Raises OSError where a file can't be read, or holds no certificate.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "client_id": "flyte-notification-dispatcher",
            "security_protocol": self.security_protocol,
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
class _Found:
    """What one look at the broker has brought, all of one generation."""

    generation: int
    records: list[ConsumerRecord] = field(default_factory=list)
    undecodable: list[tuple[str, str]] = field(default_factory=list)
    foreign: int = 0
    """How many records were passed over."""
    following: dict[TopicPartition, int] = field(default_factory=dict)
    """The offset after the last of them, by partition."""

    def __len__(self) -> int:
        return len(self.records) + len(self.undecodable) + self.foreign

    def belong(self, generation: int) -> None:
        """What was found before a rebalance comes again, to whoever has it now: drop it."""
        if generation != self.generation:
            self.generation = generation
            self.records.clear()
            self.undecodable.clear()
            self.foreign = 0
            self.following.clear()


@dataclass(frozen=True, slots=True)
class _KafkaBatch:
    messages: Sequence[ConsumerRecord]
    undecodable: Sequence[tuple[str, str]]
    foreign: int
    _reading: _Reading
    _generation: int
    _following: Mapping[TopicPartition, int]

    def position(self, message: ConsumerRecord) -> str:
        return f"{message.topic}/{message.partition}@{message.offset}"

    async def commit(self) -> None:
        if self._generation == self._reading.generation:
            self._reading.done.update(self._following)

    def is_of(self, reading: _Reading | None) -> bool:
        """Whether that consumer has read it, and still has all of its partitions."""
        return self._reading is reading and self._generation == self._reading.generation

    def found(self) -> _Found:
        """What it has, to be gone on with."""
        return _Found(self._generation, [*self.messages], [*self.undecodable], self.foreign, {**self._following})


class _Reading(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """One consumer's life, from joining the group to the first error that it doesn't outlive."""

    def __init__(self, config: KafkaConfig, is_foreign: Glance) -> None:
        self._config = config
        self._is_foreign = is_foreign
        session_ms = int(config.session_timeout.total_seconds() * 1000)
        self.consumer = AIOKafkaConsumer(
            **config.connection(),
            group_id=config.group_id,
            group_instance_id=config.group_instance_id,
            enable_auto_commit=False,
            max_partition_fetch_bytes=FETCH_BYTES,
            auto_offset_reset="none",  # `_begin` and `_skip_gap` decide, and say so
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // 5,
            request_timeout_ms=session_ms + CALL_SECONDS * 1000,  # joining may take a whole session
            max_poll_interval_ms=NEVER_MS,
        )
        self._poll_seconds = 2 * session_ms / 1000 + CALL_SECONDS
        self._call_seconds = math.inf
        self._limits: set[asyncio.Timeout] = set()
        self._committing: asyncio.Timeout | None = None
        self._committed_at = _now()
        self._moved: dict[TopicPartition, float] = {}
        self.joined = False
        self.generation = 0
        """Counts rebalances: work begun in an earlier one must not be committed in this one."""
        self.done: dict[TopicPartition, int] = {}
        """Offsets to commit at the next occasion."""
        self.newest: dict[TopicPartition, float] = {}
        """When the last message of each partition was written, in seconds since 1970."""

    async def open(self) -> None:
        """Connect; the group is joined by the first read. A topic that isn't there yet keeps nobody waiting."""
        async with self._deadline():
            await self.consumer.start()
        self.consumer.subscribe(topics=list(self._config.topics), listener=self)

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """The assignors are eager: every rebalance takes all partitions away. Nothing slow may happen here.

        A commit still on its way is given up before we join anew: repeated in the next generation, the broker
        would take it, and a partition that is another's by then would be set back.
        """
        self.joined = False
        self.generation += 1
        self.done.clear()
        self._moved.clear()
        if self._committing is not None:
            self._committing.reschedule(_now())
        log.info("partitions revoked", partitions=_named(revoked))

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self.joined = True
        self._moved = dict.fromkeys(assigned, _now())
        log.info("partitions assigned", partitions=_named(assigned))

    def hurry(self) -> None:
        """We are stopping: a call that hangs, as a poll does in a rebalance with the broker away, is soon given up."""
        self._call_seconds = CLOSE_SECONDS
        soon = _now() + CLOSE_SECONDS
        for limit in self._limits:
            limit.reschedule(min(limit.when() or soon, soon))

    async def read(self) -> _KafkaBatch | None:
        """The next messages, or None where none came within `POLL_MS`."""
        if _now() - self._committed_at >= COMMIT_EVERY:
            await self.flush()
        found = _Found(self.generation)
        await self._look(found, wait_ms=POLL_MS)
        await self._gather(found)
        self._moved.update(dict.fromkeys(found.following, _now()))
        if not found:
            await self.flush()
        await self._look_for_stall()
        return self._batch(found)

    async def read_on(self, batch: _KafkaBatch) -> _KafkaBatch | None:
        """The same batch, with what has come since it was read."""
        found = batch.found()
        await self._take_all(found)
        self._moved.update(dict.fromkeys(found.following, _now()))
        return self._batch(found)

    def _batch(self, found: _Found) -> _KafkaBatch | None:
        if not found or found.generation != self.generation:
            return None
        return _KafkaBatch(found.records, found.undecodable, found.foreign, self, found.generation, found.following)

    async def flush(self) -> None:
        """Commit what is done with. A commit that comes too late is only re-read work."""
        done, self.done = self.done, {}
        self._committed_at = _now()
        if not done:
            return
        try:
            async with self._deadline() as self._committing:
                await self.consumer.commit(done)
        except (KafkaError, TimeoutError) as error:
            log.warning("offsets were not committed: those messages may be read again", reason=_words(error))
        finally:
            self._committing = None

    async def lag(self) -> dict[TopicPartition, int]:
        """How many messages each of our partitions holds that we have not read."""
        partitions = list(self.consumer.assignment())
        async with self._deadline():
            ends = await self.consumer.end_offsets(partitions) if partitions else {}
            return {part: max(end - await self.consumer.position(part), 0) for part, end in ends.items()}

    async def _gather(self, found: _Found) -> None:
        """Look again while many come and few of them are ours, for a moment at most."""
        until, before = _now() + GATHER_SECONDS, 0
        while len(found) - before >= MANY and len(found.records) < PORTION and self._room(found):
            before = len(found)
            if (left := until - _now()) > 0:
                await self._look(found, wait_ms=math.ceil(1000 * left))

    async def _look(self, found: _Found, *, wait_ms: int) -> None:
        """Wait for one record, then take what lies ready, partition by partition.

        Never several partitions in one call: where aiokafka raises over one of them, it has already taken the
        records of the others out of its buffers, and would go on behind them.
        """
        try:
            await self._poll(found, wait_ms=wait_ms, most=1)
        except NoOffsetForPartitionError as error:
            await self._begin(error.args[0])
        except OffsetOutOfRangeError as error:
            for partition, offset in error.args[0].items():
                await self._skip_gap(partition, offset)
        except _UNREADABLE:
            for partition in self._assigned():  # one of them, it isn't said which
                await self._step_over(found, partition, most=1)
        if found:
            await self._take_all(found)

    async def _take_all(self, found: _Found) -> None:
        """Take what lies ready of all partitions, as far as there is room."""
        for partition in self._assigned():
            try:
                await self._take(found, partition)
            except (NoOffsetForPartitionError, OffsetOutOfRangeError):
                continue  # the next look meets it again
            except _UNREADABLE:
                await self._step_over(found, partition, most=self._room(found))

    async def _take(self, found: _Found, partition: TopicPartition) -> None:
        """Take what lies ready of a partition, as far as there is room."""
        while most := min(self._room(found), PORTION):
            if await self._poll(found, partition, most=most) < most:
                return

    def _room(self, found: _Found) -> int:
        return max(self._config.max_poll_records - len(found), 0)

    def _assigned(self) -> list[TopicPartition]:
        """Our partitions; those that waited longest first, so that a busy one starves nobody."""
        return sorted(self.consumer.assignment(), key=lambda part: self._moved.get(part, 0.0))

    async def _poll(self, found: _Found, *partitions: TopicPartition, wait_ms: int = 0, most: int) -> int:
        async with self._deadline(self._poll_seconds):
            taken = await self.consumer.getmany(*partitions, timeout_ms=wait_ms, max_records=most)
        found.belong(self.generation)
        for partition, records in taken.items():
            ours = [record for record in records if not self._is_foreign(record.headers)]
            found.records += ours
            found.foreign += len(records) - len(ours)
            found.following[partition] = records[-1].offset + 1
            self.newest[partition] = records[-1].timestamp / 1000
        return sum(map(len, taken.values()))

    async def _step_over(self, found: _Found, partition: TopicPartition, *, most: int) -> None:
        """Read a partition one record at a time, up to what can't be read, and over it."""
        undecodable = False
        for _ in range(most):
            offset = await self._position(partition)
            try:
                taken = await self._poll(found, partition, wait_ms=POLL_MS, most=1)
            except _UNREADABLE as error:
                found.belong(self.generation)
                where = f"{partition.topic}/{partition.partition}@{offset}"
                found.undecodable.append((where, _why_unreadable(error)))
                found.following[partition] = offset + 1
                self.consumer.seek(partition, offset + 1)
                undecodable = True
            else:
                if undecodable or not taken:
                    return

    async def _begin(self, partition: TopicPartition) -> None:
        log.info("no offset was ever committed: reading from the beginning", partitions=_named([partition]))
        async with self._deadline():
            await self.consumer.seek_to_beginning(partition)

    async def _skip_gap(self, partition: TopicPartition, expected: int) -> None:
        """The broker no longer has what we wanted, or never had: go on with the oldest that it has."""
        async with self._deadline():
            await self.consumer.seek_to_beginning(partition)
        first = await self._position(partition)
        if first > expected:
            log.error(
                "messages expired before they were read: raise the topic's retention",
                partition=f"{partition.topic}/{partition.partition}",
                missed=first - expected,
                expected=expected,
                first=first,
            )
        else:
            log.error(
                "the topic is shorter than what we have read of it: was it made anew? Reading from its beginning",
                partition=f"{partition.topic}/{partition.partition}",
                expected=expected,
                first=first,
            )

    async def _position(self, partition: TopicPartition) -> int:
        async with self._deadline():
            offset: int = await self.consumer.position(partition)
            return offset

    @asynccontextmanager
    async def _deadline(self, seconds: float = CALL_SECONDS) -> AsyncIterator[asyncio.Timeout]:
        """Calls of aiokafka may never return while the broker is away. Raises TimeoutError."""
        async with asyncio.timeout(min(seconds, self._call_seconds)) as limit:
            self._limits.add(limit)
            try:
                yield limit
            finally:
                self._limits.discard(limit)

    async def _look_for_stall(self) -> None:
        """A consumer can look healthy while nothing arrives (aiokafka #1037): then the broker knows more than we.

        Raises KafkaError.
        """
        patience = self._config.stall_timeout.total_seconds()
        now = _now()
        quiet = [part for part, moved in self._moved.items() if now - moved >= patience]
        if not quiet:
            return
        lag = await self.lag()
        for partition in quiet:
            if lag.get(partition):
                raise KafkaError(f"no message of {_named([partition])[0]} for {patience:.0f} s, though there are some")
            self._moved[partition] = now


class KafkaSource:
    """The topics' messages, in batches. See `dispatcher.intake.source.Source` for what it promises."""

    def __init__(self, config: KafkaConfig, is_foreign: Glance = lambda _: False) -> None:
        """`is_foreign`: most of Flyte's topic is so, and a batch brings no more of it than the number."""
        self._config = config
        self._is_foreign = is_foreign
        self._stopping = asyncio.Event()
        self._reading: _Reading | None = None
        self._trouble = "not connected yet"
        """Why no messages come, for as long as we are not in the group."""
        self._leaving: set[asyncio.Task[None]] = set()

    async def batches(self) -> AsyncGenerator[Batch]:
        reading: asyncio.Task[_KafkaBatch | None] | None = None
        try:
            while not self._stopping.is_set():
                waited = reading is not None and reading.done()
                batch = await (reading or self._persistently())
                reading = None
                if waited and batch is not None:
                    batch = await self._persistently(batch)
                if batch is not None:
                    # The next one is read while this one is being recorded.
                    reading = asyncio.create_task(self._persistently())  # noqa: TID251 - no group spans a yield
                    yield batch
        finally:
            self.stop()
            if reading is not None:
                await asyncio.wait({reading})
            await self._leave(flush=True)

    async def wait(self, span: timedelta) -> bool:
        await self._pause(span.total_seconds())
        return not self._stopping.is_set()

    def stop(self) -> None:
        self._stopping.set()
        if self._reading is not None:
            self._reading.hurry()

    async def trouble(self) -> str | None:
        reading = self._reading
        if reading is None or not reading.joined:
            return self._trouble
        missing = [topic for topic in self._config.topics if not reading.consumer.partitions_for_topic(topic)]
        return f"no such topic, so far: {', '.join(missing)}" if missing else None

    async def lag(self) -> Mapping[tuple[str, int], int]:
        """How many messages each of our partitions, by topic and number, holds that we have not read; for metrics.

        Raises KafkaError or TimeoutError while the broker doesn't answer.
        """
        lag = await self._reading.lag() if self._reading is not None else {}
        return {(part.topic, part.partition): behind for part, behind in lag.items()}

    def newest(self) -> Mapping[tuple[str, int], float]:
        """When the last message that we have read of each partition was written, in seconds since 1970."""
        if self._reading is None:
            return {}
        ours = self._reading.consumer.assignment()
        return {(part.topic, part.partition): at for part, at in self._reading.newest.items() if part in ours}

    async def _persistently(self, waiting: _KafkaBatch | None = None) -> _KafkaBatch | None:
        """As `_next_batch`, with a new consumer after each that fails.

        Only then by tenacity, which looks closely at all that it calls; the failure counts as its first try.
        """
        try:
            return await self._next_batch(waiting)
        except _LOST as error:
            failed: Exception | None = error
        again = AsyncRetrying(
            retry=retry_if_exception_type(_LOST),
            wait=wait_random_exponential(multiplier=0.5, max=15),
            sleep=self._pause,
            before_sleep=self._tell,
        )

        async def attempt() -> _KafkaBatch | None:
            nonlocal failed
            first, failed = failed, None
            if first is not None:
                raise first
            return await self._next_batch()

        found: _KafkaBatch | None = await again(attempt)
        return found

    async def _next_batch(self, waiting: _KafkaBatch | None = None) -> _KafkaBatch | None:
        """The next batch; None where none came for a good while, or we are stopping. `waiting`: one that was read ahead
        and may have become more.

        A consumer that fails is left here, for good, and the error raised.
        """
        try:
            if self._reading is not None and waiting is not None and waiting.is_of(self._reading):
                return await self._reading.read_on(waiting)
            calm = _now() + CALM_SECONDS
            while not self._stopping.is_set() and _now() < calm:
                reading = self._reading or await self._join()
                batch = await reading.read()
                self._trouble = f"joining the group {self._config.group_id}"
                if batch is not None:
                    return batch
        except _LOST as error:
            self._trouble = _words(error)
            await self._leave()
            if not self._stopping.is_set():
                raise
        return None

    async def _join(self) -> _Reading:
        self._reading = _Reading(self._config, self._is_foreign)
        await self._reading.open()
        log.info("connected to Kafka", topics=self._config.topics, group=self._config.group_id)
        return self._reading

    async def _leave(self, *, flush: bool = False) -> None:
        """Close the consumer. One that doesn't end in time ends in the background: cancelled, it would haunt the group.

        aiokafka's tasks would outlive it, and their heartbeats would keep partitions that nobody reads.
        """
        reading, self._reading = self._reading, None
        if reading is None:
            return
        if flush:
            await reading.flush()
        leaving = asyncio.create_task(reading.consumer.stop())  # noqa: TID251 - may have to outlive us, see above
        self._leaving.add(leaving)
        leaving.add_done_callback(self._left)
        await asyncio.wait({leaving}, timeout=CLOSE_SECONDS)
        if not leaving.done():
            log.warning("the consumer did not close in time: it ends in the background")

    def _left(self, leaving: asyncio.Task[None]) -> None:
        self._leaving.discard(leaving)
        if not leaving.cancelled() and (error := leaving.exception()) is not None:
            log.warning("the consumer did not close in order", reason=_words(error))

    def _tell(self, state: RetryCallState) -> None:
        pause = round(state.upcoming_sleep, 1)
        log.warning("Kafka is in trouble: connecting anew", reason=self._trouble, after_seconds=pause)

    async def _pause(self, seconds: float) -> None:
        """Wait, unless we are stopped."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return


def _named(partitions: Collection[TopicPartition]) -> list[str]:
    return sorted(f"{part.topic}/{part.partition}" for part in partitions)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _bounded(call: Any, seconds: float = CALL_SECONDS) -> Any:
    """Calls of aiokafka may never return while the broker is away. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        return await call


def _why_unreadable(error: Exception) -> str:
    match error:
        case CorruptRecordException():
            return "corrupt record: its checksum does not fit its bytes"
        case UnicodeDecodeError():
            return "unreadable record: the name of a header is not UTF-8"
        case _:
            return f"unreadable record: its batch can't be unpacked: {_words(error)}"


class _LastWords(logging.Handler):
    """aiokafka only logs why a connection failed, and raises that it failed: the reason is what people need."""

    words = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.words = record.getMessage()


_last_words = _LastWords(logging.ERROR)
logging.getLogger("aiokafka").addHandler(_last_words)


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
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
            request_timeout_ms=CALL_SECONDS * 1000,
            max_request_size=16 * 2**20,
        )
        self._servers = config.bootstrap_servers

    async def __aenter__(self) -> Self:
        try:
            await _bounded(self._producer.start())
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


async def examine(config: KafkaConfig) -> list[Finding]:
    """Whether the brokers are reached, the topics are there and can be read, and how far behind the group is.

    Joins no group, creates no topic, commits nothing. Raises nothing.
    """
    servers = config.bootstrap_servers
    try:
        options = config.connection()
    except OSError as error:  # ssl's errors too
        return [Finding(f"kafka.ca_file, cert_file or password_file can't be used: {_words(error)}", ok=False)]
    admin = AIOKafkaAdminClient(**options, request_timeout_ms=CALL_SECONDS * 1000)
    consumer = AIOKafkaConsumer(
        **options, group_id=config.group_id, enable_auto_commit=False, request_timeout_ms=CALL_SECONDS * 1000
    )
    findings: list[Finding] = []
    try:
        await _bounded(admin.start())
        there = {topic["topic"]: topic for topic in await _bounded(admin.describe_topics())}
        findings.append(Finding(f"{servers} is reached"))
        await _bounded(consumer.start())
        for topic in config.topics:
            findings += await _examine_topic(consumer, config, topic, there.get(topic))
    except _LOST as error:
        what = "answered with an error" if findings else "can't be reached"
        advice = "check kafka.bootstrap_servers, security_protocol and the login"
        findings.append(Finding(f"{servers} {what}: {_words(error)}; {advice}", ok=False))
    finally:
        for opened in (consumer.stop, admin.close):
            with suppress(*_LOST):
                await _bounded(opened(), CLOSE_SECONDS)
    return findings


async def _examine_topic(
    consumer: AIOKafkaConsumer, config: KafkaConfig, topic: str, told: Mapping[str, Any] | None
) -> list[Finding]:
    """Raises what aiokafka raises where the connection is lost."""
    if told is None:
        advice = "is flyteadmin's cloudEvents.eventsPublisher.topicName the same, and may our user DESCRIBE it?"
        return [Finding(f"topic {topic} isn't there, or is hidden from us: {advice}", ok=False)]
    partitions = [TopicPartition(topic, partition["partition"]) for partition in told["partitions"]]
    group = f"group {config.group_id}"
    try:
        first = await _bounded(consumer.beginning_offsets(partitions))
        ends = await _bounded(consumer.end_offsets(partitions))
        newest = await _newest(consumer, [part for part in partitions if ends[part] > first[part]], ends)
    except _DENIED as error:
        return [Finding(f"topic {topic} may not be read by our user, give it READ: {_words(error)}", ok=False)]
    findings = [Finding(f"topic {topic} is there, {len(partitions)} partitions; {newest}")]
    try:
        reached = {part: await _bounded(consumer.committed(part)) for part in partitions}
    except _DENIED as error:
        return [*findings, Finding(f"{group} may not be used by our user, give it READ: {_words(error)}", ok=False)]
    lag = sum(max(ends[part] - max(reached[part] or 0, first[part]), 0) for part in partitions)
    begun = any(offset is not None for offset in reached.values())
    untold = "" if begun else "; it has read nothing yet, and begins with the oldest"
    findings.append(Finding(f"{group} is {lag} messages behind on {topic}{untold}"))
    return findings


async def _newest(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition], ends: Mapping[TopicPartition, int]
) -> str:
    """When the topic's newest message was written, in words: read to see that we may."""
    consumer.assign(partitions)
    for partition in partitions:
        consumer.seek(partition, ends[partition] - 1)
    times: list[int] = []
    seen: set[TopicPartition] = set()
    with suppress(TimeoutError):
        async with asyncio.timeout(CALL_SECONDS):
            while len(seen) < len(partitions):
                taken = await consumer.getmany(timeout_ms=POLL_MS)
                seen |= taken.keys()
                times += [record.timestamp for records in taken.values() for record in records]
    if not partitions:
        return "no message has come yet: is cloudEvents.enable set in flyteadmin?"
    if not times:
        return "its newest messages could not be read in time"
    return f"the newest message is of {datetime.fromtimestamp(max(times) / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
