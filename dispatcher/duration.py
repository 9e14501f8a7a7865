"""Spans of time as people write them: `500ms`, `30s`, `5m`, `24h`, `7d`, or plain seconds."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*")


def parse_duration(text: str) -> timedelta:
    """Read a span. Raises ValueError, showing the form, for anything else."""
    match = _WRITTEN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:30]!r} is no span of time: write 500ms, 30s, 5m, 24h or 7d")
    number, unit = match.groups()
    return timedelta(seconds=float(number) * _UNITS[unit or "s"])


def _duration(value: Any) -> Any:
    return parse_duration(str(value)) if isinstance(value, str | int | float) else value


Duration = Annotated[timedelta, BeforeValidator(_duration)]
