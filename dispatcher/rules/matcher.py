"""Matchers: which events something is for. Routes, silences, template sets and severities use them. Does no I/O.

All keys of a matcher must hold. A fact that isn't known (`facts`) makes the result unknown, unless another key does not
hold (Kleene's three-valued logic). So an unknown fact matches nothing, and neither does it under `not`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cached_property, partial
from itertools import chain
from operator import itemgetter
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, model_validator

from dispatcher.model.event import MODES, Event
from dispatcher.model.phase import Phase
from dispatcher.parsing.duration import Duration
from dispatcher.parsing.nearest import nearest
from dispatcher.parsing.scalars import why_not_text
from dispatcher.rules.facts import ALWAYS_KNOWN, FACTS, IN_EVENTS_OF_FAILURES, UNKNOWN, label
from dispatcher.rules.key_tests import (
    KeyTest,
    compiled,
    duration_test,
    is_glob,
    joined,
    message_test,
    parent_test,
    text_test,
)

MAX_PATTERN = 1000
"""Maximum number of characters of a pattern, of a label's name and of a regular expression."""
MAX_PATTERNS = 1000
"""Maximum number of patterns of one key."""
MAX_LABELS = 100
_TEXT_KEYS = ("phase", "project", "domain", "launch_plan", "workflow", "version", "principal", "mode")
"""The keys that have patterns, or phases. Those that cost least come first."""
_NAMES = ("launch_plan", "workflow")
_INDEXED = (*_NAMES, "project")
"""The keys that matchers are found by, the most selective first."""
_ERROR_KINDS = ("UNKNOWN", "USER", "SYSTEM")

T = TypeVar("T")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _texts(value: Any) -> Any:
    if not isinstance(value, str | list | tuple):
        raise ValueError(why_not_text(value) or "must be text, or a list of texts")  # noqa: TRY004 - pydantic's contract
    return _as_list(value)


def _few_labels(value: Any) -> Any:
    """Refuse too many labels before each of them is validated."""
    if isinstance(value, dict) and len(value) > MAX_LABELS:
        raise ValueError(f"must have at most {MAX_LABELS} labels, not {len(value):,}")
    return value


def _phase(value: Any) -> Phase:
    phase = Phase.parse(value)
    if not phase.terminal:
        raise ValueError(f"{phase} is not a terminal phase: write SUCCEEDED, FAILED, ABORTED or TIMED_OUT")
    return phase


def _one_of(values: Sequence[str], pattern: str) -> str:
    if not any(fnmatchcase(value, pattern) for value in values):
        raise ValueError(f"{pattern!r} matches no value: {nearest(pattern, values)}")
    return pattern


def expression(text: str) -> str:
    """Return a regular expression. Raises ValueError if RE2 can't read it, or if a search could take too long."""
    compiled(text)
    return text


_Texts = BeforeValidator(_texts)
_Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN)]
_LabelPattern = Annotated[str, Field(max_length=MAX_PATTERN)]
_Size = Field(min_length=1, max_length=MAX_PATTERNS)
_ToFirstMistake = FailFast()
"""Lists end at their first mistake, because a file may have a million of them."""

Patterns = Annotated[tuple[_Pattern, ...], _ToFirstMistake, _Texts, _Size]
"""One pattern, or a list of patterns, at least one of which must match. In a pattern `*` matches any text, `?` one
character, and `[ab]` the letter a or b. Upper and lower case differ."""
Phases = Annotated[
    tuple[Annotated[Phase, BeforeValidator(_phase)], ...], _ToFirstMistake, BeforeValidator(_as_list), _Size
]
_LabelPatterns = Annotated[tuple[_LabelPattern, ...], _ToFirstMistake, _Texts, _Size]
_Labels = Annotated[Mapping[_Pattern, _LabelPatterns], Field(min_length=1), BeforeValidator(_few_labels)]
_Modes = Annotated[
    tuple[Annotated[_Pattern, AfterValidator(partial(_one_of, MODES))], ...], _ToFirstMistake, _Texts, _Size
]
_Kinds = Annotated[
    tuple[Annotated[_Pattern, AfterValidator(partial(_one_of, _ERROR_KINDS))], ...], _ToFirstMistake, _Texts, _Size
]


class _Keys(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorKeys(_Keys):
    """Which errors. An execution that succeeded has none."""

    kind: _Kinds = ()
    """USER, SYSTEM or UNKNOWN, or several of them."""
    code: Patterns = ()
    """Patterns for the error's code, such as `USER:*`."""
    message: Annotated[_Pattern, AfterValidator(expression)] | None = None
    """Regular expression in RE2's syntax, which must match a part of the message. `(?i)` at its beginning: upper and
    lower case count as equal. `(?s)`: a dot also matches a line break."""

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if not (self.kind or self.code or self.message):
            raise ValueError("is empty: give kind, code or message")
        return self

    def tests(self) -> Iterator[KeyTest]:
        """Yield the tests of the keys that are given."""
        for key, patterns in (("error.kind", self.kind), ("error.code", self.code)):
            if patterns:
                yield text_test(key, FACTS[key], patterns)
        if self.message is not None:
            yield message_test(self.message)


class DurationKeys(_Keys):
    """How long the execution ran."""

    longer_than: Duration | None = Field(None, ge=timedelta())
    """The execution must have run for longer."""
    shorter_than: Duration | None = Field(None, gt=timedelta())
    """The execution must have ended sooner."""

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.longer_than is None and self.shorter_than is None:
            raise ValueError("is empty: give longer_than or shorter_than")
        if self.longer_than is not None and self.shorter_than is not None and self.longer_than >= self.shorter_than:
            raise ValueError("longer_than must be shorter than shorter_than, or no execution matches")
        return self


def all_hold(tests: Iterable[KeyTest], event: Event) -> bool | None:
    """Return whether an event passes all tests; None if that isn't known, because it lacks a fact."""
    result: bool | None = True
    for _, fact, wanted, *_ in tests:
        value = fact(event)
        if value is UNKNOWN:
            result = None
        elif not wanted(value):
            return False
    return result


def missed_tests(tests: Iterable[KeyTest], event: Event) -> tuple[str, ...]:
    """Return a sentence for each test that an event does not pass."""
    values = [(test, test.fact(event)) for test in tests]
    return tuple([test.missed(value) for test, value in values if value is not UNKNOWN and not test.wanted(value)])


class Conditions(_Keys):
    """Keys that must all hold for an event."""

    project: Patterns = ()
    """Patterns for the execution's project."""
    domain: Patterns = ()
    """Patterns for the execution's domain."""
    launch_plan: Patterns = ()
    """Patterns for the launch plan's name. An execution of a single task has no launch plan."""
    workflow: Patterns = ()
    """Patterns for the workflow's name."""
    version: Patterns = ()
    """Patterns for the launch plan's version."""
    phase: Phases = ()
    """SUCCEEDED, FAILED, ABORTED or TIMED_OUT, or several of them."""
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
    def _tests(self) -> tuple[KeyTest, ...]:
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

    def tests_beside(self, *keys: str) -> tuple[KeyTest, ...]:
        """Return the tests of all other keys."""
        return tuple(test for test in self._tests if test.key not in keys)

    @property
    def keys(self) -> frozenset[str]:
        """The keys that are given, as files write them."""
        return frozenset(key.partition(".")[0] for key in self.tested)

    @property
    def patterns(self) -> int:
        """The number of its patterns, as `KeyTest` counts them."""
        return sum([test.patterns for test in self._tests])

    @property
    def steps(self) -> int:
        """The number of instructions of its regular expressions."""
        return sum([test.steps for test in self._tests])

    def holds(self, event: Event) -> bool | None:
        """Return whether all keys hold; None if that isn't known, because the event lacks a fact."""
        return all_hold(self._tests, event)

    def test(self, event: Event) -> Outcome:
        """Return whether all keys hold, and why."""
        return Outcome(self.holds(event), self, event)

    def exact(self, key: str) -> frozenset[str] | None:
        """Return the values that a key with patterns, or `phase`, accepts.

        None if the key is not given, or if one of its patterns has `*`, `?` or `[`.
        """
        patterns: tuple[str, ...] = getattr(self, key)
        return frozenset(patterns) if patterns and not any(map(is_glob, patterns)) else None

    def missed(self, event: Event) -> tuple[str, ...]:
        """Return a sentence for each key that does not hold, such as `domain is staging, not production`."""
        return missed_tests(self._tests, event)

    def unknown(self, event: Event) -> tuple[str, ...]:
        """Return the keys whose facts the event lacks."""
        return tuple(test.key for test in self._tests if test.fact(event) is UNKNOWN)

    def _make_tests(self) -> Iterator[KeyTest]:
        for key in _TEXT_KEYS:
            if patterns := getattr(self, key):
                yield text_test(key, FACTS[key], patterns)
        for name, patterns in self.labels.items():
            yield text_test(f"labels.{name}", label(name), patterns)
        if self.parent is not None:
            yield parent_test(self.parent)
        if self.duration is not None:
            yield duration_test(self.duration.longer_than, self.duration.shorter_than)
        if self.error is not None:
            yield from self.error.tests()


class Matcher(Conditions):
    """Keys that must all hold for an event, and keys that must not all hold."""

    not_: Conditions | None = Field(None, alias="not")
    """Keys that must not all hold."""

    def keys_needing_admin(self) -> frozenset[str]:
        """Return the keys whose facts Flyte's own events may lack, so that FlyteAdmin must be asked."""
        given = self.keys | (self.not_.keys if self.not_ is not None else frozenset())
        has_error = bool(self.phase) and Phase.ABORTED not in self.phase
        return given - {"not"} - ALWAYS_KNOWN - (IN_EVENTS_OF_FAILURES if has_error else frozenset())

    def _make_tests(self) -> Iterator[KeyTest]:
        yield from super()._make_tests()
        if self.not_ is not None:
            reason = _matched(self.not_)
            missed = f"excluded by not: {reason}"
            size = self.not_.patterns, self.not_.steps
            yield KeyTest("not", partial(_holds, self.not_), operator.not_, lambda _: missed, *size)

    def unknown(self, event: Event) -> tuple[str, ...]:
        keys = super().unknown(event)
        if self.not_ is None or "not" not in keys:
            return keys
        return (*(key for key in keys if key != "not"), *(f"not.{key}" for key in self.not_.unknown(event)))


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
                f"{joined(self.unknown, 'and')} {verb} known: "
                "neither the event nor FlyteAdmin (rules.flyte_admin) says it"
            )
        if not self.holds:
            return "; ".join(self.missed)
        return _matched(self.matcher)


_Candidate = tuple[T, tuple[KeyTest, ...]]
"""An entry's value, and the tests that remain: all but those of the phase and of the key by which the matcher is found."""
_Table = dict[tuple[str, str, str], list[tuple[int, _Candidate[T]]]]
"""Mapping from a key, one of its values and a phase to candidates, each with its place among all entries."""
_ANY = frozenset({""})


class Index(Generic[T]):
    """Finds the matchers that may hold for an event, without testing each.

    A matcher is found by its phases and by one key whose patterns are all plain text: its launch plans, its workflows or
    its projects. A matcher without such a key may hold for every event of its phases.
    """

    def __init__(self, entries: Iterable[tuple[Conditions, T]]) -> None:
        """`entries`: the matchers, each with the value that is returned for it."""
        self._entries: _Table[T] = {}
        self._if_unknown: _Table[T] = {}
        """The entries of matchers of launch plans or workflows, by project, for events that don't name theirs."""
        for place, (matcher, value) in enumerate(entries):
            phases = [phase.value for phase in set(matcher.phase) or Phase]
            exact = ((key, texts) for key in _INDEXED if (texts := matcher.exact(key)) is not None)
            key, texts = next(exact, ("", _ANY))
            entry = (place, (value, matcher.tests_beside("phase", key)))
            _add(self._entries, key, texts, phases, entry)
            if key in _NAMES:
                _add(self._if_unknown, key, matcher.exact("project") or _ANY, phases, entry)
        self._names = [name for name in _NAMES if any(key == name for key, _, _ in self._entries)]

    def candidates(self, event: Event) -> list[_Candidate[T]]:
        """Return the values of the matchers that may hold, in the order of the entries. None of the others holds.

        A matcher holds if the event passes the tests beside its value (`all_hold`).
        """
        phase, entries = event.phase.value, self._entries
        keys = [("project", event.execution.project, phase), ("", "", phase)]
        keys += [(name, FACTS[name](event), phase) for name in self._names]
        lists = [entries[key] for key in keys if key in entries]
        if not lists:
            return []
        ordered = lists[0] if len(lists) == 1 else sorted(chain(*lists), key=itemgetter(0))
        return [candidate for _, candidate in ordered]

    def undecidable(self, event: Event) -> Iterable[T]:
        """Return the values of the matchers of launch plans or workflows, if the event's isn't known. None of them holds."""
        unknown = [name for name in self._names if FACTS[name](event) is UNKNOWN]
        return self._with_unknown(unknown, event) if unknown else ()

    def _with_unknown(self, names: Sequence[str], event: Event) -> Iterator[T]:
        for name in names:
            for project in (event.execution.project, ""):
                for _, (value, _) in self._if_unknown.get((name, project, event.phase.value), ()):
                    yield value


def _add(
    table: _Table[T], key: str, values: Iterable[str], phases: Sequence[str], entry: tuple[int, _Candidate[T]]
) -> None:
    for value in values:
        for phase in phases:
            table.setdefault((key, value, phase), []).append(entry)


def _holds(excluded: Conditions, event: Event) -> Any:
    """Return the fact that the key `not` tests: whether all keys below it hold."""
    holds = excluded.holds(event)
    return UNKNOWN if holds is None else holds


def _matched(matcher: Conditions) -> str:
    """Return, for example, `project and phase match`."""
    keys = [key for key in matcher.tested if key != "not"]
    return f"{joined(keys, 'and')} {'matches' if len(keys) == 1 else 'match'}" if keys else "nothing of not matches"
