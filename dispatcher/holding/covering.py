"""Which hold a delivery gets: of the silences and quiet hours that cover it, the one that ends last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from dispatcher.holding.silences import Silence
from dispatcher.model.delivery import Delivery, Kind, State, delivery_key, time_prefixed
from dispatcher.model.event import is_canary_key
from dispatcher.model.hold import Hold, HoldReason, Quiet, Then, most_telling

HELD_KINDS = frozenset({Kind.NOTIFICATION, Kind.FALLBACK_NOTICE})
"""What silences and quiet hours hold. What resolves a message, and what tells of a channel, is never held."""


def may_be_held(delivery: Delivery) -> bool:
    """True if a silence or quiet hours may hold the delivery."""
    return delivery.state is State.WAITING and delivery.kind in HELD_KINDS and not is_canary_key(delivery.event)


def by_silence(silence: Silence, delivery: Delivery, now: datetime) -> Hold | None:
    """Return the hold by a silence whose matcher holds for the delivery's event; None if it does not cover it.

    What did not occur within the silence is not dropped. A notice that a delivery is dead is never dropped, and is held
    only if its event occurred within the silence.
    """
    within = silence.occurred_within(delivery.occurred_at, now)
    is_notice = delivery.kind is Kind.FALLBACK_NOTICE
    if not within and (is_notice or not silence.in_force(now)):
        return None
    spared = silence.then is Then.DROP and (is_notice or not within)
    return Hold(HoldReason.SILENCE, silence.id, silence.ends_after(now), None if spared else silence.then)


def by_quiet_hours(quiet: Quiet) -> Hold:
    """Return the hold by quiet hours."""
    return Hold(HoldReason.WINDOW, quiet.by, quiet.until, Then.SUMMARY)


def covering(delivery: Delivery, silences: Iterable[Silence], now: datetime) -> Iterator[Hold]:
    """Yield the holds that cover a new delivery. `silences`: those whose matcher holds for its event."""
    if may_be_held(delivery):
        for silence in silences:
            if (hold := by_silence(silence, delivery, now)) is not None:
                yield hold
        if delivery.quiet is not None:
            yield by_quiet_hours(delivery.quiet)


def combined(holds: Sequence[Hold], *, then: Then | None = None, latest: datetime) -> Hold | None:
    """Return the hold that ends last, with the most telling end of all; None if there are no holds.

    `then`: the end that the delivery had so far; a further hold never makes it less telling. `latest`: no hold ends
    later.
    """
    if not holds:
        return None
    last = max(holds, key=lambda hold: hold.until)
    telling = most_telling(then, *(hold.then for hold in holds))
    return last._replace(until=min(last.until, latest), then=telling or Then.SEND)


def held(delivery: Delivery, hold: Hold, now: datetime) -> Delivery:
    """Return the delivery with the hold."""
    return delivery._replace(
        hold=hold.reason,
        held_by=hold.by,
        hold_then=hold.then,
        held_since=delivery.held_since or now,
        due_at=hold.until,
    )


def per_address(delivery: Delivery) -> list[Delivery]:
    """Return one delivery for each address: a held delivery has exactly one, because each address decides for itself."""
    if len(delivery.addresses) <= 1:
        return [delivery]
    return [
        delivery._replace(
            key=time_prefixed(delivery_key(delivery.event, delivery.channel, (address,)), delivery.occurred_at),
            recipients=(recipient,),
            addresses=(address,),
        )
        for recipient, address in zip(delivery.recipients, delivery.addresses, strict=True)
    ]


def at_recording(
    delivery: Delivery, silences: Sequence[Silence], *, now: datetime, longest: timedelta
) -> list[Delivery]:
    """Return a new delivery as it is if nothing holds it; else held, one for each address."""
    hold = combined([*covering(delivery, silences, now)], latest=now + longest)
    return [delivery] if hold is None else [held(one, hold, now) for one in per_address(delivery)]


def undecided(delivery: Delivery, now: datetime) -> list[Delivery]:
    """Return a new delivery held only until the releaser has looked at the silences, one for each address."""
    return [one._replace(hold=HoldReason.SILENCE, held_since=now) for one in per_address(delivery)]


def held_by_new(silence: Silence, delivery: Delivery, *, now: datetime, longest: timedelta) -> Delivery | None:
    """Return a delivery that waits already, held by a silence that has begun or was extended; None if it stays as it is.

    A further silence moves the end of the hold only to a later time. A retry that is due after the silence's end stays,
    and so does a member of a digest that closes after it. `longest`: no delivery is held longer.
    """
    hold = by_silence(silence, delivery, now) if silence.in_force(now) and may_be_held(delivery) else None
    covered = delivery.hold in {HoldReason.SILENCE, HoldReason.WINDOW}
    if hold is None or (not covered and hold.until <= delivery.due_at):
        return None
    holds, then = [hold], None
    if delivery.hold is not None and covered:
        then = delivery.hold_then
        holds.insert(0, Hold(delivery.hold, delivery.held_by, delivery.due_at, then))
    new = combined(holds, then=then, latest=(delivery.held_since or now) + longest)
    changed = held(delivery, new, now) if new is not None and new.until > now else delivery
    return changed if changed != delivery else None
