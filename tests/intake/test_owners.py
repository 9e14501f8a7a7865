"""Owners from the settings to the ledger: whom an event's routes notify as the owner, and which owners are not known."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import yaml

from dispatcher.clock import SystemClock
from dispatcher.config.settings import load
from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.explain import explanations
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import Ledger
from dispatcher.model.event import Event, Options
from dispatcher.observability.metrics import Metrics
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rules import RouteBook, RuleBook
from dispatcher.rules.owners import Owners
from dispatcher.runtime.wiring import make_contents, make_planner, make_rule_files, open_channels
from tests.support.builders import NOW, a_launch_plan, a_notification, a_route, an_event, an_execution, some_contacts
from tests.support.flyte_admin import a_finished_execution, admin_client
from tests.support.metrics import scraped
from tests.support.terminal import invoke

SETTINGS = {
    "rules": {"routes": ["routes.yaml"]},
    "ledger": {"url": "sqlite+aiosqlite:///./ledger.db"},
    "channels": {"email": {"host": "relay.example.com", "from": "flyte@example.com"}, "slack": {"token": "hidden"}},
    "contacts": {"ml-team": {"slack": ["#ml"]}, "data": {"email": ["data@example.com"]}},
    "owners": {
        "map": {"jo": "ml-team"},
        "label": "team",
        "pattern": "{principal}@example.com",
        "principals": "[a-z]+[.][a-z]+",
        "fallback": "data",
    },
}
MINUTE = timedelta(minutes=1)
ROUTES = "routes: [{name: owners, match: {phase: FAILED}, notify: [owner, {email: [audit@example.com]}]}]"
OWN = Options(notifications=(a_notification("own@example.com"),))


def _rendered(channel: str, event: Event, **_: object) -> dict[str, str]:
    return {"text": f"{event.phase} by {channel}"}


async def test_the_owner_is_notified_as_flyteadmin_and_the_settings_say(tmp_path: Path) -> None:
    config = tmp_path / "dispatcher.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    (tmp_path / "routes.yaml").write_text(ROUTES)
    settings, metrics = load(config), Metrics()
    rules = make_rule_files(settings)
    rules.load()
    planner = make_planner(settings, open_channels(settings))
    contents = make_contents(settings, planner.contacts)
    async with LocalFlyteAdmin() as server, admin_client(server) as admin, Ledger(settings.ledger.url) as ledger:
        intake = Intake(
            ledger=ledger,
            rules=lambda: rules.book,
            planner=planner,
            contents=contents,
            clock=SystemClock(),
            look_up=admin.look_up,
            on_batch=lambda batch: metrics.batch_recorded(batch, now=NOW),
        )
        for name, principal, labels, expected in (
            ("mapped", "jo", {"team": "data"}, ("slack", "#ml")),
            ("labelled", "0oa1k2", {"team": "data"}, ("email", "data@example.com")),
            ("person", "jane.doe", {"team": "nobody"}, ("email", "jane.doe@example.com")),
            ("service", "ci", {}, ("email", "data@example.com")),
            ("hostile", "jane.doe\r\nBcc: eve@example.com", {}, ("email", "data@example.com")),
        ):
            spec = {"metadata": {"principal": principal}, "labels": {"values": labels}}
            server.add(a_finished_execution(an_execution(name), spec=spec))
            message = write(an_event(name=name, options=OWN), Format.NATIVE)
            for _ in range(2):  # a message that arrives twice counts once
                await intake.ingest([(message.headers, message.value, "here")])
            (explained,) = await explanations(ledger, an_execution(name), (), deliveries_at_most=9, now=NOW)
            found = {(one["channel"], *one["recipients"]): one["rules"] for one in explained.deliveries}
            assert found.keys() == {expected, ("email", "own@example.com"), ("email", "audit@example.com")}, name
            to_owner = [rule for rule in found[expected] if rule["owner"]]
            assert bool(to_owner) == (name not in {"service", "hostile"})
            assert f"{config.parent}/routes.yaml:1" in found[expected][0]["defined_at"]
            (rule,) = [one for one in explained.rules if "owner" in one["reason"]]
            assert rule["reason"].startswith("all its conditions hold; the owner is ")
        unresolved = await ledger.owners.unresolved(limit=10)
    assert [(one.principal, one.instead, one.events) for one in unresolved] == [
        ("jane.doe\r\nBcc: eve@example.com", "data", 1),
        ("ci", "data", 1),
    ]
    scrape = scraped(metrics)
    assert [scrape["unresolved_owners_total", who, "unknown"] for who in ("fallback", "nobody")] == [2, 0]

    listed = json.loads((await invoke("rules", "owners", "--json", "--config", str(config))).out)
    assert [(one["principal"], one["event"]) for one in listed][1:] == [("ci", an_event(name="service").key)]
    shown = (await invoke("rules", "owners", "--limit", "1", "--config", str(config))).out
    assert "jane.doe\\u000d\\u000aBcc: eve@example.com" in shown
    assert len(shown.splitlines()) == 2


async def test_an_owner_of_a_route_with_a_streak_counts_when_the_route_fires(tmp_path: Path) -> None:
    owners = Owners(contacts={"data": 1}, label="team", fallback="data")
    nobody = replace(owners, fallback="")
    contacts = some_contacts(data={"email": ["data@example.com"]})
    planner = Planner(addresses={"email": str}, fallbacks={}, contacts=contacts)
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    async with Ledger(url) as ledger:
        for name, given, at in (("a", owners, 1), ("b", owners, 2), ("c", nobody, 3), ("d", nobody, 4)):
            route = a_route(f"second {given.fallback}", "owner", channel="", labels={"x": "y"})
            routes = RouteBook((replace(route, streak=2),), given)
            event = an_event(name=name, launch_plan=a_launch_plan(), labels={"x": "y"}, looked_up=True)
            message = write(event.model_copy(update={"occurred_at": NOW + at * MINUTE}), Format.NATIVE)
            intake = Intake(ledger, partial(RuleBook, {}, routes), planner, Contents(_rendered), SystemClock())
            await intake.ingest([(message.headers, message.value, "here")])
        rows = []
        for name in "abcd":
            (explained,) = await explanations(ledger, an_execution(name), (), deliveries_at_most=9, now=NOW)
            (rule,) = explained.rules
            rows.append((name, rule["matched"], rule["reason"], len(explained.deliveries)))
        unresolved = await ledger.owners.unresolved(limit=10)
    missed = "the owner is not known: label team is absent; "
    assert rows == [
        ("a", False, f"streak is 1 of 2; {missed}data is notified", 0),
        ("b", True, f"streak is 2 of 2; {missed}data is notified", 1),
        ("c", False, f"streak is 3, and 2 are enough; {missed}owners.fallback names nobody", 0),
        (
            "d",
            False,
            f"has fired in this streak already, with {an_event(name='c').key}; {missed}owners.fallback names nobody",
            0,
        ),
    ]
    assert [(one.instead, one.events, one.event) for one in unresolved] == [("", 2, an_event(name="c").key)]


async def test_a_route_with_a_streak_notifies_the_known_owner_when_it_fires(tmp_path: Path) -> None:
    owners = Owners(contacts={"data": 1}, map={"jo": "data"}, pattern="{principal}@example.com", principals="[a-z]+")
    owners = replace(owners, mail_channel="email")
    contacts = some_contacts(data={"email": ["data@example.com"]})
    planner = Planner(addresses={"email": str}, fallbacks={}, contacts=contacts)
    routes = RouteBook((a_route("first", "owner", channel="", streak=1),), owners)
    notified = {}
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        intake = Intake(ledger, partial(RuleBook, {}, routes), planner, Contents(_rendered), SystemClock())
        for principal in ("jo", "jane"):
            plan = a_launch_plan(f"plan-of-{principal}")
            message = write(an_event(name=principal, principal=principal, launch_plan=plan), Format.NATIVE)
            await intake.ingest([(message.headers, message.value, "here")])
            (explained,) = await explanations(ledger, an_execution(principal), (), deliveries_at_most=9, now=NOW)
            notified[principal] = [(one["addresses"], one["rules"][0]["owner"]) for one in explained.deliveries]
    assert notified == {"jo": [(("data@example.com",), True)], "jane": [(("jane@example.com",), True)]}
