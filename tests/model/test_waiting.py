"""What a waiting delivery waits for, as the lists, the console and the API say it."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.model.delivery import Delivery, State
from dispatcher.model.hold import HoldReason
from dispatcher.model.replica import Replica, worker_id
from dispatcher.model.waiting import HoldingSilence, Wait, WaitKind, waits_for
from tests.support.builders import NOW, SECOND, a_delivery, a_replica

WELL, OTHER = a_replica("a:1"), a_replica("b:1")
OPEN = a_replica("a:1", probe_at=NOW + 8 * SECOND)
OPEN_TOO = a_replica("b:1", probe_at=NOW + 5 * SECOND)
GONE = a_replica("c:1", at=NOW - 61 * SECOND)
LATER = NOW + 9 * SECOND


def waits(delivery: Delivery, *replicas: Replica, **more: Any) -> list[Wait]:
    given: dict[str, Any] = {"earlier": None, "paused": False, **more}
    return waits_for(delivery, now=NOW, replicas=replicas, **given)


@pytest.mark.parametrize("state", [State.SENT, State.DEAD, State.DROPPED])
def test_a_finished_delivery_waits_for_nothing(state: State) -> None:
    assert waits(a_delivery(state=state), WELL) == []


def test_a_claimed_delivery_waits_for_the_replica_that_sends_it_and_for_nothing_else() -> None:
    claimed = a_delivery(lease=worker_id("a:1", "email"), due_at=LATER)
    (wait,) = waits(claimed, OPEN, earlier="k")
    assert (wait.kind, wait.until, wait.replicas) == (WaitKind.LEASE, LATER, ["a:1"])
    assert wait.text == "replica a:1, which is sending it"
    assert [one.kind for one in waits(claimed._replace(due_at=NOW), WELL)] == [WaitKind.WORKER], "the lease has run out"


def test_a_held_delivery_waits_for_the_end_of_its_hold_and_for_nothing_else() -> None:
    texts = {
        (HoldReason.SILENCE, "5f0c"): "the end of silence 5f0c (maintenance)",
        (HoldReason.SILENCE, ""): "its release, because a silence was changed",
        (HoldReason.WINDOW, "contact ml"): "the end of quiet hours of contact ml",
        (HoldReason.DIGEST, "d1"): "the end of its digest",
    }
    silence = HoldingSilence("maintenance", LATER)
    for (hold, by), text in texts.items():
        held = a_delivery(hold=hold, held_by=by, due_at=LATER)
        (wait,) = waits(held, OPEN, earlier="k", paused=True, silence=silence)
        assert (wait.kind, wait.until, wait.text, wait.held_by) == (WaitKind(hold), LATER, text, by)

    held = a_delivery(hold=HoldReason.SILENCE, held_by="5f0c", due_at=LATER)
    (late,) = waits(held, silence=HoldingSilence("maintenance", NOW))
    assert late.text == "other late messages of silence 5f0c (maintenance), which has ended"
    (purged,) = waits(held)
    assert purged.text == "the end of silence 5f0c"
    (overdue,) = waits(held._replace(due_at=NOW), silence=silence)
    assert (overdue.text, overdue.until) == ("its release by a replica, after silence 5f0c (maintenance)", None)


def test_the_breaker_is_waited_for_only_where_it_is_open_in_every_replica_that_was_seen_lately() -> None:
    (wait,) = waits(a_delivery(), OPEN, OPEN_TOO, GONE, a_replica("no mail:1", channels={}))
    assert (wait.kind, wait.until, wait.replicas) == (WaitKind.BREAKER, NOW + 5 * SECOND, ["a:1", "b:1"])

    (wait,) = waits(a_delivery(), OPEN, OTHER)
    assert (wait.kind, wait.until, wait.replicas) == (WaitKind.WORKER, None, ["a:1"])
    assert wait.text == "a free slot of worker email; the circuit breaker is open in a:1"


@pytest.mark.parametrize("replicas", [[], [GONE], [a_replica(channels={})]])
def test_without_a_running_replica_that_has_the_channel_a_delivery_waits_for_one(replicas: list[Replica]) -> None:
    (wait,) = waits(a_delivery(), *replicas)
    assert (wait.kind, wait.text) == (WaitKind.REPLICA, "a replica with channel email: none is running")


@pytest.mark.parametrize(
    ("slot_reserved", "paused", "kind"),
    [
        (False, False, WaitKind.RETRY),
        (True, False, WaitKind.RATE_LIMIT),
        (False, True, WaitKind.PAUSE),
        (True, True, WaitKind.RATE_LIMIT),
    ],
)
def test_the_due_time_is_a_retry_a_slot_of_the_rate_limit_or_the_end_of_a_pause(
    slot_reserved: bool, paused: bool, kind: WaitKind
) -> None:
    delivery = a_delivery(due_at=LATER, slot_reserved=slot_reserved, attempt=3)
    assert [(one.kind, one.until) for one in waits(delivery, WELL, paused=paused)] == [(kind, LATER)]


def test_a_delivery_that_waits_for_several_things_names_its_thread_first_and_its_due_time_last() -> None:
    thread, breaker, retry = waits(a_delivery(due_at=LATER), OPEN, earlier="k1")
    assert (thread.kind, thread.delivery) == (WaitKind.THREAD, "k1")
    assert (breaker.kind, retry.kind) == (WaitKind.BREAKER, WaitKind.RETRY)
