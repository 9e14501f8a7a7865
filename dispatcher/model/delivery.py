"""Defines a delivery and its states. All functions are pure; the ledger stores their results.

waiting --claim--> waiting, leased --settle--> sent | dead | dropped | waiting (due later)
dead --redrive--> waiting
waiting, not leased --retry now--> waiting, due now
waiting, not leased --cancel--> dropped
dead --dismiss--> dropped
waiting, not leased --hold--> waiting, held --release--> waiting | dropped
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from random import Random
from typing import NamedTuple

from channels.contract import (
    Answer,
    ChannelError,
    Content,
    InDoubt,
    Later,
    Misconfigured,
    Never,
    Receipt,
    UnknownRecipient,
)
from dispatcher.model.event import ExecutionId
from dispatcher.model.hold import DigestOptions, HoldReason, Quiet, Then
from dispatcher.model.retry import RetryPolicy

STUMBLED = "internal error"
"""The status of an attempt that the dispatcher itself could not finish: a row can't be read, or a message rendered."""
MAX_STUMBLES = 3
"""After this many such attempts, the delivery is dead."""
REASON_CHARACTERS = 300
_GAVE_UP = re.compile(r"gave up after \d+ (?:attempts?|times): ")


class State(StrEnum):
    """The state of a delivery."""

    WAITING = "waiting"
    """Pending: due now or later, or in flight."""
    SENT = "sent"
    """The provider accepted the message."""
    DEAD = "dead"
    """The dispatcher gave up; `reason` says why."""
    DROPPED = "dropped"
    """Not sent on purpose, because nobody needs it any more; `drop_reason` says why. Nothing has failed."""


class DropReason(StrEnum):
    """Why a delivery was dropped."""

    SUPERSEDED = "superseded"
    """The message is outdated: the thread's subject has been well since the failure, or has failed since the
    success."""
    NOTHING_SENT = "nothing_sent"
    """It is a resolved notice, and no failure of its thread was sent."""
    CANCELLED = "cancelled"
    """An operator cancelled it while it waited."""
    DISMISSED = "dismissed"
    """An operator dismissed it when it was dead."""
    SILENCE = "silence"
    """A silence dropped it, or the summary at the silence's end tells of it (`Delivery.included_in`)."""
    WINDOW = "window"
    """The summary at the end of quiet hours tells of it."""
    DIGEST = "digest"
    """A digest tells of it."""


class Kind(StrEnum):
    """What a delivery's message reports."""

    NOTIFICATION = "notification"
    """The event, because a rule matches it."""
    RESOLVED_NOTICE = "resolved_notice"
    """A success that ends the delivery's thread."""
    FALLBACK_NOTICE = "fallback_notice"
    """A dead delivery, to the fallback recipients of its channel."""
    REFUSED_NOTICE = "refused_notice"
    """The provider has refused the dispatcher itself for a while, to the fallback recipients of the channel."""
    ACCEPTED_NOTICE = "accepted_notice"
    """The provider accepts messages again after that, to the same recipients."""
    CHANGE_EVENT = "change_event"
    """The first run of a launch plan in a new version."""
    SUMMARY = "summary"
    """What was held back for the recipient and is not sent singly. It belongs to no event."""
    DIGEST = "digest"
    """The members of one digest. It belongs to no event."""


SUMMARIES = frozenset({Kind.SUMMARY, Kind.DIGEST})
"""The kinds of messages that tell of other deliveries, their members."""


class RuleRef(NamedTuple):
    """A rule that named a delivery's recipients, or what else the delivery was created for."""

    name: str
    """The route's name; empty if it is no route."""
    defined_at: str
    """Where the rule is defined, for example `options[0]` or `launch_plans/train.yaml:12`. For a delivery that no rule
    asks for, why it was created."""
    owner: bool = False
    """True if the route names the owner, and the recipients are the owner's."""

    @property
    def rule(self) -> tuple[str, str]:
        """The rule alone: its name and where it is defined."""
        return self.name, self.defined_at

    def __str__(self) -> str:
        shown = f"{self.name} ({self.defined_at})" if self.name else self.defined_at
        return f"{shown}, to the owner" if self.owner else shown


class Delivery(NamedTuple):
    """One message to one target on one channel.

    It is a NamedTuple, because several copies are created for each sent message. A frozen dataclass with this many
    fields would take four times as long to create.
    """

    key: str
    """Identifies the delivery; the key is the same at every attempt. The mail's Message-ID and the Slack message's
    metadata contain it. If the delivery has no thread, the key is also PagerDuty's dedup key."""
    event: str
    """The key of the event that caused the delivery. Empty for a digest and a summary, and for a notice that one of
    these is dead."""
    channel: str
    recipients: tuple[str, ...]
    """The recipients as the rule names them."""
    addresses: tuple[str, ...]
    """The addresses that the channel uses for `recipients`. Mail has one address for each recipient, in the same order.
    Other channels have exactly one address."""
    content: Content | None
    """The message's content. None if it is not rendered yet: the worker renders it at the first claim, and the ledger
    stores it, so that every attempt sends the same message."""
    rules: tuple[RuleRef, ...]
    """All matched rules that named one of the recipients, in the order in which they were decided."""
    created_at: datetime
    due_at: datetime
    """Workers make no attempt before this time. While the delivery is claimed, this is the time at which the lease
    ends; while it is held, the time at which the hold ends."""
    retry_window_start: datetime
    """When the delivery was created, last redriven, or released from a hold. The retry deadline counts from this time."""
    occurred_at: datetime
    """When the execution entered the phase that the event reports."""
    state: State = State.WAITING
    attempt: int = 0
    """Number of attempts so far. Each claim counts as an attempt, so that a delivery that crashes the process is not
    attempted forever."""
    in_doubt: bool = False
    """True if the message of an earlier attempt may have arrived."""
    lease: str | None = None
    """The id of the worker that claimed the delivery. Only this worker may settle it. None if the delivery is not
    claimed."""
    reason: str = ""
    """Why the delivery is dead, or why the last attempt failed. Before the first attempt of a notice to fallback
    recipients: what the notice says."""
    severity: str = ""
    """The highest severity that a matched route or the address's contact gives (`model/severity.py`); empty if none
    does."""
    kind: Kind = Kind.NOTIFICATION
    drop_reason: DropReason | None = None
    """Why the delivery was dropped; None in every other state."""
    thread: str = ""
    """The key of the delivery's thread (`thread_key`). The messages of a thread are sent in the order of `thread_at`.
    Empty if the delivery has no thread."""
    thread_at: datetime | None = None
    """The delivery's place in its thread: for a failure, the time of its end; for a resolved notice, the time at which
    the successful execution started. None if the delivery has no thread."""
    subject: str = ""
    """What the thread is about: a launch plan or an execution (`EntityId.key`, `execution_subject`). A failure that may be
    held has a subject without a thread too, so that a success can drop it. Empty for every other delivery."""
    fallback_for: str = ""
    """The key of the delivery that this message reports, if it is a notice to fallback recipients. Of a digest or summary
    on a fallback channel, the key of the one in whose place it is. Otherwise empty."""
    template: str | None = None
    """The mail template that the rule names. The ledger does not store this field, because such a message is rendered
    before it is recorded."""
    slot_reserved: bool = False
    """True if `due_at` is a slot of the destination's rate limit that is reserved for this delivery."""
    destination_failing: bool = False
    """True if the last attempts to the same destination had failed when a worker claimed this delivery
    (`DestinationState.failures`). The ledger does not store this field."""
    trace: str = ""
    """The trace of the event (`tracing.Span.trace`). The ledger sets it on all deliveries of the event."""
    opens_thread: bool = False
    """True if, when a worker claimed the delivery, its thread had no other delivery and its subject had not been well
    since. The ledger does not store this field."""
    hold: HoldReason | None = None
    """What holds the delivery back. None if nothing does, or does any more; a delivery that was dropped at the end of its
    hold keeps it."""
    held_by: str = ""
    """The silence's id, whose quiet hours they are, or the digest's id; empty if `hold` is None."""
    held_since: datetime | None = None
    """When the delivery was first held. It stays when the hold ends, so that the wait does not count as a lag."""
    hold_then: Then | None = None
    """What becomes of the delivery at the end of its hold; None if `hold` is None."""
    note: str = ""
    """What the message says beside its content, such as `held 22:00-07:00`. Set at the release."""
    included_in: str = ""
    """The key of the delivery that tells of this one: a digest, a summary, or the newest failure of the same launch plan
    where the channel pages. Empty if there is none."""
    reply_to: str = ""
    """The key of the message to which a digest replies: the one with which its burst began. Empty if there is none."""
    quiet: Quiet | None = None
    """The quiet hours that hold the delivery when it is planned. The ledger does not store this field."""
    digest: DigestOptions | None = None
    """The digest options of the address's contact. The ledger does not store this field."""
    blocks_thread: bool = False
    """True if, when a worker claimed the delivery, another delivery of its thread waited for it. The ledger does not
    store this field."""

    @property
    def tells_of(self) -> str:
        """The key under which the members of this message are (`included_in`); empty for a message about an event."""
        return "" if self.event else self.fallback_for or self.key


def delivery_key(event: str, channel: str, addresses: Sequence[str]) -> str:
    """Return the stable key of the delivery for `event` to `addresses` on `channel`."""
    parts = "\0".join((event, channel, *addresses))
    return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def time_prefixed(digest: str, at: datetime) -> str:
    """Return the digest with its first five hexadecimal digits replaced by the time, in steps of 16 seconds.

    Keys of about the same time are then neighbours in the index. Random keys would each go to another page of the
    index, and inserts would become slower as the ledger grows. The digits repeat after 194 days, which does no harm.
    """
    return f"{int(at.timestamp()) // 16 % 16**5:05x}{digest}"[: len(digest)]


def execution_subject(execution: ExecutionId) -> str:
    """Return the subject of threads about an execution. It begins with `/`, as no launch plan's subject does."""
    return f"/execution/{execution}"


def thread_key(channel: str, addresses: Sequence[str], subject: str) -> str:
    """Return the stable key of the thread about `subject` to `addresses` on `channel`."""
    return delivery_key(subject, f"thread {channel}", addresses)


class Outage(NamedTuple):
    """What a resolved notice resolves: the failures of its thread since the last resolved notice."""

    failures: int
    since: datetime
    """When the first of them finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenThread:
    """A thread that has failure messages which were sent, are in doubt or wait, and no resolved notice since."""

    channel: str
    recipients: tuple[str, ...]
    addresses: tuple[str, ...]
    thread: str
    event: str
    """The key of the last event in the thread."""
    severity: str = ""
    """The severity of the last message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """A success of an execution. It ends threads about its subjects and drops their held failures; which ones, only the
    ledger knows.
    """

    event: str
    """The key of the event that reports the success."""
    occurred_at: datetime
    """When the execution succeeded."""
    started_at: datetime
    """When the execution started; the time of its end if the start is not known."""
    subjects: tuple[str, ...]
    """The launch plan, and the origin of a recovered or relaunched execution."""
    channels: frozenset[str]
    """The configured channels that have threads. Threads of other channels get no resolved notice."""
    recorded_at: datetime

    def resolved_notice(self, opened: OpenThread, subject: str) -> Delivery:
        """Return the resolved notice for an open thread about `subject`, even if no rule asks for successes."""
        key = delivery_key(self.event, f"resolved {opened.thread}", opened.addresses)
        return Delivery(
            key=time_prefixed(key, self.occurred_at),
            event=self.event,
            channel=opened.channel,
            recipients=opened.recipients,
            addresses=opened.addresses,
            content=None,
            rules=(RuleRef("", f"resolved notice after {opened.event}"),),
            created_at=self.recorded_at,
            due_at=self.recorded_at,
            retry_window_start=self.recorded_at,
            occurred_at=self.occurred_at,
            severity=opened.severity,
            kind=Kind.RESOLVED_NOTICE,
            thread=opened.thread,
            thread_at=self.started_at,
            subject=subject,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """A run of a launch plan in a version that may be new. Only the ledger knows whether the version is new."""

    launch_plan: str
    version: str
    change_events: Sequence[Delivery]
    """The deliveries that report the version. The ledger adds them only if the version is new."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider accepted the message."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt did not succeed. The next attempt is due at `at`."""

    at: datetime
    reason: str
    answer: Answer | None = None
    in_doubt: bool = False
    refused_us: bool = False
    """True if the provider refuses the dispatcher itself, and so every message (`Misconfigured`)."""


@dataclass(frozen=True, slots=True)
class Dead:
    """The dispatcher gave up. A redrive helps only after a person has changed something."""

    reason: str
    answer: Answer | None = None
    unknown_recipient: bool = False
    """True if the channel can't reach the recipient. A fallback channel may be able to reach the recipient."""
    in_doubt: bool = False
    """True if the message may have arrived."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Nobody needs the message any more. Nothing was sent, so the attempt is not counted."""

    why: DropReason
    reason: str
    """The same as a sentence for people."""


Outcome = Sent | Retry | Dead | Dropped
Result = Receipt | Exception


def classify(delivery: Delivery, result: Result, *, now: datetime, policy: RetryPolicy, rng: Random) -> Outcome:
    """Return the delivery's outcome, given an attempt's result. Pure: equal arguments give an equal outcome."""
    match result:
        case Receipt():
            return Sent(result)
        case Never():
            unknown_recipient = isinstance(result, UnknownRecipient)
            return Dead(result.reason, result.answer, unknown_recipient=unknown_recipient, in_doubt=delivery.in_doubt)
        case Later():
            # A pause beyond the deadline makes the delivery dead, however long it is.
            longest = policy.deadline + timedelta(days=1)
            not_before = now + min(result.retry_after, longest) if result.retry_after is not None else now
            return _retry_or_give_up(delivery, result, now=now, not_before=not_before, policy=policy, rng=rng)
        case InDoubt():
            return _retry_or_give_up(delivery, result, now=now, not_before=now, policy=policy, rng=rng, in_doubt=True)
        case _:
            error = ChannelError(f"unexpected {type(result).__name__} while sending; see the log")
            return _retry_or_give_up(delivery, error, now=now, not_before=now, policy=policy, rng=rng, in_doubt=True)


def _retry_or_give_up(
    delivery: Delivery,
    error: ChannelError,
    *,
    now: datetime,
    not_before: datetime,
    policy: RetryPolicy,
    rng: Random,
    in_doubt: bool = False,
) -> Outcome:
    at = max(now + policy.delay(delivery.attempt, rng), not_before)
    if at > delivery.retry_window_start + policy.deadline:
        attempts = "1 attempt" if delivery.attempt == 1 else f"{delivery.attempt} attempts"
        return Dead(f"gave up after {attempts}: {error.reason}", error.answer, in_doubt=in_doubt or delivery.in_doubt)
    refused_us = isinstance(error, Misconfigured) and error.provider_wide
    return Retry(at, error.reason, error.answer, in_doubt or delivery.in_doubt, refused_us)


def uncounted(reason: str) -> str:
    """Return a dead delivery's reason without the number of attempts, so that equal reasons can be counted."""
    return _GAVE_UP.sub("", reason, count=1)


def stumble(
    delivery: Delivery, error: Exception, *, earlier: int, now: datetime, policy: RetryPolicy, rng: Random
) -> Outcome:
    """Return the outcome of an attempt that the dispatcher itself could not finish: retry, or dead the third time.

    `earlier`: how often this has happened before.
    """
    reason = f"{STUMBLED}: {type(error).__name__}: {error}"[:REASON_CHARACTERS]
    if earlier + 1 >= MAX_STUMBLES:
        return Dead(f"gave up after {MAX_STUMBLES} times: {reason}", Answer(STUMBLED), in_doubt=delivery.in_doubt)
    return Retry(now + policy.delay(delivery.attempt, rng), reason, Answer(STUMBLED), delivery.in_doubt)


def split(delivery: Delivery, receipt: Receipt, *, now: datetime, policy: RetryPolicy, rng: Random) -> list[Delivery]:
    """Return one new delivery, dead or due again, for each recipient whom the mail relay did not accept."""
    parts = []
    for recipient, address in zip(delivery.recipients, delivery.addresses, strict=True):
        if (error := receipt.failures.get(address)) is None:
            continue
        part = delivery._replace(
            key=delivery_key(delivery.event or delivery.key, delivery.channel, (address,)),
            recipients=(recipient,),
            addresses=(address,),
            fallback_for=delivery.tells_of or delivery.fallback_for,
            lease=None,
        )
        match classify(delivery, error, now=now, policy=policy, rng=rng):
            case Retry(at=at, reason=reason, in_doubt=in_doubt):
                parts.append(part._replace(due_at=at, reason=reason, in_doubt=in_doubt))
            case Dead(reason=reason, in_doubt=in_doubt):
                parts.append(part._replace(state=State.DEAD, reason=reason, in_doubt=in_doubt))
            case Sent() | Dropped():
                raise AssertionError("a failure is no receipt")
    return parts
