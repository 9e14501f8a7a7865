"""The tests that a matcher's keys make: whether a fact of an event is as the key wants it, and what it missed by."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from fnmatch import translate
from functools import lru_cache
from typing import Any, NamedTuple

from dispatcher.parsing.duration import duration_text
from dispatcher.rules.facts import FACTS, Fact

MAX_EXPRESSION_MEMORY = 2**18
"""Maximum number of bytes of a compiled regular expression and its states. Most need a few thousand."""
MAX_EXPRESSION_STEPS = 2000
"""Maximum number of instructions of a compiled regular expression. A search takes at most about this number of steps for
each byte."""
SEARCHED = 16 * 1024
"""A regular expression is searched for in this many characters of an error message's beginning, and of its end."""
MAX_GLOB_CHARACTERS = 10_000
"""Maximum number of characters of the patterns of one key that have `*`, `?` or `[`. Compiling them takes 0.1 s."""
SEEN = 256
"""Of a longer text than twice this number of characters, patterns with `*`, `?` or `[` see this many characters of its
beginning, and of its end. Flyte's names have fewer; a label of another workflow engine may have megabytes."""
_SHOWN = 60
"""Maximum number of characters of a value in a reason."""
_SHOWN_PATTERNS = 5
GLOB_CHARACTERS_PER_PATTERN = 10


class KeyTest(NamedTuple):
    """The test that one key makes."""

    key: str
    """The key as files write it, such as `domain` or `labels.team`."""
    fact: Fact
    wanted: Callable[[Any], object]
    """Returns something true if the fact is as the key wants it. Not called if the fact is UNKNOWN."""
    missed: Callable[[Any], str]
    """Returns a sentence about a fact that is not as the key wants it."""
    patterns: int = 1
    """The number of its patterns. A long one with `*`, `?` or `[` counts more often."""
    steps: int = 0
    """The number of instructions of its regular expression."""


def text_test(key: str, fact: Fact, patterns: tuple[str, ...]) -> KeyTest:
    """Test that a text matches one of the patterns."""

    def missed(value: str | None) -> str:
        return f"{key} is {shown(value)}, not {alternatives(patterns)}"

    size = (
        len(patterns) + sum([len(pattern) for pattern in patterns if is_glob(pattern)]) // GLOB_CHARACTERS_PER_PATTERN
    )
    return KeyTest(key, fact, _accepts(patterns), missed, size)


@lru_cache(maxsize=10_000)  # many matchers have the same patterns, and compiling one takes some 100 microseconds
def _accepts(patterns: tuple[str, ...]) -> Callable[[str | None], object]:
    """Return the function that says whether one of the patterns matches a text. None, an absent text, matches none.

    Raises ValueError if the patterns are too long.
    """
    globs = [pattern for pattern in patterns if is_glob(pattern)]
    if not globs:
        return patterns.__contains__ if len(patterns) < 5 else frozenset(patterns).__contains__
    if sum(map(len, globs)) > MAX_GLOB_CHARACTERS:
        raise ValueError(f"its patterns with *, ? or [ may have {MAX_GLOB_CHARACTERS:,} characters together")
    plain = frozenset(patterns).difference(globs)
    matches = re.compile("|".join(map(translate, globs))).match

    def accepts(text: str | None) -> object:
        return text is not None and (text in plain or matches(seen(text)))

    return accepts


def seen(text: str) -> str:
    """Return the part of a text that patterns with `*`, `?` or `[` see."""
    return text if len(text) <= 2 * SEEN else text[:SEEN] + text[-SEEN:]


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
        wish = joined([f"{word} than {duration_text(limit)}" for word, limit in limits if limit is not None], "and")
        return f"duration is {shown(None if duration is None else duration_text(duration))}, not {wish}"

    return KeyTest("duration", FACTS["duration"], wanted, missed)


def message_test(expression: str) -> KeyTest:
    """Test that the error's message has a part that matches the regular expression."""
    search, steps = compiled(expression)

    def missed(message: str | None) -> str:
        return f"error.message {'is absent, not' if message is None else 'does not match'} {shown(expression)}"

    def wanted(message: str | None) -> bool:
        return message is not None and search(message)

    return KeyTest("error.message", FACTS["error.message"], wanted, missed, steps=steps)


@lru_cache(maxsize=10_000)
def compiled(expression: str, *, whole: bool = False) -> tuple[Callable[[str], bool], int]:
    """Return the function that searches for a regular expression in a text, in linear time, and its number of steps.
    `whole`: the expression must match the whole text, which is short.

    Raises ValueError if RE2 can't read the expression, or if a search could take too long.
    """
    import re2  # noqa: PLC0415 - only matchers with a message need it

    options = re2.Options()
    options.never_capture, options.log_errors, options.max_mem = True, False, MAX_EXPRESSION_MEMORY
    try:
        found = re2.compile(expression.encode(), options)
    except re2.error as error:
        raise ValueError(f"not a regular expression that RE2 can read: {_words(error)}") from None
    if found.programsize > MAX_EXPRESSION_STEPS:
        raise ValueError(r"an expression that takes too long: use smaller repetitions {m,n}, or fewer \p{…}")

    find = found.fullmatch if whole else found.search

    def search(text: str) -> bool:
        if len(text) <= 2 * SEARCHED:
            return find(text.encode(errors="replace")) is not None
        return search(text[:SEARCHED]) or search(text[-SEARCHED:])

    return search, found.programsize


def _words(error: Exception) -> str:
    """Return the words of an error of re2, which has bytes in place of text."""
    (words,) = error.args
    return shown(words.decode(errors="replace") if isinstance(words, bytes) else words)


def shown(value: object) -> str:
    """Return a value as reasons show it; None as `absent`."""
    if value is None:
        return "absent"
    text = str(value)
    return f"{text[:_SHOWN]}…" if len(text) > _SHOWN else text or "empty"


def alternatives(patterns: Sequence[str]) -> str:
    """Return patterns as sentences show them, for example `a, b or c`; the first of very many."""
    first = [shown(pattern) for pattern in patterns[:_SHOWN_PATTERNS]]
    more = len(patterns) - len(first)
    return joined([*first, f"one of {more} more"] if more else first, "or")


def joined(words: Sequence[str], conjunction: str) -> str:
    """Return, for example, `a, b and c`. There is at least one word."""
    *others, last = words
    return f"{', '.join(others)} {conjunction} {last}" if others else last
