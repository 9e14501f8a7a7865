"""Whatever the order of arrival: an incident is open exactly if its newest failure ended after the subject was well."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.contract import Answer, InDoubt, Later, Message, Receipt, ThreadBy
from dispatcher.ledger import Filter, Ledger, RecordedEvent
from dispatcher.model.delivery import State, execution_subject
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from dispatcher.model.retry import RetryPolicy
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from tests.support.builders import NOW, SECOND, a_launch_plan, a_rule, an_event, an_execution
from tests.support.clock import ManualClock
from tests.support.workers import ScriptedChannel, a_worker, deliver_due

PLAN: ThreadBy = "launch_plan"
ORIGIN: ThreadBy = "execution"

IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A folder without a disk, if this system has one: a property test commits thousands of times."""


@dataclass(frozen=True)
class Run:
    """One execution of the launch plan. Each starts and ends at a second of its own, so that no two times are equal."""

    number: int
    start: int
    end: int
    succeeds: bool
    origin: int | None
    """The number of the run that it relaunches; None if it relaunches none."""

    @property
    def event(self) -> Event:
        event = an_event(
            Phase.SUCCEEDED if self.succeeds else Phase.FAILED, name=f"run{self.number}", launch_plan=a_launch_plan()
        )
        origin = an_execution(f"run{self.origin}") if self.origin is not None else None
        return event.model_copy(
            update={
                "started_at": NOW + self.start * SECOND,
                "occurred_at": NOW + self.end * SECOND,
                "reference_execution": origin,
                "origin": origin,
            }
        )

    @property
    def about(self) -> int:
        return self.number if self.origin is None else self.origin


@st.composite
def runs(draw: st.DrawFn) -> list[Run]:
    """Runs in the order in which their events arrive."""
    count = draw(st.integers(1, 7))
    times = draw(st.permutations(range(2 * count)))
    made: list[Run] = []
    for number in range(count):
        start, end = sorted(times[2 * number : 2 * number + 2])
        origin = draw(st.sampled_from([None, *(run.number for run in made if run.origin is None)]))
        made.append(Run(number, start, end, draw(st.booleans()), origin))
    return draw(st.permutations(made))


@dataclass
class PagerDuty:
    """Incidents by dedup key, and how each attempt goes: it succeeds, is lost before or after, or is refused."""

    luck: Sequence[str]
    open_incidents: set[str] = field(default_factory=set)
    attempts: int = 0

    def answer(self, message: Message) -> Receipt:
        luck = self.luck[self.attempts % len(self.luck)] if self.attempts < len(self.luck) else "arrives"
        self.attempts += 1
        if luck == "is lost":
            raise Later("unreachable")
        assert message.thread is not None
        if message.thread.resolves:
            self.open_incidents.discard(message.thread.key)
        else:
            self.open_incidents.add(message.thread.key)
        if luck == "in doubt":
            raise InDoubt("no answer")
        return Receipt(answer=Answer("202"))


async def record(ledger: Ledger, planner: Planner, run: Run, now: datetime = NOW) -> None:
    event, rules = run.event, [a_rule("ml", channel="slack")] if not run.succeeds else []
    entry = RecordedEvent(
        event=event,
        position="test",
        verdict="matched",
        reason="",
        considered=[],
        deliveries=Contents(lambda *_, **__: {"text": "failed"}).fill(event, planner.plan(event, rules, now=now)),
        success=planner.success(event, now=now),
    )
    await ledger.record([entry], [], now=now)


async def deliver_once(ledger: Ledger, channel: ScriptedChannel, clock: ManualClock) -> None:
    """Claim what is due now and attempt it. The retry delay is the shortest."""
    policy = RetryPolicy(initial=timedelta(microseconds=1))
    worker = a_worker(ledger, channel, clock=clock, policy=policy, rng=Random(1), pages=True)
    await deliver_due(worker)


async def play(by: ThreadBy, arriving: Sequence[Run], sends_between: Sequence[bool], luck: Sequence[str]) -> None:
    planner = Planner(addresses={"slack": str}, fallbacks={}, thread_by={"slack": lambda _: by})
    account, clock = PagerDuty(luck), ManualClock(NOW)
    channel = ScriptedChannel(account.answer)
    with TemporaryDirectory(dir=IN_MEMORY) as folder:
        async with Ledger(f"sqlite+aiosqlite:///{folder}/ledger.db") as ledger:
            for at, run in enumerate(arriving):
                await record(ledger, planner, run)
                if sends_between[at % len(sends_between)]:
                    await deliver_once(ledger, channel, clock)
            waiting = Filter(states=frozenset({State.WAITING}))
            for _ in range(200):
                if not await ledger.history.find(waiting, limit=1):
                    break
                clock.advance(timedelta(minutes=1))
                await deliver_once(ledger, channel, clock)
            assert await ledger.history.find(waiting, limit=9) == []
            assert await ledger.history.find(Filter(states=frozenset({State.DEAD})), limit=9) == []
            open_subjects = {
                found.delivery.subject
                for found in await ledger.history.find(Filter(), limit=99)
                if found.delivery.thread in account.open_incidents
            }
    assert open_subjects == expected(by, arriving)


def expected(by: ThreadBy, arriving: Sequence[Run]) -> set[str]:
    """The subjects whose newest failure ended after the latest start among their successes."""
    still_open = set()
    for about in {run.about for run in arriving} if by == ORIGIN else {None}:
        of_subject = [run for run in arriving if about is None or run.about == about]
        failures = [run.end for run in of_subject if not run.succeeds]
        starts = [run.start for run in of_subject if run.succeeds and (about is None or run.origin is not None)]
        if failures and (not starts or max(failures) > max(starts)):
            plan = "flytesnacks/production/train.daily"
            still_open.add(plan if about is None else execution_subject(an_execution(f"run{about}")))
    return still_open


@pytest.mark.parametrize("by", [PLAN, ORIGIN])
@given(
    arriving=runs(),
    sends_between=st.lists(st.booleans(), min_size=1, max_size=7),
    luck=st.lists(st.sampled_from(["arrives", "in doubt", "is lost"]), max_size=6),
)
@settings(max_examples=25, deadline=None)
def test_an_incident_is_open_exactly_if_its_newest_failure_ended_after_the_subject_was_well(
    by: ThreadBy, arriving: list[Run], sends_between: list[bool], luck: list[str]
) -> None:
    asyncio.run(play(by, arriving, sends_between, luck))


@pytest.mark.parametrize("by", [PLAN, ORIGIN])
async def test_events_with_a_wrong_date_in_the_future_swallow_no_page_and_leave_no_incident_open(
    by: ThreadBy, tmp_path: Path
) -> None:
    planner = Planner(addresses={"slack": str}, fallbacks={}, thread_by={"slack": lambda _: by})
    account = PagerDuty(())
    channel = ScriptedChannel(account.answer)
    year = 365 * 24 * 3600
    first, wrong = Run(0, 0, 1, succeeds=False, origin=None), Run(1, year, year + 1, succeeds=True, origin=0)
    later, wrong_failure = (
        Run(2, 4000, 4001, succeeds=False, origin=0),
        Run(3, year, year + 1, succeeds=False, origin=0),
    )
    last = Run(4, 9000, 9001, succeeds=True, origin=0)
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        for run, at, open_after in (
            (first, 1, 1),
            (wrong, 2, 0),
            (later, 4001, 1),
            (wrong_failure, 4002, 1),
            (last, 9001, 0),
        ):
            now = NOW + at * SECOND
            await record(ledger, planner, run, now=now)
            await deliver_once(ledger, channel, ManualClock(now))
            assert len(account.open_incidents) == open_after, run
