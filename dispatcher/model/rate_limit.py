"""How fast, and who is left alone: token buckets and circuit breakers, per destination and per provider.

A destination (a Slack channel, a PagerDuty service) has its standing in the ledger, so that replicas share it
and restarts keep it: the bucket, the time until which it asked for peace (`Retry-After`), its failures in a
row. A delivery that can't go yet books the next free slot and is due then, so nothing polls and the backlog of
one destination stands in nobody's way. A provider as a whole rests in memory: each replica finds out by itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from channels.contract import InDoubt, Later, Receipt
from dispatcher.model.delivery import Result

ENOUGH = 5
"""Failures in a row after which a destination's breaker opens."""
FIRST_PAUSE = timedelta(seconds=5)
LONGEST_PAUSE = timedelta(minutes=5)
"""An open breaker lets one delivery through after each pause; the pauses double between these."""
_WRITTEN = re.compile(r"\s*(\d+)\s*/\s*(s|min|h)\s*")
_UNITS = {"s": timedelta(seconds=1), "min": timedelta(minutes=1), "h": timedelta(hours=1)}


@dataclass(frozen=True, slots=True)
class Rate:
    """So many messages in a span, as `1/s`, `120/min`, `500/h`."""

    number: int
    unit: str

    @property
    def interval(self) -> timedelta:
        """From one message to the next."""
        return _UNITS[self.unit] / self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.unit}"


def parse_rate(text: str) -> Rate:
    """Read a rate. Raises ValueError, showing the form, for anything else."""
    match = _WRITTEN.fullmatch(text)
    if match is None or not int(match[1]):
        raise ValueError(f"{text[:30]!r} is no rate: write 1/s, 120/min or 500/h")
    return Rate(int(match[1]), match[2])


def _rate(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return None if value.strip() == "none" else parse_rate(value)


RateOption = Annotated[Rate | None, BeforeValidator(_rate)]
"""A rate as settings write it; `none` for no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """What the destinations of one channel are spared."""

    rate: Rate | None = None
    burst: int = 1
    """So many may go at once where the bucket is full."""
    at_once: int = 1000
    """So many may be on their way to one destination: a slow one never takes all the hands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationState:
    """How a destination stands."""

    theoretical_arrival_at: datetime
    """When its bucket is full again: the virtual clock of the leaky bucket (ITU-T I.371, GCRA)."""
    blocked_until: datetime | None = None
    """It asked for peace, or its breaker is open."""
    failures: int = 0
    """In a row; what it asked to be spared for is none."""

    @property
    def broken(self) -> bool:
        return self.failures >= ENOUGH


NEW_DESTINATION = DestinationState(theoretical_arrival_at=datetime(1970, 1, 1, tzinfo=UTC))
"""Of a destination that nothing is known of."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """What an attempt's result says of its destination."""

    destination: str
    at: datetime
    worked: bool = False
    wish: timedelta | None = None
    """The destination's own: leave me alone for so long."""


def feedback(destination: str, result: Result, now: datetime, *, destination_failing: bool) -> Feedback | None:
    """What there is to learn from a result; None where it changes nothing.

    `destination` is empty where only the provider counts. A final refusal tells of the message, not of the
    destination; what fails for everyone is the provider's. A success is worth writing only after failures.
    """
    if not destination:
        return None
    match result:
        case Receipt():
            return Feedback(destination, now, worked=True) if destination_failing else None
        case Later(everyone=False):
            return Feedback(destination, now, wish=result.retry_after)
        case InDoubt():
            return Feedback(destination, now)
        case _:
            return None


def learn(standing: DestinationState, told: Feedback) -> DestinationState:
    """The standing after a lesson."""
    if told.worked:
        return replace(standing, failures=0, blocked_until=None)
    if told.wish is not None:
        return replace(standing, blocked_until=_later(standing.blocked_until, told.at + told.wish))
    failures = standing.failures + 1
    pause = _pause(failures)
    held = _later(standing.blocked_until, told.at + pause) if pause else standing.blocked_until
    return replace(standing, failures=failures, blocked_until=held)


class Admission(NamedTuple):
    """What the gate says to one delivery."""

    standing: DestinationState
    """Its destination's from now on."""
    at: datetime
    """When it may go: the gate's own now, or later."""
    slot_reserved: bool
    """Whether that later time is a slot of the bucket, kept free for it."""


@dataclass(slots=True, kw_only=True)
class AdmissionControl:
    """Who may go in one claim. Decides; the ledger writes down what was decided, in the same transaction."""

    pace: RateLimit
    destination: Callable[[tuple[str, ...]], str]
    """`Channel.destination`: by a delivery's addresses."""
    now: datetime
    busy: Counter[str] = field(default_factory=Counter)
    """How many are on their way to each destination."""
    put_off: int = 0
    """How many were told to come later."""

    def minds(self, name: str) -> bool:
        """Whether it matters how the destination stands."""
        return bool(name) or self.pace.rate is not None

    @property
    def crowded(self) -> list[str]:
        """The destinations that have all the hands they may have: their deliveries stay where they are."""
        return [name for name, number in self.busy.items() if name and number >= self.pace.at_once]

    def admit(self, name: str, standing: DestinationState, *, slot_reserved: bool) -> Admission | None:
        """Let one more go, or say when; None where its destination is crowded. `slot_reserved`: it has waited for its slot."""
        if name and standing.blocked_until is not None and standing.blocked_until > self.now:
            self.put_off += 1
            return self._book(standing, standing.blocked_until)
        if name and self.busy[name] >= self.pace.at_once:
            return None
        admission = Admission(standing, self.now, slot_reserved) if slot_reserved else self._book(standing, self.now)
        if admission.at > self.now:
            self.put_off += 1
            return admission
        self.busy[name] += 1
        if name and standing.broken:  # half-open: this one finds out, and the others wait for what it finds
            held = self.now + _pause(standing.failures)
            return admission._replace(standing=replace(admission.standing, blocked_until=held))
        return admission

    def _book(self, standing: DestinationState, earliest: datetime) -> Admission:
        """The next free slot of the bucket that is not before `earliest`."""
        if self.pace.rate is None:
            return Admission(standing, earliest, slot_reserved=False)
        interval = self.pace.rate.interval
        slot = max(earliest, standing.theoretical_arrival_at - (self.pace.burst - 1) * interval)
        return Admission(
            replace(standing, theoretical_arrival_at=max(standing.theoretical_arrival_at, slot) + interval),
            slot,
            slot_reserved=slot > self.now,
        )


def _pause(failures: int) -> timedelta:
    if failures < ENOUGH:
        return timedelta()
    return min(FIRST_PAUSE * (1 << min(failures - ENOUGH, 10)), LONGEST_PAUSE)


def _later(one: datetime | None, other: datetime) -> datetime:
    return other if one is None else max(one, other)
