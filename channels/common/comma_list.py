"""A pydantic validator for list settings that may also be written with commas, as in environment variables."""

from __future__ import annotations

from typing import Any


def comma_list(value: Any) -> Any:
    """Split a string at its commas and strip the parts; any other value is returned unchanged.

    Use it with pydantic's BeforeValidator.
    """
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
