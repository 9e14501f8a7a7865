"""What waits already when a silence begins, is extended or is ended early."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import count
from random import Random
from typing import Any

import pytest

from dispatcher.clock import SystemClock
from dispatcher.flyte.encode import Format, write
from dispatcher.holding.silences import LONGEST, Silence
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import Deed, Filter, Ledger, silencing
from dispatcher.model.delivery import Delivery, DropReason, Kind, Retry, State, Success
from dispatcher.model.event import CANARY_DOMAIN, CANARY_PROJECT, Event, ExecutionId, Options
from dispatcher.model.hold import HoldReason, Then
from dispatcher.model.phase import Phase
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rules import RuleBook
from dispatcher.rules.silences import test_of as matcher_test
from tests.support.builders import NOW, SECOND, a_delivery, a_launch_plan, a_notification, a_silence, an_event
from tests.support.ledger_steps import MINUTE, an_action, claim, recorded, settlement
from tests.support.ledgers import execute

HOUR = 60 * MINUTE
WINDOW: Mapping[str, Any] = {
    "hold": HoldReason.WINDOW,
    "held_by": "contact ml",
    "held_since": NOW,
    "hold_then": Then.SUMMARY,
}
DIGEST: Mapping[str, Any] = {"hold": HoldReason.DIGEST, "held_by": "d1", "held_since": NOW, "hold_then": Then.SUMMARY}


async def record(ledger: Ledger, name: str, *, project: str = "flytesnacks", **fields: Any) -> Delivery:
    """Record an event with one delivery, whose key is the name."""
    event = an_event(name=name, launch_plan=a_launch_plan())
    if project != "flytesnacks":
        event = event.model_copy(update={"execution": ExecutionId(project=project, domain=CANARY_DOMAIN, name=name)})
    delivery = a_delivery(event, key=name, **fields)
    await ledger.record([recorded(delivery, event=event)], [], now=NOW)
    return delivery


async def silenced(ledger: Ledger, silence: Silence, *, now: timedelta = timedelta()) -> Silence:
    """Add the silence, and hold what waits."""
    await ledger.silences.add(silence, an_action(Deed.SILENCE))
    await ledger.silences.follow(silence, matcher_test(silence), now=NOW + now)
    return silence


async def moved(ledger: Ledger, silence: Silence, *, ends: timedelta, now: timedelta = timedelta()) -> Silence:
    """End or extend the silence, and follow it."""
    times = {"starts_at": silence.starts_at, "ends_at": NOW + ends}
    changed = await ledger.silences.move(silence, an_action(Deed.EXTEND_SILENCE), **times)
    assert changed is not None
    await ledger.silences.follow(changed, matcher_test(changed), now=NOW + now)
    return changed


async def held(ledger: Ledger, **wanted: Any) -> Mapping[str, tuple[Any, ...]]:
    """What holds each delivery, and until how long after NOW, by its key."""
    found = [one.delivery for one in await ledger.history.find(Filter(**wanted), limit=999)]
    return {
        one.key: (one.held_by, one.hold_then, one.due_at - NOW)
        for one in found
        if one.hold and one.state is State.WAITING
    }


async def test_a_silence_holds_what_waits_and_nothing_that_may_not_be_held(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silencing, "SLICE", 3)
    for number in range(7):
        await record(
            ledger, f"waits{number}", created_at=NOW - number * MINUTE, channel="slack" if number % 2 else "email"
        )
    await record(ledger, "retries", due_at=NOW + 3 * MINUTE, attempt=2, slot_reserved=True)
    await record(ledger, "other", project="other")
    await record(ledger, "canary", project=CANARY_PROJECT)
    await record(ledger, "resolved", kind=Kind.RESOLVED_NOTICE)
    await record(ledger, "change", kind=Kind.CHANGE_EVENT)
    await record(ledger, "doubt", in_doubt=True)
    await record(ledger, "leased", lease="worker", attempt=1)
    await record(ledger, "dead", state=State.DEAD)
    await record(ledger, "within", kind=Kind.FALLBACK_NOTICE)
    await record(ledger, "before", kind=Kind.FALLBACK_NOTICE, occurred_at=NOW - MINUTE)

    await silenced(ledger, a_silence())

    names = [*(f"waits{number}" for number in range(7)), "retries", "within"]
    assert await held(ledger) == dict.fromkeys(names, ("5f0c2a9d", Then.SUMMARY, HOUR))
    kept = await ledger.history.delivery("retries")
    assert kept is not None
    assert (kept.delivery.attempt, kept.delivery.slot_reserved, kept.delivery.held_since) == (2, False, NOW)
    assert kept.delivery.subject == a_launch_plan().key
    _, (stored,) = await ledger.silences.load(now=NOW)
    assert stored.begun


async def test_an_event_that_cannot_be_read_keeps_no_silence_from_holding_the_others(
    ledger: Ledger, ledger_url: str
) -> None:
    for name in ("a", "broken", "z"):
        await record(ledger, name)
    await execute(ledger_url, "UPDATE events SET facts = (SELECT body FROM contents LIMIT 1) WHERE name = 'broken'")
    await silenced(ledger, a_silence())
    assert set(await held(ledger)) == {"a", "z"}
    assert [event.execution.name async for event, *_ in ledger.silences.might_hold(since=NOW)] == ["a", "z"]
    assert await ledger.silences.events([an_event(name="broken").key]) == {}


async def test_of_several_the_last_end_and_the_most_telling_count(ledger: Ledger) -> None:
    await record(ledger, "window until later", due_at=NOW + 2 * HOUR, **WINDOW)
    await record(ledger, "window until sooner", due_at=NOW + MINUTE, **WINDOW)
    await record(ledger, "digest closes later", due_at=NOW + 2 * HOUR, **DIGEST)
    await record(ledger, "digest closes sooner", due_at=NOW + MINUTE, **DIGEST)
    await record(ledger, "before", occurred_at=NOW - MINUTE)
    await record(ledger, "within")
    await silenced(ledger, a_silence(then=Then.DROP))
    assert await held(ledger) == {
        "window until later": ("contact ml", Then.SUMMARY, 2 * HOUR),
        "window until sooner": ("5f0c2a9d", Then.SUMMARY, HOUR),
        "digest closes later": ("d1", Then.SUMMARY, 2 * HOUR),
        "digest closes sooner": ("5f0c2a9d", Then.DROP, HOUR),
        "before": ("5f0c2a9d", Then.SEND, HOUR),
        "within": ("5f0c2a9d", Then.DROP, HOUR),
    }
    await silenced(ledger, a_silence("shorter", ends_at=NOW + MINUTE, then=Then.SEND))
    assert {(by, then) for by, then, _ in (await held(ledger)).values()} == {
        ("contact ml", Then.SEND),
        ("d1", Then.SUMMARY),
        ("5f0c2a9d", Then.SEND),
    }


async def test_a_silence_that_is_extended_or_ended_moves_the_deadlines_of_what_it_holds_alone(ledger: Ledger) -> None:
    silence = a_silence(then=Then.SEND)
    mine: Mapping[str, Any] = {"hold": HoldReason.SILENCE, "held_by": silence.id, "hold_then": Then.SEND}
    late = NOW + HOUR + 2 * MINUTE
    await record(ledger, "held", due_at=silence.ends_at, held_since=NOW, **mine)
    await record(ledger, "held long", due_at=silence.ends_at, held_since=NOW - LONGEST + 90 * MINUTE, **mine)
    await record(ledger, "window", due_at=NOW + 5 * HOUR, **WINDOW)
    silence = await moved(ledger, await silenced(ledger, silence), ends=2 * HOUR)
    assert await held(ledger) == {
        "held": (silence.id, Then.SEND, 2 * HOUR),
        "held long": (silence.id, Then.SEND, 90 * MINUTE),
        "window": ("contact ml", Then.SEND, 5 * HOUR),
    }
    await record(ledger, "late", due_at=NOW + HOUR + 5 * MINUTE, held_since=late, **mine)
    await record(ledger, "by a fast clock", due_at=NOW + 2 * HOUR, held_since=NOW + HOUR + SECOND, **mine)
    await moved(ledger, silence, ends=HOUR, now=HOUR)
    assert {name: until for name, (_, _, until) in (await held(ledger)).items()} == {
        "held": HOUR,
        "held long": HOUR,
        "window": 5 * HOUR,
        "late": HOUR + 5 * MINUTE,
        "by a fast clock": HOUR,
    }


async def test_a_mail_to_several_is_held_for_each_address(ledger: Ledger) -> None:
    names = ("Ann@example.com", "bo@example.com", "cy@example.com")
    mail = await record(ledger, "mail", recipients=names, addresses=names, attempt=1, reason="full", trace="t")
    (delivery,) = await claim(ledger)
    await ledger.settle(settlement(delivery, Retry(NOW + MINUTE, "mailbox full")))
    await silenced(ledger, a_silence())

    found = [one.delivery for one in await ledger.history.find(Filter(), limit=9)]
    assert {one.addresses for one in found} == {(name,) for name in names}
    assert {
        (one.hold, one.due_at, one.reason, one.attempt, one.content["subject"] if one.content else "") for one in found
    } == {(HoldReason.SILENCE, NOW + HOUR, "mailbox full", 2, "failed")}
    for name in names:
        page = await ledger.queries.deliveries(Filter(recipient=name), limit=9)
        assert [one.delivery.addresses for one in page.entries] == [(name,)]
    (first,) = [one for one in found if one.key == mail.key]
    assert (first.addresses, len(await ledger.history.attempts(mail.key))) == (names[:1], 1)


async def test_what_a_success_has_resolved_is_dropped_in_the_place_of_being_held(ledger: Ledger) -> None:
    await record(ledger, "resolved", occurred_at=NOW - HOUR)
    await record(ledger, "open")
    event = an_event(Phase.SUCCEEDED, name="s", launch_plan=a_launch_plan())
    well = Success(
        event=event.key,
        occurred_at=NOW,
        started_at=NOW - MINUTE,
        subjects=(a_launch_plan().key,),
        channels=frozenset(),
        recorded_at=NOW,
    )
    await ledger.record([replace(recorded(event=event), success=well)], [], now=NOW)
    await silenced(ledger, a_silence())
    assert [*await held(ledger)] == ["open"]
    dropped = await ledger.history.delivery("resolved")
    assert dropped is not None
    assert (dropped.delivery.state, dropped.delivery.drop_reason) == (State.DROPPED, DropReason.SUPERSEDED)
    assert dropped.settled_at == NOW


async def test_a_silence_begins_when_its_time_comes_and_what_was_interrupted_is_finished(ledger: Ledger) -> None:
    await record(ledger, "waits", due_at=NOW + 9 * HOUR)
    planned, unreadable = a_silence(starts=HOUR), a_silence("newer", ends_at=NOW + 9 * HOUR, matcher={"cluster": "eu"})
    await silenced(ledger, planned)
    await silenced(ledger, unreadable)
    assert await held(ledger) == {}
    await ledger.silences.begin_due(matcher_test, now=NOW + HOUR - SECOND)
    assert await held(ledger) == {}
    version, _ = await ledger.silences.load(now=NOW)
    await ledger.silences.begin_due(matcher_test, now=NOW + HOUR)
    assert (await ledger.silences.load(now=NOW))[0] == version + 1, "what was matched before the start is matched anew"
    assert await held(ledger) == {}  # it waits longer than the silence
    await record(ledger, "due", due_at=NOW)
    extended = replace(planned, ends_at=NOW + 3 * HOUR)
    moving = {"starts_at": planned.starts_at, "ends_at": extended.ends_at}
    await ledger.silences.move(planned, an_action(), **moving)
    await ledger.silences.follow(planned, matcher_test(planned), now=NOW + HOUR)
    assert await held(ledger) == {}, "who follows a silence that was changed gives up"
    await ledger.silences.begin_due(matcher_test, now=NOW + HOUR)
    assert (await held(ledger))["due"] == (planned.id, Then.SUMMARY, 3 * HOUR)
    assert {one.id: one.begun for one in (await ledger.silences.load(now=NOW))[1]} == {planned.id: True, "newer": False}


def an_intake(ledger: Ledger) -> Intake:
    planner, contents = Planner(addresses={"email": str}, fallbacks={}), Contents(lambda *_, **__: {"text": "hi"})
    return Intake(ledger, lambda: RuleBook({}), planner, contents, SystemClock())


async def test_no_delivery_that_a_silence_covers_is_left_unheld_by_recordings_and_edits_at_the_same_time(
    postgres_url: str,
) -> None:
    projects, options, rng = ("a", "b", "c"), Options(notifications=(a_notification(),)), Random(7)
    now = SystemClock().now()
    kept: dict[str, Silence] = {}

    async def publish(ledger: Ledger, replica: int) -> None:
        intake = an_intake(ledger)
        for batch in count():
            is_last = batch > 5 and len(kept) == 4
            names = [f"r{replica}b{batch}e{number}" for number in range(5)]
            events = [
                Event(
                    execution=ExecutionId(project=rng.choice(projects), domain="d", name=name),
                    phase=Phase.FAILED,
                    occurred_at=now,
                    options=options,
                )
                for name in names
            ]
            messages = [write(event, Format.NATIVE) for event in events]
            await intake.ingest([(one.headers, one.value, "here") for one in messages])
            if is_last:
                break
            await asyncio.sleep(0.01)

    async def edit(ledger: Ledger, number: int) -> None:
        """Add a silence, change it some times, and end every second one."""
        matcher = {"project": projects[number % 3], "phase": "FAILED"}
        begin, end = now - timedelta(hours=1), now + timedelta(hours=1)
        silence = a_silence(f"s{number}", matcher=matcher, starts_at=begin, ends_at=end)
        await ledger.silences.add(silence, an_action(Deed.SILENCE))
        await ledger.silences.follow(silence, matcher_test(silence), now=now)
        for step in range(3):
            end = now if step == 2 and number % 2 else now + timedelta(hours=2 + step)
            changed = await ledger.silences.move(silence, an_action(), starts_at=begin, ends_at=end)
            assert changed is not None
            silence = changed
            await ledger.silences.follow(silence, matcher_test(silence), now=now)
        kept[silence.id] = silence

    async with Ledger(postgres_url) as one, Ledger(postgres_url) as two, asyncio.TaskGroup() as tasks:
        for replica, ledger in enumerate((one, two, one)):
            tasks.create_task(publish(ledger, replica))
        for number in range(4):
            tasks.create_task(edit((one, two)[number % 2], number))
    async with Ledger(postgres_url) as ledger:
        found = [one.delivery for one in await ledger.history.find(Filter(), limit=9999)]
    assert len(found) >= 3 * 6 * 5
    for delivery in found:
        covering = [one for one in kept.values() if one.matcher["project"] == delivery.event.split("/")[0]]
        latest = max(one.ends_at for one in covering)
        if latest == now:
            assert delivery.due_at <= SystemClock().now()
        else:  # what a silence let go of is held until the releaser finds that another one covers it
            assert delivery.hold is HoldReason.SILENCE
            assert delivery.due_at == (now if kept[delivery.held_by].ends_at == now else latest), delivery
