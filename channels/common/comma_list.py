"""Lists that may also be written with commas, as environment variables want them."""

from __future__ import annotations

from typing import Any


def listed(value: Any) -> Any:
    """The parts of a text that holds several; anything else as it is. For pydantic's BeforeValidator."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
