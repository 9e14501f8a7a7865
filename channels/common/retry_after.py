"""Reads the Retry-After header of a server's answer: a number of seconds, or a date (RFC 9110, 10.2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

MAX_DELAY = timedelta(hours=24)


def retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """Return the time to wait according to the header, between 0 and 24 hours; None if it is missing or invalid."""
    text = headers.get("Retry-After") or headers.get("retry-after") or ""
    try:
        delay = timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        try:
            delay = parsedate_to_datetime(text) - datetime.now(UTC)  # noqa: TID251 - the date is real time
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(delay, timedelta()), MAX_DELAY)
