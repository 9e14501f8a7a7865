"""Formats times and durations for readers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

import humanize

_SECOND, _MINUTE, _HOUR, _DAY = (timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days"))


@dataclass(frozen=True, slots=True)
class Time:
    """A point in time. If it is unknown, all fields are empty."""

    local: str = ""
    """The time in the zone of the recipient's contact, or else of the setting `templates.timezone`, with the offset from UTC: `2026-11-20 10:14:21 UTC+01:00`."""
    utc: str = ""
    """The time in UTC: `2026-11-20 09:14:21 UTC`."""
    iso: str = ""
    """The time in UTC as ISO 8601: `2026-11-20T09:14:21Z`."""
    epoch: str = ""
    """The seconds since 1970-01-01 00:00 UTC, for Slack's `<!date^…>`."""


NO_TIME = Time()


def time_of(time: datetime, zone: tzinfo) -> Time:
    """Return a time in UTC for readers. `zone`: the time zone of `Time.local`."""
    clock = time.isoformat(" ", "seconds")[:19]
    utc = f"{clock} UTC"
    return Time(
        local=utc if zone is UTC else _local(time, zone),
        utc=utc,
        iso=f"{clock[:10]}T{clock[11:]}Z",
        epoch=str(int(time.replace(microsecond=0).timestamp())),
    )


def _local(time: datetime, zone: tzinfo) -> str:
    try:
        text = time.astimezone(zone).isoformat(" ", "seconds")
    except OverflowError:  # in this zone, the time is before the year 1 or after the year 9999
        text = time.isoformat(" ", "seconds")
    offset = text[19:]
    return f"{text[:19]} UTC" if offset == "+00:00" else f"{text[:19]} UTC{offset}"


def duration_of(elapsed: timedelta) -> str:
    """Format a duration as text. From one hour on, the text has no seconds; from one day on, also no minutes.

    Returns an empty text if the duration isn't positive, because then the event's times are wrong.
    """
    if elapsed < _SECOND:
        return "under 1 second" if elapsed > timedelta() else ""
    unit, length = (
        ("hours", _HOUR) if elapsed >= _DAY else ("minutes", _MINUTE) if elapsed >= _HOUR else ("seconds", _SECOND)
    )
    return _format_duration(elapsed // length, unit)


@lru_cache(maxsize=4096)  # cached: durations repeat, and to format them takes a quarter of `context_of`'s time
def _format_duration(number: int, unit: str) -> str:
    try:
        return humanize.precisedelta(timedelta(**{unit: number}), minimum_unit=unit, format="%d")
    except OverflowError:  # the duration is longer than the longest timedelta
        return ""
