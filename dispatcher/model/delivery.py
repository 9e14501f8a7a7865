"""One message owed, and what becomes of it. The whole state machine is here, pure.

waiting --claim--> waiting, leased --judge--> sent | dead | waiting (due later)
dead --redrive--> waiting
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from random import Random
from typing import NamedTuple

from channels.contract import Answer, ChannelError, Content, InDoubt, Later, Never, Receipt, UnknownRecipient
from dispatcher.model.retry import RetryPolicy


class State(StrEnum):
    """Where a delivery stands."""

    WAITING = "waiting"
    """Owed: due now or later, perhaps in somebody's hands."""
    SENT = "sent"
    """The provider took it."""
    DEAD = "dead"
    """Given up, for a reason that can be read."""


class Delivery(NamedTuple):
    """One message owed to one target over one channel. Several are made for each message that goes out: a frozen
    dataclass of so many fields takes four times as long.
    """

    key: str
    """The same whenever the same is owed: the mail's Message-ID, Slack's metadata, PagerDuty's dedup key."""
    event: str
    """The key of the event it tells of."""
    channel: str
    recipients: tuple[str, ...]
    """As the rule names them."""
    addresses: tuple[str, ...]
    """What the channel made of them; for mail in the same order, else exactly one."""
    content: Content
    rule: str
    """The rule that owed it, in words: `options[0]`, `launch_plans/train.yaml:12`."""
    created_at: datetime
    due_at: datetime
    """Not before; while claimed, the end of the lease."""
    retry_window_start: datetime
    """What the retry deadline counts from: when it was made, or put back by a redrive."""
    occurred_at: datetime
    """When its event happened."""
    state: State = State.WAITING
    attempt: int = 0
    """Attempts begun. Counted at the claim, so a delivery that kills the process can't do so for ever."""
    in_doubt: bool = False
    """An earlier attempt may have arrived."""
    lease: str | None = None
    """Who holds it; only the holder may settle."""
    reason: str = ""
    """Why it is dead, or why the last attempt failed."""
    thread: str = ""
    """What is told to one reader about one matter goes out in the order of `occurred_at`; empty: it stands alone."""
    launch_plan: str = ""
    """The launch plan whose next success ends the conversation."""
    resolves: bool = False
    """It tells of that success."""
    fallback_for: str = ""
    """The key of the dead delivery that this one tells the fallback recipients about."""
    slot_reserved: bool = False
    """`due_at` is the slot that its destination's pace gave it."""
    destination_failing: bool = False
    """Its destination has failed lately; not stored."""
    trace: str = ""
    """Its event's (`tracing.Span.trace`); the ledger gives it to all that is owed for an event."""
    first: bool = False
    """Nothing else was said in its conversation when it was claimed, and nothing made it pointless; not stored."""
    followed: bool = False
    """Something else in its conversation waited for it when it was claimed; not stored."""


def delivery_key(event: str, channel: str, addresses: Sequence[str]) -> str:
    """The stable key of what `event` owes to `addresses` over `channel`."""
    parts = "\0".join((event, channel, *addresses))
    return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def in_time(digest: str, at: datetime) -> str:
    """The digest behind five digits that tell when, in steps of 16 seconds; as long as it was.

    Neighbours in time are then neighbours in an index: where each goes to a page of its own, what a ledger takes
    in costs the more the larger it is. The digits begin anew every 194 days, which does no harm.
    """
    return f"{int(at.timestamp()) // 16 % 16**5:05x}{digest}"[: len(digest)]


def thread_key(channel: str, addresses: Sequence[str], subject: str) -> str:
    """The stable key of what is told to `addresses` about `subject` over `channel`."""
    return delivery_key(subject, f"thread {channel}", addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenThread:
    """A conversation in which somebody was told, or is about to be, and not yet that all is well again."""

    channel: str
    recipients: tuple[str, ...]
    addresses: tuple[str, ...]
    thread: str
    event: str
    """The key of the last event that it told of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """A launch plan has succeeded, which ends the conversations about its failures. Only the ledger knows them."""

    launch_plan: str
    occurred_at: datetime
    """When it succeeded."""
    close: Callable[[OpenThread], Delivery | None]
    """Makes what ends a conversation; None where nothing is to be sent there any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """A launch plan has run in a version, which is worth telling if it is new. Only the ledger knows whether it is."""

    launch_plan: str
    version: str
    tell: Callable[[], Sequence[Delivery]]
    """Makes what is owed where it is."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider took it."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Retry:
    """Not yet: due again at `at`."""

    at: datetime
    reason: str
    answer: Answer | None = None
    in_doubt: bool = False


@dataclass(frozen=True, slots=True)
class Dead:
    """Given up; a person has to change something before a redrive can help."""

    reason: str
    answer: Answer | None = None
    unknown_recipient: bool = False
    """The channel has no such recipient: a fallback channel may."""
    in_doubt: bool = False
    """An attempt may have arrived."""


Outcome = Sent | Retry | Dead
Result = Receipt | Exception


def classify(delivery: Delivery, result: Result, *, now: datetime, policy: RetryPolicy, rng: Random) -> Outcome:
    """Decide what an attempt's result means for the delivery. Pure: the same in, the same out."""
    match result:
        case Receipt():
            return Sent(result)
        case Never():
            unknown_recipient = isinstance(result, UnknownRecipient)
            return Dead(result.reason, result.answer, unknown_recipient=unknown_recipient, in_doubt=delivery.in_doubt)
        case Later():
            wish = now + result.retry_after if result.retry_after is not None else now
            return _again(delivery, result, now=now, not_before=wish, policy=policy, rng=rng)
        case InDoubt():
            return _again(delivery, result, now=now, not_before=now, policy=policy, rng=rng, in_doubt=True)
        case _:
            error = ChannelError(f"unexpected {type(result).__name__} while sending; see the log")
            return _again(delivery, error, now=now, not_before=now, policy=policy, rng=rng, in_doubt=True)


def _again(
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
        tries = "1 attempt" if delivery.attempt == 1 else f"{delivery.attempt} attempts"
        return Dead(f"gave up after {tries}: {error.reason}", error.answer, in_doubt=in_doubt or delivery.in_doubt)
    return Retry(at, error.reason, error.answer, in_doubt or delivery.in_doubt)


def split(delivery: Delivery, receipt: Receipt, *, now: datetime, policy: RetryPolicy, rng: Random) -> list[Delivery]:
    """The deliveries of their own that a mail's unaccepted recipients become, dead or due again."""
    parts = []
    for recipient, address in zip(delivery.recipients, delivery.addresses, strict=True):
        if (error := receipt.failures.get(address)) is None:
            continue
        part = delivery._replace(
            key=delivery_key(delivery.event, delivery.channel, (address,)),
            recipients=(recipient,),
            addresses=(address,),
            lease=None,
        )
        match classify(delivery, error, now=now, policy=policy, rng=rng):
            case Retry(at=at, reason=reason, in_doubt=in_doubt):
                parts.append(part._replace(due_at=at, reason=reason, in_doubt=in_doubt))
            case Dead(reason=reason, in_doubt=in_doubt):
                parts.append(part._replace(state=State.DEAD, reason=reason, in_doubt=in_doubt))
            case Sent():
                raise AssertionError("a failure is no receipt")
    return parts
