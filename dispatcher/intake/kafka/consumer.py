"""Reads events from Kafka, and publishes test events to Kafka, with aiokafka.

The source works again after every failure of the broker and every rebalance:

- A consumer object that has failed is replaced, never reused. Every call to the broker has a deadline. If a
  poll is cancelled, its consumer is closed afterwards.
- Offsets are committed after the ledger's transaction. Offsets of work that began before a rebalance are not
  committed, so another replica may read those messages again. A message that is read twice changes nothing in the
  ledger.
"""

from __future__ import annotations

import asyncio
import gzip
import math
import re
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
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from channels.common.comma_list import comma_list
from channels.common.network import host_and_port
from channels.common.secret import ExistingFile, Secret, SecretFile, reject_both, reveal
from channels.common.tls import CaFile, check_certificate
from channels.contract import Finding
from dispatcher.clock import is_set_within
from dispatcher.errors import DispatcherError, LedgerUnavailable
from dispatcher.intake.kafka.failures import describe
from dispatcher.intake.kafka.health import BrokerWatch, StaticMembership
from dispatcher.intake.kafka.start import (
    EARLIEST,
    FIRST_START,
    CompleteSince,
    Start,
    always,
    start_positions,
    start_time,
)
from dispatcher.intake.source import Batch
from dispatcher.parsing.duration import Duration

log = structlog.get_logger(__name__)

Skipped = Callable[[str, int], None]
"""A function that counts messages that are not processed. It gets the reason, `before_start` or `tombstone`, and their
number."""
HeaderFilter = Callable[[Sequence[tuple[str, bytes]]], bool]
"""A function that gets a message's headers, and returns True if the message can be skipped."""

FETCH_BYTES = 256 * 1024
"""Maximum number of bytes that are fetched from a partition at once and buffered. It is small, because aiokafka needs
about four times as much memory: three copies of the response that it parses, and one of the previous response."""
CHUNK = 500
"""Maximum number of messages that are taken out of aiokafka's buffers at a time. It is small, because skipped messages
can be freed faster while they are still in the CPU's cache."""
BACKLOG_SIZE = 100
"""If a fetch returns at least this many messages, more messages are probably waiting in Kafka (a backlog)."""
GATHER_SECONDS = 0.05
"""Maximum number of seconds for which a batch collects further messages during a backlog. A larger batch saves
transactions, because each batch costs one transaction even if most of its messages are skipped."""
POLL_MS = 500
"""Maximum number of milliseconds that a poll waits for messages. After this time, the source notices a stop."""
END_OF_DATES_MS = 253_402_300_800_000
"""The end of the year 9999 in milliseconds since 1970. Python has no later dates."""
NEWEST_OFFSETS = 5
"""Number of offsets at a partition's end that `check` reads to find the newest message."""
CALL_SECONDS = 15
"""Maximum duration of a call to the broker, in seconds."""
CLOSE_SECONDS = 3
"""Maximum duration of a call to the broker during a stop, in seconds. If closing a consumer takes longer, closing
continues in the background."""
HEALTHY_SECONDS = 60
"""A consumer that has worked for this many seconds counts as healthy. If it fails later, the first retry pause is
short again."""
COMMIT_EVERY = 1.0
"""Seconds between two commits. After a crash, the messages since the last commit are read again; the ledger ignores
them as duplicates."""
ASKS_PER_SESSION = 5
"""How often the brokers are asked within one session timeout. An answer may take half of it, so silent brokers are
noticed in 70 % of the session timeout."""
NO_LIMIT_MS = 10**12
"""A `max_poll_interval_ms` so large that aiokafka never removes the consumer from its group, even if nothing is polled.
While the ledger is unavailable, intake keeps its batch and does not poll. aiokafka sends heartbeats and rejoins the
group without polls. Its method `pause` is not used, because `pause` drops the messages that are already fetched."""

_CONNECTION_ERRORS = (KafkaError, TimeoutError, OSError)
"""After one of these errors, the consumer object is replaced by a new one."""
_RETRIED = (*_CONNECTION_ERRORS, LedgerUnavailable)
"""After one of these errors, reading is retried. The ledger is needed for the start position `first-start`."""
_DENIED = (TopicAuthorizationFailedError, GroupAuthorizationFailedError)
_UNDECODABLE = (
    CorruptRecordException,
    UnicodeDecodeError,
    cramjam.DecompressionError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
)
"""Errors that aiokafka raises for a record that it can't decode. Reading the record again raises the error again."""


DEFAULT_PORT = 9092
"""The port of a broker in `bootstrap_servers` that names none, as in aiokafka."""
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_BEGINS = {EARLIEST: "with the oldest message", FIRST_START: "with messages since five minutes before its first start"}


def _comma_separated(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def check_brokers(text: str) -> str:
    """Return brokers as HOST:PORT, separated by commas. Raises ValueError if there is none, or an invalid one."""
    brokers = comma_list(text)
    if not brokers:
        raise ValueError("name at least one broker as HOST:PORT")
    for broker in brokers:
        host_and_port(broker if ":" in broker.rpartition("]")[2] else f"{broker}:{DEFAULT_PORT}")
    return ",".join(brokers)


def check_topic(name: str) -> str:
    """Return a topic's name. Raises ValueError if it is not valid in Kafka (`Topic.validate`)."""
    if not _TOPIC.fullmatch(name) or name in {".", ".."}:
        raise ValueError("not a topic's name: Kafka allows letters, digits, '.', '_' and '-', at most 249 of them")
    return name


class KafkaConfig(BaseModel):
    """Where Flyte's events are in Kafka, and how to connect to Kafka."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap_servers: Annotated[str, BeforeValidator(_comma_separated), AfterValidator(check_brokers)]
    """The brokers as HOST:PORT, separated by commas."""
    topics: Annotated[
        tuple[Annotated[str, AfterValidator(check_topic)], ...], BeforeValidator(comma_list), Field(min_length=1)
    ] = ("flyte-cloudevents",)
    start: Start = FIRST_START
    """Where reading begins in a partition for which the group has no committed offset. `first-start`: with messages
    since the first start of the dispatcher with its ledger, or since the newest event that was purged from the ledger.
    `earliest`: with the oldest message. Or a time with its zone, such as `2026-11-29T08:00:00Z`. Kafka's timestamps of
    the messages count."""
    group_id: str = Field("notification-dispatcher", min_length=1)
    group_instance_id: str | None = None
    """The replica's name as a static member of the consumer group; each replica needs a different name. With a name, a
    quick restart of the replica causes no rebalance."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    username: str | None = None
    password: Secret | None = None
    password_file: SecretFile | None = None
    ca_file: CaFile | None = None
    """A PEM file with the certificate authorities to trust. If not set, the system's authorities are trusted."""
    cert_file: ExistingFile | None = None
    """A PEM file with the client certificate, for brokers that ask for a client certificate."""
    key_file: ExistingFile | None = None
    session_timeout: Duration = Field(timedelta(seconds=15), ge=timedelta(seconds=1), le=timedelta(minutes=30))
    """Time after which the partitions of a crashed replica are assigned to other replicas."""
    stall_timeout: Duration = Field(timedelta(seconds=60), gt=timedelta())
    """If the consumer reads nothing for this long although the broker has messages, the consumer is replaced."""
    max_poll_records: int = Field(5000, ge=1, le=100_000)
    """Maximum number of messages in a batch."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        reject_both("password", self.password, self.password_file)
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
        if self.cert_file is not None:
            check_certificate(self.cert_file, self.key_file)
        return self

    def connection(self) -> dict[str, Any]:
        """Return aiokafka's connection options, for consumers and producers.

        Raises OSError if a file can't be read or has no certificate.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "client_id": "flyte-notification-dispatcher",
            "security_protocol": self.security_protocol,
            "metadata_max_age_ms": 10_000,  # so that a new topic is found within 10 seconds
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
class FetchResult:
    """Messages that one or several polls have fetched, without a rebalance between these polls."""

    generation: int
    records: list[ConsumerRecord] = field(default_factory=list)
    undecodable: list[tuple[str, str]] = field(default_factory=list)
    skipped: int = 0
    """Number of messages that the filter skipped. They are not in `records`."""
    next_offsets: dict[TopicPartition, int] = field(default_factory=dict)
    """Mapping from each partition to the offset after its last fetched message."""

    def __len__(self) -> int:
        return len(self.records) + len(self.undecodable) + self.skipped

    def start_over(self, generation: int) -> None:
        """If there was a rebalance, drop all messages, because the partitions' new owners read the messages again."""
        if generation != self.generation:
            self.generation = generation
            self.records.clear()
            self.undecodable.clear()
            self.skipped = 0
            self.next_offsets.clear()


@dataclass(frozen=True, slots=True)
class _KafkaBatch:
    messages: Sequence[ConsumerRecord]
    undecodable: Sequence[tuple[str, str]]
    skipped: int
    _session: ConsumerSession
    _generation: int
    _next_offsets: Mapping[TopicPartition, int]

    def position(self, message: ConsumerRecord) -> str:
        return f"{message.topic}/{message.partition}@{message.offset}"

    async def commit(self) -> None:
        if self._generation == self._session.generation:
            self._session.offsets_to_commit.update(self._next_offsets)

    def belongs_to(self, session: ConsumerSession | None) -> bool:
        """True if `session` has read this batch, and there was no rebalance since then."""
        return self._session is session and self._generation == self._session.generation

    def as_fetch_result(self) -> FetchResult:
        """Return a copy of this batch to which further messages can be added."""
        return FetchResult(
            self._generation, [*self.messages], [*self.undecodable], self.skipped, {**self._next_offsets}
        )


class ConsumerSession(ConsumerRebalanceListener):  # type: ignore[misc]  # the base class has no types
    """One Kafka consumer, used from the time it joins the group until it fails or is closed."""

    def __init__(
        self, config: KafkaConfig, skip: HeaderFilter, complete_since: CompleteSince, on_skipped: Skipped
    ) -> None:
        self._config = config
        self._skip = skip
        self._complete_since = complete_since
        self._on_skipped = on_skipped
        session_ms = int(config.session_timeout.total_seconds() * 1000)
        self.consumer = AIOKafkaConsumer(
            **config.connection(),
            group_id=config.group_id,
            group_instance_id=config.group_instance_id,
            enable_auto_commit=False,
            max_partition_fetch_bytes=FETCH_BYTES,
            isolation_level="read_committed",  # so that messages of aborted transactions are not read
            auto_offset_reset="none",  # because this class resets offsets itself, and logs the reset
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=session_ms // 5,
            request_timeout_ms=session_ms + CALL_SECONDS * 1000,  # because joining may take a session timeout
            max_poll_interval_ms=NO_LIMIT_MS,
        )
        self._poll_seconds = 2 * session_ms / 1000 + CALL_SECONDS
        self._call_seconds = math.inf
        self._timeouts: set[asyncio.Timeout] = set()
        self._committing: asyncio.Timeout | None = None
        self._committed_at = _now()
        self._last_read_at: dict[TopicPartition, float] = {}
        self._started: set[TopicPartition] = set()
        """Partitions without a committed offset whose start position was set since the last rebalance."""
        self.joined = False
        self.watch = BrokerWatch(self._ask_brokers, every=session_ms / 1000 / ASKS_PER_SESSION)
        self.membership = StaticMembership(config.group_instance_id, session_ms / 1000)
        self.generation = 0
        """Number of rebalances so far. Offsets that were read before a rebalance must not be committed after it."""
        self.offsets_to_commit: dict[TopicPartition, int] = {}
        """Mapping from each partition to the offset that the next commit stores for it."""
        self.last_timestamps: dict[TopicPartition, float] = {}
        """Mapping from each partition to the timestamp of its last message that was read, in seconds since 1970."""

    async def open(self) -> None:
        """Connect to the broker and subscribe. The first `read` joins the group. A missing topic is no error."""
        async with self._deadline():
            await self.consumer.start()
        self.consumer.subscribe(topics=list(self._config.topics), listener=self)
        self.watch.start()

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Start a new generation, and forget the offsets to commit: a rebalance always revokes all partitions.

        The rebalance waits for this method, so it must be quick. A running commit is cancelled. Otherwise aiokafka
        could repeat the commit after the rebalance, and the broker would then reset the offset of a partition that may
        have a new owner.
        """
        self.joined = False
        self.generation += 1
        self.offsets_to_commit.clear()
        self._last_read_at.clear()
        self._started.clear()
        if self._committing is not None:
            self._committing.reschedule(_now())
        log.info("partitions revoked", partitions=_names(revoked))

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self.joined = True
        self._last_read_at = dict.fromkeys(assigned, _now())
        log.info("partitions assigned", partitions=_names(assigned))
        self.membership.assigned(assigned, _now())

    def unready_reason(self) -> str | None:
        """Return why a member of the group gets no messages; None if no reason is known."""
        missing = [topic for topic in self._config.topics if not self.consumer.partitions_for_topic(topic)]
        if missing:
            return f"no such topic, so far: {', '.join(missing)}"
        return self.membership.problem(_now()) or self.watch.problem

    async def _ask_brokers(self) -> None:
        """Ask the partitions' leaders and the group's coordinator. Raises KafkaError, TimeoutError or OSError.

        An error during which a rebalance began is not raised: a coordinator answers nothing else during a rebalance.
        """
        generation = self.generation
        known = {
            TopicPartition(topic, number)
            for topic in self._config.topics
            for number in self.consumer.partitions_for_topic(topic) or ()
        }
        try:
            async with self._deadline(self._config.session_timeout.total_seconds() / 2):
                if partitions := sorted(self.consumer.assignment() or known):
                    await self.consumer.end_offsets(partitions)
                    if self.joined:
                        await self.consumer.committed(partitions[0])
        except _CONNECTION_ERRORS:
            if generation == self.generation:
                raise

    def shorten_deadlines(self) -> None:
        """Cancel calls to the broker after `CLOSE_SECONDS`, so that a stop is quick even if the broker is down."""
        self._call_seconds = CLOSE_SECONDS
        soon = _now() + CLOSE_SECONDS
        for limit in self._timeouts:
            limit.reschedule(min(limit.when() or soon, soon))

    async def read(self) -> _KafkaBatch | None:
        """Return the next batch, or None if no message arrived within `POLL_MS`."""
        if _now() - self._committed_at >= COMMIT_EVERY:
            await self.flush()
        fetched = FetchResult(self.generation)
        await self._fetch(fetched, wait_ms=POLL_MS)
        await self._fetch_backlog(fetched)
        self._last_read_at.update(dict.fromkeys(fetched.next_offsets, _now()))
        if not fetched:
            await self.flush()
        await self._check_stall()
        return self._batch(fetched)

    async def extend(self, batch: _KafkaBatch) -> _KafkaBatch | None:
        """Return the batch with the messages added that have arrived since the batch was read."""
        fetched = batch.as_fetch_result()
        await self._drain_buffers(fetched)
        self._last_read_at.update(dict.fromkeys(fetched.next_offsets, _now()))
        return self._batch(fetched)

    def _batch(self, fetched: FetchResult) -> _KafkaBatch | None:
        if not fetched or fetched.generation != self.generation:
            return None
        return _KafkaBatch(
            fetched.records, fetched.undecodable, fetched.skipped, self, fetched.generation, fetched.next_offsets
        )

    async def flush(self) -> None:
        """Commit `offsets_to_commit`. Errors are only logged, because the messages are then just read again."""
        offsets, self.offsets_to_commit = self.offsets_to_commit, {}
        self._committed_at = _now()
        if not offsets:
            return
        try:
            async with self._deadline() as self._committing:
                await self.consumer.commit(offsets)
        except (KafkaError, TimeoutError) as error:
            log.warning("offsets were not committed: those messages may be read again", reason=describe(error))
        finally:
            self._committing = None

    async def lag(self) -> dict[TopicPartition, int]:
        """Return the number of unread messages of each assigned partition."""
        partitions = list(self.consumer.assignment())
        async with self._deadline():
            ends = await self.consumer.end_offsets(partitions) if partitions else {}
            return {part: max(end - await self.consumer.position(part), 0) for part, end in ends.items()}

    async def _fetch_backlog(self, fetched: FetchResult) -> None:
        """Fetch more if many messages are waiting and most fetched messages were skipped, so that the batch grows.

        Stops after `GATHER_SECONDS`.
        """
        until, before = _now() + GATHER_SECONDS, 0
        while len(fetched) - before >= BACKLOG_SIZE and len(fetched.records) < CHUNK and self._capacity(fetched):
            before = len(fetched)
            if (left := until - _now()) > 0:
                await self._fetch(fetched, wait_ms=math.ceil(1000 * left))

    async def _fetch(self, fetched: FetchResult, *, wait_ms: int) -> None:
        """Wait for one message, then empty aiokafka's buffers, with one call for each partition.

        With one call for all partitions, messages could be lost: if aiokafka raises an error for one partition, it has
        already removed other partitions' messages from its buffers.
        """
        try:
            await self._poll(fetched, wait_ms=wait_ms, most=1)
        except NoOffsetForPartitionError as error:
            await self._start(error.args[0])
        except OffsetOutOfRangeError as error:
            for partition, offset in error.args[0].items():
                await self._reset_offset(partition, offset)
        except _UNDECODABLE:
            for partition in self._assigned():  # all partitions, because the error does not name its partition
                await self._skip_undecodable(fetched, partition, most=1)
        if fetched:
            await self._drain_buffers(fetched)

    async def _drain_buffers(self, fetched: FetchResult) -> None:
        """Take the buffered messages of all partitions, until the batch has `max_poll_records` messages."""
        for partition in self._assigned():
            try:
                await self._drain_partition(fetched, partition)
            except (NoOffsetForPartitionError, OffsetOutOfRangeError):
                continue  # because the next `_fetch` gets the same error and handles it
            except _UNDECODABLE:
                await self._skip_undecodable(fetched, partition, most=self._capacity(fetched))

    async def _drain_partition(self, fetched: FetchResult, partition: TopicPartition) -> None:
        """Take the buffered messages of one partition, until the batch has `max_poll_records` messages."""
        while most := min(self._capacity(fetched), CHUNK):
            if await self._poll(fetched, partition, most=most) < most:
                return

    def _capacity(self, fetched: FetchResult) -> int:
        return max(self._config.max_poll_records - len(fetched), 0)

    def _assigned(self) -> list[TopicPartition]:
        """Return the assigned partitions, least recently read first, so that a busy partition delays no other."""
        return sorted(self.consumer.assignment(), key=lambda part: self._last_read_at.get(part, 0.0))

    async def _poll(self, fetched: FetchResult, *partitions: TopicPartition, wait_ms: int = 0, most: int) -> int:
        async with self._deadline(self._poll_seconds):
            taken = await self.consumer.getmany(*partitions, timeout_ms=wait_ms, max_records=most)
        fetched.start_over(self.generation)
        for partition, records in taken.items():
            wanted = [record for record in records if not self._skip(record.headers)]
            events = [record for record in wanted if record.value is not None]
            if len(events) < len(wanted):  # a compacted topic's tombstones: a key without a value
                self._on_skipped("tombstone", len(wanted) - len(events))
            fetched.records += events
            fetched.skipped += len(records) - len(events)
            fetched.next_offsets[partition] = records[-1].offset + 1
            self.last_timestamps[partition] = records[-1].timestamp / 1000
        return sum(map(len, taken.values()))

    async def _skip_undecodable(self, fetched: FetchResult, partition: TopicPartition, *, most: int) -> None:
        """Read a partition message by message. Adds undecodable messages to `fetched.undecodable` and skips them."""
        undecodable = False
        for _ in range(most):
            offset = await self._position(partition)
            try:
                taken = await self._poll(fetched, partition, wait_ms=POLL_MS, most=1)
            except _UNDECODABLE as error:
                fetched.start_over(self.generation)
                where = f"{partition.topic}/{partition.partition}@{offset}"
                fetched.undecodable.append((where, _undecodable_reason(error)))
                fetched.next_offsets[partition] = offset + 1
                self.consumer.seek(partition, offset + 1)
                undecodable = True
            else:
                if undecodable or not taken:
                    return

    async def _start(self, partition: TopicPartition) -> None:
        """Set the start position of all assigned partitions for which the group has no committed offset.

        `partition`: one of these partitions. The positions are committed, so that messages which are skipped are
        reported once.
        """
        async with self._deadline():
            others = [part for part in self._assigned() if part not in {partition, *self._started}]
            partitions = [partition, *[part for part in others if await self.consumer.committed(part) is None]]
        await self._seek_to_start(partitions)

    async def _seek_to_start(self, partitions: Collection[TopicPartition]) -> None:
        generation = self.generation
        since = await start_time(self._config.start, self._complete_since)
        async with self._deadline():
            positions = await start_positions(self.consumer, partitions, since)
        if generation != self.generation:
            return
        for part, position in positions.items():
            self.consumer.seek(part, position.offset)
            self.offsets_to_commit[part] = position.offset
        self._started.update(positions)
        await self.flush()
        skipped = sum(position.skipped for position in positions.values())
        begins = {"partitions": _names(positions), "start": str(self._config.start), "since": since.isoformat()}
        if not skipped:
            log.info("no offset was committed: reading begins", **begins)
            return
        self._on_skipped("before_start", skipped)
        log.warning(
            "no offset was committed: reading begins, and older messages are skipped",
            **begins,
            skipped=skipped,
            to_read_them="set kafka.start to earliest and kafka.group_id to a new name",
        )

    async def _reset_offset(self, partition: TopicPartition, expected: int) -> None:
        """Set a position that the broker has, because the broker has no message at the expected offset."""
        async with self._deadline():
            first: int = (await self.consumer.beginning_offsets([partition]))[partition]
        if first > expected:
            log.error(
                "messages expired before they were read: raise the topic's retention",
                partition=f"{partition.topic}/{partition.partition}",
                missed=first - expected,
                expected=expected,
                first=first,
            )
            self.consumer.seek(partition, first)
        else:
            log.error(
                "the topic ends before the committed offset: was it recreated? Reading begins as kafka.start says",
                partition=f"{partition.topic}/{partition.partition}",
                expected=expected,
                first=first,
            )
            await self._seek_to_start([partition])

    async def _position(self, partition: TopicPartition) -> int:
        async with self._deadline():
            offset: int = await self.consumer.position(partition)
            return offset

    @asynccontextmanager
    async def _deadline(self, seconds: float = CALL_SECONDS) -> AsyncIterator[asyncio.Timeout]:
        """Limit the duration of the `with` block. `shorten_deadlines` can shorten the limit. Raises TimeoutError."""
        async with asyncio.timeout(min(seconds, self._call_seconds)) as limit:
            self._timeouts.add(limit)
            try:
                yield limit
            finally:
                self._timeouts.discard(limit)

    async def _check_stall(self) -> None:
        """Raise KafkaError if nothing was read for `stall_timeout` although the broker has messages.

        This check is needed because an aiokafka consumer can stop getting messages without an error (aiokafka #1037).
        """
        limit = self._config.stall_timeout.total_seconds()
        now = _now()
        quiet = [part for part, read_at in self._last_read_at.items() if now - read_at >= limit]
        if not quiet:
            return
        lag = await self.lag()
        for partition in quiet:
            if lag.get(partition):
                raise KafkaError(f"no message of {_names([partition])[0]} for {limit:.0f} s, though there are some")
            self._last_read_at[partition] = now


class KafkaSource:
    """Yields the messages of the configured topics in batches. Implements `dispatcher.intake.source.Source`."""

    def __init__(
        self,
        config: KafkaConfig,
        skip: HeaderFilter = lambda _: False,
        complete_since: CompleteSince = always,
        on_skipped: Skipped = lambda _reason, _number: None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            config: the brokers, the topics and the group.
            skip: returns True for messages that intake does not need. Batches only count these messages.
            complete_since: returns the time at which `first-start` begins to read.
            on_skipped: called for skipped messages without a value, and for those before the start position.

        """
        self._config = config
        self._skip = skip
        self._complete_since = complete_since
        self._on_skipped = on_skipped
        self._stopped = False
        """True once `stop` was called."""
        self._stopping = asyncio.Event()
        """Set when `batches` has to end: by `stop`, or because its caller has left it."""
        self._session: ConsumerSession | None = None
        self._unready_reason = "not connected yet"
        """Why no messages arrive. Used only while the consumer is not a member of the group."""
        self._closing: set[asyncio.Task[None]] = set()

    async def batches(self) -> AsyncGenerator[Batch]:
        next_read: asyncio.Task[_KafkaBatch | None] | None = None
        if not self._stopped:  # an earlier call may have ended with an exception of its caller
            self._stopping.clear()
        try:
            while not self._stopping.is_set():
                read_ahead = next_read is not None and next_read.done()
                batch = await (next_read or self._read_with_retries())
                next_read = None
                if read_ahead and batch is not None:
                    batch = await self._read_with_retries(batch)
                if batch is not None:
                    # Read the next batch in the background, while the caller records this batch.
                    next_read = asyncio.create_task(self._read_with_retries())  # noqa: TID251 - a TaskGroup must not contain a `yield`
                    yield batch
        finally:
            self._leave()
            if next_read is not None:
                await asyncio.wait({next_read})
            await self._close(flush=True)

    async def wait(self, duration: timedelta) -> bool:
        await self._pause(duration.total_seconds())
        return not self._stopping.is_set()

    def stop(self) -> None:
        self._stopped = True
        self._leave()

    def _leave(self) -> None:
        self._stopping.set()
        if self._session is not None:
            self._session.shorten_deadlines()

    async def unready_reason(self) -> str | None:
        session = self._session
        if session is None or not session.joined:
            return self._unready_reason
        return session.unready_reason()

    async def lag(self) -> Mapping[tuple[str, int], int]:
        """Return the number of unread messages of each assigned partition, by topic and partition number.

        Raises KafkaError or TimeoutError if the broker does not answer.
        """
        lag = await self._session.lag() if self._session is not None else {}
        return {(part.topic, part.partition): behind for part, behind in lag.items()}

    def last_timestamps(self) -> Mapping[tuple[str, int], float]:
        """Return the timestamp of each assigned partition's last message that was read, in seconds since 1970."""
        if self._session is None:
            return {}
        assigned = self._session.consumer.assignment()
        timestamps = self._session.last_timestamps.items()
        return {(part.topic, part.partition): at for part, at in timestamps if part in assigned}

    async def _read_with_retries(self, read_ahead: _KafkaBatch | None = None) -> _KafkaBatch | None:
        """Call `_next_batch`. After each failure, call it again with a new consumer.

        The first call is made without tenacity, because tenacity is slow. If the first call fails, its error is passed
        to tenacity as the first attempt.
        """
        try:
            return await self._next_batch(read_ahead)
        except _RETRIED as error:
            failed: Exception | None = error
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_RETRIED),
            wait=wait_random_exponential(multiplier=0.5, max=15),
            sleep=self._pause,
            before_sleep=self._log_retry,
        )

        async def attempt() -> _KafkaBatch | None:
            nonlocal failed
            first, failed = failed, None
            if first is not None:
                raise first
            return await self._next_batch()

        batch: _KafkaBatch | None = await retrying(attempt)
        return batch

    async def _next_batch(self, read_ahead: _KafkaBatch | None = None) -> _KafkaBatch | None:
        """Return the next batch. None if the source was stopped, or no message arrived for `HEALTHY_SECONDS`.

        `read_ahead`: a batch that was read some time ago. It is returned with the messages that have arrived since.
        If the consumer fails, the consumer is closed and its error is raised.
        """
        try:
            if self._session is not None and read_ahead is not None and read_ahead.belongs_to(self._session):
                return await self._session.extend(read_ahead)
            healthy_at = _now() + HEALTHY_SECONDS
            while not self._stopping.is_set() and _now() < healthy_at:
                session = self._session or await self._connect()
                batch = await session.read()
                self._unready_reason = f"joining the group {self._config.group_id}"
                if batch is not None:
                    return batch
        except _RETRIED as error:
            self._unready_reason = describe(error)
            await self._close()
            if not self._stopping.is_set():
                raise
        return None

    async def _connect(self) -> ConsumerSession:
        self._session = ConsumerSession(self._config, self._skip, self._complete_since, self._on_skipped)
        await self._session.open()
        log.info("connected to Kafka", topics=self._config.topics, group=self._config.group_id)
        return self._session

    async def _close(self, *, flush: bool = False) -> None:
        """Close the consumer. If closing takes longer than `CLOSE_SECONDS`, it continues in the background.

        A close is never cancelled. After a cancelled close, aiokafka's tasks would still send heartbeats, so the
        partitions would stay assigned to a consumer that reads nothing.
        """
        session, self._session = self._session, None
        if session is None:
            return
        await session.watch.stop()
        if flush:
            await session.flush()
        closing = asyncio.create_task(session.consumer.stop())  # noqa: TID251 - closing may continue after this call
        self._closing.add(closing)
        closing.add_done_callback(self._log_close_error)
        await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
        if not closing.done():
            log.warning("the consumer did not close in time: it closes in the background")

    def _log_close_error(self, closing: asyncio.Task[None]) -> None:
        self._closing.discard(closing)
        if not closing.cancelled() and (error := closing.exception()) is not None:
            log.warning("the consumer did not close in order", reason=describe(error))

    def _log_retry(self, state: RetryCallState) -> None:
        pause = round(state.upcoming_sleep, 1)
        log.warning("Kafka failed: reconnecting", reason=self._unready_reason, after_seconds=pause)

    async def _pause(self, seconds: float) -> None:
        """Wait for `seconds`, or until the source is stopped."""
        await is_set_within(self._stopping, seconds)


def _names(partitions: Collection[TopicPartition]) -> list[str]:
    return sorted(f"{part.topic}/{part.partition}" for part in partitions)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _bounded(call: Any, seconds: float = CALL_SECONDS) -> Any:
    """Await a call with a deadline, because aiokafka may wait forever if the broker is down. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        return await call


def _undecodable_reason(error: Exception) -> str:
    match error:
        case CorruptRecordException():
            return "corrupt record: its checksum does not fit its bytes"
        case UnicodeDecodeError():
            return "unreadable record: the name of a header is not UTF-8"
        case _:
            return f"unreadable record: its batch can't be unpacked: {describe(error)}"


@dataclass(frozen=True, slots=True)
class Published:
    """The position of a published message in Kafka."""

    topic: str
    partition: int
    offset: int


class KafkaPublisher:
    """Publishes test events to Kafka. Its Kafka user needs only the right to write to the topic."""

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
            raise DispatcherError(f"Kafka at {self._servers} can't be reached: {describe(error)}") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _bounded(self._producer.stop(), 2 * CALL_SECONDS)

    async def send(
        self, topic: str, value: bytes, *, key: bytes | None = None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> Published:
        """Write one message and wait for the broker's acknowledgement. Raises DispatcherError."""
        try:
            sent = await _bounded(
                self._producer.send_and_wait(topic, value, key=key, headers=list(headers)), 2 * CALL_SECONDS
            )
        except (KafkaError, TimeoutError) as error:
            raise DispatcherError(f"Kafka did not take the message: {describe(error)}") from None
        return Published(sent.topic, sent.partition, sent.offset)


async def check(config: KafkaConfig) -> list[Finding]:
    """Check that the brokers answer and the topics can be read, and count the messages that the group has not read yet.

    Joins no group, creates no topic, commits no offset. Errors become findings and are not raised.
    """
    servers = config.bootstrap_servers
    try:
        options = config.connection()
    except OSError as error:  # ssl.SSLError is an OSError too
        return [Finding(f"kafka.ca_file, cert_file or password_file can't be used: {describe(error)}", ok=False)]
    admin = AIOKafkaAdminClient(**options, request_timeout_ms=CALL_SECONDS * 1000)
    consumer = AIOKafkaConsumer(
        **options,
        group_id=config.group_id,
        enable_auto_commit=False,
        isolation_level="read_committed",
        request_timeout_ms=CALL_SECONDS * 1000,
    )
    findings: list[Finding] = []
    try:
        await _bounded(admin.start())
        existing = {topic["topic"]: topic for topic in await _bounded(admin.describe_topics())}
        findings.append(Finding(f"{servers} is reached"))
        await _bounded(consumer.start())
        for topic in config.topics:
            findings += await _check_topic(consumer, config, topic, existing.get(topic))
    except _CONNECTION_ERRORS as error:
        what = "answered with an error" if findings else "can't be reached"
        advice = "check kafka.bootstrap_servers, security_protocol and the login"
        findings.append(Finding(f"{servers} {what}: {describe(error)}; {advice}", ok=False))
    finally:
        for close in (consumer.stop, admin.close):
            with suppress(*_CONNECTION_ERRORS):
                await _bounded(close(), CLOSE_SECONDS)
    return findings


async def _check_topic(
    consumer: AIOKafkaConsumer, config: KafkaConfig, topic: str, description: Mapping[str, Any] | None
) -> list[Finding]:
    """Check one topic. Raises `_CONNECTION_ERRORS`.

    `description`: the admin API's description of the topic; None if there is no such topic.
    """
    if description is None:
        advice = "is flyteadmin's cloudEvents.eventsPublisher.topicName the same, and may our user DESCRIBE it?"
        return [Finding(f"topic {topic} isn't there, or is hidden from us: {advice}", ok=False)]
    partitions = [TopicPartition(topic, partition["partition"]) for partition in description["partitions"]]
    group = f"group {config.group_id}"
    try:
        first = await _bounded(consumer.beginning_offsets(partitions))
        ends = await _bounded(consumer.end_offsets(partitions))
        newest = await _newest_message(
            consumer, {part: first[part] for part in partitions if ends[part] > first[part]}, ends
        )
    except _DENIED as error:
        return [Finding(f"topic {topic} may not be read by our user, give it READ: {describe(error)}", ok=False)]
    findings = [Finding(f"topic {topic} is there, {len(partitions)} partitions; {newest}")]
    try:
        committed = {part: await _bounded(consumer.committed(part)) for part in partitions}
    except _DENIED as error:
        return [*findings, Finding(f"{group} may not be used by our user, give it READ: {describe(error)}", ok=False)]
    lag = sum(max(ends[part] - max(committed[part] or 0, first[part]), 0) for part in partitions)
    if all(offset is None for offset in committed.values()):
        begins = _BEGINS[config.start] if isinstance(config.start, str) else f"with messages since {config.start}"
        has_read = f"has read nothing of {topic} yet; it begins {begins} (kafka.start)"
        return [*findings, Finding(f"{group} {has_read}; the topic has {lag} messages")]
    return [*findings, Finding(f"{group} is {lag} messages behind on {topic}")]


async def _newest_message(
    consumer: AIOKafkaConsumer, first: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> str:
    """Return a text that says when the topic's newest message was written. Also tests the right to read.

    `first`, `ends`: the first offset and the end of each partition; `first` has only partitions with messages.
    """
    if not first:
        return "no message has come yet: is cloudEvents.enable set in flyteadmin?"
    consumer.assign(list(first))
    for partition, offset in first.items():
        # Not only the last offset, because a transaction ends with an offset that has no message.
        consumer.seek(partition, max(ends[partition] - NEWEST_OFFSETS, offset))
    times: list[int] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(CALL_SECONDS):
            while [part for part in first if await consumer.position(part) < ends[part]]:
                taken = await consumer.getmany(timeout_ms=POLL_MS)
                times += [record.timestamp for records in taken.values() for record in records]
    if not times:
        return "its newest messages could not be read in time"
    return _newest(times)


def _newest(timestamps: Collection[int]) -> str:
    """Return a text with the newest of these timestamps, which are milliseconds since 1970.

    A producer may write any number: -1 if it has no clock, or microseconds, which are dates beyond the year 9999.
    """
    dates = {timestamp for timestamp in timestamps if 0 <= timestamp < END_OF_DATES_MS}
    odd = sorted({*timestamps} - dates)
    newest = "the newest message has no date"
    if dates:
        newest = f"the newest message is of {datetime.fromtimestamp(max(dates) / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{newest}; a producer writes {odd[0]} as the time of a message, which is no date" if odd else newest
