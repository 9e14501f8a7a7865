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

from channels.contract import Later, Receipt, Unknown
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
class Pace:
    """What the destinations of one channel are spared."""

    rate: Rate | None = None
    burst: int = 1
    """So many may go at once where the bucket is full."""
    at_once: int = 1000
    """So many may be on their way to one destination: a slow one never takes all the hands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a destination stands."""

    spent_until: datetime
    """When its bucket is full again: the virtual clock of the leaky bucket (ITU-T I.371, GCRA)."""
    held_until: datetime | None = None
    """It asked for peace, or its breaker is open."""
    failures: int = 0
    """In a row; what it asked to be spared for is none."""

    @property
    def broken(self) -> bool:
        return self.failures >= ENOUGH


FRESH = Standing(spent_until=datetime(1970, 1, 1, tzinfo=UTC))
"""Of a destination that nothing is known of."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What an attempt's result says of its destination."""

    destination: str
    at: datetime
    worked: bool = False
    wish: timedelta | None = None
    """The destination's own: leave me alone for so long."""


def lesson(destination: str, result: Result, now: datetime, *, troubled: bool) -> Lesson | None:
    """What there is to learn from a result; None where it changes nothing.

    `destination` is empty where only the provider counts. A final refusal tells of the message, not of the
    destination; what fails for everyone is the provider's. A success is worth writing only after failures.
    """
    if not destination:
        return None
    match result:
        case Receipt():
            return Lesson(destination, now, worked=True) if troubled else None
        case Later(everyone=False):
            return Lesson(destination, now, wish=result.retry_after)
        case Unknown():
            return Lesson(destination, now)
        case _:
            return None


def learn(standing: Standing, told: Lesson) -> Standing:
    """The standing after a lesson."""
    if told.worked:
        return replace(standing, failures=0, held_until=None)
    if told.wish is not None:
        return replace(standing, held_until=_later(standing.held_until, told.at + told.wish))
    failures = standing.failures + 1
    pause = _pause(failures)
    held = _later(standing.held_until, told.at + pause) if pause else standing.held_until
    return replace(standing, failures=failures, held_until=held)


class Admission(NamedTuple):
    """What the gate says to one delivery."""

    standing: Standing
    """Its destination's from now on."""
    at: datetime
    """When it may go: the gate's own now, or later."""
    booked: bool
    """Whether that later time is a slot of the bucket, kept free for it."""


@dataclass(slots=True, kw_only=True)
class Gate:
    """Who may go in one claim. Decides; the ledger writes down what was decided, in the same transaction."""

    pace: Pace
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

    def admit(self, name: str, standing: Standing, *, booked: bool) -> Admission | None:
        """Let one more go, or say when; None where its destination is crowded. `booked`: it has waited for its slot."""
        if name and standing.held_until is not None and standing.held_until > self.now:
            self.put_off += 1
            return self._book(standing, standing.held_until)
        if name and self.busy[name] >= self.pace.at_once:
            return None
        admission = Admission(standing, self.now, booked) if booked else self._book(standing, self.now)
        if admission.at > self.now:
            self.put_off += 1
            return admission
        self.busy[name] += 1
        if name and standing.broken:  # half-open: this one finds out, and the others wait for what it finds
            held = self.now + _pause(standing.failures)
            return admission._replace(standing=replace(admission.standing, held_until=held))
        return admission

    def _book(self, standing: Standing, earliest: datetime) -> Admission:
        """The next free slot of the bucket that is not before `earliest`."""
        if self.pace.rate is None:
            return Admission(standing, earliest, booked=False)
        interval = self.pace.rate.interval
        slot = max(earliest, standing.spent_until - (self.pace.burst - 1) * interval)
        return Admission(
            replace(standing, spent_until=max(standing.spent_until, slot) + interval), slot, booked=slot > self.now
        )


def _pause(failures: int) -> timedelta:
    if failures < ENOUGH:
        return timedelta()
    return min(FIRST_PAUSE * (1 << min(failures - ENOUGH, 10)), LONGEST_PAUSE)


def _later(one: datetime | None, other: datetime) -> datetime:
    return other if one is None else max(one, other)
