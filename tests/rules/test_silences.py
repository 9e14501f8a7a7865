"""Which silences are for an event."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model.event import CANARY_DOMAIN, CANARY_PROJECT, Event
from dispatcher.rules.matcher import Matcher
from dispatcher.rules.matcher_words import as_data, as_pairs, from_pairs
from dispatcher.rules.silences import SilenceBook, matcher_of, parse_matcher
from tests.support.builders import a_silence, an_event, an_execution
from tests.support.matchers import MATCHERS, events


@given(several=st.lists(MATCHERS, max_size=5), pair=events())
def test_the_silences_of_an_event_are_those_whose_matcher_holds(
    several: list[dict[str, Any]], pair: tuple[Event, dict[str, Any]]
) -> None:
    event, _ = pair
    silences = [a_silence(str(number), matcher=matcher) for number, matcher in enumerate(several)]
    hold = [str(number) for number, one in enumerate(several) if Matcher.model_validate(one).holds(event) is True]
    book = SilenceBook(1, silences)
    assert [one.id for one in book.matching(event)] == hold
    unknown = any(Matcher.model_validate(one).holds(event) is None for one in several)
    assert book.lacks_facts(event) == (unknown and not event.looked_up)


@pytest.mark.parametrize("empty", [{}, {"project": []}, {"not": {}}, {"labels": {}}, {"error": {}}])
def test_a_matcher_without_a_key_is_refused(empty: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no key|empty"):
        parse_matcher(empty)


def test_no_silence_is_for_a_canary_event() -> None:
    event = an_event().model_copy(update={"execution": an_execution(project=CANARY_PROJECT, domain=CANARY_DOMAIN)})
    book = SilenceBook(1, [a_silence(matcher={"phase": "FAILED"})])
    assert book.matching(event) == ()
    assert [one.id for one in book.matching(an_event())] == ["5f0c2a9d"]


def test_a_silence_that_this_version_cannot_read_holds_nothing_and_the_others_hold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    newer, readable = a_silence("newer", matcher={"cluster": "eu"}), a_silence("readable")
    assert matcher_of(newer) is None
    assert [one.id for one in SilenceBook(1, [newer, readable]).matching(an_event())] == ["readable"]
    assert "newer" in capsys.readouterr().out


@given(matcher=MATCHERS)
def test_a_matcher_can_be_written_as_keys_and_values(matcher: dict[str, Any]) -> None:
    parsed = parse_matcher(matcher)
    data = as_data(parsed)
    assert parse_matcher(data) == parsed
    assert parse_matcher(from_pairs(as_pairs(data))) == parsed


def test_a_key_may_be_given_several_times_and_a_label_may_have_dots() -> None:
    given = ["project=a", " project = b ", "labels.a.b=c=d", "not.labels.not.x=y", "error.message=a=b"]
    assert from_pairs(given) == {
        "project": ["a", "b"],
        "labels": {"a.b": "c=d"},
        "not": {"labels": {"not.x": "y"}},
        "error": {"message": "a=b"},
    }
    for wrong in (["project"], ["=x"], [""], ["labels.=x"], ["error=x", "error.kind=y"], ["error.kind=y", "error=x"]):
        with pytest.raises(ValueError, match="not a key with a value"):
            from_pairs(wrong)
