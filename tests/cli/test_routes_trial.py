"""`dispatcher routes test`: routes tried on events of the past are what would have been decided then."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.contract import UnknownRecipient
from dispatcher.clock import SystemClock
from dispatcher.flyte.encode import Format, write
from dispatcher.ledger import Ledger, RecordedEvent, StoredEvent
from dispatcher.model.delivery import Kind
from dispatcher.model.event import Event, Options
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.planning.planner import Planner
from dispatcher.rules import Decision, PlanKey, PlanRules, RouteBook, Rule, RuleBook, Verdict, decide
from dispatcher.rules.owners import Owners
from dispatcher.trial import MAX_CHANGES, RouteTrial, Trial
from tests.support.builders import (
    NOW,
    a_launch_plan,
    a_notification,
    a_route,
    a_rule,
    an_event,
    quiet_hours,
    some_contacts,
)
from tests.support.matchers import MATCHERS, events
from tests.support.terminal import invoke

PLANNER = Planner({"email": str, "slack": str}, fallbacks={})


def planned(event: Event, rules: list[Rule]) -> set[tuple[str, str]]:
    return {(one.channel, to) for one in PLANNER.plan(event, rules, now=NOW) for to in one.addresses}


def stored(event: Event, book: RuleBook) -> tuple[StoredEvent, set[tuple[str, str]]]:
    """The event as the ledger has it, and whom it was to notify."""
    decision = decide(event, book)
    considered = json.loads(json.dumps([rule.as_data() for rule in decision.considered]))
    entry = StoredEvent(
        event=event,
        position="test",
        recorded_at=NOW,
        verdict=decision.verdict,
        reason=decision.reason,
        considered=considered,
    )
    return entry, planned(event, decision.matched)


@st.composite
def route_books(draw: st.DrawFn) -> RouteBook:
    routes = []
    for number in range(draw(st.integers(0, 3))):
        match = {"phase": sorted(TERMINAL), **draw(st.just({}) | MATCHERS)}
        to = draw(st.sampled_from(["a@example.com", "b@example.com", "A@example.com"]))
        options: dict[str, Any] = {
            "stop": draw(st.booleans()),
            "rules": draw(st.sampled_from(["add", "add", "replace"])),
        }
        routes.append(a_route(f"r{number}", to, **options, **match))
    return RouteBook(tuple(routes))


@given(
    events(),
    st.lists(st.sampled_from(sorted(TERMINAL)), max_size=3),
    st.sampled_from(
        [None, Options(disable_notifications=True), Options(notifications=(a_notification("own@example.com"),))]
    ),
    route_books(),
    route_books(),
)
@settings(max_examples=200)
def test_other_routes_on_a_recorded_event_are_what_they_would_have_been(
    found: tuple[Event, dict[str, Any]], phases: list[Phase], options: Options | None, old: RouteBook, new: RouteBook
) -> None:
    event = found[0].model_copy(update={"options": options})
    plan = event.launch_plan or a_launch_plan()
    key = PlanKey(plan.project, plan.domain, plan.name)
    rules = tuple(a_rule(f"{phase}@example.com", phases=(phase,), defined_at=f"plan:{phase}") for phase in phases)
    plans = {key: PlanRules(key, rules)} if rules else {}
    entry, was = stored(event, RuleBook(plans, old))
    expected = planned(event, decide(event, RuleBook(plans, new)).matched)

    trial = Trial(PLANNER, RuleBook({}, new))
    trial.add_recorded(entry, was)
    data = trial.as_data()
    assert (data["notifications"]["was"], data["notifications"]["would_be"]) == (len(was), len(expected))
    before, after = ({(channel, to.casefold()) for channel, to in several} for several in (was, expected))
    counts = {(one["channel"], one["address"].casefold()): (one["was"], one["would_be"]) for one in data["recipients"]}
    assert counts == {one: (int(one in before), int(one in after)) for one in before | after}
    assert (data["notifications"]["new"], data["notifications"]["no_longer"]) == (
        len(after - before),
        len(before - after),
    )


def test_a_route_with_a_streak_fires_once_a_streak() -> None:
    third = replace(a_route("third", "third@example.com"), streak=3)
    again = replace(a_route("again", "again@example.com", phase="SUCCEEDED"), streak=2, at_the_end=True)
    trial = Trial(PLANNER, RuleBook({}, RouteBook((third, again))))
    for number, phase in enumerate("FFFFSFFSFS"):
        finished = NOW + timedelta(minutes=number)
        event = an_event(
            Phase.FAILED if phase == "F" else Phase.SUCCEEDED, name=f"a{number}", launch_plan=a_launch_plan()
        ).model_copy(update={"occurred_at": finished, "started_at": finished - timedelta(seconds=30)})
        trial.add_recorded(replace(stored(event, RuleBook())[0], recorded_at=finished), set())
    data = trial.as_data()
    assert [(one["name"], one["matched"], one["undecided"]) for one in data["routes"]] == [
        ("third", 1, 0),
        ("again", 2, 0),
    ]
    assert [(one["event"].split("/")[2], one["new"][0]["address"]) for one in data["changes"]] == [
        ("a2", "third@example.com"),
        ("a4", "again@example.com"),
        ("a7", "again@example.com"),
    ]


def test_what_quiet_hours_would_hold_when_the_event_arrives_is_counted() -> None:
    night = quiet_hours("route night", **{"from": "22:00", "to": "07:00"})
    routes = (a_route("night", "a@example.com", "b@example.com", quiet=night), a_route("always", "b@example.com"))
    trial = Trial(PLANNER, RuleBook({}, RouteBook(routes)))
    for hour in (3, 6, 7, 12, 23):
        entry, _ = stored(an_event(name=f"a{hour}"), RuleBook())
        trial.add_recorded(replace(entry, recorded_at=NOW.replace(hour=hour, minute=0)), set())
    data = trial.as_data()
    assert (data["notifications"]["would_be"], data["notifications"]["held"]) == (10, 3)
    assert {one["address"]: one["held"] for one in data["recipients"]} == {"a@example.com": 3, "b@example.com": 0}


def test_a_route_is_unknown_also_for_its_owner_and_for_its_streak() -> None:
    owners = Owners(contacts={"ml": 1}, map={"jo": "ml"}, label="team", fallback="ml")
    routes = (
        a_route("to owner", "owner", channel=""),
        replace(a_route("streak"), streak=2),
        a_route("both", "owner", channel="", mode="manual"),
    )
    trial = Trial(PLANNER, RuleBook({}, RouteBook(routes, owners)))
    events: list[dict[str, Any]] = [{}, {"principal": "jo"}, {"principal": "al"}, {"looked_up": True}]
    for number, facts in enumerate([*events, {"launch_plan": a_launch_plan()}]):
        trial.add_recorded(stored(an_event(name=f"a{number}", **facts), RuleBook())[0], set())
    assert {one["name"]: (one["undecided"], one["unknown"]) for one in trial.as_data()["routes"]} == {
        "to owner": (3, {"principal": 2, "labels.team": 3}),
        "streak": (3, {"launch_plan": 3}),
        "both": (4, {"mode": 4}),
    }


@pytest.mark.parametrize(("rules", "would_be"), [("add", 0), ("replace", 1)])
def test_too_many_rules_of_flytes_are_rejected_unless_a_route_replaces_them(rules: str, would_be: int) -> None:
    event = an_event()
    route = a_route("all", rules=rules)
    trial = Trial(PLANNER, RuleBook({}, RouteBook((route,))))
    trial.add_event(event, Decision(Verdict.TOO_MANY_RULES, "too many"), RouteTrial(PLANNER, RouteBook()))
    assert (trial.as_data()["notifications"]["was"], trial.as_data()["notifications"]["would_be"]) == (0, would_be)


def test_notices_about_dead_deliveries_are_not_counted() -> None:
    def address(recipient: str) -> str:
        raise UnknownRecipient(f"no {recipient}")

    contacts = some_contacts(ops={"email": ["ops@example.com"]})
    planner = Planner({"email": str, "slack": address}, {}, contacts=contacts, fallback_recipients={"slack": ["ops"]})
    trial = Trial(planner, RuleBook({}, RouteBook((a_route("r", "#gone", channel="slack"),))))
    trial.add_recorded(stored(an_event(), RuleBook())[0], set())
    assert trial.as_data()["notifications"]["would_be"] == 0


def test_changes_recipients_and_days_are_bounded_and_the_others_counted() -> None:
    trial = Trial(PLANNER, RuleBook({}, RouteBook((a_route("all", labels={"team": "ml"}),))))
    for number in range(MAX_CHANGES + 20):
        labels = {"team": "ml"} if number % 2 else {}
        event = an_event(name=f"a{number}", labels=labels).model_copy(
            update={"occurred_at": NOW + timedelta(days=number % 4)}
        )
        entry, _ = stored(event, RuleBook())
        day = event.occurred_at
        trial.add_recorded(replace(entry, recorded_at=day), {("email", f"old{number}@example.com")})
    data = trial.as_data()
    assert (len(data["changes"]), data["changes_left_out"]) == (MAX_CHANGES, 20)
    assert data["routes"][0] == {
        "name": "all",
        "defined_at": "routes.yaml:all",
        "matched": 60,
        "undecided": 60,
        "unknown": {"labels.team": 60},
    }
    first, *others = data["recipients"]
    assert (first["address"], first["would_be"], first["most_in_a_day"]) == ("all@example.com", 60, 30)
    assert len(others) == 120
    assert (data["days"], first["a_day"], len(data["by_day"])) == (3.0, 20.0, 4)


async def test_whom_a_resolved_notice_reached_counts_if_a_rule_names_them_too(ledger: Ledger) -> None:
    planner = replace(PLANNER, thread_by={"slack": lambda _: "launch_plan"})
    routes = (a_route("all", "#ml", channel="slack", phase=["FAILED", "SUCCEEDED"]),)
    failed_too = a_route("failed", "#ops", channel="slack")
    for number, phase in enumerate((Phase.FAILED, Phase.SUCCEEDED)):
        event = an_event(phase, name=f"a{number}", launch_plan=a_launch_plan(), started_at=NOW + timedelta(minutes=1))
        event = event.model_copy(update={"occurred_at": NOW + timedelta(minutes=2 * number)})
        now = event.occurred_at
        decision = decide(event, RuleBook({}, RouteBook((*routes, failed_too))))
        entry = RecordedEvent(
            event=event,
            position="test",
            verdict=decision.verdict,
            reason=decision.reason,
            considered=[rule.as_data() for rule in decision.considered],
            deliveries=planner.plan(event, decision.matched, now=now),
            success=planner.success(event, now=now),
        )
        result = await ledger.record([entry], [], now=now)
    assert {(one.kind, one.addresses) for one in result.waiting} == {
        (Kind.RESOLVED_NOTICE, ("#ml",)),
        (Kind.RESOLVED_NOTICE, ("#ops",)),
    }
    assert [was async for _, was in ledger.history.notified_since(NOW)] == [
        frozenset({("slack", "#ml"), ("slack", "#ops")}),
        frozenset({("slack", "#ml")}),
    ]


async def test_the_ledgers_events_are_read_page_by_page_with_whom_they_were_to_notify(ledger: Ledger) -> None:
    route = a_route("ml", "ml@example.com")
    entries = []
    for number in range(620):
        event = an_event(name=f"a{number:03}", launch_plan=a_launch_plan())
        decision = decide(event, RuleBook({}, RouteBook((route,))))
        entries.append(
            RecordedEvent(
                event=event,
                position="test",
                verdict=decision.verdict,
                reason=decision.reason,
                considered=[rule.as_data() for rule in decision.considered],
                deliveries=PLANNER.plan(event, decision.matched, now=NOW),
            )
        )
    await ledger.record(entries[:600], [], now=NOW)
    await ledger.record(entries[600:], [], now=NOW + timedelta(hours=1))
    found = [(one.event.execution.name, was) async for one, was in ledger.history.notified_since(NOW)]
    assert [name for name, _ in found] == [f"a{number:03}" for number in range(620)]
    assert {was for _, was in found} == {frozenset({("email", "ml@example.com")})}
    later = [one async for one in ledger.history.notified_since(NOW + timedelta(minutes=1))]
    assert len(later) == 20


ROUTES = [
    {"name": "ml", "match": {"phase": "FAILED", "labels": {"team": "ml"}}, "notify": [{"email": ["ml@example.com"]}]},
    {"name": "ops", "match": {"phase": "FAILED", "principal": "jo"}, "notify": [{"email": ["ops@example.com"]}]},
]


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Settings with the route ml, and beside them the folder `other` with both routes."""
    (tmp_path / "routes").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "routes" / "ml.yaml").write_text(yaml.safe_dump({"routes": ROUTES[:1]}))
    (tmp_path / "other" / "all.yaml").write_text(yaml.safe_dump({"routes": ROUTES}))
    file = tmp_path / "dispatcher.yaml"
    channels = {"email": {"host": "relay.example.com", "from": "flyte@example.com"}}
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    file.write_text(yaml.safe_dump({"rules": {"routes": ["./routes"]}, "channels": channels, "ledger": {"url": url}}))
    return str(file)


EVENTS = [
    an_event(name="a1", launch_plan=a_launch_plan(), labels={"team": "ml"}, principal="jo"),
    an_event(name="a2", launch_plan=a_launch_plan(), labels={"team": "data"}),
    an_event(Phase.RUNNING, name="a3"),
]


async def test_events_in_a_file_are_compared_with_the_routes_of_the_settings_or_with_none(
    config: str, tmp_path: Path
) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"\n".join(write(event, Format.NATIVE).value for event in EVENTS))
    other = str(tmp_path / "other")
    answer = await invoke("routes", "test", "--events", str(file), "--json", "--config", config)
    data = json.loads(answer.out)
    assert (data["compared_with"], data["events"], data["notifications"]["new"]) == ("Flyte's rules alone", 2, 1)
    answer = await invoke("routes", "test", "--events", str(file), "--routes", other, "--json", "--config", config)
    data = json.loads(answer.out)
    assert (data["compared_with"], data["notifications"]["was"]) == ("the routes in the settings", 1)
    (change,) = data["changes"]
    assert change == {
        "event": EVENTS[0].key,
        "new": [{"channel": "email", "address": "ops@example.com"}],
        "no_longer": [],
    }
    assert [(one["name"], one["matched"], one["undecided"]) for one in data["routes"]] == [("ml", 1, 0), ("ops", 1, 1)]

    answer = await invoke("routes", "test", "--events", "-", "--config", config, stdin="{}")
    assert (answer.status, "standard input: line 1: neither" in answer.err) == (2, True)
    assert (await invoke("routes", "test", "--config", config)).status == 2


async def test_events_of_the_ledger_are_compared_with_who_was_notified(config: str, tmp_path: Path) -> None:
    now, url = SystemClock().now(), f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    event = EVENTS[0]
    entry = RecordedEvent(
        event=event,
        position="test",
        verdict=Verdict.MATCHED,
        reason="1 rule matched",
        considered=[],
        deliveries=PLANNER.plan(event, [a_rule("ml@example.com"), a_rule("gone@example.com")], now=now),
    )
    async with Ledger(url) as opened:
        await opened.record([entry], [], now=now)
    answer = await invoke("routes", "test", "--since", "1d", "--json", "--config", config)
    data = json.loads(answer.out)
    assert data["compared_with"] == "who was notified"
    assert [one["no_longer"][0]["address"] for one in data["changes"]] == ["gone@example.com"]
    assert {one["address"]: (one["was"], one["would_be"]) for one in data["recipients"]} == {
        "ml@example.com": (1, 1),
        "gone@example.com": (1, 0),
    }
    answer = await invoke("routes", "test", "--since", "1d", "--routes", str(tmp_path / "other"), "--config", config)
    for words in ("1 event, compared with who was notified", "(1 new, 1 no longer)", "email: ops@example.com", "ml@"):
        assert words in answer.out
