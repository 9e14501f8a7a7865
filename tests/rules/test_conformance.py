"""Flyte's rules, case by case: each row of the table goes through intake into a real ledger."""

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
from dispatcher.intake.pipeline import IncomingMessage, Intake
from dispatcher.ledger import DeliveryFilter, Ledger, StoredDelivery
from dispatcher.model.delivery import State
from dispatcher.model.event import Event, ExecutionId
from dispatcher.rules import RuleBook
from dispatcher.rules.files import LaunchPlanFiles
from dispatcher.runtime.service import make_planner, open_channels
from tests.support import conformance
from tests.support.builders import NOW
from tests.support.conformance import MAIN_PLAN, Case, Happening
from tests.support.flyte_admin import asking

SECTIONS = conformance.load()
CASES = [case for section in SECTIONS for case in section.cases]
BARE = Case(case="", flyte="", events=[])
SETTINGS = {
    "rules": {"launch_plans": ["plans"]},
    "ledger": {"url": "sqlite+aiosqlite:///./ledger.db"},
    "channels": {
        "email": {"host": "relay.example.com", "from": "flyte@example.com"},
        "slack": {"token": "xoxb-hidden"},
        "pagerduty": {"services": {"ml-platform": {"routing_key": "0" * 32}}},
    },
}


def settings_in(folder: Path) -> Settings:
    (folder / "plans").mkdir()
    (folder / "dispatcher.yaml").write_text(yaml.safe_dump(SETTINGS))
    return load(folder / "dispatcher.yaml")


def write_plans(folder: Path, plans: dict[str, list[dict[str, Any]]]) -> None:
    for number, (name, rules) in enumerate(plans.items()):
        identity = dict(zip(("name", "domain", "project"), reversed(name.split("/")), strict=False))
        plan, _, version = identity["name"].partition("@")
        document = {
            "launch_plan": {"project": "p", "domain": "d", **identity, "name": plan, "version": version},
            "notifications": rules,
        }
        (folder / "plans" / f"{number}.yaml").write_text(yaml.safe_dump(document))


def message(case: Case, happening: Happening, position: str) -> IncomingMessage:
    """The message as its sender would write it: Flyte's own forms by the encoder, the native one by hand."""
    facts: dict[str, Any] = {
        "execution": {"project": happening.project, "domain": happening.domain, "name": happening.of},
        "phase": happening.phase,
        "occurred_at": (NOW + timedelta(seconds=happening.seconds)).isoformat(),
    }
    if happening.plan is not None:
        name, _, version = happening.plan.partition("@")
        where = {"project": happening.project, "domain": happening.domain}
        facts["launch_plan"] = {**where, "name": name, "version": version}
    if happening.error is not None:
        facts["error"] = {"message": happening.error}
    options = conformance.options_of(case, happening)
    if happening.form is not Format.NATIVE:
        assert options is None, "Flyte's events carry no options"
        written = write(Event.model_validate(facts), happening.form)
        return written.headers, written.value, position
    if options is not None:
        facts["options"] = options
    return [("ce_type", NATIVE.encode())], orjson.dumps(facts), position


def batches(case: Case) -> Iterator[list[IncomingMessage]]:
    messages = [message(case, happening, f"t/0@{at}") for at, happening in enumerate(case.events)]
    yield from [messages] if case.together else [[one] for one in messages]


def owed(filed: list[StoredDelivery], *, dead: bool) -> Counter[str]:
    """Deliveries as the table writes them."""
    return Counter(
        f"{name} {phase} {one.delivery.channel} {', '.join(one.delivery.recipients)}".removeprefix("main ")
        for one in filed
        for _, _, name, phase in [one.delivery.event.split("/")]
        if (one.delivery.state is State.DEAD) is dead
    )


@pytest.mark.parametrize("case", CASES, ids=[case.case for case in CASES])
async def test_the_same_are_told_as_by_flyte_but_for_reasons(case: Case, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    main = MAIN_PLAN.partition("@")[0]
    write_plans(tmp_path, {**case.plans, **({main: case.plan} if case.plan is not None else {})})
    files = LaunchPlanFiles(settings.rules.launch_plans)
    files.load()
    async with Ledger(settings.ledger.url) as ledger:
        planner = make_planner(settings, open_channels(settings))
        intake = Intake(ledger, lambda: files.book, planner, SystemClock())
        incoming = list(batches(case))
        for number, batch in enumerate(incoming, start=1):
            if number == len(incoming) and case.later_plan is not None:
                write_plans(tmp_path, {main: case.later_plan})
                files.load()
            await intake.take(batch)

        filed = await ledger.find(DeliveryFilter(), limit=1000)
        rejected = await ledger.find_rejected(limit=1000)
        executions = {name: ExecutionId.parse(f"p/d/{name}") for name in (key.split("/")[0] for key in case.verdicts)}
        known = {
            f"{name}/{entry.event.phase}": entry.verdict
            for name, execution in executions.items()
            for entry in await ledger.known(execution)
        }

    assert owed(filed, dead=False) == Counter(case.told)
    assert owed(filed, dead=True) == Counter(case.undeliverable)
    assert known == case.verdicts
    assert len(rejected) == len(case.rejected)
    for words in case.rejected:
        assert any(words in entry.reason for entry in rejected), [entry.reason for entry in rejected]
    assert len(files.problems) == len(case.refused)
    for words in case.refused:
        assert any(words in problem.message for problem in files.problems), files.problems
    assert all(case.reads in orjson.dumps(one.delivery.content).decode() for one in filed)


def by_flyteadmin(case: Case) -> bool:
    """Whether a real FlyteAdmin could have this case: the wire holds a list or a switch, and nothing we add to it."""
    raw = any(one.options is not None or isinstance(one.phase, int) for one in case.events)
    return not case.why and not raw and not (case.disable and case.execution is not None)


def an_answer(case: Case, happening: Happening) -> dict[str, Any]:
    """The Execution on FlyteAdmin, with its rules resolved as flyteadmin does when it creates one."""
    name, _, version = (happening.plan or MAIN_PLAN).partition("@")
    here = "" if (happening.project, happening.domain) == ("p", "d") else f"{happening.project}/{happening.domain}/"
    files = {**case.plans, **({MAIN_PLAN.partition("@")[0]: case.plan} if case.plan is not None else {})}
    plans = files.get(f"{here}{name}@{version}", files.get(f"{here}{name}", []))
    options = conformance.options_of(case, happening) or {}
    where = {"project": happening.project, "domain": happening.domain}
    spec: dict[str, Any] = {"launchPlan": {**where, "resourceType": "LAUNCH_PLAN", "name": name, "version": version}}
    resolved: list[dict[str, Any]] = []
    if options.get("disable_notifications"):
        spec["disableAll"] = True
    else:
        own = options.get("notifications") or []
        resolved, spec["notifications"] = own or plans, {"notifications": own}
    closure = {"phase": happening.phase, "notifications": resolved}
    return {"id": {**where, "name": happening.of}, "spec": spec, "closure": closure}


KNOWN_TO_FLYTE = [case for case in CASES if by_flyteadmin(case)]


@pytest.mark.parametrize("case", KNOWN_TO_FLYTE, ids=[case.case for case in KNOWN_TO_FLYTE])
async def test_a_bare_event_and_what_flyteadmin_resolved_tell_the_same(case: Case, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    async with LocalFlyteAdmin() as server, asking(server) as admin, Ledger(settings.ledger.url) as ledger:
        planner = make_planner(settings, open_channels(settings))
        intake = Intake(ledger, RuleBook, planner, SystemClock(), look_up=admin.look_up)
        for at, happening in enumerate(case.events):
            server.add(an_answer(case, happening))
            bare = happening.model_copy(update={"form": Format.FLYTE_V1, "plan": None, "options": None})
            await intake.take([message(BARE, bare, f"t/0@{at}")])

        filed = await ledger.find(DeliveryFilter(), limit=1000)
        assert await ledger.find_rejected(limit=1) == []
        for key, verdict in case.verdicts.items():
            (known,) = await ledger.known(ExecutionId.parse(f"p/d/{key.split('/')[0]}"))
            assert known.verdict == verdict

    assert owed(filed, dead=False) == Counter(case.told)


def test_the_table_is_large_and_gives_a_reason_for_each_difference_and_no_other() -> None:
    assert len(CASES) >= 60
    assert len({case.case for case in CASES}) == len(CASES)
    assert [case.case for case in CASES if (case.we == "the same") is bool(case.why)] == []


def test_the_page_tells_what_the_table_says() -> None:
    assert conformance.PAGE.read_text() == conformance.page(SECTIONS), "python -m tests.support.conformance"
