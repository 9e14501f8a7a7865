"""The releaser with a real ledger: what silences and quiet hours held goes out when they end, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.delivering.releaser import PAUSE, Releaser
from dispatcher.ledger import Deed, Filter, Ledger
from dispatcher.model.delivery import Delivery, DropReason, Kind, State
from dispatcher.model.hold import DigestOptions, Then
from dispatcher.planning.contacts import Contact, Contacts, Options
from dispatcher.planning.planner import Planner
from dispatcher.rules import RuleBook
from dispatcher.rules.silences import CurrentSilences
from tests.support.builders import NOW, a_delivery, a_launch_plan, a_silence, an_event, quiet_hours
from tests.support.clock import ManualClock
from tests.support.ledger_steps import an_action, claim, recorded
from tests.support.ledgers import execute

HOUR = timedelta(hours=1)


def a_releaser(ledger: Ledger, *, now: datetime = NOW, **options: Any) -> Releaser:
    """A releaser. `options`: those of the contact of x@x.com."""
    clock = ManualClock(now)
    contact = Contact((("email", "x@x.com"),), options=Options(**options))
    return Releaser(
        ledger=ledger,
        silences=CurrentSilences(ledger.silences, clock),
        planner=Planner(addresses={"email": str}, fallbacks={}, contacts=Contacts({"ml": contact})),
        rules=RuleBook,
        default_zone=UTC,
        clock=clock,
        stopping=asyncio.Event(),
    )


async def hold(
    ledger: Ledger, *names: str, to: str = "x@x.com", then: Then = Then.SUMMARY, digest: DigestOptions | None = None
) -> None:
    """Record failures that a silence holds, which has ended by `NOW`."""
    began = NOW - 9 * HOUR
    silence = a_silence("old", starts_at=began, ends_at=NOW, then=then)
    for name in names:
        event = an_event(name=name, launch_plan=a_launch_plan(name)).model_copy(update={"occurred_at": began + HOUR})
        mail = a_delivery(event, to=to, occurred_at=event.occurred_at, created_at=began + HOUR, digest=digest)
        entry = replace(recorded(mail, event=event), silences=[silence])
        assert (await ledger.record([entry], [], now=began + HOUR)).waiting == []


async def found(ledger: Ledger) -> dict[str, Delivery]:
    """The deliveries by the name of their execution; a summary by its address."""
    every = [one.delivery for one in await ledger.history.find(Filter(), limit=99)]
    return {one.event.split("/")[2] if one.event else f"summary {one.addresses[0]}": one for one in every}


async def test_at_the_end_several_are_told_of_in_a_summary_and_one_is_sent_as_itself(ledger: Ledger) -> None:
    await hold(ledger, "a", "b", "c")
    await hold(ledger, "alone", to="y@x.com")
    assert await claim(ledger) == []

    await a_releaser(ledger).release_due()

    claimed = {one.addresses[0]: one for one in await claim(ledger)}
    assert (claimed["x@x.com"].kind, claimed["x@x.com"].created_at) == (Kind.SUMMARY, NOW)
    alone = claimed["y@x.com"]
    assert (alone.kind, alone.note) == (Kind.NOTIFICATION, "held 01:14-09:14 (silence old)")
    assert (alone.retry_window_start, alone.held_since, alone.hold) == (NOW, NOW - 8 * HOUR, None)
    told = (await found(ledger))["a"]
    assert (told.state, told.drop_reason, told.included_in) == (
        State.DROPPED,
        DropReason.SILENCE,
        claimed["x@x.com"].key,
    )
    summary = await ledger.summary(claimed["x@x.com"])
    assert summary is not None
    assert (summary.number, summary.since) == (3, NOW - 8 * HOUR)
    await a_releaser(ledger).release_due()
    assert len(await found(ledger)) == 5  # and nothing is released again


async def test_what_is_still_quiet_is_held_on_with_the_end_that_tells_most(ledger: Ledger) -> None:
    await hold(ledger, "a", then=Then.DROP)
    await hold(ledger, "b", then=Then.SEND)
    await a_releaser(ledger, quiet=quiet_hours("contact ml", **{"from": "09:00", "to": "10:00"})).release_due()
    every = await found(ledger)
    assert {(one.held_by, one.due_at, one.held_since) for one in every.values()} == {
        ("contact ml", NOW.replace(hour=10, minute=0, second=0), NOW - 8 * HOUR)
    }
    assert [every[name].hold_then for name in "ab"] == [Then.SUMMARY, Then.SEND]


async def test_a_silence_that_was_added_meanwhile_holds_on_and_a_silence_that_drops_names_itself(
    ledger: Ledger,
) -> None:
    await hold(ledger, "a", "b", then=Then.DROP)
    releaser = a_releaser(ledger)
    silence = a_silence("new", starts_at=NOW - HOUR, matcher={"launch_plan": "a"}, then=Then.DROP)
    await ledger.silences.add(silence, an_action())

    await releaser.release_due()  # it knows by now that silences have changed
    assert {one.state for one in (await found(ledger)).values()} == {State.WAITING}
    await releaser.release_due()

    every = await found(ledger)
    assert (every["a"].held_by, every["a"].due_at, every["a"].hold_then) == ("new", silence.ends_at, Then.DROP)
    assert (every["b"].drop_reason, every["b"].reason) == (DropReason.SILENCE, "dropped by silence old")


async def test_two_replicas_release_each_address_once(ledger: Ledger, ledger_url: str) -> None:
    for number in range(5):
        await hold(ledger, f"a{number}", f"b{number}", to=f"{number}@x.com")
    async with Ledger(ledger_url) as other:
        for _ in range(3):
            await asyncio.gather(*(a_releaser(one).release_due() for one in (ledger, other)))
    every = (await found(ledger)).values()
    assert sum(one.kind is Kind.SUMMARY for one in every) == 5
    assert len(every) == 15


async def test_what_cannot_be_released_holds_back_no_other(ledger: Ledger, ledger_url: str) -> None:
    await hold(ledger, "a", "b", to="x@x.com")
    await hold(ledger, "c", to="y@x.com")
    await execute(ledger_url, "UPDATE deliveries SET rules = '[1]' WHERE event LIKE '%/a/%'")
    releaser, failures = a_releaser(ledger), list[int]()
    releaser.on_failed = lambda: failures.append(1)
    await releaser.release_due()
    await releaser.release_due()  # the address that failed waits
    assert [one.addresses for one in await claim(ledger, 1)] == [("y@x.com",)]
    assert len(failures) == 1

    releaser.clock = ManualClock(NOW + PAUSE)
    await releaser.release_due()
    # The worker finds out what is wrong with the broken one; and the lease of the first is over.
    assert len(await ledger.due("email", now=NOW + PAUSE, limit=9)) == 3
    assert await ledger.releases.due(now=NOW + PAUSE) == {}


DIGEST = DigestOptions(after=2, within=HOUR, every=HOUR)


def fate(one: Delivery) -> str:
    if one.state is not State.WAITING:
        return one.drop_reason or one.state
    return "goes" if one.hold is None else one.hold


async def test_what_a_silence_releases_goes_through_the_digest_which_the_releaser_closes(ledger: Ledger) -> None:
    await hold(ledger, "a", "b", "c", "d", then=Then.SEND, digest=DIGEST)
    releaser = a_releaser(ledger, digest=DIGEST)
    await releaser.release_due()
    every = await found(ledger)
    assert sorted(map(fate, every.values())) == ["digest", "digest", "goes", "goes"]
    member = next(one for one in every.values() if one.hold)
    assert (member.due_at, member.held_since, member.note) == (
        NOW + HOUR,
        NOW - 8 * HOUR,
        "held 01:14-09:14 (silence old)",
    )
    assert len(await claim(ledger)) == 2

    releaser.clock = ManualClock(NOW + HOUR)
    await releaser.release_due()
    (message,) = [one for one in await claim(ledger, now=NOW + HOUR) if one.kind is Kind.DIGEST]
    assert message.reply_to in {one.key for one in every.values() if one.hold is None}
    summary = await ledger.summary(message)
    assert summary is not None
    assert (summary.number, summary.since) == (2, NOW - 8 * HOUR)


@pytest.mark.parametrize("ledger_url", ["postgres"], indirect=True)
async def test_what_a_summary_would_tell_of_joins_an_open_digest(ledger: Ledger) -> None:
    await hold(ledger, "a", "b", digest=DIGEST)
    live = [a_delivery(an_event(name=name), to="x@x.com", digest=DIGEST) for name in ("l", "m", "n")]
    await ledger.record([recorded(one, event=an_event(name=one.event.split("/")[2])) for one in live], [], now=NOW)
    releaser = a_releaser(ledger, digest=DIGEST)
    await releaser.release_due()
    every = await found(ledger)
    assert {name: fate(one) for name, one in every.items()} == {
        "a": "digest",
        "b": "digest",
        "l": "goes",
        "m": "goes",
        "n": "digest",
    }
    assert len({one.held_by for one in every.values() if one.hold}) == 1
    releaser.clock = ManualClock(NOW + HOUR)
    await releaser.release_due()
    every = await found(ledger)
    assert every["a"].included_in == every["n"].included_in == every["summary x@x.com"].key


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
async def test_a_summary_counts_as_one_message_of_the_digest(ledger: Ledger) -> None:
    await hold(ledger, "a", "b", digest=DIGEST)
    await a_releaser(ledger, digest=DIGEST).release_due()
    live = [a_delivery(an_event(name=name), to="x@x.com", digest=DIGEST) for name in ("l", "m")]
    await ledger.record([recorded(one, event=an_event(name=one.event.split("/")[2])) for one in live], [], now=NOW)
    every = await found(ledger)
    assert [fate(every[name]) for name in ("a", "summary x@x.com", "l", "m")] == ["silence", "goes", "goes", "digest"]


async def test_what_is_released_goes_through_the_digests_that_its_contact_has_now(ledger: Ledger) -> None:
    for to in ("x@x.com", "y@x.com"):
        await hold(ledger, *(f"{to}{number}" for number in range(3)), to=to, then=Then.SEND)
    live = [a_delivery(an_event(name=name), to="y@x.com", digest=DIGEST) for name in ("l", "m", "n")]
    await ledger.record([recorded(one, event=an_event(name=one.event.split("/")[2])) for one in live], [], now=NOW)
    await a_releaser(ledger, digest=DIGEST).release_due()  # only the contact of x@x.com has digests now
    every = await found(ledger)
    fates = {to: sorted(fate(one) for name, one in every.items() if name.startswith(to)) for to in "xy"}
    assert fates == {"x": ["digest", "goes", "goes"], "y": ["goes", "goes", "goes"]}
    assert fate(every["n"]) == "digest"


async def test_a_planned_silence_begins_by_itself_and_when_it_is_ended_early_what_it_held_goes_out(
    ledger: Ledger,
) -> None:
    event = an_event(launch_plan=a_launch_plan())
    await ledger.record([recorded(a_delivery(event), event=event)], [], now=NOW)
    silence, releaser = a_silence("planned"), a_releaser(ledger)
    await ledger.silences.add(silence, an_action(Deed.SILENCE))
    await releaser.release_due()
    assert await claim(ledger, now=NOW + HOUR) == []

    ended = await ledger.silences.move(silence, an_action(Deed.END_SILENCE), starts_at=NOW, ends_at=NOW)
    assert ended is not None
    for _ in "ab":  # the first round finds that silences have changed
        await releaser.release_due()
    assert [one.note for one in await claim(ledger)] == ["held 09:14-09:14 (silence planned (maintenance))"]
