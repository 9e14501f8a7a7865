"""Routes that wait for a streak or for its end, from the message to the ledger, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from channels.contract import UnknownRecipient
from dispatcher.explain import explanations
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import BatchResult, Intake
from dispatcher.ledger import Filter, Ledger
from dispatcher.model.delivery import Delivery, Kind, RuleRef, State
from dispatcher.model.event import EntityId, Event, Options
from dispatcher.model.phase import Phase
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rules import AdminExecution, Route, RouteBook, RuleBook, UnknownExecution
from tests.support.builders import NOW, a_launch_plan, a_notification, a_route, an_event, an_execution
from tests.support.clock import ManualClock
from tests.support.ledgers import captured_statements, execute

MINUTE = timedelta(minutes=1)
PLAN = a_launch_plan()


@pytest.fixture
async def on_sqlite(tmp_path: Path) -> AsyncIterator[Ledger]:
    """A ledger for what does not depend on the database."""
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as opened:
        yield opened


def an_intake(ledger: Ledger, *routes: Route, paging: bool = False, **changes: Any) -> Intake:
    """An intake that notifies nobody but the routes' recipients. `paging`: mail has a thread for each launch plan."""

    def render(channel: str, event: Event, *, severity: str = "", **_: object) -> dict[str, Any]:
        return {"text": f"{event.phase} {severity}"}

    planner = Planner(
        addresses={"email": _address, "slack": str},
        fallbacks={},
        grouped=frozenset({"email"}),
        thread_by={"slack": lambda _: "launch_plan"} if paging else {},
    )
    book = RuleBook({}, RouteBook(routes), "a" * 16)
    intake = Intake(ledger, lambda: book, planner, Contents(render), ManualClock(NOW + timedelta(days=1)))
    return replace(intake, **changes)


def _address(recipient: str) -> str:
    if "@" not in recipient:
        raise UnknownRecipient("no mail address")
    return recipient


def ended(name: str, at: int, phase: Phase = Phase.FAILED, *, plan: EntityId | None = PLAN, **fields: Any) -> Event:
    """An execution that ended `at` minutes after NOW. A success started at that time, too."""
    return an_event(phase, name=name, launch_plan=plan, **fields).model_copy(update={"occurred_at": NOW + at * MINUTE})


def succeeded(name: str, at: int, **fields: Any) -> Event:
    return ended(name, at, Phase.SUCCEEDED, **fields)


async def ingest(intake: Intake, *events: Event) -> BatchResult:
    messages = [write(event, Format.NATIVE) for event in events]
    return await intake.ingest([(message.headers, message.value, "here") for message in messages])


async def told(intake: Intake, event: Event) -> list[tuple[str, str]]:
    """Record the event alone; return whom it notifies, each with the kind of the message."""
    await ingest(intake, event)
    found = await intake.ledger.history.find(Filter(execution=str(event.execution)), limit=99)
    return sorted((one.delivery.kind, name) for one in found for name in one.delivery.recipients)


async def considered(ledger: Ledger, name: str) -> tuple[str, str, list[tuple[str, bool, str]]]:
    """Return an execution's verdict and reason, and its evaluated routes."""
    (event,) = await explanations(ledger, an_execution(name), (), deliveries_at_most=9, now=NOW)
    rules = [(rule["name"], rule["matched"], rule["reason"]) for rule in event.rules]
    return event.event["verdict"], event.event["reason"], rules


# -- a model: which routes fire, if the events arrive in this order


@dataclass(frozen=True)
class Arrival:
    number: int
    """Of the execution. The same number again is the same event again."""
    phase: Phase
    end: int
    start: int
    team: str


@dataclass(frozen=True)
class Wanted:
    streak: int
    team: str
    phases: tuple[Phase, ...]
    """Empty for a route that fires at the end of a streak."""


def model(arrivals: Iterable[Arrival], routes: Sequence[Wanted]) -> dict[int, set[int]]:
    """Return the numbers of the routes that fire with each execution's event."""
    failures: list[int] = []
    well, longest, fired, result = -1, 0, set[int](), dict[int, set[int]]()
    for one in arrivals:
        if one.number in result:
            continue  # recorded once
        before = [end for end in failures if end > well]
        if one.phase is Phase.SUCCEEDED:
            well = max(well, min(one.start, one.end))
        if one.phase in {Phase.FAILED, Phase.TIMED_OUT}:
            failures.append(one.end)
        streak = [end for end in failures if end > well]
        longest = max(longest, len(streak))
        fire = set()
        for at, route in enumerate(routes):
            if route.team not in {"any", one.team}:
                continue
            if not route.phases and one.phase is Phase.SUCCEEDED and before and not streak and longest >= route.streak:
                fire.add(at)
            elif one.phase in route.phases and len(streak) >= route.streak and at not in fired:
                fire.add(at)
                fired.add(at)
        result[one.number] = fire
        if not streak:
            longest, fired = 0, set()
    return result


numbers = count()
teams = st.sampled_from(["a", "b"])
failing = [Phase.FAILED, Phase.FAILED, Phase.TIMED_OUT]
arrivals = st.lists(
    st.builds(
        Arrival,
        st.integers(0, 9),
        st.sampled_from([*failing, *failing, Phase.SUCCEEDED, Phase.SUCCEEDED, Phase.ABORTED]),
        st.integers(0, 6),
        st.integers(0, 6),
        teams,
    ),
    max_size=10,
)
wanted = st.lists(
    st.builds(
        Wanted,
        st.integers(1, 3),
        st.sampled_from(["any", "any", "a"]),
        st.sampled_from([(), (Phase.FAILED,), (Phase.FAILED, Phase.TIMED_OUT), (Phase.ABORTED, Phase.FAILED)]),
    ),
    min_size=1,
    max_size=4,
)


def as_routes(routes: Sequence[Wanted]) -> list[Route]:
    labels: dict[str, Any] = {"any": {}, "a": {"labels": {"team": "a"}}}
    return [
        a_route(
            f"r{at}",
            f"r{at}@example.com",
            "shared@example.com",
            phase=route.phases or "SUCCEEDED",
            severity=("", "error", "critical")[at % 3],
            streak=route.streak,
            at_the_end=not route.phases,
            **labels[route.team],
        )
        for at, route in enumerate(routes)
    ]


def as_event(one: Arrival, number: int) -> Event:
    event = ended(f"e{number}n{one.number}", one.end, one.phase, plan=a_launch_plan(f"plan{number}"))
    changes = {"started_at": NOW + min(one.start, one.end) * MINUTE, "labels": {"team": one.team}}
    return event.model_copy(update=changes)


@given(arrivals, wanted, st.sets(st.integers(1, 9), max_size=4))
@example(
    [Arrival(at, Phase.FAILED, at, at, "a") for at in (1, 2, 3)] + [Arrival(4, Phase.SUCCEEDED, 6, 5, "a")],
    [Wanted(2, "any", (Phase.FAILED,)), Wanted(3, "a", ())],
    {2},
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_routes_that_fire_are_those_of_the_model(
    ledger: Ledger, arrivals: list[Arrival], wanted: list[Wanted], cuts: set[int]
) -> None:
    intake, number = an_intake(ledger, *as_routes(wanted)), next(numbers)
    first: dict[int, Arrival] = {}
    arrivals = [first.setdefault(one.number, one) for one in arrivals]  # what arrives again is the same event
    begins = [0, *sorted(cut for cut in cuts if cut < len(arrivals)), len(arrivals)]
    for begin, end in pairwise(begins):
        await ingest(intake, *(as_event(one, number) for one in arrivals[begin:end]))

    for execution, fire in model(arrivals, wanted).items():
        event = as_event(first[execution], number)
        (stored,) = await ledger.history.events(event.execution)
        assert {rule["name"] for rule in stored.considered if rule["matched"]} == {f"r{at}" for at in fire}
        assert stored.verdict == ("matched" if fire else "no_matching_rule")
        found = [one.delivery for one in await ledger.history.find(Filter(execution=str(event.execution)), limit=99)]
        addresses = [address for one in found for address in one.addresses]
        expected = {f"r{at}@example.com" for at in fire} | ({"shared@example.com"} if fire else set())
        assert (len(addresses), {*addresses}) == (len(expected), expected), "each address is notified once"
        for at in fire:
            assert {one.addresses for one in found if f"r{at}" in {rule.name for rule in one.rules}}
        shared = [one for one in found if "shared@example.com" in one.addresses]
        assert {rule.name for one in shared for rule in one.rules} >= {f"r{at}" for at in fire}
        highest = max((at % 3 for at in fire), default=0)
        assert {one.severity for one in shared} <= {("", "error", "critical")[highest]}


# -- single rules


async def test_explain_says_how_long_the_streak_is_and_which_event_a_route_fired_with(ledger: Ledger) -> None:
    third = a_route("third", phase=["FAILED", "TIMED_OUT"], streak=3)
    over = a_route("over", phase="SUCCEEDED", streak=3, at_the_end=True)
    intake = an_intake(ledger, third, over)
    assert await told(intake, ended("a", 1)) == []
    assert await told(intake, ended("b", 2, Phase.ABORTED)) == []
    assert await told(intake, ended("c", 3, Phase.TIMED_OUT)) == []
    assert await told(intake, ended("d", 4)) == [("notification", "third@example.com")]
    assert await told(intake, ended("e", 5)) == []
    assert await told(intake, succeeded("f", 6)) == [("notification", "over@example.com")]
    assert await told(intake, succeeded("g", 7)) == []
    assert await told(intake, ended("h", 8)) == []

    none = f"no rules for launch plan {PLAN}"
    assert await considered(ledger, "c") == (
        "no_matching_rule",
        f"{none}; route third (streak is 2 of 3) did not fire",
        [("third", False, "streak is 2 of 3")],
    )
    assert await considered(ledger, "d") == (
        "matched",
        f"{none}; route third (streak is 3 of 3) fired",
        [("third", True, "streak is 3 of 3")],
    )
    assert await considered(ledger, "b") == ("no_matching_rule", none, [])
    key = ended("d", 4).key
    assert (await considered(ledger, "e"))[2] == [("third", False, f"has fired in this streak already, with {key}")]
    assert (await considered(ledger, "f"))[2] == [("over", True, "the success ended a streak of 4")]
    assert (await considered(ledger, "g"))[2] == [("over", False, "the success ended no streak")]
    assert (await considered(ledger, "h"))[2] == [("third", False, "streak is 1 of 3")]


async def test_what_is_new_is_counted_logged_and_sent_as_it_was_recorded(on_sqlite: Ledger) -> None:
    pending: list[Delivery] = []
    intake = an_intake(on_sqlite, a_route("first", streak=1), on_pending=pending.extend)
    (entry,) = (await ingest(intake, ended("a", 1))).recorded
    assert (entry.verdict, entry.reason.rpartition("; ")[2]) == ("matched", "route first (streak is 1 of 1) fired")
    assert [one.key for one in entry.deliveries] == [one.key for one in pending]
    (stored,) = await on_sqlite.history.find(Filter(), limit=9)
    assert stored.delivery.key == pending[0].key
    assert (await on_sqlite.history.delivery(stored.delivery.key)).delivery.content == {"text": "FAILED "}  # type: ignore[union-attr]


async def test_an_address_that_is_notified_anyway_gets_the_route_added_to_its_rules(on_sqlite: Ledger) -> None:
    own = Options(notifications=(a_notification("a@example.com", "b@example.com", "nobody"),))
    third = a_route("third", "B@example.com", "c@example.com", "nobody", streak=1, severity="critical")
    same = a_route("same", "A@example.com", streak=1)
    await ingest(an_intake(on_sqlite, third, same), ended("a", 1, options=own))

    rule, routed, both = (
        RuleRef("", "options.notifications[0]"),
        RuleRef("third", third.defined_at),
        RuleRef("same", same.defined_at),
    )
    found = [one.delivery for one in await on_sqlite.history.find(Filter(), limit=9)]
    contents = {one.addresses: (await on_sqlite.history.delivery(one.key)).delivery.content for one in found}  # type: ignore[union-attr]
    assert {one.addresses or one.recipients: (one.state, one.severity, one.rules) for one in found} == {
        ("a@example.com",): (State.WAITING, "", (rule, both)),
        ("b@example.com",): (State.WAITING, "critical", (rule, routed)),
        ("c@example.com",): (State.WAITING, "critical", (routed,)),
        ("nobody",): (State.DEAD, "", (rule, routed)),
    }
    assert contents[("b@example.com",)] == {"text": "FAILED critical"}
    assert contents[("a@example.com",)] == {"text": "FAILED "}


async def test_the_threads_own_notice_takes_the_place_of_the_message_at_the_end(ledger: Ledger) -> None:
    second = a_route("second", "#page", channel="slack", streak=2)
    over = a_route("over", "#PAGE", "#others", channel="slack", phase="SUCCEEDED", at_the_end=True, streak=1)
    intake = an_intake(ledger, second, over, paging=True)
    assert await told(intake, ended("a", 1)) == []
    assert await told(intake, succeeded("b", 2)) == [("notification", "#PAGE"), ("notification", "#others")]
    await ingest(intake, ended("c", 3), ended("d", 4), succeeded("e", 5))
    found = [one.delivery for one in await ledger.history.find(Filter(phase="SUCCEEDED"), limit=9)]
    assert {
        (one.kind, one.recipients, one.thread != "", one.rules[-1].name) for one in found if "/e/" in one.event
    } == {
        (Kind.RESOLVED_NOTICE, ("#page",), True, "over"),
        (Kind.NOTIFICATION, ("#others",), False, "over"),
    }
    verdict, reason, rules = await considered(ledger, "e")
    assert (verdict, rules) == ("matched", [("over", True, "the success ended a streak of 2")])
    assert reason.endswith("; route over (the success ended a streak of 2) fired; 1 resolved notice to #page")


async def test_a_route_stops_and_replaces_by_its_match_whether_or_not_it_fires(on_sqlite: Ledger) -> None:
    own = Options(notifications=(a_notification("own@example.com"),))
    second = a_route("second", streak=2, stop=True, rules="replace")
    intake = an_intake(on_sqlite, second, a_route("later"))
    assert await told(intake, ended("a", 1, options=own)) == []
    assert await told(intake, ended("b", 2, options=own)) == [("notification", "second@example.com")]
    assert (await considered(on_sqlite, "a"))[:2] == (
        "no_matching_rule",
        "route second replaces Flyte's rules; route second (streak is 1 of 2) did not fire",
    )
    assert (await considered(on_sqlite, "b"))[0] == "matched"


async def test_disabled_notifications_neither_count_nor_end_a_streak(on_sqlite: Ledger) -> None:
    disabled = Options(disable_notifications=True)
    over = a_route("over", phase="SUCCEEDED", at_the_end=True, streak=1)
    intake = an_intake(on_sqlite, a_route("second", streak=2), over)
    for event in (ended("a", 1, options=disabled), ended("b", 2), succeeded("c", 3, options=disabled)):
        assert await told(intake, event) == []
    assert await told(intake, ended("d", 4)) == [("notification", "second@example.com")]
    assert await told(intake, succeeded("e", 5)) == [("notification", "over@example.com")]
    assert (await considered(on_sqlite, "a"))[2] == [("second", False, "disabled by options.disable_notifications")]


async def test_launch_plans_have_streaks_of_their_own_and_an_event_without_one_has_none(on_sqlite: Ledger) -> None:
    intake = an_intake(on_sqlite, a_route("second", streak=2))
    other, task = a_launch_plan("other"), PLAN.model_copy(update={"resource_type": "TASK"})
    for number, plan in enumerate((PLAN, other, task)):
        assert await told(intake, ended(f"a{number}", 1, plan=plan)) == []
    assert await told(intake, ended("b", 2, plan=other)) == [("notification", "second@example.com")]
    newer = PLAN.model_copy(update={"version": "v9"})
    assert await told(intake, ended("c", 3, plan=newer)) == [("notification", "second@example.com")]
    own = Options(notifications=(a_notification("own@example.com"),))
    assert await told(intake, ended("d", 4, plan=None, options=own)) == [("notification", "own@example.com")]
    assert ("second", False, "the launch plan isn't known, so there is no streak") in (
        await considered(on_sqlite, "d")
    )[2]


async def test_flyteadmin_is_asked_for_the_launch_plan_of_an_event_that_decides_itself(on_sqlite: Ledger) -> None:
    asked = []

    async def look_up(execution: Any) -> AdminExecution:
        asked.append(execution.name)
        return AdminExecution(rules=(), disabled=False, launch_plan=PLAN)

    own = Options(notifications=(a_notification("own@example.com"),))
    intake = an_intake(on_sqlite, a_route("first", streak=1, domain="staging"), look_up=look_up)
    await ingest(intake, ended("a", 1, plan=None, options=own), ended("b", 2, options=own))
    assert asked == ["a"], "the streaks of all launch plans are counted"
    elsewhere = an_intake(on_sqlite, a_route("second", streak=2))
    assert await told(elsewhere, ended("c", 3)) == [("notification", "second@example.com")]


async def test_a_route_that_is_renamed_fires_again_and_one_that_was_removed_has_fired(on_sqlite: Ledger) -> None:
    first = a_route("first", streak=1)
    assert await told(an_intake(on_sqlite, first), ended("a", 1)) == [("notification", "first@example.com")]
    renamed = a_route("renamed", streak=1)
    assert await told(an_intake(on_sqlite, renamed), ended("b", 2)) == [("notification", "renamed@example.com")]
    assert await told(an_intake(on_sqlite), ended("c", 3)) == []
    assert await told(an_intake(on_sqlite, first, renamed), ended("d", 4)) == []
    assert (await considered(on_sqlite, "d"))[1].endswith(
        f"routes first (has fired in this streak already, with {ended('a', 1).key}), "
        f"renamed (has fired in this streak already, with {ended('b', 2).key}) did not fire"
    )


async def test_two_replicas_fire_a_route_once_and_miss_no_failure(ledger: Ledger, ledger_url: str) -> None:
    routes = [a_route(f"r{streak}", streak=streak) for streak in (1, 5, 20)]
    async with Ledger(ledger_url) as other:
        intakes = [an_intake(one, *routes) for one in (ledger, other)]
        await asyncio.gather(*(ingest(intakes[at % 2], ended(f"e{at}", at)) for at in range(20)))
    found = [one.delivery for one in await ledger.history.find(Filter(), limit=99)]
    assert sorted(one.recipients[0] for one in found) == ["r1@example.com", "r20@example.com", "r5@example.com"]
    reasons = [rules for at in range(20) for _, _, rules in [await considered(ledger, f"e{at}")]]
    lengths = sorted(reason for rules in reasons for name, _, reason in rules if name == "r20")
    assert lengths == sorted(f"streak is {number} of 20" for number in range(1, 21))


async def test_without_a_streak_no_statement_is_added(on_sqlite: Ledger) -> None:
    asked: dict[str, list[str]] = {}
    for name, routes in {
        "none": [],
        "route": [a_route("any")],
        "streak": [a_route("any"), a_route("x", streak=9)],
    }.items():
        intake = an_intake(on_sqlite, *routes, a_route("others"))
        with captured_statements() as statements:
            await ingest(intake, ended(f"a-{name}", 1), ended(f"b-{name}", 2))
        asked[name] = [text for text, _ in statements]
    assert [one for one in asked["none"] if "subjects" in one] == []
    assert asked["route"] == asked["none"]
    assert [one.split()[0] for one in asked["streak"] if "subjects" in one] == ["INSERT", "SELECT", "INSERT"]


async def test_a_purge_keeps_a_streak_until_its_newest_failure_is_old(ledger: Ledger, ledger_url: str) -> None:
    intake = an_intake(ledger, a_route("second", streak=2), a_route("third", streak=3))
    await ingest(intake, ended("a", 1), ended("b", 3))
    await execute(ledger_url, "UPDATE events SET recorded_at = occurred_at")
    assert await ledger.purge(NOW + 2 * MINUTE, limit=9) == 1
    assert await told(intake, ended("c", 5)) == [("notification", "third@example.com")]
    await ledger.purge(NOW + 30 * MINUTE, limit=9)
    assert await told(intake, ended("d", 40)) == [], "the streak was purged"


async def test_streaks_that_are_forgotten_begin_anew(ledger: Ledger) -> None:
    intake = an_intake(ledger, a_route("second", streak=2), a_route("third", streak=3))
    await ingest(intake, ended("a", 1), ended("b", 3))
    await ledger.forget_streaks()
    assert await told(intake, ended("c", 5)) == []
    assert await told(intake, ended("d", 6)) == [("notification", "second@example.com")]


async def test_an_event_whose_rules_are_unknown_is_recorded_if_a_route_waits_for_its_streak(on_sqlite: Ledger) -> None:
    async def unknown(execution: Any) -> UnknownExecution:
        return UnknownExecution("FlyteAdmin doesn't know it")

    intake = an_intake(on_sqlite, a_route("second", streak=2), look_up=unknown)
    assert await told(intake, ended("a", 1)) == []
    assert await told(intake, ended("b", 2)) == [("notification", "second@example.com")]
    for name, words in (("a", "streak is 1 of 2) did not fire"), ("b", "streak is 2 of 2) fired")):
        verdict, reason, _ = await considered(on_sqlite, name)
        assert (verdict, reason) == ("rules_unknown", f"FlyteAdmin doesn't know it; route second ({words}")
