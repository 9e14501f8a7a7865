"""Purges, on SQLite and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from dispatcher.ledger import Deed, Filter, Ledger
from dispatcher.model.delivery import DropReason, Kind, State
from tests.support.builders import NOW, SECOND, a_delivery, a_silence, an_event
from tests.support.ledger_steps import (
    MINUTE,
    SENT,
    an_action,
    claim,
    claim_slack,
    recorded,
    rejected,
    settlement,
    slack,
)


async def test_a_purge_deletes_old_finished_events_and_nothing_else(ledger: Ledger) -> None:
    old, open_one, young = an_event(name="old"), an_event(name="open"), an_event(name="young")
    same = {"subject": "the same content"}
    await ledger.record(
        [recorded(a_delivery(old, content=same), event=old), recorded(a_delivery(open_one), event=open_one)],
        [],
        now=NOW,
    )
    await ledger.record([recorded(a_delivery(young, content=same), event=young)], [], now=NOW + MINUTE)
    for delivery in await claim(ledger):
        if delivery.event != open_one.key:
            await ledger.settle(settlement(delivery, SENT))

    assert await ledger.purge(NOW + SECOND, limit=10) == 1
    assert await ledger.purge(NOW + SECOND, limit=10) == 0

    remaining = await ledger.history.find(Filter(), limit=10)
    assert {one.delivery.event for one in remaining} == {open_one.key, young.key}
    assert {(one.delivery.content or {})["subject"] for one in remaining} == {"failed", "the same content"}
    assert await ledger.history.event(old.key) is None


async def test_a_purge_deletes_old_rejected_messages(ledger: Ledger) -> None:
    await ledger.record([], [rejected(), rejected("young", received_at=NOW + MINUTE)], now=NOW)

    assert await ledger.purge(NOW + SECOND, limit=10) == 1
    assert [entry.id for entry in await ledger.rejected.find(limit=5)] == ["young"]


async def test_a_purge_keeps_destinations_whose_bucket_is_not_full_again(ledger: Ledger) -> None:
    await ledger.record([recorded(slack("#a"), slack("#a", 1), slack("#a", 2))], [], now=NOW)
    await claim_slack(ledger)
    await ledger.purge(NOW + SECOND, limit=10)
    assert (await claim_slack(ledger, at=1.5)).deliveries == []  # the state of "#a" was kept


async def test_after_a_purge_the_ledger_is_complete_since_the_newest_event_that_was_old_enough(ledger: Ledger) -> None:
    """Not since the time up to which was purged: after a long downtime, nothing between the two was ever recorded."""
    await ledger.checkpoints.record_first_start(now=NOW)
    await ledger.record([recorded(event=an_event(name="a1"))], [], now=NOW + MINUTE)
    await ledger.record([recorded(event=an_event(name="a2"))], [], now=NOW + 2 * MINUTE)
    await ledger.record([], [rejected(received_at=NOW + 3 * MINUTE)], now=NOW + 3 * MINUTE)
    await ledger.record([recorded(event=an_event(name="a3"))], [], now=NOW + 60 * MINUTE)
    since = []
    for before in (2, 3, 50):
        await ledger.purge(NOW + before * MINUTE, limit=1)
        since.append(await ledger.checkpoints.complete_since(now=NOW))
    assert since == [NOW + MINUTE, NOW + 2 * MINUTE, NOW + 3 * MINUTE]


async def test_a_purge_deletes_a_summary_and_what_it_tells_of_together(ledger: Ledger) -> None:
    summary = a_delivery(key="s", kind=Kind.SUMMARY, created_at=NOW + MINUTE)._replace(event="", content=None)
    told: dict[str, Any] = {
        "state": State.DROPPED,
        "drop_reason": DropReason.SILENCE,
        "included_in": "s",
        "created_at": NOW,
    }
    members = [an_event(name=f"m{number}") for number in range(3)]
    for event in members:
        await ledger.record([recorded(a_delivery(event, **told), event=event)], [], now=NOW)
    await ledger.record([recorded(summary, event=an_event(name="other"))], [], now=NOW + MINUTE)
    still_there = {"s", *(a_delivery(event).key for event in members)}

    async def keys() -> set[str]:
        return {one.delivery.key for one in await ledger.history.find(Filter(), limit=9)}

    await ledger.purge(NOW + SECOND, limit=9)
    assert await keys() == still_there  # the members are old enough, and the summary is not
    await ledger.purge(NOW + 2 * MINUTE, limit=9)
    assert await keys() == still_there  # it waits
    (claimed,) = await claim(ledger, now=NOW + MINUTE)
    await ledger.settle(settlement(claimed, SENT))
    assert await ledger.count_purgeable(NOW + 2 * MINUTE) >= len(members)
    await ledger.purge(NOW + 2 * MINUTE, limit=9)
    assert await keys() == set()


async def test_a_purge_deletes_silences_that_can_hold_nothing_any_more(ledger: Ledger) -> None:
    day = timedelta(days=1)
    for name, ended in (("gone", 8), ("holds", 8), ("late", 6)):
        silence = a_silence(name, starts_at=NOW - 9 * day, ends_at=NOW - ended * day)
        await ledger.silences.add(silence, an_action(Deed.SILENCE))
        if name == "holds":
            late_comer = recorded(a_delivery(occurred_at=NOW - 9 * day))
            await ledger.record([replace(late_comer, silences=[silence])], [], now=NOW)
    await ledger.purge(NOW, limit=9)
    assert {one.id for one in await ledger.silences.find(limit=9)} == {"holds", "late"}
