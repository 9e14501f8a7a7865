"""Claims: leases, order, rate limits and circuit breakers, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from dispatcher.ledger import Ledger
from dispatcher.model.delivery import Retry
from dispatcher.model.rate_limit import FAILURES_TO_OPEN, Feedback, Rate, RateLimit
from tests.support.builders import NOW, SECOND, a_delivery, an_event
from tests.support.ledger_steps import MINUTE, SENT, claim, claim_slack, recorded, settlement, slack
from tests.support.ledgers import captured_statements


async def test_a_claimed_delivery_is_not_claimed_again_until_its_lease_runs_out(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    await claim(ledger)

    assert await claim(ledger, lease="other", now=NOW + MINUTE - SECOND) == []
    (taken,) = await claim(ledger, lease="other", now=NOW + MINUTE)
    assert (taken.attempt, taken.lease, taken.in_doubt) == (2, "other", True)


async def test_claims_never_exceed_their_limit_and_never_overlap(ledger: Ledger) -> None:
    events = [an_event(name=f"e{number}") for number in range(60)]
    await ledger.record([recorded(a_delivery(event), event=event) for event in events], [], now=NOW)

    claims = await asyncio.gather(*(claim(ledger, 10, lease=f"w{worker}") for worker in range(8)))

    assert all(len(taken) <= 10 for taken in claims)
    keys = [delivery.key for taken in claims for delivery in taken]
    assert len(keys) == len(set(keys)) == 60


async def test_the_oldest_due_delivery_is_claimed_first_and_others_wait_until_they_are_due(ledger: Ledger) -> None:
    deliveries = [a_delivery(to=f"{number}@example.com", due_at=NOW - number * SECOND) for number in (0, 5, -5)]
    await ledger.record([recorded(*deliveries)], [], now=NOW)

    assert [delivery.recipients for delivery in await claim(ledger, 1)] == [("5@example.com",)]
    assert [delivery.recipients for delivery in await claim(ledger, 5)] == [("0@example.com",)]


async def test_a_claim_reads_due_deliveries_by_index_and_not_all_waiting_ones(tmp_path: Path) -> None:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        await ledger.record([recorded(a_delivery())], [], now=NOW)
        with captured_statements() as asked:
            await claim(ledger, 1)
    ((query, given),) = [(query, given) for query, given in asked if "JOIN contents" in query]
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}", given)]
    assert plan[0] == "SEARCH deliveries USING INDEX ix_deliveries_due (channel=? AND due_at<?)"
    unwanted = {"TEMP B-TREE", "ix_deliveries_state_created_at", "ix_deliveries_backlog", "SCAN"}
    assert not [step for step in plan if any(one in step for one in unwanted)]
    assert [step for step in plan if "ix_deliveries_thread_waiting (thread=? AND state=?)" in step], (
        "not the whole history"
    )


async def test_a_released_delivery_is_due_at_its_time_and_its_attempt_is_not_counted(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (delivery,) = await claim(ledger)

    await ledger.release(delivery._replace(in_doubt=True), due_at=NOW)

    (again,) = await claim(ledger, lease="other")
    assert (again.attempt, again.in_doubt) == (1, True)


async def test_a_destination_gets_its_burst_and_then_one_delivery_at_each_slot(ledger: Ledger) -> None:
    await ledger.record([recorded(*(slack("#a", number) for number in range(250)), slack("#b", 300))], [], now=NOW)

    first = await claim_slack(ledger)
    assert [delivery.key for delivery in first.deliveries] == ["#a000", "#a001", "#b300"]
    assert first.next_at == NOW + 2 * SECOND
    for second in (2, 3, 4):
        slot = await claim_slack(ledger, at=second)
        assert [delivery.key for delivery in slot.deliveries] == [f"#a{second:03}"]
    assert (await claim_slack(ledger, at=4.5)).deliveries == []


async def test_replicas_share_a_destinations_rate_limit(ledger: Ledger, ledger_url: str) -> None:
    await ledger.record([recorded(*(slack("#a", number) for number in range(40)))], [], now=NOW)
    await claim_slack(ledger)
    async with Ledger(ledger_url) as other:
        claims = await asyncio.gather(*(claim_slack(one, at=11) for one in (ledger, other) * 3))

    assert sorted(delivery.key for claim in claims for delivery in claim.deliveries) == [
        f"#a{n:03}" for n in range(2, 12)
    ]


async def test_a_retry_after_of_a_destination_applies_to_all_replicas(ledger: Ledger, ledger_url: str) -> None:
    await ledger.record([recorded(*(slack("#a", number) for number in range(3)), slack("#b"))], [], now=NOW)
    delivery, *_ = (await claim_slack(ledger, 1)).deliveries
    asked_pause = Feedback("#a", NOW + SECOND, retry_after=30 * SECOND)
    await ledger.settle(replace(settlement(delivery, Retry(NOW + 31 * SECOND, "slow down")), feedback=asked_pause))

    async with Ledger(ledger_url) as other:
        others = await claim_slack(other, at=2)
        assert [delivery.key for delivery in others.deliveries] == ["#b000"]
        assert (await claim_slack(other, at=30.9)).deliveries == []
        assert len((await claim_slack(other, at=33)).deliveries) == 3


async def test_an_open_breaker_lets_one_probe_through_and_its_success_closes_it(ledger: Ledger) -> None:
    rate_limit = RateLimit(max_in_flight=9)
    await ledger.record([recorded(*(slack("#a", number) for number in range(20)))], [], now=NOW)
    failing = (await claim_slack(ledger, FAILURES_TO_OPEN, rate_limit=rate_limit)).deliveries
    for delivery in failing:
        failed = settlement(delivery, Retry(NOW + MINUTE, "busy"))
        await ledger.settle(replace(failed, feedback=Feedback("#a", NOW + SECOND)))

    assert (await claim_slack(ledger, at=2, rate_limit=rate_limit)).deliveries == []
    (probe,) = (await claim_slack(ledger, at=7, rate_limit=rate_limit)).deliveries
    assert probe.destination_failing
    await ledger.settle(replace(settlement(probe, SENT), feedback=Feedback("#a", NOW + 8 * SECOND, succeeded=True)))
    freed = (await claim_slack(ledger, at=13, rate_limit=rate_limit)).deliveries
    assert (len(freed), {delivery.destination_failing for delivery in freed}) == (9, {False})


async def test_a_deferred_delivery_stays_in_doubt(ledger: Ledger) -> None:
    await ledger.record([recorded(slack("#a"), slack("#a", 1))], [], now=NOW)
    assert len((await claim_slack(ledger)).deliveries) == 2  # their worker crashes and never settles them
    one_at_a_time = RateLimit(rate=Rate(1, "min"))
    first = await claim_slack(ledger, at=100, rate_limit=one_at_a_time)
    later = await claim_slack(ledger, at=200, rate_limit=one_at_a_time)
    assert [(len(claim.deliveries), claim.deliveries[0].in_doubt) for claim in (first, later)] == [(1, True)] * 2
