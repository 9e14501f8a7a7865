"""The circuit breaker of a provider: when it opens, and when it lets a probe through."""

from __future__ import annotations

from channels.contract import Answer, InDoubt, Later, Receipt
from dispatcher.model.circuit_breaker import CircuitBreaker
from dispatcher.model.rate_limit import FAILURES_TO_OPEN
from tests.support.builders import NOW, SECOND

RECEIPT = Receipt(answer=Answer("ok"))


def test_provider_wide_failures_open_the_breaker_ever_longer_and_then_allow_one_probe() -> None:
    breaker = CircuitBreaker()
    assert breaker.allowed(5, NOW) == 5
    open_seconds = []
    for _ in range(7):
        breaker.record(Later("away", provider_wide=True), NOW)
        open_seconds.append(next(half for half in range(99) if breaker.allowed(5, NOW + half * SECOND / 2)) / 2)
        assert breaker.allowed(5, NOW + 99 * SECOND) == 1
    assert open_seconds == [0.5, 1, 2, 4, 8, 10, 10]
    breaker.record(RECEIPT, NOW)
    assert breaker.allowed(5, NOW) == 5


def test_sends_without_an_answer_open_the_breaker() -> None:
    breaker = CircuitBreaker()
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.record(InDoubt("no answer"), NOW)
    assert breaker.allowed(5, NOW) == 5
    breaker.record(InDoubt("no answer"), NOW)
    assert breaker.allowed(5, NOW) == 0


def test_a_providers_retry_after_keeps_the_breaker_open_that_long() -> None:
    breaker = CircuitBreaker()
    breaker.record(Later("maintenance", provider_wide=True, retry_after=60 * SECOND), NOW)
    assert [breaker.allowed(5, NOW + after * SECOND) for after in (59, 60)] == [0, 1]
