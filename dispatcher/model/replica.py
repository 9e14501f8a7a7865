"""What a replica writes about itself into the ledger, so that every reader of the ledger knows how each replica is."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

SEEN_WITHIN = timedelta(minutes=1)
"""A replica that wrote its row within this time counts as running. It writes every `replica_report.WRITE_INTERVAL`."""
MAX_WORKER_ID = 64
"""Maximum number of characters of a worker's id, which is the owner's name in leases."""


class ChannelStatus(BaseModel):
    """One channel's worker in one replica."""

    model_config = ConfigDict(frozen=True)

    in_flight: int = 0
    """Number of claimed deliveries that are not settled."""
    breaker_open_since: datetime | None = None
    """Since when the provider's circuit breaker is open; None if it is closed."""
    next_probe_at: datetime | None = None
    """When the open breaker lets the next delivery through, as a probe; None if it is closed."""


class Replica(BaseModel):
    """One process of `dispatcher serve`, as it described itself at `seen_at`."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    name: str
    """`HOST:PID`."""
    version: str
    started_at: datetime
    seen_at: datetime
    """When the replica wrote this, by the database's clock."""
    clock_offset: float
    """How many seconds the replica's clock is ahead of the database's; negative if it is behind."""
    channels: Mapping[str, ChannelStatus]
    """The configured channels, by name."""
    components: Mapping[str, str | None]
    """Mapping from a component's name to why it does not work, or to None if it works."""
    lag: int | None = None
    """Number of Kafka messages that its partitions have and it has not read. None without Kafka, or if unknown."""

    def seen(self, now: datetime) -> bool:
        """True if the replica has written its row within the last minute, so it most likely runs."""
        return now - self.seen_at <= SEEN_WITHIN


def worker_id(replica: str, channel: str) -> str:
    """Return the id of a replica's worker of one channel."""
    return f"{replica}:{channel}"[:MAX_WORKER_ID]
