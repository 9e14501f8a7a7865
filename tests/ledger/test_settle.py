"""The outcomes of attempts, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio

from channels.contract import Answer
from dispatcher.ledger import Filter, Ledger
from dispatcher.ledger.settle import LEASE_LOST
from dispatcher.model.delivery import Dead, Retry, State
from tests.support.builders import NOW, SECOND, a_delivery, an_event
from tests.support.ledger_steps import MINUTE, SENT, claim, recorded, settlement


async def test_a_worker_that_lost_its_lease_cannot_settle(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (lost,) = await claim(ledger)
    (taken,) = await claim(ledger, lease="other", now=NOW + MINUTE)

    assert not await ledger.settle(settlement(lost, Dead("no"), a_delivery(to="fallback@example.com")))
    assert await ledger.settle(settlement(taken, SENT))
    (found,) = await ledger.history.find(Filter(), limit=10)
    assert found.delivery.state is State.SENT
    assert [attempt.number for attempt in await ledger.history.attempts(lost.key)] == [1, 2]


async def test_a_worker_cannot_settle_an_attempt_after_it_claimed_the_delivery_again(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (first,) = await claim(ledger)
    await claim(ledger, now=NOW + MINUTE)

    assert not await ledger.settle(settlement(first, Dead("too late")))


async def test_a_retry_is_due_at_its_time_and_stays_in_doubt(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (delivery,) = await claim(ledger)
    await ledger.settle(
        settlement(delivery, Retry(NOW + 9 * SECOND, "greylisted", Answer("451", "later"), in_doubt=True))
    )

    assert await claim(ledger, now=NOW + 8 * SECOND) == []
    (again,) = await claim(ledger, now=NOW + 9 * SECOND)
    assert (again.attempt, again.in_doubt, again.reason) == (2, True, "greylisted")
    (attempt,) = await ledger.history.attempts(delivery.key)
    assert (attempt.outcome, attempt.status, attempt.answer, attempt.latency) == ("in_doubt", "451", "later", SECOND)


async def test_a_retry_after_a_certain_failure_is_not_in_doubt(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (delivery,) = await claim(ledger)
    await ledger.settle(settlement(delivery, Retry(NOW, "connection refused")))

    (again,) = await claim(ledger)
    assert not again.in_doubt


async def test_a_settled_delivery_is_not_claimed_again(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery(), a_delivery(to="b@example.com"))], [], now=NOW)
    one, other = await claim(ledger)
    await ledger.settle(settlement(one, SENT))
    await ledger.settle(settlement(other, Dead("550 no such user")))

    assert await claim(ledger, now=NOW + 100 * MINUTE) == []
    assert await ledger.queries.counts() == {("email", State.SENT): 1, ("email", State.DEAD): 1}


async def test_follow_ups_are_written_with_the_settlement(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (delivery,) = await claim(ledger)

    await ledger.settle(
        settlement(delivery, SENT, a_delivery(to="refused@example.com", state=State.DEAD, reason="550"))
    )

    (dead,) = await ledger.history.find(Filter(states=frozenset({State.DEAD})), limit=5)
    assert dead.delivery.reason == "550"


async def test_many_settlements_at_once_are_all_written(ledger: Ledger) -> None:
    events = [an_event(name=f"e{number}") for number in range(40)]
    await ledger.record([recorded(a_delivery(event), event=event) for event in events], [], now=NOW)
    claimed = await claim(ledger, 40)

    held = await asyncio.gather(*(ledger.settle(settlement(delivery, SENT)) for delivery in claimed))

    assert held == [True] * 40
    assert await ledger.queries.counts() == {("email", State.SENT): 40}


async def test_a_cancelled_settle_does_not_stop_other_settlements(ledger: Ledger) -> None:
    events = [an_event(name=f"e{number}") for number in range(20)]
    await ledger.record([recorded(a_delivery(event), event=event) for event in events], [], now=NOW)
    tasks = [asyncio.create_task(ledger.settle(settlement(delivery, SENT))) for delivery in await claim(ledger, 20)]
    await asyncio.sleep(0)
    tasks[0].cancel()

    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [True] * 19


async def test_an_outcome_after_the_lease_is_stored_with_that_reason(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (lost,) = await claim(ledger)
    (taken,) = await claim(ledger, lease="other", now=NOW + MINUTE)

    assert not await ledger.settle(settlement(lost, Retry(NOW + 2 * MINUTE, "greylisted")))
    assert await ledger.settle(settlement(taken, SENT))
    late, valid = await ledger.history.attempts(lost.key)
    assert (late.reason, valid.reason) == (f"{LEASE_LOST}: greylisted", "")
