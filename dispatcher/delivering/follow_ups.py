"""Plans the deliveries that follow from an outcome: to other recipients, and notices to the fallback recipients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from dispatcher.delivering.options import WorkerOptions
from dispatcher.errors import LedgerFailed, LedgerUnavailable
from dispatcher.ledger import Settlement
from dispatcher.model.delivery import Dead, Delivery, Kind, Outcome, Retry, Sent, State, split

log = structlog.get_logger(__name__)

REFUSAL_NOTICED = timedelta(minutes=15)
"""If a provider refuses the dispatcher itself for this long, the channel's fallback recipients are notified."""


@dataclass(slots=True)
class FollowUps:
    """Plans what follows from the outcomes of one channel's deliveries."""

    options: WorkerOptions
    refused: bool = True
    """True if the ledger may have a refusal of this channel. True at the start: another process may have stored it."""

    async def plan(self, settlement: Settlement) -> Sequence[Delivery]:
        """Return the new deliveries that an outcome causes. Raises LedgerUnavailable."""
        delivery, outcome, now = settlement.delivery, settlement.outcome, settlement.ended_at
        return [
            *await self._to_recipients(delivery, outcome, now),
            *await self._about_the_channel(delivery, outcome, now),
        ]

    async def end_refusal(self) -> None:
        """Remove the channel's refusal from the ledger. If that fails, the next accepted message tries again."""
        try:
            await self.options.ledger.refusals.end(self.options.name)
        except (LedgerUnavailable, LedgerFailed) as error:
            log.warning("a refusal could not be removed", channel=self.options.name, reason=str(error))
        else:
            self.refused = False

    async def _to_recipients(self, delivery: Delivery, outcome: Outcome, now: datetime) -> Sequence[Delivery]:
        """Return the deliveries to recipients whom the message did not reach, and the notices about dead deliveries.

        Each recipient of a mail that the relay refused gets a separate delivery. A recipient that the channel does not
        know gets a delivery on the fallback channel. The fallback recipients get a notice about each dead delivery.
        """
        ledger, planner = self.options.ledger, self.options.planner
        match outcome:
            case Sent(receipt):
                parts = split(delivery, receipt, now=now, policy=self.options.policy, rng=self.options.rng)
                return [*parts, *await self._notices([part for part in parts if part.state is State.DEAD], now)]
            case Dead(unknown_recipient=True) if (event := await ledger.history.event(delivery.event)) is not None:
                notified = await ledger.history.notified(delivery.event)
                rerouted = planner.reroute(event, delivery, notified, now=now)
                return rerouted or await self._notices([delivery._replace(reason=outcome.reason)], now)
            case Dead(reason=reason):
                return await self._notices([delivery._replace(reason=reason)], now)
            case _:
                return ()

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
        if (
            since is None
            or now - since < REFUSAL_NOTICED
            or (event := await ledger.history.event(delivery.event)) is None
        ):
            return ()
        return self.options.planner.notify_of_channel(event, delivery, kind, since, now=now)

    async def _notices(self, dead: Sequence[Delivery], now: datetime) -> Sequence[Delivery]:
        """Return the notices to fallback recipients about dead deliveries of one event."""
        if not dead or (event := await self.options.ledger.history.event(dead[0].event)) is None:
            return ()
        notices = [self.options.planner.notify_fallback(event, delivery, now=now) for delivery in dead]
        return [notice for several in notices for notice in several]
