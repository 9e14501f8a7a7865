"""The tests that a matcher's keys make: whether a fact of an event is as the key wants it, and what it missed by."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from fnmatch import translate
from functools import lru_cache
from typing import Any, NamedTuple

from dispatcher.rules.facts import FACTS, Fact

MAX_EXPRESSION_MEMORY = 2**20
"""Maximum number of bytes of a compiled regular expression and its states. Most need a few thousand."""
MAX_EXPRESSION_STEPS = 2000
"""Maximum number of instructions of a compiled regular expression. A search takes at most about this number of steps for
each byte."""
SEARCHED = 16 * 1024
"""A regular expression is searched for in this many characters of an error message's beginning, and of its end."""
_SHOWN = 60
"""Maximum number of characters of a value in a reason."""
_SHOWN_PATTERNS = 5


class KeyTest(NamedTuple):
    """The test that one key makes."""

    key: str
    """The key as files write it, such as `domain` or `labels.team`."""
    fact: Fact
    wanted: Callable[[Any], object]
    """Returns something true if the fact is as the key wants it. Not called if the fact is UNKNOWN."""
    missed: Callable[[Any], str]
    """Returns a sentence about a fact that is not as the key wants it."""


def text_test(key: str, fact: Fact, patterns: tuple[str, ...]) -> KeyTest:
    """Test that a text matches one of the patterns."""

    def missed(value: str | None) -> str:
        return f"{key} is {shown(value)}, not {_alternatives(patterns)}"

    return KeyTest(key, fact, _accepts(patterns), missed)


@lru_cache(maxsize=10_000)  # many matchers have the same patterns, and compiling one takes some 100 microseconds
def _accepts(patterns: tuple[str, ...]) -> Callable[[str | None], object]:
    """Return the function that says whether one of the patterns matches a text. None, an absent text, matches none."""
    if not any(map(is_glob, patterns)):
        return patterns.__contains__ if len(patterns) < 5 else frozenset(patterns).__contains__
    matches = re.compile("|".join(map(translate, patterns))).match
    return lambda text: text is not None and matches(text)


def is_glob(pattern: str) -> bool:
    """True if the pattern may match another text than itself."""
    return any(sign in pattern for sign in "*?[")


def parent_test(wanted: str) -> KeyTest:
    """Test that there is a parent (`any`), or none (`none`)."""
    return KeyTest(
        "parent",
        FACTS["parent"],
        lambda parent: (parent is None) == (wanted == "none"),
        lambda parent: f"parent is {shown(parent)}, not {wanted}",
    )


def duration_test(longer_than: timedelta | None, shorter_than: timedelta | None) -> KeyTest:
    """Test that the execution ran for longer than the one, and shorter than the other."""

    def wanted(duration: timedelta | None) -> bool:
        return (
            duration is not None
            and (longer_than is None or duration > longer_than)
            and (shorter_than is None or duration < shorter_than)
        )

    def missed(duration: timedelta | None) -> str:
        limits = (("longer", longer_than), ("shorter", shorter_than))
        wish = joined([f"{word} than {limit}" for word, limit in limits if limit is not None], "and")
        return f"duration is {shown(duration)}, not {wish}"

    return KeyTest("duration", FACTS["duration"], wanted, missed)


def message_test(expression: str) -> KeyTest:
    """Test that the error's message has a part that matches the regular expression."""
    search = compiled(expression)

    def missed(message: str | None) -> str:
        return f"error.message {'is absent, not' if message is None else 'does not match'} {shown(expression)}"

    return KeyTest("error.message", FACTS["error.message"], lambda text: text is not None and search(text), missed)


@lru_cache(maxsize=10_000)
def compiled(expression: str) -> Callable[[str], bool]:
    """Return the function that searches for a regular expression in a text, in linear time.

    Raises ValueError if RE2 can't read the expression, or if a search could take too long.
    """
    import re2  # noqa: PLC0415 - only matchers with a message need it

    options = re2.Options()
    options.never_capture, options.log_errors, options.max_mem = True, False, MAX_EXPRESSION_MEMORY
    try:
        found = re2.compile(expression.encode(), options)
    except re2.error as error:
        raise ValueError(f"no regular expression that RE2 can read: {_words(error)}") from None
    if found.programsize > MAX_EXPRESSION_STEPS:
        raise ValueError(r"an expression that takes too long: use smaller repetitions {m,n}, or fewer \p{…}")

    def search(text: str) -> bool:
        parts = [text] if len(text) <= 2 * SEARCHED else [text[:SEARCHED], text[-SEARCHED:]]
        return any(found.search(part.encode(errors="replace")) for part in parts)

    return search


def _words(error: Exception) -> str:
    """Return the words of an error of re2, which has bytes in place of text."""
    (words,) = error.args
    return words.decode(errors="replace") if isinstance(words, bytes) else str(words)


def shown(value: object) -> str:
    """Return a value as reasons show it; None as `absent`."""
    if value is None:
        return "absent"
    text = str(value)
    return f"{text[:_SHOWN]}…" if len(text) > _SHOWN else text or "empty"


def _alternatives(patterns: Sequence[str]) -> str:
    first = [shown(pattern) for pattern in patterns[:_SHOWN_PATTERNS]]
    more = len(patterns) - len(first)
    return joined([*first, f"one of {more} more"] if more else first, "or")


def joined(words: Sequence[str], conjunction: str) -> str:
    """Return, for example, `a, b and c`. There is at least one word."""
    *others, last = words
    return f"{', '.join(others)} {conjunction} {last}" if others else last
