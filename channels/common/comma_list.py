"""A pydantic validator for settings that are lists: a list may also be written as text with commas, for example in an
environment variable.
"""

from __future__ import annotations

from typing import Any


def comma_list(value: Any) -> Any:
    """Split a string at its commas and strip each part. A value that is not a string is returned unchanged.

    Use this function with pydantic's BeforeValidator.
    """
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
