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


def as_pairs(data: Mapping[str, Any]) -> list[str]:
    """Return a matcher's data as texts such as `project=flytesnacks` and `not.labels.team=ml`, one for each pattern."""
    return [f"{key}={value}" for key, value in _pairs(data, "")]


def _pairs(data: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _pairs(value, f"{before}{key}.")
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                yield f"{before}{key}", str(one)


def from_pairs(pairs: Iterable[str]) -> dict[str, Any]:
    """Return the data of the matcher that texts such as `project=flytesnacks` and `labels.team=ml` describe.

    A key that is given several times has several patterns. Raises ValueError, whose message shows the form, for a text
    without `=` or without a key. Whether there is such a key, the matcher says.
    """
    data: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        *parents, last = _steps(key.strip())
        inner: Any = data
        for parent in parents:
            inner = inner.setdefault(parent, {}) if isinstance(inner, dict) else None
        several = inner.setdefault(last, []) if isinstance(inner, dict) else None
        if not equals or not last or not isinstance(several, list):
            raise ValueError(f"{pair[:100]!r} is not a key with a value: write, for example, project=flytesnacks")
        several.append(value.strip())
    return {key: _without_short_lists(value) for key, value in data.items()}


def _steps(key: str) -> list[str]:
    """Return the keys of the mappings that a key is in, and the key. A label's name may have dots."""
    steps = []
    while (first := key.partition("."))[0] in _MAPPINGS and first[1]:
        steps.append(first[0])
        key = first[2]
        if first[0] == "labels":
            break
    return [*steps, key]


_MAPPINGS = ("not", "labels", "error", "duration")


def _without_short_lists(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_short_lists(value) for key, value in data.items()}
    return data[0] if len(data) == 1 else data
