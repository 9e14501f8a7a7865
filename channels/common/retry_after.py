"""The Retry-After header: seconds, or a date (RFC 9110, 10.2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

LONGEST = timedelta(hours=24)


def retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """How long the server wants to be left alone; None where it doesn't say, or makes no sense."""
    text = headers.get("Retry-After") or headers.get("retry-after") or ""
    try:
        wish = timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        try:
            wish = parsedate_to_datetime(text) - datetime.now(UTC)  # noqa: TID251 - the header names a wall-clock time
        except (ValueError, TypeError):
            return None
    return min(max(wish, timedelta()), LONGEST)
