"""Rate limits and breakers of destinations: which delivery may go when."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.contract import Answer, InDoubt, Later, Never, Receipt
from dispatcher.model.delivery import Result
from dispatcher.model.rate_limit import (
    FAILURES_TO_OPEN,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    NEW_DESTINATION,
    AdmissionControl,
    AdmissionDecision,
    DestinationState,
    Rate,
    RateLimit,
    apply,
    feedback,
    parse_rate,
)
from tests.support.builders import NOW, SECOND

RECEIPT = Receipt(answer=Answer("ok"))
ONE_A_SECOND = Rate(1, "s")


def admission(at: float = 0, rate_limit: RateLimit | None = None) -> AdmissionControl:
    return AdmissionControl(
        rate_limit=rate_limit or RateLimit(rate=ONE_A_SECOND, burst=3),
        destination=lambda to: to[0],
        now=NOW + timedelta(seconds=at),
    )


def admit(
    control: AdmissionControl, state: DestinationState, *, name: str = "#a", slot_reserved: bool = False
) -> AdmissionDecision:
    """The decision for a delivery to a destination that is not saturated."""
    decision = control.admit(name, state, slot_reserved=slot_reserved)
    assert decision is not None
    return decision


def after(*results: Result, state: DestinationState = NEW_DESTINATION) -> DestinationState:
    """The destination's state after these results, a second apart."""
    for second, result in enumerate(results):
        change = feedback("#a", result, NOW + second * SECOND, destination_failing=state.failures > 0)
        state = state if change is None else apply(state, change)
    return state


def test_rates_are_parsed_with_and_without_spaces_and_others_are_rejected() -> None:
    assert parse_rate(" 120 / min ") == Rate(120, "min")
    assert parse_rate("120/min").interval == timedelta(milliseconds=500)
    assert str(parse_rate("2/h")) == "2/h"
    for wrong in ("", "fast", "0/s", "-1/s", "1/day", "1.5/s"):
        with pytest.raises(ValueError, match="write 1/s"):
            parse_rate(wrong)


def test_a_burst_goes_at_once_and_later_deliveries_get_one_slot_each() -> None:
    control, state, slots = admission(), NEW_DESTINATION, []
    for _ in range(6):
        state, at, _ = admit(control, state)
        slots.append((at - NOW).total_seconds())
    assert slots == [0, 0, 0, 1, 2, 3]


def test_a_delivery_with_a_reserved_slot_takes_no_other_slot() -> None:
    full = DestinationState(theoretical_arrival_at=NOW + 100 * SECOND)
    assert admission().admit("#a", full, slot_reserved=True) == (full, NOW, True)


@given(
    st.lists(st.floats(0, 10), max_size=80),
    st.integers(1, 20),
    st.integers(1, 600),
    st.sampled_from(["s", "min"]),
)
def test_any_period_admits_at_most_its_rate_plus_a_burst(
    arrivals: list[float], burst: int, number: int, unit: str
) -> None:
    rate_limit = RateLimit(rate=Rate(number, unit), burst=burst, max_in_flight=10_000)
    state, slots = NEW_DESTINATION, []
    for arrival in sorted(arrivals):
        state, at, slot_reserved = admit(admission(arrival, rate_limit), state)
        assert slot_reserved == (at > NOW + timedelta(seconds=arrival))
        slots.append(at)
    assert slots == sorted(slots)  # first come, first served
    assert rate_limit.rate is not None
    for index, first in enumerate(slots):
        for count, last in enumerate(slots[index:], 1):
            assert count <= burst + (last - first) / rate_limit.rate.interval + 1e-6


def test_nothing_goes_to_a_destination_before_its_retry_after() -> None:
    state = after(Later("slow down", retry_after=30 * SECOND))
    assert (state.failures, state.blocked_until) == (0, NOW + 30 * SECOND)
    for slot_reserved in (True, False):
        assert admit(admission(29), state, slot_reserved=slot_reserved).at == NOW + 30 * SECOND
    assert admit(admission(30), state).at == NOW + 30 * SECOND


def test_a_shorter_retry_after_does_not_shorten_a_longer_one() -> None:
    state = after(Later("", retry_after=30 * SECOND), Later("", retry_after=SECOND))
    assert state.blocked_until == NOW + 30 * SECOND


@pytest.mark.parametrize("failure", [Later("busy"), InDoubt("no answer")])
def test_failures_in_a_row_open_the_breaker_which_lets_one_probe_through(failure: Result) -> None:
    almost = after(*[failure] * (FAILURES_TO_OPEN - 1))
    assert admit(admission(10), almost).at == NOW + 10 * SECOND

    opened = after(*[failure] * FAILURES_TO_OPEN)
    opened_at = NOW + (FAILURES_TO_OPEN - 1) * SECOND
    assert opened.blocked_until == opened_at + FIRST_PAUSE
    control = admission(60)
    probe = admit(control, opened)
    other = admit(control, probe.state)
    assert (probe.at, other.at) == (control.now, control.now + FIRST_PAUSE)


def test_pauses_grow_to_the_longest_and_a_success_ends_them() -> None:
    opened = after(*[Later("busy")] * 40)
    assert opened.blocked_until == NOW + 39 * SECOND + LONGEST_PAUSE
    assert after(RECEIPT, state=opened) == DestinationState(
        theoretical_arrival_at=NEW_DESTINATION.theoretical_arrival_at
    )


@pytest.mark.parametrize(
    "result", [RECEIPT, Never("no such channel"), Later("away", provider_wide=True), RuntimeError("a bug of ours")]
)
def test_results_that_do_not_concern_the_destination_give_no_feedback(result: Result) -> None:
    assert feedback("#a", result, NOW, destination_failing=False) is None


def test_without_a_destination_there_is_no_feedback_and_no_limit_in_flight() -> None:
    assert feedback("", InDoubt("no answer"), NOW, destination_failing=True) is None
    control = admission(rate_limit=RateLimit(max_in_flight=1))
    assert {admit(control, NEW_DESTINATION, name="").at for _ in range(9)} == {NOW}


def test_a_destination_with_max_in_flight_deliveries_gets_no_more() -> None:
    control = admission(rate_limit=RateLimit(max_in_flight=2))
    admitted = [
        control.admit(name, NEW_DESTINATION, slot_reserved=False) is not None for name in ("#a", "#a", "#a", "#b")
    ]
    assert (admitted, control.saturated) == ([True, True, False, True], ["#a"])
