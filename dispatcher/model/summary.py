"""What a digest or a summary tells: counts of its members. The ledger counts, and templates show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dispatcher.model.hold import HoldReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Some of the members: those of one launch plan and cause, or those that one link stands for."""

    launch_plan: str
    """`project/domain/name`; empty if the events don't name it."""
    phase: str
    cause: str
    """The fingerprint; empty if there is no error."""
    cause_name: str
    number: int
    """How many members."""
    first_at: datetime
    last_at: datetime
    """When the first and the last of these executions ended."""
    executions: Sequence[str]
    """The newest of them as `project/domain/name`, at most `MAX_LISTED`."""


MAX_LISTED = 50
"""A group lists at most this many executions."""
MAX_GROUPS = 200
"""A summary has at most this many groups, the largest first; `more` counts the members of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What was held back for one address, and is told in one message."""

    key: str
    """The key of the digest's or the summary's delivery."""
    reason: HoldReason
    """What held the members back: a digest for a digest; else the last of a silence and of quiet hours."""
    by: str
    """The silence's id and reason, or whose quiet hours they are; empty for a digest."""
    since: datetime
    """When the first member was held."""
    until: datetime
    """When the hold ended."""
    number: int
    """How many members there are: failures, successes and notices."""
    groups: Sequence[Group]
    more: int
    """How many members are in groups that `groups` leaves out."""
    resolved: int
    """How many further failures were held, and were resolved before this message."""
    notices: int
    """How many members are notices that a delivery is dead. They are in `number`, and in no group."""
