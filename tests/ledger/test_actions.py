"""Operators' actions, on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest

from dispatcher.ledger import Deed, Filter, Ledger
from dispatcher.model.delivery import Dead, Delivery
from tests.support.builders import NOW, SECOND, a_delivery, an_event
from tests.support.ledger_steps import MINUTE, SENT, an_action, claim, recorded, rejected, settlement


async def test_a_redrive_makes_matching_dead_deliveries_due_with_a_new_retry_budget(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery(), a_delivery(to="b@example.com"))], [], now=NOW)
    for delivery in await claim(ledger):
        await ledger.settle(settlement(delivery, Dead("gave up")))
    (one, _) = await ledger.history.find(Filter(), limit=5)

    assert await ledger.redrive(Filter(channel="slack"), an_action(at=NOW + MINUTE)) == 0
    assert await ledger.redrive(Filter(keys=[one.delivery.key[:8]]), an_action(at=NOW + MINUTE)) == 1

    (again,) = await claim(ledger, now=NOW + MINUTE)
    assert (again.key, again.attempt, again.retry_window_start, again.created_at) == (
        one.delivery.key,
        1,
        NOW + MINUTE,
        NOW,
    )
    assert await ledger.redrive(Filter(), an_action(at=NOW + MINUTE)) == 1


@pytest.fixture
async def dead(ledger: Ledger) -> list[Delivery]:
    """Two dead deliveries of one event."""
    await ledger.record([recorded(a_delivery(), a_delivery(to="b@example.com"))], [], now=NOW)
    claimed = await claim(ledger)
    for delivery in claimed:
        await ledger.settle(settlement(delivery, Dead("gave up")))
    return claimed


async def test_each_delivery_has_the_redrives_that_concerned_it_in_order(ledger: Ledger, dead: list[Delivery]) -> None:
    one, other = dead
    first = an_action(at=NOW + MINUTE, scope="1 key", why="the relay is fixed \0")
    await ledger.redrive(Filter(keys=[one.key]), first)
    (again,) = await claim(ledger, now=NOW + MINUTE)
    await ledger.settle(settlement(again, Dead("gave up again")))
    second = an_action(at=NOW + 2 * MINUTE)
    assert await ledger.redrive(Filter(), second) == 2

    stored = an_action(at=NOW + MINUTE, scope="1 key", why="the relay is fixed \ufffd")
    assert await ledger.history.actions(one.key) == [stored, second]
    assert await ledger.history.actions(other.key) == [second]
    assert await ledger.history.latest_actions(limit=9) == [second, stored]
    assert await ledger.history.latest_actions(limit=9, since=second.at) == [second]


async def test_an_action_that_changes_nothing_is_not_recorded(ledger: Ledger) -> None:
    assert await ledger.redrive(Filter(), an_action()) == 0
    assert await ledger.purge(NOW, limit=9, action=an_action(Deed.PURGE)) == 0
    assert await ledger.history.latest_actions(limit=9) == []


async def test_a_replay_concerns_the_deliveries_of_the_events_that_it_records(ledger: Ledger) -> None:
    event = an_event()
    delivery = a_delivery(event)
    await ledger.record([recorded(delivery)], [rejected(event=event.key)], now=NOW)
    replay = an_action(Deed.REPLAY, at=NOW + MINUTE, scope="message a")
    await ledger.rejected.mark_replayed("a", event=event.key, action=replay)
    assert await ledger.history.actions(delivery.key) == [replay]


async def test_an_action_is_kept_until_it_and_all_its_deliveries_are_purged(
    ledger: Ledger, dead: list[Delivery]
) -> None:
    redrive = an_action(at=NOW + SECOND)
    await ledger.redrive(Filter(), redrive)
    first = an_action(Deed.PURGE, at=NOW + MINUTE)
    assert await ledger.purge(NOW + MINUTE, limit=9, action=first) == 0, "the deliveries wait"
    assert await ledger.history.latest_actions(limit=9) == [redrive]

    for delivery in await claim(ledger, now=NOW + MINUTE):
        await ledger.settle(settlement(delivery, SENT))
    assert await ledger.purge(NOW + SECOND, limit=9, action=first) == 1
    assert await ledger.history.latest_actions(limit=9) == [first, redrive], "the redrive is not old enough"
    await ledger.purge(NOW + MINUTE, limit=9)
    assert await ledger.history.latest_actions(limit=9) == [first]
    assert await ledger.history.actions(dead[0].key) == []
