"""What the API takes and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dispatcher.explain import Explanation, attempt_data, delivery_data, rejected_whole
from dispatcher.ledger import Attempt, Rejected, StoredDelivery
from dispatcher.ledger.queries import (
    Count,
    DeliverySummary,
    EventSummary,
    LedgerStatus,
    Page,
    RejectedSummary,
    TimeBucket,
)
from dispatcher.model.delivery import State
from dispatcher.web.filters import About

_Entry = TypeVar("_Entry", bound=BaseModel)


class _Given(BaseModel):
    model_config = ConfigDict(frozen=True)


class Execution(_Given):
    project: str
    domain: str
    name: str


class Number(_Given):
    number: int
    many: Annotated[bool, Field(description="There are more than were counted.")]

    @classmethod
    def of(cls, count: Count) -> Self:
        return cls(number=count.number, many=count.many)


class Delivery(_Given):
    """One message owed to one target over one channel."""

    key: str
    event: str
    execution: Execution
    phase: str
    channel: str
    recipients: Sequence[str]
    addresses: Sequence[str]
    rule: str
    state: State
    reason: str
    attempt: int
    in_doubt: bool
    created_at: datetime
    due_at: datetime
    settled_at: datetime | None

    @classmethod
    def of(cls, line: DeliverySummary) -> Self:
        project, domain, name, phase = line.event.split("/")
        execution = {"project": project, "domain": domain, "name": name}
        return cls.model_validate({**asdict(line), "execution": execution, "phase": phase})


class AttemptMade(_Given):
    number: int
    started_at: datetime
    ended_at: datetime
    latency_ms: float
    outcome: str
    status: str
    answer: str
    reason: str


class DeliveryWithAttempts(Delivery):
    reference: Mapping[str, str]
    attempts: Sequence[AttemptMade]


class WholeDelivery(DeliveryWithAttempts):
    """A delivery with what is sent and each attempt."""

    content: Mapping[str, Any]

    @classmethod
    def of_filed(cls, filed: StoredDelivery, history: Sequence[Attempt]) -> Self:
        facts = {"content": filed.delivery.content, "attempts": [attempt_data(one) for one in history]}
        return cls.model_validate({**delivery_data(filed), **facts})


class Ended(_Given):
    """An execution's end, what was decided, and how many deliveries of it stand how."""

    key: str
    execution: Execution
    phase: str
    launch_plan: str
    occurred_at: datetime
    recorded_at: datetime
    verdict: str
    reason: str
    deliveries: Mapping[State, int]

    @classmethod
    def of(cls, line: EventSummary) -> Self:
        execution = {"project": line.project, "domain": line.domain, "name": line.name}
        return cls.model_validate({**asdict(line), "execution": execution})


class Look(_Given):
    """A rule that was looked at."""

    source: str
    phases: Sequence[str]
    channel: str
    recipients: Sequence[str]
    matched: bool
    reason: str


class AccountGiven(_Given):
    """All there is to say of one end of an execution, or of a rejected message about it."""

    event: Annotated[Mapping[str, Any], Field(description="What happened, with `verdict` and `reason`.")]
    rules: Sequence[Look]
    deliveries: Sequence[DeliveryWithAttempts]
    disabled_by: str | None


class Explained(_Given):
    """As `dispatcher explain` tells it: an account for each end that the execution had."""

    execution: Execution
    explanations: Sequence[AccountGiven]

    @classmethod
    def of(cls, execution: Mapping[str, str], explanations: Sequence[Explanation]) -> Self:
        return cls.model_validate({"execution": execution, "accounts": [one.as_data() for one in explanations]})


class RejectedMessage(_Given):
    """A message that could not be understood, or an event whose rules can't be known."""

    id: str
    position: str
    received_at: datetime
    reason: str
    event: str | None
    size: int
    replayed_at: datetime | None

    @classmethod
    def of(cls, line: RejectedSummary) -> Self:
        return cls.model_validate(asdict(line))


class Header(_Given):
    name: str
    value: str


class WholeRejected(RejectedMessage):
    """The same with its headers and what was kept of its bytes."""

    headers: Sequence[Header]
    body: str
    whole: Annotated[bool, Field(description="Whether all its bytes were kept, so that it can be replayed.")]

    @classmethod
    def of_whole(cls, entry: Rejected) -> Self:
        facts = rejected_whole(entry)
        headers = [{"name": name, "value": value} for name, value in facts["headers"]]
        return cls.model_validate({**facts, "headers": headers})


class Listed(_Given, Generic[_Entry]):
    entries: Sequence[_Entry]
    next: Annotated[str | None, Field(description="`after` of the next page; null where there is nothing older.")]
    cut: Annotated[
        bool, Field(description="Enough was looked through before the page was full: go on with `next` for older ones.")
    ]


class Deliveries(Listed[Delivery]):
    """A page of deliveries, newest first."""

    @classmethod
    def of(cls, page: Page[DeliverySummary]) -> Self:
        return cls(entries=[Delivery.of(line) for line in page.entries], next=_next(page), cut=page.cut)


class Executions(Listed[Ended]):
    """A page of executions' ends, newest first."""

    @classmethod
    def of(cls, page: Page[EventSummary]) -> Self:
        return cls(entries=[Ended.of(line) for line in page.entries], next=_next(page), cut=page.cut)


class RejectedMessages(Listed[RejectedMessage]):
    """A page of rejected messages, newest first."""

    @classmethod
    def of(cls, page: Page[RejectedSummary]) -> Self:
        return cls(entries=[RejectedMessage.of(line) for line in page.entries], next=_next(page), cut=page.cut)


def _next(page: Page[Any]) -> str | None:
    return str(page.after) if page.after is not None else None


class Status(_Given):
    """How the ledger stands."""

    waiting: Number
    dead: Number
    rejected: Annotated[Number, Field(description="Not replayed yet, among the newest 10,000.")]
    oldest_waiting: Annotated[datetime | None, Field(description="When the oldest that still waits was made.")]
    newest_event: datetime | None

    @classmethod
    def of(cls, standing: LedgerStatus) -> Self:
        return cls(
            waiting=Number.of(standing.waiting),
            dead=Number.of(standing.dead),
            rejected=Number.of(standing.rejected),
            oldest_waiting=standing.oldest_waiting,
            newest_event=standing.newest_event,
        )


class Range(BaseModel):
    """Which time to look at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    range: Literal["1h", "24h", "7d"] = "24h"


class StretchOfTime(_Given):
    begin: datetime
    end: datetime
    numbers: Annotated[Mapping[State, int], Field(description="Deliveries made then, by how they stand now.")]
    lag_p50_seconds: Annotated[float | None, Field(description="From an execution's end to the provider's acceptance.")]
    lag_p95_seconds: float | None

    @classmethod
    def of(cls, stretch: TimeBucket) -> Self:
        return cls(
            begin=stretch.begin,
            end=stretch.end,
            numbers=stretch.numbers,
            lag_p50_seconds=stretch.lag(0.5),
            lag_p95_seconds=stretch.lag(0.95),
        )


class Lag(_Given):
    """Outcomes and lags over time, oldest first; lags from a sample of each stretch's newest."""

    time_buckets: Sequence[StretchOfTime]


class _Order(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    dry_run: Annotated[bool, Field(strict=True, description="Only say how many there are.")] = False


class RedriveKeys(_Order):
    """These dead deliveries."""

    keys: Annotated[list[Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]], Field(min_length=1, max_length=1000)]


class RedriveAll(_Order):
    """All dead deliveries that fit; an empty filter means every one."""

    filter: About


class Redriven(_Given):
    deliveries: Annotated[int, Field(description="How many were dead and are due again, or would be.")]
    many: Annotated[bool, Field(description="A dry run counts 10,000 at most: there are more.")]
    dry_run: bool


class Replayed(_Given):
    """What came of a rejected message's second try."""

    id: str
    understood: bool
    says: str
