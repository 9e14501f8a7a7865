"""Parses names of time zones."""

from __future__ import annotations

import difflib
from datetime import UTC, tzinfo
from typing import Annotated, Any
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BeforeValidator, InstanceOf


def _time_zone(name: Any) -> Any:
    if not isinstance(name, str):
        return name
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError; a folder of zones is an OSError
        near = difflib.get_close_matches(name, available_timezones(), n=1)
        hint = f"did you mean {near[0]}?" if near else "write a name of the IANA database, such as Europe/Berlin"
        raise ValueError(f"no such time zone; {hint}") from None


TimeZone = Annotated[InstanceOf[tzinfo], BeforeValidator(_time_zone)]
"""A time zone of the IANA database, written as its name."""
