"""Messages that were read from Kafka, and the partitions that they belong to."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiokafka import ConsumerRecord, TopicPartition


@dataclass(slots=True, eq=False)
class Assignment:
    """The partitions of this replica from one rebalance to the next, and how far they are read.

    Each rebalance replaces it. So the offsets of work that began before a rebalance are never committed: they are noted
    in an assignment that nobody looks at any more. Another replica may then read those messages again.
    """

    joined: bool = False
    """False from the start of a rebalance to its end."""
    last_read_at: dict[TopicPartition, float] = field(default_factory=dict)
    """Mapping from each partition to the time of the event loop at which messages of it were last read."""
    started: set[TopicPartition] = field(default_factory=set)
    """Partitions without a committed offset whose start position is set."""
    offsets_to_commit: dict[TopicPartition, int] = field(default_factory=dict)
    """Mapping from each partition to the offset that the next commit stores for it."""


@dataclass(slots=True)
class KafkaBatch:
    """Messages that one or several polls have fetched. Implements `dispatcher.intake.source.Batch`."""

    assignment: Assignment
    messages: list[ConsumerRecord] = field(default_factory=list)
    undecodable: list[tuple[str, str]] = field(default_factory=list)
    skipped: int = 0
    next_offsets: dict[TopicPartition, int] = field(default_factory=dict)
    """Mapping from each partition to the offset after its last fetched message."""

    def __len__(self) -> int:
        return len(self.messages) + len(self.undecodable) + self.skipped

    def position(self, message: ConsumerRecord) -> str:
        return f"{message.topic}/{message.partition}@{message.offset}"

    async def commit(self) -> None:
        self.assignment.offsets_to_commit.update(self.next_offsets)

    def move_to(self, assignment: Assignment) -> None:
        """If there was a rebalance, drop all messages, because the partitions' new owners read the messages again."""
        if assignment is not self.assignment:
            self.assignment = assignment
            self.messages.clear()
            self.undecodable.clear()
            self.skipped = 0
            self.next_offsets.clear()
