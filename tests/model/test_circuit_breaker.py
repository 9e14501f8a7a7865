"""The circuit breaker of a whole provider: when it opens, and when one delivery probes."""

from __future__ import annotations

from channels.contract import Answer, InDoubt, Later, Receipt
from dispatcher.model.circuit_breaker import CircuitBreaker
from dispatcher.model.rate_limit import ENOUGH
from tests.support.builders import NOW, SECOND

RECEIPT = Receipt(answer=Answer("ok"))


def test_a_provider_that_is_away_rests_and_one_finds_out() -> None:
    breaker = CircuitBreaker()
    assert breaker.hands(5, NOW) == 5
    rests = []
    for _ in range(7):
        breaker.learn(Later("away", everyone=True), NOW)
        rests.append(next(half for half in range(99) if breaker.hands(5, NOW + half * SECOND / 2)) / 2)
        assert breaker.hands(5, NOW + 99 * SECOND) == 1
    assert rests == [0.5, 1, 2, 4, 8, 10, 10]
    breaker.learn(RECEIPT, NOW)
    assert breaker.hands(5, NOW) == 5


def test_a_provider_that_stopped_answering_rests_too() -> None:
    breaker = CircuitBreaker()
    for _ in range(ENOUGH - 1):
        breaker.learn(InDoubt("no answer"), NOW)
    assert breaker.hands(5, NOW) == 5
    breaker.learn(InDoubt("no answer"), NOW)
    assert breaker.hands(5, NOW) == 0


def test_a_providers_own_wish_is_heeded() -> None:
    breaker = CircuitBreaker()
    breaker.learn(Later("maintenance", everyone=True, retry_after=60 * SECOND), NOW)
    assert [breaker.hands(5, NOW + after * SECOND) for after in (59, 60)] == [0, 1]
