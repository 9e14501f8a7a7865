"""Rate limits and circuit breakers: which deliveries of a claim may be sent now, and when the others may be sent.

A destination is, for example, a Slack channel or a PagerDuty service. Its state consists of its token bucket, the end
of its pause (`Retry-After` or an open breaker) and its number of failures in a row. The state is in the ledger, so that
all replicas share it and a restart does not lose it. A delivery that may not be sent yet reserves the next free slot of
the rate limit, and is due at the time of that slot. So workers need not poll, and the backlog of one destination does
not delay other destinations. The breaker of a whole provider is in `circuit_breaker`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator

from channels.contract import InDoubt, Later, Receipt
from dispatcher.model.delivery import Result

FAILURES_TO_OPEN = 5
"""Number of failures in a row after which a destination's breaker opens."""
FIRST_PAUSE = timedelta(seconds=5)
LONGEST_PAUSE = timedelta(minutes=5)
"""While a breaker is open, it lets one delivery through after each pause. The pauses double from `FIRST_PAUSE` up to
`LONGEST_PAUSE`."""
MAX_RETRY_AFTER = timedelta(days=1)
"""Longest pause that a destination can ask for."""
_RATE = re.compile(r"\s*(\d+)\s*/\s*(s|min|h)\s*")
_UNITS = {"s": timedelta(seconds=1), "min": timedelta(minutes=1), "h": timedelta(hours=1)}


@dataclass(frozen=True, slots=True)
class Rate:
    """Messages per unit of time, such as `1/s`, `120/min`, `500/h`."""

    number: int
    unit: str

    @property
    def interval(self) -> timedelta:
        """Time from one message to the next."""
        return _UNITS[self.unit] / self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.unit}"


def parse_rate(value: object) -> Rate:
    """Read a rate such as `120/min`. Raises ValueError, with examples, for anything else."""
    if isinstance(value, Rate):
        return value
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    if match is None or not int(match[1]):
        raise ValueError(f"{str(value)[:30]!r} is no rate: write 1/s, 120/min or 500/h")
    return Rate(int(match[1]), match[2])


def _rate_or_none(value: object) -> Rate | None:
    if value is None or (isinstance(value, str) and value.strip() == "none"):
        return None
    return parse_rate(value)


RateOption = Annotated[Rate | None, BeforeValidator(_rate_or_none)]
"""A rate as written in settings; `none` means no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """Limits for each destination of one channel."""

    rate: Rate | None = None
    burst: int = 1
    """Maximum number of deliveries that may be sent at once to a destination whose bucket is full."""
    max_in_flight: int = 1000
    """Maximum number of deliveries in flight to one destination, so that a slow destination can't occupy all slots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationState:
    """The state of one destination's rate limit and circuit breaker."""

    theoretical_arrival_at: datetime
    """When the destination's token bucket is full again: the theoretical arrival time of GCRA (ITU-T I.371)."""
    blocked_until: datetime | None = None
    """Nothing is sent to the destination before this time, because it sent `Retry-After` or its breaker is open. None
    if the destination is not blocked."""
    failures: int = 0
    """Number of failures in a row. An answer with `Retry-After` does not count as a failure."""

    @property
    def breaker_open(self) -> bool:
        return self.failures >= FAILURES_TO_OPEN


NEW_DESTINATION = DestinationState(theoretical_arrival_at=datetime(1970, 1, 1, tzinfo=UTC))
"""The state of a destination that has no row in the ledger."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """How one attempt changes the state of its destination: as a success, as a `Retry-After`, or else as a failure."""

    destination: str
    at: datetime
    succeeded: bool = False
    retry_after: timedelta | None = None
    """The pause that the destination asked for; None if it did not ask for a pause."""


def feedback(destination: str, result: Result, now: datetime, *, destination_failing: bool) -> Feedback | None:
    """Return how an attempt's result changes the destination's state; None if the state stays the same.

    `destination` is empty if the channel limits only the provider as a whole. A permanent refusal (`Never`) concerns
    only the message, and a provider-wide failure concerns only the provider. So neither of them changes the
    destination's state. A success changes the state only if earlier attempts failed (`destination_failing`).
    """
    if not destination:
        return None
    match result:
        case Receipt():
            return Feedback(destination, now, succeeded=True) if destination_failing else None
        case Later(provider_wide=False):
            pause = result.retry_after
            return Feedback(destination, now, retry_after=min(pause, MAX_RETRY_AFTER) if pause is not None else None)
        case InDoubt():
            return Feedback(destination, now)
        case _:
            return None


def apply(state: DestinationState, feedback: Feedback) -> DestinationState:
    """Return the destination's new state, after an attempt's feedback."""
    if feedback.succeeded:
        return replace(state, failures=0, blocked_until=None)
    if feedback.retry_after is not None:
        return replace(state, blocked_until=_later(state.blocked_until, feedback.at + feedback.retry_after))
    failures = state.failures + 1
    pause = _pause(failures)
    blocked_until = _later(state.blocked_until, feedback.at + pause) if pause else state.blocked_until
    return replace(state, failures=failures, blocked_until=blocked_until)


class AdmissionDecision(NamedTuple):
    """The decision when one delivery may be sent."""

    state: DestinationState
    """The new state of the delivery's destination."""
    at: datetime
    """The time at which the delivery may be sent: `AdmissionControl.now`, or later."""
    slot_reserved: bool
    """True if `at` is a slot of the rate limit that is reserved for this delivery."""


@dataclass(slots=True, kw_only=True)
class AdmissionControl:
    """Decides for one claim which deliveries may be sent now. The claim's transaction stores the decisions."""

    rate_limit: RateLimit
    destination: Callable[[tuple[str, ...]], str]
    """Returns a delivery's destination, given its addresses (`Channel.destination`)."""
    now: datetime
    in_flight: Counter[str] = field(default_factory=Counter)
    """Number of deliveries in flight, by destination."""
    deferred: int = 0
    """Number of deliveries that this claim postponed, because they may be sent only later."""

    def tracks(self, name: str) -> bool:
        """True if `admit` needs the stored state of this destination."""
        return bool(name) or self.rate_limit.rate is not None

    @property
    def saturated(self) -> list[str]:
        """Destinations that have `max_in_flight` deliveries in flight. A claim takes no further deliveries to them."""
        return [name for name, number in self.in_flight.items() if name and number >= self.rate_limit.max_in_flight]

    def admit(self, name: str, state: DestinationState, *, slot_reserved: bool) -> AdmissionDecision | None:
        """Decide when one more delivery to the destination may be sent; None if the destination is saturated.

        `slot_reserved`: True if an earlier claim reserved a slot of the rate limit for the delivery, which is due now.
        """
        if name and state.blocked_until is not None and state.blocked_until > self.now:
            self.deferred += 1
            return self._reserve(state, state.blocked_until)
        if name and self.in_flight[name] >= self.rate_limit.max_in_flight:
            return None
        decision = (
            AdmissionDecision(state, self.now, slot_reserved) if slot_reserved else self._reserve(state, self.now)
        )
        if decision.at > self.now:
            self.deferred += 1
            return decision
        self.in_flight[name] += 1
        # If the breaker is open, its pause is over, and this delivery is the probe. All other deliveries wait for one
        # more pause, unless the probe succeeds earlier.
        if name and state.breaker_open:
            blocked_until = self.now + _pause(state.failures)
            return decision._replace(state=replace(decision.state, blocked_until=blocked_until))
        return decision

    def _reserve(self, state: DestinationState, earliest: datetime) -> AdmissionDecision:
        """Reserve the first free slot of the rate limit at `earliest` or later."""
        if self.rate_limit.rate is None:
            return AdmissionDecision(state, earliest, slot_reserved=False)
        interval = self.rate_limit.rate.interval
        slot = max(earliest, state.theoretical_arrival_at - (self.rate_limit.burst - 1) * interval)
        return AdmissionDecision(
            replace(state, theoretical_arrival_at=max(state.theoretical_arrival_at, slot) + interval),
            slot,
            slot_reserved=slot > self.now,
        )


def _pause(failures: int) -> timedelta:
    """Return how long a destination's breaker stays open after this many failures in a row."""
    if failures < FAILURES_TO_OPEN:
        return timedelta()
    return min(FIRST_PAUSE * (1 << min(failures - FAILURES_TO_OPEN, 10)), LONGEST_PAUSE)


def _later(one: datetime | None, other: datetime) -> datetime:
    return other if one is None else max(one, other)
