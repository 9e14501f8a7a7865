"""Token buckets and breakers: what is admitted when, whatever arrives."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.contract import Answer, Later, Never, Receipt, Unknown
from dispatcher.model.delivery import Result
from dispatcher.model.rate_limit import (
    ENOUGH,
    FIRST_PAUSE,
    FRESH,
    LONGEST_PAUSE,
    Admission,
    Gate,
    Pace,
    Rate,
    Standing,
    learn,
    lesson,
    parse_rate,
)
from tests.support.builders import NOW, SECOND

RECEIPT = Receipt(answer=Answer("ok"))
ONE_A_SECOND = Rate(1, "s")


def gate(at: float = 0, pace: Pace | None = None) -> Gate:
    return Gate(
        pace=pace or Pace(rate=ONE_A_SECOND, burst=3), destination=lambda to: to[0], now=NOW + timedelta(seconds=at)
    )


def admit(one: Gate, standing: Standing, *, name: str = "#a", booked: bool = False) -> Admission:
    """What the gate says where nothing is crowded."""
    admission = one.admit(name, standing, booked=booked)
    assert admission is not None
    return admission


def after(*results: Result, standing: Standing = FRESH) -> Standing:
    """The standing after these results, one a second."""
    for second, result in enumerate(results):
        told = lesson("#a", result, NOW + second * SECOND, troubled=standing.failures > 0)
        standing = standing if told is None else learn(standing, told)
    return standing


def test_a_rate_is_read_as_people_write_it() -> None:
    assert parse_rate(" 120 / min ") == Rate(120, "min")
    assert parse_rate("120/min").interval == timedelta(milliseconds=500)
    assert str(parse_rate("2/h")) == "2/h"
    for wrong in ("", "fast", "0/s", "-1/s", "1/day", "1.5/s"):
        with pytest.raises(ValueError, match="write 1/s"):
            parse_rate(wrong)


def test_a_burst_goes_at_once_and_the_rest_gets_slots() -> None:
    now, standing, slots = gate(), FRESH, []
    for _ in range(6):
        standing, at, _ = admit(now, standing)
        slots.append((at - NOW).total_seconds())
    assert slots == [0, 0, 0, 1, 2, 3]


def test_a_booked_slot_is_not_paid_twice() -> None:
    full = Standing(spent_until=NOW + 100 * SECOND)
    assert gate().admit("#a", full, booked=True) == (full, NOW, True)


@given(
    st.lists(st.floats(0, 10), max_size=80),
    st.integers(1, 20),
    st.integers(1, 600),
    st.sampled_from(["s", "min"]),
)
def test_no_window_ever_takes_more_than_its_rate_and_a_burst(
    arrivals: list[float], burst: int, number: int, unit: str
) -> None:
    pace = Pace(rate=Rate(number, unit), burst=burst, at_once=10_000)
    standing, slots = FRESH, []
    for arrival in sorted(arrivals):
        standing, at, booked = admit(gate(arrival, pace), standing)
        assert booked == (at > NOW + timedelta(seconds=arrival))
        slots.append(at)
    assert slots == sorted(slots)  # first come, first served
    assert pace.rate is not None
    for index, first in enumerate(slots):
        for count, last in enumerate(slots[index:], 1):
            assert count <= burst + (last - first) / pace.rate.interval + 1e-6


def test_a_destination_that_asked_for_peace_gets_it() -> None:
    asked = after(Later("slow down", retry_after=30 * SECOND))
    assert (asked.failures, asked.held_until) == (0, NOW + 30 * SECOND)
    for booked in (True, False):
        assert admit(gate(29), asked, booked=booked).at == NOW + 30 * SECOND
    assert admit(gate(30), asked).at == NOW + 30 * SECOND


def test_a_shorter_wish_does_not_undo_a_longer_one() -> None:
    asked = after(Later("", retry_after=30 * SECOND), Later("", retry_after=SECOND))
    assert asked.held_until == NOW + 30 * SECOND


@pytest.mark.parametrize("failure", [Later("busy"), Unknown("no answer")])
def test_a_destination_that_keeps_failing_is_tried_by_one_at_a_time(failure: Result) -> None:
    almost = after(*[failure] * (ENOUGH - 1))
    assert admit(gate(10), almost).at == NOW + 10 * SECOND

    broken = after(*[failure] * ENOUGH)
    opened = NOW + (ENOUGH - 1) * SECOND
    assert broken.held_until == opened + FIRST_PAUSE
    now = gate(60)
    one = admit(now, broken)
    other = admit(now, one.standing)
    assert (one.at, other.at) == (now.now, now.now + FIRST_PAUSE)


def test_pauses_grow_to_a_limit_and_a_success_ends_them() -> None:
    broken = after(*[Later("busy")] * 40)
    assert broken.held_until == NOW + 39 * SECOND + LONGEST_PAUSE
    assert after(RECEIPT, standing=broken) == Standing(spent_until=FRESH.spent_until)


@pytest.mark.parametrize(
    "result", [RECEIPT, Never("no such channel"), Later("away", everyone=True), RuntimeError("a bug of ours")]
)
def test_what_says_nothing_of_the_destination_teaches_nothing(result: Result) -> None:
    assert lesson("#a", result, NOW, troubled=False) is None


def test_where_only_the_provider_counts_there_is_no_destination_to_learn_of() -> None:
    assert lesson("", Unknown("no answer"), NOW, troubled=True) is None
    crowd = gate(pace=Pace(at_once=1))
    assert {admit(crowd, FRESH, name="").at for _ in range(9)} == {NOW}


def test_one_destination_never_has_all_the_hands() -> None:
    crowd = gate(pace=Pace(at_once=2))
    went = [crowd.admit(name, FRESH, booked=False) is not None for name in ("#a", "#a", "#a", "#b")]
    assert (went, crowd.crowded) == ([True, True, False, True], ["#a"])
