"""Reads events from Kafka, and works again after every failure of the broker and every rebalance.

A consumer object that has failed is replaced, never reused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from datetime import timedelta
from functools import partial
from random import Random

import structlog

from dispatcher.clock import is_set_within, loop_time
from dispatcher.errors import LedgerUnavailable
from dispatcher.intake.kafka.batch import KafkaBatch
from dispatcher.intake.kafka.config import CLOSE_SECONDS, KafkaConfig
from dispatcher.intake.kafka.failures import CONNECTION_ERRORS, describe
from dispatcher.intake.kafka.session import ConsumerSession, HeaderFilter, Skipped
from dispatcher.intake.kafka.start import CompleteSince, always
from dispatcher.intake.source import REST, Batch
from dispatcher.model.retry import RetryPolicy

log = structlog.get_logger(__name__)

HEALTHY_SECONDS = 60
"""A consumer that has worked for this many seconds counts as healthy. If it fails later, the first retry pause is
short again."""
_RETRY = RetryPolicy(initial=timedelta(seconds=0.5), ceiling=timedelta(seconds=15))
_RETRIED = (*CONNECTION_ERRORS, LedgerUnavailable)
"""After one of these errors, reading is retried. The ledger is needed for the start position `first-start`."""


class KafkaSource:
    """Yields the messages of the configured topics in batches. Implements `dispatcher.intake.source.Source`."""

    def __init__(
        self,
        config: KafkaConfig,
        skip: HeaderFilter = lambda _: False,
        complete_since: CompleteSince = always,
        on_skipped: Skipped = lambda _reason, _number: None,
        rng: Random | None = None,
        rest: timedelta = REST,
    ) -> None:
        """Connect to nothing yet.

        Args:
            config: the brokers, the topics and the group.
            skip: returns True for messages that intake does not need. Batches only count these messages.
            complete_since: returns the time at which `first-start` begins to read.
            on_skipped: called for skipped messages without a value, and for those before the start position.
            rng: chooses the pauses after failures.
            rest: how long partitions rest after a batch of few messages.

        """
        self._new_session = partial(ConsumerSession, config, skip, complete_since, on_skipped, rest)
        self._config = config
        self._rng = rng or Random()
        self._stopped = False
        """True once `stop` was called."""
        self._stopping = asyncio.Event()
        """Set when `batches` has to end: by `stop`, or because its caller has left it."""
        self._session: ConsumerSession | None = None
        self._connected_at = 0.0
        self._read_limit: asyncio.Timeout | None = None
        """The timeout of the running read, so that a stop can end it; None at other times."""
        self._unready_reason = "not connected yet"
        """Why no messages arrive. Used only while the consumer is not a member of the group."""
        self._closing: set[asyncio.Task[None]] = set()

    async def batches(self) -> AsyncGenerator[Batch]:
        next_batch: asyncio.Task[KafkaBatch | None] | None = None
        if not self._stopped:  # an earlier call may have ended with an exception of its caller
            self._stopping.clear()
        try:
            while not self._stopping.is_set():
                read_ahead = next_batch is not None and next_batch.done()
                batch = await (next_batch or self._next_batch())
                next_batch = None
                if read_ahead and batch is not None:
                    batch = await self._next_batch(batch)
                if batch is not None:
                    # Read the next batch in the background, while the caller records this batch.
                    next_batch = asyncio.create_task(self._next_batch())  # noqa: TID251 - a TaskGroup must not contain a `yield`
                    yield batch
        finally:
            self._leave()
            if next_batch is not None:
                await asyncio.wait({next_batch})
            await self._close(flush=True)

    async def wait(self, duration: timedelta) -> bool:
        return not await is_set_within(self._stopping, duration.total_seconds())

    def stop(self) -> None:
        self._stopped = True
        self._leave()

    def _leave(self) -> None:
        """End `batches`. A running read gets `CLOSE_SECONDS`, so that a stop is quick even if the broker is down."""
        if self._read_limit is not None and not self._stopping.is_set():
            self._read_limit.reschedule(loop_time() + CLOSE_SECONDS)
        self._stopping.set()

    async def unready_reason(self) -> str | None:
        session = self._session
        if session is None or not session.assignment.joined:
            return self._unready_reason
        return session.unready_reason()

    async def lag(self) -> Mapping[tuple[str, int], int]:
        """Return the number of unread messages of each assigned partition, by topic and partition number.

        Raises KafkaError or TimeoutError if the broker does not answer.
        """
        return await self._session.lag() if self._session is not None else {}

    def last_timestamps(self) -> Mapping[tuple[str, int], float]:
        """Return the timestamp of each assigned partition's last message that was read, in seconds since 1970."""
        session = self._session
        if session is None:
            return {}
        return {part: at for part, at in session.last_timestamps.items() if part in session.consumer.assignment()}

    async def _next_batch(self, read_ahead: KafkaBatch | None = None) -> KafkaBatch | None:
        """Return the next batch, or None if the source was stopped. After each failure, read with a new consumer.

        `read_ahead`: a batch that was read some time ago. It is returned with the messages that have arrived since. If
        its consumer has failed or there was a rebalance, its messages are read again.
        """
        failures = 0
        while not self._stopping.is_set():
            try:
                batch = await self._read(read_ahead)
            except _RETRIED as error:
                self._unready_reason = describe(error)
                await self._close()
                if not self._stopping.is_set():
                    failures = 1 if loop_time() - self._connected_at >= HEALTHY_SECONDS else failures + 1
                    await self._pause(_RETRY.delay(failures, self._rng))
            else:
                if batch is not None:
                    return batch
            read_ahead = None
        return None

    async def _read(self, read_ahead: KafkaBatch | None) -> KafkaBatch | None:
        """Read once; connect before that if necessary. Returns None if no message arrived in time.

        Raises TimeoutError `CLOSE_SECONDS` after a stop. That cancels a call of the consumer, so it must be closed then.
        """
        try:
            async with asyncio.timeout(None) as self._read_limit:
                session = self._session or await self._connect()
                if read_ahead is not None and read_ahead.assignment is session.assignment:
                    batch = read_ahead
                    await session.drain_buffers(batch)
                else:
                    batch = await session.read()
                self._unready_reason = f"joining the group {self._config.group_id}"
                return batch if batch and batch.assignment is session.assignment else None
        finally:
            self._read_limit = None

    async def _connect(self) -> ConsumerSession:
        self._connected_at = loop_time()
        self._session = self._new_session()
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
            await session.flush(CLOSE_SECONDS)
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

    async def _pause(self, pause: timedelta) -> None:
        """Wait before the next connection, or until the source is stopped."""
        seconds = pause.total_seconds()
        log.warning("Kafka failed: reconnecting", reason=self._unready_reason, after_seconds=round(seconds, 1))
        await is_set_within(self._stopping, seconds)
