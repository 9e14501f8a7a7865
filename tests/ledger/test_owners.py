"""What the ledger keeps of owners who are not known, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime

from dispatcher.ledger import Ledger, RecordedEvent
from dispatcher.model.delivery import Sent
from dispatcher.model.owner import UnresolvedOwner
from tests.support.builders import NOW, a_delivery, an_event
from tests.support.ledger_steps import MINUTE, claim, recorded, settlement
from tests.support.workers import RECEIPT


def unknown(name: str, principal: str = "bob", label: str = "", at: datetime = NOW) -> RecordedEvent:
    event = an_event(name=name)
    reason = f"principal {principal} is not in owners.map"
    owner = UnresolvedOwner(principal, label, reason, "on-call", event.key, at, at)
    return replace(recorded(event=event), unresolved_owner=owner)


def key(name: str) -> str:
    return an_event(name=name).key


async def test_owners_are_kept_once_with_the_newest_event_and_the_number_of_events(ledger: Ledger) -> None:
    await ledger.record([unknown("a"), unknown("b", at=NOW + MINUTE), unknown("c", "eve")], [], now=NOW)
    await ledger.record([unknown("a"), unknown("d", at=NOW - MINUTE), unknown("e", "bob", "ml")], [], now=NOW)

    found = await ledger.owners.unresolved(limit=10)

    assert [(one.principal, one.label, one.event, one.events, one.first_at, one.last_at) for one in found] == [
        ("bob", "", key("b"), 3, NOW, NOW + MINUTE),
        ("bob", "ml", key("e"), 1, NOW, NOW),
        ("eve", "", key("c"), 1, NOW, NOW),
    ]
    assert (found[0].reason, found[0].instead) == ("principal bob is not in owners.map", "on-call")
    assert [one.principal for one in await ledger.owners.unresolved(limit=1)] == ["bob"]


async def test_two_replicas_count_every_event_once(ledger: Ledger, ledger_url: str) -> None:
    batches = [
        [unknown(f"e{batch}-{number}", f"p{number * sign % 7}") for number in range(20)]
        for batch in range(10)
        for sign in (1, -1)
    ]
    async with Ledger(ledger_url) as other:
        await asyncio.gather(
            *(one.record(batch, [], now=NOW) for batch in batches for one in (ledger, other)),
        )
    found = await ledger.owners.unresolved(limit=10)
    assert (len(found), sum(one.events for one in found)) == (7, 10 * 20)


async def test_any_principal_and_label_can_be_kept(ledger: Ledger) -> None:
    hostile = ["", "\0", "\ud800", "'; DROP TABLE events --", "x" * 100_000, "x" * 100_000 + "y", "b\nb"]
    await ledger.record([unknown(f"e{at}", text, text) for at, text in enumerate(hostile)], [], now=NOW)
    found = await ledger.owners.unresolved(limit=10)
    assert len(found) == len(hostile)
    assert max(len(one.principal) for one in found) == 255


async def test_an_owner_without_an_address_is_kept_with_the_settlement_of_the_delivery(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery())], [], now=NOW)
    (delivery,) = await claim(ledger)
    owner = UnresolvedOwner("bob", "", "no such mailbox", "", delivery.event, NOW, NOW)
    done = replace(settlement(delivery, Sent(RECEIPT)), unresolved_owner=owner)

    assert await ledger.settle(done)
    assert not await ledger.settle(done)  # the lease is lost, so it is not counted again

    assert await ledger.owners.unresolved(limit=10) == [owner]


async def test_a_purge_deletes_owners_without_a_later_event(ledger: Ledger) -> None:
    await ledger.record([unknown("a"), unknown("b", "eve", at=NOW + MINUTE)], [], now=NOW)
    await ledger.purge(NOW + MINUTE, limit=10)
    assert [one.principal for one in await ledger.owners.unresolved(limit=10)] == ["eve"]
