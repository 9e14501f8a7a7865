"""Routes in intake: whose facts FlyteAdmin must give, and what the ledger keeps of a decision."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.errors import FlyteAdminUnavailable
from dispatcher.explain import explanations
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import BatchResult, Intake
from dispatcher.ledger import Filter, StoredEvent
from dispatcher.model.event import Event, ExecutionId, Options
from dispatcher.rules import AdminExecution, Route, RouteBook, RuleBook, UnknownExecution, decide
from tests.support.builders import NOW, a_launch_plan, a_notification, a_route, an_event, an_execution, some_contacts
from tests.support.console import serve_console
from tests.support.flyte_admin import a_finished_execution, admin_client

OWN = Options(notifications=(a_notification("own@example.com"),))
JO = a_route("jo", principal="jo")


@pytest.fixture
async def intake(tmp_path: Path) -> AsyncIterator[Intake]:
    async with serve_console(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as console:
        yield console.intake


def routed(intake: Intake, *routes: Route, **changes: Any) -> Intake:
    return replace(intake, rules=lambda: RuleBook({}, RouteBook(routes), "a" * 16), **changes)


async def ingest(intake: Intake, event: Event) -> BatchResult:
    message = write(event, Format.NATIVE)
    return await intake.ingest([(message.headers, message.value, "here")])


async def stored(intake: Intake, execution: ExecutionId) -> StoredEvent:
    (event,) = await intake.ledger.history.events(execution)
    return event


def names(result: BatchResult) -> Sequence[str]:
    return sorted(recipient for entry in result.recorded for one in entry.deliveries for recipient in one.recipients)


async def test_an_event_with_its_own_list_is_looked_up_only_for_a_route_that_needs_it(intake: Intake) -> None:
    async with LocalFlyteAdmin() as server, admin_client(server) as admin:
        for name, routes, expected, asked in (
            ("any", (a_route("any"),), ["any@example.com", "own@example.com"], 0),
            ("disabled", (JO,), [], 0),
            ("jo", (JO,), ["jo@example.com", "own@example.com"], 1),
            ("ann", (a_route("ann", principal="ann"),), ["own@example.com"], 2),
        ):
            server.add(a_finished_execution(an_execution(name), spec={"metadata": {"principal": "jo"}}))
            options = OWN.model_copy(update={"disable_notifications": name == "disabled"})
            result = await ingest(routed(intake, *routes, look_up=admin.look_up), an_event(name=name, options=options))
            assert (names(result), server.requests_by_method["GetExecution"]) == (expected, asked), name
    event = await stored(intake, an_execution("jo"))
    assert (event.event.principal, event.event.looked_up) == ("jo", True)


async def test_while_flyteadmin_is_away_nothing_is_decided(intake: Intake) -> None:
    async def away(execution: ExecutionId) -> AdminExecution:
        raise FlyteAdminUnavailable("rules.flyte_admin: no answer")

    with pytest.raises(FlyteAdminUnavailable):
        await ingest(routed(intake, a_route("any"), look_up=away), an_event())
    assert await intake.ledger.history.events(an_execution()) == []


async def test_an_event_whose_rules_are_unknown_is_recorded_if_a_route_matches(intake: Intake) -> None:
    async def unknown(execution: ExecutionId) -> UnknownExecution:
        return UnknownExecution("FlyteAdmin doesn't know it")

    rejected = await ingest(routed(intake, a_route("others", domain="staging"), look_up=unknown), an_event())
    assert [entry.reason for entry in rejected.rejected] == ["FlyteAdmin doesn't know it"]

    result = await ingest(routed(intake, a_route("any"), look_up=unknown), an_event(name="other"))
    assert names(result) == ["any@example.com"]
    (explained,) = await explanations(intake.ledger, an_execution("other"), (), deliveries_at_most=9, now=NOW)
    assert (explained.event["verdict"], explained.event["rules_version"]) == ("rules_unknown", "a" * 16)
    assert explained.event["reason"] == "FlyteAdmin doesn't know it; route any matched"
    assert [(rule["name"], rule["matched"]) for rule in explained.rules] == [("any", True)]


async def test_a_contact_of_a_route_is_notified_on_all_its_channels_and_each_address_once(intake: Intake) -> None:
    contacts = some_contacts(team={"slack": ["#ml"], "email": ["own@example.com", "ml@example.com"]})
    route = a_route("ml", "team", channel="", severity="critical")
    with_contacts = routed(intake, route, planner=replace(intake.planner, contacts=contacts))

    await ingest(with_contacts, an_event(options=OWN))

    deliveries = [one.delivery for one in await intake.ledger.history.find(Filter(), limit=10)]
    assert sorted((one.channel, one.recipients, one.severity, tuple(map(str, one.rules))) for one in deliveries) == [
        ("email", ("ml@example.com",), "critical", ("ml (routes.yaml:ml)",)),
        ("email", ("own@example.com",), "critical", ("options.notifications[0]", "ml (routes.yaml:ml)")),
        ("slack", ("#ml",), "critical", ("ml (routes.yaml:ml)",)),
    ]


async def test_an_event_is_decided_by_the_rules_by_which_it_was_looked_up(intake: Intake) -> None:
    """Deciding it again by the files of its `rules_version` must give the same, so no change may come between."""
    books = [RuleBook({}, RouteBook((JO,)), "before"), RuleBook({}, RouteBook((a_route("any"),)), "after")]

    async def look_up(execution: ExecutionId) -> AdminExecution:
        current[0] = books[1]
        return AdminExecution(principal="jo", launch_plan=a_launch_plan())

    current = [books[0]]
    await ingest(replace(intake, rules=lambda: current[0], look_up=look_up), an_event(options=OWN))

    event = await stored(intake, an_execution())
    assert event.rules_version == "before"
    again = decide(event.event, books[0])
    assert [rule.as_data() for rule in again.considered] == list(event.considered)
    assert (again.verdict, again.reason) == (event.verdict, event.reason)
