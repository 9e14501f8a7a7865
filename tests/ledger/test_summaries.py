"""What a digest or a summary tells of, counted on SQLite and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from dispatcher.ledger import Ledger, RecordedEvent
from dispatcher.model.delivery import DropReason, Kind, State
from dispatcher.model.hold import HoldReason
from dispatcher.model.phase import Phase
from dispatcher.model.summary import MAX_GROUPS, MAX_LISTED, Group, Summary
from tests.support.builders import NOW, SECOND, a_delivery, a_launch_plan, an_event
from tests.support.ledger_steps import recorded

HOUR = timedelta(hours=1)
DIGEST = a_delivery(channel="slack", to="#alerts", key="digest", kind=Kind.DIGEST, created_at=NOW + HOUR)
DIGEST = DIGEST._replace(event="", content=None)


def member(
    number: int, *, plan: str = "train.daily", cause: str = "v1:a", phase: Phase = Phase.FAILED, **fields: Any
) -> RecordedEvent:
    """An execution ended `number` seconds after NOW, and the digest tells of it."""
    event = an_event(phase, name=f"e{number}", launch_plan=a_launch_plan(plan))
    held: dict[str, Any] = {
        "state": State.DROPPED,
        "drop_reason": DropReason.DIGEST,
        "hold": HoldReason.DIGEST,
        "held_by": DIGEST.key,
        "held_since": NOW + number * SECOND,
        "due_at": DIGEST.created_at,
        "included_in": DIGEST.key,
        "occurred_at": NOW + number * SECOND,
    }
    delivery = a_delivery(event, channel="slack", to="#alerts", **held | fields)
    return replace(recorded(delivery, event=event), cause=cause, cause_name=cause and f"name of {cause}")


async def test_a_digest_counts_its_members_by_launch_plan_and_cause(ledger: Ledger) -> None:
    failures = [member(number) for number in range(1, MAX_LISTED + 11)]
    others = [member(number, cause="v1:b") for number in range(100, 103)]
    success = member(200, cause="", phase=Phase.SUCCEEDED, kind=Kind.RESOLVED_NOTICE)
    notice = member(300, kind=Kind.FALLBACK_NOTICE)
    superseded: dict[str, Any] = {"included_in": "", "drop_reason": DropReason.SUPERSEDED}
    resolved = [member(number, **superseded) for number in range(400, 404)]
    not_counted = [
        member(500, included_in="another"),
        member(501, **superseded, held_by="another"),
        member(502, included_in="", drop_reason=DropReason.CANCELLED),
    ]
    await ledger.record([recorded(DIGEST), *failures, *others, success, notice, *resolved, *not_counted], [], now=NOW)

    told = await ledger.summary(DIGEST)

    plan = "flytesnacks/production/train.daily"

    def names(*numbers: int) -> list[str]:
        return [f"flytesnacks/production/e{number}" for number in numbers]

    assert told == Summary(
        key=DIGEST.key,
        reason=HoldReason.DIGEST,
        by="",
        since=NOW + SECOND,
        until=NOW + HOUR,
        number=MAX_LISTED + 10 + 3 + 1 + 1,
        groups=[
            Group(
                launch_plan=plan,
                phase="FAILED",
                cause="v1:a",
                cause_name="name of v1:a",
                number=MAX_LISTED + 10,
                first_at=NOW + SECOND,
                last_at=NOW + (MAX_LISTED + 10) * SECOND,
                executions=names(*range(MAX_LISTED + 10, 10, -1)),
            ),
            Group(
                launch_plan=plan,
                phase="FAILED",
                cause="v1:b",
                cause_name="name of v1:b",
                number=3,
                first_at=NOW + 100 * SECOND,
                last_at=NOW + 102 * SECOND,
                executions=names(102, 101, 100),
            ),
            Group(
                launch_plan=plan,
                phase="SUCCEEDED",
                cause="",
                cause_name="",
                number=1,
                first_at=NOW + 200 * SECOND,
                last_at=NOW + 200 * SECOND,
                executions=names(200),
            ),
        ],
        more=0,
        resolved=4,
        notices=1,
    )
    about_it = a_delivery(key="notice", kind=Kind.FALLBACK_NOTICE, fallback_for=DIGEST.key)._replace(event="")
    assert await ledger.summary(about_it) == told
    assert await ledger.summary(failures[0].deliveries[0]) is None


@pytest.mark.parametrize("ledger_url", ["postgres"], indirect=True)
async def test_a_summary_has_at_most_200_groups_and_counts_all(ledger: Ledger) -> None:
    many = [member(number, plan=f"plan{number % (MAX_GROUPS + 9)}") for number in range(1, 2 * MAX_GROUPS)]
    await ledger.record([recorded(DIGEST), *many], [], now=NOW)
    told = await ledger.summary(DIGEST)
    assert told is not None
    assert (len(told.groups), told.number) == (MAX_GROUPS, len(many))
    assert [group.number for group in told.groups] == sorted((group.number for group in told.groups), reverse=True)
    assert sum(group.number for group in told.groups) + told.more == len(many)
    assert told.more > 0


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
async def test_a_summary_counts_only_what_was_resolved_in_the_same_night(ledger: Ledger) -> None:
    morning, yesterday = NOW + HOUR, NOW - 23 * HOUR
    quiet: dict[str, Any] = {"hold": HoldReason.WINDOW, "held_by": "contact ml-team", "drop_reason": DropReason.WINDOW}
    superseded: dict[str, Any] = {**quiet, "drop_reason": DropReason.SUPERSEDED, "included_in": ""}
    summary = DIGEST._replace(key="summary", kind=Kind.SUMMARY)
    entries = [
        recorded(summary),
        member(10, **quiet, included_in=summary.key, due_at=morning),
        member(1, **superseded, due_at=morning),  # held before the first member that is left
        member(-80_000, **superseded, due_at=yesterday, created_at=yesterday - HOUR),
    ]
    await ledger.record(entries, [], now=NOW)
    told = await ledger.summary(summary)
    assert told is not None
    assert (told.reason, told.by, told.number, told.resolved) == (HoldReason.WINDOW, "contact ml-team", 1, 1)


async def test_what_a_silence_held_and_a_success_resolved_is_counted_in_one_summary(ledger: Ledger) -> None:
    """The silence was planned until `planned`, and ended an hour after NOW."""
    later, planned = NOW + HOUR + 300 * SECOND, NOW + 9 * HOUR
    of_silence: dict[str, Any] = {"hold": HoldReason.SILENCE, "held_by": "5f0c2a9d"}
    held: dict[str, Any] = {**of_silence, "drop_reason": DropReason.SILENCE}
    superseded: dict[str, Any] = {**of_silence, "drop_reason": DropReason.SUPERSEDED, "included_in": ""}
    summary = DIGEST._replace(key="summary", kind=Kind.SUMMARY)
    late = DIGEST._replace(key="late", kind=Kind.SUMMARY, created_at=later)
    entries = [
        recorded(summary),
        member(1, **superseded, due_at=planned),
        member(2, **superseded, due_at=NOW + 60 * SECOND),  # before the silence was extended
        member(90, **held, included_in=summary.key),
        replace(recorded(late), event=an_event(name="late")),
        member(3_700, **superseded, due_at=later, created_at=NOW + 3_700 * SECOND),
        member(3_701, **held, included_in=late.key, due_at=later, created_at=NOW + 3_701 * SECOND),
    ]
    await ledger.record(entries, [], now=NOW)
    told = [await ledger.summary(one) for one in (summary, late)]
    assert [(one.number, one.resolved) for one in told if one is not None] == [(1, 2), (1, 1)]
