"""Says in our words what Pydantic finds wrong with settings, rules, events, arguments and filters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from dispatcher.parsing.scalars import Unclear, why_not_text

_LONGEST_KEY = 100
"""Maximum number of characters of a key in a place. A message may have a key of megabytes."""
_TEXT_EXPECTED = frozenset({"string_type", "path_type", "url_type"})
_MESSAGES = {
    kind: message
    for message, kinds in {
        "must be set": ["missing"],
        "must be text": ["string_type"],
        "must be the path of a file or folder": ["path_type"],
        "must be a URL": ["url_type"],
        "must not be empty": ["string_too_short", "too_short"],
        "must be a mapping: option: value": ["dict_type", "model_type", "model_attributes_type"],
        "must be a mapping: name: value": ["mapping_type"],
        "must be a list": ["tuple_type", "list_type", "set_type", "frozen_set_type"],
        "must be true or false": ["bool_type", "bool_parsing"],
        "must be a whole number": ["int_type", "int_parsing", "int_from_float"],
        "must be a number": ["float_type", "float_parsing"],
        "must be a duration: 500ms, 30s, 5m, 24h or 7d": ["time_delta_type"],
        "unknown option": ["extra_forbidden"],
    }.items()
    for kind in kinds
}
"""Messages instead of Pydantic's, by Pydantic's type of the error."""
_SHOULD = re.compile(r"^[A-Z][a-z]+ should ")
"""How Pydantic's other messages begin: `Input should be less than …`, `String should have at most …`."""


def first_problem(error: ValidationError) -> str:
    """Return the first problem as `place: message`. The invalid value is left out, because it may be secret."""
    return _sentence(error.errors(include_url=False, include_context=False)[0])


def every_problem(error: ValidationError) -> str:
    """Return all problems, each as `first_problem` returns it, with semicolons between them."""
    return "; ".join(dict.fromkeys(map(_sentence, error.errors(include_url=False, include_context=False))))


def _sentence(problem: Mapping[str, Any]) -> str:
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
    message = _MESSAGES.get(problem["type"], str(problem["msg"]).removeprefix("Value error, "))
    return _SHOULD.sub("must ", message)
