"""Flyte's rules, case by case: intake records each case of conformance.yaml in a real ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from dispatcher.clock import SystemClock
from dispatcher.config.settings import Settings, load
from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.flyte.decode import NATIVE
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.evaluator import IncomingMessage
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import Filter, Ledger, StoredDelivery
from dispatcher.model.delivery import State
from dispatcher.model.event import Event, ExecutionId
from dispatcher.rules import RuleBook
from dispatcher.runtime.wiring import make_contents, make_planner, make_rule_files, open_channels
from tests.support import conformance
from tests.support.builders import NOW
from tests.support.conformance import MAIN_PLAN, Case, IncomingEvent
from tests.support.flyte_admin import admin_client

SECTIONS = conformance.load()
CASES = [case for section in SECTIONS for case in section.cases]
BARE = Case(case="", flyte="", events=[])
SETTINGS: dict[str, Any] = {
    "rules": {"launch_plans": ["plans"]},
    "ledger": {"url": "sqlite+aiosqlite:///./ledger.db"},
    "channels": {
        "email": {"host": "relay.example.com", "from": "flyte@example.com"},
        "slack": {"token": "xoxb-hidden"},
        "pagerduty": {"services": {"ml-platform": {"routing_key": "0" * 32}}},
    },
}


def settings_in(folder: Path, case: Case) -> Settings:
    (folder / "plans").mkdir()
    rules = {**SETTINGS["rules"], "routes": ["routes.yaml"]}
    write_routes(folder, case.routes)
    owners = {"owners": case.owners} if case.owners is not None else {}
    given = {**SETTINGS, "rules": rules, "contacts": case.contacts, **owners}
    (folder / "dispatcher.yaml").write_text(yaml.safe_dump(given))
    return load(folder / "dispatcher.yaml")


def write_routes(folder: Path, routes: list[dict[str, Any]]) -> None:
    (folder / "routes.yaml").write_text(yaml.safe_dump({"routes": routes}))


def write_plans(folder: Path, plans: dict[str, list[dict[str, Any]]]) -> None:
    for number, (name, rules) in enumerate(plans.items()):
        identity = dict(zip(("name", "domain", "project"), reversed(name.split("/")), strict=False))
        plan, _, version = identity["name"].partition("@")
        document = {
            "launch_plan": {"project": "p", "domain": "d", **identity, "name": plan, "version": version},
            "notifications": rules,
        }
        (folder / "plans" / f"{number}.yaml").write_text(yaml.safe_dump(document))


def message(case: Case, event: IncomingEvent, position: str) -> IncomingMessage:
    """The message as its sender would write it: Flyte's own forms by the encoder, the native one by hand."""
    data: dict[str, Any] = {
        "execution": {"project": event.project, "domain": event.domain, "name": event.name},
        "phase": event.phase,
        "occurred_at": (NOW + timedelta(seconds=event.seconds)).isoformat(),
    }
    if event.plan is not None:
        name, _, version = event.plan.partition("@")
        where = {"project": event.project, "domain": event.domain}
        data["launch_plan"] = {**where, "name": name, "version": version}
    if event.error is not None:
        data["error"] = {"message": event.error}
    data |= event.facts
    options = conformance.options_of(case, event)
    if event.form is not Format.NATIVE:
        assert options is None, "Flyte's events carry no options"
        encoded = write(Event.model_validate(data), event.form)
        return encoded.headers, encoded.value, position
    if options is not None:
        data["options"] = options
    return [("ce_type", NATIVE.encode())], orjson.dumps(data), position


def batches(case: Case) -> Iterator[list[IncomingMessage]]:
    messages = [message(case, event, f"t/0@{at}") for at, event in enumerate(case.events)]
    yield from [messages] if case.one_batch else [[one] for one in messages]


def as_in_the_table(stored: list[StoredDelivery], *, dead: bool) -> Counter[str]:
    """The deliveries that are dead, or those that are not, as the table writes them."""
    return Counter(
        f"{name} {phase} {one.delivery.channel} {', '.join(one.delivery.recipients)}".removeprefix("main ")
        for one in stored
        for _, _, name, phase in [one.delivery.event.split("/")]
        if (one.delivery.state is State.DEAD) is dead
    )


@pytest.mark.parametrize("case", CASES, ids=[case.case for case in CASES])
async def test_each_case_gives_the_expected_deliveries(case: Case, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, case)
    main = MAIN_PLAN.partition("@")[0]
    write_plans(tmp_path, {**case.plans, **({main: case.plan} if case.plan is not None else {})})
    files = make_rule_files(settings)
    files.load()
    async with Ledger(settings.ledger.url) as ledger:
        planner = make_planner(settings, open_channels(settings))
        intake = Intake(ledger, lambda: files.book, planner, make_contents(settings, planner.contacts), SystemClock())
        incoming = list(batches(case))
        for number, batch in enumerate(incoming, start=1):
            if number == len(incoming) and case.later_plan is not None:
                write_plans(tmp_path, {main: case.later_plan})
                files.load()
            if number == len(incoming) and case.later_routes is not None:
                write_routes(tmp_path, case.later_routes)
                files.load()
            await intake.ingest(batch)

        stored = await ledger.history.find(Filter(), limit=1000)
        rejected = await ledger.rejected.find(limit=1000)
        executions = {name: ExecutionId.parse(f"p/d/{name}") for name in (key.split("/")[0] for key in case.verdicts)}
        verdicts = {
            f"{name}/{entry.event.phase}": entry.verdict
            for name, execution in executions.items()
            for entry in await ledger.history.events(execution)
        }

    assert as_in_the_table(stored, dead=False) == Counter(case.notified)
    assert as_in_the_table(stored, dead=True) == Counter(case.undeliverable)
    assert verdicts == case.verdicts
    assert len(rejected) == len(case.rejected)
    for words in case.rejected:
        assert any(words in entry.reason for entry in rejected), [entry.reason for entry in rejected]
    assert len(files.problems) == len(case.refused)
    for words in case.refused:
        assert any(words in problem.message for problem in files.problems), files.problems
    for one in stored:
        assert case.content in orjson.dumps(one.delivery.content).decode()
        assert case.routes_named in (None, [rule.name for rule in one.delivery.rules])
        assert case.severity in (None, one.delivery.severity)


def can_occur_with_flyteadmin(case: Case) -> bool:
    """True if FlyteAdmin can have this case: a create request has a list or `disable_all`, never both."""
    raw = any(one.options is not None or isinstance(one.phase, int) for one in case.events)
    return not case.why and not raw and not (case.disable and case.execution is not None)


def an_answer(case: Case, event: IncomingEvent) -> dict[str, Any]:
    """The Execution in FlyteAdmin, with its effective rules, as flyteadmin resolves them when it creates one."""
    name, _, version = (event.plan or MAIN_PLAN).partition("@")
    here = "" if (event.project, event.domain) == ("p", "d") else f"{event.project}/{event.domain}/"
    files = {**case.plans, **({MAIN_PLAN.partition("@")[0]: case.plan} if case.plan is not None else {})}
    plans = files.get(f"{here}{name}@{version}", files.get(f"{here}{name}", []))
    options = conformance.options_of(case, event) or {}
    where = {"project": event.project, "domain": event.domain}
    spec: dict[str, Any] = {"launchPlan": {**where, "resourceType": "LAUNCH_PLAN", "name": name, "version": version}}
    resolved: list[dict[str, Any]] = []
    if options.get("disable_notifications"):
        spec["disableAll"] = True
    else:
        own = options.get("notifications") or []
        resolved, spec["notifications"] = own or plans, {"notifications": own}
    closure = {"phase": event.phase, "notifications": resolved}
    return {"id": {**where, "name": event.name}, "spec": spec, "closure": closure}


FLYTEADMIN_CASES = [case for case in CASES if can_occur_with_flyteadmin(case)]


@pytest.mark.parametrize("case", FLYTEADMIN_CASES, ids=[case.case for case in FLYTEADMIN_CASES])
async def test_a_bare_event_with_flyteadmins_rules_gives_the_same_deliveries(case: Case, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, case)
    async with LocalFlyteAdmin() as server, admin_client(server) as admin, Ledger(settings.ledger.url) as ledger:
        planner = make_planner(settings, open_channels(settings))
        intake = Intake(
            ledger, RuleBook, planner, make_contents(settings, planner.contacts), SystemClock(), look_up=admin.look_up
        )
        for at, event in enumerate(case.events):
            server.add(an_answer(case, event))
            bare = event.model_copy(update={"form": Format.FLYTE_V1, "plan": None, "options": None})
            await intake.ingest([message(BARE, bare, f"t/0@{at}")])

        stored = await ledger.history.find(Filter(), limit=1000)
        assert await ledger.rejected.find(limit=1) == []
        for key, verdict in case.verdicts.items():
            (entry,) = await ledger.history.events(ExecutionId.parse(f"p/d/{key.split('/')[0]}"))
            assert entry.verdict == verdict

    assert as_in_the_table(stored, dead=False) == Counter(case.notified)


def test_the_table_has_100_cases_or_more_and_a_reason_for_exactly_the_differences() -> None:
    assert len(CASES) >= 100
    assert len({case.case for case in CASES}) == len(CASES)
    assert [case.case for case in CASES if (case.dispatcher == "the same") is bool(case.why)] == []


def test_the_page_is_generated_from_the_table() -> None:
    assert conformance.PAGE.read_text() == conformance.page(SECTIONS), "python -m tests.support.conformance"
