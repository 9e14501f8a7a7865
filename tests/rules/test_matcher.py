"""Matchers: every key against a naive model, the traps of three-valued logic and of patterns, and the index."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dispatcher.model.event import Event, ExecutionError
from dispatcher.model.phase import Phase
from dispatcher.parsing.validation_errors import every_problem
from dispatcher.rules.key_tests import MAX_EXPRESSION_STEPS, SEARCHED
from dispatcher.rules.matcher import Index, Matcher, all_hold
from dispatcher.rules.matcher_words import as_data, in_words
from tests.support.builders import NOW, a_launch_plan, an_event, an_execution
from tests.support.matchers import ABSENT, MATCHERS, UNKNOWN, entity, events


def a_matcher(**keys: Any) -> Matcher:
    return Matcher.model_validate({key.rstrip("_"): value for key, value in keys.items()})


def both(*results: bool | None) -> bool | None:
    """Kleene's conjunction."""
    return False if False in results else None if None in results else True


def model_of(key: str, wanted: Any, known: Mapping[str, Any]) -> bool | None:
    """What a key says, by the naive model."""
    if key == "not":
        inner = both(*(model_of(name, value, known) for name, value in wanted.items()))
        return None if inner is None else not inner
    if key in ("labels", "error"):
        return both(*(model_of(f"{key}.{name}", value, known) for name, value in wanted.items()))
    fact = known[key]
    if fact == UNKNOWN:
        return None
    match key:
        case "parent":
            return bool((fact is ABSENT) == (wanted == "none"))
        case "duration":
            return fact is not ABSENT and wanted["longer_than"] < fact < wanted["shorter_than"]
        case "error.message":
            return fact is not ABSENT and (fact[:1] == "b" if wanted == "^b" else wanted.strip("\\") in fact)
        case _:
            patterns = [wanted] if isinstance(wanted, str) else wanted
            return fact is not ABSENT and any(fnmatchcase(fact, pattern) for pattern in patterns)


@given(events(), MATCHERS)
@settings(max_examples=200)
def test_a_matcher_agrees_with_the_naive_model(found: tuple[Event, dict[str, Any]], data: dict[str, Any]) -> None:
    event, known = found
    expected = both(*(model_of(key, wanted, known) for key, wanted in data.items()))
    outcome = Matcher.model_validate(data).test(event)
    assert outcome.holds is expected
    assert bool(outcome.missed) is (expected is False)
    assert outcome.reason
    if expected is None:
        assert all(key in outcome.reason for key in outcome.unknown)


@given(st.lists(events(), min_size=1, max_size=3), st.lists(MATCHERS, max_size=8))
@settings(max_examples=50)
def test_the_index_leaves_out_only_what_does_not_hold(
    found: list[tuple[Event, dict[str, Any]]], data: list[dict[str, Any]]
) -> None:
    matchers = [Matcher.model_validate(one) for one in data]
    index = Index([(matcher, place) for place, matcher in enumerate(matchers)])
    for event, _ in found:
        candidates, undecidable = dict(index.candidates(event)), {*index.undecidable(event)}
        assert [*candidates] == sorted(place for place, _ in index.candidates(event))
        for place, matcher in enumerate(matchers):
            if place in candidates:
                assert all_hold(candidates[place], event) is matcher.holds(event)
            else:
                assert not matcher.holds(event)
                assert matcher.holds(event) is False or place in undecidable


def test_among_10_000_exact_matchers_an_event_has_few_candidates() -> None:
    def keys(place: int) -> dict[str, Any]:
        name = {"project": f"p{place % 50}"} if place % 2 else {"launch_plan": f"lp{place % 200}"}
        return {**name, "phase": "FAILED", "domain": "production"}

    index = Index([(a_matcher(**keys(place)), place) for place in range(10_000)])
    hit = an_event(launch_plan=a_launch_plan("lp8"))
    candidates = index.candidates(hit)
    assert [place for place, _ in candidates] == [*range(8, 10_000, 200)]
    assert [test.key for test in candidates[0][1]] == ["domain"]
    assert index.candidates(an_event(launch_plan=a_launch_plan("other"))) == []
    assert index.candidates(an_event(Phase.ABORTED, launch_plan=a_launch_plan("lp8"))) == []
    in_project = an_event().model_copy(update={"execution": an_execution(project="p3"), "looked_up": True})
    assert [place for place, _ in index.candidates(in_project)] == [*range(3, 10_000, 50)]
    assert index.candidates(an_event()) == []
    assert len({*index.undecidable(an_event())}) == 5000


LOOKED_UP = an_event(looked_up=True)
LABELLED = an_event(labels={"team": "ml", "tier": "3"})
TASK = an_event(launch_plan=a_launch_plan().model_copy(update={"resource_type": "TASK"}))


@pytest.mark.parametrize(
    ("keys", "event", "holds"),
    [
        ({"not_": {"labels": {"tier": "3"}}}, an_event(), None),
        ({"not_": {"labels": {"tier": "3"}}}, LOOKED_UP, True),
        ({"not_": {"labels": {"tier": "3"}}}, LABELLED, False),
        ({"not_": {"labels": {"squad": "a"}}}, LABELLED, True),  # one label says that all are known
        ({"labels": {"squad": "*"}}, LABELLED, False),
        ({"labels": {"tier": ["1", "[23]"]}}, LABELLED, True),
        ({"labels": {"Team": "ml"}}, LABELLED, False),
        ({"labels": {"team": "ML"}}, LABELLED, False),
        ({"labels": {"a.b/c": ""}}, an_event(labels={"a.b/c": ""}), True),
        ({"labels": {"list": "a, b"}}, an_event(labels={"list": "a, b"}), True),  # a value with a comma is one value
        ({"launch_plan": "*"}, an_event(), None),
        ({"launch_plan": "*"}, LOOKED_UP, False),  # absent matches no pattern
        ({"not_": {"launch_plan": "*"}}, LOOKED_UP, True),
        ({"launch_plan": "train.*"}, TASK, False),  # a task has no launch plan
        ({"not_": {"launch_plan": "train.*"}}, TASK, True),
        ({"version": "v1.*"}, TASK, True),
        ({"parent": "none"}, an_event(), None),
        ({"parent": "none"}, LOOKED_UP, True),
        ({"parent": "any"}, LOOKED_UP, False),
        ({"not_": {"parent": "any"}}, LOOKED_UP, True),
        ({"project": "FLYTESNACKS"}, LOOKED_UP, False),
        ({"project": "flyte"}, LOOKED_UP, False),  # the whole text must match
        ({"project": ["other", "flyte*"]}, LOOKED_UP, True),
        ({"project": "other,flyte*"}, LOOKED_UP, False),
        ({"launch_plan": "a[0]"}, an_event(launch_plan=a_launch_plan("a[0]")), False),  # [0] is a set of characters
        ({"launch_plan": "a[[]0]"}, an_event(launch_plan=a_launch_plan("a[0]")), True),
        ({"launch_plan": "a[0"}, an_event(launch_plan=a_launch_plan("a[0")), True),
        ({"launch_plan": "a*b"}, an_event(launch_plan=a_launch_plan("a\nb")), True),
        ({"launch_plan": "a"}, an_event(launch_plan=a_launch_plan("a\n")), False),
        ({"phase": "failed"}, LOOKED_UP, True),  # phases are read in any case, as everywhere
        ({"phase": "SUCCEEDED", "principal": "x"}, an_event(), False),  # a key that is known decides
        ({"phase": "SUCCEEDED", "not_": {"principal": "x"}}, an_event(), False),
        ({"not_": {"phase": "SUCCEEDED", "principal": "x"}}, an_event(), True),
        ({"not_": {"phase": "FAILED", "principal": "x"}}, an_event(), None),
        ({"error": {"kind": "UNKNOWN"}}, an_event(Phase.SUCCEEDED, error=ExecutionError()), False),
        ({"not_": {"error": {"message": "."}}}, an_event(Phase.SUCCEEDED), True),
        ({"not_": {"error": {"message": "."}}}, an_event(Phase.ABORTED), None),
        ({"error": {"message": "oom"}}, an_event(error=ExecutionError(message="an OOM kill")), False),
        ({"error": {"message": "(?i)oom"}}, an_event(error=ExecutionError(message="an OOM kill")), True),
        ({"error": {"message": "a.b"}}, an_event(error=ExecutionError(message="a\nb")), False),
        ({"error": {"message": "(?s)a.b"}}, an_event(error=ExecutionError(message="a\nb")), True),
        ({"error": {"message": "x"}}, an_event(error=ExecutionError(message="\ud800 x")), True),
        ({"error": {"message": "^.ü$"}}, an_event(error=ExecutionError(message="éü")), True),
        ({"duration": {"longer_than": "1h"}}, an_event(started_at=NOW - timedelta(hours=1)), False),
        ({"duration": {"longer_than": "1h"}}, an_event(started_at=NOW - timedelta(seconds=3601)), True),
        ({"duration": {"shorter_than": "1s"}}, an_event(started_at=NOW + timedelta(hours=1)), True),  # clocks differ
        ({"duration": {"shorter_than": "1s"}}, an_event(), None),
        ({"not_": {"duration": {"shorter_than": "1s"}}}, LOOKED_UP, True),
    ],
)
def test_traps(keys: dict[str, Any], event: Event, holds: bool | None) -> None:
    assert a_matcher(**keys).holds(event) is holds


NOBODY_SAYS_IT = "neither the event nor FlyteAdmin (rules.flyte_admin) says it"


@pytest.mark.parametrize(
    ("keys", "event", "reason"),
    [
        ({"domain": "staging"}, an_event(), "domain is production, not staging"),
        ({"domain": ["a", "b", "c*"], "principal": "x"}, an_event(), "domain is production, not a, b or c*"),
        ({"domain": list("abcdefgh")}, an_event(), "domain is production, not a, b, c, d, e or one of 3 more"),
        ({"domain": "x", "project": "y"}, an_event(), "project is flytesnacks, not y; domain is production, not x"),
        ({"phase": ["ABORTED", "SUCCEEDED"]}, an_event(), "phase is FAILED, not ABORTED or SUCCEEDED"),
        ({"launch_plan": "a"}, LOOKED_UP, "launch_plan is absent, not a"),
        ({"labels": {"team": "web", "tier": "*"}}, LABELLED, "labels.team is ml, not web"),
        ({"labels": {"a": "b"}}, an_event(labels={"a": ""}), "labels.a is empty, not b"),
        ({"labels": {"a": "b"}}, an_event(labels={"a": "x" * 100_000}), f"labels.a is {'x' * 60}…, not b"),
        ({"parent": "any"}, LOOKED_UP, "parent is absent, not any"),
        ({"parent": "none"}, an_event(parent=an_execution("up")), "parent is flytesnacks/production/up, not none"),
        (
            {"duration": {"longer_than": "1h", "shorter_than": "2h"}},
            an_event(started_at=NOW - timedelta(minutes=3)),
            "duration is 3 min, not longer than 1 h and shorter than 2 h",
        ),
        (
            {"error": {"message": "OOM"}},
            an_event(error=ExecutionError(message="secret")),
            "error.message does not match OOM",
        ),
        ({"not_": {"domain": "prod*", "phase": "FAILED"}}, an_event(), "excluded by not: phase and domain match"),
        ({"domain": "prod*", "phase": "FAILED", "not_": {"phase": "ABORTED"}}, an_event(), "phase and domain match"),
        ({"not_": {"phase": "ABORTED"}}, an_event(), "nothing of not matches"),
        (
            {"principal": "x", "not_": {"mode": "child", "labels": {"a": "b"}}},
            an_event(),
            f"principal, not.mode and not.labels.a aren't known: {NOBODY_SAYS_IT}",
        ),
    ],
)
def test_reasons(keys: dict[str, Any], event: Event, reason: str) -> None:
    assert a_matcher(**keys).test(event).reason == reason


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({}, "has no key"),
        ({"not": {}}, "not: has no key"),
        ({"not": {"project": "a", "not": {"domain": "b"}}}, "not.not: unknown option"),
        ({"porject": "a"}, "porject: unknown option"),
        ({"project": []}, "project: must not be empty"),
        ({"project": ["a", ""]}, "project.1: must not be empty"),
        ({"project": None}, "project: must be text, or a list of texts"),
        ({"project": {"a": "b"}}, "project: must be text, or a list of texts"),
        ({"project": ["a"] * 1001}, "project: must have at most 1000"),
        ({"project": "a" * 1001}, "project.0: must have at most 1000 characters"),
        ({"labels": {}}, "labels: must not be empty"),
        ({"labels": {"tier": 3}}, "labels.tier: a number where text is expected: quote it"),
        ({"labels": {"tier": ["1", 2]}}, "labels.tier.1: a number where text is expected: quote it"),
        ({"labels": {str(name): "a" for name in range(101)}}, "labels: must have at most 100"),
        ({"mode": "Scheduled"}, "mode.0: 'Scheduled' matches no value: did you mean scheduled?"),
        ({"phase": "RUNNING"}, "RUNNING is not a terminal phase"),
        ({"phase": "LOST"}, "unknown phase 'LOST'"),
        ({"parent": "some"}, "parent: must be 'none' or 'any'"),
        ({"error": {}}, "error: is empty"),
        ({"error": {"kind": "user"}}, "error.kind.0: 'user' matches no value: did you mean USER?"),
        ({"error": {"message": "("}}, "error.message: not a regular expression that RE2 can read: missing ): ("),
        ({"error": {"message": "(?=a)"}}, "error.message: not a regular expression"),
        ({"error": {"message": r"(a)\1"}}, "error.message: not a regular expression"),
        ({"error": {"message": "a" * 1001}}, "error.message: must have at most 1000 characters"),
        ({"error": {"message": r"(\pL{1,30}x){30}"}}, "error.message: not a regular expression"),
        ({"error": {"message": f"(.{{0,{MAX_EXPRESSION_STEPS // 4}}}a){{2}}"}}, "an expression that takes too long"),
        ({"error": {"message": "\ud800"}}, "error.message"),
        ({"duration": {}}, "duration: is empty"),
        ({"duration": {"longer_than": "soon"}}, "duration.longer_than: 'soon' is not a duration"),
        ({"duration": {"longer_than": "2h", "shorter_than": "2h"}}, "or no execution matches"),
        ({"duration": {"shorter_than": 0}}, "duration.shorter_than"),
    ],
)
def test_what_is_refused(data: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Matcher.model_validate(data)
    assert problem in every_problem(caught.value)


@pytest.mark.parametrize(
    "expression", ["(x+x+)+y", "(x*)*y", "(x|x|x)+y", "x{0,400}y", f"(?i){'x?' * 300}{'x' * 300}y"]
)
def test_an_expression_takes_linear_time_on_a_hostile_message(expression: str) -> None:
    """Python's own `re` would not finish the first of them. A message of 1 MB is searched at both ends."""
    matcher = a_matcher(error={"message": expression})
    event = an_event(error=ExecutionError(message="x" * 1_000_000))
    started = time.process_time()
    assert matcher.holds(event) is False
    assert time.process_time() - started < 2


def test_a_long_message_is_searched_at_its_beginning_and_its_end() -> None:
    matcher = a_matcher(error={"message": "killed"})
    for before, after, holds in ((0, 10**6, True), (10**6, 0, True), (SEARCHED - 3, 10**6, False), (10, 10, True)):
        message = f"{'-' * before}killed{'-' * after}"
        assert matcher.holds(an_event(error=ExecutionError(message=message))) is holds


@pytest.mark.parametrize("pattern", [f"*{'a' * 900}b*", f"*{'[a-z]' * 180}b*", "*a" * 450 + "b", "*" * 900 + "b"])
def test_patterns_end_soon_on_a_label_of_a_megabyte(pattern: str) -> None:
    matcher = a_matcher(labels={"team": [pattern] * 10})
    event = an_event(labels={"team": "a" * 1_000_000})
    started = time.process_time()
    assert matcher.holds(event) is False
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("pattern", "holds"), [("aa*zz", True), ("*", True), ("a*", True), ("*z", True), ("*m*", False), ("[!a]*", False)]
)
def test_patterns_see_the_beginning_and_the_end_of_a_long_text(pattern: str, holds: bool) -> None:
    text = "a" * 300 + "m" + "z" * 300
    assert a_matcher(version=pattern).holds(an_event(launch_plan=entity("lp", text))) is holds
    assert a_matcher(version=[text, "x*"]).holds(an_event(launch_plan=entity("lp", text))) is True


@pytest.mark.parametrize("key", ["project", "phase", "mode"])
def test_a_list_is_read_to_its_first_mistake(key: str) -> None:
    """Listing the mistakes of a list of a million takes gigabytes."""
    with pytest.raises(ValidationError) as caught:
        Matcher.model_validate({key: [1] * 900})
    assert caught.value.error_count() == 1


def test_what_a_matcher_says_of_itself() -> None:
    matcher = a_matcher(
        project=["a", "b"],
        launch_plan="x*",
        phase=["FAILED"],
        error={"code": "OOM"},
        labels={"a": "b"},
        not_={"mode": "child", "domain": "d"},
    )
    assert matcher.keys == {"project", "launch_plan", "phase", "error", "labels", "not"}
    assert matcher.exact("project") == frozenset({"a", "b"})
    assert matcher.exact("launch_plan") is None
    assert matcher.exact("domain") is None
    assert matcher.exact("phase") == frozenset({"FAILED"})
    assert matcher.keys_needing_admin() == {"launch_plan", "labels", "mode"}
    of_all_phases = a_matcher(error={"code": "OOM"})
    assert of_all_phases.keys_needing_admin() == {"error"}, "Flyte's events of aborts have no error"


@given(MATCHERS)
def test_a_matcher_shown_as_data_is_the_same_matcher_and_its_words_name_every_key(given_keys: dict[str, Any]) -> None:
    matcher = Matcher.model_validate(given_keys)
    assert Matcher.model_validate(as_data(matcher)) == matcher
    words = in_words(matcher)
    assert all(f"{key} " in words for key in matcher.tested if key != "not")
    assert ("unless " in words) == (matcher.not_ is not None)
