"""The interface of a source that yields batches of messages, such as Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

REST = timedelta(milliseconds=20)
"""How long a source rests after a batch of few messages, unless `intake.rest` says otherwise."""
BACKLOG_SIZE = 100
"""If a source reads at least this many messages at once, more messages are probably waiting (a backlog)."""


@dataclass(slots=True)
class Rest:
    """The pause of a source after a batch of few messages, so that the next batch is larger.

    Each batch costs a fetch, transactions and thread switches, even if it has one message. The rest ends a fixed time
    after its batch was read, so a message that comes after a longer silence is read at once. A backlog never rests.
    """

    length: timedelta
    pause: Callable[[], None] = lambda: None
    """Called when a rest begins."""
    resume: Callable[[], None] = lambda: None
    """Called when a rest ends."""
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._over.set()

    @property
    def resting(self) -> bool:
        return not self._over.is_set()

    def after(self, messages: int) -> None:
        """Begin a rest if a batch has few messages. Call this when the batch was read."""
        if self.length and 0 < messages < BACKLOG_SIZE:
            self._over.clear()
            self.pause()
            asyncio.get_running_loop().call_later(self.length.total_seconds(), self._end)

    async def wait(self) -> None:
        """Wait until the rest is over. Call this before the next batch is read."""
        await self._over.wait()

    def _end(self) -> None:
        self.resume()
        self._over.set()


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
