"""A Hypothesis state machine: the dispatcher's real parts, compared with `holding_model` after every step.

Two replicas share one SQLite ledger and a clock. Each has an intake, a releaser and workers. The provider accepts every
message, except messages about one event to a refused place.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, seed, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Row, create_engine, select
from structlog.testing import capture_logs

from dispatcher.flyte.encode import Format, write
from dispatcher.ledger import Deed, Filter
from dispatcher.ledger.schema import deliveries
from dispatcher.model.delivery import SUMMARIES, Kind, State
from dispatcher.model.hold import DigestOptions, Then
from dispatcher.model.phase import Phase
from dispatcher.rules.silences import test_of as matcher_test
from tests.support.builders import NOW, a_launch_plan, a_silence, an_event
from tests.support.clock import ManualClock
from tests.support.holding_model import FAILURE, RESOLVED, SUCCESS, Ending, Model, Place, Silenced, Told, possible
from tests.support.holding_parts import (
    BOTH,
    BUSY,
    LONGEST,
    PLAIN,
    PLANS,
    READS,
    SLEEPS,
    VERSIONS,
    WHOM,
    Provider,
    Replica,
    empty_ledger,
    in_force,
)
from tests.support.ledger_steps import an_action
from tests.support.workers import deliver_due

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
T = TypeVar("T")
_STEPS: list[st.SearchStrategy[Any]] = []
_Method = TypeVar("_Method", bound=Callable[..., None])


def _step(**arguments: st.SearchStrategy[Any]) -> Callable[[_Method], _Method]:
    """Make a method a step of stories. `arguments`: where its arguments come from."""

    def add(method: _Method) -> _Method:
        _STEPS.append(st.tuples(st.just(method.__name__), st.fixed_dictionaries(arguments)))
        return method

    return add


Name = tuple[str, str, str, bool] | frozenset["Name"]
"""A message: the execution, the channel, the address, and True for a resolved notice. The name of a digest or summary is
the names of its members.
"""


class Holding(RuleBasedStateMachine):
    """Everything that holds messages back, from their recording until they are sent."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="holding"))
        (self.folder / "ledger.db").write_bytes(empty_ledger())
        self.url = f"sqlite+aiosqlite:///{self.folder}/ledger.db"
        self.engine = create_engine(f"sqlite:///{self.folder}/ledger.db")
        self.clock, self.provider, self.version = ManualClock(), Provider(), 0
        self.model = Model(NOW, LONGEST, self._quiet, self._digests)
        self.begun: set[str] = set()
        self.events = 0
        self.replicas = [self._replica() for _ in range(2)]

    def _replica(self) -> Replica:
        replica = Replica(self.url, self.version, self.clock, self.provider)
        self._await(replica.ledger.open())
        return replica

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def _quiet(self, one: Told) -> Ending | None:
        """The quiet hours that hold a message: of its contact, and of its routes."""
        version = VERSIONS[self.version]
        given = [(f"contact {one.place.address}", version.quiet.get(one.place))]
        given += [("route load", version.load_is_quiet)] if one.plan == "load" else []
        now, by = self.model.now, ""
        while ends := [(end, name) for name, each in given if each and (end := in_force(each, now))]:
            now, by = ends[0]
        return Ending(now, "window", by, Then.SUMMARY) if by else None

    def _digests(self, place: Place) -> DigestOptions | None:
        return VERSIONS[self.version].digests.get(place)

    # -- time and processes

    @initialize(hours=st.sampled_from([0, 7, 9, 12]))
    def it_is(self, hours: int) -> None:
        self._advance(hours * HOUR)

    @_step(
        by=st.sampled_from([MINUTE, 7 * MINUTE, 20 * MINUTE, HOUR, HOUR, 3 * HOUR, 9 * HOUR, -20 * MINUTE]),
        which=st.sampled_from([(), (0,), (1,), (0, 1)]),
        sends=st.sampled_from([True, True, False]),
    )
    def time_passes(self, by: timedelta, which: Sequence[int], sends: bool) -> None:
        """Then some replicas release what is due, and one sends."""
        self._advance(by)
        if which:
            self._release(which)
            if sends:
                self._send(which[0])

    def _advance(self, by: timedelta) -> None:
        self.clock.advance(by)
        self.model.now = self.clock.now()

    def _release(self, which: Sequence[int]) -> None:
        for silence in self.model.silences:
            if silence.name not in self.begun:
                self._begins(silence)
        self.model.release()

        async def release() -> None:
            for _ in range(2):  # the first one may find that silences have changed
                await asyncio.gather(*(self.replicas[one].releaser.release_due() for one in which))

        self._await(release())

    def _send(self, which: int) -> None:
        self.model.deliver(frozenset(self.provider.refused))

        async def deliver() -> None:
            for worker in self.replicas[which].workers:
                while await deliver_due(worker):
                    pass

        self._await(deliver())

    @_step(which=st.sampled_from([(0,), (1,), (0, 1)]), contacts_and_routes_change=st.booleans())
    def replicas_restart(self, which: Sequence[int], contacts_and_routes_change: bool) -> None:
        before = self._held()
        if contacts_and_routes_change:
            self.version, which = 1 - self.version, (0, 1)
        for one in which:
            self._await(self.replicas[one].ledger.aclose())
            self.replicas[one] = self._replica()
        assert self._held() == before, "a restart moves a deadline"

    # -- events

    @_step(
        plan=st.sampled_from(PLANS),
        ago=st.sampled_from([0, 0, 0, 0, 10, 60, 180, 360, -0.5, -2, -30]),
        number=st.sampled_from([1, 2, 4]),
        which=st.integers(0, 1),
        twice=st.sampled_from([False, False, True]),
    )
    def executions_fail(self, plan: str, ago: float, number: int, which: int, twice: bool) -> None:
        self._record(Phase.FAILED, plan, ago * MINUTE, HOUR, number if ago >= 0 else 1, which, twice=twice)

    @_step(
        plan=st.sampled_from(PLANS),
        ago=st.sampled_from([0, 0, 0, 30, 120, -0.5, -2]),
        lasted=st.sampled_from([0, 0, 1, 20, 120]),
        which=st.integers(0, 1),
    )
    def an_execution_succeeds(self, plan: str, ago: float, lasted: int, which: int) -> None:
        self._record(Phase.SUCCEEDED, plan, ago * MINUTE, lasted * MINUTE, 1, which)

    def _record(
        self,
        phase: Phase,
        plan: str,
        ago: timedelta,
        lasted: timedelta,
        number: int,
        which: int,
        *,
        twice: bool = False,
    ) -> None:
        self.clock.advance(timedelta(seconds=1, microseconds=1))  # no two events have the same time
        self.model.now = now = self.clock.now()
        messages = []
        for part in range(number):
            self.events += 1
            name, occurred = f"e{self.events}", now - ago - part * MINUTE / 9
            started = occurred - lasted
            event = an_event(phase, name=name, launch_plan=a_launch_plan(plan), started_at=started)
            event = event.model_copy(update={"occurred_at": occurred})
            message = write(event, Format.NATIVE)
            messages.append((message.headers, message.value, "here"))
            for place in WHOM.get((plan, phase), ()):
                self.model.has_digests(place)
            succeeded, notified = phase is Phase.SUCCEEDED, list[Place]()
            if succeeded:
                notified = self.model.succeed(name, plan, occurred, started)
            for place in WHOM.get((plan, phase), ()):
                if place not in notified:
                    one = Told(
                        SUCCESS if succeeded else FAILURE, place, now, name, plan, occurred, possible(occurred, now)
                    )
                    self.model.record(one)
        for copy in (which, 1 - which) if twice else (which,):
            result = self._await(self.replicas[copy].intake.ingest(messages))
            assert not result.rejected, result.rejected

    # -- silences

    @_step(
        plan=st.sampled_from(["", "", *PLANS]),
        begins_in=st.sampled_from([0, 0, 0, 1]),
        lasts=st.integers(1, 5),
        then=st.sampled_from(Then),
        which=st.integers(0, 1),
    )
    def a_silence_is_added(self, plan: str, begins_in: int, lasts: int, then: Then, which: int) -> None:
        name, start = f"s{len(self.model.silences):03}", self.model.now + begins_in * HOUR
        end = start + lasts * HOUR + timedelta(seconds=len(name) + len(self.model.silences))
        silence = Silenced(name, plan, start, end, then)
        matcher = {"launch_plan": plan} if plan else {"project": "flytesnacks"}
        real = a_silence(
            name, matcher=matcher, starts_at=start, ends_at=end, then=then, created_at=start - begins_in * HOUR
        )
        self.model.silences.append(silence)
        ledger = self.replicas[which].ledger
        self._await(ledger.silences.add(real, an_action(Deed.SILENCE)))
        self._await(ledger.silences.follow(real, matcher_test(real), now=self.model.now))
        self._begins(silence)

    def _begins(self, silence: Silenced) -> None:
        if silence.start <= self.model.now:
            self.begun.add(silence.name)
            self.model.begin(silence)

    @_step(pick=st.integers(0, 9), early=st.booleans(), which=st.integers(0, 1))
    def a_silence_is_ended_or_extended(self, pick: int, early: bool, which: int) -> None:
        now = self.model.now
        some = [one for one in self.model.silences if one.end > now]
        if not some:
            return
        silence = some[pick % len(some)]
        self.begun.discard(silence.name)
        if early:
            self.model.end(silence)
            self.begun.add(silence.name)
        else:
            silence.end = min(silence.end + HOUR, silence.start + LONGEST)
            self._begins(silence)
        ledger = self.replicas[which].ledger
        (real,) = self._await(ledger.silences.find(silence.name, limit=1))
        moved = self._await(
            ledger.silences.move(real, an_action(Deed.EXTEND_SILENCE), starts_at=silence.start, ends_at=silence.end)
        )
        assert moved is not None
        self._await(ledger.silences.follow(moved, matcher_test(moved), now=now))

    # -- operators and providers

    @_step(
        what=st.sampled_from(["refuse", "redrive", Deed.CANCEL, Deed.RETRY_NOW]),
        place=st.sampled_from([PLAIN, BUSY, BOTH, SLEEPS, READS]),
        which=st.integers(0, 1),
    )
    def somebody_acts(self, what: str, place: Place, which: int) -> None:
        """A provider refuses a place, or takes messages again; or an operator does something."""
        ledger, at = self.replicas[which].ledger, self.model.now
        if what == "refuse":
            self.provider.refused ^= {place}
        elif what == "redrive":
            self.model.redrive()
            self._await(ledger.change(Filter(), an_action(Deed.REDRIVE, at=at)))
        else:
            if what == Deed.CANCEL:
                self.model.cancel(place)
            else:
                self.model.retry_now(place)
            self._await(ledger.change(Filter(recipient=place.address), an_action(Deed(what), at=at)))

    @rule(what=st.deferred(lambda: st.one_of(_STEPS)))
    def step(self, what: tuple[str, Mapping[str, Any]]) -> None:
        """Take one step. With a rule for each, Hypothesis would leave most of them out of most stories."""
        name, arguments = what
        getattr(self, name)(**arguments)

    # -- what holds after every step

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        names, fates = self._fates()
        wanted, told = dict[Name, Any](), dict[Name, Told]()
        for one in self.model.messages:
            hold = (one.hold, "" if one.hold == "digest" else one.by, one.then, one.since, one.due)
            teller = self._name(one.teller) if one.teller is not None else ""
            told[self._name(one)] = one
            wanted[self._name(one)] = (one.state, one.why, teller, hold if one.held else None)
        every = fates.keys() | wanted.keys()
        different = {name: (fates.get(name), wanted.get(name)) for name in every if fates.get(name) != wanted.get(name)}
        assert not different, f"(as it is, as it should be): {different}"
        for key, counts in self.provider.counts.items():
            one = told[names[key][0]]
            assert counts == self.model.counts(one), (counts, self.model.counts(one), self.model.resolved(one))
        self.provider.counts.clear()

    def _fates(self) -> tuple[Mapping[str, Sequence[Name]], Mapping[Name, Any]]:
        """What became of each message: its state, why it was dropped, what tells of it, and its hold.

        Returns the names of the messages by the key of the delivery, and their fates.
        """
        rows = self._rows()
        members: dict[str, set[Name]] = {}
        for one in rows:
            members.setdefault(one.included_in or "", set()).update(_names(one))
        names = {one.key: [frozenset(members[one.key])] if one.kind in SUMMARIES else _names(one) for one in rows}
        fates: dict[Name, Any] = {}
        for one in rows:
            hold = None
            if one.state == State.WAITING and one.hold:
                by = "" if one.hold == "digest" else one.held_by
                hold = (one.hold, by, one.hold_then, one.held_since, one.due_at)
                assert one.due_at <= one.held_since + LONGEST, f"it is held too long: {one}"
                assert one.kind != Kind.RESOLVED_NOTICE or one.hold == "digest"
            for name in names[one.key]:
                assert name not in fates, f"{name} is there twice"
                teller = names[one.included_in][0] if one.included_in else ""
                fates[name] = (one.state, one.drop_reason or "", teller, hold)
            assert self.provider.taken[one.key] == (one.state == State.SENT), f"{one} was taken a wrong number of times"
        return names, fates

    def _rows(self) -> Sequence[Row[Any]]:
        with self.engine.connect() as connection:
            return connection.execute(_DELIVERIES).all()

    def _held(self) -> Mapping[str, Any]:
        return {one.key: (one.due_at, one.held_by) for one in self._rows() if one.hold}

    def _name(self, one: Told) -> Name:
        if one.event:
            return one.event, one.place.channel, one.place.address, one.kind == RESOLVED
        return frozenset(self._name(member) for member in self.model.messages if member.teller is one)

    def teardown(self) -> None:
        try:
            self.provider.refused.clear()
            self.somebody_acts("redrive", PLAIN, 0)
            for _ in range(6):  # a digest may follow a silence
                if State.WAITING in {one.state for one in self._rows()}:
                    self._advance(3 * HOUR)
                    self.time_passes(LONGEST / 2, (0,), sends=True)
                    self.everything_is_as_in_the_model()
            assert {one.state for one in self._rows()} <= {State.SENT, State.DROPPED}
        finally:
            for replica in self.replicas:
                self._await(replica.ledger.aclose())
            self.engine.dispose()
            self.runner.close()
            shutil.rmtree(self.folder)


def compare_with_model(*, stories: int, steps: int, chosen_by: int | None = None) -> None:
    """Run so many stories of at most so many steps. `chosen_by`: a random seed; without it, the same stories each time."""
    bounds = settings(
        max_examples=stories,
        stateful_step_count=steps,
        derandomize=chosen_by is None,
        phases=(HypothesisPhase.generate,) if chosen_by is None else (HypothesisPhase.generate, HypothesisPhase.shrink),
        deadline=None,
        database=None,
        suppress_health_check=[*HealthCheck],
    )
    with capture_logs():
        run_state_machine_as_test(Holding if chosen_by is None else seed(chosen_by)(Holding), settings=bounds)


_READ = ("key", "event", "channel", "addresses", "kind", "state", "drop_reason", "included_in")
_HOLD = ("hold", "held_by", "hold_then", "held_since", "due_at")
_DELIVERIES = select(*(deliveries.c[name] for name in (*_READ, *_HOLD)))


def _names(one: Row[Any]) -> Sequence[Name]:
    """The names of a delivery's messages, one for each address."""
    event = (one.event or "//").split("/")[2]
    return [(event, one.channel, address, one.kind == Kind.RESOLVED_NOTICE) for address in one.addresses]
