"""Reads of events and deliveries, on SQLite and on PostgreSQL."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from dispatcher.ledger import Filter, Ledger
from dispatcher.model.delivery import State
from dispatcher.model.phase import Phase
from tests.support.builders import NOW, SECOND, a_delivery, an_event
from tests.support.ledger_steps import MINUTE, recorded, rejected


async def test_deliveries_are_found_by_state_channel_execution_time_and_key(ledger: Ledger) -> None:
    one, two = an_event(name="one"), an_event(name="on")
    slack = a_delivery(two, channel="slack", to="#a", created_at=NOW + MINUTE)
    await ledger.record([recorded(a_delivery(one), event=one), recorded(slack, event=two)], [], now=NOW)

    async def found(**wanted: Any) -> list[str]:
        return [one.delivery.channel for one in await ledger.history.find(Filter(**wanted), limit=10)]

    assert await found() == ["slack", "email"]
    assert await found(channel="slack") == ["slack"]
    assert await found(execution="flytesnacks/production/on") == ["slack"]
    assert await found(since=NOW + SECOND) == ["slack"]
    assert await found(states=frozenset({State.DEAD})) == []
    assert await found(keys=[slack.key[:10]]) == ["slack"]


async def test_events_are_read_as_they_were_recorded(ledger: Ledger) -> None:
    event = an_event(labels={"team": "a"}, error={"message": "boom\0\x1b[31m", "kind": "USER"})
    await ledger.record([recorded(event=event)], [], now=NOW)

    assert await ledger.history.event(event.key) == event
    assert await ledger.history.event("no/such/event/FAILED") is None


async def test_notified_returns_the_channels_and_addresses_of_an_events_deliveries(ledger: Ledger) -> None:
    await ledger.record([recorded(a_delivery(), a_delivery(channel="slack", to="#a"))], [], now=NOW)

    assert await ledger.history.notified(an_event().key) == {("email", "dev-team@example.com"), ("slack", "#a")}


async def test_a_delivery_created_at_a_full_second_is_found_since_that_second(ledger: Ledger) -> None:
    """SQLite compares times as text, so every stored time needs its microseconds."""
    assert NOW.microsecond == 0
    await ledger.record([recorded(a_delivery())], (), now=NOW)
    assert await ledger.history.find(Filter(since=NOW), limit=10)
    assert not await ledger.history.find(Filter(since=NOW + timedelta(microseconds=1)), limit=10)


async def test_an_executions_events_are_returned_in_the_order_of_recording(ledger: Ledger) -> None:
    aborted, failed, other = an_event(Phase.ABORTED), an_event(Phase.FAILED), an_event(name="akx7b9q2vjt5fm4c8h2d2")
    await ledger.record([recorded(event=aborted)], [], now=NOW)
    await ledger.record([recorded(event=failed), recorded(event=other)], [], now=NOW + MINUTE)

    stored = await ledger.history.events(failed.execution)

    assert [entry.event for entry in stored] == [aborted, failed]
    assert (stored[0].recorded_at, stored[0].position, stored[0].reason) == (
        NOW,
        "flyte-cloudevents/0@7",
        "1 rule matched",
    )


async def test_seen_events_are_those_recorded_or_rejected(ledger: Ledger) -> None:
    recorded_key, rejected_key, unseen = (an_event(name=name).key for name in ("recorded", "rejected", "neither"))
    await ledger.record([recorded(event=an_event(name="recorded"))], [rejected(event=rejected_key)], now=NOW)
    assert await ledger.history.seen([recorded_key, rejected_key, unseen]) == {recorded_key, rejected_key}
    assert await ledger.history.seen([]) == frozenset()


async def test_the_newest_event_is_the_one_recorded_last(ledger: Ledger) -> None:
    assert await ledger.history.newest() is None
    for minute, name in enumerate(("first", "second")):
        await ledger.record([recorded(event=an_event(name=name))], [], now=NOW + minute * MINUTE)
    assert await ledger.history.newest() == (an_event(name="second").key, NOW + MINUTE)
