"""What is written into the ledger, and what is read out of it, beside the deliveries themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from dispatcher.model.delivery import Delivery, NewVersion, Outcome, Resolution, State
from dispatcher.model.event import Event
from dispatcher.model.rate_limit import AdmissionControl, Feedback
from dispatcher.tracing import UNSEEN, Span

BODY_KEPT = 64 * 1024
"""Bytes of a rejected message that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvent:
    """One terminal event, what was decided, and what is owed for it."""

    event: Event
    position: str
    verdict: str
    reason: str
    considered: Sequence[Mapping[str, Any]]
    """Each rule looked at: source, phases, channel, recipients, matched, reason."""
    deliveries: Sequence[Delivery]
    resolution: Resolution | None = None
    """What the event ends, if it is a success."""
    version: NewVersion | None = None
    """What is told where the launch plan's version is new; None where nobody wants to know."""
    kind: str = ""
    """What the message was (`decode.kind_of`); not stored."""
    span: Span = UNSEEN
    """The event's way into the ledger; its deliveries keep its trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectDispatch:
    """A courier's free hands, for what its channel owes next: what they take is claimed as it is written."""

    limit: int
    """How many deliveries they take."""
    lease: str
    until: datetime
    """How long what they take is theirs."""
    gate: AdmissionControl
    take: Callable[[Sequence[Delivery]], None]
    """Called once, with what they have got; with nothing where nothing was written."""


@dataclass(frozen=True, slots=True)
class RecordResult:
    """What a record has brought."""

    new: frozenset[str] = frozenset()
    """The keys of the events that were not in the ledger before."""
    left: Sequence[Delivery] = ()
    """What is owed for them and to be sent, and nobody has taken yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event as it stands in the ledger, and what was decided of it."""

    event: Event
    position: str
    recorded_at: datetime
    verdict: str
    reason: str
    considered: Sequence[Mapping[str, Any]]
    """Each rule looked at: source, phases, channel, recipients, matched, reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A message that could not be understood, or an event whose rules can't be known; kept for a replay."""

    id: str
    position: str
    received_at: datetime
    reason: str
    headers: Sequence[tuple[str, bytes]]
    body: bytes
    """The first `BODY_KEPT` bytes."""
    size: int
    event: str | None = None
    """The event's key, where that much was understood."""
    replayed_at: datetime | None = None

    @property
    def whole(self) -> bool:
        """Whether the body was kept whole, so that a replay can read it."""
        return len(self.body) == self.size


def rejected_id(position: str, value: bytes) -> str:
    """The same for the same message read again: from its position and its bytes."""
    digest = hashlib.sha256(position.encode())
    digest.update(b"\0")
    digest.update(value)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How one attempt ended, and what follows from it."""

    delivery: Delivery
    outcome: Outcome
    started_at: datetime
    ended_at: datetime
    follow_ups: Sequence[Delivery] = ()
    """Deliveries that this ending gives rise to: refused recipients of a mail, a fallback."""
    feedback: Feedback | None = None
    """What it says of the destination."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a worker got, and when it is worth its while to ask again."""

    deliveries: Sequence[Delivery]
    next_at: datetime | None = None
    """The first slot of those that had to wait; None where none had to."""
    more: bool = False
    """Whether more may be due that nobody looked at."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What one channel has still to do, and has given up."""

    oldest: datetime | None = None
    """When the oldest of those that wait was made."""
    waiting: int = 0
    due: int = 0
    """Those of the waiting that could go now and are in nobody's hands, as far as they were counted."""
    dead: int = 0
    broken: int = 0
    """Destinations whose breaker is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt, as it ended."""

    number: int
    started_at: datetime
    ended_at: datetime
    outcome: str
    status: str
    answer: str
    reason: str

    @property
    def latency(self) -> timedelta:
        return self.ended_at - self.started_at


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDelivery:
    """A delivery as it stands in the ledger, with what became of it."""

    delivery: Delivery
    settled_at: datetime | None
    reference: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryFilter:
    """Which deliveries are meant; everything given must hold."""

    states: frozenset[State] = frozenset()
    channel: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    """Made before then."""
    execution: str | None = None
    """`project/domain/name`, or a name alone."""
    launch_plan: str | None = None
    """Its name."""
    recipient: str | None = None
    """Whole, as a rule names it or as the channel addresses it; the case of ASCII's letters doesn't count."""
    keys: Sequence[str] = ()
    """Keys, or their beginnings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which terminal events are meant; everything given must hold."""

    execution: str | None = None
    """`project/domain/name`, or a name alone."""
    launch_plan: str | None = None
    project: str | None = None
    domain: str | None = None
    phase: str | None = None
    verdict: str | None = None
    since: datetime | None = None
    """Recorded then or later."""
    until: datetime | None = None
    """Recorded before then."""
