"""Plans what follows from the outcome of a digest or summary, which belongs to no event: the same text to others."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from channels.contract import UnknownRecipient
from dispatcher.holding.windows import quiet_now
from dispatcher.model.delivery import SUMMARIES, Delivery, Kind, RuleRef, delivery_key
from dispatcher.model.severity import highest
from dispatcher.planning.contacts import Recipient

if TYPE_CHECKING:
    from dispatcher.planning.planner import Planner


def summary_notices(planner: Planner, about: Delivery, reason: str, now: datetime) -> tuple[Delivery, ...]:
    """Return a notice for each fallback recipient of the channel. `reason`: what the notices say above the text."""
    if about.kind not in SUMMARIES:  # a dead notice causes no further notice, because that could go on forever
        return ()
    contacts = planner.fallback_recipients.get(about.channel, ())
    recipients = [recipient for contact in contacts for recipient in planner.contacts.expand(contact) or ()]
    rules = (RuleRef("", f"channels.{about.channel}.fallback_recipients"),)
    notice = about._replace(kind=Kind.FALLBACK_NOTICE, rules=rules, reason=reason)
    return tuple(_with_holds(planner, one, now) for one in _to_others(planner, notice, "fallback ", recipients, now))


def summary_instead(planner: Planner, about: Delivery, fallback: str, now: datetime) -> tuple[Delivery, ...]:
    """Return the same digest or summary on the fallback channel, if this channel knows the recipient."""
    recipients = [(fallback, recipient) for recipient in about.recipients]
    return _to_others(planner, about._replace(reason=""), "", recipients, now)


def _to_others(
    planner: Planner, about: Delivery, kind: str, recipients: Iterable[Recipient], now: datetime
) -> tuple[Delivery, ...]:
    """Return a delivery like `about` to each recipient whom a channel knows. `kind`: the beginning of a part of the keys,
    which are the same on every replica.
    """
    planned: dict[str, Delivery] = {}
    for channel, recipient in recipients:
        try:
            target = planner.target(channel, recipient)
        except UnknownRecipient:  # nobody else can be notified: the delivery stays dead
            continue
        severity = highest(about.severity, planner.contacts.options(target.channel, target.address).severity)
        key = delivery_key(about.key, f"{kind}{target.channel}", (target.address.casefold(),))
        planned[key] = Delivery(
            key=key,
            event="",
            channel=target.channel,
            recipients=(target.recipient,),
            addresses=(target.address,),
            content=None,
            rules=about.rules,
            created_at=now,
            due_at=now,
            retry_window_start=now,
            occurred_at=about.occurred_at,
            reason=about.reason,
            severity=severity,
            kind=about.kind,
            fallback_for=about.tells_of,
        )
    return tuple(planned.values())


def _with_holds(planner: Planner, notice: Delivery, now: datetime) -> Delivery:
    """Return a notice with what may hold it, as every notice about a dead delivery has."""
    channel, (address,) = notice.channel, notice.addresses
    quiet = quiet_now(now, planner.quiet_hours(channel, address, notice.severity, ()))
    return notice._replace(quiet=quiet, digest=planner.digest(channel, address))
