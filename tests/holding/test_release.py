"""What becomes of held deliveries at the end of their holds: compared with what must hold for all, and in examples."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.holding.release import HeldDelivery, Released, release
from dispatcher.model.delivery import Delivery, DropReason, Kind, State
from dispatcher.model.hold import Hold, HoldReason, Then
from tests.support.builders import NOW, a_delivery

HOUR = timedelta(hours=1)
LONGEST = timedelta(days=7)


def ended(
    name: str,
    then: Then | None = Then.SUMMARY,
    *covers: Hold,
    launch_plan: str = "train",
    failed: bool = True,
    holder: str = "quiet hours of contact ml",
    since: timedelta = 9 * HOUR,
    **fields: Any,
) -> HeldDelivery:
    """A mail that was held `since` ago, until now."""
    hold: dict[str, Any] = {
        "hold": HoldReason.WINDOW,
        "held_by": "contact ml",
        "held_since": NOW - since,
        "hold_then": then,
    }
    delivery = a_delivery(key=name, to="ml@x.com", **{**hold, **fields})
    return HeldDelivery(delivery=delivery, launch_plan=launch_plan, failed=failed, holder=holder, covers=covers)


def released(*held: HeldDelivery, pages: bool = False) -> Released:
    return release(held, now=NOW, longest=LONGEST, pages=pages, zone=UTC)


def held_since(one: HeldDelivery) -> datetime:
    assert one.delivery.held_since is not None
    return one.delivery.held_since


covers = st.builds(
    Hold,
    st.sampled_from([HoldReason.SILENCE, HoldReason.WINDOW]),
    st.sampled_from(["a", "b"]),
    st.integers(1, 300).map(lambda hours: NOW + hours * HOUR),
    st.sampled_from(Then),
)


@st.composite
def addresses(draw: st.DrawFn) -> list[HeldDelivery]:
    """The held deliveries of one address."""
    return [
        ended(
            f"k{number}",
            draw(st.none() | st.sampled_from(Then)),
            *draw(st.lists(covers, max_size=2)),
            launch_plan=draw(st.sampled_from(["train", "score", ""])),
            failed=(kind := draw(st.sampled_from([Kind.NOTIFICATION, Kind.FALLBACK_NOTICE]))) is Kind.NOTIFICATION
            and draw(st.booleans()),
            since=draw(st.integers(0, 200)) * HOUR,
            kind=kind,
            occurred_at=NOW - draw(st.integers(0, 200)) * HOUR,
            severity=draw(st.sampled_from(["", "info", "critical"])),
        )
        for number in range(draw(st.integers(0, 6)))
    ]


@given(addresses(), st.booleans())
def test_each_is_held_on_sent_or_dropped_once_and_what_is_dropped_unsaid_may_be(
    held: list[HeldDelivery], pages: bool
) -> None:
    result = released(*held, pages=pages)
    before = {one.delivery.key: one for one in held}
    every = [*result.held, *result.going, *result.overdue, *result.dropped]
    assert sorted(one.key for one in every) == sorted(before)

    for one in result.held:  # only what something covers, until the last of it ends, but not for too long
        latest = held_since(before[one.key]) + LONGEST
        ends = [cover.until for cover in before[one.key].covers]
        assert (one.state, one.due_at) == (State.WAITING, min(max(ends), latest))
        assert one.due_at > NOW
    assert all(held_since(before[one.key]) + LONGEST <= NOW and before[one.key].covers for one in result.overdue)
    assert not any(before[one.key].covers for one in result.going)
    for one in (*result.going, *result.overdue):
        assert (one.hold, one.held_by, one.hold_then, one.retry_window_start) == (None, "", None, NOW)
        assert NOW - HOUR < one.due_at <= NOW
        assert one.held_since == before[one.key].delivery.held_since
    assert [one.due_at for one in result.going] == sorted({one.due_at for one in result.going})
    assert [one.occurred_at for one in result.going] == sorted(one.occurred_at for one in result.going)

    told_by = {one.key for one in result.going} | ({result.summary.key} if result.summary else set())
    for one in result.dropped:
        then, given_to = before[one.key].delivery.hold_then, before[one.key]
        assert one.hold is HoldReason.WINDOW
        assert one.drop_reason is DropReason.WINDOW
        if then is Then.SUMMARY and (given_to.failed or not pages):
            assert one.included_in in told_by
        else:
            assert one.included_in == ""
            assert then is Then.DROP or (pages and not given_to.failed)
            assert then is Then.DROP or one.kind is Kind.NOTIFICATION


@given(addresses())
def test_one_message_tells_of_what_is_told_together_and_on_pagers_one_for_each_launch_plan(
    held: list[HeldDelivery],
) -> None:
    together = [one for one in held if not one.covers and one.delivery.hold_then is Then.SUMMARY]
    chats, pager = released(*held), released(*held, pages=True)
    assert pager.summary is None
    told = [one for one in pager.going if one.key in {one.delivery.key for one in together}]
    if len(together) > 1:
        assert chats.summary is not None
        assert {one.key for one in chats.dropped if one.included_in} == {one.delivery.key for one in together}
        plans = {one.launch_plan for one in together if one.failed}
        assert len(told) == len(plans) + sum(one.delivery.kind is Kind.FALLBACK_NOTICE for one in together)
    else:
        assert chats.summary is None
        assert len(told) == len(together)


def test_a_note_says_from_when_to_when_in_the_zone_of_the_address() -> None:
    def note(*held: HeldDelivery, now: datetime = NOW, pages: bool = False) -> list[str]:
        result = release(held, now=now, longest=LONGEST, pages=pages, zone=ZoneInfo("Europe/Berlin"))
        return [one.note for one in (*result.going, *result.overdue)]

    assert note(ended("a")) == ["held 01:14-10:14 (quiet hours of contact ml)"]
    assert note(ended("a", since=26 * HOUR)) == ["held 19 Nov 08:14 - 20 Nov 10:14 (quiet hours of contact ml)"]
    assert note(ended("a", None, holder="")) == [""]  # it waited for nothing but this decision
    assert note(*(ended(name, launch_plan=name[0]) for name in ("a1", "a2", "a3", "b1", "b2", "c")), pages=True) == [
        "held 01:14-10:14 (quiet hours of contact ml); 2 more failures of the launch plan in this time",
        "held 01:14-10:14 (quiet hours of contact ml); 1 more failure of the launch plan in this time",
        "held 01:14-10:14 (quiet hours of contact ml)",
    ]
    endless = Hold(HoldReason.SILENCE, "s1", NOW + HOUR, Then.DROP)
    assert note(ended("a", Then.SUMMARY, endless, since=LONGEST)) == [
        "held 13 Nov 10:14 - 20 Nov 10:14 (quiet hours of contact ml), which is as long as anything is held"
    ]


def test_what_waited_for_nothing_but_this_decision_is_held_as_if_it_were_new() -> None:
    silence = Hold(HoldReason.SILENCE, "s1", NOW + HOUR, Then.DROP)
    (again,) = released(ended("a", None, silence, holder="")).held
    assert (again.held_by, again.hold_then) == ("s1", Then.DROP)


def test_a_summary_has_the_highest_severity_and_the_rules_of_all() -> None:
    result = released(ended("a", severity="info"), ended("b", severity="critical"), ended("c"))
    summary = result.summary
    assert summary is not None
    assert (summary.kind, summary.event, summary.content, summary.severity) == (Kind.SUMMARY, "", None, "critical")
    assert (summary.addresses, summary.rules) == (("ml@x.com",), a_delivery().rules)
    assert {one.included_in for one in result.dropped} == {summary.key}
    again: Delivery | None = released(ended("d"), ended("e")).summary
    assert again is not None
    assert again.key != summary.key
