"""Says in our words what Pydantic finds wrong with settings, rules, events, arguments and filters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

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
    return sentence(error.errors(include_url=False, include_context=False)[0])


def every_problem(error: ValidationError) -> str:
    """Return all problems, each as `first_problem` returns it, with semicolons between them."""
    return "; ".join(dict.fromkeys(map(sentence, error.errors(include_url=False, include_context=False))))


def sentence(problem: Mapping[str, Any]) -> str:
    """Return one entry of `ValidationError.errors()` as `place: message`, without the invalid value."""
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


def option_hint(where: Sequence[int | str], model: type[BaseModel]) -> str:
    """Return a hint for an unknown option: the closest valid name, or all valid names.

    `where`: the place of the option in data that `model` validates.
    """
    inner: Any = model
    is_name = False
    for step in where[:-1]:
        if isinstance(step, int):  # skip an index into a list: `inner` is already the model of the list's items
            continue
        if is_name:  # skip a name that the data gives: `inner` is already the model of the mapping's values
            is_name = False
            continue
        field = _options(inner).get(step)
        inner = model_in(field.annotation) if field is not None else None
        is_name = field is not None and get_origin(field.annotation) is Mapping
    names = list(_options(inner))
    close = difflib.get_close_matches(str(where[-1]), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names) or 'none'}"


def _options(model: Any) -> dict[str, FieldInfo]:
    """Return a model's options, by the names that files use; empty if `model` is no model."""
    return {info.alias or name: info for name, info in getattr(model, "model_fields", {}).items()}


def model_in(annotation: Any) -> Any:
    """Return the pydantic model in a type annotation such as `Model | None`; None if the annotation has no model."""
    candidates = getattr(annotation, "__args__", (annotation,))
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
