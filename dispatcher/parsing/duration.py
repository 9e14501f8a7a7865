"""Parses durations such as `500ms`, `30s`, `5m`, `24h`, `7d` or a number of seconds, and times such as `24h` (24 hours
ago).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_DURATION = timedelta(days=36_500)
"""The longest duration: 100 years, which can be added to and subtracted from every time of an event."""
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*")


def parse_duration(text: str) -> timedelta:
    """Parse a duration. A number without a unit means seconds. Raises ValueError, with examples in its text, if `text`
    is no duration, or longer than `MAX_DURATION`.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:30]!r} is not a duration: write 500ms, 30s, 5m, 24h or 7d")
    number, unit = match.groups()
    seconds = float(number) * _UNITS[unit or "s"]
    if seconds > MAX_DURATION.total_seconds():
        raise ValueError(f"{text[:30]!r} is too long: {MAX_DURATION.days}d is the longest duration")
    return timedelta(seconds=seconds)


def duration_text(duration: timedelta) -> str:
    """Return a duration for people, for example `2 h`, `1 d 3 h 20 min` or `0.5 s`. Fractions of a second are shown only if
    it is shorter than a minute.
    """
    rest, parts = duration.total_seconds(), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        number, rest = divmod(rest, size)
        parts += [f"{number:.0f} {unit}"] if number else []
    seconds = f"{int(rest)}" if parts else f"{rest:.3f}".rstrip("0").rstrip(".")
    return " ".join(parts if parts and seconds == "0" else [*parts, f"{seconds} s"])


def parse_time(text: str, *, now: datetime) -> datetime:
    """Parse a point in time. It is written in ISO 8601 (in UTC if it has no time zone), or as a duration before `now`.

    Raises ValueError, with examples in its text, if `text` is neither a time nor a duration.
    """
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        return parse_timestamp(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is neither a duration like 24h nor a time like 2026-11-20T09:00Z") from None


def parse_timestamp(text: str) -> datetime:
    """Parse a time in ISO 8601, in UTC if it has no time zone. Raises ValueError, with an example in its text."""
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo is not None else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{text[:40]!r} is not a time like 2026-11-20T09:00Z") from None


def _duration(value: Any) -> Any:
    return parse_duration(str(value)) if isinstance(value, str | int | float) else value


Duration = Annotated[timedelta, BeforeValidator(_duration)]
