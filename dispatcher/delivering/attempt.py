"""Makes one attempt at a delivery: sends the message, makes the outcome of the result, and settles the outcome.

Every exception about one delivery ends here, and everything after an attempt works with its `Settlement`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import NamedTuple

import structlog
from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_delay, wait_random_exponential

from channels.contract import Answer, ChannelError, Content, InDoubt, Message, Receipt, Thread
from dispatcher.delivering.follow_ups import FollowUps
from dispatcher.delivering.options import POLL_INTERVAL, WorkerOptions, log_fields
from dispatcher.errors import LedgerFailed, LedgerRefuses, LedgerUnavailable
from dispatcher.ledger import ClaimedThread, Settlement
from dispatcher.ledger.brake import Brake
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
    classify,
    stumble,
)
from dispatcher.model.rate_limit import feedback
from dispatcher.model.retry import RetryPolicy
from dispatcher.rendering.text import one_line
from dispatcher.tracing import NO_SPAN, Span

log = structlog.get_logger(__name__)

SENDING_SHARE = 2 / 3
"""Share of the lease, from its start, within which an attempt must end. The remaining share is reserved for settling.
This limit applies in addition to the channel's own timeouts."""


class Attempted(NamedTuple):
    """An attempt that has an outcome, and its tracing span, which ends when the outcome is settled."""

    settlement: Settlement
    span: Span


@dataclass(slots=True)
class Attempts:
    """Makes and settles the attempts of one worker."""

    options: WorkerOptions
    breaker: CircuitBreaker
    brake: Brake
    wake: Callable[[], None]
    """Called when an outcome has caused new deliveries."""
    ledger_failed: Callable[[LedgerUnavailable], None]
    """Called if the worker should claim nothing for a while, because an outcome can't be stored."""
    follow_ups: FollowUps = field(init=False)
    _sending: set[asyncio.Task[None]] = field(default_factory=set)
    """The tasks that wait for the provider's answer."""

    def __post_init__(self) -> None:
        self.follow_ups = FollowUps(self.options)

    def cancel(self) -> None:
        """Cancel the running sends: `make` then releases their deliveries. Settlements go on."""
        for task in self._sending:
            task.cancel()

    async def make(self, delivery: Delivery, destination: str) -> Attempted | None:
        """Make one attempt. Returns None if the delivery was released instead, uncounted, or if its lease is lost."""
        started = self.options.clock.now()
        try:
            return await self._make(delivery, destination, started)
        except LedgerUnavailable:  # before the message was sent
            await self.release(delivery, due_at=started + POLL_INTERVAL)
            return None
        except Exception as error:  # noqa: BLE001 - a delivery must not stop its neighbours
            return await self._stumbled_or_released(delivery, error, started)

    async def settle(self, attempted: Attempted) -> None:
        """Store the outcome and end the span."""
        settle_span = attempted.span.child("dispatcher.settle")
        await self.store(attempted.settlement)
        settle_span.end()
        outcome = attempted.settlement.outcome
        attempted.span.end(outcome=type(outcome).__name__.lower(), failed=isinstance(outcome, (Retry, Dead)))

    async def release(self, delivery: Delivery, *, due_at: datetime) -> None:
        """Give the delivery back to the ledger, so that it is due at `due_at`. The attempt is not counted."""
        try:
            await self.options.ledger.release(delivery, due_at=due_at)
        except (LedgerUnavailable, LedgerFailed):
            log.warning("could not release a delivery: it is due again when its lease runs out", **log_fields(delivery))

    async def stumble(self, delivery: Delivery, error: Exception, started: datetime) -> Settlement:
        """Return the settlement of an attempt that the dispatcher itself could not finish. Raises LedgerUnavailable."""
        log.error("an attempt could not be made", **log_fields(delivery), exc_info=error)
        self.options.on_failed()
        earlier, now = await self.options.ledger.history.stumbles(delivery), self.options.clock.now()
        outcome = stumble(delivery, error, earlier=earlier, now=now, policy=self.options.policy, rng=self.options.rng)
        _log_outcome(delivery, outcome, NO_SPAN)
        return Settlement(delivery=delivery, outcome=outcome, started_at=started, ended_at=now)

    async def store(self, settlement: Settlement) -> None:
        """Store the outcome if the worker still holds the lease.

        If the ledger is unavailable, retry, because without a stored outcome a sent message would be sent again.
        """
        fields = log_fields(settlement.delivery)
        try:
            counted: bool | None = await self._store_once(settlement)
        except LedgerUnavailable as error:
            if isinstance(error, LedgerRefuses):
                self.ledger_failed(error)
            counted = await self._store_with_retries(settlement)
        except LedgerFailed as error:
            log.error("the ledger can't write an outcome", **fields, reason=str(error))
            counted = None
        if counted is None:
            log.error("the outcome could not be stored: the delivery will be attempted again", **fields)
        elif not counted:
            _log_lost_lease(settlement.delivery)

    # -- sending

    @property
    def _settle_time(self) -> timedelta:
        """The last part of the lease, which is reserved for settling."""
        return self.options.lease * (1 - SENDING_SHARE)

    async def _make(self, delivery: Delivery, destination: str, started: datetime) -> Attempted | None:
        left = delivery.due_at - self._settle_time - started
        if left <= timedelta():  # another worker may get the lease before this send is settled
            await self.release(delivery, due_at=started)
            return None
        claimed = await self.options.ledger.thread(delivery)
        if claimed is not None and claimed.told_at is not None:  # people read of the failure first
            await self.release(delivery, due_at=max(claimed.told_at, started + POLL_INTERVAL))
            return None
        if claimed is not None and (dropped := _drop(delivery, claimed, pages=self.options.pages)) is not None:
            span = self._attempt_span(delivery)
            _log_outcome(delivery, dropped, span)
            settlement = Settlement(delivery=delivery, outcome=dropped, started_at=started, ended_at=started)
            return Attempted(settlement, span)
        content = delivery.content if delivery.content is not None else await self._render(delivery, claimed)
        if content is None:
            _log_lost_lease(delivery)
            return None
        span = self._attempt_span(delivery)
        send_span = span.child("dispatcher.send")
        try:
            thread = claimed.thread if claimed is not None else None
            result = await self._send(delivery, content, thread, left, send_span)
        except asyncio.CancelledError:
            span.end(outcome="released")
            # The message may have arrived. Before the next attempt sends, the channel asks the provider, if it can.
            await self.release(delivery._replace(in_doubt=True), due_at=self.options.clock.now())
            return None
        send_span.end(failed=isinstance(result, Exception))
        return Attempted(self._conclude(delivery, destination, result, started, span), span)

    async def _render(self, delivery: Delivery, claimed: ClaimedThread | None) -> Content | None:
        """Render a delivery that was recorded without content, and store the content, which every attempt sends.

        Returns None if the lease is lost. Raises LedgerUnavailable.
        """
        ledger, contents = self.options.ledger, self.options.contents
        render: Callable[[], Content]
        if delivery.event:
            event = await ledger.history.event(delivery.event)
            assert event is not None  # noqa: S101 - for the type checker: a delivery's event is recorded before it
            render = partial(contents.content, event, delivery, claimed.outage if claimed is not None else None)
        else:
            summary = await ledger.summary(delivery)
            assert summary is not None  # noqa: S101 - for the type checker: its members are deleted only with it
            render = partial(contents.summary, summary, delivery)
        content = await asyncio.to_thread(render) if contents.waits else render()
        return content if await ledger.store_content(delivery, content) else None

    async def _send(
        self, delivery: Delivery, content: Content, thread: Thread | None, limit: timedelta, span: Span
    ) -> Result:
        """Send the message once. Returns the receipt, or the exception if the send failed."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: a coroutine always runs in a task
        self._sending.add(task)
        channel = self.options.channel
        try:
            addresses = delivery.addresses or tuple(map(channel.address, delivery.recipients))
            message = Message(
                key=delivery.key,
                recipients=addresses,
                content=content,
                created_at=delivery.created_at,
                released_at=delivery.retry_window_start if delivery.held_since is not None else None,
                note=one_line(delivery.note),  # a silence has a text of its author in it
                thread=thread,
                in_doubt=delivery.in_doubt,
                trace=span.headers,
            )
            async with asyncio.timeout(limit.total_seconds()):
                return await channel.send(message)
        except TimeoutError:
            return InDoubt(f"no answer within {limit.total_seconds():.1f} s")
        except Exception as error:
            if not isinstance(error, ChannelError):
                log.exception("a channel broke its contract", **log_fields(delivery), **span.log_fields)
            return error
        finally:
            self._sending.discard(task)  # the send is over: `cancel` must not cancel the settlement that follows

    def _conclude(
        self, delivery: Delivery, destination: str, result: Result, started: datetime, span: Span
    ) -> Settlement:
        ended, policy, rng = self.options.clock.now(), self.options.policy, self.options.rng
        try:
            self.breaker.record(result, ended)
            settlement = settlement_of(delivery, destination, result, started, ended, policy=policy, rng=rng)
            _log_outcome(delivery, settlement.outcome, span)
        except Exception as error:
            if not isinstance(result, Receipt):
                raise
            log.error("a sent message is recorded as sent only", **log_fields(delivery), exc_info=error)
            return Settlement(delivery=delivery, outcome=Sent(result), started_at=started, ended_at=ended)
        return settlement

    async def _stumbled_or_released(self, delivery: Delivery, error: Exception, started: datetime) -> Attempted | None:
        """Return the outcome of an attempt that the dispatcher itself could not finish.

        If the ledger is at fault, the delivery is released instead, and the result is None.
        """
        try:
            await self.brake.test()
            if isinstance(error, LedgerFailed):
                self.brake.give_up(error)
            return Attempted(await self.stumble(delivery, error, started), NO_SPAN)
        except (LedgerUnavailable, LedgerFailed) as at_fault:
            log.warning("the ledger is at fault, so the delivery waits", **log_fields(delivery), reason=str(at_fault))
            if isinstance(at_fault, LedgerUnavailable):
                self.ledger_failed(at_fault)
            await self.release(delivery, due_at=self.options.clock.now() + POLL_INTERVAL)
            return None

    def _attempt_span(self, delivery: Delivery) -> Span:
        """Return the attempt's span. Only the first attempt, before any redrive, belongs to the event's trace."""
        return self.options.tracing.attempt(
            delivery.trace,
            first=delivery.attempt == 1 and delivery.retry_window_start == delivery.created_at,
            **({"event": delivery.event} if delivery.event else {}),
            delivery=delivery.key,
            channel=delivery.channel,
            attempt=delivery.attempt,
        )

    # -- storing the outcome

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
        accepted = isinstance(settlement.outcome, Sent) and self.follow_ups.refused
        complete = await self._with_follow_ups(settlement)
        try:
            counted = await self.options.ledger.settle(complete)
        except LedgerFailed:
            await self.brake.test()
            complete, counted = await self._settle_plainly(complete)
        if accepted:
            await self.follow_ups.end_refusal()
        self.options.on_settled(complete, counted)
        if complete.follow_ups:
            self.wake()
        return counted

    async def _settle_plainly(self, settlement: Settlement) -> tuple[Settlement, bool]:
        """Settle after a settlement has failed for its data: once more, then without the provider's answer, then also
        without the deliveries that follow. Otherwise the message, which was perhaps sent, would be sent again.

        Returns what was settled, and False if the lease was lost. Raises LedgerUnavailable or LedgerFailed.
        """
        plain = replace(settlement, outcome=_without_answer(settlement.outcome), feedback=None)
        for part in (settlement, plain):
            try:
                return part, await self.options.ledger.settle(part)
            except LedgerFailed as error:
                log.error("the ledger can't write an outcome", **log_fields(part.delivery), reason=str(error))
        bare = replace(plain, follow_ups=(), unresolved_owner=None)
        return bare, await self.options.ledger.settle(bare)

    async def _with_follow_ups(self, settlement: Settlement) -> Settlement:
        """Return the settlement with the new deliveries that its outcome causes. They are left out if they can't be
        planned, not even the second time.

        The outcome is settled in any case, so that a message that was sent is not sent again. Raises LedgerUnavailable.
        """
        for _ in range(2):
            try:
                return await self.follow_ups.plan(settlement)
            except LedgerUnavailable:
                raise
            except Exception as error:
                log.error("follow-ups could not be planned", **log_fields(settlement.delivery), exc_info=error)
                self.options.on_failed()
                await self.brake.test()
        return settlement


def settlement_of(
    delivery: Delivery,
    destination: str,
    result: Result,
    started: datetime,
    ended: datetime,
    *,
    policy: RetryPolicy,
    rng: Random,
) -> Settlement:
    """Return the outcome of a send that ended with `result`, and what it says about the destination.

    Pure: equal arguments give an equal settlement.
    """
    return Settlement(
        delivery=delivery,
        outcome=classify(delivery, result, now=ended, policy=policy, rng=rng),
        started_at=started,
        ended_at=ended,
        feedback=feedback(destination, result, ended, destination_failing=delivery.destination_failing),
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


def _drop(delivery: Delivery, claimed: ClaimedThread, *, pages: bool) -> Dropped | None:
    """Return the outcome of a message that would mislead, as it is outdated or resolves nothing; None for a message to
    send.
    """
    resolves = delivery.kind is Kind.RESOLVED_NOTICE
    if resolves and not claimed.thread.earlier and not delivery.opens_thread:
        return Dropped(DropReason.NOTHING_SENT, "nothing was resolved: no failure of this thread was sent")
    if not claimed.superseded:
        return None
    if resolves:
        return Dropped(DropReason.SUPERSEDED, "nothing was resolved: there was a newer failure")
    if pages:
        return Dropped(DropReason.SUPERSEDED, "nobody was paged: a run that started later has succeeded")
    return None


def _log_lost_lease(delivery: Delivery) -> None:
    log.warning("the lease was lost: this outcome does not count", **log_fields(delivery))


def _log_outcome(delivery: Delivery, outcome: Outcome, span: Span) -> None:
    fields = {**log_fields(delivery), **span.log_fields}
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
