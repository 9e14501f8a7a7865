"""Computes the coordinates of the charts' bars and lines. The page templates draw them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dispatcher.ledger.records import TimeBucket
from dispatcher.model.delivery import State

WIDTH, HEIGHT = 400, 180
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 22
_ORDER = (State.SENT, State.DROPPED, State.WAITING, State.DEAD)
"""The order in which a bar stacks the states of its deliveries, from bottom to top."""
_LAG_TICKS = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36_000.0, 864_000.0)


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    label: str
    time: str = ""
    """The time at which the tick is, in ISO 8601. Empty for ticks of the vertical axis."""
    format: Literal["clock", "day", ""] = ""
    """What the label shows of the time."""


@dataclass(frozen=True, slots=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    state: State
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    paths: Sequence[str]
    """The parts of the line, each as the points of an SVG polyline. Between two parts is a gap, where a time bucket has
    no value."""
    points: Sequence[tuple[float, float, str]]


@dataclass(frozen=True, slots=True)
class Chart:
    """The elements of a chart. In SVG units, x is between 0 and `WIDTH`, and y is between 0 and `HEIGHT`."""

    rows: Sequence[Tick]
    columns: Sequence[Tick]
    bars: Sequence[Bar] = ()
    lines: Sequence[Line] = ()


def outcomes(time_buckets: Sequence[TimeBucket]) -> Chart:
    """Return a bar chart: how many deliveries were created in each time bucket, and in which state they are now."""
    top = _round_up(max(sum(one.by_state.values()) for one in time_buckets))
    bottom = HEIGHT - BOTTOM

    def scaled(number: int) -> float:
        return (bottom - TOP) * number / top

    bars = []
    for at, bucket in enumerate(time_buckets):
        y = float(bottom)
        for state in _ORDER:
            number = bucket.by_state.get(state, 0)
            if number:
                height = max(scaled(number), 1.5)  # so that one dead delivery among thousands stays visible
                y -= height
                label = f"{number:,} {state}, created {bucket.begin:%d %b %H:%M} to {bucket.end:%H:%M} UTC"
                bars.append(Bar(_x(at, time_buckets) + 1, y, _step(time_buckets) - 2, height, state, label))
    rows = [Tick(bottom - scaled(number), f"{number:,}") for number in (0, top // 2, top) if number or not top % 2]
    return Chart(rows, _columns(time_buckets), bars=bars)


def lags(time_buckets: Sequence[TimeBucket]) -> Chart:
    """Return a line chart of the lag (p50 and p95) on a logarithmic axis.

    The lag is the time from the terminal event until the provider has accepted the message.
    """
    known = [lag for one in time_buckets for quantile in (0.5, 0.95) if (lag := one.lag(quantile)) is not None]
    low = max((tick for tick in _LAG_TICKS[:-1] if tick <= min(known, default=0.1)), default=_LAG_TICKS[0])
    high = next((tick for tick in _LAG_TICKS if tick >= max(known, default=10.0) and tick > low), _LAG_TICKS[-1])
    bottom = HEIGHT - BOTTOM

    def y(seconds: float) -> float:
        bounded = min(max(seconds, low), high)
        return bottom - (bottom - TOP) * math.log(bounded / low) / math.log(high / low)

    lines = [
        Line(name, *_traced([(at, one.lag(quantile)) for at, one in enumerate(time_buckets)], time_buckets, y, name))
        for name, quantile in (("p95", 0.95), ("p50", 0.5))
    ]
    rows = [Tick(y(tick), duration(tick)) for tick in _LAG_TICKS if low <= tick <= high]
    return Chart(rows, _columns(time_buckets), lines=lines)


def duration(seconds: float) -> str:
    """Format a duration as an axis label."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


def _traced(
    values: Sequence[tuple[int, float | None]], time_buckets: Sequence[TimeBucket], y: object, name: str
) -> tuple[list[str], list[tuple[float, float, str]]]:
    assert callable(y)  # noqa: S101 - for mypy: `y` is always a function
    paths: list[str] = []
    points = []
    path: list[str] = []
    for at, seconds in values:
        if seconds is None:
            paths, path = [*paths, " ".join(path)], []
            continue
        x, height = round(_x(at, time_buckets) + _step(time_buckets) / 2, 1), round(y(seconds), 1)
        path.append(f"{x},{height}")
        points.append((x, height, f"{name} {duration(seconds)}, {time_buckets[at].begin:%d %b %H:%M} UTC"))
    return [one for one in (*paths, " ".join(path)) if one], points


def _columns(time_buckets: Sequence[TimeBucket]) -> list[Tick]:
    every = max(len(time_buckets) // 4, 1)
    days = (time_buckets[-1].end - time_buckets[0].begin).days > 1
    return [
        Tick(
            _x(at, time_buckets),
            f"{time_buckets[at].begin:%d %b}" if days else f"{time_buckets[at].begin:%H:%M}",
            time_buckets[at].begin.isoformat(),
            "day" if days else "clock",
        )
        for at in range(0, len(time_buckets), every)
    ]


def _step(time_buckets: Sequence[TimeBucket]) -> float:
    return (WIDTH - LEFT - RIGHT) / len(time_buckets)


def _x(at: int, time_buckets: Sequence[TimeBucket]) -> float:
    return round(LEFT + at * _step(time_buckets), 1)


def _round_up(number: int) -> int:
    """Round up to 2, 4, 10, 20, 40, 100, …: half of each is a whole number, which is the axis' middle label."""
    size = 1
    while True:
        for digit in (2, 4, 10):
            if number <= digit * size:
                return digit * size
        size *= 10
