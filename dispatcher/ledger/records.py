"""Values that the ledger's methods take and return, except `Delivery`, which is in `model`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, NamedTuple, Self, TypeVar

from channels.contract import Thread
from dispatcher.holding.silences import Silence
from dispatcher.model.delivery import Delivery, Kind, NewVersion, Outage, Outcome, State, Success
from dispatcher.model.event import Event
from dispatcher.model.owner import UnresolvedOwner
from dispatcher.model.rate_limit import Feedback
from dispatcher.model.status import DeliveryStatus, status_of
from dispatcher.model.streak import StreakEvent
from dispatcher.model.waiting import Wait
from dispatcher.tracing import NO_SPAN, Span

_Entry = TypeVar("_Entry")
BODY_KEPT = 64 * 1024
"""Maximum number of bytes that the ledger stores of a rejected message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEvent:
    """A terminal event to record, with its verdict and its deliveries."""

    event: Event
    position: str
    """Where the message came from: `TOPIC/PARTITION@OFFSET` for Kafka, or the name of another source."""
    verdict: str
    reason: str
    considered: Sequence[Mapping[str, Any]]
    """The evaluated rules, each with the keys name, defined_at, phases, channel, recipients, matched and reason."""
    deliveries: Sequence[Delivery]
    success: Success | None = None
    """Ends open threads and drops held failures, if this event is a success; None for other events."""
    version: NewVersion | None = None
    """The launch plan's version, and the change events that report it if it is new. None if no rule asks for change
    events."""
    streak: StreakEvent | None = None
    """What the event means for its launch plan's streak, and the routes that wait for it. None if no route has a streak."""
    unresolved_owner: UnresolvedOwner | None = None
    """The execution's owner, if routes name the owner, who is not known; else None."""
    rules_version: str = ""
    """A hash of the rule files by which the event was decided; empty if there were none."""
    cause: str = ""
    """The fingerprint of the error, such as `v1:5f0c2a9d81e4b637`; empty if the event has no error."""
    cause_name: str = ""
    """A short name of the cause for people; empty if the event has no error."""
    silences: Sequence[Silence] = ()
    """The silences whose matcher holds for the event: those that are in force, and those that were or will be
    (`rules/silences.py`). The ledger does not store them."""
    kind: str = ""
    """The message's type (`decode.type_label`), a label of the metrics. The ledger does not store it."""
    span: Span = NO_SPAN
    """The event's tracing span, from its message to the ledger. Each delivery of the event stores the span's trace."""


@dataclass(frozen=True, slots=True)
class RecordResult:
    """The result of `Ledger.record`."""

    new: frozenset[str] = frozenset()
    """Keys of the events that were recorded for the first time."""
    waiting: Sequence[Delivery] = ()
    """The waiting deliveries of the new events, without those that are held."""
    completed: Mapping[str, RecordedEvent] = field(default_factory=dict)
    """Mapping from the key of each new event that the ledger has completed to the event as it was recorded: with the routes
    that fired after a streak, and with resolved notices in its reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """A recorded event and its verdict."""

    event: Event
    position: str
    recorded_at: datetime
    verdict: str
    reason: str
    considered: Sequence[Mapping[str, Any]]
    """The evaluated rules, each with the keys name, defined_at, phases, channel, recipients, matched and reason."""
    rules_version: str = ""
    """A hash of the rule files by which the event was decided; empty if there were none."""
    cause: str = ""
    """The fingerprint of the error; empty if the event has no error."""
    cause_name: str = ""
    """A short name of the cause; empty if the event has no error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedSummary:
    """What lists show of a rejected message."""

    id: str
    position: str
    received_at: datetime
    reason: str
    event: str | None = None
    """The event's key; None if it can't be read from the message."""
    size: int
    """Number of bytes in the whole message."""
    replayed_at: datetime | None = None
    dismissed_at: datetime | None = None
    """When an operator dismissed it, because nobody needs its notifications; None if nobody did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected(RejectedSummary):
    """A message that could not be read, or an event whose rules are unknown or that the ledger could not write. It is
    kept for a replay.
    """

    headers: Sequence[tuple[str, bytes]]
    body: bytes
    """The stored bytes: at most the first `BODY_KEPT` bytes of the message."""

    @property
    def whole(self) -> bool:
        """True if all bytes of the message are stored, so that the message can be replayed."""
        return len(self.body) == self.size


def rejected_id(position: str, value: bytes) -> str:
    """Return a rejected message's id, a hash of position and bytes: the same if the message is read again."""
    digest = hashlib.sha256(position.encode())
    digest.update(b"\0")
    digest.update(value)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The outcome of one attempt, and the changes that follow from it."""

    delivery: Delivery
    outcome: Outcome
    started_at: datetime
    ended_at: datetime
    follow_ups: Sequence[Delivery] = ()
    """New deliveries that follow from the outcome: to recipients whom the mail relay refused, through a fallback
    channel, or to fallback recipients."""
    unresolved_owner: UnresolvedOwner | None = None
    """The execution's owner, if the delivery was the owner's and no provider knows the address; else None."""
    feedback: Feedback | None = None
    """The attempt's effect on the destination's state; None if it has none."""


@dataclass(frozen=True, slots=True)
class ClaimedThread:
    """The thread of a claimed delivery."""

    thread: Thread
    superseded: bool
    """True if the message is outdated: the subject has been well since the failure, or a failure of the thread that
    ended after the resolved notice's success started was sent or may have arrived."""
    outage: Outage | None = None
    """What the message resolves, if it is a resolved notice."""
    told_at: datetime | None = None
    """When a digest or summary that tells of a failure that this notice resolves is due; a time before now if it is being
    sent. None if none waits. The notice goes after it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of `Ledger.claim`: the claimed deliveries, and when to claim again."""

    deliveries: Sequence[Delivery]
    next_at: datetime | None = None
    """The earliest time at which a deferred delivery is due; None if this claim deferred no delivery."""
    more: bool = False
    """True if there may be further due deliveries that this claim did not take."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Numbers of one channel's waiting and dead deliveries. Held ones count in `held` alone."""

    oldest: datetime | None = None
    """When the oldest waiting delivery that was never held was created: the time in a hold is no delay."""
    waiting: int = 0
    due: int = 0
    """Number of waiting deliveries that are due and not in flight, counted up to `queries.DUE_COUNTED`."""
    dead: int = 0
    open_breakers: int = 0
    """Number of destinations whose circuit breaker is open."""
    held: int = 0
    """Number of deliveries that silences, quiet hours and digests hold back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One finished attempt to send a delivery."""

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


class Deed(StrEnum):
    """What an operator did."""

    REDRIVE = "redrive"
    RETRY_NOW = "retry_now"
    CANCEL = "cancel"
    DISMISS = "dismiss"
    REPLAY = "replay"
    PURGE = "purge"
    SILENCE = "silence"
    END_SILENCE = "end_silence"
    EXTEND_SILENCE = "extend_silence"

    @property
    def done(self) -> str:
        """What was done to a delivery or message, for people: `redriven`."""
        return _DONE[self]


_DONE = {
    Deed.REDRIVE: "redriven",
    Deed.RETRY_NOW: "retried now",
    Deed.CANCEL: "cancelled",
    Deed.DISMISS: "dismissed",
    Deed.REPLAY: "replayed",
    Deed.PURGE: "purged",
    Deed.SILENCE: "silenced",
    Deed.END_SILENCE: "ended a silence",
    Deed.EXTEND_SILENCE: "extended a silence",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One action of an operator, which changed the ledger."""

    at: datetime
    who: str
    """The caller's name in the console and its API; for a command, the user of the operating system."""
    what: Deed
    scope: str
    """Which deliveries, which message or which time it was about, in words."""
    why: str = ""
    """The reason that the operator gave; empty if none was given."""


class ToldBy(NamedTuple):
    """A message that tells of another delivery."""

    key: str
    kind: Kind
    """A digest, a summary, or, where the channel pages, the newest failure of the same launch plan."""
    status: DeliveryStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDelivery:
    """A delivery in the ledger, with the time at which it was sent or given up, and the receipt's reference.

    Lists leave out the content: it is None there.
    """

    delivery: Delivery
    settled_at: datetime | None
    reference: Mapping[str, str] = field(default_factory=dict)
    waits_for: Sequence[Wait] = ()
    """What a waiting delivery waits for, the most important first. Only `Queries.with_waits` fills in this and the next."""
    holder: str = ""
    """What holds it, or held it when it was dropped, in words; empty if nothing does."""
    told_by: ToldBy | None = None
    """The message that tells of it; None if there is none."""

    @property
    def status(self) -> DeliveryStatus:
        return status_of(self.delivery)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Selects deliveries, or terminal events, that meet all given conditions.

    A condition on events selects the deliveries of matching events. Conditions on deliveries (`states`, `channel`,
    `recipient`) select the events that have a delivery which meets all of them.
    """

    states: frozenset[State] = frozenset()
    channel: str | None = None
    recipient: str | None = None
    """A whole recipient as a rule names it, or a whole address of the channel. The case of ASCII letters is ignored."""
    execution: str | None = None
    """The execution, as `project/domain/name` or by name alone."""
    launch_plan: str | None = None
    """The launch plan's name, without project and domain. A long name may also be given as `shortened` returns it."""
    project: str | None = None
    domain: str | None = None
    phase: str | None = None
    verdict: str | None = None
    cause: str | None = None
    """The fingerprint of the events' cause."""
    since: datetime | None = None
    """Selects deliveries that were created, or events that were recorded, at this time or later."""
    until: datetime | None = None
    """Selects deliveries that were created, or events that were recorded, before this time."""
    keys: Sequence[str] = ()
    """Complete keys of deliveries, or beginnings of keys. Selects deliveries only."""
    included_in: str | None = None
    """The key of a digest or summary, or its beginning. Selects the deliveries of which it tells."""
    held: bool | None = None
    """True selects what is held now, False what is not, None both."""
    held_by: str | None = None
    """What holds deliveries, or held those that were dropped (`Delivery.held_by`)."""
    unleased_at: datetime | None = None
    """Selects only deliveries that no worker is sending at this time. Selects deliveries only."""


class Cursor(NamedTuple):
    """The position of a page's last row. Pages are sorted newest first, so the next page has older rows."""

    at: datetime
    key: str

    def __str__(self) -> str:
        return f"{self.at.isoformat()}~{self.key}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a cursor's text. Raises ValueError if it is not a cursor."""
        at, tilde, key = text.partition("~")
        time = datetime.fromisoformat(at)
        if not tilde or not key or "\0" in key or time.tzinfo is None:
            raise ValueError("no cursor")
        return cls(time, key)


@dataclass(frozen=True, slots=True)
class Page(Generic[_Entry]):
    """One page of a list, newest entry first."""

    entries: Sequence[_Entry]
    after: Cursor | None
    """The cursor that selects the next page; None if there are no older entries."""
    cut: bool = False
    """True if the search stopped at `queries.MAX_ROWS_READ` before the page was full, so that older entries may match too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSummary:
    """The fields of a terminal event that lists show, and the number of its deliveries with each status."""

    key: str
    project: str
    domain: str
    name: str
    phase: str
    launch_plan: str
    occurred_at: datetime
    recorded_at: datetime
    verdict: str
    reason: str
    cause: str
    """The fingerprint of the error; empty if the event has no error."""
    cause_name: str
    deliveries: Mapping[DeliveryStatus, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """One entry of the activity list: a recorded event, a finished attempt or a rejected message."""

    id: str
    """A stable id, made of `kind` and the key of the entry's row."""
    kind: str
    """`event`, `attempt` or `rejected`."""
    at: datetime
    details: Mapping[str, Any]
    """Mapping from a column of the entry's row to the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """The number of rows that a query found, counted only up to `queries.MAX_COUNT`."""

    number: int
    more: bool = False
    """True if there are more rows than `number`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerStatus:
    """The numbers at the top of the console."""

    waiting: Count
    """Without those that are held."""
    held: Count
    dead: Count
    rejected: Count
    """Number of rejected messages that were not replayed. Only the newest `queries.MAX_COUNT` rejected messages are counted."""
    oldest_waiting: datetime | None
    """When the oldest waiting delivery that was never held was created."""
    newest_event: datetime | None
    """When the newest event was recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeBucket:
    """The deliveries that were created in one time interval: their number in each state, and the lags of some."""

    begin: datetime
    end: datetime
    by_state: Mapping[State, int]
    """The number of deliveries in each state."""
    lags: Sequence[timedelta]
    """The lags of the newest `queries.LAG_SAMPLE` sent deliveries that were not held, in ascending order. A lag is the
    time from the event's `occurred_at` until the provider accepted the message."""

    def lag(self, quantile: float) -> float | None:
        """Return a quantile of the lags in seconds, for example 0.5 for the median; None if no delivery was sent."""
        if not self.lags:
            return None
        return self.lags[max(math.ceil(quantile * len(self.lags)) - 1, 0)].total_seconds()
