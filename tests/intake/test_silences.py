"""Silences in intake: FlyteAdmin is asked for the facts that they test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import Deed, Filter
from dispatcher.model.event import Options
from dispatcher.rules import RuleBook
from tests.support.builders import NOW, a_notification, a_silence, an_event, an_execution
from tests.support.console import serve_console
from tests.support.flyte_admin import a_finished_execution, admin_client
from tests.support.ledger_steps import an_action

OWN = Options(notifications=(a_notification("own@example.com"),))


@pytest.fixture
async def intake(tmp_path: Path) -> AsyncIterator[Intake]:
    async with serve_console(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as console:
        yield replace(console.intake, rules=RuleBook)


async def test_an_event_is_looked_up_if_only_flyteadmin_knows_whether_a_silence_is_for_it(intake: Intake) -> None:
    ends = NOW + timedelta(days=1)
    for name, matcher in (("jo", {"principal": "jo"}), ("other", {"project": "other", "principal": "jo"})):
        silence = a_silence(name, matcher=matcher, ends_at=ends)
        await intake.ledger.silences.add(silence, an_action(Deed.SILENCE))
    async with LocalFlyteAdmin() as server, admin_client(server) as admin:
        for name, principal, held, asked in (("a", "jo", "jo", 1), ("b", "ann", "", 2), ("disabled", "jo", None, 2)):
            server.add(a_finished_execution(an_execution(name), spec={"metadata": {"principal": principal}}))
            options = OWN.model_copy(update={"disable_notifications": name == "disabled"})
            message = write(an_event(name=name, options=options), Format.NATIVE)
            asking = replace(intake, look_up=admin.look_up)
            await asking.ingest([(message.headers, message.value, "here")])
            found = await intake.ledger.history.find(Filter(execution=name), limit=2)
            assert [one.delivery.held_by for one in found] == ([held] if held is not None else [])
            assert server.requests_by_method["GetExecution"] == asked, name
