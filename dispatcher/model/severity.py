"""Severities, as PagerDuty's Events API v2 has them."""

from __future__ import annotations

from typing import Literal

Severity = Literal["critical", "error", "warning", "info"]
_FROM_LOWEST = ("", "info", "warning", "error", "critical")


def highest(*severities: str) -> str:
    """Return the most urgent of the severities. An empty text means that none is given."""
    return max(severities, key=_FROM_LOWEST.index, default="")
