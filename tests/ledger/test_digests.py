"""Digests on SQLite and on PostgreSQL: which messages are members, and what becomes of them, also after a crash."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, event

from channels.contract import Answer, Receipt
from dispatcher.errors import LedgerFailed, LedgerUnavailable
from dispatcher.holding.release import Released
from dispatcher.ledger import ClaimedThread, Filter, Ledger, RecordedEvent, StoredDelivery
from dispatcher.ledger.closing import OVERDUE
from dispatcher.ledger.engine import RollBack
from dispatcher.ledger.releases import Ended
from dispatcher.model.delivery import Dead, Delivery, DropReason, Kind, Outage, Sent, State, Success
from dispatcher.model.hold import DigestOptions, HoldReason, Quiet
from dispatcher.model.phase import Phase
from dispatcher.model.rate_limit import RateLimit
from tests.support.builders import NOW, SECOND, a_delivery, a_launch_plan, a_silence, an_event
from tests.support.ledger_steps import MINUTE, an_action, claim_slack, recorded, settlement
from tests.support.ledgers import execute

OPTIONS = DigestOptions(after=2, within=10 * MINUTE, every=15 * MINUTE)


def failure(name: str, at: float = 0, *, plan: str = "train.daily", to: str = "#ml", **fields: Any) -> RecordedEvent:
    """An execution failed `at` minutes after NOW: a message in the launch plan's thread. The contact has digests."""
    event = an_event(name=name, launch_plan=a_launch_plan(plan))
    event = event.model_copy(update={"occurred_at": NOW + at * MINUTE})
    thread = {"thread": f"{plan} {to}", "subject": plan, "occurred_at": event.occurred_at}
    return recorded(a_delivery(event, channel="slack", to=to, digest=OPTIONS, **thread | fields), event=event)


def success(name: str, at: float, *, plan: str = "train.daily") -> RecordedEvent:
    event = an_event(Phase.SUCCEEDED, name=name, launch_plan=a_launch_plan(plan))
    event = event.model_copy(update={"occurred_at": NOW + at * MINUTE})
    facts = Success(
        event=event.key,
        occurred_at=event.occurred_at,
        started_at=event.occurred_at,
        subjects=(plan,),
        channels=frozenset({"slack"}),
        recorded_at=event.occurred_at,
    )
    return replace(recorded(event=event), success=facts)


async def record(ledger: Ledger, *entries: RecordedEvent, at: float = 0) -> None:
    await ledger.record(entries, [], now=NOW + at * MINUTE)


async def stored(ledger: Ledger) -> dict[str, StoredDelivery]:
    """The deliveries of events, by execution."""
    everything = await ledger.history.find(Filter(), limit=999)
    return {one.delivery.event.split("/")[2]: one for one in everything if one.delivery.event}


async def fates(ledger: Ledger) -> dict[str, str]:
    """What became of each execution's message: `member`, `at once`, or its state."""
    return {name: fate(one.delivery) for name, one in sorted((await stored(ledger)).items())}


def fate(one: Delivery) -> str:
    if one.state is not State.WAITING:
        return one.drop_reason or one.state
    return "at once" if one.hold is None else "member"


async def test_what_follows_the_first_messages_waits_for_a_digest_also_after_a_restart(
    ledger: Ledger, ledger_url: str
) -> None:
    quiet = Quiet(NOW + 60 * MINUTE, "contact ml")
    await record(ledger, failure("a"), failure("other", to="#ops"))
    async with Ledger(ledger_url) as restarted:
        await record(restarted, failure("night", quiet=quiet), failure("b"), failure("c"), at=1)
        await record(restarted, failure("c"), failure("d"), at=2)  # c is recorded already

    found = await stored(ledger)
    assert await fates(ledger) == {
        "a": "at once",
        "b": "at once",
        "c": "member",
        "d": "member",
        "night": "member",
        "other": "at once",
    }
    assert found["night"].delivery.hold is HoldReason.WINDOW
    c, d = found["c"].delivery, found["d"].delivery
    assert (c.hold, c.due_at, c.held_since) == (HoldReason.DIGEST, NOW + 16 * MINUTE, NOW + MINUTE)
    assert (d.held_by, d.due_at, d.held_since) == (c.held_by, c.due_at, NOW + 2 * MINUTE)
    claimed = (await claim_slack(ledger, at=3600)).deliveries
    assert {one.key for one in claimed} <= {found[name].delivery.key for name in ("a", "b", "other")}


async def test_a_success_drops_members_and_at_once_resolves_what_was_sent_singly(ledger: Ledger) -> None:
    await record(ledger, failure("a"), failure("b", 1), failure("c", 2), failure("x", 2, plan="other"), at=2)
    await record(ledger, success("s", 3), success("t", 4, plan="other"), at=5)
    await record(ledger, failure("late", 2.5), at=6)
    assert await fates(ledger) == {
        "a": "at once",
        "b": "at once",
        "c": "superseded",
        "late": "superseded",
        "s": "at once",
        "x": "superseded",
    }
    late = (await stored(ledger))["late"].delivery
    assert late.held_by == (await stored(ledger))["c"].delivery.held_by


async def test_notices_that_follow_from_an_outcome_are_members(ledger: Ledger) -> None:
    await record(ledger, failure("a"), failure("b"), failure("c"))
    (dying, *_) = (await claim_slack(ledger)).deliveries
    notice = a_delivery(
        channel="slack", to="#ml", key="notice", kind=Kind.FALLBACK_NOTICE, fallback_for=dying.key, digest=OPTIONS
    )._replace(event=dying.event)
    other = notice._replace(key="other", addresses=("#ops",))
    await ledger.settle(settlement(dying, Dead("refused"), notice, other))
    by_key = {one.delivery.key: one.delivery for one in await ledger.history.find(Filter(), limit=9)}
    assert (fate(by_key["notice"]), fate(by_key["other"])) == ("member", "at once")
    assert by_key["notice"].held_by == (await stored(ledger))["c"].delivery.held_by


async def test_a_notice_that_silences_hold_first_goes_through_the_digest_when_it_is_released(ledger: Ledger) -> None:
    await ledger.silences.add(a_silence("other", starts_at=NOW, ends_at=NOW + 60 * MINUTE), an_action())
    await record(ledger, failure("a"))
    (dying,) = (await claim_slack(ledger)).deliveries
    options = OPTIONS._replace(after=1)
    notices = [
        a_delivery(
            channel="slack", to="#ops", key=key, kind=Kind.FALLBACK_NOTICE, fallback_for=dying.key, digest=options
        )
        for key in ("first", "second")
    ]
    await ledger.settle(settlement(dying, Dead("refused"), *(one._replace(event=dying.event) for one in notices)))
    (target,) = await ledger.releases.due(now=NOW + MINUTE)
    ended = Ended(target=target, covers={"first": [], "second": []}, silences=1, pages=False, zone=UTC, digest=options)
    await ledger.releases.release(ended, now=NOW + MINUTE)
    by_key = {one.delivery.key: one.delivery for one in await ledger.history.find(Filter(), limit=9)}
    assert (fate(by_key["first"]), by_key["second"].hold) == ("at once", HoldReason.DIGEST)
    again = await ledger.releases.release(ended, now=NOW + 30 * MINUTE)  # another replica read the keys before
    assert again == Released()


@pytest.mark.parametrize("ledger_url", ["postgres"], indirect=True)
async def test_two_replicas_that_record_at_once_send_no_more_than_configured(ledger: Ledger, ledger_url: str) -> None:
    places = ["#a", "#b", "#c"]
    names = [f"{number:02}" for number in range(30)]
    async with Ledger(ledger_url) as other:
        await asyncio.gather(
            *(
                [ledger, other][number % 2].record(
                    [failure(f"{name}{to[1]}", to=to, plan=name) for to in (places if number % 3 else places[::-1])],
                    [],
                    now=NOW + number * SECOND,
                )
                for number, name in enumerate(names)
            )
        )
    found = [one.delivery for one in await ledger.history.find(Filter(), limit=999)]
    assert Counter((one.addresses[0], fate(one)) for one in found) == {
        (to, what): number for to in places for what, number in (("at once", 2), ("member", 28))
    }
    assert len({one.held_by for one in found}) == 1 + len(places)


def never(_: Delivery) -> None:
    """No quiet hours."""


async def close(ledger: Ledger, at: float, quiet: Callable[[Delivery], Quiet | None] = never) -> list[Delivery]:
    """Close the digests that are due `at` minutes after NOW; returns what goes out."""
    now = NOW + at * MINUTE
    closed = [await ledger.digests.close(place, quiet, now=now) for place in await ledger.digests.due(now=now)]
    return [one.message for one in closed if one is not None]


async def send(ledger: Ledger, at: float) -> dict[str, ClaimedThread | None]:
    """Send what is due `at` minutes after NOW. Returns the thread of each message, by its key."""
    found = {}
    limit = RateLimit(max_in_flight=99)
    while taken := (await claim_slack(ledger, at=at * 60, rate_limit=limit)).deliveries:
        for delivery in taken:
            found[delivery.key] = await ledger.thread(delivery)
            if delivery.content is None:
                assert await ledger.store_content(delivery, {"text": delivery.kind})
            receipt = Receipt(answer=Answer("ok"), reference={"ts": delivery.key})
            assert await ledger.settle(settlement(delivery, Sent(receipt)))
    return found


async def test_a_digest_tells_of_its_members_and_replies_to_the_first_message_of_the_burst(ledger: Ledger) -> None:
    await record(ledger, *(failure(name) for name in "abcd"), failure("e", severity="critical"))
    sent = await send(ledger, 1)
    assert len(sent) == 2
    assert await close(ledger, 14.9) == []

    (digest,) = await close(ledger, 15)

    found = await stored(ledger)
    members = [found[name].delivery for name in "cde"]
    assert {(one.state, one.drop_reason, one.hold, one.included_in) for one in members} == {
        (State.DROPPED, DropReason.DIGEST, HoldReason.DIGEST, digest.key)
    }
    assert (digest.key, digest.kind, digest.severity) == (members[0].held_by, Kind.DIGEST, "critical")
    assert (digest.addresses, digest.reply_to) == (("#ml",), found["a"].delivery.key)
    assert await close(ledger, 15) == []  # it is closed, and the next one is open
    told = await ledger.summary(digest)
    assert told is not None
    assert (told.number, told.since, told.until) == (3, NOW, NOW + 15 * MINUTE)
    thread = (await send(ledger, 16))[digest.key]
    assert thread is not None
    assert thread.thread.earlier[0].reference == {"ts": found["a"].delivery.key}

    await record(ledger, failure("f", 17), at=17)
    (alone,) = await close(ledger, 30)
    assert (alone.key, alone.state, alone.hold, alone.due_at) == (
        (await stored(ledger))["f"].delivery.key,
        State.WAITING,
        None,
        NOW + 30 * MINUTE,
    )
    assert (alone.note, alone.held_since) == ("waited 13 min for a digest", NOW + 17 * MINUTE)
    assert [*await send(ledger, 31)] == [alone.key]
    assert await close(ledger, 45) == []  # without members: the burst is over
    assert await ledger.digests.due(now=NOW + 999 * MINUTE) == []
    await record(ledger, failure("g", 46), at=46)
    assert (await fates(ledger))["g"] == "at once"


async def test_a_success_of_a_member_that_was_told_is_a_member_and_replies_to_the_digest(ledger: Ledger) -> None:
    names = ("a", "b", "c", "d")
    await record(ledger, *(failure(name, plan=name) for name in names))
    await send(ledger, 1)
    (digest,) = await close(ledger, 15)
    await send(ledger, 16)
    assert await close(ledger, 30) == []
    await record(ledger, success("s-a", 40, plan="a"), success("s-c", 40, plan="c"), at=40)

    found = await fates(ledger)
    assert (found["s-a"], found["s-c"]) == ("at once", "member")
    await send(ledger, 41)
    (notice,) = await close(ledger, 55)
    assert notice.kind is Kind.RESOLVED_NOTICE
    claimed = (await send(ledger, 55))[notice.key]
    assert claimed is not None
    assert (claimed.superseded, claimed.outage) == (False, Outage(1, NOW))
    assert (claimed.thread.resolves, claimed.thread.earlier[0].reference) == (False, {"ts": digest.key})
    await record(ledger, success("again", 56, plan="c"), at=56)
    assert "again" not in await fates(ledger)


async def test_a_success_of_what_a_dead_digest_told_of_tells_nobody(ledger: Ledger) -> None:
    await record(ledger, *(failure(name, plan=name) for name in "abcd"))
    await send(ledger, 1)
    await close(ledger, 15)
    (digest,) = (await claim_slack(ledger, at=15 * 60)).deliveries
    await ledger.settle(settlement(digest, Dead("no such channel")))
    assert await close(ledger, 30) == []
    await record(ledger, success("s", 40, plan="c"), at=40)
    assert await ledger.digests.due(now=NOW + 999 * MINUTE) == []  # it opens no digest
    (notice,) = (await claim_slack(ledger, at=41 * 60)).deliveries
    thread = await ledger.thread(notice)
    assert thread is not None
    assert thread.thread.earlier == ()  # so the worker drops it


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
async def test_quiet_hours_of_the_contact_hold_a_digest_but_not_beyond_the_longest_time(ledger_url: str) -> None:
    def hours(until: float) -> Callable[[Delivery], Quiet | None]:
        return lambda one: Quiet(NOW + until * MINUTE, "contact ml") if one.severity != "critical" else None

    async with Ledger(ledger_url, longest_hold=60 * MINUTE) as ledger:
        await record(ledger, *(failure(name) for name in "abcd"))
        await send(ledger, 1)
        assert await close(ledger, 15, hours(40)) == []
        await record(ledger, failure("e", severity="critical"), at=20)
        await record(ledger, failure("late"), at=40)  # the hours are over, and the digest is about to close
        found = await stored(ledger)
        assert (fate(found["e"].delivery), found["late"].delivery.due_at) == ("at once", NOW + 40 * MINUTE)
        assert await close(ledger, 40, hours(300)) == []
        assert await ledger.digests.due(now=NOW + 59 * MINUTE) == []
        (digest,) = await close(ledger, 60, hours(300))
        told = await ledger.summary(digest)
        assert told is not None
        assert (told.number, digest.note) == (3, OVERDUE)
        await record(ledger, failure("f"), failure("g", severity="critical"), at=61)
        (urgent,) = await close(ledger, 75, hours(300))
        assert urgent.severity == "critical"


async def test_many_messages_that_pass_quiet_hours_are_told_in_the_digest_that_these_held(ledger: Ledger) -> None:
    def hours(one: Delivery) -> Quiet | None:
        return Quiet(NOW + 600 * MINUTE, "contact ml") if one.severity != "critical" else None

    await record(ledger, *(failure(name) for name in "abcd"))
    await send(ledger, 1)
    assert await close(ledger, 15, hours) == []
    await record(ledger, *(failure(name, severity="critical") for name in "ef"), at=20)
    found = await stored(ledger)
    assert [fate(found[name].delivery) for name in "ef"] == ["at once"] * 2
    assert found["d"].delivery.due_at == NOW + 600 * MINUTE
    await record(ledger, *(failure(name, severity="critical") for name in "hi"), at=21)
    found = await stored(ledger)
    assert {found[name].delivery.due_at for name in "cdhi"} == {NOW + 36 * MINUTE}
    (digest,) = await close(ledger, 36, hours)
    told = await ledger.summary(digest)
    assert told is not None
    assert (told.number, digest.severity) == (4, "critical")


async def cut_off(step: Callable[[], Awaitable[object]], before: int) -> bool:
    """Take the step, but end it before a statement, by number. Returns False if it had no more statements than that."""
    left = before

    def execute(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RollBack

    event.listen(Engine, "before_cursor_execute", execute)
    try:
        await step()
    except RollBack:
        return True
    finally:
        event.remove(Engine, "before_cursor_execute", execute)
    return False


async def test_a_crash_before_any_statement_loses_and_doubles_nothing(ledger: Ledger, ledger_url: str) -> None:
    async with Ledger(ledger_url) as other:
        steps: list[Callable[[Ledger], Awaitable[object]]] = [
            lambda one: record(one, *(failure(name, plan=name) for name in "abcd")),
            lambda one: close(one, 15),
            lambda one: record(one, failure("e", 16, plan="e"), success("s", 16, plan="c"), at=16),
            lambda one: close(one, 30),
        ]
        for step in steps:
            before = 0
            while await cut_off(partial(step, ledger), before):
                before += 1
            assert before > 3
            await step(other)  # it is done already, and changes nothing

        first, second = [one for one in await ledger.history.find(Filter(), limit=99) if not one.delivery.event][::-1]
        told = {name: (fate(one.delivery), one.delivery.included_in) for name, one in (await stored(ledger)).items()}
    assert told == {
        "a": ("at once", ""),
        "b": ("at once", ""),
        "c": ("digest", first.delivery.key),
        "d": ("digest", first.delivery.key),
        "e": ("digest", second.delivery.key),
        "s": ("digest", second.delivery.key),
    }
    assert first.delivery.key != second.delivery.key


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
async def test_a_rehearsal_tests_digests_too(ledger: Ledger, ledger_url: str) -> None:
    await ledger.rehearse(["slack", "email"], now=NOW)
    assert await ledger.history.find(Filter(), limit=9) == []
    await execute(ledger_url, "DROP TABLE digests")
    with pytest.raises((LedgerFailed, LedgerUnavailable), match="digests"):
        await ledger.rehearse(["slack"], now=NOW)
