"""How the owner of an execution was found, and what is kept of an owner who is not known."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class FoundBy(StrEnum):
    """The step that found whom to notify as the owner, in the order of the steps."""

    MAP = "map"
    LABEL = "label"
    PATTERN = "pattern"
    FALLBACK = "fallback"
    """No step found the owner, so the fallback contact is notified instead."""
    NOBODY = "nobody"
    """No step found the owner, and there is no fallback contact."""

    @property
    def known(self) -> bool:
        """True if a step found the owner."""
        return self not in {FoundBy.FALLBACK, FoundBy.NOBODY}


class UnresolvedOwner(NamedTuple):
    """Executions with the same principal and label, whose owner is not known, or has an address that doesn't exist."""

    principal: str
    """Who started the executions; empty if that is absent or not known."""
    label: str
    """The value of the label that names owners; empty as `principal`."""
    reason: str
    """Why the owner of the newest event is not known or not reached."""
    instead: str
    """The contact that was notified of that event instead; empty if nobody was."""
    event: str
    """The key of the newest event."""
    first_at: datetime
    """When the first of these events was recorded, or the owner's address found not to exist."""
    last_at: datetime
    """The same of the newest one."""
    events: int = 1
    """The number of these events."""
