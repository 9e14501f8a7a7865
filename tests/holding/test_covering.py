"""What silences and quiet hours hold, and until when: compared with a naive model."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.holding.covering import at_recording
from dispatcher.holding.silences import LONGEST, Silence
from dispatcher.model.delivery import Delivery, Kind, State
from dispatcher.model.hold import HoldReason, Quiet, Then
from tests.support.builders import NOW, a_delivery, a_silence

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
minutes = st.integers(-20, 20)
silences = st.lists(
    st.tuples(minutes, st.integers(1, 20), st.sampled_from(Then)).map(
        lambda one: a_silence(
            f"s{one}", starts_at=NOW + one[0] * MINUTE, ends_at=NOW + sum(one[:2]) * MINUTE, then=one[2]
        )
    ),
    max_size=3,
)
deliveries = st.builds(
    lambda kind, occurred, quiet: a_delivery(
        kind=kind,
        occurred_at=NOW + occurred * MINUTE,
        quiet=None if quiet is None else Quiet(NOW + quiet * MINUTE, "contact ml"),
    ),
    st.sampled_from([Kind.NOTIFICATION, Kind.FALLBACK_NOTICE, Kind.RESOLVED_NOTICE]),
    minutes,
    st.none() | st.integers(1, 40),
)


def held_minutes(delivery: Delivery, several: list[Silence]) -> tuple[list[int], list[Then]]:
    """Naive model: look at each minute and at each silence. Returns the ends, in minutes after NOW, and what follows."""
    occurred = (delivery.occurred_at - NOW) // MINUTE
    occurred = 0 if occurred > 5 else occurred
    ends, then = [], list[Then]()
    for silence in several:
        quiet = [minute for minute in range(-60, 60) if silence.starts_at <= NOW + minute * MINUTE < silence.ends_at]
        notice = delivery.kind is Kind.FALLBACK_NOTICE
        if occurred in quiet or (0 in quiet and not notice):
            later = [quiet[-1] + 1 + late for late in range(0, 60, 5)]
            ends.append(next(end for end in later if end > 0))
            spared = silence.then is Then.DROP and (notice or occurred not in quiet)
            then += [] if spared else [silence.then]
    if delivery.quiet is not None:
        ends.append((delivery.quiet.until - NOW) // MINUTE)
        then.append(Then.SUMMARY)
    return ends, then


@given(deliveries, silences)
def test_the_hold_that_ends_last_counts_with_the_most_telling_end_of_all(
    delivery: Delivery, several: list[Silence]
) -> None:
    (one,) = at_recording(delivery, several, now=NOW, longest=LONGEST)
    ends, then = held_minutes(delivery, several)
    if not ends or delivery.kind is Kind.RESOLVED_NOTICE:
        assert one == delivery
        return
    assert (one.state, one.due_at, one.held_since) == (State.WAITING, NOW + max(ends) * MINUTE, NOW)
    ordered = (Then.SEND, Then.SUMMARY, Then.DROP)
    assert one.hold_then is next((telling for telling in ordered if telling in then), Then.SEND)


def test_each_address_of_a_mail_is_held_apart_with_a_key_of_its_own() -> None:
    mail = a_delivery(recipients=("ML", "ops@x.com"), addresses=("ml@x.com", "ops@x.com"))
    parts = at_recording(mail, [a_silence()], now=NOW, longest=LONGEST)
    assert [(one.recipients, one.addresses) for one in parts] == [(("ML",), ("ml@x.com",)), (("ops@x.com",),) * 2]
    assert len({mail.key, *(one.key for one in parts)}) == 3
    assert {(one.hold, one.held_by) for one in parts} == {(HoldReason.SILENCE, "5f0c2a9d")}
    assert at_recording(mail, [], now=NOW, longest=LONGEST) == [mail]


def test_nothing_is_held_longer_than_the_longest_hold_and_no_canary_at_all() -> None:
    endless = replace(a_silence(), ends_at=NOW + timedelta(days=90))
    (one,) = at_recording(a_delivery(), [endless], now=NOW, longest=LONGEST)
    assert one.due_at == NOW + LONGEST
    canary = a_delivery()._replace(event="dispatcher/canary/c1/FAILED")
    assert at_recording(canary, [endless], now=NOW, longest=LONGEST) == [canary]


def test_a_silence_that_drops_does_not_make_single_messages_of_a_summary() -> None:
    waited = a_delivery(occurred_at=NOW - HOUR)
    drop = a_silence("drop", starts_at=NOW - MINUTE, ends_at=NOW + MINUTE, then=Then.DROP)
    summary = a_silence("summary", starts_at=NOW - MINUTE, ends_at=NOW + HOUR)
    quiet = waited._replace(quiet=Quiet(NOW + HOUR, "contact ml"))

    def then(delivery: Delivery, *several: Silence) -> Then | None:
        (one,) = at_recording(delivery, several, now=NOW, longest=LONGEST)
        return one.hold_then

    assert [then(waited, drop, summary), then(quiet, drop), then(waited, drop)] == [
        *(Then.SUMMARY, Then.SUMMARY),
        Then.SEND,
    ]
