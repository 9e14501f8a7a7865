"""Releases held deliveries when their holds end: a component of the service.

Each address is one transaction (`ledger/releases.py`). If a replica dies before, another one does the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo

import structlog

from dispatcher.clock import Clock, is_set_within
from dispatcher.errors import LedgerUnavailable, SilencesChanged
from dispatcher.holding.covering import by_quiet_hours, by_silence
from dispatcher.holding.release import Released
from dispatcher.ledger import Ledger
from dispatcher.ledger.digests import Target
from dispatcher.ledger.releases import Ended
from dispatcher.model.delivery import Delivery
from dispatcher.model.event import Event
from dispatcher.model.hold import Hold, Quiet
from dispatcher.rules.silences import CurrentSilences, test_of

log = structlog.get_logger(__name__)

INTERVAL = 1.0
"""Seconds from one look at the holds that have ended to the next."""
PAUSE = timedelta(minutes=1)
"""An address whose release has failed waits for this long. The others go on."""


def never_quiet(delivery: Delivery, now: datetime) -> Quiet | None:
    """Return no quiet hours."""
    del delivery, now
    return None


@dataclass(slots=True, kw_only=True)
class Releaser:
    """Releases what silences and quiet hours have held."""

    ledger: Ledger
    silences: CurrentSilences
    clock: Clock
    stopping: asyncio.Event
    pages: frozenset[str]
    """The channels whose messages page people (`ChannelType.pages`)."""
    zone: Callable[[Target], tzinfo]
    """Returns the time zone of an address."""
    quiet: Callable[[Delivery, datetime], Quiet | None] = never_quiet
    """Returns the quiet hours that hold a delivery at a time."""
    wake: Callable[[], None] = lambda: None
    """Called after a release, because deliveries are due."""
    on_failed: Callable[[], None] = lambda: None
    """Called after each unforeseen exception about one address, after which the others go on."""
    _paused: dict[Target, datetime] = field(default_factory=dict)
    """Until when an address waits whose release has failed."""

    async def run(self) -> None:
        """Release what is due, again and again, until the service stops."""
        while not await is_set_within(self.stopping, INTERVAL):
            try:
                await self.release_due()
            except LedgerUnavailable as error:
                log.warning("waiting for the ledger", component="releaser", reason=str(error))

    async def release_due(self) -> None:
        """Begin silences, release the deliveries whose holds have ended, then close the digests that are due. Raises
        LedgerUnavailable.

        In this order, because a digest tells of what quiet hours release at the same moment.
        """
        now = self.clock.now()
        await self._begin_silences(now)
        self._paused = {target: until for target, until in self._paused.items() if until > now}
        for target, keys in (await self.ledger.releases.due(now=now)).items():
            if target in self._paused:
                continue
            try:
                released = await self._release(target, keys)
            except SilencesChanged:
                await self.silences.load()
                return  # the next round decides by the new silences
            except LedgerUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - logged, and the other addresses go on
                self._pause(target, now, error)
                continue
            if released is None:
                return  # another replica is releasing
            self._log(target, released)
        await self._close_digests(now)

    async def _begin_silences(self, now: datetime) -> None:
        """Hold what waits when a planned silence begins, and finish what a command has not finished."""
        try:
            await self.ledger.silences.begin_due(test_of, now=now)
        except LedgerUnavailable:
            raise
        except Exception as error:
            log.error("a silence could not hold what waits", exc_info=error)
            self.on_failed()

    async def _close_digests(self, now: datetime) -> None:
        for target in await self.ledger.digests.due(now=now):
            if target in self._paused:
                continue
            try:
                message = await self.ledger.digests.close(target, lambda one: self.quiet(one, now), now=now)
            except LedgerUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - logged, and the other addresses go on
                self._pause(target, now, error)
                continue
            if message is not None:
                self.wake()
                log.info("a digest has closed", channel=target.channel, sent=message.kind)

    def _pause(self, target: Target, now: datetime, error: Exception) -> None:
        log.error("held deliveries could not be released", channel=target.channel, exc_info=error)
        self._paused[target] = now + PAUSE
        self.on_failed()

    async def _release(self, target: Target, keys: Sequence[str]) -> Released | None:
        book, now = self.silences.book, self.clock.now()
        read = await self.ledger.releases.read(keys, with_events=bool(book.silences))
        covers = {delivery.key: [*self._covers(delivery, event, now)] for delivery, event in read}
        ended = Ended(
            target=target,
            covers=covers,
            silences=book.version,
            pages=target.channel in self.pages,
            zone=self.zone(target),
        )
        return await self.ledger.releases.release(ended, now=now)

    def _covers(self, delivery: Delivery, event: Event | None, now: datetime) -> Iterator[Hold]:
        """Yield what covers the delivery now. A silence that is over has released it, and does not hold it again."""
        if event is not None:
            for silence in self.silences.book.matching(event):
                if silence.in_force(now) and (hold := by_silence(silence, delivery, now)) is not None:
                    yield hold
        if (quiet := self.quiet(delivery, now)) is not None:
            yield by_quiet_hours(quiet)

    def _log(self, target: Target, released: Released) -> None:
        going = len(released.going) + (released.summary is not None)
        if going:
            self.wake()
        if going or released.dropped or released.held:
            log.info(
                "released",
                channel=target.channel,
                sent=going,
                dropped=len(released.dropped),
                held_again=len(released.held),
            )
