"""The interface of a source that yields batches of messages, such as Kafka."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import timedelta
from typing import Protocol


class RawMessage(Protocol):
    """One message. It has the attributes of aiokafka's ConsumerRecord, so that ConsumerRecords can be used directly."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """Names and values. A value is None if the producer sent a header without a value."""

    @property
    def value(self) -> bytes | None: ...


class Batch(Protocol):
    """Messages that are read together and committed together."""

    @property
    def messages(self) -> Sequence[RawMessage]: ...

    @property
    def undecodable(self) -> Sequence[tuple[str, str]]:
        """Position of each message that the source could not decode, and the reason."""

    @property
    def skipped(self) -> int:
        """Number of messages that the source's filter skipped. They are not in `messages`."""

    def position(self, message: RawMessage) -> str:
        """Return the message's position in Kafka, as `topic/partition@offset`."""

    async def commit(self) -> None:
        """Note that the batch is recorded. It is not yielded again, unless a rebalance moves its partitions."""


class Source(Protocol):
    """Yields batches, one at a time and in order.

    Backpressure: while the caller works on a batch, the source fetches at most one more batch. The source stays a
    member of its consumer group, however long the caller works. If a batch is not committed, its messages are yielded
    again after a restart.

    Shutdown: after `stop`, `batches` ends when the caller asks for the next batch. The source then leaves the group
    within seconds, even if the broker is down. It also leaves the group if `batches` is cancelled or closed early, so
    the caller should use `contextlib.aclosing`.
    """

    def batches(self) -> AsyncGenerator[Batch]:
        """Yield batches until the source is stopped. After a failure, the source retries forever and raises nothing.

        If the caller leaves the generator before `stop`, the source leaves the group, and may be called again.
        """

    async def wait(self, duration: timedelta) -> bool:
        """Wait before the caller retries the current batch. Returns False if the source was stopped.

        If the source was stopped, the caller drops the batch. Its messages are yielded again after a restart.
        """

    def stop(self) -> None:
        """Stop the source, so that `batches` ends."""

    async def unready_reason(self) -> str | None:
        """Return why no messages arrive, for the page /readyz. None if the source is ready."""
