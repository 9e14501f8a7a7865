"""The counters of a worker's deliveries, without a worker."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from channels.contract import Answer, Later, Receipt
from dispatcher.delivering.slots import Slots
from tests.support.builders import NOW, SECOND

OUTAGE = Later("can't be reached", provider_wide=True)
PLACES = st.tuples(st.sampled_from(["#a", "#b", ""]), st.sampled_from(["t", "u", ""]))


@given(
    concurrency=st.integers(1, 4),
    claim_ahead=st.integers(0, 4),
    steps=st.lists(st.tuples(st.sampled_from(["claim", "send", "finish", "record"]), PLACES), max_size=40),
)
def test_the_invariants_hold_after_each_step(
    concurrency: int, claim_ahead: int, steps: list[tuple[str, tuple[str, str]]]
) -> None:
    slots = Slots(concurrency, claim_ahead)
    unsent: list[tuple[str, str]] = []
    sent: list[tuple[str, str]] = []
    for step, (destination, thread) in steps:
        if step == "claim":
            for _ in range(slots.free(NOW)):
                slots.start(destination, thread)
                unsent.append((destination, thread))
        elif step == "send" and unsent:
            sent.append(unsent.pop(0))
            slots.sent(sent[-1][0])
        elif step == "finish" and sent:
            slots.finish(sent.pop(0)[1])
        elif step == "record":
            slots.recorded([thread])

        assert (slots.in_flight, slots.unsent) == (len(unsent) + len(sent), len(unsent))
        assert slots.unsent <= concurrency + claim_ahead
        assert slots.by_destination == Counter(one for one, _ in unsent)
        assert slots.by_thread == Counter(one for _, one in [*unsent, *sent])
        assert slots.threads_with_new <= slots.by_thread.keys() - {""}


def test_a_claim_ahead_waits_until_half_of_it_is_free() -> None:
    slots = Slots(4, claim_ahead=4)
    assert slots.free(NOW) == 8
    for _ in range(8):
        slots.start("#a", "")

    slots.sent("#a")
    slots.sent("#a")
    assert (slots.free(NOW), slots.can_claim(NOW)) == (2, False)

    slots.sent("#a")
    assert (slots.free(NOW), slots.can_claim(NOW)) == (3, True)


def test_while_the_breaker_is_open_one_delivery_may_be_in_flight_after_its_pause() -> None:
    slots = Slots(4, claim_ahead=4)
    slots.breaker.record(OUTAGE, NOW)
    assert not slots.can_claim(NOW)

    later = NOW + 10 * SECOND
    assert slots.free(later) == 1
    slots.start("#a", "")
    slots.sent("#a")
    assert not slots.can_claim(later)  # the probe is not settled yet

    slots.breaker.record(Receipt(answer=Answer("ok")), later)
    assert slots.free(later) == 8


def test_a_thread_with_a_delivery_recorded_while_one_is_in_flight_is_reported_once() -> None:
    slots = Slots(4)
    slots.recorded(["t"])  # none is in flight
    for _ in range(2):
        slots.start("#a", "t")
    slots.recorded(["t", "u", ""])

    assert slots.finish("t")
    assert not slots.finish("t")


def test_a_blocked_destination_counts_as_full_until_each_block_has_ended() -> None:
    slots = Slots(4)
    slots.start("#b", "")
    slots.block("#a")
    slots.block("#a")
    slots.unblock("#a")
    assert slots.full_destinations(5) == {"#a": 5, "#b": 1}

    slots.unblock("#a")
    assert slots.full_destinations(5) == {"#b": 1}


def test_after_a_reset_nothing_is_in_flight() -> None:
    slots = Slots(4)
    slots.start("#a", "t")
    slots.block("#a")

    slots.reset()

    assert (slots.in_flight, slots.unsent, slots.by_thread, slots.full_destinations(5)) == (0, 0, {}, {})
