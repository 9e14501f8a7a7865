"""Owners from the settings to the ledger: whom an event's routes notify as the owner, and which owners are not known."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from dispatcher.clock import SystemClock
from dispatcher.config.settings import load
from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.explain import explanations
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import Ledger
from dispatcher.model.event import Options
from dispatcher.observability.metrics import Metrics
from dispatcher.runtime.wiring import make_contents, make_planner, make_rule_files, open_channels
from tests.support.builders import NOW, a_notification, an_event, an_execution
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
ROUTES = "routes: [{name: owners, match: {phase: FAILED}, notify: [owner, {email: [audit@example.com]}]}]"
OWN = Options(notifications=(a_notification("own@example.com"),))


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
