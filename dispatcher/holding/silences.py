"""Silences: what each covers, and when. Finding the silences of an event is `rules/silences.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dispatcher.model.hold import Then

LONGEST = timedelta(days=7)
"""No silence is longer, and no delivery is held longer, if the settings say nothing else (`holds.longest`)."""
LATE = timedelta(minutes=5)
"""Late comers of a silence that has ended gather for this long, and then there is one more summary."""
MAX_AHEAD = timedelta(minutes=5)
"""An event that is further in the future than this counts as an event of now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """A silence, as the ledger has it."""

    id: str
    matcher: Mapping[str, Any]
    """The matcher as JSON data, as its author wrote it."""
    author: str
    reason: str
    starts_at: datetime
    ends_at: datetime
    """The first moment at which it is not in force any more."""
    then: Then
    created_at: datetime
    begun: bool = True
    """True if what waited at its start was held, and if what it holds has the deadline of its last change."""

    def in_force(self, at: datetime) -> bool:
        return self.starts_at <= at < self.ends_at

    def occurred_within(self, occurred_at: datetime, now: datetime) -> bool:
        """True if an event of this time occurred within the silence. One of the future counts as an event of now."""
        return self.in_force(occurred_at if occurred_at <= now + MAX_AHEAD else now)

    def ends_after(self, now: datetime) -> datetime:
        """Return the end; for a late comer, for whom the silence is over, the end of the next `LATE` after it."""
        if now < self.ends_at:
            return self.ends_at
        return self.ends_at + LATE * ((now - self.ends_at) // LATE + 1)
