"""Delivers the messages of one channel: claim, send, classify, settle.

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

from channels.contract import Channel, ChannelError, InDoubt, Message, Receipt, Thread
from dispatcher.clock import Clock
from dispatcher.errors import LedgerUnavailable
from dispatcher.ledger import DirectDispatch, Ledger, Settlement
from dispatcher.model.circuit_breaker import CircuitBreaker
from dispatcher.model.delivery import Dead, Delivery, Outcome, Result, Retry, Sent, State, classify, split
from dispatcher.model.rate_limit import AdmissionControl, RateLimit, feedback
from dispatcher.model.retry import RetryPolicy
from dispatcher.planning.planner import Planner
from dispatcher.tracing import OFF, Span, Tracing

log = structlog.get_logger(__name__)

LEASE = timedelta(minutes=3)
"""How long a claimed delivery belongs to its worker. If the worker crashes, other replicas can claim it after this."""
SENDING_SHARE = 2 / 3
"""Part of the lease, counted from the claim, in which an attempt must end. The rest is for settling. It applies in
addition to the channel's own timeouts."""
SLOW = 0.02
"""A provider counts as slow if its fastest recent send took longer than this many seconds."""
POLL_INTERVAL = timedelta(seconds=1)
"""How often an idle worker asks the ledger for deliveries that other processes may have recorded."""


@dataclass(slots=True, kw_only=True)
class DeliveryWorker:
    """Claims, sends and settles the deliveries of one channel until it is stopped.

    Relations between its counters and sets:

    - Each claimed delivery has a task in `_tasks` until it is settled or released. A task needs a send slot to send,
      then a settle slot to settle; there are `concurrency` slots of each type.
    - `len(_tasks) - _returned` tasks have not finished their send. A claim never raises this number above
      `concurrency + _prefetch`. `_in_flight_by_destination` counts the same tasks by destination.
    - `_in_flight_by_thread` counts all tasks by thread. `_threads_with_new` is a subset of its keys.
    - A destination is in `_blocked_destinations` from the time its feedback is known until the ledger has stored it.
      Meanwhile the worker sends nothing to it. `_saturated_destinations` are the destinations that the last claim
      skipped.
    - While `_dispatch_pending` is true, intake has a `DirectDispatch`: the free slots are reserved for intake, and the
      worker claims nothing.
    - `_more_due` and `_next_due_at` describe deliveries that the last claim did not take. `_wakeup` ends the wait for
      new work; otherwise the worker polls the ledger every `POLL_INTERVAL`.
    """

    name: str
    channel: Channel
    ledger: Ledger
    planner: Planner
    policy: RetryPolicy
    clock: Clock
    rng: Random
    worker_id: str
    """The owner that this worker's leases name; differs between replicas."""
    concurrency: int
    """Maximum number of messages that are sent at the same time."""
    rate_limit: RateLimit = field(default_factory=RateLimit)
    """Limits for each destination."""
    lease: timedelta = LEASE
    """How long a claim is valid."""
    on_settled: Callable[[Settlement, bool], None] = lambda *_: None
    """Called after each settlement, with True if it counted and False if the lease was lost."""
    on_deferred: Callable[[int], None] = lambda _: None
    """Called after each claim, with the number of due deliveries that rate limits or blocked destinations deferred."""
    tracing: Tracing = OFF
    claimed_at: datetime | None = None
    """When the worker last claimed a delivery."""
    _wakeup: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there may be work; cleared before each claim."""
    _stopping: bool = False
    _abandoned: bool = False
    """True if nothing more is sent and claimed deliveries are released."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    """One task for each delivery that is claimed and neither settled nor released."""
    _sending: set[asyncio.Task[None]] = field(default_factory=set)
    """The tasks that are waiting for the provider's answer."""
    _send_slots: asyncio.Semaphore = field(init=False)
    """Limits concurrent sends to `concurrency`."""
    _settle_slots: asyncio.Semaphore = field(init=False)
    """Limits concurrent settlements to `concurrency`, because after a crash, every delivery that was sent but not
    settled is sent again."""
    _start_slots: asyncio.Semaphore = field(init=False)
    """Limits how many sends start in one event-loop iteration, if the provider is slow."""
    _fastest_send: float = 0.0
    """Duration of the fastest recent send in seconds. Each slower send raises it by 5 %."""
    _settle_time: timedelta = field(init=False)
    """Part of the lease that is kept for settling."""
    _group: asyncio.TaskGroup = field(init=False)
    _dispatch_pending: bool = False
    """True if intake has a `DirectDispatch` of this worker and has not called its `accept` yet."""
    _waiting: bool = False
    """True if the worker waits for `_wakeup`."""
    _idle_poll_done: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared during a claim that will probably find nothing."""
    _returned: int = 0
    """Number of tasks in `_tasks` that have finished their send."""
    _in_flight_by_destination: Counter[str] = field(default_factory=Counter)
    _blocked_destinations: Counter[str] = field(default_factory=Counter)
    """Number of attempts to each destination whose feedback is not stored in the ledger yet."""
    _in_flight_by_thread: Counter[str] = field(default_factory=Counter)
    _breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    _next_due_at: datetime | None = None
    """The earliest known time at which a delivery becomes due."""
    _more_due: bool = False
    """True if the last claim left deliveries that may be claimed as soon as a slot is free."""
    _saturated_destinations: frozenset[str] = frozenset()
    """Destinations that already had `rate_limit.max_in_flight` deliveries in flight at the last claim."""
    _threads_with_new: set[str] = field(default_factory=set)
    """Threads that have a delivery in flight, and a newer delivery that was recorded in the meantime."""

    def __post_init__(self) -> None:
        self._send_slots = asyncio.Semaphore(self.concurrency)
        self._settle_slots = asyncio.Semaphore(self.concurrency)
        self._start_slots = asyncio.Semaphore(max(2, self.concurrency // 16))
        self._settle_time = self.lease * (1 - SENDING_SHARE)
        self._idle_poll_done.set()

    @property
    def breaker_open(self) -> bool:
        """True if the circuit breaker of the whole provider is open."""
        return self._breaker.open

    @property
    def in_flight(self) -> int:
        """Number of deliveries that are claimed and neither settled nor released."""
        return len(self._tasks)

    @property
    def _prefetch(self) -> int:
        """Maximum number of deliveries that may be claimed beyond the free slots, so that no slot waits for the ledger.

        0 if destinations have a rate limit, because a delivery that the limit lets through must be sent at once.
        """
        return self.concurrency if self.rate_limit.rate is None else 0

    def direct_dispatch(self) -> DirectDispatch | None:
        """Offer the free slots for the deliveries that intake records next; None if due deliveries need the slots.

        Until intake has called `accept`, the worker claims nothing.
        """
        if self._dispatch_pending or self._stopping or not self._idle:
            return None
        self._dispatch_pending = True
        now = self.clock.now()
        return DirectDispatch(
            limit=self._free_slots,
            lease=self.worker_id,
            until=now + self.lease,
            admission=self._admission(now),
            accept=self._accept,
        )

    async def idle_poll_done(self) -> None:
        """If a poll is running that will probably find nothing, wait for it: then slots may be free for intake."""
        await self._idle_poll_done.wait()

    def notify(self, threads: Iterable[str] = ()) -> None:
        """Claim now, because there may be work.

        `threads`: threads with a new delivery. The worker also claims after its current delivery of such a thread.
        """
        self._threads_with_new.update(thread for thread in threads if thread and self._in_flight_by_thread[thread])
        self._wakeup.set()

    def stop(self) -> None:
        """Claim nothing more; `run` returns once all deliveries in flight are settled."""
        self._stopping = True
        self.notify()

    def abandon(self) -> None:
        """Stop, cancel the sends and release their deliveries to other workers. Known outcomes are still stored.

        A task whose send has not started is not cancelled: it sees `_abandoned` and releases its delivery.
        """
        self._abandoned = True
        self.stop()
        for task in self._sending:
            task.cancel()

    async def run(self) -> None:
        """Claim and deliver until stopped. While the ledger is unavailable, wait."""
        async with asyncio.TaskGroup() as self._group:
            while self._dispatch_pending or not self._stopping:
                self._wakeup.clear()
                claimed = await self._claim()
                for delivery in claimed:
                    self._start(delivery)
                if not claimed or not self._more_due or not self._can_claim:
                    await self._wait_for_work()

    def _accept(self, claimed: Sequence[Delivery]) -> None:
        """Start the deliveries that intake claimed for the `DirectDispatch`."""
        self._dispatch_pending = False
        self.claimed_at = self.clock.now() if claimed else self.claimed_at
        for delivery in claimed:
            self._start(delivery)
        if self._more_due or self._stopping:
            self.notify()

    def _start(self, delivery: Delivery) -> None:
        self._in_flight_by_destination[self._destination(delivery)] += 1
        self._in_flight_by_thread[delivery.thread] += 1
        task = self._group.create_task(self._deliver(delivery, probing=self._breaker.open))
        self._tasks.add(task)
        task.add_done_callback(partial(self._task_done, delivery))

    def _send_returned(self, delivery: Delivery) -> None:
        """Free the destination and the slot, and notify if another delivery can now be claimed."""
        self._returned += 1
        destination = self._destination(delivery)
        _decrement(self._in_flight_by_destination, destination)
        if destination in self._saturated_destinations or (self._waiting and self._more_due and self._can_claim):
            self.notify()

    def _task_done(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        """Free the thread, and notify if its next delivery waited for this one."""
        self._returned -= 1
        self._tasks.discard(task)
        thread = delivery.thread
        _decrement(self._in_flight_by_thread, thread)
        awaited = delivery.blocks_thread or (bool(thread) and thread in self._threads_with_new)
        self._threads_with_new.discard(thread)
        if awaited:
            self.notify()

    def _destination(self, delivery: Delivery) -> str:
        return self.channel.destination(delivery.addresses or delivery.recipients)

    @property
    def _free_slots(self) -> int:
        """Number of further deliveries that may be claimed: the free send slots, plus the prefetch."""
        allowed = self._breaker.allowed(self.concurrency, self.clock.now())
        if allowed < self.concurrency:
            return allowed - len(self._tasks)
        return allowed + self._prefetch - (len(self._tasks) - self._returned)

    @property
    def _idle(self) -> bool:
        """True if the last claim left nothing due and a slot is free."""
        work_known = self._wakeup.is_set() or self._more_due or self._breaker.open
        return self._waiting and not work_known and self._can_claim

    @property
    def _can_claim(self) -> bool:
        """True if a claim is worth a query: a send slot is free, or half of the prefetched deliveries got a slot."""
        return self._free_slots > (self._prefetch // 2 if self._send_slots.locked() else 0)

    async def _claim(self) -> Sequence[Delivery]:
        if self._dispatch_pending or not self._can_claim:
            self._more_due = True
            return []
        now, limit = self.clock.now(), self._free_slots
        admission = self._admission(now)
        if not self._more_due:
            self._idle_poll_done.clear()
        try:
            claim = await self.ledger.claim(
                self.name, limit, lease=self.worker_id, until=now + self.lease, admission=admission
            )
        except LedgerUnavailable as error:
            log.warning("waiting for the ledger", channel=self.name, reason=str(error))
            self._more_due = False
            return []
        finally:
            self._idle_poll_done.set()
        self._more_due, self._saturated_destinations = claim.more, frozenset(admission.saturated)
        due_times = (self._next_due_at, claim.next_at)
        self._next_due_at = min((at for at in due_times if at is not None and at > now), default=None)
        self.on_deferred(admission.deferred)
        self.claimed_at = now if claim.deliveries else self.claimed_at
        return claim.deliveries

    def _admission(self, now: datetime) -> AdmissionControl:
        """Return the admission control for one claim; blocked destinations count as full."""
        blocked = Counter(dict.fromkeys(self._blocked_destinations, self.rate_limit.max_in_flight))
        return AdmissionControl(
            rate_limit=self.rate_limit,
            destination=self.channel.destination,
            now=now,
            in_flight=self._in_flight_by_destination | blocked,
        )

    async def _wait_for_work(self) -> None:
        """Wait until `_wakeup` is set, a delivery becomes due, or `POLL_INTERVAL` has passed."""
        wait = POLL_INTERVAL
        if self._next_due_at is not None and (left := self._next_due_at - self.clock.now()) < POLL_INTERVAL:
            # `_next_due_at` is used only once, because a time in the past would cause a busy loop.
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
        """Send the delivery once a slot is free, and settle it.

        `probing`: the provider's breaker is open, and this delivery tests whether it works again.
        """
        async with self._send_slots:
            if self._fastest_send > SLOW:
                await self._wait_for_start_slot()
            sent = await self._send(delivery, probing=probing)
            if sent is not None:
                await self._settle_slots.acquire()
        if sent is None:
            self._send_returned(delivery)
            return
        try:
            await self._settle(*sent)
        finally:
            self._settle_slots.release()

    async def _wait_for_start_slot(self) -> None:
        """Wait for an event-loop iteration in which few other sends start.

        Many sends that start together share the CPU, so all their requests go out late. Their answers also arrive
        together, and in the meantime the provider has few requests to work on. With a fast provider this costs nothing,
        and running many similar steps in a row saves CPU time, so the limit applies to slow providers only.
        """
        await self._start_slots.acquire()
        asyncio.get_running_loop().call_soon(self._start_slots.release)

    async def _send(self, delivery: Delivery, *, probing: bool) -> tuple[Settlement, Span] | None:
        """Send the delivery; None if it is released instead and the attempt is not counted."""
        started = self.clock.now()
        left = delivery.due_at - self._settle_time - started
        # True if the claim or the wait for a slot took too long, so that another worker may soon get the lease.
        late = left <= timedelta()
        # The breaker or the destination may have changed since the claim.
        blocked = (self._breaker.open and not probing) or self._destination(delivery) in self._blocked_destinations
        if self._abandoned or late or blocked:
            await self._release(delivery, due_at=started)
            return None
        try:
            thread = await self.ledger.thread(delivery)
        except LedgerUnavailable:
            await self._release(delivery, due_at=started + POLL_INTERVAL)
            return None
        span = self._attempt_span(delivery)
        send_span = span.child("dispatcher.send")
        try:
            result = await self._attempt(delivery, thread, left, send_span)
        except asyncio.CancelledError:
            span.end(outcome="released")
            # The message may have arrived, so the next attempt searches the provider first, if the channel can.
            await self._release(delivery._replace(in_doubt=True), due_at=self.clock.now())
            return None
        send_span.end(failed=isinstance(result, Exception))
        ended = self.clock.now()
        if isinstance(result, Receipt):
            seconds = max((ended - started).total_seconds(), 0.0)  # the clock may have been set back
            self._fastest_send = min(seconds, 1.05 * self._fastest_send + 0.0001)
        self._breaker.record(result, ended)
        outcome = classify(delivery, result, now=ended, policy=self.policy, rng=self.rng)
        _log_outcome(delivery, outcome, span)
        settlement = Settlement(
            delivery=delivery,
            outcome=outcome,
            started_at=started,
            ended_at=ended,
            feedback=feedback(
                self._destination(delivery), result, ended, destination_failing=delivery.destination_failing
            ),
        )
        return settlement, span

    async def _settle(self, settlement: Settlement, span: Span) -> None:
        """Store the outcome. The worker blocks the destination until the ledger has stored its feedback."""
        destination = self._destination(settlement.delivery)
        if settlement.feedback is not None:
            self._blocked_destinations[destination] += 1
        self._send_returned(settlement.delivery)
        settle_span = span.child("dispatcher.settle")
        await self._store(settlement)
        settle_span.end()
        outcome = settlement.outcome
        span.end(outcome=type(outcome).__name__.lower(), failed=not isinstance(outcome, Sent))
        if isinstance(outcome, Retry):
            self._next_due_at = min(outcome.at, self._next_due_at or outcome.at)
        if settlement.feedback is not None:
            _decrement(self._blocked_destinations, destination)
            self.notify()

    def _attempt_span(self, delivery: Delivery) -> Span:
        """The attempt's span; part of the event's trace only for the first attempt before any redrive."""
        return self.tracing.attempt(
            delivery.trace,
            first=delivery.attempt == 1 and delivery.retry_window_start == delivery.created_at,
            event=delivery.event,
            delivery=delivery.key,
            channel=delivery.channel,
            attempt=delivery.attempt,
        )

    async def _attempt(self, delivery: Delivery, thread: Thread | None, limit: timedelta, span: Span) -> Result:
        """Send once and return the receipt or the exception. The only place where exceptions become values."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - coroutines always run in a task
        self._sending.add(task)
        try:
            addresses = delivery.addresses or tuple(map(self.channel.address, delivery.recipients))
            message = Message(
                key=delivery.key,
                recipients=addresses,
                content=delivery.content,
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
            self._sending.discard(task)  # `abandon` must not cancel the settlement that follows

    async def _store(self, settlement: Settlement) -> None:
        """Store the outcome if the lease is still held; retry, because a sent delivery must not be sent again."""
        try:
            counted: bool | None = await self._store_once(settlement)
        except LedgerUnavailable:
            counted = await self._store_with_retries(settlement)
        if counted is None:
            log.error(
                "the outcome could not be stored: the delivery will be attempted again",
                **_log_fields(settlement.delivery),
            )
        elif not counted:
            log.warning("the lease was lost: this outcome does not count", **_log_fields(settlement.delivery))

    async def _store_with_retries(self, settlement: Settlement) -> bool | None:
        """Retry until the ledger is available again; None if that takes longer than `_settle_time`."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(LedgerUnavailable),
            wait=wait_random_exponential(multiplier=0.1, max=5),
            stop=stop_after_delay(self._settle_time),
        )
        try:
            counted: bool = await retrying(self._store_once, settlement)
        except RetryError:
            return None
        return counted

    async def _store_once(self, settlement: Settlement) -> bool:
        """Settle in the ledger, with follow-ups; False if the lease was lost. Raises LedgerUnavailable."""
        follow_ups = await self._follow_ups(settlement.delivery, settlement.outcome, settlement.ended_at)
        complete = replace(settlement, follow_ups=follow_ups) if follow_ups else settlement
        counted = await self.ledger.settle(complete)
        self.on_settled(complete, counted)
        if follow_ups:
            self.notify()
        return counted

    async def _follow_ups(self, delivery: Delivery, outcome: Outcome, now: datetime) -> Sequence[Delivery]:
        """Return the deliveries that an outcome causes.

        A mail's refused recipients get their own deliveries. A recipient that the channel does not know goes to the
        fallback channel. The fallback recipients are notified of dead deliveries.
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

    async def _notices(self, dead: Sequence[Delivery], now: datetime) -> Sequence[Delivery]:
        """Return notices about one event's dead deliveries, at most one for each fallback recipient."""
        if not dead or (event := await self.ledger.event(dead[0].event)) is None:
            return ()
        notices = [self.planner.notify_fallback(event, delivery, delivery.reason, now=now) for delivery in dead]
        return [notice for several in notices for notice in several]

    async def _release(self, delivery: Delivery, *, due_at: datetime) -> None:
        """Give the delivery back to the ledger; the attempt is not counted."""
        try:
            await self.ledger.release(delivery, due_at=due_at)
        except LedgerUnavailable:
            log.warning(
                "could not release a delivery: it is due again when its lease runs out", **_log_fields(delivery)
            )


def _log_fields(delivery: Delivery) -> dict[str, str | int]:
    """The fields of every log line about a delivery."""
    return {
        "execution": delivery.event,
        "channel": delivery.channel,
        "delivery": delivery.key,
        "attempt": delivery.attempt,
    }


def _log_outcome(delivery: Delivery, outcome: Outcome, span: Span) -> None:
    fields = {**_log_fields(delivery), **span.log_fields}
    log.debug("attempted", **fields, recipients=delivery.recipients, addresses=delivery.addresses, outcome=outcome)
    match outcome:
        case Sent(receipt):
            log.info("sent", **fields, status=receipt.answer.status, refused=len(receipt.failures))
        case Retry(at=at, reason=reason):
            log.warning("not sent yet", **fields, reason=reason, retry_at=at.isoformat(timespec="seconds"))
        case Dead(reason=reason):
            log.error("given up", **fields, reason=reason)


def _decrement(counts: Counter[str], name: str) -> None:
    """Subtract one, and remove the key at zero, because `Counter` would keep it."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
