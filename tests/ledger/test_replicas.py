"""The replicas' rows, and what the ledger knows of what a delivery waits for. On SQLite and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from dispatcher.ledger import Filter, Ledger
from dispatcher.model.delivery import Kind, Retry
from dispatcher.model.rate_limit import FAILURES_TO_OPEN, Feedback, Rate, RateLimit
from dispatcher.model.waiting import Wait, WaitKind
from tests.support.builders import NOW, SECOND, a_delivery, a_replica
from tests.support.ledger_steps import MINUTE, claim, claim_slack, recorded, settlement, slack


async def test_a_replica_keeps_one_row_until_it_has_not_written_for_an_hour(ledger: Ledger) -> None:
    old = a_replica("old:1", at=NOW - timedelta(hours=1) + SECOND)
    broken = a_replica(probe_at=NOW + MINUTE, components={"kafka": "no such topic: \0"}, clock_offset=-6.25, lag=7)
    for row in (old, a_replica(), broken):
        await ledger.replicas.write(row)
    assert await ledger.replicas.all() == [old, broken]
    assert [one.seen(NOW) for one in (old, broken)] == [False, True]

    again = a_replica("new:1", at=NOW + 2 * SECOND)
    await ledger.replicas.write(again)
    assert await ledger.replicas.all() == [again, broken]
    await ledger.replicas.remove("new:1")
    assert await ledger.replicas.all() == [broken]


async def waits(ledger: Ledger, *, at: float = 0) -> dict[str, list[Wait]]:
    """What each delivery waits for, by its key, `at` seconds after NOW."""
    found = await ledger.history.find(Filter(), limit=9)
    return {one.delivery.key: [*one.waits_for] for one in await ledger.queries.with_waits(found, now=NOW + at * SECOND)}


async def test_a_message_waits_for_the_first_waiting_message_of_its_thread(ledger: Ledger) -> None:
    await ledger.replicas.write(a_replica())
    chain = [
        a_delivery(key="first", thread="t", subject="s"),
        a_delivery(key="notice", thread="t", subject="s", thread_at=NOW + SECOND, kind=Kind.RESOLVED_NOTICE),
        a_delivery(key="then", thread="t", subject="s", thread_at=NOW + SECOND),
        a_delivery(key="other", thread="u", subject="s"),
    ]
    await ledger.record([recorded(*chain)], [], now=NOW)
    found = await waits(ledger)
    assert {key: [one.delivery for one in several] for key, several in found.items()} == {
        "first": [None],
        "notice": ["first"],
        "then": ["first"],
        "other": [None],
    }
    assert found["notice"][0].kind is WaitKind.THREAD

    (first, _) = sorted(await claim(ledger, lease="web-1:7:email"), key=lambda one: one.key)
    assert [one.kind for one in (await waits(ledger))["first"]] == [WaitKind.LEASE]
    assert (await waits(ledger))["first"][0].replicas == ["web-1:7"]
    await ledger.settle(settlement(first, Retry(NOW + MINUTE, "away")))
    assert [(one.kind, one.until) for one in (await waits(ledger))["first"]] == [(WaitKind.RETRY, NOW + MINUTE)]


async def test_a_delivery_waits_for_its_slot_or_for_the_end_of_its_destinations_pause(ledger: Ledger) -> None:
    await ledger.replicas.write(a_replica(channels={"slack": {}}))
    await ledger.record([recorded(slack("C1", 1), slack("C1", 2), slack("C2", 1), slack("C2", 2))], [], now=NOW)
    once_a_minute = RateLimit(rate=Rate(1, "min"))
    claimed = {one.key: one for one in (await claim_slack(ledger, rate_limit=once_a_minute)).deliveries}
    assert sorted(claimed) == ["C1001", "C2001"]
    found = await waits(ledger, at=1)
    assert [(one.kind, one.until) for one in found["C1002"]] == [(WaitKind.RATE_LIMIT, NOW + 61 * SECOND)]

    failed = settlement(claimed["C1001"], Retry(NOW + SECOND, "away"))
    for _ in range(FAILURES_TO_OPEN):  # the breaker of destination C1 opens
        await ledger.settle(replace(failed, feedback=Feedback("C1", NOW + SECOND)))
    await claim_slack(ledger, at=2, rate_limit=RateLimit())
    (wait,) = (await waits(ledger, at=2))["C1001"]
    assert (wait.kind, wait.until) == (WaitKind.PAUSE, NOW + 6 * SECOND)
