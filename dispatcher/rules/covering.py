"""Compares matchers: which of two holds whenever the other does. Does no I/O.

The answers are proofs: True means that it is so for every event, False only that it can't be proved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from fnmatch import fnmatchcase

from dispatcher.rules.key_tests import is_glob, seen
from dispatcher.rules.matcher import Conditions, DurationKeys, Matcher

_PATTERNS = ("project", "domain", "launch_plan", "workflow", "version", "phase", "principal", "mode")


def covers(wide: Matcher, narrow: Matcher) -> bool:
    """True if `wide` holds for every event for which `narrow` holds."""
    if not conditions_cover(wide, narrow):
        return False
    if wide.not_ is None:
        return True
    return contradict(wide.not_, narrow) or (narrow.not_ is not None and conditions_cover(narrow.not_, wide.not_))


def conditions_cover(wide: Conditions, narrow: Conditions) -> bool:
    """True if all keys of `wide`, its `not` left aside, hold for every event for which those of `narrow` hold."""
    given = patterns_of(narrow)
    return (
        all(key in given and _all_covered(given[key], patterns) for key, patterns in patterns_of(wide).items())
        and (wide.parent is None or wide.parent == narrow.parent)
        and _message(wide) in (None, _message(narrow))
        and (wide.duration is None or (narrow.duration is not None and _within(narrow.duration, wide.duration)))
    )


def contradict(one: Conditions, other: Conditions) -> bool:
    """True if no event exists for which both hold, because a key of both wants different texts."""
    others = patterns_of(other)
    both = [(patterns, others[key]) for key, patterns in patterns_of(one).items() if key in others]
    if one.parent is not None and other.parent is not None and one.parent != other.parent:
        return True
    return any(not any(_may_overlap(a, b) for a in first for b in second) for first, second in both)


def patterns_of(matcher: Conditions) -> Mapping[str, Sequence[str]]:
    """Return the patterns of all keys that have some, such as `labels.team`."""
    return dict(_patterns_of(matcher))


def _patterns_of(matcher: Conditions) -> Iterator[tuple[str, Sequence[str]]]:
    for key in _PATTERNS:
        if patterns := getattr(matcher, key):
            yield key, patterns
    for name, patterns in matcher.labels.items():
        yield f"labels.{name}", patterns
    if matcher.error is not None:
        if matcher.error.kind:
            yield "error.kind", matcher.error.kind
        if matcher.error.code:
            yield "error.code", matcher.error.code


def _all_covered(narrow: Sequence[str], wide: Sequence[str]) -> bool:
    globs = [pattern for pattern in wide if is_glob(pattern)]
    exact = frozenset(wide)
    return all(one in exact or any(_pattern_covers(pattern, one) for pattern in globs) for one in narrow)


def _pattern_covers(wide: str, narrow: str) -> bool:
    """True if every text that `narrow` matches is matched by `wide`.

    A glob in `narrow` is taken for text. That is right if `wide` has no other signs than `*`: then its letters must be
    letters of `narrow` too. A `[` in `narrow` would bring letters of which only one counts.
    """
    if not is_glob(narrow):
        return fnmatchcase(seen(narrow), wide)
    return "[" not in narrow and "[" not in wide and "?" not in wide and fnmatchcase(narrow, wide)


def _may_overlap(one: str, other: str) -> bool:
    """False if no text is matched by both patterns. Two globs count as overlapping."""
    if not is_glob(one):
        return fnmatchcase(seen(one), other) if is_glob(other) else one == other
    return is_glob(other) or fnmatchcase(seen(other), one)


def _message(matcher: Conditions) -> str | None:
    return matcher.error.message if matcher.error is not None else None


def _within(inner: DurationKeys, outer: DurationKeys) -> bool:
    (inner_low, inner_high), (outer_low, outer_high) = _limits(inner), _limits(outer)
    return outer_low <= inner_low and inner_high <= outer_high


def _limits(keys: DurationKeys) -> tuple[timedelta, timedelta]:
    low, high = keys.longer_than, keys.shorter_than
    return timedelta.min if low is None else low, timedelta.max if high is None else high
