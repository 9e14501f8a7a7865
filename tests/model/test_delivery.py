"""The state machine of a delivery: the outcome of each result of an attempt."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.contract import Answer, InDoubt, Later, Never, Receipt, UnknownRecipient
from dispatcher.model.delivery import (
    Dead,
    Outcome,
    Result,
    Retry,
    Sent,
    State,
    classify,
    delivery_key,
    split,
    time_prefixed,
    uncounted,
)
from dispatcher.model.retry import FLOOR, RetryPolicy
from tests.support.builders import NOW, a_delivery

POLICY = RetryPolicy(initial=timedelta(seconds=2), ceiling=timedelta(minutes=1), deadline=timedelta(hours=1))


def outcome_of(result: Result, *, attempt: int = 1, after: timedelta = timedelta(), in_doubt: bool = False) -> Outcome:
    delivery = a_delivery(attempt=attempt, in_doubt=in_doubt)
    return classify(delivery, result, now=NOW + after, policy=POLICY, rng=Random(7))


def test_a_receipt_makes_the_delivery_sent() -> None:
    receipt = Receipt(answer=Answer("250"))
    assert outcome_of(receipt) == Sent(receipt)


def test_a_permanent_failure_makes_the_delivery_dead_at_once() -> None:
    assert outcome_of(Never("no such user", answer=Answer("550"))) == Dead("no such user", Answer("550"))
    assert outcome_of(UnknownRecipient("nobody")) == Dead("nobody", unknown_recipient=True)


def test_a_temporary_failure_is_retried_after_a_back_off() -> None:
    outcome = outcome_of(Later("busy", answer=Answer("451")))
    assert isinstance(outcome, Retry)
    assert (outcome.reason, outcome.in_doubt) == ("busy", False)
    assert NOW + FLOOR <= outcome.at <= NOW + timedelta(seconds=2)


def test_no_retry_is_earlier_than_the_providers_retry_after() -> None:
    outcome = outcome_of(Later("slow down", retry_after=timedelta(seconds=30)))
    assert isinstance(outcome, Retry)
    assert outcome.at >= NOW + timedelta(seconds=30)


@pytest.mark.parametrize("result", [InDoubt("no answer"), RuntimeError("secret detail")])
def test_an_unknown_result_leaves_the_delivery_in_doubt(result: Exception) -> None:
    outcome = outcome_of(result)
    assert isinstance(outcome, Retry)
    assert outcome.in_doubt
    assert "secret detail" not in outcome.reason


def test_a_delivery_in_doubt_stays_in_doubt_after_a_temporary_failure() -> None:
    outcome = outcome_of(Later("busy"), in_doubt=True)
    assert isinstance(outcome, Retry)
    assert outcome.in_doubt


def test_past_the_deadline_a_delivery_is_dead_with_its_last_reason() -> None:
    assert outcome_of(Later("busy"), attempt=9, after=POLICY.deadline) == Dead("gave up after 9 attempts: busy")
    assert outcome_of(Later("busy", retry_after=2 * POLICY.deadline)) == Dead("gave up after 1 attempt: busy")


def test_the_cause_of_dead_deliveries_is_the_same_after_any_number_of_attempts() -> None:
    for attempt in (1, 9, 12):
        outcome = outcome_of(Later("busy: try later"), attempt=attempt, after=POLICY.deadline)
        assert isinstance(outcome, Dead)
        assert uncounted(outcome.reason) == "busy: try later"
    assert uncounted("gave up after lunch: 3 attempts: x") == "gave up after lunch: 3 attempts: x"


@given(st.integers(1, 10_000), st.integers())
def test_back_off_grows_to_the_ceiling_and_is_never_below_the_floor(attempt: int, seed: int) -> None:
    bound = POLICY.bound(attempt)
    assert bound == min(POLICY.initial * 2 ** min(attempt - 1, 40), POLICY.ceiling)
    assert FLOOR <= POLICY.delay(attempt, Random(seed)) <= max(bound, FLOOR)


def test_each_refused_recipient_of_a_mail_becomes_a_delivery() -> None:
    delivery = a_delivery(
        recipients=("A@x.com", "no@x.com", "later@x.com"),
        addresses=("a@x.com", "no@x.com", "later@x.com"),
        attempt=1,
        lease="me",
    )
    receipt = Receipt(
        answer=Answer("250"), failures={"no@x.com": Never("550 no such user"), "later@x.com": Later("451 greylisted")}
    )

    refused, deferred = split(delivery, receipt, now=NOW, policy=POLICY, rng=Random(7))

    assert (refused.recipients, refused.state, refused.reason) == (("no@x.com",), State.DEAD, "550 no such user")
    assert (deferred.recipients, deferred.state, deferred.lease) == (("later@x.com",), State.WAITING, None)
    assert deferred.due_at > NOW
    assert len({delivery.key, refused.key, deferred.key}) == 3
    assert refused.key == delivery_key(delivery.event, "email", ("no@x.com",))


@given(st.datetimes(timezones=st.just(UTC), max_value=datetime(9998, 1, 1)), st.integers(0, 190 * 86_400))  # noqa: DTZ001 - hypothesis requires naive bounds
def test_time_prefixed_digests_differ_by_the_time_between_them(at: datetime, seconds: int) -> None:
    first, second = time_prefixed("f" * 32, at), time_prefixed("0" * 32, at + timedelta(seconds=seconds))
    assert (len(first), first[5:], second[5:]) == (32, "f" * 27, "0" * 27)
    steps = (int(second[:5], 16) - int(first[:5], 16)) % 16**5
    assert abs(16 * steps - seconds) < 16
