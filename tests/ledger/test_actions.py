"""Operators' actions, on SQLite and on PostgreSQL."""

from __future__ import annotations

from dispatcher.ledger import DeliveryFilter, Ledger
from dispatcher.model.delivery import Dead
from tests.support.builders import NOW, a_delivery
from tests.support.ledger_steps import MINUTE, an_action, claim, recorded, settlement


async def test_a_redrive_makes_matching_dead_deliveries_due_with_a_new_retry_budget(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery(), a_delivery(to="b@example.com"))], [], now=NOW)
    for delivery in await claim(ledger):
        await ledger.settle(settlement(delivery, Dead("gave up")))
    (one, _) = await ledger.history.find(DeliveryFilter(), limit=5)

    assert await ledger.redrive(DeliveryFilter(channel="slack"), an_action(at=NOW + MINUTE)) == 0
    assert await ledger.redrive(DeliveryFilter(keys=[one.delivery.key[:8]]), an_action(at=NOW + MINUTE)) == 1

    (again,) = await claim(ledger, now=NOW + MINUTE)
    assert (again.key, again.attempt, again.retry_window_start, again.created_at) == (
        one.delivery.key,
        1,
        NOW + MINUTE,
        NOW,
    )
    assert await ledger.redrive(DeliveryFilter(), an_action(at=NOW + MINUTE)) == 1
