"""Releases held deliveries when their holds end: a component of the service.

Each address is one transaction (`ledger/releases.py`). If a replica dies before, another one does the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from functools import partial

import structlog

from dispatcher.clock import Clock, is_set_within
from dispatcher.delivering.options import log_fields
from dispatcher.errors import LedgerUnavailable, SilencesChanged
from dispatcher.holding.covering import by_quiet_hours, by_silence
from dispatcher.holding.release import Released
from dispatcher.ledger import Ledger
from dispatcher.ledger.digests import Target
from dispatcher.ledger.releases import Ended
from dispatcher.model.delivery import Delivery, Kind
from dispatcher.model.event import Event
from dispatcher.model.hold import Hold, Quiet
from dispatcher.planning.planner import Planner
from dispatcher.rules import RuleBook
from dispatcher.rules.silences import CurrentSilences, test_of

log = structlog.get_logger(__name__)

INTERVAL = 1.0
"""Seconds from one look at the holds that have ended to the next."""
PAUSE = timedelta(minutes=1)
"""An address whose release has failed waits for this long. The others go on."""


@dataclass(slots=True, kw_only=True)
class Releaser:
    """Releases what silences, quiet hours and digests have held."""

    ledger: Ledger
    silences: CurrentSilences
    planner: Planner
    rules: Callable[[], RuleBook]
    """Returns the rules that the rule files contain now."""
    default_zone: tzinfo
    """The time zone of addresses whose contact has none."""
    clock: Clock
    stopping: asyncio.Event
    wake: Callable[[], None] = lambda: None
    """Called after a release, because deliveries are due."""
    on_released: Callable[[str, Mapping[str, int]], None] = lambda _channel, _numbers: None
    """Called after a release with the channel, and how many deliveries were `sent`, `included` in another message,
    `dropped` or `held_again`."""
    on_failed: Callable[[], None] = lambda: None
    """Called after each unforeseen exception about one address, after which the others go on."""
    _paused: dict[Target, datetime] = field(default_factory=dict)
    """Until when an address waits whose release has failed."""
    _failed: set[Target] = field(default_factory=set)
    """The addresses whose last release has failed."""

    async def run(self) -> None:
        """Release what is due, again and again, until the service stops."""
        while not await is_set_within(self.stopping, INTERVAL):
            try:
                await self.release_due()
            except LedgerUnavailable as error:
                log.warning("waiting for the ledger", component="releaser", reason=str(error))

    async def release_due(self) -> None:
        """Let silences begin whose time has come, release what is not held any more, and close digests.

        Raises LedgerUnavailable.
        """
        now = self.clock.now()
        await self._begin_silences(now)
        self._paused = {target: until for target, until in self._paused.items() if until > now}
        try:
            for target, keys in (await self.ledger.releases.due(now=now)).items():
                release = self._release_apart if target in self._failed else self._release
                await self._one(target, partial(release, target, keys))
        except SilencesChanged:
            await self.silences.load()  # the next round decides by the new silences
            return
        # After the releases: a digest tells of what quiet hours release at the same moment.
        for target in await self.ledger.digests.due(now=now):
            await self._one(target, partial(self._close, target))

    async def _begin_silences(self, now: datetime) -> None:
        """Hold what waits when a planned silence begins, and finish what a command has not finished."""
        try:
            await self.ledger.silences.begin_due(test_of, now=now)
        except LedgerUnavailable:
            raise
        except Exception as error:
            log.error("a silence could not hold what waits", exc_info=error)
            self.on_failed()

    async def _one(self, target: Target, step: Callable[[], Awaitable[None]]) -> None:
        """Take a step about one address. If it fails, the address waits, and the others go on."""
        if target in self._paused:
            return
        try:
            await step()
        except (LedgerUnavailable, SilencesChanged):
            raise
        except Exception as error:
            log.error("held deliveries could not be released", channel=target.channel, exc_info=error)
            self._paused[target] = self.clock.now() + PAUSE
            self._failed.add(target)
            self.on_failed()

    async def _release(self, target: Target, keys: Sequence[str]) -> None:
        book, now = self.silences.book, self.clock.now()
        read = await self.ledger.releases.read(keys, with_events=bool(book.silences))
        ended = Ended(
            target=target,
            covers={delivery.key: [*self._covers(delivery, event, now)] for delivery, event in read},
            silences=book.version,
            pages=target.channel in self.planner.paging,
            zone=self.planner.contacts.options(*target).timezone or self.default_zone,
            digest=self.planner.digest(*target),
        )
        released = await self.ledger.releases.release(ended, now=now)
        self._failed.discard(target)
        if released is not None:
            self._note(target, _numbers(released))

    async def _release_apart(self, target: Target, keys: Sequence[str]) -> None:
        """Release each delivery alone, after a release of all has failed. What can't be released is only not held any
        more: the worker then finds out whether it can be sent.
        """
        for key in keys:
            try:
                await self._release(target, [key])
            except (LedgerUnavailable, SilencesChanged):
                raise
            except Exception as error:
                log.error("a held delivery could not be released", delivery=key, exc_info=error)
                self.on_failed()
                await self.ledger.releases.let_go(key, now=self.clock.now())
                self.wake()
        self._failed.discard(target)

    def _covers(self, delivery: Delivery, event: Event | None, now: datetime) -> Iterator[Hold]:
        """Yield what covers the delivery now. A silence that is over has released it, and does not hold it again."""
        if event is not None:
            for silence in self.silences.book.matching(event):
                if silence.in_force(now) and (hold := by_silence(silence, delivery, now)) is not None:
                    yield hold
        if (quiet := self._quiet(delivery, now)) is not None:
            yield by_quiet_hours(quiet)

    def _quiet(self, delivery: Delivery, now: datetime) -> Quiet | None:
        return self.planner.still_quiet(delivery, self.rules().routes, now=now)

    async def _close(self, target: Target) -> None:
        now = self.clock.now()
        closed = await self.ledger.digests.close(target, lambda digest: self._quiet(digest, now), now=now)
        if closed is not None:
            log.info("closed a digest", **log_fields(closed.message))
            self._note(target, {"included" if closed.message.kind is Kind.DIGEST else "sent": closed.members})

    def _note(self, target: Target, numbers: Mapping[str, int]) -> None:
        if not any(numbers.values()):
            return
        log.info("released", channel=target.channel, **numbers)
        self.on_released(target.channel, numbers)
        if numbers.get("sent") or numbers.get("included"):
            self.wake()


def _numbers(released: Released) -> Mapping[str, int]:
    """Return how many deliveries became what (`Releaser.on_released`)."""
    included = sum(bool(one.included_in) for one in released.dropped)
    return {
        "sent": len(released.going) + len(released.overdue),
        "included": included,
        "dropped": len(released.dropped) - included,
        "held_again": len(released.held),
    }
