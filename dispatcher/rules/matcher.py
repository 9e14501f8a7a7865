"""Matchers: which events something is for. Routes, template sets and severities use them. Does no I/O.

All keys of a matcher must hold. A fact that isn't known (`facts`) makes the result unknown, unless another key does not
hold (Kleene's three-valued logic). So an unknown fact matches nothing, and neither does it under `not`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import fnmatchcase, translate
from functools import cached_property, lru_cache, partial
from itertools import chain
from operator import itemgetter
from typing import Annotated, Any, Generic, Literal, NamedTuple, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dispatcher.model.event import MODES, Event, ExecutionId
from dispatcher.model.phase import Phase
from dispatcher.parsing.duration import Duration
from dispatcher.parsing.nearest import nearest
from dispatcher.parsing.scalars import why_not_text
from dispatcher.rules.facts import ALWAYS_KNOWN, FACTS, UNKNOWN, Fact, label

MAX_PATTERN = 1000
"""Maximum number of characters of a pattern, of a label's name and of a regular expression."""
MAX_PATTERNS = 1000
"""Maximum number of patterns of one key."""
MAX_LABELS = 100
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
_ERROR_KINDS = ("UNKNOWN", "USER", "SYSTEM")

T = TypeVar("T")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _texts(value: Any) -> Any:
    if not isinstance(value, str | list | tuple):
        raise ValueError(why_not_text(value) or "must be text, or a list of texts")  # noqa: TRY004 - pydantic's contract
    return _as_list(value)


def _phase(value: Any) -> Phase:
    phase = Phase.parse(value)
    if not phase.terminal:
        raise ValueError(f"{phase} is not a terminal phase: write SUCCEEDED, FAILED, ABORTED or TIMED_OUT")
    return phase


def _one_of(values: Sequence[str], pattern: str) -> str:
    if not any(fnmatchcase(value, pattern) for value in values):
        raise ValueError(f"{pattern!r} matches no value: {nearest(pattern, values)}")
    return pattern


def _expression(text: str) -> str:
    _compiled(text)
    return text


_Texts = BeforeValidator(_texts)
_Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN)]
_LabelPattern = Annotated[str, Field(max_length=MAX_PATTERN)]
_Size = Field(min_length=1, max_length=MAX_PATTERNS)

Patterns = Annotated[tuple[_Pattern, ...], _Texts, _Size]
"""One pattern, or a list of patterns, at least one of which must match. In a pattern `*` matches any text, `?` one
character, and `[ab]` the letter a or b. Upper and lower case differ."""
Phases = Annotated[tuple[Annotated[Phase, BeforeValidator(_phase)], ...], BeforeValidator(_as_list), _Size]
_LabelPatterns = Annotated[tuple[_LabelPattern, ...], _Texts, _Size]
_Labels = Annotated[Mapping[_Pattern, _LabelPatterns], Field(min_length=1, max_length=MAX_LABELS)]
_Modes = Annotated[tuple[Annotated[_Pattern, AfterValidator(partial(_one_of, MODES))], ...], _Texts, _Size]
_Kinds = Annotated[tuple[Annotated[_Pattern, AfterValidator(partial(_one_of, _ERROR_KINDS))], ...], _Texts, _Size]


class _Keys(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorKeys(_Keys):
    """Which errors. An execution that succeeded has none."""

    kind: _Kinds = ()
    """USER, SYSTEM or UNKNOWN."""
    code: Patterns = ()
    message: Annotated[_Pattern, AfterValidator(_expression)] | None = None
    """Regular expression in RE2's syntax, which must match a part of the message. `(?i)` at its beginning: upper and
    lower case count as equal. `(?s)`: a dot also matches a line break."""

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if not (self.kind or self.code or self.message):
            raise ValueError("is empty: give kind, code or message")
        return self


class DurationKeys(_Keys):
    """How long the execution ran."""

    longer_than: Duration | None = Field(None, ge=timedelta())
    shorter_than: Duration | None = Field(None, gt=timedelta())

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.longer_than is None and self.shorter_than is None:
            raise ValueError("is empty: give longer_than or shorter_than")
        if self.longer_than is not None and self.shorter_than is not None and self.longer_than >= self.shorter_than:
            raise ValueError("longer_than must be shorter than shorter_than, or no execution matches")
        return self


class _Test(NamedTuple):
    """The test that one key makes."""

    key: str
    fact: Fact
    wanted: Callable[[Any], object]
    """Returns something true if the fact is as the key wants it. Not called if the fact is UNKNOWN."""
    missed: Callable[[Any], str]
    """Returns a sentence about a fact that is not as the key wants it."""


class Conditions(_Keys):
    """Keys that must all hold for an event."""

    project: Patterns = ()
    domain: Patterns = ()
    launch_plan: Patterns = ()
    """Patterns for the launch plan's name. An execution of a single task has no launch plan."""
    workflow: Patterns = ()
    """Patterns for the workflow's name."""
    version: Patterns = ()
    """Patterns for the launch plan's version."""
    phase: Phases = ()
    labels: _Labels = Field(default_factory=dict)
    """Mapping from a label's name to a pattern or a list of patterns. The execution must have each of these labels, with
    a matching value."""
    principal: Patterns = ()
    """Patterns for who started the execution, as FlyteAdmin names them."""
    mode: _Modes = ()
    """How the execution was started: manual, scheduled, system, relaunch, child, recovered or trigger."""
    parent: Literal["none", "any"] | None = None
    """`any`: another execution started this one. `none`: no other execution did."""
    error: ErrorKeys | None = None
    duration: DurationKeys | None = None

    @cached_property  # not a private attribute, which pydantic finds slowly
    def _tests(self) -> tuple[_Test, ...]:
        return tuple(self._make_tests())

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if not self._tests:
            raise ValueError("has no key, so it would match every event: give at least one")
        return self

    @property
    def tested(self) -> tuple[str, ...]:
        """The keys that are given, each label and each key of `error` for itself, such as `labels.team`."""
        return tuple(test.key for test in self._tests)

    @property
    def keys(self) -> frozenset[str]:
        """The keys that are given, as files write them."""
        return frozenset(key.partition(".")[0] for key in self.tested)

    def holds(self, event: Event) -> bool | None:
        """Return whether all keys hold; None if that isn't known, because the event lacks a fact."""
        result: bool | None = True
        for _, fact, wanted, _ in self._tests:
            value = fact(event)
            if value is UNKNOWN:
                result = None
            elif not wanted(value):
                return False
        return result

    def test(self, event: Event) -> Outcome:
        """Return whether all keys hold, and why."""
        return Outcome(self.holds(event), self, event)

    def exact(self, key: str) -> frozenset[str] | None:
        """Return the values that a key with patterns, or `phase`, accepts.

        None if the key is not given, or if one of its patterns has `*`, `?` or `[`.
        """
        patterns: tuple[str, ...] = getattr(self, key)
        return frozenset(patterns) if patterns and not any(map(_is_glob, patterns)) else None

    def missed(self, event: Event) -> tuple[str, ...]:
        """Return a sentence for each key that does not hold, such as `domain is staging, not production`."""
        return tuple(
            test.missed(value)
            for test in self._tests
            if (value := test.fact(event)) is not UNKNOWN and not test.wanted(value)
        )

    def unknown(self, event: Event) -> tuple[str, ...]:
        """Return the keys whose facts the event lacks."""
        return tuple(test.key for test in self._tests if test.fact(event) is UNKNOWN)

    def _make_tests(self) -> Iterator[_Test]:
        for key in _TEXT_KEYS:
            if patterns := getattr(self, key):
                yield _text_test(key, FACTS[key], patterns)
        for name, patterns in self.labels.items():
            yield _text_test(f"labels.{name}", label(name), patterns)
        if self.parent is not None:
            yield _parent_test(self.parent)
        if self.duration is not None:
            yield _duration_test(self.duration)
        if self.error is not None:
            yield from _error_tests(self.error)


class Matcher(Conditions):
    """Keys that must all hold for an event, and keys that must not all hold."""

    not_: Conditions | None = Field(None, alias="not")
    """Keys that must not all hold."""

    def keys_needing_admin(self) -> frozenset[str]:
        """Return the keys whose facts Flyte's own events may lack, so that FlyteAdmin must be asked.

        Of Flyte's events with an error, only those of aborted executions lack it.
        """
        given = self.keys | (self.not_.keys if self.not_ is not None else frozenset())
        has_error = {"error"} if self.phase and Phase.ABORTED not in self.phase else set()
        return given - ALWAYS_KNOWN - has_error - {"not"}

    def _make_tests(self) -> Iterator[_Test]:
        yield from super()._make_tests()
        if self.not_ is not None:
            yield _not_test(self.not_)

    def unknown(self, event: Event) -> tuple[str, ...]:
        excluded = () if self.not_ is None else tuple(f"not.{key}" for key in self.not_.unknown(event))
        return tuple(key for key in super().unknown(event) if key != "not") + excluded


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a matcher's keys hold for an event. The reasons are made when they are read."""

    holds: bool | None
    """None if it isn't known, because the event lacks a fact."""
    matcher: Conditions = field(repr=False)
    event: Event = field(repr=False)

    @property
    def missed(self) -> tuple[str, ...]:
        """A sentence for each key that does not hold."""
        return self.matcher.missed(self.event)

    @property
    def unknown(self) -> tuple[str, ...]:
        """The keys whose facts aren't known, whether or not another key decides."""
        return self.matcher.unknown(self.event)

    @property
    def reason(self) -> str:
        """Why the matcher holds, what it missed by, or which facts aren't known."""
        if self.holds is None:
            verb = "isn't" if len(self.unknown) == 1 else "aren't"
            return (
                f"{_joined(self.unknown, 'and')} {verb} known: "
                "neither the event nor FlyteAdmin (rules.flyte_admin) says it"
            )
        if not self.holds:
            return "; ".join(self.missed)
        return _matched(self.matcher)


class Index(Generic[T]):
    """Finds the matchers that may hold for an event, without testing each.

    A matcher is found by its phases and by one key whose patterns are all plain text: its launch plans, its workflows or
    its projects. A matcher without such a key may hold for every event of its phases.
    """

    def __init__(self, entries: Iterable[tuple[Conditions, T]]) -> None:
        """`entries`: the matchers, each with the value that `candidates` returns for it."""
        self._entries: dict[tuple[str, str, str], list[tuple[int, T]]] = {}
        """Mapping from a key, its value and a phase to entries with their places."""
        self._if_unknown: dict[tuple[str, str, str], list[tuple[int, T]]] = {}
        """Mapping from a key whose fact isn't known, a project (or an empty text for any) and a phase to entries."""
        for place, (matcher, value) in enumerate(entries):
            key = next((key for key in _INDEXED if matcher.exact(key) is not None), "")
            projects = matcher.exact("project") or {""}
            for phase in set(matcher.phase) or Phase:
                for text in matcher.exact(key) or {""} if key else {""}:
                    self._entries.setdefault((key, text, phase.value), []).append((place, value))
                if key in _NAMES:
                    for project in projects:
                        self._if_unknown.setdefault((key, project, phase.value), []).append((place, value))
        self._names = [name for name in _NAMES if any(key == name for key, _, _ in self._entries)]

    def candidates(self, event: Event) -> list[T]:
        """Return the values of the matchers that may hold, in the order of the entries. All others do not hold.

        A matcher whose result isn't known may hold.
        """
        project, phase = event.execution.project, event.phase.value
        found = [self._entries.get(("project", project, phase)), self._entries.get(("", "", phase))]
        for name in self._names:
            text = FACTS[name](event)
            if text is UNKNOWN:
                found += [self._if_unknown.get((name, one, phase)) for one in (project, "")]
            else:
                found.append(self._entries.get((name, text, phase)))
        lists = [one for one in found if one is not None]
        ordered = lists[0] if len(lists) == 1 else sorted(chain(*lists), key=itemgetter(0))
        return [value for _, value in ordered]


_TEXT_KEYS = ("phase", "project", "domain", "launch_plan", "workflow", "version", "principal", "mode")
"""The keys that have patterns, or phases. Those that cost least come first."""
_NAMES = ("launch_plan", "workflow")
_INDEXED = (*_NAMES, "project")
"""The keys that matchers are found by, the most selective first."""


def _text_test(key: str, fact: Fact, patterns: tuple[str, ...]) -> _Test:
    def missed(value: str | None) -> str:
        return f"{key} is {_shown(value)}, not {_alternatives(patterns)}"

    return _Test(key, fact, _accepts(patterns), missed)


@lru_cache(maxsize=10_000)  # many matchers have the same patterns, and compiling one takes some 100 microseconds
def _accepts(patterns: tuple[str, ...]) -> Callable[[str | None], object]:
    """Return the function that says whether one of the patterns matches a text. None, an absent text, matches none."""
    if not any(map(_is_glob, patterns)):
        return patterns.__contains__ if len(patterns) < 5 else frozenset(patterns).__contains__
    matches = re.compile("|".join(map(translate, patterns))).match
    return lambda text: text is not None and matches(text)


def _is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def _parent_test(wanted: Literal["none", "any"]) -> _Test:
    def missed(parent: ExecutionId | None) -> str:
        return f"parent is {_shown(parent)}, not {wanted}"

    return _Test("parent", FACTS["parent"], lambda parent: (parent is None) == (wanted == "none"), missed)


def _duration_test(keys: DurationKeys) -> _Test:
    longer, shorter = keys.longer_than, keys.shorter_than

    def wanted(duration: timedelta | None) -> bool:
        return (
            duration is not None and (longer is None or duration > longer) and (shorter is None or duration < shorter)
        )

    def missed(duration: timedelta | None) -> str:
        bounds = [f"longer than {longer}"] * (longer is not None) + [f"shorter than {shorter}"] * (shorter is not None)
        return f"duration is {_shown(duration)}, not {_joined(bounds, 'and')}"

    return _Test("duration", FACTS["duration"], wanted, missed)


def _error_tests(keys: ErrorKeys) -> Iterator[_Test]:
    for key, patterns in (("error.kind", keys.kind), ("error.code", keys.code)):
        if patterns:
            yield _text_test(key, FACTS[key], patterns)
    if keys.message is not None:
        yield _message_test(keys.message)


def _message_test(expression: str) -> _Test:
    search = _compiled(expression)

    def missed(message: str | None) -> str:
        verb = "is absent, and so does not match" if message is None else "does not match"
        return f"error.message {verb} {_shown(expression)}"

    return _Test("error.message", FACTS["error.message"], lambda text: text is not None and search(text), missed)


@lru_cache(maxsize=10_000)
def _compiled(expression: str) -> Callable[[str], bool]:
    """Return the function that searches for a regular expression in a text. Raises ValueError if it is invalid."""
    import re2  # noqa: PLC0415 - only matchers with a message need it

    options = re2.Options()
    options.never_capture, options.log_errors, options.max_mem = True, False, MAX_EXPRESSION_MEMORY
    try:
        compiled = re2.compile(expression.encode(), options)
    except UnicodeEncodeError:
        raise ValueError("an expression with half a character (a lone surrogate)") from None
    except re2.error as error:
        raise ValueError(f"no regular expression that RE2 can read: {_words(error)}") from None
    if compiled.programsize > MAX_EXPRESSION_STEPS:
        raise ValueError("an expression that takes too long: use smaller repetitions {m,n} and fewer \\p{…}")

    def search(text: str) -> bool:
        parts = [text] if len(text) <= 2 * SEARCHED else [text[:SEARCHED], text[-SEARCHED:]]
        return any(compiled.search(part.encode(errors="replace")) for part in parts)

    return search


def _not_test(excluded: Conditions) -> _Test:
    def fact(event: Event) -> Any:
        holds = excluded.holds(event)
        return UNKNOWN if holds is None else holds

    return _Test("not", fact, operator.not_, lambda _: f"excluded by not: {_matched(excluded)}")


def _matched(matcher: Conditions) -> str:
    """Return, for example, `project and phase match`."""
    keys = [key for key in matcher.tested if key != "not"]
    return f"{_joined(keys, 'and')} {'matches' if len(keys) == 1 else 'match'}" if keys else "nothing of not matches"


def _shown(value: object) -> str:
    if value is None:
        return "absent"
    text = str(value)
    return f"{text[:_SHOWN]}…" if len(text) > _SHOWN else text or "empty"


def _alternatives(patterns: Sequence[str]) -> str:
    shown = [_shown(pattern) for pattern in patterns[:_SHOWN_PATTERNS]]
    more = len(patterns) - len(shown)
    return _joined([*shown, f"one of {more} more"] if more else shown, "or")


def _joined(words: Sequence[str], conjunction: str) -> str:
    *others, last = words
    return f"{', '.join(others)} {conjunction} {last}" if others else last


def _words(error: Exception) -> str:
    """Return the words of an error of re2, which has bytes in place of text."""
    (words,) = error.args
    return words.decode(errors="replace") if isinstance(words, bytes) else str(words)
