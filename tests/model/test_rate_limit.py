"""Token buckets and breakers: what is admitted when, whatever arrives."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.contract import Answer, InDoubt, Later, Never, Receipt
from dispatcher.model.delivery import Result
from dispatcher.model.rate_limit import (
    ENOUGH,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    NEW_DESTINATION,
    Admission,
    AdmissionControl,
    DestinationState,
    Rate,
    RateLimit,
    feedback,
    learn,
    parse_rate,
)
from tests.support.builders import NOW, SECOND

RECEIPT = Receipt(answer=Answer("ok"))
ONE_A_SECOND = Rate(1, "s")


def gate(at: float = 0, pace: RateLimit | None = None) -> AdmissionControl:
    return AdmissionControl(
        pace=pace or RateLimit(rate=ONE_A_SECOND, burst=3),
        destination=lambda to: to[0],
        now=NOW + timedelta(seconds=at),
    )


def admit(
    one: AdmissionControl, standing: DestinationState, *, name: str = "#a", slot_reserved: bool = False
) -> Admission:
    """What the gate says where nothing is crowded."""
    admission = one.admit(name, standing, slot_reserved=slot_reserved)
    assert admission is not None
    return admission


def after(*results: Result, standing: DestinationState = NEW_DESTINATION) -> DestinationState:
    """The standing after these results, one a second."""
    for second, result in enumerate(results):
        told = feedback("#a", result, NOW + second * SECOND, destination_failing=standing.failures > 0)
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
    now, standing, slots = gate(), NEW_DESTINATION, []
    for _ in range(6):
        standing, at, _ = admit(now, standing)
        slots.append((at - NOW).total_seconds())
    assert slots == [0, 0, 0, 1, 2, 3]


def test_a_booked_slot_is_not_paid_twice() -> None:
    full = DestinationState(theoretical_arrival_at=NOW + 100 * SECOND)
    assert gate().admit("#a", full, slot_reserved=True) == (full, NOW, True)


@given(
    st.lists(st.floats(0, 10), max_size=80),
    st.integers(1, 20),
    st.integers(1, 600),
    st.sampled_from(["s", "min"]),
)
def test_no_window_ever_takes_more_than_its_rate_and_a_burst(
    arrivals: list[float], burst: int, number: int, unit: str
) -> None:
    pace = RateLimit(rate=Rate(number, unit), burst=burst, at_once=10_000)
    standing, slots = NEW_DESTINATION, []
    for arrival in sorted(arrivals):
        standing, at, slot_reserved = admit(gate(arrival, pace), standing)
        assert slot_reserved == (at > NOW + timedelta(seconds=arrival))
        slots.append(at)
    assert slots == sorted(slots)  # first come, first served
    assert pace.rate is not None
    for index, first in enumerate(slots):
        for count, last in enumerate(slots[index:], 1):
            assert count <= burst + (last - first) / pace.rate.interval + 1e-6


def test_a_destination_that_asked_for_peace_gets_it() -> None:
    asked = after(Later("slow down", retry_after=30 * SECOND))
    assert (asked.failures, asked.blocked_until) == (0, NOW + 30 * SECOND)
    for slot_reserved in (True, False):
        assert admit(gate(29), asked, slot_reserved=slot_reserved).at == NOW + 30 * SECOND
    assert admit(gate(30), asked).at == NOW + 30 * SECOND


def test_a_shorter_wish_does_not_undo_a_longer_one() -> None:
    asked = after(Later("", retry_after=30 * SECOND), Later("", retry_after=SECOND))
    assert asked.blocked_until == NOW + 30 * SECOND


@pytest.mark.parametrize("failure", [Later("busy"), InDoubt("no answer")])
def test_a_destination_that_keeps_failing_is_tried_by_one_at_a_time(failure: Result) -> None:
    almost = after(*[failure] * (ENOUGH - 1))
    assert admit(gate(10), almost).at == NOW + 10 * SECOND

    broken = after(*[failure] * ENOUGH)
    opened = NOW + (ENOUGH - 1) * SECOND
    assert broken.blocked_until == opened + FIRST_PAUSE
    now = gate(60)
    one = admit(now, broken)
    other = admit(now, one.standing)
    assert (one.at, other.at) == (now.now, now.now + FIRST_PAUSE)


def test_pauses_grow_to_a_limit_and_a_success_ends_them() -> None:
    broken = after(*[Later("busy")] * 40)
    assert broken.blocked_until == NOW + 39 * SECOND + LONGEST_PAUSE
    assert after(RECEIPT, standing=broken) == DestinationState(
        theoretical_arrival_at=NEW_DESTINATION.theoretical_arrival_at
    )


@pytest.mark.parametrize(
    "result", [RECEIPT, Never("no such channel"), Later("away", everyone=True), RuntimeError("a bug of ours")]
)
def test_what_says_nothing_of_the_destination_teaches_nothing(result: Result) -> None:
    assert feedback("#a", result, NOW, destination_failing=False) is None


def test_where_only_the_provider_counts_there_is_no_destination_to_learn_of() -> None:
    assert feedback("", InDoubt("no answer"), NOW, destination_failing=True) is None
    crowd = gate(pace=RateLimit(at_once=1))
    assert {admit(crowd, NEW_DESTINATION, name="").at for _ in range(9)} == {NOW}


def test_one_destination_never_has_all_the_hands() -> None:
    crowd = gate(pace=RateLimit(at_once=2))
    went = [crowd.admit(name, NEW_DESTINATION, slot_reserved=False) is not None for name in ("#a", "#a", "#a", "#b")]
    assert (went, crowd.crowded) == ([True, True, False, True], ["#a"])
