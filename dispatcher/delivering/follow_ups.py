"""Plans the deliveries that follow from an outcome: to other recipients, and notices to the fallback recipients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from channels.contract import UnknownRecipient
from dispatcher.delivering.options import WorkerOptions
from dispatcher.errors import LedgerFailed, LedgerUnavailable
from dispatcher.ledger import Settlement
from dispatcher.model.delivery import Dead, Delivery, Kind, Outcome, Retry, Sent, State, split
from dispatcher.model.owner import UnresolvedOwner

log = structlog.get_logger(__name__)

_ToRecipients = tuple[Sequence[Delivery], UnresolvedOwner | None]
"""New deliveries, and what is kept of an owner whom no provider knows."""
REFUSAL_NOTICED = timedelta(minutes=15)
"""If a provider refuses the dispatcher itself for this long, the channel's fallback recipients are notified."""


@dataclass(slots=True)
class FollowUps:
    """Plans what follows from the outcomes of one channel's deliveries."""

    options: WorkerOptions
    refused: bool = True
    """True if the ledger may have a refusal of this channel. True at the start: another process may have stored it."""

    async def plan(self, settlement: Settlement) -> Settlement:
        """Return the settlement with the new deliveries that its outcome causes. Raises LedgerUnavailable."""
        delivery, outcome, now = settlement.delivery, settlement.outcome, settlement.ended_at
        to_recipients, unresolved_owner = await self._to_recipients(delivery, outcome, now)
        follow_ups = [*to_recipients, *await self._about_the_channel(delivery, outcome, now)]
        return replace(settlement, follow_ups=follow_ups, unresolved_owner=unresolved_owner)

    async def end_refusal(self) -> None:
        """Remove the channel's refusal from the ledger. If that fails, the next accepted message tries again."""
        try:
            await self.options.ledger.refusals.end(self.options.name)
        except (LedgerUnavailable, LedgerFailed) as error:
            log.warning("a refusal could not be removed", channel=self.options.name, reason=str(error))
        else:
            self.refused = False

    async def _to_recipients(self, delivery: Delivery, outcome: Outcome, now: datetime) -> _ToRecipients:
        """Return the deliveries to recipients whom the message did not reach, and the notices about dead deliveries.

        Each recipient of a mail that the relay refused gets a separate delivery. A recipient that the channel does not
        know gets a delivery on the fallback channel. If that is the owner of the execution, and there is no such channel,
        the fallback contact of owners is notified. The fallback recipients get a notice about each dead delivery.
        """
        ledger, planner = self.options.ledger, self.options.planner
        match outcome:
            case Sent(receipt):
                parts = split(delivery, receipt, now=now, policy=self.options.policy, rng=self.options.rng)
                dead = [part for part in parts if part.state is State.DEAD]
                unknown = [one for one in dead if isinstance(receipt.failures[one.addresses[0]], UnknownRecipient)]
                instead, owner = await self._instead_of_owner(unknown, now)
                return [*parts, *instead, *await self._notices(dead, now)], owner
            case Dead(unknown_recipient=True):
                event = await ledger.history.event(delivery.event)
                notified = await ledger.history.notified(delivery.event)
                if rerouted := planner.reroute(event, delivery, notified, now=now):
                    return rerouted, None
                dead = [delivery._replace(reason=outcome.reason)]
                instead, owner = await self._instead_of_owner(dead, now)
                return [*instead, *await self._notices(dead, now)], owner
            case Dead(reason=reason):
                return await self._notices([delivery._replace(reason=reason)], now), None
            case _:
                return (), None

    async def _instead_of_owner(self, unknown: Sequence[Delivery], now: datetime) -> _ToRecipients:
        """Return the deliveries to the fallback contact of owners, if one of these was the owner's.

        `unknown`: dead deliveries of one event, to recipients that the channel does not know.
        """
        owners = [delivery for delivery in unknown if any(rule.owner for rule in delivery.rules)]
        history = self.options.ledger.history
        if not owners or (event := await history.event(owners[0].event)) is None:
            return (), None
        return self.options.planner.notify_instead_of_owner(event, owners, await history.notified(event.key), now=now)

    async def _about_the_channel(self, delivery: Delivery, outcome: Outcome, now: datetime) -> Sequence[Delivery]:
        """Return the notices to fallback recipients that the provider refuses the dispatcher itself, or no longer does.

        Each refusal gives one notice of each kind, `REFUSAL_NOTICED` after it began, from all replicas together.
        """
        ledger, name = self.options.ledger, self.options.name
        since: datetime | None
        match outcome:
            case Retry(reason=reason, refused_us=True):
                self.refused = True
                delivery = delivery._replace(reason=reason)
                kind, since = Kind.REFUSED_NOTICE, await ledger.refusals.record(name, now=now)
            case Sent() if self.refused:
                kind, since = Kind.ACCEPTED_NOTICE, await ledger.refusals.since(name)
            case _:
                return ()
        if since is None or now - since < REFUSAL_NOTICED:
            return ()
        event = await ledger.history.event(delivery.event)
        return self.options.planner.notify_of_channel(event, delivery, kind, since, now=now)

    async def _notices(self, dead: Sequence[Delivery], now: datetime) -> Sequence[Delivery]:
        """Return the notices to fallback recipients about dead deliveries of one event, or without an event."""
        event = await self.options.ledger.history.event(dead[0].event) if dead else None
        notices = [self.options.planner.notify_fallback(event, delivery, now=now) for delivery in dead]
        return [notice for several in notices for notice in several]
