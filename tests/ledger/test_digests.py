"""Which messages are members of digests, on SQLite and on PostgreSQL: recorded, by one replica or two, after a crash."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

from dispatcher.ledger import Filter, Ledger, RecordedEvent, StoredDelivery
from dispatcher.model.delivery import Dead, Delivery, Kind, State, Success
from dispatcher.model.hold import DigestOptions, HoldReason, Quiet
from dispatcher.model.phase import Phase
from tests.support.builders import NOW, SECOND, a_delivery, a_launch_plan, an_event
from tests.support.ledger_steps import MINUTE, claim_slack, recorded, settlement

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
    """The deliveries, by execution."""
    return {one.delivery.event.split("/")[2]: one for one in await ledger.history.find(Filter(), limit=999)}


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
