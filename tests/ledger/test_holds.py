"""Held deliveries: not claimed, in nobody's way, dropped by the success that resolves them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.holding.silences import Silence
from dispatcher.ledger import Deed, Filter, Ledger, RecordedEvent
from dispatcher.model.delivery import Dead, Delivery, DropReason, Kind, State, Success
from dispatcher.model.event import EntityId, Event
from dispatcher.model.hold import HoldReason, Quiet, Then
from dispatcher.model.phase import Phase
from tests.support.builders import NOW, SECOND, a_delivery, a_launch_plan, a_silence, an_event
from tests.support.ledger_steps import MINUTE, SENT, an_action, claim, claim_slack, recorded, settlement

PLAN = a_launch_plan()
LATER = NOW + 60 * MINUTE


def an_end(name: str, at: int, phase: Phase = Phase.FAILED, plan: EntityId = PLAN) -> Event:
    """An execution of the launch plan ended `at` seconds after NOW."""
    return an_event(phase, name=name, launch_plan=plan).model_copy(update={"occurred_at": NOW + at * SECOND})


def failure(name: str, at: int = 0, *silences: Silence, to: Sequence[str] = ("#ml",)) -> RecordedEvent:
    """It failed `at` seconds after NOW: a message to a channel of Slack, in the launch plan's thread; other recipients
    get a mail, together.
    """
    event = an_end(name, at)
    thread = {"thread": "ml", "subject": PLAN.key}
    chats = [
        a_delivery(event, channel="slack", to=one, occurred_at=event.occurred_at, **thread) for one in to if "#" in one
    ]
    mails = tuple(one for one in to if "#" not in one)
    mail = a_delivery(event, to=" ".join(mails), recipients=mails, addresses=mails, occurred_at=event.occurred_at)
    return replace(recorded(*chats, *([mail] if mails else []), event=event), silences=silences)


def success(name: str, at: int, *, started: int | None = None, plan: EntityId = PLAN) -> RecordedEvent:
    event = an_end(name, at, Phase.SUCCEEDED, plan)
    facts = Success(
        event=event.key,
        occurred_at=event.occurred_at,
        started_at=NOW + (at if started is None else started) * SECOND,
        subjects=(plan.key,),
        channels=frozenset({"slack"}),
        recorded_at=NOW,
    )
    return replace(recorded(event=event), success=facts)


async def stored(ledger: Ledger) -> dict[str, Delivery]:
    """The deliveries, by execution, kind if it is no notification, and address."""
    return {
        " ".join(
            [one.event.split("/")[2], *([one.kind] if one.kind is not Kind.NOTIFICATION else []), *one.addresses]
        ): one
        for one in (found.delivery for found in await ledger.history.find(Filter(), limit=99))
        if one.event
    }


def states(found: dict[str, Delivery]) -> dict[str, str]:
    """Their states; `held` if they are, and why they were dropped."""
    return {
        name: "held" if one.state is State.WAITING and one.hold else (one.drop_reason or one.state)
        for name, one in found.items()
    }


async def test_what_a_silence_covers_is_held_for_each_address_and_not_claimed(ledger: Ledger) -> None:
    result = await ledger.record([failure("a", 0, a_silence(), to=("#ml", "x@x.com", "y@x.com"))], [], now=NOW)

    assert result.waiting == []
    found = await stored(ledger)
    assert states(found) == {"a #ml": "held", "a x@x.com": "held", "a y@x.com": "held"}
    assert {(one.hold, one.held_by, one.held_since, one.due_at, one.hold_then) for one in found.values()} == {
        (HoldReason.SILENCE, "5f0c2a9d", NOW, LATER, Then.SUMMARY)
    }
    assert {one.subject for one in found.values()} == {PLAN.key}
    assert await claim(ledger, now=LATER + MINUTE) == []  # even after its end: only the releaser releases it
    key = found["a x@x.com"].key
    assert await ledger.due("email", now=LATER + MINUTE, limit=9) == []
    assert await ledger.claim_bare(key, lease="me", now=LATER + MINUTE, until=LATER + 2 * MINUTE) is None


async def test_quiet_hours_hold_one_address_and_let_the_other_through(ledger: Ledger) -> None:
    quiet = a_delivery(to="x@x.com", quiet=Quiet(LATER, "contact ml"))
    loud = a_delivery(to="y@x.com")
    await ledger.record([recorded(quiet, loud)], [], now=NOW)
    assert [one.addresses for one in await claim(ledger)] == [("y@x.com",)]
    held = (await stored(ledger))["akx7b9q2vjt5fm4c8h2d x@x.com"]
    assert (held.hold, held.held_by, held.due_at, held.hold_then) == (
        HoldReason.WINDOW,
        "contact ml",
        LATER,
        Then.SUMMARY,
    )


async def test_a_held_one_keeps_nobody_in_its_thread_waiting(ledger: Ledger) -> None:
    await ledger.record([failure("a", 0, a_silence()), failure("b", 1)], [], now=NOW)
    (one,) = (await claim_slack(ledger)).deliveries
    assert (one.event, one.blocks_thread) == (an_end("b", 1).key, False)
    claimed = await ledger.thread(one)
    assert claimed is not None
    assert claimed.thread.earlier == ()


async def test_released_it_replies_in_the_thread_as_it_is_then(ledger: Ledger) -> None:
    await ledger.record([failure("held", 1, a_silence()), failure("live", 5)], [], now=NOW)
    (live,) = (await claim_slack(ledger)).deliveries
    await ledger.settle(settlement(live, SENT))
    await ledger.change(Filter(states=frozenset({State.WAITING})), an_action(Deed.RETRY_NOW))

    (released,) = (await claim_slack(ledger, at=9)).deliveries
    assert released.event == an_end("held", 1).key
    claimed = await ledger.thread(released)
    assert claimed is not None
    assert [one.reference for one in claimed.thread.earlier] == [{"message_id": "<1@x>"}]  # it ended later
    assert not claimed.superseded


async def test_a_success_drops_what_is_held_and_tells_only_who_was_told(ledger: Ledger) -> None:
    silence = a_silence()
    everybody = ("#ml", "x@x.com")
    held = [failure("a", 1, silence, to=everybody), failure("late", 9, silence, to=everybody)]
    await ledger.record([*held, success("b", 5)], [], now=NOW)  # in one batch, and again apart

    assert states(await stored(ledger)) == {
        "a #ml": "superseded",
        "a x@x.com": "superseded",
        "late #ml": "held",
        "late x@x.com": "held",
    }
    dropped = (await stored(ledger))["a x@x.com"]
    assert (dropped.reason, dropped.hold, dropped.held_by) == (
        "resolved before it was sent",
        HoldReason.SILENCE,
        "5f0c2a9d",
    )
    await ledger.record([success("c", 20, started=8)], [], now=NOW)  # it had started when `late` failed
    assert states(await stored(ledger))["late x@x.com"] == "held"
    await ledger.record([success("d", 20, started=10)], [], now=NOW)
    assert set(states(await stored(ledger)).values()) == {"superseded"}


async def test_a_thread_of_which_something_was_sent_is_resolved_when_nothing_later_is_held(ledger: Ledger) -> None:
    await ledger.record([failure("sent", 1)], [], now=NOW)
    (one,) = (await claim_slack(ledger)).deliveries
    await ledger.settle(settlement(one, SENT))
    await ledger.record([failure("held", 5, a_silence())], [], now=NOW)
    await ledger.record([success("b", 6, started=3)], [], now=NOW)  # the held one is newer: nothing is resolved
    assert states(await stored(ledger)) == {"sent #ml": "sent", "held #ml": "held"}
    await ledger.record([success("c", 7)], [], now=NOW)
    assert states(await stored(ledger)) == {
        "sent #ml": "sent",
        "held #ml": "superseded",
        "c resolved_notice #ml": "waiting",
    }


async def test_a_failure_that_is_resolved_already_is_not_even_held(ledger: Ledger) -> None:
    await ledger.record([success("b", 5)], [], now=NOW)
    result = await ledger.record([failure("a", 1, a_silence(), to=("#ml", "x@x.com"))], [], now=NOW)
    assert result.waiting == []
    found = await stored(ledger)
    assert set(states(found).values()) == {DropReason.SUPERSEDED}
    assert {(one.hold, one.held_by, one.due_at) for one in found.values()} == {(HoldReason.SILENCE, "5f0c2a9d", LATER)}
    await ledger.record([success("c", 9)], [], now=NOW)  # and the thread is not open
    assert set(states(await stored(ledger)).values()) == {DropReason.SUPERSEDED}


async def test_a_success_that_a_rule_asks_for_is_held_and_never_superseded(ledger: Ledger) -> None:
    asked = success("b", 5)
    event = asked.event
    mail = a_delivery(event, to="x@x.com", occurred_at=event.occurred_at)
    await ledger.record([replace(asked, deliveries=[mail], silences=[a_silence()])], [], now=NOW)
    await ledger.record([success("c", 9)], [], now=NOW)
    assert states(await stored(ledger)) == {"b x@x.com": "held"}


async def test_operators_release_or_cancel_what_is_held(ledger: Ledger) -> None:
    await ledger.record([failure("a", 0, a_silence(), to=("x@x.com", "y@x.com"))], [], now=NOW)
    one, other = [(await stored(ledger))[f"a {to}@x.com"].key for to in "xy"]
    assert await ledger.change(Filter(keys=[one]), an_action(Deed.RETRY_NOW)) == 1
    assert await ledger.change(Filter(keys=[other]), an_action(Deed.CANCEL)) == 1

    (released,) = await claim(ledger)
    assert (released.key, released.hold, released.held_by) == (one, None, "")
    assert (released.held_since, released.note) == (NOW, "held until an operator released it")
    assert states(await stored(ledger)) == {"a x@x.com": "waiting", "a y@x.com": "cancelled"}


async def test_what_follows_from_an_outcome_is_held_by_quiet_hours_and_looked_at_while_there_are_silences(
    ledger: Ledger,
) -> None:
    await ledger.record([failure("a"), failure("b")], [], now=NOW)
    (first,) = (await claim_slack(ledger, at=9)).deliveries
    quiet = a_delivery(an_end("a", 0), to="x@x.com", quiet=Quiet(LATER, "contact ml"), due_at=NOW + SECOND)
    retried = a_delivery(an_end("a", 0), to="again@x.com", attempt=1)
    await ledger.settle(settlement(first, Dead("no such channel"), quiet, retried))
    found = await stored(ledger)
    assert [(one.hold, one.due_at) for one in (found["a x@x.com"], found["a again@x.com"])] == [
        (HoldReason.WINDOW, LATER),
        (None, NOW),
    ]
    assert found["a x@x.com"].subject == PLAN.key

    await ledger.silences.add(a_silence(), an_action(Deed.SILENCE))
    (second,) = (await claim_slack(ledger, at=9)).deliveries
    mail = a_delivery(an_end("b", 0), recipients=("X", "Y"), addresses=("x@x.com", "y@x.com"))
    notice = a_delivery(key="notice", kind=Kind.FALLBACK_NOTICE, quiet=Quiet(LATER, "contact ops"))
    await ledger.settle(settlement(second, Dead("no such channel"), mail, notice._replace(event="")))
    (about_a_digest,) = await ledger.history.find(Filter(keys=["notice"]), limit=1)
    assert about_a_digest.delivery.hold is HoldReason.WINDOW  # no silence is for it, because it has no event
    found = await stored(ledger)
    assert {(one.hold, one.held_by, one.hold_then) for one in (found["b x@x.com"], found["b y@x.com"])} == {
        (HoldReason.SILENCE, "", None)
    }
    due = await ledger.releases.due(now=NOW + MINUTE)
    assert sorted(target.address for target in due) == ["x@x.com", "y@x.com"]


times = st.integers(0, 9)
runs = st.lists(
    st.one_of(times.map(lambda end: (end, None)), st.tuples(times, times)).map(
        lambda run: (max(run[0], run[1] or 0), run[1])
    ),
    min_size=1,
    max_size=8,
)
"""Executions of one launch plan: the end of each, and the start of those that succeeded, in the order of their recording."""


async def test_in_any_order_what_stays_held_is_what_no_later_run_has_resolved(tmp_path: Path) -> None:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        numbers = count()

        @settings(max_examples=60, deadline=None)
        @given(runs, st.lists(st.booleans(), min_size=8, max_size=8))
        def record(ends: list[tuple[int, int | None]], cuts: list[bool]) -> None:
            asyncio.run_coroutine_threadsafe(check(f"plan{next(numbers)}", ends, cuts), loop).result()

        async def check(name: str, ends: list[tuple[int, int | None]], cuts: list[bool]) -> None:
            plan = a_launch_plan(name)
            batch: list[RecordedEvent] = []
            for number, ((end, started), cut) in enumerate(zip(ends, cuts, strict=False)):
                if started is None:
                    event = an_end(f"{name}-{number}", end, plan=plan)
                    mail = a_delivery(event, to="x@x.com", occurred_at=event.occurred_at)
                    batch.append(replace(recorded(mail, event=event), silences=[a_silence()]))
                else:
                    batch.append(success(f"{name}-{number}", end, started=started, plan=plan))
                if cut:
                    await ledger.record(batch, [], now=NOW)
                    batch = []
            await ledger.record(batch, [], now=NOW)
            newest = max((started for _, started in ends if started is not None), default=-1)
            found = await ledger.history.find(Filter(launch_plan=name), limit=99)
            assert {one.delivery.event: one.delivery.state for one in found} == {
                an_end(f"{name}-{number}", end).key: State.DROPPED if end < newest else State.WAITING
                for number, (end, started) in enumerate(ends)
                if started is None
            }

        loop = asyncio.get_running_loop()
        await asyncio.to_thread(record)
