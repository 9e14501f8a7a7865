"""The models of the API's request and response bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dispatcher.explain import Explanation, rejected_details
from dispatcher.filters import Criteria
from dispatcher.ledger import Deed, Rejected
from dispatcher.ledger.records import Page, TimeBucket
from dispatcher.model.delivery import DropReason, Kind, State
from dispatcher.model.hold import HoldReason
from dispatcher.model.replica import Replica
from dispatcher.model.status import DeliveryStatus
from dispatcher.model.waiting import WaitKind
from dispatcher.operations import MAX_REASON

_Entry = TypeVar("_Entry", bound=BaseModel)
_Stored = TypeVar("_Stored")


class _Response(BaseModel):
    """Validated from data, or from a value of the ledger with attributes of the same names."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class Execution(_Response):
    project: str
    domain: str
    name: str


class BoundedCount(_Response):
    number: int
    more: Annotated[bool, Field(description="True if there are more than `number`.")]


class WaitsFor(_Response):
    """One thing that a waiting delivery waits for."""

    kind: WaitKind
    text: Annotated[str, Field(description="The same in words, as it stands after 'waits for'.")]
    until: Annotated[datetime | None, Field(description="When this wait ends, as far as it is known.")]
    delivery: Annotated[str | None, Field(description="The key of the thread's earlier message, for `thread`.")]
    replicas: Annotated[
        Sequence[str], Field(description="The replicas that send the delivery, or whose circuit breaker is open.")
    ]
    held_by: Annotated[str, Field(description="The silence's or digest's id, or whose quiet hours hold the delivery.")]


class ToldBy(_Response):
    """A message that tells of a delivery in its place."""

    key: str
    kind: Annotated[Kind, Field(description="`digest`, `summary`, or `notification` for a page that counts others.")]
    status: DeliveryStatus


class RuleRef(_Response):
    """A rule that named a delivery's recipients, or what else the delivery was created for."""

    name: Annotated[str, Field(description="The route's name; empty if it is no route.")]
    defined_at: Annotated[str, Field(description="Where the rule is defined, or why the delivery was created.")]
    owner: Annotated[bool, Field(description="Whether the route names the owner, and the recipients are the owner's.")]


class Delivery(_Response):
    """One message on one channel, for example to a Slack channel or to all mail addresses of a rule."""

    key: str
    event: Annotated[str, Field(description="Empty for a digest, a summary, and a notice about one of these.")]
    execution: Annotated[Execution | None, Field(description="Null if there is no event.")]
    phase: Annotated[str | None, Field(description="Null if there is no event.")]
    channel: str
    recipients: Sequence[str]
    addresses: Sequence[str]
    rules: Annotated[Sequence[RuleRef], Field(description="All rules that named one of the recipients.")]
    severity: Annotated[str, Field(description="The highest that a route or contact gives; empty if none does.")]
    kind: Kind
    state: State
    drop_reason: Annotated[DropReason | None, Field(description="Why the delivery was dropped.")]
    reason: str
    attempt: int
    in_doubt: bool
    created_at: datetime
    due_at: datetime
    settled_at: datetime | None
    hold: Annotated[
        HoldReason | None, Field(description="What holds it back until `due_at`, or held it when it was dropped.")
    ]
    held_by: Annotated[str, Field(description="The silence's or digest's id, or whose quiet hours they are.")]
    held_since: Annotated[datetime | None, Field(description="When it was first held; stays when the hold ends.")]
    note: Annotated[str, Field(description="What the message says beside its content, such as `held 22:00-07:00`.")]
    included_in: Annotated[str, Field(description="The key of the delivery that tells of it, such as a digest's.")]
    fallback_for: Annotated[
        str, Field(description="The key of the dead delivery that it reports, or in whose place it is.")
    ]
    status: Annotated[
        DeliveryStatus,
        Field(description="Its state; `held` if it waits and is held, `included` if another message tells of it."),
    ]
    holder: Annotated[str, Field(description="What holds it, or held it when it was dropped, in words.")]
    told_by: Annotated[ToldBy | None, Field(description="The message of `included_in`.")]
    waits_for: Annotated[
        Sequence[WaitsFor], Field(description="What it waits for, the most important first; empty if it is finished.")
    ]


class DeliveryAttempt(_Response):
    number: int
    started_at: datetime
    ended_at: datetime
    latency_ms: float
    outcome: str
    status: str
    answer: str
    reason: str


class OperatorAction(_Response):
    """What an operator did: a redrive, a retry now, a cancellation, a dismissal, a replay or a purge."""

    at: datetime
    who: str
    what: Deed
    scope: Annotated[str, Field(description="Which deliveries, which message or which time it was about.")]
    why: Annotated[str, Field(description="The reason that the operator gave; empty if none was given.")]


class DeliveryWithHistory(Delivery):
    reference: Mapping[str, str]
    attempts: Sequence[DeliveryAttempt]
    actions: Annotated[Sequence[OperatorAction], Field(description="The operators' actions that concerned it.")]


class DeliveryDetails(DeliveryWithHistory):
    """A delivery with its content, attempts and operators' actions."""

    members: Annotated[
        BoundedCount, Field(description="How many others its message tells of. `included_in` of a search selects them.")
    ]

    content: Annotated[Mapping[str, Any] | None, Field(description="null if the content is not rendered yet.")]


class TerminalEvent(_Response):
    """A terminal event, its verdict, and the number of its deliveries with each status."""

    key: str
    execution: Execution
    phase: str
    launch_plan: str
    occurred_at: datetime
    recorded_at: datetime
    verdict: str
    reason: str
    cause: Annotated[str, Field(description="The fingerprint of its error; empty if it has no error.")]
    cause_name: Annotated[str, Field(description="A short name of the cause.")]
    deliveries: Mapping[DeliveryStatus, int]


class Cause(_Response):
    """Why executions failed, and how many failed so."""

    cause: Annotated[str, Field(description="The fingerprint; `cause` of a search for executions selects them.")]
    cause_name: Annotated[str, Field(description="A short name.")]
    number: int
    first_at: datetime
    last_at: Annotated[datetime, Field(description="When the last of these executions ended.")]
    newest: Annotated[Execution, Field(description="The execution that was recorded last.")]


class Causes(_Response):
    """The causes of failed executions, the most frequent first."""

    causes: Sequence[Cause]
    since: Annotated[
        datetime | None, Field(description="Executions that were recorded before this time were not counted.")
    ]


class Owner(_Response):
    """How the owner was found whom a route names."""

    found_by: Annotated[str, Field(description="`map`, `label`, `pattern`, `fallback` or `nobody`.")]
    reason: str


class EvaluatedRule(_Response):
    """A rule, and whether the rule matched the event."""

    name: Annotated[str, Field(description="The route's name; empty for Flyte's rules.")]
    defined_at: str
    phases: Sequence[str]
    channel: str
    recipients: Sequence[str]
    matched: bool
    reason: str
    owner: Annotated[Owner | None, Field(description="Null if the rule is not for the owner.")]


class EventExplanation(_Response):
    """The decision about one terminal event of the execution. A rejected message has only the reason."""

    event: Annotated[Mapping[str, Any], Field(description="The event, with `verdict` and `reason`.")]
    rules: Sequence[EvaluatedRule]
    deliveries: Sequence[DeliveryWithHistory]
    disabled_by: str | None


class ExecutionExplanation(_Response):
    """The explanations of all terminal events of an execution, with the same data as `dispatcher explain --json`."""

    execution: Execution
    explanations: Sequence[EventExplanation]

    @classmethod
    def of(cls, execution: Mapping[str, str], explanations: Sequence[Explanation]) -> Self:
        return cls.model_validate({"execution": execution, "explanations": [one.as_data() for one in explanations]})


class LaunchPlan(_Response):
    project: str
    domain: str
    name: str
    version: str


class PlannedDelivery(_Response):
    channel: str
    recipients: Sequence[str]
    addresses: Sequence[str]
    state: Annotated[str, Field(description="`planned`, or `dead` if no channel knows the recipient.")]
    reason: str
    rules: Annotated[Sequence[RuleRef], Field(description="All rules that named one of the recipients.")]
    severity: Annotated[str, Field(description="The highest that a route or contact gives; empty if none does.")]
    held_until: Annotated[
        datetime | None, Field(description="The end of the quiet hours that hold it now; null if none do.")
    ]
    may_hold: Annotated[Sequence[str], Field(description="The quiet hours and digest that may hold it, in words.")]


class PossibleRoute(_Response):
    """A route that applies to some executions of the launch plan."""

    name: str
    defined_at: str
    depends_on: Annotated[
        Sequence[str], Field(description="The keys of its matcher whose facts differ, such as `labels.team`.")
    ]
    condition: Annotated[str, Field(description="When it applies, in words.")]
    deliveries: Sequence[PlannedDelivery]


class PhaseForecast(_Response):
    """Who would be notified of an execution that enters this phase."""

    event: Annotated[Mapping[str, Any], Field(description="`phase`, `verdict` and `reason`.")]
    rules: Sequence[EvaluatedRule]
    deliveries: Annotated[Sequence[PlannedDelivery], Field(description="Those of every execution.")]
    disabled_by: str | None
    possible: Annotated[Sequence[PossibleRoute], Field(description="The routes that apply to some executions.")]
    possible_left_out: Annotated[int, Field(description="The number of such routes that are not listed.")]


class LaunchPlanForecast(_Response):
    """Who would be notified of a launch plan's executions, by today's rules."""

    launch_plan: LaunchPlan
    known: Annotated[bool, Field(description="False if neither FlyteAdmin nor a file has rules for the launch plan.")]
    hint: Annotated[
        str, Field(description="Similar launch plans that have rules, or else all, if this one is not known.")
    ]
    phases: Sequence[PhaseForecast]


_Windows = Annotated[
    Sequence[Mapping[str, Any]], Field(description="The windows of its quiet hours, as a file writes them.")
]


class Digest(_Response):
    """When a contact gets digests."""

    after: int
    within: str
    every: str


class Route(_Response):
    """A route in effect, as a file writes it."""

    name: str
    defined_at: str
    match: Mapping[str, Any]
    notify: Annotated[
        Sequence[str | Mapping[str, Sequence[str]]],
        Field(description="Contacts by name, and channels with recipients."),
    ]
    severity: str
    stop: bool
    rules: Annotated[str, Field(description="`add`, or `replace` if Flyte's rules don't apply where it matches.")]
    streak: Annotated[int | None, Field(description="How many failures of the launch plan it waits for.")]
    on: Annotated[str | None, Field(description="`resolved` if it fires when a success ends the streak.")]
    quiet: _Windows


class Routes(_Response):
    """A page of the routes in effect, in the order in which they apply."""

    entries: Sequence[Route]
    next: Annotated[str | None, Field(description="Pass it as `after` to get the next page; null on the last page.")]
    total: Annotated[int, Field(description="The number of all routes in effect.")]


class ContactRecipient(_Response):
    channel: str
    recipient: str


class Contact(_Response):
    """A contact in the settings."""

    name: str
    defined_at: str
    recipients: Annotated[Sequence[ContactRecipient], Field(description="Those that the contact lists itself.")]
    include: Sequence[str]
    everybody: Annotated[Sequence[ContactRecipient], Field(description="With those of the contacts that it includes.")]
    timezone: str
    templates: Sequence[str]
    severity: str
    quiet: _Windows
    digest: Digest | None


class Contacts(_Response):
    contacts: Sequence[Contact]


class RejectedMessage(_Response):
    """A message that could not be decoded, or an event whose rules are unknown."""

    id: str
    position: str
    received_at: datetime
    reason: str
    event: str | None
    size: int
    replayed_at: datetime | None
    dismissed_at: Annotated[datetime | None, Field(description="When an operator dismissed it.")]


class Header(_Response):
    name: str
    value: str


class RejectedMessageDetails(RejectedMessage):
    """A rejected message with its headers and the stored part of its body."""

    headers: Sequence[Header]
    body: str
    complete: Annotated[
        bool, Field(description="True if the whole body is stored, so that the message can be replayed.")
    ]

    @classmethod
    def of_stored(cls, stored: Rejected) -> Self:
        details = rejected_details(stored)
        headers = [{"name": name, "value": value} for name, value in details["headers"]]
        return cls.model_validate({**details, "headers": headers})


class Replicas(_Response):
    """The replicas that have written to the ledger within the last hour."""

    replicas: Sequence[Replica]


class UnresolvedOwner(_Response):
    """Executions with the same principal and label, whose owner is not known, or has an address that doesn't exist."""

    principal: Annotated[str, Field(description="Who started them; empty if that is absent or not known.")]
    label: Annotated[str, Field(description="The value of the label that names owners; empty as `principal`.")]
    reason: Annotated[str, Field(description="What was missed in the newest event.")]
    instead: Annotated[str, Field(description="The contact that was notified instead; empty if nobody was.")]
    event: Annotated[str, Field(description="The newest event, as `project/domain/name/PHASE`.")]
    first_at: datetime
    last_at: datetime
    events: Annotated[int, Field(description="The number of events.")]


class UnresolvedOwners(_Response):
    """The owners whose newest events came last, newest first."""

    owners: Sequence[UnresolvedOwner]


class EntryPage(_Response, Generic[_Entry]):
    entries: Sequence[_Entry]
    next: Annotated[
        str | None, Field(description="Pass it as `after` to get the next page; null if there are no older entries.")
    ]
    cut: Annotated[
        bool,
        Field(
            description="True if the search stopped at its row limit before the page was full; continue with `next`."
        ),
    ]
    hints: Annotated[
        Sequence[str],
        Field(
            description="Names in the filter that the ledger does not know, if the page is empty, with similar ones."
        ),
    ]

    @classmethod
    def of(
        cls, page: Page[_Stored], data: Callable[[_Stored], Any] = lambda entry: entry, hints: Sequence[str] = ()
    ) -> Self:
        """`data`: returns the data of an entry, from which its model is validated."""
        cursor = str(page.after) if page.after is not None else None
        entries = [*map(data, page.entries)]
        return cls.model_validate({"entries": entries, "next": cursor, "cut": page.cut, "hints": hints})


class Deliveries(EntryPage[Delivery]):
    """A page of deliveries, newest first."""


class Executions(EntryPage[TerminalEvent]):
    """A page of terminal events, newest first."""


class RejectedMessages(EntryPage[RejectedMessage]):
    """A page of rejected messages, newest first."""


class Status(_Response):
    """How many deliveries are waiting, held or dead, and how many messages were rejected."""

    waiting: Annotated[BoundedCount, Field(description="Without those that are held.")]
    held: Annotated[
        BoundedCount, Field(description="Waiting deliveries that silences, quiet hours and digests hold back.")
    ]
    dead: BoundedCount
    rejected: Annotated[
        BoundedCount, Field(description="Messages that were not replayed, among the newest 10,000 rejected ones.")
    ]
    oldest_waiting: Annotated[
        datetime | None, Field(description="When the oldest waiting delivery that was never held was created.")
    ]
    newest_event: Annotated[datetime | None, Field(description="When the newest event was recorded.")]


class LagParameters(BaseModel):
    """The length of the time range, which ends now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    range: Literal["1h", "24h", "7d"] = "24h"


class LagBucket(_Response):
    begin: datetime
    end: datetime
    by_state: Annotated[
        Mapping[State, int], Field(description="Deliveries that were created in this interval, by their present state.")
    ]
    lag_p50_seconds: Annotated[
        float | None, Field(description="Median time from an execution's terminal event to the provider's acceptance.")
    ]
    lag_p95_seconds: Annotated[float | None, Field(description="95th percentile of the same time.")]

    @classmethod
    def of(cls, bucket: TimeBucket) -> Self:
        return cls(
            begin=bucket.begin,
            end=bucket.end,
            by_state=bucket.by_state,
            lag_p50_seconds=bucket.lag(0.5),
            lag_p95_seconds=bucket.lag(0.95),
        )


class Lag(_Response):
    """The outcomes and lags of each time bucket, oldest bucket first.

    The lags of a bucket are computed from a sample of its newest deliveries.
    """

    time_buckets: Sequence[LagBucket]


class Reason(BaseModel):
    """Why an operator acts. The ledger keeps it with the action."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Annotated[str, Field(max_length=MAX_REASON, description="Why; kept with the action.")] = ""


class _ChangeRequest(Reason):
    dry_run: Annotated[bool, Field(strict=True, description="Only count the deliveries.")] = False


class ChangeByKeys(_ChangeRequest):
    """Change the deliveries with these keys. Those in another state, or that a worker is sending, are left alone."""

    keys: Annotated[list[Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]], Field(min_length=1, max_length=1000)]


class ChangeByFilter(_ChangeRequest):
    """Change all deliveries in the right state that match the filter; an empty filter matches all of them."""

    filter: Criteria


class DeliveriesWait(WaitsFor):
    """What some deliveries wait for, and how many."""

    deliveries: int


class ChangeResult(_Response):
    deliveries: Annotated[int, Field(description="Number of deliveries that were changed, or would be.")]
    more: Annotated[bool, Field(description="True if a dry run found more deliveries than the 10,000 that it counts.")]
    dry_run: bool
    silenced: Annotated[
        int,
        Field(
            description="How many of the newest 500 of them a silence covers. A redrive or retry-now sends them all the same."
        ),
    ]
    waits_for: Annotated[
        Sequence[DeliveriesWait],
        Field(description="After retry-now: what the newest 500 of the matching deliveries still wait for."),
    ]


class DismissResult(_Response):
    id: str


class ReplayResult(_Response):
    """The result of processing a rejected message again."""

    id: str
    accepted: Annotated[bool, Field(description="False if the message was rejected again.")]
    message: Annotated[str, Field(description="What the message was decoded as, or why it was rejected again.")]


class ProviderAnswer(_Response):
    status: Annotated[str, Field(description="The provider's status or error code.")]
    text: str


class SendTestOutcome(_Response):
    """What became of a test message."""

    channel: Annotated[str, Field(description="The channel that sent it; another one may serve the recipient.")]
    accepted: Annotated[bool, Field(description="True if the provider accepted the message.")]
    message: Annotated[str, Field(description="What happened.")]
    answer: ProviderAnswer | None
    reference: Annotated[dict[str, str], Field(description="Identifies the message at the provider.")]
