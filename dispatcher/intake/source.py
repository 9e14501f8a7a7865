"""The interface of a source of batches, such as Kafka."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import timedelta
from typing import Protocol


class RawMessage(Protocol):
    """One message, with the attributes of aiokafka's ConsumerRecord, so that records need no wrapper."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...

    @property
    def value(self) -> bytes | None: ...


class Batch(Protocol):
    """Messages that are committed together."""

    @property
    def messages(self) -> Sequence[RawMessage]: ...

    @property
    def undecodable(self) -> Sequence[tuple[str, str]]:
        """Position and reason of each message that the source could not read."""

    @property
    def skipped(self) -> int:
        """Number of further messages that the source's filter skipped."""

    def position(self, message: RawMessage) -> str:
        """Return where the message came from, as `topic/partition@offset`."""

    async def commit(self) -> None:
        """Note that the batch is recorded. The source yields it again only if a rebalance moved its partitions."""


class Source(Protocol):
    """Yields batches, one at a time and in order.

    Backpressure: while the caller works on a batch, at most one more is fetched. However long the caller works, the
    source stays a member of its consumer group. A batch that is never committed is yielded again after a restart.
    Shutdown: after `stop`, `batches` ends when the caller asks for the next batch, and the source leaves the group
    within seconds, even if the broker is down. The source also leaves the group if `batches` is cancelled or closed
    early, so use `batches` with `contextlib.aclosing`.
    """

    def batches(self) -> AsyncGenerator[Batch]:
        """Yield batches until stopped. The source handles its own failures: it retries forever and raises nothing."""

    async def wait(self, duration: timedelta) -> bool:
        """Wait before a retry of the current batch. Returns False if the source was stopped.

        The caller then drops the batch, which is yielded again after a restart.
        """

    def stop(self) -> None:
        """Make `batches` end."""

    async def unready_reason(self) -> str | None:
        """Return why no messages arrive, for /readyz; None if the source is ready."""
