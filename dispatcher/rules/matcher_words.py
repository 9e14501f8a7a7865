"""Shows matchers: in words for people, and as data in the form of the files. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from enum import Enum
from typing import Any

from pydantic import BaseModel

from dispatcher.parsing.duration import duration_text
from dispatcher.rules.key_tests import alternatives, joined, shown
from dispatcher.rules.matcher import Conditions, Matcher

_PATTERNS = ("project", "domain", "launch_plan", "workflow", "version", "phase", "principal", "mode")
_NOT = "not."
"""Begins the keys below `not`, as `Matcher.unknown` returns them."""


def in_words(matcher: Conditions, keys: Iterable[str] | None = None) -> str:
    """Return the conditions in words, for example `domain is production, phase is FAILED, unless labels.tier is 3`.

    `keys`: only the conditions of these keys, as `Matcher.unknown` names them. `not` is shown as a whole.
    """
    wanted = None if keys is None else frozenset(keys)
    words = [text for key, text in _conditions(matcher) if wanted is None or key in wanted]
    excluded = matcher.not_ if isinstance(matcher, Matcher) else None
    if excluded is not None and (wanted is None or any(key.startswith(_NOT) for key in wanted)):
        words.append(f"unless {joined([text for _, text in _conditions(excluded)], 'and')}")
    return ", ".join(words)


def _conditions(matcher: Conditions) -> Iterator[tuple[str, str]]:
    """Yield each key, without `not`, and its condition in words."""
    patterns = {key: getattr(matcher, key) for key in _PATTERNS}
    patterns |= {f"labels.{name}": wanted for name, wanted in matcher.labels.items()}
    if matcher.error is not None:
        patterns |= {"error.kind": matcher.error.kind, "error.code": matcher.error.code}
    yield from ((key, f"{key} is {alternatives(wanted)}") for key, wanted in patterns.items() if wanted)
    if matcher.error is not None and matcher.error.message is not None:
        yield "error.message", f"error.message matches {shown(matcher.error.message)}"
    if matcher.parent is not None:
        yield "parent", f"parent is {matcher.parent}"
    if matcher.duration is not None:
        limits = (("longer", matcher.duration.longer_than), ("shorter", matcher.duration.shorter_than))
        wish = [f"{word} than {duration_text(limit)}" for word, limit in limits if limit is not None]
        yield "duration", f"duration is {joined(wish, 'and')}"


def as_data(value: Any) -> Any:
    """Return a matcher as JSON data that a file with routes could have."""
    match value:
        case BaseModel():
            given = {info.alias or name: getattr(value, name) for name, info in type(value).model_fields.items()}
            return {name: as_data(one) for name, one in given.items() if one not in ((), {}, None)}
        case Mapping():
            return {name: as_data(one) for name, one in value.items()}
        case tuple():
            return [as_data(one) for one in value]
        case timedelta():
            return f"{value.total_seconds():f}".rstrip("0").rstrip(".") + "s"
        case Enum():
            return str(value)
        case _:
            return value
