"""What becomes of the held deliveries of one address when their holds end.

Each is decided again: what another silence or other quiet hours cover is held again. The rest is sent, dropped, or told
of by one message.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo

from dispatcher.holding.covering import combined, held
from dispatcher.model.delivery import Delivery, DropReason, Kind, RuleRef, State, delivery_key, time_prefixed
from dispatcher.model.hold import Hold, HoldReason, Then
from dispatcher.model.severity import highest

MAX_NOTE = 1000
"""Maximum number of characters of a note."""
_STEP = timedelta(microseconds=1)
_DROP_REASONS = {HoldReason.SILENCE: DropReason.SILENCE, HoldReason.WINDOW: DropReason.WINDOW}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldDelivery:
    """A held delivery whose hold has ended, and what its release depends on."""

    delivery: Delivery
    """Without its content."""
    launch_plan: str
    """The launch plan of its event; the execution if the event names none; empty if it has no event."""
    failed: bool
    """True if it reports an execution that did not succeed."""
    holder: str
    """What held it, in words: `silence 5f0c2a9d (maintenance)`, `quiet hours of contact ml-team`. Empty if it was held
    only until this decision."""
    covers: Sequence[Hold] = ()
    """What covers it now: silences that are in force, and quiet hours."""


@dataclass(slots=True)
class Released:
    """What becomes of the held deliveries of one address."""

    held: list[Delivery] = field(default_factory=list)
    """Held again."""
    going: list[Delivery] = field(default_factory=list)
    """To be sent, in this order."""
    overdue: list[Delivery] = field(default_factory=list)
    """To be sent although something still covers them: no hold is longer. No digest holds them either."""
    dropped: list[Delivery] = field(default_factory=list)
    """Dropped, or told of by another message."""
    summary: Delivery | None = None
    """The new message that tells of some of the dropped ones."""


def release(ended: Iterable[HeldDelivery], *, now: datetime, longest: timedelta, pages: bool, zone: tzinfo) -> Released:
    """Decide what becomes of held deliveries of one address whose holds have ended.

    `longest`: what was held for this long goes out, even if something still covers it. `pages`: the channel's messages
    page people. `zone`: the time zone of the address, for the times in notes.
    """
    result, gathered = Released(), list[HeldDelivery]()
    for one in sorted(ended, key=lambda one: _place(one.delivery)):
        delivery, latest = one.delivery, (one.delivery.held_since or now) + longest
        hold = combined(one.covers, then=delivery.hold_then, latest=latest)
        if hold is not None and latest > now:
            result.held.append(held(delivery, hold, now))
        elif hold is not None:
            result.overdue.append(_going(one, now, zone, ", which is as long as anything is held"))
        elif delivery.hold_then is Then.SUMMARY:
            gathered.append(one)
        elif delivery.hold_then is Then.DROP:
            result.dropped.append(_dropped(one, f"dropped by {one.holder}"))
        else:
            result.going.append(_going(one, now, zone))
    if len(gathered) == 1:
        result.going.append(_going(gathered[0], now, zone))
    elif gathered and pages:
        _page_once_each(gathered, result, now, zone)
    elif gathered:
        _summarize(gathered, result, now)
    result.going = _in_turn(result.going, now)
    return result


def _place(delivery: Delivery) -> tuple[datetime, str]:
    return delivery.thread_at or delivery.occurred_at, delivery.key


def _in_turn(going: Iterable[Delivery], now: datetime) -> list[Delivery]:
    """Return the deliveries in order, all due now: workers claim first what was due first."""
    ordered = sorted(going, key=_place)
    return [one._replace(due_at=now - (len(ordered) - at) * _STEP) for at, one in enumerate(ordered, start=1)]


def _going(one: HeldDelivery, now: datetime, zone: tzinfo, more: str = "") -> Delivery:
    """Return the delivery without its hold, due now. `more`: the end of its note."""
    note = _note(one, now, zone, more)
    return one.delivery._replace(hold=None, held_by="", hold_then=None, due_at=now, retry_window_start=now, note=note)


def _note(one: HeldDelivery, now: datetime, zone: tzinfo, more: str) -> str:
    """Return what the message says of its hold, such as `held 22:00-07:00 (quiet hours of contact ml-team)`."""
    if not one.holder or one.delivery.held_since is None:
        return more
    since, until = one.delivery.held_since.astimezone(zone), now.astimezone(zone)
    if until - since < timedelta(days=1):
        times = f"{since:%H:%M}-{until:%H:%M}"
    else:
        times = f"{since.day} {since:%b %H:%M} - {until.day} {until:%b %H:%M}"
    return f"held {times} ({one.holder}){more}"[:MAX_NOTE]


def _dropped(one: HeldDelivery, reason: str, told_by: str = "") -> Delivery:
    """Return the delivery dropped. Its hold stays. `told_by`: the key of the message that tells of it."""
    hold = one.delivery.hold
    assert hold is not None  # noqa: S101 - for the type checker: it was held
    return one.delivery._replace(
        state=State.DROPPED, drop_reason=_DROP_REASONS[hold], reason=reason, included_in=told_by
    )


def _page_once_each(gathered: Sequence[HeldDelivery], result: Released, now: datetime, zone: tzinfo) -> None:
    """Page once for each launch plan that still fails: with its newest failure, which counts the others.

    Notices about dead deliveries go out. Nobody is paged for what did not fail.
    """
    newest: dict[str, HeldDelivery] = {one.launch_plan: one for one in gathered if one.failed}
    number = dict.fromkeys(newest, 0)
    for one in gathered:
        told_by = newest.get(one.launch_plan)
        if one.delivery.kind is Kind.FALLBACK_NOTICE:
            result.going.append(_going(one, now, zone))
        elif not one.failed or told_by is None:
            result.dropped.append(_dropped(one, f"held by {one.holder}, and nobody is paged for what did not fail"))
        elif one is not told_by:
            number[one.launch_plan] += 1
            reason = "a page for the newest failure of the launch plan counts it"
            result.dropped.append(_dropped(one, reason, told_by.delivery.key))
    for launch_plan, one in newest.items():
        result.going.append(_going(one, now, zone, _more_failures(number[launch_plan])))


def _more_failures(number: int) -> str:
    if not number:
        return ""
    return f"; {number} more {'failure' if number == 1 else 'failures'} of the launch plan in this time"


def _summarize(gathered: Sequence[HeldDelivery], result: Released, now: datetime) -> None:
    """Tell of all in one new message."""
    newest = gathered[-1].delivery
    # No other summary can have this key: its first member is in no other one.
    key = delivery_key("", f"summary {newest.channel}", (*newest.addresses, gathered[0].delivery.key))
    result.summary = Delivery(
        key=time_prefixed(key, now),
        event="",
        channel=newest.channel,
        recipients=newest.recipients,
        addresses=newest.addresses,
        content=None,
        rules=_rules(gathered),
        created_at=now,
        due_at=now,
        retry_window_start=now,
        occurred_at=now,
        severity=highest(*(one.delivery.severity for one in gathered)),
        kind=Kind.SUMMARY,
    )
    reason = f"a summary of {len(gathered)} messages tells of it"
    result.dropped += [_dropped(one, reason, result.summary.key) for one in gathered]


def _rules(gathered: Sequence[HeldDelivery]) -> tuple[RuleRef, ...]:
    """Return the rules of all, each once."""
    return tuple(dict.fromkeys(rule for one in gathered for rule in one.delivery.rules))
