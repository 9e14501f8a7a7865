"""Numbers of what is held back: for metrics and the health page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select

from dispatcher.ledger.engine import Database
from dispatcher.ledger.holds import IS_HELD
from dispatcher.ledger.schema import deliveries, digests, silences
from dispatcher.model.hold import HoldReason


class HeldBy(NamedTuple):
    """The deliveries of one channel that are held for one reason."""

    channel: str
    reason: HoldReason


class HeldNumbers(NamedTuple):
    """Numbers of some held deliveries."""

    number: int
    oldest: datetime
    """When the first of them was held."""
    first_end: datetime
    """When the first of their holds ends. A time before now: the releaser is late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldFigures:
    """What is held now."""

    held: Mapping[HeldBy, HeldNumbers] = field(default_factory=dict)
    open_digests: Mapping[str, int] = field(default_factory=dict)
    """The number of addresses whose digest gathers members, by channel."""
    silences_in_force: int = 0


class HeldDeliveries:
    """Reads numbers of what is held. Raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def figures(self, *, now: datetime) -> HoldFigures:
        """Return what is held now. Reads all held deliveries, through their index."""
        channel, hold, number = deliveries.c.channel, deliveries.c.hold, func.count()
        times = (func.min(deliveries.c.held_since), func.min(deliveries.c.due_at))
        held = select(channel, hold, number, *times).where(*IS_HELD).group_by(channel, hold)
        opened = select(digests.c.channel, number).where(digests.c.closes_at.is_not(None)).group_by(digests.c.channel)
        in_force = select(number).where(silences.c.starts_at <= now, silences.c.ends_at > now)
        async with self._database.reading() as connection:
            return HoldFigures(
                held={HeldBy(*row[:2]): HeldNumbers(*row[2:]) for row in await connection.execute(held)},
                open_digests={row[0]: row[1] for row in await connection.execute(opened)},
                silences_in_force=await connection.scalar(in_force) or 0,
            )
