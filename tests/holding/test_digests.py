"""The digests of one address: for all messages, in any order, and with a clock that is set back."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.holding.digests import DigestState, through_digest
from dispatcher.holding.release import Released
from dispatcher.model.delivery import Delivery, DropReason, Kind, State
from dispatcher.model.hold import DigestOptions, Hold, HoldReason
from tests.support.builders import NOW, a_delivery

MINUTE = timedelta(minutes=1)
OPTIONS = DigestOptions(after=3, within=10 * MINUTE, every=15 * MINUTE)
STATE = DigestState(channel="slack", address="#alerts", options=OPTIONS)


def test_the_messages_after_the_first_three_within_ten_minutes_are_members_of_a_digest() -> None:
    state = STATE
    for minute in (0, 4, 8):
        state = state.admit(f"m{minute}", NOW + minute * MINUTE)
        assert state.open_id == ""
    opened = state.admit("m9", NOW + 9 * MINUTE)
    assert (opened.closes_at, opened.first_key) == (NOW + 24 * MINUTE, "m0")
    assert opened.admit("m23", NOW + 23 * MINUTE) == opened
    assert state.admit("m10", NOW + 10 * MINUTE).open_id == ""  # the first message is ten minutes old


def test_digests_follow_each_other_until_one_closes_without_members() -> None:
    first = STATE.opened("told", NOW)
    second = first.closed(NOW + 15 * MINUTE, members=1)
    assert (second.closes_at, second.first_key) == (NOW + 30 * MINUTE, "told")
    assert len({first.open_id, second.open_id}) == 2
    over = second.closed(NOW + 31 * MINUTE, members=0)
    assert (over.open_id, over.closes_at, over.first_key) == ("", None, "")
    assert over.admit("new", NOW + 32 * MINUTE).open_id == ""


@dataclass
class Burst:
    """What became of the messages of one address."""

    state: DigestState
    now: datetime = NOW
    at_once: list[datetime] = field(default_factory=list)
    """When messages went out at once, since the last burst was over."""
    members: dict[str, int] = field(default_factory=dict)
    """The number of members of each digest that opened."""
    told: dict[str, int] = field(default_factory=dict)

    def message(self, key: str, *, resolves: bool) -> None:
        before = self.state
        self.state = before.opened(key, self.now) if resolves else before.admit(key, self.now)
        if self.state.open_id:
            assert self.state.open_id not in self.told
            self.members[self.state.open_id] = self.members.get(self.state.open_id, 0) + 1
            assert len(before.recent) == OPTIONS.after or before.open_id or resolves
        else:
            self.at_once.append(self.now)

    def close(self) -> None:
        number = self.members.get(self.state.open_id, 0)
        self.told[self.state.open_id] = number
        self.state = self.state.closed(self.now, members=number)
        if not self.state.open_id:
            self.at_once.clear()


@given(
    st.lists(
        st.tuples(st.sampled_from(["message", "message", "message", "resolved", "release"]), st.integers(-3, 12)),
        max_size=60,
    )
)
def test_each_member_is_told_of_in_one_digest_and_no_more_messages_go_at_once_than_configured(
    steps: list[tuple[str, int]],
) -> None:
    burst, set_back = Burst(STATE), False
    for number, (what, minutes) in enumerate(steps):
        burst.now += minutes * MINUTE
        set_back |= minutes < 0
        if what != "release":
            burst.message(f"m{number}", resolves=what == "resolved")
        elif burst.state.closes_at is not None and burst.state.closes_at <= burst.now:
            burst.close()
        if burst.state.closes_at is not None and not set_back:
            assert burst.state.closes_at <= burst.now + OPTIONS.every
        recent = [at for at in burst.at_once if at > burst.now - OPTIONS.within]
        assert set_back or len(recent) <= OPTIONS.after
    while burst.state.closes_at is not None:
        burst.now = max(burst.now, burst.state.closes_at)
        burst.close()
    assert {key: number for key, number in burst.told.items() if number} == burst.members


@given(st.lists(st.integers(0, 30), max_size=5), st.lists(st.integers(0, 30), max_size=5), st.booleans())
def test_what_other_holds_release_is_a_member_unless_it_would_then_be_held_for_too_long(
    singly: list[int], summed_up: list[int], is_open: bool
) -> None:
    """The numbers: for how many minutes each delivery was held so far."""
    longest = 30 * MINUTE
    state = STATE.opened("told", NOW) if is_open else STATE  # closes after 15 minutes

    def join(one: Delivery) -> Hold | None:
        nonlocal state
        state = state.admit(one.key, NOW)
        return state.hold

    def was_held(number: int, minutes: int, **fields: Any) -> Delivery:
        return a_delivery(key=f"{number}", held_since=NOW - minutes * MINUTE, **fields)

    told = {"state": State.DROPPED, "drop_reason": DropReason.SILENCE, "included_in": "summary"}
    summary = a_delivery(key="summary", kind=Kind.SUMMARY) if summed_up else None
    released = Released(
        going=[was_held(number, minutes) for number, minutes in enumerate(singly)],
        dropped=[was_held(99 + number, minutes, **told) for number, minutes in enumerate(summed_up)],
        summary=summary,
    )
    through_digest(released, join, now=NOW, longest=longest)

    assert len(released.held) + len(released.going) + len(released.dropped) == len(singly) + len(summed_up)
    assert all(one.due_at <= (one.held_since or NOW) + longest for one in released.held)
    assert {(one.state, one.hold, one.included_in) for one in released.held} <= {(State.WAITING, HoldReason.DIGEST, "")}
    assert (released.summary is None) == (not released.dropped)
    if is_open:
        assert len(released.going) == sum(minutes > 15 for minutes in singly)
        assert bool(released.dropped) == any(minutes > 15 for minutes in summed_up)
    else:
        assert len(released.going) >= min(OPTIONS.after, len(singly))
