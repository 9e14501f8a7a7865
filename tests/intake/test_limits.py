"""One event has few rules and recipients, and costs the event loop little time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import BatchResult, Intake
from dispatcher.model.event import ExecutionId
from dispatcher.model.notification import MAX_RECIPIENTS, MAX_RULES, Notification
from dispatcher.rules import PlanKey, PlanRules, Rule, RuleBook
from tests.support.builders import a_launch_plan, an_event, an_execution
from tests.support.console import serve_console
from tests.support.flyte_admin import a_finished_execution, admin_client

PLAN = a_launch_plan()


def mails(rules: int, recipients: int) -> Sequence[Mapping[str, Any]]:
    """Rules in Flyte's form, each with about the same number of recipients."""
    bounds = [recipients * number // rules for number in range(rules + 1)]
    return [
        {"phases": ["FAILED"], "email": {"recipientsEmail": [f"a{number}@example.com" for number in range(*pair)]}}
        for pair in pairwise(bounds)
    ]


@pytest.fixture
async def intake(tmp_path: Path) -> AsyncIterator[Intake]:
    async with serve_console(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as console:
        yield console.intake


async def ingest(intake: Intake, execution: ExecutionId, **fields: Any) -> BatchResult:
    message = write(an_event(name=execution.name, launch_plan=PLAN), Format.NATIVE)
    value = orjson.dumps({**orjson.loads(message.value), **fields})
    return await intake.ingest([(message.headers, value, "here")])


async def by_options(intake: Intake, execution: ExecutionId, rules: Sequence[Mapping[str, Any]]) -> BatchResult:
    return await ingest(intake, execution, options={"notifications": rules})


async def by_file(intake: Intake, execution: ExecutionId, rules: Sequence[Mapping[str, Any]]) -> BatchResult:
    key = PlanKey(PLAN.project, PLAN.domain, PLAN.name)
    entry = PlanRules(key, tuple(Rule(Notification.model_validate(rule), "file") for rule in rules))
    return await ingest(replace(intake, rules=lambda: RuleBook({key: entry})), execution)


async def by_flyte_admin(intake: Intake, execution: ExecutionId, rules: Sequence[Mapping[str, Any]]) -> BatchResult:
    async with LocalFlyteAdmin() as server, admin_client(server) as admin:
        server.add(a_finished_execution(execution, closure={"notifications": rules}))
        return await ingest(replace(intake, look_up=admin.look_up), execution)


@pytest.mark.parametrize("ingest_by", [by_options, by_file, by_flyte_admin])
async def test_an_event_with_too_many_rules_or_recipients_is_rejected_with_both_numbers(
    intake: Intake, ingest_by: Any
) -> None:
    most = await ingest_by(intake, an_execution("most"), mails(MAX_RULES, MAX_RECIPIENTS))
    assert [len(entry.deliveries) for entry in most.recorded] == [MAX_RULES]
    for rules, recipients in ((MAX_RULES + 1, MAX_RULES + 1), (1, MAX_RECIPIENTS + 1), (5000, 5000)):
        result = await ingest_by(intake, an_execution(f"n{rules}"), mails(rules, recipients))
        assert not result.recorded
        (rejected,) = result.rejected
        expected = f"the event has {rules:,} rules with {recipients:,} recipients: it may have 100 rules with 1,000"
        assert expected in rejected.reason
