"""Quiet hours in wall time, on every day of ten years in four zones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dispatcher.holding.wall_time import first_instant, last_instant
from dispatcher.holding.windows import LOOK_AHEAD, QuietHours, TimeOfDay, Weekday, Window, quiet_now
from dispatcher.model.hold import Quiet
from dispatcher.parsing.validation_errors import first_problem

BERLIN, SANTIAGO, LORD_HOWE, NEW_YORK = ZONES = [
    ZoneInfo("Europe/Berlin"),
    ZoneInfo("America/Santiago"),  # clocks change at midnight, so a day may have no 00:00, or two times 23:30
    ZoneInfo("Australia/Lord_Howe"),  # clocks change by half an hour
    ZoneInfo("America/New_York"),
]
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
FIRST, LAST = datetime(2025, 1, 1, tzinfo=UTC), datetime(2035, 1, 1, tzinfo=UTC)


def window(**options: Any) -> Window:
    return Window.model_validate({"zone": "Europe/Berlin", **options})


def hours(*windows: Window, by: str = "contact ml") -> QuietHours:
    return QuietHours(by, windows)


def changes_of_clocks(zone: ZoneInfo) -> Iterator[tuple[ZoneInfo, datetime]]:
    """Yield the hours of the ten years after which a zone's clocks show something else than an hour later."""

    def changes(at: datetime, after: timedelta) -> bool:
        return (at + after).astimezone(zone).utcoffset() != at.astimezone(zone).utcoffset()

    for number in range((LAST - FIRST).days):
        day = FIRST + number * DAY
        if changes(day, DAY):
            yield from ((zone, at) for at in (day + hour * HOUR for hour in range(24)) if changes(at, HOUR))


CHANGES = [change for zone in ZONES for change in changes_of_clocks(zone)]

minutes = st.integers(0, 24 * 60 - 1)
instants = st.one_of(
    st.datetimes(FIRST.replace(tzinfo=None), LAST.replace(tzinfo=None)).map(lambda at: at.replace(tzinfo=UTC)),
    st.builds(lambda change, away: change[1] + away * MINUTE, st.sampled_from(CHANGES), st.integers(-1500, 1500)),
)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    start = draw(minutes)
    end = draw(st.integers(1, 24 * 60).filter(lambda end: end != start))
    exceptions = [draw(instants).date()] if draw(st.booleans()) else []
    days = draw(st.lists(st.sampled_from(Weekday), min_size=1))
    return Window.model_validate(
        {
            "days": days,
            "from": TimeOfDay(start),
            "to": TimeOfDay(end),
            "zone": draw(st.sampled_from(ZONES)),
            "except": exceptions,
        }
    )


def wall(at: datetime, zone: ZoneInfo) -> datetime:
    return at.astimezone(zone).replace(tzinfo=None)


@given(
    st.one_of(
        st.tuples(st.sampled_from(ZONES), instants),
        st.builds(
            lambda change, away: (change[0], change[1] + away * MINUTE),
            st.sampled_from(CHANGES),
            st.integers(-200, 200),
        ),
    ),
    st.integers(-90, 90),
)
@settings(max_examples=150)
def test_an_instant_is_when_the_clock_shows_the_time_for_the_first_or_the_last_time(
    near: tuple[ZoneInfo, datetime], shift: int
) -> None:
    zone, at = near
    shown = wall(at, zone).replace(second=0, microsecond=0) + shift * MINUTE
    first, last = first_instant(shown, zone), last_instant(shown, zone)
    around = [first + number * 10 * MINUTE for number in range(-150, 150)]
    assert wall(first, zone) >= shown
    assert wall(last, zone) >= shown
    assert all(wall(one, zone) < shown for one in (first - MINUTE / 60, *around) if one < first)
    assert all(wall(one, zone) > shown for one in (last + MINUTE / 60, *around) if one > last)
    if wall(first, zone) != shown:  # the clock skips it
        assert first == last


def test_every_change_of_clocks_of_ten_years_is_in_the_examples() -> None:
    assert {zone for zone, _ in CHANGES} == set(ZONES)
    assert len(CHANGES) == 4 * 10 * 2


def in_force(one: Window, at: datetime) -> bool:
    """Whether a window is in force, found minute by minute on the wall clock, without any instant of a window."""
    zone = one.zone
    assert isinstance(zone, ZoneInfo)
    shown = wall(at, zone)
    already = max(wall(at - number * MINUTE, zone) for number in range(62))
    again = min(wall(at + number * MINUTE, zone) for number in range(1, 62))
    for away in (-1, 0, 1):
        day = shown.date() + away * DAY
        midnight = datetime.combine(day, time())
        minutes_to_end = one.end if one.end > one.start else one.end + 24 * 60
        if [*Weekday][day.weekday()] not in one.days or any(dates.first <= day <= dates.last for dates in one.except_):
            continue
        start, end = midnight + one.start * MINUTE, midnight + minutes_to_end * MINUTE
        if start <= already and (shown < end or again <= end):
            return True
    return False


@given(windows(), instants)
@settings(max_examples=150)
def test_a_window_is_in_force_from_its_start_on_the_clock_until_its_end_has_come_for_the_last_time(
    one: Window, at: datetime
) -> None:
    at = at.replace(second=0, microsecond=0)
    assert (one.ends(at) is not None) == in_force(one, at)


@given(st.lists(windows(), min_size=1, max_size=3), instants)
@settings(max_examples=100)
def test_an_opening_is_the_first_moment_outside_of_all_windows_whenever_it_is_asked_for(
    several: list[Window], at: datetime
) -> None:
    at = at.replace(second=0, microsecond=0)
    opening = hours(*several).next_opening(at)
    assert opening >= at
    if opening > at + LOOK_AHEAD:
        return
    assert not any(in_force(one, opening) for one in several)
    before = [at + (opening - at) * part / 10 for part in range(10)]
    for moment in [one.replace(second=0, microsecond=0) for one in before]:
        if at <= moment < opening:
            assert any(in_force(one, moment) for one in several)
            assert hours(*several).next_opening(moment) == opening  # a restart or a reload moves nothing


@given(windows(), instants)
@settings(max_examples=100)
def test_a_window_is_as_long_as_it_says_unless_clocks_skip_a_part_of_it(one: Window, at: datetime) -> None:
    zone = one.zone
    assert isinstance(zone, ZoneInfo)
    start, end = one.span(at.date())
    says = timedelta(minutes=(one.end - one.start) % (24 * 60) or 24 * 60)
    offsets = [instant.astimezone(zone).utcoffset() for instant in (start - MINUTE, end)]
    changed = offsets[1] - offsets[0]  # type: ignore[operator]  # a zone has an offset at every instant
    assert end - start >= says - max(changed, timedelta())
    assert start <= end


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_starts() -> None:
    night = window(days="mon-fri", **{"from": "22:00", "to": "07:00"})
    saturday = datetime(2026, 11, 21, 3, tzinfo=BERLIN)
    assert night.ends(saturday) == datetime(2026, 11, 21, 7, tzinfo=BERLIN)
    assert night.ends(saturday.replace(hour=7)) is None  # the end does not belong to it
    assert night.ends(saturday.replace(hour=23)) is None
    assert night.ends(datetime(2026, 11, 23, 3, tzinfo=BERLIN)) is None  # Monday's window has not started
    assert night.ends(datetime(2026, 11, 23, 22, tzinfo=BERLIN)) is not None  # the start does


def test_edges_on_days_on_which_clocks_change() -> None:
    spring, autumn = date(2026, 3, 29), date(2026, 10, 25)
    skipped = window(**{"from": "02:30", "to": "05:00"})
    assert skipped.span(spring) == (datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 3, 29, 3, tzinfo=UTC))
    nothing = window(**{"from": "02:10", "to": "02:50"}).span(spring)
    assert nothing == (datetime(2026, 3, 29, 1, tzinfo=UTC),) * 2
    twice = window(**{"from": "02:30", "to": "02:45"})
    assert twice.span(autumn) == (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 45, tzinfo=UTC))
    no_midnight = Window.model_validate({"zone": "America/Santiago", "days": "sun"})
    assert no_midnight.span(date(2026, 9, 6)) == (
        datetime(2026, 9, 6, 4, tzinfo=UTC),
        datetime(2026, 9, 7, 3, tzinfo=UTC),
    )
    no_friday = Window.model_validate({"zone": "Pacific/Apia", "days": "fri", "from": "22:00", "to": "07:00"})
    assert no_friday.span(date(2011, 12, 30)) == (  # Samoa had no 30 December 2011
        datetime(2011, 12, 30, 10, tzinfo=UTC),
        datetime(2011, 12, 30, 17, tzinfo=UTC),
    )


def test_dates_and_exceptions() -> None:
    holidays = window(dates=["2026-12-24..2026-12-26", date(2027, 1, 1)], **{"except": "2026-12-25"})
    days = [date(2026, 12, 23) + number * DAY for number in range(12)]
    closed = [day for day in days if holidays.ends(datetime.combine(day, time(12), BERLIN)) is not None]
    assert closed == [date(2026, 12, 24), date(2026, 12, 26), date(2027, 1, 1)]
    eve = datetime(2026, 12, 24, 12, tzinfo=BERLIN)
    assert hours(holidays).next_opening(eve) == datetime(2026, 12, 25, tzinfo=BERLIN)
    assert not holidays.over(date(2027, 1, 1))
    assert holidays.over(date(2027, 1, 2))


NIGHT = window(**{"from": "22:00", "to": "07:00"})
WEEKEND = window(days="sat-sun")
OFFICE = window(days="mon-fri", **{"from": "07:00", "to": "22:00"})


@pytest.mark.parametrize(
    ("several", "longest", "day"),
    [
        ([NIGHT, WEEKEND], 7 * DAY, None),
        ([NIGHT, WEEKEND], 2 * DAY, "fri"),  # Friday, 22:00, to Monday, 07:00
        ([NIGHT, WEEKEND, OFFICE], 7 * DAY, "mon"),
        ([window()], 7 * DAY, "mon"),
        ([window(days="mon-sat"), window(days="sun", **{"from": "10:00"})], 7 * DAY, None),
        ([NIGHT, window(dates="2026-12-24..2027-01-03")], 7 * DAY, "2026-12-23"),
        ([NIGHT, window(dates="2026-12-24..2027-01-03", **{"except": "2026-12-30"})], 7 * DAY, None),
        ([window(**{"except": "2026-12-30"})], 7 * DAY, "wed"),
    ],
)
def test_windows_without_an_opening_are_found(several: list[Window], longest: timedelta, day: str | None) -> None:
    why = hours(*several).why_too_long(longest)
    assert why.startswith(f"from {day} on, it leaves no opening within holds.longest") if day else why == ""


def test_each_group_must_let_a_delivery_through() -> None:
    evening = datetime(2026, 11, 20, 23, tzinfo=BERLIN)  # a Friday
    until_7, until_8 = hours(NIGHT), hours(window(**{"from": "20:00", "to": "08:00"}), by="route nightly")
    seven, monday = evening.replace(day=21, hour=7), evening.replace(day=23, hour=0)
    assert quiet_now(evening, []) is None
    assert quiet_now(seven, [[until_7]]) is None
    assert quiet_now(evening, [[until_7]]) == Quiet(seven, "contact ml")
    assert quiet_now(evening, [[until_7], [until_8]]) == Quiet(seven.replace(hour=8), "route nightly")
    assert quiet_now(evening, [[until_7, until_8]]) == Quiet(seven, "contact ml")  # the first that lets it through
    # What waits for the end of one is held on if the other has begun by then.
    assert quiet_now(evening, [[until_8], [hours(WEEKEND)]]) == Quiet(monday.replace(hour=8), "route nightly")
    (held,) = [quiet_now(evening, [[hours(window())]])]
    assert held is not None
    assert LOOK_AHEAD <= held.until - evening <= LOOK_AHEAD + DAY


@given(st.lists(st.lists(windows().map(hours), min_size=1, max_size=2), max_size=2), instants)
@settings(max_examples=100)
@example([], FIRST)
def test_a_hold_ends_when_each_group_lets_the_delivery_through(
    groups: Sequence[Sequence[QuietHours]], now: datetime
) -> None:
    now = now.replace(second=0, microsecond=0)

    def open_at(at: datetime) -> bool:
        return all(any(not any(in_force(one, at) for one in each.windows) for each in group) for group in groups)

    held = quiet_now(now, groups)
    assert (held is None) == open_at(now)
    if held is not None and held.until < now + LOOK_AHEAD:
        assert open_at(held.until)
        assert not open_at(held.until - MINUTE)
        assert quiet_now(held.until, groups) is None


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"zone": "Europe/Berln"}, "zone: no such time zone; did you mean Europe/Berlin?"),
        ({"days": "mon-fry"}, "days: write one of mon, tue, wed, thu, fri, sat, sun, or a range such as mon-fri"),
        ({"days": []}, "days: must not be empty: without days, it is every day"),
        ({"from": "24:30"}, "from: write a time such as 22:00; the end of a day is 24:00"),
        ({"from": 22.5}, "from: a number where text is expected: quote it"),
        ({"from": "07:00", "to": "07:00"}, "from and to are the same time: leave both out for whole days"),
        ({"from": "24:00"}, "from: write 00:00 and the next day"),
        ({"dates": "24.12.2026"}, "dates: write a date such as 2026-12-24, or a range such as 2026-12-24..2027-01-02"),
        ({"dates": "2026-12-26..2026-12-24"}, "dates: 2026-12-26..2026-12-24: the first date comes first, between"),
        ({"dates": "2026-12-25", "days": "mon"}, "it never starts: none of its dates is on one of its days"),
        ({"at": "07:00"}, "at: unknown option"),
    ],
)
def test_mistakes_are_refused_with_what_to_write_instead(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as refused:
        window(**options)
    assert first_problem(refused.value).startswith(problem)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"days": ["mon-wed", "sat"], "from": "22:00", "to": "07:00"}, "mon-wed,sat 22:00-07:00 Europe/Berlin"),
        ({"days": "sat-mon"}, "mon,sat-sun all day Europe/Berlin"),
        ({"from": "7:00", "zone": "UTC"}, "07:00-24:00 UTC"),
        (
            {"dates": "2026-12-24..2026-12-26, 2027-01-01"},
            "all day Europe/Berlin on 2026-12-24..2026-12-26, 2027-01-01",
        ),
        ({"days": "MON-FRI", "except": ["2026-12-24"]}, "mon-fri all day Europe/Berlin except 2026-12-24"),
    ],
)
def test_a_window_in_words_and_as_files_write_it(options: dict[str, Any], words: str) -> None:
    one = window(**options)
    assert str(one) == words
    assert Window.model_validate(one.as_data()) == one
