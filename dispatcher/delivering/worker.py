"""Delivers the messages of one channel: claims deliveries from the ledger, and has each sent and settled.

Each channel has a worker of its own, so a slow provider delays no other channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from channels.contract import Channel
from dispatcher.clock import is_set_within
from dispatcher.delivering.attempt import Attempted, Attempts
from dispatcher.delivering.options import POLL_INTERVAL, WorkerOptions, log_fields
from dispatcher.delivering.slots import Slots
from dispatcher.errors import LedgerFailed, LedgerRefuses, LedgerUnavailable
from dispatcher.ledger.brake import Brake
from dispatcher.ledger.halving import Halving
from dispatcher.model.delivery import Delivery, Retry
from dispatcher.model.event import shortened
from dispatcher.model.rate_limit import AdmissionControl

log = structlog.get_logger(__name__)

MAX_BRAKE_PAUSE = timedelta(seconds=15)
"""Longest pause between two tests of a ledger that refuses a canned event."""


@dataclass(slots=True)
class DeliveryWorker:
    """Claims, sends and settles the deliveries of one channel until it is stopped.

    Each claimed delivery has a task, which takes a send slot, then a settle slot (`Slots`). The worker claims again
    when `_wakeup` is set, when `_next_due_at` is reached, or after `POLL_INTERVAL`.
    """

    options: WorkerOptions
    claimed_at: datetime | None = None
    """When the worker last claimed a delivery."""
    brake: Brake = field(init=False)
    slots: Slots = field(init=False)
    attempts: Attempts = field(init=False)
    _group: asyncio.TaskGroup = field(init=False)
    _wakeup: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there may be deliveries to claim. The worker clears it before each claim."""
    _stopping: bool = False
    _abandoned: bool = False
    """True after `abandon`: the worker sends nothing more, and releases the claimed deliveries."""
    _more_due: bool = False
    """True if the ledger may have due deliveries that the last claim did not take, because all slots were in use."""
    _next_due_at: datetime | None = None
    """The earliest time at which a deferred or retried delivery becomes due; None if there is no such delivery."""
    _saturated_destinations: frozenset[str] = frozenset()
    """Destinations that already had `rate_limit.max_in_flight` deliveries in flight at the last claim."""
    _refusals: int = 0
    """Number of claims in a row that the brake has stopped."""
    _braked_until: datetime | None = None
    """The worker claims nothing before this time, because the ledger refuses a canned event."""

    def __post_init__(self) -> None:
        options = self.options
        self.brake = Brake(lambda: options.ledger.rehearse([options.name], now=options.clock.now()))
        self.slots = Slots(options.concurrency, options.claim_ahead)
        self.attempts = Attempts(options, self.slots.breaker, self.brake, self.notify, self._wait_for_ledger)

    @property
    def name(self) -> str:
        """The channel's name."""
        return self.options.name

    @property
    def channel(self) -> Channel:
        return self.options.channel

    @property
    def breaker_open(self) -> bool:
        """True if the circuit breaker of the whole provider is open."""
        return self.slots.breaker.open

    @property
    def in_flight(self) -> int:
        """Number of claimed deliveries that are not settled or released yet."""
        return self.slots.in_flight

    def notify(self, threads: Iterable[str] = ()) -> None:
        """Wake the worker, because there may be deliveries to claim.

        `threads`: the threads of new deliveries. If such a thread already has a delivery in flight, the worker claims
        again after that delivery.
        """
        self.slots.recorded(threads)
        self._wakeup.set()

    def stop(self) -> None:
        """Stop claiming. `run` returns once all deliveries in flight are settled or released."""
        self._stopping = True
        self.notify()

    def abandon(self) -> None:
        """Stop, cancel the running sends, and release their deliveries. Outcomes that are known are still stored.

        A task whose send has not started is not cancelled, because it sees `_abandoned` and releases its delivery.
        """
        self._abandoned = True
        self.stop()
        self.attempts.cancel()

    async def run(self) -> None:
        """Claim and deliver until the worker is stopped. While the ledger is unavailable, keep trying to claim.

        May be called again after it has raised an exception: no delivery is in flight then.
        """
        self.slots.reset()
        async with asyncio.TaskGroup() as self._group:
            while not self._stopping:
                self._wakeup.clear()
                claimed = await self._claim()
                for delivery in claimed:
                    self._start(delivery)
                if not claimed or not self._more_due or not self._can_claim:
                    await self._wait_for_work()

    # -- claiming

    @property
    def _can_claim(self) -> bool:
        return self.slots.can_claim(self.options.clock.now())

    async def _claim(self) -> Sequence[Delivery]:
        """Claim due deliveries for the free slots. Returns none if there are none, or if the ledger can't be used."""
        now = self.options.clock.now()
        if not self.slots.can_claim(now):
            self._more_due = True
            return []
        if self._braked_until is not None and now < self._braked_until:
            return []
        limit, admission = self.slots.free(now), self._admission(now)
        try:
            if self._braked_until is not None:
                await self.brake.test()
            claim = await self.options.ledger.claim(
                self.name, limit, lease=self.options.worker_id, until=now + self.options.lease, admission=admission
            )
        except LedgerUnavailable as error:
            self._wait_for_ledger(error)
            return []
        except LedgerFailed as error:
            await self._claim_in_halves(limit, error)
            return []
        self._refusals, self._braked_until = 0, None
        self._more_due, self._saturated_destinations = claim.more, frozenset(admission.saturated)
        due_times = (self._next_due_at, claim.next_at)
        self._next_due_at = min((at for at in due_times if at is not None and at > now), default=None)
        self.options.on_deferred(admission.deferred)
        if claim.deliveries:
            self.claimed_at = now
            self.brake.worked()
        return claim.deliveries

    def _wait_for_ledger(self, error: LedgerUnavailable) -> None:
        """Claim nothing for a while: until the next poll, or longer if the ledger refuses a canned event."""
        log.warning("waiting for the ledger", channel=self.name, reason=str(error))
        self._more_due = False
        if isinstance(error, LedgerRefuses):
            self._refusals += 1
            pause = min(POLL_INTERVAL * 2 ** min(self._refusals - 1, 10), MAX_BRAKE_PAUSE)
            self._braked_until = self.options.clock.now() + pause

    async def _claim_in_halves(self, limit: int, error: LedgerFailed) -> None:
        """Claim and start deliveries after a claim has failed: in halves, until the delivery at fault is alone."""
        log.warning("a claim failed: claiming in halves", channel=self.name, reason=str(error))
        options = self.options

        async def claim(keys: Sequence[str]) -> None:
            now = options.clock.now()
            until, admission = now + options.lease, self._admission(now)
            claimed = await options.ledger.claim(
                self.name, len(keys), lease=options.worker_id, until=until, admission=admission, keys=keys
            )
            for delivery in claimed.deliveries:
                self._start(delivery)
            if claimed.deliveries:
                self.brake.worked()

        async def give_up(key: str, error: LedgerFailed) -> None:
            now = options.clock.now()
            until = now + options.lease
            delivery = await options.ledger.claim_bare(key, lease=options.worker_id, now=now, until=until)
            if delivery is not None:
                await self.attempts.store(await self.attempts.stumble(delivery, error, now))

        try:
            due = await options.ledger.due(self.name, now=options.clock.now(), limit=limit)
            await Halving(due, claim, give_up, self.brake).run()
        except LedgerUnavailable as unavailable:
            self._wait_for_ledger(unavailable)

    def _admission(self, now: datetime) -> AdmissionControl:
        """Return the admission control for one claim. Blocked destinations count as full, so they get nothing."""
        return AdmissionControl(
            rate_limit=self.options.rate_limit,
            destination=self._destination,
            now=now,
            in_flight=self.slots.full_destinations(self.options.rate_limit.max_in_flight),
        )

    def _destination(self, addresses: tuple[str, ...]) -> str:
        try:
            return shortened(self.channel.destination(addresses))
        except Exception as error:  # noqa: BLE001 - a bug of a channel must not stop its worker
            log.error(
                "a channel can't name a destination", channel=self.name, reason=f"{type(error).__name__}: {error}"
            )
            return ""

    async def _wait_for_work(self) -> None:
        """Wait until `_wakeup` is set, a delivery becomes due, or `POLL_INTERVAL` has passed."""
        wait = POLL_INTERVAL
        if self._next_due_at is not None and (left := self._next_due_at - self.options.clock.now()) < POLL_INTERVAL:
            # `_next_due_at` is cleared, because a time in the past would make the worker claim again without a pause.
            wait, self._next_due_at = max(left, timedelta()), None
        await is_set_within(self._wakeup, wait.total_seconds())

    # -- delivering

    def _start(self, delivery: Delivery) -> None:
        """Start the task of a claimed delivery."""
        destination = self._destination(delivery.addresses or delivery.recipients)
        self.slots.start(destination, delivery.thread)
        self._group.create_task(self._deliver(delivery, destination, probing=self.breaker_open))

    async def _deliver(self, delivery: Delivery, destination: str, *, probing: bool) -> None:
        """Send the delivery once a slot is free, and settle the delivery.

        `probing`: True if the provider's breaker is open and this delivery tests whether the provider works again.
        """
        attempted: Attempted | None = None
        try:
            async with self.slots.sending:
                if self._may_send(destination, probing=probing):
                    attempted = await self.attempts.make(delivery, destination)
                else:
                    await self.attempts.release(delivery, due_at=self.options.clock.now())
                if attempted is not None:
                    await self.slots.settling.acquire()
            if attempted is None:
                self._sent(destination)
            else:
                await self._settle(attempted, destination)
        finally:
            if self.slots.finish(delivery.thread) or delivery.blocks_thread:
                self.notify()

    def _may_send(self, destination: str, *, probing: bool) -> bool:
        """False if the delivery has to be released, because something has happened since its claim."""
        breaker_allows = probing or not self.breaker_open
        return breaker_allows and not self._abandoned and not self.slots.blocked[destination]

    def _sent(self, destination: str) -> None:
        """Note that a send is finished, and wake the worker if another delivery can now be claimed."""
        self.slots.sent(destination)
        if destination in self._saturated_destinations or (self._more_due and self._can_claim):
            self.notify()

    async def _settle(self, attempted: Attempted, destination: str) -> None:
        """Store the outcome. The worker sends nothing to the destination until the ledger has stored the feedback."""
        settlement = attempted.settlement
        if settlement.feedback is not None:
            self.slots.block(destination)
        self._sent(destination)
        try:
            await self.attempts.settle(attempted)
        except Exception as error:
            log.error("an outcome could not be settled", **log_fields(settlement.delivery), exc_info=error)
            self.options.on_failed()
        finally:
            self.slots.settling.release()
            if settlement.feedback is not None:
                self.slots.unblock(destination)
                self.notify()
        if isinstance(settlement.outcome, Retry):
            at = settlement.outcome.at
            self._next_due_at = min(at, self._next_due_at or at)
