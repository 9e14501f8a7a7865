"""Which matcher covers which, and which routes can't do what somebody wanted: proofs alone, against many events."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.model.event import Event
from dispatcher.rules.covering import conditions_cover, contradict, covers
from dispatcher.rules.lint import problems_of, why_never
from dispatcher.rules.matcher import Matcher
from tests.support.builders import a_route
from tests.support.matchers import MATCHERS, events


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Matcher, Matcher]:
    """Two matchers, of which the first often has only some keys of the second, and patterns that match more."""
    narrow = draw(MATCHERS)
    wide = draw(MATCHERS)
    if draw(st.booleans()):
        keys = draw(st.lists(st.sampled_from(sorted(narrow)), min_size=1, unique=True))
        wide = {key: narrow[key] for key in keys}
        if draw(st.booleans()) and keys[0] in ("project", "domain", "launch_plan", "principal"):
            wide[keys[0]] = draw(st.sampled_from(["*", "a*", "[ab]", "?"]))
    return Matcher.model_validate(wide), Matcher.model_validate(narrow)


@given(pairs(), st.lists(events(), min_size=5, max_size=15))
@settings(max_examples=100)
def test_what_is_proved_holds_for_every_event(
    pair: tuple[Matcher, Matcher], found: list[tuple[Event, dict[str, Any]]]
) -> None:
    wide, narrow = pair
    for event, _ in found:
        if narrow.holds(event):
            assert wide.holds(event) or not covers(wide, narrow)
            assert not (wide.holds(event) and contradict(wide, narrow))
            assert not why_never(narrow)


@pytest.mark.parametrize(
    ("wide", "narrow", "covered"),
    [
        ({"domain": "production"}, {"domain": "production", "project": "a"}, True),
        ({"domain": "production", "project": "a"}, {"domain": "production"}, False),
        ({"project": "fraud-*"}, {"project": ["fraud-a", "fraud-*-b"]}, True),
        ({"project": "fraud-*"}, {"project": ["fraud-a", "fr*"]}, False),
        ({"project": "*b]x"}, {"project": "[ab]x"}, False),
        ({"project": "a?"}, {"project": "a*"}, False),
        ({"phase": ["FAILED", "ABORTED"]}, {"phase": "FAILED"}, True),
        ({"duration": {"longer_than": "1h"}}, {"duration": {"longer_than": "2h", "shorter_than": "3h"}}, True),
        ({"duration": {"longer_than": "0s"}}, {"duration": {"shorter_than": "3h"}}, False),
        ({"labels": {"a": "*"}}, {"labels": {"a": "x", "b": "y"}}, True),
        ({"error": {"message": "oom"}}, {"error": {"message": "oom", "kind": "USER"}}, True),
        ({"error": {"message": "o"}}, {"error": {"message": "oom"}}, False),
        ({"parent": "any"}, {"parent": "none"}, False),
        ({"phase": "FAILED", "not": {"labels": {"tier": "3"}}}, {"phase": "FAILED"}, False),
        ({"phase": "FAILED", "not": {"labels": {"tier": "3"}}}, {"phase": "FAILED", "labels": {"tier": "1"}}, True),
        (
            {"phase": "FAILED", "not": {"labels": {"tier": "3"}, "domain": "d"}},
            {"phase": "FAILED", "not": {"labels": {"tier": ["2", "3"]}}},
            True,
        ),
        (
            {"phase": "FAILED", "not": {"labels": {"tier": ["2", "3"]}}},
            {"phase": "FAILED", "not": {"labels": {"tier": "3"}}},
            False,
        ),
    ],
)
def test_a_matcher_covers_another_where_that_can_be_proved(
    wide: dict[str, Any], narrow: dict[str, Any], covered: bool
) -> None:
    one, other = Matcher.model_validate(wide), Matcher.model_validate(narrow)
    assert covers(one, other) is covered
    assert covers(one, one)
    assert conditions_cover(other, other)


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ({"domain": "p", "not": {"domain": ["p", "d"]}}, "its not covers all that the rest of it matches"),
        ({"phase": "SUCCEEDED", "error": {"kind": "USER"}}, "an execution that succeeded has none"),
        ({"phase": ["SUCCEEDED", "FAILED"], "error": {"kind": "USER"}}, "never matches SUCCEEDED"),
        ({"project": "a/b"}, "no project has a slash in its name"),
        ({"domain": ["production", "*/*"]}, "domain '*/*' matches nothing"),
        ({"project": "dispatcher", "domain": "canary"}, "no route applies to canaries"),
        ({"phase": "FAILED", "not": {"phase": "ABORTED"}}, "its not has no effect"),
        ({"project": "a*", "not": {"project": "b", "labels": {"a": "b"}}}, "its not has no effect"),
        ({"project": "[/a]", "not": {"project": "a*"}}, ""),
        ({"launch_plan": "a/b", "not": {"principal": "jo"}}, ""),
    ],
)
def test_a_route_that_can_not_match_is_named_with_the_reason(match: dict[str, Any], words: str) -> None:
    found = [str(problem) for problem in problems_of([a_route("one", **match)])]
    assert len(found) == bool(words)
    assert all(words in message and message.startswith("routes.yaml:one: route 'one': ") for message in found)


def test_a_route_behind_one_that_stops_is_never_reached_if_that_is_certain() -> None:
    found = [
        (problem.route.name, problem.message)
        for problem in problems_of(
            [
                a_route("before", domain="production"),
                a_route("stops", domain="production", project=["a", "b"], stop=True),
                a_route("behind", domain="production", project="b", launch_plan="x"),
                a_route("wider", domain="production"),
                a_route("maybe", domain="production", project=["b", "c"]),
                a_route("other-phase", domain="production", project="b", phase="ABORTED"),
                a_route("also-stops", domain="production", project="a", labels={"a": "b"}, stop=True),
                a_route("everything", domain="*", stop=True),
                a_route("last", domain="staging"),
            ]
        )
    ]
    assert found == [
        ("behind", "is never reached: stops (routes.yaml:stops) stops for all events that it matches"),
        ("also-stops", "is never reached: stops (routes.yaml:stops) stops for all events that it matches"),
        ("last", "is never reached: everything (routes.yaml:everything) stops for all events that it matches"),
    ]


def test_a_route_with_a_streak_stops_only_events_that_name_their_launch_plan() -> None:
    cases: list[tuple[dict[str, Any], bool]] = [({}, True), ({"launch_plan": "*"}, False)]
    for match, reached in cases:
        stops = replace(a_route("stops", stop=True, **match), streak=3)
        found = [*problems_of([stops, a_route("behind", **match)])]
        assert (not found) is reached


@pytest.mark.parametrize(
    "match",
    [
        lambda place: {"project": f"p{place % 2000}", "launch_plan": f"l{place}"},
        lambda place: {"project": "p", "labels": {"team": f"t{place}"}},
        lambda place: {"project": f"*p{place}x"},
    ],
    ids=["one of two keys is shared", "of one project", "only patterns"],
)
def test_thousands_of_routes_that_stop_take_no_quadratic_time(match: Callable[[int], dict[str, Any]]) -> None:
    routes = [a_route(f"r{place}", stop=True, **match(place)) for place in range(2000)]
    behind = a_route("behind", **match(17), principal="jo")
    started = time.process_time()
    assert [problem.route.name for problem in problems_of([*routes[:200], behind, *routes[200:]])] == ["behind"]
    assert time.process_time() - started < 5
