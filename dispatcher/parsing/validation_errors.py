"""Formats a validation error of Pydantic as one readable line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from dispatcher.parsing.scalars import Unclear, why_not_text

_LONGEST_KEY = 100
"""Maximum number of characters of a key in a place. A message may have a key of megabytes."""
_TEXT_EXPECTED = frozenset({"string_type", "path_type", "url_type"})


def first_problem(error: ValidationError) -> str:
    """Return the first problem as `place: message`. The invalid value is left out, because it may be secret."""
    problem = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(_short(str(part)) for part in problem["loc"])
    what = message_of(problem)
    return f"{where}: {what}" if where else what


def _short(key: str) -> str:
    return key if len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}…"


def message_of(problem: Mapping[str, Any]) -> str:
    """Return the message of one entry of `ValidationError.errors()`, without the invalid value."""
    value = problem["input"]
    if problem["type"] in _TEXT_EXPECTED or isinstance(value, Unclear):
        reason = why_not_text(value)
        if reason is not None:
            return reason
    return str(problem["msg"]).removeprefix("Value error, ")
