"""The state machine: what each result of an attempt means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.contract import Answer, InDoubt, Later, Never, Receipt, UnknownRecipient
from dispatcher.model.delivery import Dead, Outcome, Result, Retry, Sent, State, classify, delivery_key, in_time, split
from dispatcher.model.retry import FLOOR, RetryPolicy
from tests.support.builders import NOW, a_delivery

POLICY = RetryPolicy(initial=timedelta(seconds=2), ceiling=timedelta(minutes=1), deadline=timedelta(hours=1))


def judged(result: Result, *, attempt: int = 1, after: timedelta = timedelta(), in_doubt: bool = False) -> Outcome:
    delivery = a_delivery(attempt=attempt, in_doubt=in_doubt)
    return classify(delivery, result, now=NOW + after, policy=POLICY, rng=Random(7))


def test_a_receipt_is_the_end() -> None:
    receipt = Receipt(answer=Answer("250"))
    assert judged(receipt) == Sent(receipt)


def test_what_can_never_succeed_is_dead_at_once() -> None:
    assert judged(Never("no such user", answer=Answer("550"))) == Dead("no such user", Answer("550"))
    assert judged(UnknownRecipient("nobody")) == Dead("nobody", unknown_recipient=True)


def test_what_may_succeed_later_waits() -> None:
    outcome = judged(Later("busy", answer=Answer("451")))
    assert isinstance(outcome, Retry)
    assert (outcome.reason, outcome.in_doubt) == ("busy", False)
    assert NOW + FLOOR <= outcome.at <= NOW + timedelta(seconds=2)


def test_the_providers_wish_is_a_floor_under_the_back_off() -> None:
    outcome = judged(Later("slow down", retry_after=timedelta(seconds=30)))
    assert isinstance(outcome, Retry)
    assert outcome.at >= NOW + timedelta(seconds=30)


@pytest.mark.parametrize("result", [InDoubt("no answer"), RuntimeError("secret detail")])
def test_an_unknown_outcome_leaves_a_doubt(result: Exception) -> None:
    outcome = judged(result)
    assert isinstance(outcome, Retry)
    assert outcome.in_doubt
    assert "secret detail" not in outcome.reason


def test_a_doubt_stays_until_the_message_is_known_to_have_arrived() -> None:
    outcome = judged(Later("busy"), in_doubt=True)
    assert isinstance(outcome, Retry)
    assert outcome.in_doubt


def test_past_the_deadline_a_delivery_is_dead_with_its_last_reason() -> None:
    assert judged(Later("busy"), attempt=9, after=POLICY.deadline) == Dead("gave up after 9 attempts: busy")
    assert judged(Later("busy", retry_after=2 * POLICY.deadline)) == Dead("gave up after 1 attempt: busy")


@given(st.integers(1, 10_000), st.integers())
def test_back_off_grows_to_the_ceiling_and_is_never_hot(attempt: int, seed: int) -> None:
    bound = POLICY.bound(attempt)
    assert bound == min(POLICY.initial * 2 ** min(attempt - 1, 40), POLICY.ceiling)
    assert FLOOR <= POLICY.delay(attempt, Random(seed)) <= max(bound, FLOOR)


def test_a_mails_refused_recipients_stand_alone() -> None:
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


@given(st.datetimes(timezones=st.just(UTC), max_value=datetime(9998, 1, 1)), st.integers(0, 190 * 86_400))  # noqa: DTZ001 - as it is asked for
def test_digests_in_time_lie_as_far_apart_as_what_they_stand_for(at: datetime, seconds: int) -> None:
    first, second = in_time("f" * 32, at), in_time("0" * 32, at + timedelta(seconds=seconds))
    assert (len(first), first[5:], second[5:]) == (32, "f" * 27, "0" * 27)
    steps = (int(second[:5], 16) - int(first[:5], 16)) % 16**5
    assert abs(16 * steps - seconds) < 16
