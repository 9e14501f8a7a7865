"""Delivers the messages of one channel: claims deliveries, sends them, and stores the outcomes in the ledger.

Each channel has a worker of its own, so a slow provider delays no other channel.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from random import Random

import structlog
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_delay, wait_random_exponential

from channels.contract import Answer, Channel, ChannelError, Content, InDoubt, Message, Receipt, Thread
from dispatcher.clock import Clock
from dispatcher.errors import LedgerFailed, LedgerRefuses, LedgerUnavailable
from dispatcher.ledger import ClaimedThread, Ledger, Settlement
from dispatcher.ledger.brake import Brake
from dispatcher.ledger.halving import Halving
from dispatcher.model.circuit_breaker import CircuitBreaker
from dispatcher.model.delivery import (
    Dead,
    Delivery,
    Dropped,
    DropReason,
    Kind,
    Outcome,
    Result,
    Retry,
    Sent,
    State,
    classify,
    split,
    stumble,
)
from dispatcher.model.event import shortened
from dispatcher.model.rate_limit import AdmissionControl, RateLimit, feedback
from dispatcher.model.retry import RetryPolicy
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.tracing import NO_SPAN, OFF, Span, Tracing

log = structlog.get_logger(__name__)

LEASE = timedelta(minutes=3)
"""How long a claimed delivery belongs to its worker. If the worker crashes, another replica can claim the
delivery after this time."""
REFUSAL_NOTICED = timedelta(minutes=15)
"""If a provider refuses the dispatcher itself for this long, the channel's fallback recipients are notified."""
SENDING_SHARE = 2 / 3
"""Share of the lease, from its start, within which an attempt must end. The remaining share is reserved for settling.
This limit applies in addition to the channel's own timeouts."""
SLOW = 0.02
"""A provider counts as slow if its fastest recent send took longer than this many seconds."""
MAX_BRAKE_PAUSE = timedelta(seconds=15)
"""Longest pause between two tests of a ledger that refuses a canned event."""
POLL_INTERVAL = timedelta(seconds=1)
"""After this time, an idle worker claims again, even if nothing woke it, because another process may have recorded
deliveries."""


@dataclass(slots=True, kw_only=True)
class DeliveryWorker:
    """Claims, sends and settles the deliveries of one channel until it is stopped.

    How its counters and sets depend on each other:

    - `_tasks` has one task for each claimed delivery, until the delivery is settled or released. The task takes a send
      slot to send the delivery, then a settle slot to settle the delivery. There are `concurrency` slots of each type.
    - `_returned` of these tasks have finished their send. The other tasks wait for a send slot or are sending. A claim
      never makes more than `concurrency + _prefetch` tasks wait or send. `_in_flight_by_destination` counts the tasks
      that wait or send, by destination.
    - `_in_flight_by_thread` counts all tasks by thread. `_threads_with_new` contains only threads that have a task.
    - A destination is in `_blocked_destinations` while the ledger has not stored the feedback of an attempt to this
      destination. In that time, the worker sends nothing to the destination.
    - `_more_due` and `_next_due_at` describe deliveries that the last claim left in the ledger. The worker claims again
      when `_wakeup` is set, when `_next_due_at` is reached, or after `POLL_INTERVAL`.
    """

    name: str
    channel: Channel
    ledger: Ledger
    planner: Planner
    contents: Contents
    policy: RetryPolicy
    clock: Clock
    rng: Random
    worker_id: str
    """The owner's name in the leases of this worker. Each replica has a different name."""
    concurrency: int
    """Maximum number of messages that are sent at the same time."""
    rate_limit: RateLimit = field(default_factory=RateLimit)
    """Limits that apply to each destination of the channel."""
    pages: bool = False
    """True if the channel's messages page people (`ChannelType.pages`). Outdated failures are then dropped."""
    lease: timedelta = LEASE
    """How long a claimed delivery belongs to this worker."""
    on_settled: Callable[[Settlement, bool], None] = lambda *_: None
    """Called after each settlement, with True if the ledger applied the outcome, and False if the worker had lost the
    lease."""
    on_deferred: Callable[[int], None] = lambda _: None
    """Called after each claim, with the number of due deliveries that must wait because of a rate limit or a blocked
    destination."""
    on_failed: Callable[[], None] = lambda: None
    """Called after each unforeseen exception about one delivery, after which the worker goes on."""
    tracing: Tracing = OFF
    claimed_at: datetime | None = None
    """When the worker last claimed a delivery."""
    _wakeup: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there may be deliveries to claim. The worker clears it before each claim."""
    _stopping: bool = False
    _abandoned: bool = False
    """True after `abandon`: the worker sends nothing more, and releases the claimed deliveries."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    """One task for each claimed delivery, until the delivery is settled or released."""
    _sending: set[asyncio.Task[None]] = field(default_factory=set)
    """The tasks that are waiting for the provider's answer."""
    _send_slots: asyncio.Semaphore = field(init=False)
    """Limits concurrent sends to `concurrency`."""
    _settle_slots: asyncio.Semaphore = field(init=False)
    """Limits concurrent settlements to `concurrency`, so that few deliveries are sent but not settled. After a crash,
    all such deliveries are sent again."""
    _start_slots: asyncio.Semaphore = field(init=False)
    """If the provider is slow, limits how many sends start in one event-loop iteration."""
    _fastest_send: float = 0.0
    """Duration of the fastest recent send, in seconds. Each slower send raises this value by 5 %, so that an
    old send does not count forever."""
    _settle_time: timedelta = field(init=False)
    """The last part of the lease, which is reserved for settling."""
    _group: asyncio.TaskGroup = field(init=False)
    _waiting: bool = False
    """True while `run` waits for `_wakeup`."""
    _returned: int = 0
    """Number of tasks in `_tasks` that have finished their send."""
    _in_flight_by_destination: Counter[str] = field(default_factory=Counter)
    _blocked_destinations: Counter[str] = field(default_factory=Counter)
    """Mapping from each blocked destination to its number of attempts whose feedback the ledger has not stored yet."""
    _in_flight_by_thread: Counter[str] = field(default_factory=Counter)
    _breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    _refused: bool = True
    """True if the ledger may have a refusal of this channel. True at the start: another process may have stored it."""
    _next_due_at: datetime | None = None
    """The earliest time at which a deferred or retried delivery becomes due; None if there is no such delivery."""
    _more_due: bool = False
    """True if the ledger may have due deliveries that the last claim did not take, because all slots were in use."""
    _saturated_destinations: frozenset[str] = frozenset()
    """Destinations that already had `rate_limit.max_in_flight` deliveries in flight at the last claim."""
    _threads_with_new: set[str] = field(default_factory=set)
    """Threads with a delivery in flight for which another delivery was recorded in the meantime."""
    brake: Brake = field(init=False)
    _refusals: int = 0
    """Number of claims in a row that the brake has stopped."""
    _braked_until: datetime | None = None
    """The worker claims nothing before this time, because the ledger refuses a canned event."""

    def __post_init__(self) -> None:
        self.brake = Brake(lambda: self.ledger.rehearse([self.name], now=self.clock.now()))
        self._send_slots = asyncio.Semaphore(self.concurrency)
        self._settle_slots = asyncio.Semaphore(self.concurrency)
        self._start_slots = asyncio.Semaphore(max(2, self.concurrency // 16))
        self._settle_time = self.lease * (1 - SENDING_SHARE)

    @property
    def breaker_open(self) -> bool:
        """True if the circuit breaker of the whole provider is open."""
        return self._breaker.open

    @property
    def in_flight(self) -> int:
        """Number of claimed deliveries that are not settled or released yet."""
        return len(self._tasks)

    @property
    def _prefetch(self) -> int:
        """Maximum number of claimed deliveries that may wait for a send slot, so that no slot waits for the ledger.

        0 if destinations have a rate limit, because a delivery that the rate limit admits must be sent at once.
        """
        return self.concurrency if self.rate_limit.rate is None else 0

    def notify(self, threads: Iterable[str] = ()) -> None:
        """Wake the worker, because there may be deliveries to claim.

        `threads`: the threads of new deliveries. If such a thread already has a delivery in flight, the worker claims
        again after that delivery.
        """
        self._threads_with_new.update(thread for thread in threads if thread and self._in_flight_by_thread[thread])
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
        for task in self._sending:
            task.cancel()

    async def run(self) -> None:
        """Claim and deliver until the worker is stopped. While the ledger is unavailable, keep trying to claim.

        May be called again after it has raised an exception: no delivery is in flight then.
        """
        self._returned = 0
        for counts in (self._in_flight_by_destination, self._blocked_destinations, self._in_flight_by_thread):
            counts.clear()
        async with asyncio.TaskGroup() as self._group:
            while not self._stopping:
                self._wakeup.clear()
                claimed = await self._claim()
                for delivery in claimed:
                    self._start(delivery)
                if not claimed or not self._more_due or not self._can_claim:
                    await self._wait_for_work()

    def _start(self, delivery: Delivery) -> None:
        self._in_flight_by_destination[self._destination(delivery)] += 1
        self._in_flight_by_thread[delivery.thread] += 1
        task = self._group.create_task(self._deliver(delivery, probing=self._breaker.open))
        self._tasks.add(task)
        task.add_done_callback(partial(self._task_done, delivery))

    def _send_returned(self, delivery: Delivery) -> None:
        """Note that a send is finished, and wake the worker if another delivery can now be claimed."""
        self._returned += 1
        destination = self._destination(delivery)
        _decrement(self._in_flight_by_destination, destination)
        if destination in self._saturated_destinations or (self._waiting and self._more_due and self._can_claim):
            self.notify()

    def _task_done(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        """Remove a finished task, and wake the worker if another delivery of its thread waited for this task."""
        self._returned -= 1
        self._tasks.discard(task)
        thread = delivery.thread
        _decrement(self._in_flight_by_thread, thread)
        awaited = delivery.blocks_thread or (bool(thread) and thread in self._threads_with_new)
        self._threads_with_new.discard(thread)
        if awaited:
            self.notify()

    def _destination(self, delivery: Delivery) -> str:
        return self._destination_of(delivery.addresses or delivery.recipients)

    def _destination_of(self, addresses: tuple[str, ...]) -> str:
        try:
            return shortened(self.channel.destination(addresses))
        except Exception as error:  # noqa: BLE001 - a bug of a channel must not stop its worker
            log.error(
                "a channel can't name a destination", channel=self.name, reason=f"{type(error).__name__}: {error}"
            )
            return ""

    @property
    def _free_slots(self) -> int:
        """Number of deliveries that may be claimed now: free slots plus prefetch, or fewer if the breaker is open."""
        allowed = self._breaker.allowed(self.concurrency, self.clock.now())
        if allowed < self.concurrency:
            return allowed - len(self._tasks)
        return allowed + self._prefetch - (len(self._tasks) - self._returned)

    @property
    def _can_claim(self) -> bool:
        """True if a claim is worth a query: a slot is free, or fewer than `_prefetch / 2` deliveries wait for one."""
        return self._free_slots > (self._prefetch // 2 if self._send_slots.locked() else 0)

    async def _claim(self) -> Sequence[Delivery]:
        if not self._can_claim:
            self._more_due = True
            return []
        now, limit = self.clock.now(), self._free_slots
        if self._braked_until is not None and now < self._braked_until:
            return []
        admission = self._admission(now)
        try:
            if self._braked_until is not None:
                await self.brake.test()
            claim = await self.ledger.claim(
                self.name, limit, lease=self.worker_id, until=now + self.lease, admission=admission
            )
        except LedgerUnavailable as error:
            self._wait_for_ledger(error, now)
            return []
        except LedgerFailed as error:
            await self._claim_in_halves(limit, error)
            return []
        self._refusals, self._braked_until = 0, None
        self._more_due, self._saturated_destinations = claim.more, frozenset(admission.saturated)
        due_times = (self._next_due_at, claim.next_at)
        self._next_due_at = min((at for at in due_times if at is not None and at > now), default=None)
        self.on_deferred(admission.deferred)
        if claim.deliveries:
            self.claimed_at = now
            self.brake.worked()
        return claim.deliveries

    def _wait_for_ledger(self, error: LedgerUnavailable, now: datetime) -> None:
        log.warning("waiting for the ledger", channel=self.name, reason=str(error))
        self._more_due = False
        if isinstance(error, LedgerRefuses):
            self._refusals += 1
            self._braked_until = now + min(POLL_INTERVAL * 2 ** min(self._refusals - 1, 10), MAX_BRAKE_PAUSE)

    async def _claim_in_halves(self, limit: int, error: LedgerFailed) -> None:
        """Claim and start deliveries after a claim has failed: in halves, until the delivery at fault is alone."""
        log.warning("a claim failed: claiming in halves", channel=self.name, reason=str(error))
        now = self.clock.now()

        async def claim(keys: Sequence[str]) -> None:
            until, admission = self.clock.now() + self.lease, self._admission(self.clock.now())
            claimed = await self.ledger.claim(
                self.name, len(keys), lease=self.worker_id, until=until, admission=admission, keys=keys
            )
            for delivery in claimed.deliveries:
                self._start(delivery)
            if claimed.deliveries:
                self.brake.worked()

        async def give_up(key: str, error: LedgerFailed) -> None:
            started = self.clock.now()
            delivery = await self.ledger.claim_bare(key, lease=self.worker_id, now=started, until=started + self.lease)
            if delivery is not None:
                await self._store(await self._stumble(delivery, error, started))

        try:
            due = await self.ledger.due(self.name, now=now, limit=limit)
            await Halving(due, claim, give_up, self.brake).run()
        except LedgerUnavailable as unavailable:
            self._wait_for_ledger(unavailable, now)

    def _admission(self, now: datetime) -> AdmissionControl:
        """Return the admission control for one claim. Blocked destinations count as full, so they get nothing."""
        blocked = Counter(dict.fromkeys(self._blocked_destinations, self.rate_limit.max_in_flight))
        return AdmissionControl(
            rate_limit=self.rate_limit,
            destination=self._destination_of,
            now=now,
            in_flight=self._in_flight_by_destination | blocked,
        )

    async def _wait_for_work(self) -> None:
        """Wait until `_wakeup` is set, a delivery becomes due, or `POLL_INTERVAL` has passed."""
        wait = POLL_INTERVAL
        if self._next_due_at is not None and (left := self._next_due_at - self.clock.now()) < POLL_INTERVAL:
            # `_next_due_at` is cleared, because a time in the past would make the worker claim again without a pause.
            wait, self._next_due_at = max(left, timedelta()), None
        try:
            async with asyncio.timeout(wait.total_seconds()):
                self._waiting = True
                await self._wakeup.wait()
        except TimeoutError:
            return
        finally:
            self._waiting = False

    async def _deliver(self, delivery: Delivery, *, probing: bool) -> None:
        """Send the delivery once a slot is free, and settle the delivery.

        `probing`: True if the provider's breaker is open and this delivery tests whether the provider works again.
        """
        async with self._send_slots:
            if self._fastest_send > SLOW:
                await self._wait_for_start_slot()
            started = self.clock.now()
            try:
                sent = await self._send(delivery, probing=probing)
            except Exception as error:  # noqa: BLE001 - a delivery must not stop its neighbours
                sent = await self._stumble_or_release(delivery, error, started)
            if sent is not None:
                await self._settle_slots.acquire()
        if sent is None:
            self._send_returned(delivery)
            return
        try:
            await self._settle(*sent)
        except Exception as error:
            log.error("an outcome could not be settled", **_log_fields(delivery), exc_info=error)
            self.on_failed()
        finally:
            self._settle_slots.release()

    async def _stumble_or_release(
        self, delivery: Delivery, error: Exception, started: datetime
    ) -> tuple[Settlement, Span] | None:
        """Return the outcome of an attempt that the dispatcher itself could not finish.

        If the ledger is at fault, the delivery is released instead, and the result is None.
        """
        try:
            await self.brake.test()
            if isinstance(error, LedgerFailed):
                self.brake.give_up(error)
            return await self._stumble(delivery, error, started), NO_SPAN
        except (LedgerUnavailable, LedgerFailed) as at_fault:
            log.warning("the ledger is at fault, so the delivery waits", **_log_fields(delivery), reason=str(at_fault))
            if isinstance(at_fault, LedgerUnavailable):
                self._wait_for_ledger(at_fault, self.clock.now())
            await self._release(delivery, due_at=self.clock.now() + POLL_INTERVAL)
            return None

    async def _stumble(self, delivery: Delivery, error: Exception, started: datetime) -> Settlement:
        """Return the settlement of an attempt that the dispatcher itself could not finish. Raises LedgerUnavailable."""
        log.error("an attempt could not be made", **_log_fields(delivery), exc_info=error)
        self.on_failed()
        earlier, now = await self.ledger.stumbles(delivery), self.clock.now()
        outcome = stumble(delivery, error, earlier=earlier, now=now, policy=self.policy, rng=self.rng)
        _log_outcome(delivery, outcome, NO_SPAN)
        return Settlement(delivery=delivery, outcome=outcome, started_at=started, ended_at=now)

    async def _wait_for_start_slot(self) -> None:
        """Wait for an event-loop iteration in which few other sends start.

        Many sends that start together share the CPU, so all their requests go out late, and until then the provider
        has little to do. With a fast provider, the delay does not matter, and starting many sends in a row saves CPU
        time. Therefore only sends to slow providers wait.
        """
        await self._start_slots.acquire()
        asyncio.get_running_loop().call_soon(self._start_slots.release)

    async def _send(self, delivery: Delivery, *, probing: bool) -> tuple[Settlement, Span] | None:
        """Send the delivery. Returns None if the delivery is released instead; then the attempt is not counted."""
        started = self.clock.now()
        left = delivery.due_at - self._settle_time - started
        # If the wait for a slot used up the sending time, another worker may get the lease before this send is settled.
        late = left <= timedelta()
        # Checked again, because the breaker may have opened, or the destination been blocked, since the claim.
        blocked = (self._breaker.open and not probing) or self._destination(delivery) in self._blocked_destinations
        if self._abandoned or late or blocked:
            await self._release(delivery, due_at=started)
            return None
        try:
            claimed = await self.ledger.thread(delivery)
            if claimed is not None and (dropped := _drop(claimed, pages=self.pages)) is not None:
                span = self._attempt_span(delivery)
                _log_outcome(delivery, dropped, span)
                return Settlement(delivery=delivery, outcome=dropped, started_at=started, ended_at=started), span
            content = delivery.content if delivery.content is not None else await self._render(delivery)
        except LedgerUnavailable:
            await self._release(delivery, due_at=started + POLL_INTERVAL)
            return None
        if content is None:
            self._log_lost_lease(delivery)
            return None
        thread = claimed.thread if claimed is not None else None
        span = self._attempt_span(delivery)
        send_span = span.child("dispatcher.send")
        try:
            result = await self._attempt(delivery, content, thread, left, send_span)
        except asyncio.CancelledError:
            span.end(outcome="released")
            # The message may have arrived. Before the next attempt sends, the channel asks the provider, if it can.
            await self._release(delivery._replace(in_doubt=True), due_at=self.clock.now())
            return None
        send_span.end(failed=isinstance(result, Exception))
        try:
            return self._conclude(delivery, result, started, span), span
        except Exception as error:
            if not isinstance(result, Receipt):
                raise
            log.error("a sent message is recorded as sent only", **_log_fields(delivery), exc_info=error)
            sent = Settlement(delivery=delivery, outcome=Sent(result), started_at=started, ended_at=self.clock.now())
            return sent, span

    def _conclude(self, delivery: Delivery, result: Result, started: datetime, span: Span) -> Settlement:
        """Return the settlement of an attempt, and let the breaker know its result."""
        ended = self.clock.now()
        if isinstance(result, Receipt):
            seconds = max((ended - started).total_seconds(), 0.0)  # not negative, even if the system clock was set back
            self._fastest_send = min(seconds, 1.05 * self._fastest_send + 0.0001)
        self._breaker.record(result, ended)
        outcome = classify(delivery, result, now=ended, policy=self.policy, rng=self.rng)
        _log_outcome(delivery, outcome, span)
        return Settlement(
            delivery=delivery,
            outcome=outcome,
            started_at=started,
            ended_at=ended,
            feedback=feedback(
                self._destination(delivery), result, ended, destination_failing=delivery.destination_failing
            ),
        )

    async def _render(self, delivery: Delivery) -> Content | None:
        """Render a delivery that was recorded without content, and store the content, which every attempt sends.

        Returns None if the lease is lost. Raises LedgerUnavailable.
        """
        event = await self.ledger.event(delivery.event)
        assert event is not None  # noqa: S101 - for the type checker: a delivery's event is recorded before it
        if self.contents.waits:
            content = await asyncio.to_thread(self.contents.content, event, delivery)
        else:
            content = self.contents.content(event, delivery)
        return content if await self.ledger.store_content(delivery, content) else None

    async def _settle(self, settlement: Settlement, span: Span) -> None:
        """Store the outcome. The worker sends nothing to the destination until the ledger has stored the feedback."""
        destination = self._destination(settlement.delivery)
        if settlement.feedback is not None:
            self._blocked_destinations[destination] += 1
        self._send_returned(settlement.delivery)
        settle_span = span.child("dispatcher.settle")
        try:
            await self._store(settlement)
        finally:
            if settlement.feedback is not None:
                _decrement(self._blocked_destinations, destination)
                self.notify()
        settle_span.end()
        outcome = settlement.outcome
        span.end(outcome=type(outcome).__name__.lower(), failed=isinstance(outcome, (Retry, Dead)))
        if isinstance(outcome, Retry):
            self._next_due_at = min(outcome.at, self._next_due_at or outcome.at)

    def _attempt_span(self, delivery: Delivery) -> Span:
        """Return the attempt's span. Only the first attempt, before any redrive, belongs to the event's trace."""
        return self.tracing.attempt(
            delivery.trace,
            first=delivery.attempt == 1 and delivery.retry_window_start == delivery.created_at,
            event=delivery.event,
            delivery=delivery.key,
            channel=delivery.channel,
            attempt=delivery.attempt,
        )

    async def _attempt(
        self, delivery: Delivery, content: Content, thread: Thread | None, limit: timedelta, span: Span
    ) -> Result:
        """Send the message once. Returns the receipt, or the exception if the send failed."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: a coroutine always runs in a task
        self._sending.add(task)
        try:
            addresses = delivery.addresses or tuple(map(self.channel.address, delivery.recipients))
            message = Message(
                key=delivery.key,
                recipients=addresses,
                content=content,
                created_at=delivery.created_at,
                thread=thread,
                in_doubt=delivery.in_doubt,
                trace=span.headers,
            )
            async with asyncio.timeout(limit.total_seconds()):
                return await self.channel.send(message)
        except TimeoutError:
            return InDoubt(f"no answer within {limit.total_seconds():.1f} s")
        except Exception as error:
            if not isinstance(error, ChannelError):
                log.exception("a channel broke its contract", **_log_fields(delivery), **span.log_fields)
            return error
        finally:
            self._sending.discard(task)  # the send is over: `abandon` must not cancel the settlement that follows

    async def _store(self, settlement: Settlement) -> None:
        """Store the outcome if the worker still holds the lease.

        If the ledger is unavailable, retry, because without a stored outcome a sent message would be sent again.
        """
        try:
            counted: bool | None = await self._store_once(settlement)
        except LedgerUnavailable as error:
            if isinstance(
                error, LedgerRefuses
            ):  # claim nothing more, because the outcome of a send could not be stored
                self._wait_for_ledger(error, self.clock.now())
            counted = await self._store_with_retries(settlement)
        except LedgerFailed as error:
            log.error("the ledger can't write an outcome", **_log_fields(settlement.delivery), reason=str(error))
            counted = None
        if counted is None:
            log.error(
                "the outcome could not be stored: the delivery will be attempted again",
                **_log_fields(settlement.delivery),
            )
        elif not counted:
            self._log_lost_lease(settlement.delivery)

    def _log_lost_lease(self, delivery: Delivery) -> None:
        log.warning("the lease was lost: this outcome does not count", **_log_fields(delivery))

    async def _store_with_retries(self, settlement: Settlement) -> bool | None:
        """Store the outcome once the ledger is available. Returns None if that takes longer than `_settle_time`."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(LedgerUnavailable),
            wait=wait_random_exponential(multiplier=0.1, max=5),
            stop=stop_after_delay(self._settle_time),
        )
        try:
            counted: bool = await retrying(self._store_once, settlement)
        except (RetryError, LedgerFailed):
            return None
        return counted

    async def _store_once(self, settlement: Settlement) -> bool:
        """Store the outcome together with the deliveries that it causes.

        Returns False if the lease was lost. Raises LedgerUnavailable, or LedgerFailed if even the bare outcome can't be
        written.
        """
        accepted = isinstance(settlement.outcome, Sent) and self._refused
        follow_ups = await self._planned_follow_ups(settlement)
        complete = replace(settlement, follow_ups=follow_ups) if follow_ups else settlement
        try:
            counted = await self.ledger.settle(complete)
        except LedgerFailed:
            await self.brake.test()
            complete, counted = await self._settle_plainly(complete)
        if accepted:
            await self._end_refusal()
        self.on_settled(complete, counted)
        if follow_ups:
            self.notify()
        return counted

    async def _end_refusal(self) -> None:
        """Remove the channel's refusal from the ledger. If that fails, the next accepted message tries again."""
        try:
            await self.ledger.end_refusal(self.name)
        except (LedgerUnavailable, LedgerFailed) as error:
            log.warning("a refusal could not be removed", channel=self.name, reason=str(error))
        else:
            self._refused = False

    async def _settle_plainly(self, settlement: Settlement) -> tuple[Settlement, bool]:
        """Settle after a settlement has failed for its data: once more, then without the provider's answer, then also
        without the deliveries that follow. Otherwise the message, which was perhaps sent, would be sent again.

        Returns what was settled, and False if the lease was lost. Raises LedgerUnavailable or LedgerFailed.
        """
        plain = replace(settlement, outcome=_without_answer(settlement.outcome), feedback=None)
        for part in (settlement, plain):
            try:
                return part, await self.ledger.settle(part)
            except LedgerFailed as error:
                log.error("the ledger can't write an outcome", **_log_fields(part.delivery), reason=str(error))
        bare = replace(plain, follow_ups=())
        return bare, await self.ledger.settle(bare)

    async def _planned_follow_ups(self, settlement: Settlement) -> Sequence[Delivery]:
        """Return the new deliveries that an outcome causes, or none if they can't be planned, not even the second time.

        The outcome is settled in any case, so that a message that was sent is not sent again. Raises LedgerUnavailable.
        """
        for _ in range(2):
            try:
                return [
                    *await self._follow_ups(settlement.delivery, settlement.outcome, settlement.ended_at),
                    *await self._channel_notices(settlement.delivery, settlement.outcome, settlement.ended_at),
                ]
            except LedgerUnavailable:
                raise
            except Exception as error:
                log.error("follow-ups could not be planned", **_log_fields(settlement.delivery), exc_info=error)
                self.on_failed()
                await self.brake.test()
        return ()

    async def _follow_ups(self, delivery: Delivery, outcome: Outcome, now: datetime) -> Sequence[Delivery]:
        """Return the new deliveries that an outcome causes.

        Each recipient of a mail that the relay refused gets a separate delivery. A recipient that the channel does not
        know gets a delivery on the fallback channel. The fallback recipients get a notice about each dead delivery.
        """
        match outcome:
            case Sent(receipt):
                parts = split(delivery, receipt, now=now, policy=self.policy, rng=self.rng)
                return [*parts, *await self._notices([part for part in parts if part.state is State.DEAD], now)]
            case Dead(unknown_recipient=True) if (event := await self.ledger.event(delivery.event)) is not None:
                notified = await self.ledger.notified(delivery.event)
                rerouted = self.planner.reroute(event, delivery, notified, now=now)
                return rerouted or await self._notices([delivery._replace(reason=outcome.reason)], now)
            case Dead(reason=reason):
                return await self._notices([delivery._replace(reason=reason)], now)
            case _:
                return ()

    async def _channel_notices(self, delivery: Delivery, outcome: Outcome, now: datetime) -> Sequence[Delivery]:
        """Return the notices to fallback recipients that the provider refuses the dispatcher itself, or no longer does.

        Each refusal gives one notice of each kind, `REFUSAL_NOTICED` after it began, from all replicas together.
        """
        since: datetime | None
        match outcome:
            case Retry(reason=reason, refused_us=True):
                self._refused = True
                delivery = delivery._replace(reason=reason)
                kind, since = Kind.REFUSED_NOTICE, await self.ledger.record_refusal(self.name, now=now)
            case Sent() if self._refused:
                kind, since = Kind.ACCEPTED_NOTICE, await self.ledger.refused_since(self.name)
            case _:
                return ()
        if since is None or now - since < REFUSAL_NOTICED or (event := await self.ledger.event(delivery.event)) is None:
            return ()
        return self.planner.notify_of_channel(event, delivery, kind, since, now=now)

    async def _notices(self, dead: Sequence[Delivery], now: datetime) -> Sequence[Delivery]:
        """Return the notices to fallback recipients about dead deliveries of one event."""
        if not dead or (event := await self.ledger.event(dead[0].event)) is None:
            return ()
        notices = [self.planner.notify_fallback(event, delivery, now=now) for delivery in dead]
        return [notice for several in notices for notice in several]

    async def _release(self, delivery: Delivery, *, due_at: datetime) -> None:
        """Give the delivery back to the ledger, so that it is due at `due_at`. The attempt is not counted."""
        try:
            await self.ledger.release(delivery, due_at=due_at)
        except (LedgerUnavailable, LedgerFailed):
            log.warning(
                "could not release a delivery: it is due again when its lease runs out", **_log_fields(delivery)
            )


def _without_answer(outcome: Outcome) -> Outcome:
    """Return the outcome without the texts of the provider and of errors."""
    lost = "the ledger can't write the answer"
    match outcome:
        case Sent():
            return Sent(Receipt(answer=Answer("", lost)))
        case Retry(at=at, in_doubt=in_doubt):
            return Retry(at, lost, in_doubt=in_doubt)
        case Dead(in_doubt=in_doubt):
            return Dead(lost, in_doubt=in_doubt)
        case Dropped():
            return outcome


def _drop(claimed: ClaimedThread, *, pages: bool) -> Dropped | None:
    """Return the outcome of an outdated message that would mislead; None for a message to send."""
    if not claimed.superseded:
        return None
    if claimed.thread.resolves:
        return Dropped(DropReason.SUPERSEDED, "nothing was resolved: there was a newer failure")
    if pages:
        return Dropped(DropReason.SUPERSEDED, "nobody was paged: a run that started later has succeeded")
    return None


def _log_fields(delivery: Delivery) -> dict[str, str | int]:
    """Return the fields that every log line about a delivery contains."""
    return {
        "execution": delivery.event,
        "channel": delivery.channel,
        "delivery": delivery.key,
        "attempt": delivery.attempt,
    }


def _log_outcome(delivery: Delivery, outcome: Outcome, span: Span) -> None:
    fields = {**_log_fields(delivery), **span.log_fields}
    if not isinstance(outcome, Dropped):
        log.debug("attempted", **fields, recipients=delivery.recipients, addresses=delivery.addresses, outcome=outcome)
    match outcome:
        case Sent(receipt):
            log.info("sent", **fields, status=receipt.answer.status, refused=len(receipt.failures))
        case Retry(at=at, reason=reason):
            log.warning("not sent yet", **fields, reason=reason, retry_at=at.isoformat(timespec="seconds"))
        case Dead(reason=reason):
            log.error("given up", **fields, reason=reason)
        case Dropped(why=why, reason=reason):
            log.info("dropped", **fields, drop_reason=why.value, reason=reason)


def _decrement(counts: Counter[str], name: str) -> None:
    """Subtract one from a count. Removes the key at zero, because a `Counter` would keep the key."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
