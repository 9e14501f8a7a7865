"""Severities, as PagerDuty's Events API v2 has them."""

from __future__ import annotations

from typing import Literal

Severity = Literal["critical", "error", "warning", "info"]
PASSES_QUIET_HOURS: Severity = "critical"
"""Messages of this severity are not held by quiet hours."""
_FROM_LOWEST = ("", "info", "warning", "error", "critical")


def highest(*severities: str) -> str:
    """Return the most urgent of the severities. An empty text means that none is given."""
    return max(severities, key=_FROM_LOWEST.index, default="")
