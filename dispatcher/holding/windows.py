"""Quiet hours: the windows of time in which messages to a contact, or of a route, are held.

A window is written in wall time and computed in instants, so it is right on days on which clocks are changed. A window
over midnight belongs to the day on which it starts. Its start is inclusive, its end exclusive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, model_validator

from dispatcher.holding.wall_time import first_instant, last_instant
from dispatcher.model.hold import Quiet
from dispatcher.parsing.duration import duration_text
from dispatcher.parsing.scalars import Unclear, why_not_text
from dispatcher.parsing.time_zone import TimeZone

MAX_WINDOWS = 20
"""A contact or a route has at most this many windows."""
MAX_DATES = 400
"""A window names at most this many dates and ranges of dates."""
LOOK_AHEAD = timedelta(days=31)
"""Quiet hours are followed for this long. What is held is released sooner (`holds.longest`)."""
_DAY = timedelta(days=1)
_WEEK = 7 * _DAY
_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])|(24):(00)", re.ASCII)
_RANGE = ".."
_YEARS = range(2000, 2101)
"""The years that a date may have."""
_SOME_MONDAY = date(2024, 1, 1)


class Weekday(StrEnum):
    MON = "mon"
    TUE = "tue"
    WED = "wed"
    THU = "thu"
    FRI = "fri"
    SAT = "sat"
    SUN = "sun"


_WEEK_OF_DAYS = tuple(Weekday)


class TimeOfDay(int):
    """A time on the wall clock, as minutes after midnight."""

    def __str__(self) -> str:
        return f"{self // 60:02}:{self % 60:02}"


_MIDNIGHT, _END_OF_DAY = TimeOfDay(0), TimeOfDay(24 * 60)


class Dates(NamedTuple):
    """One date, or a range of dates; both ends belong to it."""

    first: date
    last: date

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}{_RANGE}{self.last}"


def _texts(value: Any) -> list[Any]:
    """Return the parts of a list, which may also be written as text with commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return value if isinstance(value, list) else [value]


def _days(value: Any) -> Any:
    if isinstance(value, tuple):
        return value
    named: set[Weekday] = set()
    for part in _texts(value):
        first, dash, last = str(part).lower().partition("-")
        if first not in _WEEK_OF_DAYS or (dash and last not in _WEEK_OF_DAYS):
            raise ValueError(f"write one of {', '.join(Weekday)}, or a range such as mon-fri")
        start, end = (_WEEK_OF_DAYS.index(Weekday(day)) for day in (first, last or first))
        after = end + 1 if end >= start else end + 8
        named.update((_WEEK_OF_DAYS * 2)[start:after])
    if not named:
        raise ValueError("must not be empty: without days, it is every day")
    return tuple(day for day in Weekday if day in named)


def _time(value: Any) -> Any:
    if isinstance(value, TimeOfDay):
        return value
    text = value.text if isinstance(value, Unclear) else value  # YAML 1.1 reads 22:00 as minutes: it means the same
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(why_not_text(value) or "write a time such as 22:00; the end of a day is 24:00")
    hours, minutes = (int(part) for part in match.groups() if part is not None)
    return TimeOfDay(hours * 60 + minutes)


def _dates(value: Any) -> Any:
    return value if isinstance(value, tuple) else tuple(_range(part) for part in _texts(value))


def _range(value: Any) -> Dates:
    if isinstance(value, date) and not isinstance(value, datetime):
        first = last = value
    else:
        start, _, end = str(value).partition(_RANGE)
        try:
            first, last = date.fromisoformat(start.strip()), date.fromisoformat((end or start).strip())
        except ValueError:
            raise ValueError("write a date such as 2026-12-24, or a range such as 2026-12-24..2027-01-02") from None
    if first > last or first.year not in _YEARS or last.year not in _YEARS:
        raise ValueError(f"{first}..{last}: the first date comes first, between {_YEARS[0]} and {_YEARS[-1]}")
    return Dates(first, last)


_TimeOfDay = Annotated[InstanceOf[TimeOfDay], BeforeValidator(_time)]
_DateList = Annotated[tuple[InstanceOf[Dates], ...], BeforeValidator(_dates), Field(max_length=MAX_DATES)]


class Window(BaseModel):
    """Hours of some days, in one time zone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: Annotated[tuple[Weekday, ...], BeforeValidator(_days)] = _WEEK_OF_DAYS
    """The days of the week on which the window starts, such as `[mon-fri]`. Without it, every day."""
    start: _TimeOfDay = Field(_MIDNIGHT, alias="from")
    """When it starts."""
    end: _TimeOfDay = Field(_END_OF_DAY, alias="to")
    """When it ends: on the next day if this is not later than `from`. `24:00` is the end of the day."""
    zone: TimeZone
    """The time zone of these times: a name of the IANA database, such as `Europe/Berlin`."""
    dates: _DateList = ()
    """The window starts only on these dates, such as `[2026-12-24..2026-12-26]`. Without it, on every date."""
    except_: _DateList = Field((), alias="except")
    """The window does not start on these dates."""

    @model_validator(mode="after")
    def _is_some_time(self) -> Self:
        if self.start == _END_OF_DAY:
            raise ValueError("from: write 00:00 and the next day")
        if self.start == self.end:
            raise ValueError("from and to are the same time: leave both out for whole days")
        if self.dates and not any(self._has_weekday(day) for dates in self.dates for day in _some_days(dates)):
            raise ValueError("it never starts: none of its dates is on one of its days")
        return self

    def ends(self, at: datetime) -> datetime | None:
        """Return when the window ends that is in force at `at`; None if none is."""
        today = at.astimezone(self.zone).date()
        # The clocks of a zone may go back over midnight, so a window that starts tomorrow may be in force already.
        spans = [self.span(day) for day in (today - _DAY, today, today + _DAY) if self._starts_on(day)]
        return max((end for start, end in spans if start <= at < end), default=None)

    def span(self, day: date) -> tuple[datetime, datetime]:
        """Return when the window that starts on `day` starts and ends, in UTC. It is never shorter than it says, unless
        the clocks skip a part of it.
        """
        midnight = datetime.combine(day, time())
        minutes = self.end if self.end > self.start else self.end + _END_OF_DAY
        start = first_instant(midnight + timedelta(minutes=self.start), self.zone)
        return start, last_instant(midnight + timedelta(minutes=minutes), self.zone)

    def starts(self, first: date, last: date) -> Iterator[datetime]:
        """Yield when the window starts on each of these days on which it starts."""
        yield from (self.span(day)[0] for day in _some_days(Dates(first, last)) if self._starts_on(day))

    def _starts_on(self, day: date) -> bool:
        if not self._has_weekday(day):
            return False
        return (not self.dates or _names(self.dates, day)) and not _names(self.except_, day)

    def _has_weekday(self, day: date) -> bool:
        return _WEEK_OF_DAYS[day.weekday()] in self.days

    def over(self, today: date) -> bool:
        """True if all its dates are before `today`, so that it never starts again."""
        return bool(self.dates) and all(dates.last < today for dates in self.dates)

    def __str__(self) -> str:
        """Return the window in words, such as `mon-fri 22:00-07:00 Europe/Berlin`."""
        days = "" if self.days == _WEEK_OF_DAYS else ",".join(_ranges(self.days))
        all_day = self.start == _MIDNIGHT and self.end == _END_OF_DAY
        hours = "all day" if all_day else f"{self.start}-{self.end}"
        only = f"on {', '.join(map(str, self.dates))}" if self.dates else ""
        never = f"except {', '.join(map(str, self.except_))}" if self.except_ else ""
        return " ".join(filter(None, (days, hours, str(self.zone), only, never)))

    def as_data(self) -> dict[str, Any]:
        """Return the window as JSON data, in the form in which files write it."""
        return {
            "days": _ranges(self.days),
            "from": str(self.start),
            "to": str(self.end),
            "zone": str(self.zone),
            "dates": [*map(str, self.dates)],
            "except": [*map(str, self.except_)],
        }


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


Windows = Annotated[tuple[Window, ...], BeforeValidator(_as_list), Field(min_length=1, max_length=MAX_WINDOWS)]
"""One window, or a list of them."""


@dataclass(frozen=True, slots=True, eq=False)  # compared and hashed by identity, which is fast
class QuietHours:
    """The windows of one contact or route."""

    by: str
    """Whose they are, such as `contact ml-team` or `route nightly`."""
    windows: tuple[Window, ...]

    def next_opening(self, at: datetime) -> datetime:
        """Return the first moment from `at` on at which no window is in force; a moment more than `LOOK_AHEAD` after `at`
        if there is none before.
        """
        return _closed_until(self, int(at.timestamp()) // 60) or at

    def why_too_long(self, longest: timedelta) -> str:
        """Return a sentence if the windows are in force for more than `longest` without a break; else an empty text."""
        day = _without_opening(self.windows, longest)
        if day is None:
            return ""
        return f"from {day} on, it leaves no opening within holds.longest: messages are held for {duration_text(longest)} at most"

    def __str__(self) -> str:
        return "; ".join(map(str, self.windows))

    def as_data(self) -> list[dict[str, Any]]:
        """Return the windows as JSON data."""
        return [window.as_data() for window in self.windows]


def quiet_now(now: datetime, each: Iterable[Sequence[QuietHours]]) -> Quiet | None:
    """Return the quiet hours that hold a delivery at `now`; None if there are none.

    `each`: groups of quiet hours, none of them empty. A delivery goes at a moment at which, in each group, at least one has no window in
    force. The hold is named after the last one that it waited for, and ends after `LOOK_AHEAD` if there is no such moment.
    """
    groups = [*each]
    at, by, latest = now, "", now + LOOK_AHEAD
    waits = bool(groups)
    while waits and at < latest:
        waits = False
        for group in groups:
            opening, owner = min([(one.next_opening(at), one.by) for one in group])
            if opening > at:
                at, by, waits = opening, owner, True
    return Quiet(at, by) if at > now else None


@lru_cache(maxsize=8192)
def _closed_until(hours: QuietHours, minute: int) -> datetime | None:
    """Return when the windows that are in force in a minute, counted from 1970, have ended; None if there are none.

    Windows start and end at whole minutes, so one answer is right for all messages of a minute.
    """
    at = datetime.fromtimestamp(minute * 60, UTC)
    opening = _next_opening(hours.windows, at, at + LOOK_AHEAD)
    return opening if opening > at else None


def _next_opening(windows: Sequence[Window], at: datetime, latest: datetime) -> datetime:
    while at < latest and (ends := [end for one in windows if (end := one.ends(at)) is not None]):
        at = max(ends)
    return at


@lru_cache(maxsize=1024)  # many routes have the same windows
def _without_opening(windows: tuple[Window, ...], longest: timedelta) -> str | None:
    """Return a date, or a day of every week, from which on windows are in force for more than `longest` without a break;
    None if there is none.

    The windows of one week are those of every week, but for their dates. So two weeks are examined that have none of the
    dates, and the weeks around each of the dates on which windows start.
    """
    named = [dates for window in windows for dates in window.dates]
    every = [*named, *(dates for window in windows for dates in window.except_)]
    plain = max((dates.last for dates in every), default=_SOME_MONDAY) + _WEEK
    for first in (plain, *(dates.first - _WEEK for dates in named)):
        for window in windows:
            for start in window.starts(first, first + 3 * _WEEK):
                if _next_opening(windows, start, start + longest + _DAY) - start > longest:
                    day = start.astimezone(window.zone).date()
                    return str(_WEEK_OF_DAYS[day.weekday()] if first == plain else day)
    return None


def _names(listed: Sequence[Dates], day: date) -> bool:
    return any(dates.first <= day <= dates.last for dates in listed)


def _some_days(dates: Dates) -> Iterator[date]:
    """Yield the days of a range, at most those of a month: they have all days of the week."""
    number = min((dates.last - dates.first).days, 30)
    return (dates.first + timedelta(days=day) for day in range(number + 1))


def _ranges(days: Sequence[Weekday]) -> list[str]:
    """Return the days as a file could write them: `mon-fri` for several in a row."""
    ranges: list[str] = []
    before: Weekday | None = None
    for day in Weekday:
        if day in days:
            ranges = [*ranges[:-1], f"{ranges[-1].partition('-')[0]}-{day}"] if before in days else [*ranges, str(day)]
        before = day
    return ranges
