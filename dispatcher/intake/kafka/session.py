"""One Kafka consumer, from joining its group to its first failure: what it reads, and which offsets it commits.

Offsets are committed after the ledger's transaction. A message that is read twice changes nothing in the ledger.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from dispatcher.clock import loop_time
from dispatcher.intake.kafka.batch import Assignment, KafkaBatch
from dispatcher.intake.kafka.config import CALL_SECONDS, KafkaConfig
from dispatcher.intake.kafka.failures import CONNECTION_ERRORS, UNDECODABLE, describe, undecodable_reason
from dispatcher.intake.kafka.health import BrokerWatch, StaticMembership
from dispatcher.intake.kafka.start import CompleteSince, start_positions, start_time
from dispatcher.intake.source import BACKLOG_SIZE, Rest

log = structlog.get_logger(__name__)

Skipped = Callable[[str, int], None]
"""A function that counts messages that are not processed. It gets the reason, `before_start` or `tombstone`, and their
number."""
HeaderFilter = Callable[[Sequence[tuple[str, bytes]]], bool]
"""A function that gets a message's headers, and returns True if the message can be skipped."""

FETCH_BYTES = 256 * 1024
"""Maximum number of bytes that are fetched from a partition at once and buffered. It is small, because aiokafka needs
about four times as much memory: three copies of the response that it parses, and one of the previous response."""
GATHER_SECONDS = 0.05
GATHER_MESSAGES = 500
"""During a backlog, a batch collects further messages for this long at most, until it has this many. A larger batch
saves transactions, because each batch costs one transaction even if most of its messages are skipped."""
POLL_MS = 500
"""Maximum number of milliseconds that a poll waits for messages. After this time, the source notices a stop."""
COMMIT_EVERY = 1.0
"""Seconds between two commits. After a crash, the messages since the last commit are read again; the ledger ignores
them as duplicates."""
ASKS_PER_SESSION = 5
"""How often the brokers are asked within one session timeout. An answer may take half of it, so silent brokers are
noticed in 70 % of the session timeout."""
NO_LIMIT_MS = 10**12
"""A `max_poll_interval_ms` so large that aiokafka never removes the consumer from its group, even if nothing is polled.
While the ledger is unavailable, intake keeps its batch and does not poll. aiokafka sends heartbeats and rejoins the
group without polls."""


class ConsumerSession(ConsumerRebalanceListener):  # type: ignore[misc]  # the base class has no types
    """One Kafka consumer, used from the time it joins the group until it fails or is closed.

    Every call to the broker has a deadline, because aiokafka may wait forever if the broker is down. All methods but
    `flush` raise KafkaError, TimeoutError or OSError; `read` raises LedgerUnavailable too.
    """

    def __init__(
        self,
        config: KafkaConfig,
        skip: HeaderFilter,
        complete_since: CompleteSince,
        on_skipped: Skipped,
        rest: timedelta,
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
        self._committing: asyncio.Timeout | None = None
        self._committed_at = loop_time()
        self.rest = Rest(rest, self._pause, self._resume)
        self.assignment = Assignment()
        self.watch = BrokerWatch(self._ask_brokers, every=session_ms / 1000 / ASKS_PER_SESSION)
        self.membership = StaticMembership(config.group_instance_id, session_ms / 1000)
        self.last_timestamps: dict[TopicPartition, float] = {}
        """Mapping from each partition to the timestamp of its last message that was read, in seconds since 1970."""

    async def open(self) -> None:
        """Connect to the broker and subscribe. The first `read` joins the group. A missing topic is no error."""
        async with asyncio.timeout(CALL_SECONDS):
            await self.consumer.start()
        self.consumer.subscribe(topics=list(self._config.topics), listener=self)
        self.watch.start()

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Leave the assignment, because a rebalance always revokes all partitions.

        The rebalance waits for this method, so it must be quick. A running commit is cancelled. Otherwise aiokafka
        could repeat the commit after the rebalance, and the broker would then reset the offset of a partition that may
        have a new owner.
        """
        self.assignment = Assignment()
        if self._committing is not None:
            self._committing.reschedule(loop_time())
        log.info("partitions revoked", partitions=_names(revoked))

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self.assignment = Assignment(joined=True, last_read_at=dict.fromkeys(assigned, loop_time()))
        log.info("partitions assigned", partitions=_names(assigned))
        self.membership.assigned(assigned, loop_time())

    def unready_reason(self) -> str | None:
        """Return why a member of the group gets no messages; None if no reason is known."""
        missing = [topic for topic in self._config.topics if not self.consumer.partitions_for_topic(topic)]
        if missing:
            return f"no such topic, so far: {', '.join(missing)}"
        return self.membership.problem(loop_time()) or self.watch.problem

    async def _ask_brokers(self) -> None:
        """Ask the partitions' leaders and the group's coordinator. Raises KafkaError, TimeoutError or OSError.

        An error during which a rebalance began is not raised: a coordinator answers nothing else during a rebalance.
        """
        assignment = self.assignment
        known = {
            TopicPartition(topic, number)
            for topic in self._config.topics
            for number in self.consumer.partitions_for_topic(topic) or ()
        }
        try:
            async with asyncio.timeout(self._config.session_timeout.total_seconds() / 2):
                if partitions := sorted(self.consumer.assignment() or known):
                    await self.consumer.end_offsets(partitions)
                    if self.assignment.joined:
                        await self.consumer.committed(partitions[0])
        except CONNECTION_ERRORS:
            if assignment is self.assignment:
                raise

    async def read(self) -> KafkaBatch:
        """Wait until the rest is over, and return the next batch. It is empty if no message arrives within `POLL_MS`."""
        await self.rest.wait()
        if loop_time() - self._committed_at >= COMMIT_EVERY:
            await self.flush()
        batch = KafkaBatch(self.assignment)
        await self._fetch(batch, wait_ms=POLL_MS)
        await self._fetch_backlog(batch)
        if self._capacity(batch):
            self.rest.after(len(batch))
        if not batch:
            await self.flush()
        await self._check_stall()
        return batch

    def _pause(self) -> None:
        """Fetch nothing during a rest. aiokafka would otherwise fetch each message as soon as it arrives."""
        self.consumer.pause(*self.consumer.assignment())

    def _resume(self) -> None:
        self.consumer.resume(*self.consumer.paused())

    async def flush(self, seconds: float = CALL_SECONDS) -> None:
        """Commit the offsets. Errors are only logged, because the messages are then just read again."""
        offsets, self.assignment.offsets_to_commit = self.assignment.offsets_to_commit, {}
        self._committed_at = loop_time()
        if not offsets:
            return
        try:
            async with asyncio.timeout(seconds) as self._committing:
                await self.consumer.commit(offsets)
        except (KafkaError, TimeoutError) as error:
            log.warning("offsets were not committed: those messages may be read again", reason=describe(error))
        finally:
            self._committing = None

    async def lag(self) -> dict[TopicPartition, int]:
        """Return the number of unread messages of each assigned partition."""
        partitions = list(self.consumer.assignment())
        async with asyncio.timeout(CALL_SECONDS):
            ends = await self.consumer.end_offsets(partitions) if partitions else {}
            return {part: max(end - await self.consumer.position(part), 0) for part, end in ends.items()}

    async def _fetch_backlog(self, batch: KafkaBatch) -> None:
        """Fetch more if many messages are waiting and most fetched messages were skipped, so that the batch grows.

        Stops after `GATHER_SECONDS`.
        """
        until, before = loop_time() + GATHER_SECONDS, 0
        while len(batch) - before >= BACKLOG_SIZE and len(batch.messages) < GATHER_MESSAGES and self._capacity(batch):
            before = len(batch)
            if (left := until - loop_time()) > 0:
                await self._fetch(batch, wait_ms=math.ceil(1000 * left))

    async def _fetch(self, batch: KafkaBatch, *, wait_ms: int) -> None:
        """Wait for one message, then empty aiokafka's buffers, with one call for each partition.

        With one call for all partitions, messages could be lost: if aiokafka raises an error for one partition, it has
        already removed other partitions' messages from its buffers.
        """
        try:
            await self._poll(batch, wait_ms=wait_ms, most=1)
        except (NoOffsetForPartitionError, OffsetOutOfRangeError):
            await self._correct_positions()
        except UNDECODABLE:
            for partition in self._assigned():  # all partitions, because the error does not name its partition
                await self._skip_undecodable(batch, partition, most=1)
        if batch:
            await self.drain_buffers(batch)

    async def drain_buffers(self, batch: KafkaBatch) -> None:
        """Add the buffered messages of all partitions, until the batch has `max_poll_records` messages.

        Adds none during a rest: aiokafka drops what it has fetched of a paused partition if somebody asks for it.
        """
        if self.rest.resting:
            return
        for partition in self._assigned():
            try:
                if most := self._capacity(batch):
                    await self._poll(batch, partition, most=most)
            except (NoOffsetForPartitionError, OffsetOutOfRangeError):
                continue  # because the next `_fetch` gets the same error and handles it
            except UNDECODABLE:
                await self._skip_undecodable(batch, partition, most=self._capacity(batch))
        batch.assignment.last_read_at.update(dict.fromkeys(batch.next_offsets, loop_time()))

    def _capacity(self, batch: KafkaBatch) -> int:
        return max(self._config.max_poll_records - len(batch), 0)

    def _assigned(self) -> list[TopicPartition]:
        """Return the assigned partitions, least recently read first, so that a busy partition delays no other."""
        return sorted(self.consumer.assignment(), key=lambda part: self.assignment.last_read_at.get(part, 0.0))

    async def _poll(self, batch: KafkaBatch, *partitions: TopicPartition, wait_ms: int = 0, most: int) -> bool:
        """Add up to `most` messages of these partitions, or of any. Returns False if there are none."""
        async with asyncio.timeout(self._poll_seconds):
            taken = await self.consumer.getmany(*partitions, timeout_ms=wait_ms, max_records=most)
        batch.move_to(self.assignment)
        for partition, records in taken.items():
            wanted = [record for record in records if not self._skip(record.headers)]
            events = [record for record in wanted if record.value is not None]
            if len(events) < len(wanted):  # a compacted topic's tombstones: a key without a value
                self._on_skipped("tombstone", len(wanted) - len(events))
            batch.messages += events
            batch.skipped += len(records) - len(events)
            batch.next_offsets[partition] = records[-1].offset + 1
            self.last_timestamps[partition] = records[-1].timestamp / 1000
        return bool(taken)

    async def _skip_undecodable(self, batch: KafkaBatch, partition: TopicPartition, *, most: int) -> None:
        """Read a partition message by message. Adds undecodable messages to `batch.undecodable` and skips them."""
        undecodable = False
        for _ in range(most):
            try:
                taken = await self._poll(batch, partition, wait_ms=POLL_MS, most=1)
            except UNDECODABLE as error:
                async with asyncio.timeout(CALL_SECONDS):
                    offset: int = await self.consumer.position(partition)
                batch.move_to(self.assignment)
                where = f"{partition.topic}/{partition.partition}@{offset}"
                batch.undecodable.append((where, undecodable_reason(error)))
                batch.next_offsets[partition] = offset + 1
                self.consumer.seek(partition, offset + 1)
                undecodable = True
            else:
                if undecodable or not taken:
                    return

    async def _correct_positions(self) -> None:
        """Set a position in each assigned partition that has none, or one at which the broker has no message.

        A start position is set if the group has no committed offset. It is committed, so that messages which are
        skipped are reported once.
        """
        partitions = self._assigned()
        async with asyncio.timeout(CALL_SECONDS):
            unread = [part for part in partitions if part not in self.assignment.started]
            new = [part for part in unread if await self.consumer.committed(part) is None]
        if new:
            await self._seek_to_start(new)
            return
        async with asyncio.timeout(CALL_SECONDS):
            first = await self.consumer.beginning_offsets(partitions)
            ends = await self.consumer.end_offsets(partitions)
            expected = {part: await self.consumer.position(part) for part in partitions}
        for part, offset in expected.items():
            place = {"partition": f"{part.topic}/{part.partition}", "expected": offset, "first": first[part]}
            if offset < first[part]:
                log.error(
                    "messages expired before they were read: raise the topic's retention",
                    missed=first[part] - offset,
                    **place,
                )
                self.consumer.seek(part, first[part])
            elif offset > ends[part]:
                log.error(
                    "the topic ends before the committed offset: was it recreated? Reading begins as kafka.start says",
                    **place,
                )
                await self._seek_to_start([part])

    async def _seek_to_start(self, partitions: Collection[TopicPartition]) -> None:
        assignment = self.assignment
        since = await start_time(self._config.start, self._complete_since)
        async with asyncio.timeout(CALL_SECONDS):
            positions = await start_positions(self.consumer, partitions, since)
        if assignment is not self.assignment:
            return
        for part, position in positions.items():
            self.consumer.seek(part, position.offset)
            assignment.offsets_to_commit[part] = position.offset
        assignment.started.update(positions)
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

    async def _check_stall(self) -> None:
        """Raise KafkaError if nothing was read for `stall_timeout` although the broker has messages.

        This check is needed because an aiokafka consumer can stop getting messages without an error (aiokafka #1037).
        """
        limit = self._config.stall_timeout.total_seconds()
        now = loop_time()
        quiet = [part for part, read_at in self.assignment.last_read_at.items() if now - read_at >= limit]
        if not quiet:
            return
        lag = await self.lag()
        for partition in quiet:
            if lag.get(partition):
                raise KafkaError(f"no message of {_names([partition])[0]} for {limit:.0f} s, though there are some")
            self.assignment.last_read_at[partition] = now


def _names(partitions: Collection[TopicPartition]) -> list[str]:
    return sorted(f"{part.topic}/{part.partition}" for part in partitions)
