"""Where reading begins in a partition for which the consumer group has no committed offset (`kafka.start`).

This is the case at the first start, for a new partition, and after the broker has deleted the group's offsets, which it
does after `offsets.retention.minutes` without a member in the group.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from aiokafka import AIOKafkaConsumer, TopicPartition

from dispatcher.intake.kafka.config import EARLIEST

CompleteSince = Callable[[], Awaitable[datetime]]
"""A function that returns the time since which the ledger has all events. Raises LedgerUnavailable."""


@dataclass(frozen=True, slots=True)
class StartPosition:
    """Where reading begins in one partition."""

    offset: int
    skipped: int
    """Number of messages before `offset`. Deleted messages and transaction markers among them are counted too."""


async def always() -> datetime:
    """Return the earliest time. Use it as `CompleteSince` if there is no ledger: all messages are then read."""
    return datetime.min.replace(tzinfo=UTC)


async def start_time(start: Literal["first-start", "earliest"] | datetime, complete_since: CompleteSince) -> datetime:
    """Return the time from which messages are read. Raises the errors of `complete_since`."""
    if start == EARLIEST:
        return await always()
    return await complete_since() if isinstance(start, str) else start


async def start_positions(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition], since: datetime
) -> Mapping[TopicPartition, StartPosition]:
    """Find the first message of each partition that Kafka's timestamp dates at `since` or later.

    If a partition has no such message, its position is the end of the partition. The ends are asked for first, so that
    a message that arrives meanwhile is after the position. Raises KafkaError.
    """
    first = await consumer.beginning_offsets(partitions)
    milliseconds = int(since.timestamp() * 1000)
    if milliseconds <= 0:
        return {part: StartPosition(first[part], 0) for part in partitions}
    ends = await consumer.end_offsets(partitions)
    found = await consumer.offsets_for_times(dict.fromkeys(partitions, milliseconds))
    positions = {}
    for part in partitions:
        offset = max(found[part].offset if found[part] is not None else ends[part], first[part])
        positions[part] = StartPosition(offset, offset - first[part])
    return positions
