"""Carries deliveries: claim, send, judge, settle. One courier a channel, so none waits for another's provider."""

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
"""How long a claimed delivery is ours. A worker that dies leaves its deliveries to others after this."""
SENDING_SHARE = 2 / 3
"""An attempt ends by this share of the lease, counted from the claim, whatever its channel promises; the rest is for
settling."""
SLOW = 0.02
"""Seconds; a provider that lately took no message sooner takes its time."""
GLANCE = timedelta(seconds=1)
"""How often the ledger is asked for work that another process may have recorded."""


@dataclass(slots=True, kw_only=True)
class DeliveryWorker:
    """Works through one channel's deliveries until told to stop."""

    name: str
    channel: Channel
    ledger: Ledger
    planner: Planner
    policy: RetryPolicy
    clock: Clock
    rng: Random
    worker: str
    """Who we are: tells our leases from other replicas'."""
    hands: int
    """How many deliveries are on their way at once."""
    pace: RateLimit = field(default_factory=RateLimit)
    """What each destination is spared."""
    lease: timedelta = LEASE
    """How long a claim holds."""
    settled: Callable[[Settlement, bool], None] = lambda *_: None
    """Told of each ending that is in the ledger, and whether it counted: the lease was still ours."""
    put_off: Callable[[int], None] = lambda _: None
    """Told how many deliveries a claim found due and put off, for their destinations' sake."""
    tracing: Tracing = OFF
    claimed_at: datetime | None = None
    """When it last got something to carry."""
    _bell: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False
    _abandoned: bool = False
    """Nothing more is sent: what is claimed goes straight back."""
    _carrying: set[asyncio.Task[None]] = field(default_factory=set)
    _sending: set[asyncio.Task[None]] = field(default_factory=set)
    _room: asyncio.Semaphore = field(init=False)
    """A place for each hand."""
    _desk: asyncio.Semaphore = field(init=False)
    """Where what has come back is written down: as many places, for a crash doubles what stands here too."""
    _line: asyncio.Semaphore = field(init=False)
    """A place for each hand that may begin at a turn of the event loop, with a provider that takes its time."""
    _quickest: float = 0.0
    """Seconds that the quickest message took to be taken; each later one lets it grow by a twentieth."""
    _settling_share: timedelta = field(init=False)
    """Of the lease, once the attempt has ended."""
    _group: asyncio.TaskGroup = field(init=False)
    _offered: bool = False
    """Our free hands are offered to intake, which hasn't answered yet."""
    _listening: bool = False
    """We wait for the bell."""
    _looked: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared while we look whether anything is due, and expect little."""
    _settling: int = 0
    """How many of what we carry have come back from the provider."""
    _busy: Counter[str] = field(default_factory=Counter)
    """How many are on their way to each destination."""
    _wary: Counter[str] = field(default_factory=Counter)
    """Destinations that had something to say of themselves which isn't in the ledger yet."""
    _talking: Counter[str] = field(default_factory=Counter)
    """How many are on their way in each conversation."""
    _breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    _alarm: datetime | None = None
    """When something is due that we know of."""
    _more: bool = False
    """The last claim left something that any hand could take."""
    _crowded: frozenset[str] = frozenset()
    """Destinations that had all the hands they may have when the last claim looked."""
    _answered: set[str] = field(default_factory=set)
    """Conversations of what we carry in which more is to be said since."""

    def __post_init__(self) -> None:
        self._room = asyncio.Semaphore(self.hands)
        self._desk = asyncio.Semaphore(self.hands)
        self._line = asyncio.Semaphore(max(2, self.hands // 16))
        self._settling_share = self.lease * (1 - SENDING_SHARE)
        self._looked.set()

    @property
    def resting(self) -> bool:
        """Whether the breaker of the whole provider is open."""
        return self._breaker.open

    @property
    def in_hand(self) -> int:
        """How many deliveries are being carried."""
        return len(self._carrying)

    @property
    def _ahead(self) -> int:
        """How many may be claimed beyond what hands can take, so that no hand waits for the ledger.

        None where destinations have a pace: what is let go now is to be on its way now.
        """
        return self.hands if self.pace.rate is None else 0

    def offer(self) -> DirectDispatch | None:
        """Our free hands, for what is recorded next; None where they are needed for what is due already.

        Until it is answered we claim nothing else.
        """
        if self._offered or self._stopping or not self._idle:
            return None
        self._offered = True
        now = self.clock.now()
        return DirectDispatch(
            limit=self._free, lease=self.worker, until=now + self.lease, gate=self._gate(now), take=self._take
        )

    async def looked(self) -> None:
        """Wait for a look at what is due that is under way: after it hands may be free to offer."""
        await self._looked.wait()

    def ring(self, conversations: Iterable[str] = ()) -> None:
        """There may be work: look now, and again once what we carry of these conversations is settled."""
        self._answered.update(one for one in conversations if one and self._talking[one])
        self._bell.set()

    def stop(self) -> None:
        """Claim nothing more; `run` returns once what is in hand has ended."""
        self._stopping = True
        self.ring()

    def abandon(self) -> None:
        """Cancel the sends in hand: each delivery is released, for whoever comes next. Endings are still written.

        A send that has not begun is not cancelled, or nobody would release its delivery: it finds out by itself.
        """
        self._abandoned = True
        self.stop()
        for task in self._sending:
            task.cancel()

    async def run(self) -> None:
        """Claim and carry until stopped. While the ledger is away, wait."""
        async with asyncio.TaskGroup() as self._group:
            while self._offered or not self._stopping:
                self._bell.clear()
                claimed = await self._claim()
                for delivery in claimed:
                    self._take_up(delivery)
                if not claimed or not self._more or not self._hungry:
                    await self._wait_for_work()

    def _take(self, claimed: Sequence[Delivery]) -> None:
        """The answer to our offer."""
        self._offered = False
        self.claimed_at = self.clock.now() if claimed else self.claimed_at
        for delivery in claimed:
            self._take_up(delivery)
        if self._more or self._stopping:
            self.ring()

    def _take_up(self, delivery: Delivery) -> None:
        self._busy[self._destination(delivery)] += 1
        self._talking[delivery.thread] += 1
        task = self._group.create_task(self._carry(delivery, probing=self._breaker.open))
        self._carrying.add(task)
        task.add_done_callback(partial(self._put_down, delivery))

    def _let_go(self, delivery: Delivery) -> None:
        """It is on its way no more: ring where that lets others go."""
        self._settling += 1
        destination = self._destination(delivery)
        _less(self._busy, destination)
        if destination in self._crowded or (self._listening and self._more and self._hungry):
            self.ring()

    def _put_down(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        """It is settled: ring where others of its conversation waited for that."""
        self._settling -= 1
        self._carrying.discard(task)
        thread = delivery.thread
        _less(self._talking, thread)
        awaited = delivery.followed or (bool(thread) and thread in self._answered)
        self._answered.discard(thread)
        if awaited:
            self.ring()

    def _destination(self, delivery: Delivery) -> str:
        return self.channel.destination(delivery.addresses or delivery.recipients)

    @property
    def _free(self) -> int:
        """How many more we could take: hands without work, and what may wait for a hand."""
        hands = self._breaker.hands(self.hands, self.clock.now())
        if hands < self.hands:
            return hands - len(self._carrying)
        return hands + self._ahead - (len(self._carrying) - self._settling)

    @property
    def _idle(self) -> bool:
        """Whether nothing is due that the last claim knew of, and what comes now finds a hand."""
        heard = self._bell.is_set() or self._more or self._breaker.open
        return self._listening and not heard and self._hungry

    @property
    def _hungry(self) -> bool:
        """Whether a claim is worth its while, if there is work: a hand has none, or half of what waited has found one."""
        return self._free > (self._ahead // 2 if self._room.locked() else 0)

    async def _claim(self) -> Sequence[Delivery]:
        if self._offered or not self._hungry:
            self._more = True
            return []
        now, free = self.clock.now(), self._free
        gate = self._gate(now)
        if not self._more:
            self._looked.clear()
        try:
            claim = await self.ledger.claim(self.name, free, lease=self.worker, until=now + self.lease, gate=gate)
        except LedgerUnavailable as error:
            log.warning("waiting for the ledger", channel=self.name, reason=str(error))
            self._more = False
            return []
        finally:
            self._looked.set()
        self._more, self._crowded = claim.more, frozenset(gate.crowded)
        self._alarm = min((at for at in (self._alarm, claim.next_at) if at is not None and at > now), default=None)
        self.put_off(gate.put_off)
        self.claimed_at = now if claim.deliveries else self.claimed_at
        return claim.deliveries

    def _gate(self, now: datetime) -> AdmissionControl:
        busy = self._busy | Counter(dict.fromkeys(self._wary, self.pace.at_once))
        return AdmissionControl(pace=self.pace, destination=self.channel.destination, now=now, busy=busy)

    async def _wait_for_work(self) -> None:
        """Until a hand is free, somebody rings, something comes due, or it is time for a glance."""
        wait = GLANCE
        if self._alarm is not None and (left := self._alarm - self.clock.now()) < GLANCE:
            wait, self._alarm = max(left, timedelta()), None  # heeded once, or a passed one would keep us spinning
        try:
            async with asyncio.timeout(wait.total_seconds()):
                self._listening = True
                await self._bell.wait()
        except TimeoutError:
            return
        finally:
            self._listening = False

    async def _carry(self, delivery: Delivery, *, probing: bool) -> None:
        """Send it once a hand is free, and settle it. `probing`: it finds out whether a provider that rested is back."""
        async with self._room:
            if self._quickest > SLOW:
                await self._stand_in_line()
            tried = await self._try(delivery, probing=probing)
            if tried is not None:
                await self._desk.acquire()
        if tried is None:
            self._let_go(delivery)
            return
        try:
            await self._conclude(*tried)
        finally:
            self._desk.release()

    async def _stand_in_line(self) -> None:
        """Wait for a turn of the event loop at which few others begin.

        Sends that begin together take turns at the core: each is done only when the last nearly is, their answers come
        together too, and meanwhile few messages are with the provider. Where answers come at once that is no loss, and
        many times the same in a row costs the core less.
        """
        await self._line.acquire()
        asyncio.get_running_loop().call_soon(self._line.release)

    async def _try(self, delivery: Delivery, *, probing: bool) -> tuple[Settlement, Span] | None:
        """Send it; None where it goes back instead, its attempt uncounted."""
        started = self.clock.now()
        left = delivery.due_at - self._settling_share - started
        late = left <= timedelta()  # the ledger was slow over the claim, or hands were, and others may have it
        unwelcome = (self._breaker.open and not probing) or self._destination(delivery) in self._wary  # since the claim
        if self._abandoned or late or unwelcome:
            await self._give_back(delivery, due_at=started)
            return None
        try:
            thread = await self.ledger.thread(delivery)
        except LedgerUnavailable:
            await self._give_back(delivery, due_at=started + GLANCE)
            return None
        span = self._begun(delivery)
        sending = span.part("dispatcher.send")
        try:
            result = await self._attempt(delivery, thread, left, sending)
        except asyncio.CancelledError:
            span.end(outcome="released")
            # It may have arrived: whoever takes it next looks first, where that is possible.
            await self._give_back(delivery._replace(in_doubt=True), due_at=self.clock.now())
            return None
        sending.end(failed=isinstance(result, Exception))
        ended = self.clock.now()
        if isinstance(result, Receipt):
            took = max((ended - started).total_seconds(), 0.0)  # clocks are set back at times
            self._quickest = min(took, 1.05 * self._quickest + 0.0001)
        self._breaker.learn(result, ended)
        outcome = classify(delivery, result, now=ended, policy=self.policy, rng=self.rng)
        _tell(delivery, outcome, span)
        ending = Settlement(
            delivery=delivery,
            outcome=outcome,
            started_at=started,
            ended_at=ended,
            feedback=feedback(
                self._destination(delivery), result, ended, destination_failing=delivery.destination_failing
            ),
        )
        return ending, span

    async def _conclude(self, ending: Settlement, span: Span) -> None:
        """Write down how it ended. What it says of its destination holds from now on, and is the ledger's from then on."""
        destination = self._destination(ending.delivery)
        if ending.feedback is not None:
            self._wary[destination] += 1
        self._let_go(ending.delivery)
        settling = span.part("dispatcher.settle")
        await self._settle(ending)
        settling.end()
        outcome = ending.outcome
        span.end(outcome=type(outcome).__name__.lower(), failed=not isinstance(outcome, Sent))
        if isinstance(outcome, Retry):
            self._alarm = min(outcome.at, self._alarm or outcome.at)
        if ending.feedback is not None:
            _less(self._wary, destination)
            self.ring()

    def _begun(self, delivery: Delivery) -> Span:
        """The attempt's span: within the event's trace, unless it was attempted before, or put back since."""
        return self.tracing.attempt(
            delivery.trace,
            first=delivery.attempt == 1 and delivery.retry_window_start == delivery.created_at,
            event=delivery.event,
            delivery=delivery.key,
            channel=delivery.channel,
            attempt=delivery.attempt,
        )

    async def _attempt(self, delivery: Delivery, thread: Thread | None, limit: timedelta, span: Span) -> Result:
        """Send once: the receipt, or the exception. The only place where exceptions become values."""
        hand = asyncio.current_task()
        assert hand is not None  # noqa: S101 - we are always in one
        self._sending.add(hand)
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
                log.exception("a channel broke its contract", **_facts(delivery), **span.named)
            return error
        finally:
            self._sending.discard(hand)  # what is written from here on must not be cut short

    async def _settle(self, ending: Settlement) -> None:
        """Write the ending down, for as long as the lease is ours: what was sent must not be sent again."""
        try:
            held: bool | None = await self._write(ending)
        except LedgerUnavailable:
            held = await self._write_patiently(ending)
        if held is None:
            log.error("an ending could not be written: it will be tried again", **_facts(ending.delivery))
        elif not held:
            log.warning("the lease had run out: another worker's word counts", **_facts(ending.delivery))

    async def _write_patiently(self, ending: Settlement) -> bool | None:
        """Again and again while the ledger is away; None where that lasts too long."""
        pauses = wait_random_exponential(multiplier=0.1, max=5)
        patiently = AsyncRetrying(
            retry=retry_if_exception_type(LedgerUnavailable), wait=pauses, stop=stop_after_delay(self._settling_share)
        )
        try:
            held: bool = await patiently(self._write, ending)
        except RetryError:
            return None
        return held

    async def _write(self, ending: Settlement) -> bool:
        follow_ups = await self._follow_ups(ending.delivery, ending.outcome, ending.ended_at)
        whole = replace(ending, follow_ups=follow_ups) if follow_ups else ending
        held = await self.ledger.settle(whole)
        self.settled(whole, held)
        if follow_ups:
            self.ring()
        return held

    async def _follow_ups(self, delivery: Delivery, outcome: Outcome, now: datetime) -> Sequence[Delivery]:
        """What the ending gives rise to: refused recipients stand alone, an unserved one goes to the fallback."""
        match outcome:
            case Sent(receipt):
                parts = split(delivery, receipt, now=now, policy=self.policy, rng=self.rng)
                return [*parts, *await self._notices([part for part in parts if part.state is State.DEAD], now)]
            case Dead(unknown_recipient=True) if (event := await self.ledger.event(delivery.event)) is not None:
                told = await self.ledger.told(delivery.event)
                rerouted = self.planner.reroute(event, delivery, told, now=now)
                return rerouted or await self._notices([delivery._replace(reason=outcome.reason)], now)
            case Dead(reason=reason):
                return await self._notices([delivery._replace(reason=reason)], now)
            case _:
                return ()

    async def _notices(self, dead: Sequence[Delivery], now: datetime) -> Sequence[Delivery]:
        """What tells the fallback recipients, each once, of deliveries of one event that have died."""
        if not dead or (event := await self.ledger.event(dead[0].event)) is None:
            return ()
        notices = [self.planner.give_notice(event, delivery, delivery.reason, now=now) for delivery in dead]
        return [notice for several in notices for notice in several]

    async def _give_back(self, delivery: Delivery, *, due_at: datetime) -> None:
        """Let go of a delivery, its attempt uncounted."""
        try:
            await self.ledger.release(delivery, due_at=due_at)
        except LedgerUnavailable:
            log.warning("could not release a delivery: it is due again when its lease runs out", **_facts(delivery))


def _facts(delivery: Delivery) -> dict[str, str | int]:
    """What every line about a delivery says."""
    return {
        "execution": delivery.event,
        "channel": delivery.channel,
        "delivery": delivery.key,
        "attempt": delivery.attempt,
    }


def _tell(delivery: Delivery, outcome: Outcome, span: Span) -> None:
    facts = {**_facts(delivery), **span.named}
    log.debug("attempted", **facts, recipients=delivery.recipients, addresses=delivery.addresses, outcome=outcome)
    match outcome:
        case Sent(receipt):
            log.info("sent", **facts, answer=receipt.answer.status, refused=len(receipt.failures))
        case Retry(at=at, reason=reason):
            log.warning("not sent yet", **facts, reason=reason, again=at.isoformat(timespec="seconds"))
        case Dead(reason=reason):
            log.error("given up", **facts, reason=reason)


def _less(counts: Counter[str], name: str) -> None:
    """One less; what has come to nothing is forgotten."""
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
