"""Executions whose event was lost before Kafka: found in FlyteAdmin's lists, recorded once, and nothing old told anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from dispatcher.clock import SystemClock
from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.errors import FlyteAdminUnavailable
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.intake.reconcile import AWAY_AFTER, POSITION, Reconciler
from dispatcher.ledger import Ledger
from dispatcher.model.event import ExecutionId
from dispatcher.planning.planner import Planner
from dispatcher.rules import RuleBook
from tests.support.builders import NOW, an_event, an_execution
from tests.support.clock import ManualClock
from tests.support.flyte_admin import an_ended, asking
from tests.support.service import ask, command, serving

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


@pytest.fixture
async def server() -> AsyncIterator[LocalFlyteAdmin]:
    async with LocalFlyteAdmin() as opened:
        yield opened


def ended(server: LocalFlyteAdmin, name: str, at: datetime, **changes: Any) -> ExecutionId:
    """An execution that failed then, on the server."""
    execution = changes.pop("execution", None) or an_execution(name)
    times = {"createdAt": (at - HOUR).isoformat(), "updatedAt": at.isoformat(), "startedAt": (at - HOUR).isoformat()}
    server.add(an_ended(execution, closure={**times, **changes}))
    return execution


@dataclass
class Operations:
    """A reconciler with a clock that stands still, and what it writes into."""

    reconciler: Reconciler
    ledger: Ledger
    intake: Intake
    clock: ManualClock
    server: LocalFlyteAdmin

    async def sweep(self) -> int:
        """One round, as the service makes it."""
        span = await self.reconciler.next_span()
        found = await self.reconciler.sweep(span)
        await self.ledger.set_reconciled_until(span.until)
        return found


@pytest.fixture
async def operations(server: LocalFlyteAdmin, tmp_path: Path) -> AsyncIterator[Operations]:
    """The dispatcher was first started a day ago, and FlyteAdmin is asked ten minutes back and more."""
    clock = ManualClock()
    planner = Planner(
        addresses=dict.fromkeys(("email", "slack", "pagerduty"), str),
        fallbacks={},
        render=lambda *_, **__: {},
        last_resorts={},
    )
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}") as ledger, asking(server) as admin:
        await ledger.begin(now=NOW - 24 * HOUR)
        intake = Intake(ledger, RuleBook, planner, clock, look_up=admin.look_up)
        reconciler = Reconciler(admin, ledger, intake, clock, window=12 * HOUR, patience=5 * MINUTE)
        yield Operations(reconciler, ledger, intake, clock, server)


async def test_what_no_event_told_is_recorded_whole(operations: Operations) -> None:
    message = f"ValueError: {'x' * 400} the end"
    execution = ended(operations.server, "lost", NOW - HOUR, error={"code": "USER", "message": message})
    assert await operations.sweep() == 1
    event = await operations.ledger.event(f"{execution}/FAILED")
    assert event is not None
    assert event.occurred_at == NOW - HOUR
    assert (str(event.launch_plan), event.principal) == ("flytesnacks/production/train.daily@v1.4.2", "jane.doe")
    assert event.error is not None
    assert event.error.message == message  # lists cut it
    assert len(await operations.ledger.told(event.key)) == 4


async def test_what_an_event_told_is_left_alone_and_a_late_event_adds_nothing(operations: Operations) -> None:
    told = ended(operations.server, "told", NOW - HOUR)
    lost = ended(operations.server, "lost", NOW - HOUR)
    early = write(an_event(name="told"), Format.FLYTE_V1)
    await operations.intake.take([(early.headers, early.value, "topic/0@1")])
    assert (operations.server.looked_up[str(told)], operations.server.looked_up[str(lost)]) == (1, 0)
    assert await operations.sweep() == 1
    assert (operations.server.looked_up[str(told)], operations.server.looked_up[str(lost)]) == (1, 1)
    late = write(an_event(name="lost"), Format.FLYTE_V1)
    heard = await operations.intake.take([(late.headers, late.value, "topic/0@2")])
    assert heard.new == frozenset()
    assert len(await operations.ledger.told(f"{lost}/FAILED")) == 4


async def test_what_has_just_ended_is_not_missed_yet(operations: Operations) -> None:
    ended(operations.server, "just", NOW - 3 * MINUTE)
    assert await operations.sweep() == 0
    operations.clock.advance(3 * MINUTE)
    assert await operations.sweep() == 1


async def test_each_stretch_of_time_is_looked_through_once(operations: Operations) -> None:
    ended(operations.server, "early", NOW - 2 * HOUR)
    assert await operations.sweep() == 1
    operations.clock.advance(HOUR)
    assert (
        await operations.reconciler.next_span()
    ).since == NOW - 10 * MINUTE  # where the last look ended, less the patience
    ended(operations.server, "later", NOW + 30 * MINUTE)
    assert await operations.sweep() == 1
    operations.clock.advance(48 * HOUR)
    assert (await operations.reconciler.next_span()).since == operations.clock.now() - 12 * HOUR


async def test_what_ended_before_the_first_start_is_no_news(operations: Operations, tmp_path: Path) -> None:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path / 'fresh.db'}") as fresh:
        operations.reconciler.ledger = fresh
        await fresh.begin(now=NOW)
        ended(operations.server, "old", NOW - HOUR)
        assert await operations.reconciler.sweep(await operations.reconciler.next_span()) == 0
        operations.clock.advance(HOUR)
        ended(operations.server, "new", NOW + 10 * MINUTE)
        archived = ended(operations.server, "archived", NOW - HOUR)
        operations.server.written[str(archived)] = NOW + 20 * MINUTE
        assert await operations.reconciler.sweep(await operations.reconciler.next_span()) == 1


async def test_an_execution_that_was_written_late_is_found(operations: Operations) -> None:
    assert await operations.sweep() == 0
    operations.clock.advance(HOUR)
    late = ended(operations.server, "late", NOW - HOUR)  # its cluster was cut off when it ended
    operations.server.written[str(late)] = NOW + 20 * MINUTE
    assert await operations.sweep() == 1


async def test_what_was_purged_is_not_told_again(operations: Operations) -> None:
    ended(operations.server, "lost", NOW - HOUR, notifications=[])
    assert await operations.sweep() == 1
    operations.clock.advance(MINUTE)
    assert await operations.ledger.purge(operations.clock.now(), limit=100) == 1
    assert await operations.reconciler.sweep(await operations.reconciler.span(NOW - 12 * HOUR)) == 0


async def test_an_event_that_was_rejected_did_come(operations: Operations) -> None:
    execution = ended(operations.server, "hidden", NOW - HOUR)
    operations.server.forbidden.add(str(execution))
    assert await operations.sweep() == 1
    (rejected,) = await operations.ledger.find_rejected(limit=10)
    assert (rejected.position, rejected.event) == (POSITION, f"{execution}/FAILED")
    assert await operations.reconciler.sweep(await operations.reconciler.span(NOW - 12 * HOUR)) == 0


async def test_lists_are_read_page_by_page_and_place_by_place_one_question_at_a_time(operations: Operations) -> None:
    for number in range(250):
        ended(operations.server, f"n{number}", NOW - HOUR - number * timedelta(seconds=1))
    for number in range(110):
        elsewhere = an_execution("x", project=f"project-{number}", domain="development")
        ended(operations.server, "x", NOW - HOUR, execution=elsewhere)
    operations.server.asked.clear()
    before = operations.clock.now()
    lists_at_once = 0
    async for _ in operations.reconciler.missing(await operations.reconciler.span(NOW - 12 * HOUR)):
        lists_at_once = max(lists_at_once, operations.server.at_once)
    assert lists_at_once == 1
    assert operations.server.asked == {"ListProjects": 2, "ListExecutions": 113}
    assert operations.clock.now() - before >= timedelta(seconds=50)
    assert await operations.sweep() == 360


async def test_phases_that_are_no_end_and_a_place_that_is_hidden_are_passed_over(operations: Operations) -> None:
    ended(operations.server, "going-on", NOW - HOUR, phase="RUNNING")
    ended(operations.server, "aborting", NOW - HOUR, phase="ABORTING")
    ended(operations.server, "x", NOW - HOUR, execution=an_execution("x", project="a-hidden-one"))
    ended(operations.server, "no-time", NOW - HOUR).model_dump()
    operations.server.executions[str(an_execution("no-time"))].id.name = "a/b"
    ended(operations.server, "aborted", NOW - HOUR, phase="ABORTED")
    operations.server.forbidden.add("a-hidden-one/production")
    assert await operations.sweep() == 1
    assert await operations.ledger.event(f"{an_execution('aborted')}/ABORTED") is not None


async def test_a_sweep_that_meets_trouble_is_made_anew(operations: Operations) -> None:
    for project in ("a", "b"):
        ended(operations.server, "x", NOW - HOUR, execution=an_execution("x", project=project))
    operations.server.broken[str(an_execution("x", project="b"))] = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(FlyteAdminUnavailable):
        await operations.sweep()
    assert await operations.ledger.event(f"{an_execution('x', project='a')}/FAILED") is not None
    operations.server.broken.clear()
    assert await operations.sweep() == 1


async def test_a_place_that_cannot_be_listed_hides_nothing_of_the_others_and_is_looked_through_later(
    operations: Operations,
) -> None:
    for project in ("a", "b", "c"):
        ended(operations.server, "x", NOW - HOUR, execution=an_execution("x", project=project))
    operations.server.broken["b/production"] = grpc.StatusCode.INTERNAL
    with pytest.raises(FlyteAdminUnavailable):
        await operations.sweep()
    found = [f"{an_execution('x', project=project)}/FAILED" for project in ("a", "b", "c")]
    assert await operations.ledger.seen_events(found) == {found[0], found[2]}
    operations.server.broken.clear()
    assert await operations.sweep() == 1


async def test_where_no_place_can_be_listed_not_all_of_them_are_asked_about(
    operations: Operations, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(9):
        execution = an_execution("x", project=f"p{number}")
        ended(operations.server, "x", NOW - HOUR, execution=execution)
        operations.server.broken[f"p{number}/production"] = grpc.StatusCode.INTERNAL
    with pytest.raises(FlyteAdminUnavailable):
        await operations.sweep()
    assert capsys.readouterr().out.count("a place could not be looked through") == AWAY_AFTER - 1


@asynccontextmanager
async def dispatching(folder: Path, server: LocalFlyteAdmin, **reconcile: str) -> AsyncIterator[Any]:
    admin = {"endpoint": server.endpoint, "insecure": True, "timeout": "1s"}
    async with serving(folder, {"rules": {"flyte_admin": admin}, "reconcile": reconcile}) as replica:
        yield replica


async def test_the_service_tells_of_what_was_lost_while_it_runs(server: LocalFlyteAdmin, tmp_path: Path) -> None:
    ended(server, "before", SystemClock().now())
    async with dispatching(tmp_path, server, every="300ms", patience="100ms") as replica:
        ended(server, "lost", SystemClock().now())
        async with asyncio.timeout(30):
            while len(await ask(tmp_path / "dispatcher.yaml", "deliveries", "list")) < 4:
                await asyncio.sleep(0.2)
        await server.stop()
        async with asyncio.timeout(30):
            while "executions could not be compared with their events" not in replica.log:
                await asyncio.sleep(0.2)
    assert "no event told of executions that ended: recorded now" in replica.log
    deliveries = await ask(tmp_path / "dispatcher.yaml", "deliveries", "list")
    assert {entry["execution"]["name"] for entry in deliveries} == {"lost"}


async def test_it_can_be_switched_off(server: LocalFlyteAdmin, tmp_path: Path) -> None:
    async with dispatching(tmp_path, server, every="0"):
        pass
    assert server.asked["ListProjects"] == 0


async def test_the_command_says_what_was_lost_and_records_it(server: LocalFlyteAdmin, tmp_path: Path) -> None:
    file = tmp_path / "dispatcher.yaml"
    admin = {"endpoint": server.endpoint, "insecure": True, "timeout": "1s"}
    file.write_text(yaml.safe_dump({"rules": {"flyte_admin": admin}}))
    now = SystemClock().now()
    ended(server, "lost", now - HOUR)
    ended(server, "older", now - 30 * HOUR)
    run = ("reconcile", "--config", str(file))

    status, out, err = await command(*run)
    assert (status, out) == (0, "no event told of 0 executions\n"), "the ledger is new: nothing in it is missed"
    assert "left out" in err

    async with Ledger(f"sqlite+aiosqlite:///{tmp_path / 'old.db'}") as ledger:
        await ledger.begin(now=now - 48 * HOUR)
    file.write_text(
        yaml.safe_dump({"rules": {"flyte_admin": admin}, "ledger": {"url": "sqlite+aiosqlite:///./old.db"}})
    )
    status, out, err = await command(*run, "--since", "24h", "--dry-run")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "no event told of 1 execution"
    assert f"{an_execution('lost')}/FAILED" in out
    assert await ask(file, "deliveries", "list") == []
    assert [entry["execution"]["name"] for entry in await ask(file, "reconcile", "--since", "40h")] == ["older", "lost"]
    assert len(await ask(file, "deliveries", "list")) == 8
    assert (await command(*run, "--since", "40h"))[1] == "no event told of 0 executions\n"


async def test_without_flyteadmin_there_is_nobody_to_ask(tmp_path: Path) -> None:
    file = tmp_path / "dispatcher.yaml"
    for settings in ({}, {"reconcile": {"every": "5m"}}):
        file.write_text(yaml.safe_dump(settings))
        status, _, err = await command("reconcile", "--config", str(file))
        assert (status, "reconcile needs rules.flyte_admin" in err, "Traceback" in err) == (1, True, False)
    file.write_text(yaml.safe_dump({"rules": {"flyte_admin": {"endpoint": "flyte:81"}}, "reconcile": {"window": "2m"}}))
    status, _, err = await command("check", "--config", str(file))
    assert (status, "window must be longer than patience" in err) == (1, True)
