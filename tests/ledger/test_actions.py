"""Operators' actions, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from sqlalchemy import text

from dispatcher.ledger import Deed, Filter, Ledger
from dispatcher.ledger.claim import claim as statements_of_claim
from dispatcher.ledger.engine import Database
from dispatcher.model.delivery import Dead, Delivery, DropReason, Retry, State
from dispatcher.model.rate_limit import AdmissionControl, RateLimit
from tests.support.builders import NOW, SECOND, a_delivery, an_event
from tests.support.ledger_steps import MINUTE, SENT, an_action, claim, recorded, rejected, settlement
from tests.support.ledgers import opened_database
from tests.support.waiting import until


async def test_a_redrive_makes_matching_dead_deliveries_due_with_a_new_retry_budget(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery(), a_delivery(to="b@example.com"))], [], now=NOW)
    for delivery in await claim(ledger):
        await ledger.settle(settlement(delivery, Dead("gave up")))
    (one, _) = await ledger.history.find(Filter(), limit=5)

    assert await ledger.change(Filter(channel="slack"), an_action(at=NOW + MINUTE)) == 0
    assert await ledger.change(Filter(keys=[one.delivery.key[:8]]), an_action(at=NOW + MINUTE)) == 1

    (again,) = await claim(ledger, now=NOW + MINUTE)
    assert (again.key, again.attempt, again.retry_window_start, again.created_at) == (
        one.delivery.key,
        1,
        NOW + MINUTE,
        NOW,
    )
    assert await ledger.change(Filter(), an_action(at=NOW + MINUTE)) == 1


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
    await ledger.change(Filter(keys=[one.key]), first)
    (again,) = await claim(ledger, now=NOW + MINUTE)
    await ledger.settle(settlement(again, Dead("gave up again")))
    second = an_action(at=NOW + 2 * MINUTE)
    assert await ledger.change(Filter(), second) == 2

    stored = an_action(at=NOW + MINUTE, scope="1 key", why="the relay is fixed \ufffd")
    assert await ledger.history.actions(one.key) == [stored, second]
    assert await ledger.history.actions(other.key) == [second]
    assert await ledger.history.latest_actions(limit=9) == [second, stored]
    assert await ledger.history.latest_actions(limit=9, since=second.at) == [second]


async def test_an_action_that_changes_nothing_is_not_recorded(ledger: Ledger) -> None:
    assert await ledger.change(Filter(), an_action()) == 0
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
    await ledger.change(Filter(), redrive)
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


async def test_waiting_deliveries_are_cancelled_and_retried_now_but_not_those_that_are_being_sent(
    ledger: Ledger,
) -> None:
    names = ("tried", "doubtful", "slot", "sending")
    keys = {name: a_delivery(to=name).key for name in names}
    slot = a_delivery(to="slot", due_at=NOW + MINUTE, slot_reserved=True)
    others = [a_delivery(to=name) for name in names if name != "slot"]
    await ledger.record([recorded(slot, *others)], [], now=NOW)
    for one in await claim(ledger, lasting=3 * MINUTE):
        if one.key != keys["sending"]:
            doubt = one.key == keys["doubtful"]
            await ledger.settle(settlement(one, Retry(NOW + MINUTE, "503", in_doubt=doubt)))

    async def stored(name: str) -> Delivery:
        (found,) = await ledger.history.find(Filter(keys=[keys[name]]), limit=2)
        return found.delivery

    assert await ledger.change(Filter(), an_action(Deed.RETRY_NOW, at=NOW + SECOND)) == 3
    tried, waits_for_slot, sending = [await stored(name) for name in ("tried", "slot", "sending")]
    assert (tried.due_at, tried.attempt, tried.retry_window_start) == (NOW + SECOND, 0, NOW + SECOND)
    assert (waits_for_slot.due_at, waits_for_slot.slot_reserved) == (NOW + MINUTE, True), "the slot is kept"
    assert (sending.attempt, sending.lease) == (1, "me")

    assert await ledger.change(Filter(keys=[keys["sending"]]), an_action(Deed.CANCEL, at=NOW + SECOND)) == 0
    cancel = an_action(Deed.CANCEL, at=NOW + SECOND, why="no more \0")
    assert await ledger.change(Filter(), cancel) == 3
    cancelled = await stored("tried")
    assert (cancelled.state, cancelled.drop_reason) == (State.DROPPED, DropReason.CANCELLED)
    assert (cancelled.reason, cancelled.in_doubt) == ("cancelled by ada: no more \ufffd", False)
    assert (await stored("doubtful")).in_doubt, "its message may have arrived"
    assert await ledger.change(Filter(), an_action(Deed.REDRIVE)) == 0, "a dropped delivery is not dead"

    late = an_action(Deed.CANCEL, at=NOW + 3 * MINUTE)
    assert await ledger.change(Filter(), late) == 1, "the lease has run out"
    lost = await stored("sending")
    assert (lost.state, lost.lease, lost.in_doubt) == (State.DROPPED, None, True)
    assert not await ledger.settle(settlement(sending, SENT)), "the worker has lost its lease"
    assert await claim(ledger, now=NOW + 9 * MINUTE) == []


async def test_each_delivery_is_either_cancelled_or_claimed_if_both_happen_at_once(ledger: Ledger) -> None:
    for name in ("e0", "e1", "e2", "e3"):
        event = an_event(name=name)
        waiting = [a_delivery(event, to=f"{one}@example.com") for one in range(40)]
        await ledger.record([recorded(*waiting, event=event)], [], now=NOW)
        filters = (Filter(execution=name), Filter(keys=[one.key for one in waiting[::-2]]), Filter(channel="email"))
        async with asyncio.TaskGroup() as group:
            claims = [group.create_task(claim(ledger, 5, lease=f"worker {worker}")) for worker in range(2)]
            cancels = [group.create_task(ledger.change(wanted, an_action(Deed.CANCEL))) for wanted in filters]
            claims += [group.create_task(claim(ledger, 5, lease=f"worker {worker}")) for worker in (2, 3)]

        claimed = [one for some in claims for one in some.result()]
        stored = [one.delivery for one in await ledger.history.find(Filter(execution=name), limit=99)]
        dropped = [one.key for one in stored if one.state is State.DROPPED]
        assert sorted([*(one.key for one in claimed), *dropped]) == sorted(one.key for one in waiting)
        assert sum(one.result() for one in cancels) == len(dropped) > 0
        for one in claimed:
            assert await ledger.settle(settlement(one, SENT)), "its worker still has the lease"


async def test_a_cancel_waits_for_a_claim_and_leaves_its_deliveries_alone(postgres_url: str) -> None:
    async with Ledger(postgres_url) as ledger, opened_database(postgres_url) as database:
        await ledger.record([recorded(a_delivery())], [], now=NOW)
        admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
        async with database.writing() as connection:
            taking = partial(
                statements_of_claim, channel="email", limit=9, lease="me", until=NOW + MINUTE, admission=admission
            )
            (sending,) = (await connection.run_sync(taking)).deliveries
            cancel = asyncio.create_task(ledger.change(Filter(), an_action(Deed.CANCEL)))
            await until(lambda: waiting_for_locks(database))
        assert await cancel == 0
        assert await ledger.history.latest_actions(limit=9) == []
        assert await ledger.settle(settlement(sending, SENT))


async def waiting_for_locks(database: Database) -> int:
    """The number of the database's connections that wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with database.reading() as connection:
        return await connection.scalar(text(query)) or 0


async def test_dismissed_deliveries_are_no_longer_dead_and_keep_their_reason(
    ledger: Ledger, dead: list[Delivery]
) -> None:
    one, other = dead
    dismiss = an_action(Deed.DISMISS, at=NOW + MINUTE, why="she has left")
    assert await ledger.change(Filter(keys=[one.key]), dismiss) == 1
    stored = await ledger.history.delivery(one.key)
    assert stored is not None
    assert (stored.delivery.state, stored.delivery.drop_reason) == (State.DROPPED, DropReason.DISMISSED)
    assert stored.delivery.reason == "dismissed by ada: she has left; it was dead: gave up"
    assert stored.settled_at == NOW + MINUTE
    assert await ledger.history.actions(one.key) == [dismiss]
    assert (await ledger.queries.status()).dead.number == 1
    assert await ledger.change(Filter(), an_action(Deed.CANCEL)) == 0, f"{other.key} is dead"


async def test_dismissed_rejected_messages_no_longer_count_and_can_not_be_dismissed_twice(ledger: Ledger) -> None:
    await ledger.record([], [rejected("a"), rejected("b"), rejected("c")], now=NOW)
    dismiss = an_action(Deed.DISMISS, at=NOW + MINUTE, scope="2 messages")
    assert await ledger.rejected.dismiss(["a", "b"], dismiss) == 2
    assert await ledger.rejected.dismiss(["a", "b"], dismiss) == 0
    assert await ledger.history.latest_actions(limit=9) == [dismiss]
    assert (await ledger.queries.status()).rejected.number == 1
    assert [one.id for one in (await ledger.queries.rejected(limit=9, replayed=False)).entries] == ["c"]
    assert {one.dismissed_at for one in (await ledger.queries.rejected(limit=9)).entries} == {None, NOW + MINUTE}


async def test_what_a_purge_would_delete_is_counted(ledger: Ledger, dead: list[Delivery]) -> None:
    waiting = an_event(name="waits")
    await ledger.record([recorded(a_delivery(waiting), event=waiting)], [rejected()], now=NOW)
    assert await ledger.count_purgeable(NOW) == 0
    assert await ledger.count_purgeable(NOW + SECOND) == 2
    assert await ledger.purge(NOW + SECOND, limit=9) == 2
    assert len(dead) == 2
