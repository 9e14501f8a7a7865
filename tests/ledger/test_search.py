"""Every combination of filters selects exactly the deliveries and events that meet all of its conditions."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any

from dispatcher.ledger import Filter, Ledger, RecordedEvent
from dispatcher.model.delivery import Delivery, State
from dispatcher.model.phase import Phase
from tests.support.builders import NOW, a_delivery, a_launch_plan, an_event, an_execution
from tests.support.ledger_steps import recorded

CHOICES: dict[str, tuple[Any, ...]] = {
    "states": (frozenset({State.DEAD}), frozenset({State.WAITING, State.SENT})),
    "channel": ("email", "slack"),
    "recipient": ("a@example.com", "A@example.com", "#b", "nobody"),
    "execution": ("flytesnacks/production/e3", "e4"),
    "launch_plan": ("train.daily", "report"),
    "project": ("flytesnacks", "other"),
    "domain": ("production", "development"),
    "phase": ("FAILED", "SUCCEEDED"),
    "verdict": ("matched", "no_matching_rule"),
    "since": (NOW + timedelta(minutes=4),),
    "until": (NOW + timedelta(minutes=7),),
}


def meets_event(wanted: Filter, entry: RecordedEvent) -> bool:
    event = entry.event
    plan = event.launch_plan.name if event.launch_plan else ""
    found = {**event.execution.model_dump(), "phase": event.phase, "verdict": entry.verdict, "launch_plan": plan}
    names = ("project", "domain", "phase", "verdict", "launch_plan")
    return all(getattr(wanted, name) in (None, found[name]) for name in names) and wanted.execution in (
        *(None, event.execution.name, str(event.execution)),
    )


def meets_delivery(wanted: Filter, delivery: Delivery) -> bool:
    recipients = [recipient.lower() for recipient in delivery.recipients]
    return (
        (not wanted.states or delivery.state in wanted.states)
        and wanted.channel in (None, delivery.channel)
        and (wanted.recipient is None or wanted.recipient.lower() in recipients)
    )


async def test_a_filter_selects_deliveries_by_their_events_and_events_by_their_deliveries(ledger: Ledger) -> None:
    rng = Random(11)
    times = {number: NOW + timedelta(minutes=number) for number in range(12)}
    entries: dict[str, tuple[RecordedEvent, int]] = {}
    for number, at in times.items():
        place = rng.choice(CHOICES["project"]), rng.choice(CHOICES["domain"])
        plan = a_launch_plan(rng.choice(CHOICES["launch_plan"])) if number % 5 else None
        event = an_event(Phase(rng.choice(CHOICES["phase"])), launch_plan=plan)
        event = event.model_copy(update={"execution": an_execution(f"e{number % 6}", *place)})
        deliveries = [
            a_delivery(event, channel=channel, to=to, state=rng.choice([*State]), created_at=at, due_at=at)
            for channel, to in (("email", "a@example.com"), ("slack", "#b"), ("email", "c@example.com"))
            if rng.random() < 0.6
        ]
        entry = replace(recorded(*deliveries, event=event), verdict=rng.choice(CHOICES["verdict"]))
        if event.key not in entries:
            entries[event.key] = (entry, number)
            await ledger.record([entry], [], now=at)

    matched = 0
    for _ in range(60):
        names = rng.sample([*CHOICES], rng.randrange(4))
        wanted = Filter(**{name: rng.choice(CHOICES[name]) for name in names})
        found = {
            key
            for key, (entry, number) in entries.items()
            if (wanted.since is None or times[number] >= wanted.since)
            and (wanted.until is None or times[number] < wanted.until)
            and meets_event(wanted, entry)
        }
        of_events = {key: [one for one in entries[key][0].deliveries if meets_delivery(wanted, one)] for key in found}
        on_deliveries = wanted.states or wanted.channel or wanted.recipient
        expected = {key for key, some in of_events.items() if some or not on_deliveries}
        events = await ledger.queries.events(wanted, limit=50)
        assert {one.key for one in events.entries} == expected, wanted
        keys = {one.key for some in of_events.values() for one in some}
        page = await ledger.queries.deliveries(wanted, limit=50)
        assert {one.delivery.key for one in page.entries} == keys, wanted
        assert (await ledger.queries.count(wanted)).number == len(keys), wanted
        matched += bool(keys)
    assert matched > 15


async def test_names_that_the_ledger_does_not_know_are_found_with_those_that_it_knows(ledger: Ledger) -> None:
    event = an_event(launch_plan=a_launch_plan())
    await ledger.record(
        [recorded(a_delivery(event), a_delivery(event, channel="slack", to="#b"), event=event)], [], now=NOW
    )
    known = Filter(
        project="flytesnacks",
        domain="production",
        launch_plan="train.daily",
        channel="slack",
        recipient="DEV-team@example.com",
    )
    assert await ledger.names.unknown(known) == {}
    names = ("project", "domain", "launch_plan", "channel", "recipient")
    unknown_names: Any = dict.fromkeys(names, "x")
    assert await ledger.names.unknown(Filter(**unknown_names)) == {
        "project": {"flytesnacks"},
        "domain": {"production"},
        "launch_plan": {"train.daily"},
        "channel": {"email", "slack"},
        "recipient": {"dev-team@example.com", "#b"},
    }
