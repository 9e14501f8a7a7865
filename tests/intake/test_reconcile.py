"""Reconciliation: lost events are found in FlyteAdmin's lists and recorded once, and old executions are left out."""

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
from dispatcher.intake.reconcile import MAX_FAILED_PLACES, POSITION, Reconciler
from dispatcher.ledger import Ledger
from dispatcher.model.event import ExecutionId
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rules import RuleBook
from tests.support.builders import NOW, an_event, an_execution
from tests.support.clock import ManualClock
from tests.support.flyte_admin import a_finished_execution, admin_client
from tests.support.service import ask, command, serving

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


@pytest.fixture
async def server() -> AsyncIterator[LocalFlyteAdmin]:
    async with LocalFlyteAdmin() as opened:
        yield opened


def add_finished(server: LocalFlyteAdmin, name: str, at: datetime, **changes: Any) -> ExecutionId:
    """Add an execution to the server that failed at that time."""
    execution = changes.pop("execution", None) or an_execution(name)
    times = {"createdAt": (at - HOUR).isoformat(), "updatedAt": at.isoformat(), "startedAt": (at - HOUR).isoformat()}
    server.add(a_finished_execution(execution, closure={**times, **changes}))
    return execution


@dataclass
class Rig:
    """A reconciler with a manual clock, and its ledger and FlyteAdmin."""

    reconciler: Reconciler
    ledger: Ledger
    intake: Intake
    clock: ManualClock
    server: LocalFlyteAdmin

    async def reconcile(self) -> int:
        """Reconcile once, as the service does; returns the number of missing events."""
        time_range = await self.reconciler.next_range()
        found = await self.reconciler.reconcile(time_range)
        await self.ledger.checkpoints.set_reconciled_until(time_range.until)
        return found


@pytest.fixture
async def rig(server: LocalFlyteAdmin, tmp_path: Path) -> AsyncIterator[Rig]:
    """The dispatcher was first started a day ago."""
    clock = ManualClock()
    planner = Planner(addresses=dict.fromkeys(("email", "slack", "pagerduty"), str), fallbacks={})
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}") as ledger, admin_client(server) as admin:
        await ledger.checkpoints.record_first_start(now=NOW - 24 * HOUR)
        intake = Intake(ledger, RuleBook, planner, Contents(lambda *_, **__: {}), clock, look_up=admin.look_up)
        reconciler = Reconciler(admin, ledger, intake, clock, look_back=12 * HOUR, min_age=5 * MINUTE)
        yield Rig(reconciler, ledger, intake, clock, server)


async def test_a_missing_event_is_recorded_with_its_full_error(rig: Rig) -> None:
    message = f"ValueError: {'x' * 400} the end"
    execution = add_finished(rig.server, "lost", NOW - HOUR, error={"code": "USER", "message": message})
    assert await rig.reconcile() == 1
    event = await rig.ledger.history.event(f"{execution}/FAILED")
    assert event is not None
    assert event.occurred_at == NOW - HOUR
    assert (str(event.launch_plan), event.principal) == ("flytesnacks/production/train.daily@v1.4.2", "jane.doe")
    assert event.error is not None
    assert event.error.message == message  # lists truncate it
    assert len(await rig.ledger.history.notified(event.key)) == 4


async def test_a_recorded_execution_is_left_alone_and_a_late_event_adds_nothing(rig: Rig) -> None:
    recorded = add_finished(rig.server, "recorded", NOW - HOUR)
    lost = add_finished(rig.server, "lost", NOW - HOUR)
    early = write(an_event(name="recorded"), Format.FLYTE_V1)
    await rig.intake.ingest([(early.headers, early.value, "topic/0@1")])
    assert (rig.server.lookups_by_execution[str(recorded)], rig.server.lookups_by_execution[str(lost)]) == (1, 0)
    assert await rig.reconcile() == 1
    assert (rig.server.lookups_by_execution[str(recorded)], rig.server.lookups_by_execution[str(lost)]) == (1, 1)
    late = write(an_event(name="lost"), Format.FLYTE_V1)
    result = await rig.intake.ingest([(late.headers, late.value, "topic/0@2")])
    assert result.new == frozenset()
    assert len(await rig.ledger.history.notified(f"{lost}/FAILED")) == 4


async def test_an_execution_that_has_just_finished_is_not_missing_yet(rig: Rig) -> None:
    add_finished(rig.server, "just", NOW - 3 * MINUTE)
    assert await rig.reconcile() == 0
    rig.clock.advance(3 * MINUTE)
    assert await rig.reconcile() == 1


async def test_each_time_range_is_reconciled_once(rig: Rig) -> None:
    add_finished(rig.server, "early", NOW - 2 * HOUR)
    assert await rig.reconcile() == 1
    rig.clock.advance(HOUR)
    assert (await rig.reconciler.next_range()).since == NOW - 10 * MINUTE  # the checkpoint less min_age
    add_finished(rig.server, "later", NOW + 30 * MINUTE)
    assert await rig.reconcile() == 1
    rig.clock.advance(48 * HOUR)
    assert (await rig.reconciler.next_range()).since == rig.clock.now() - 12 * HOUR


async def test_executions_that_finished_before_the_first_start_are_left_out(rig: Rig, tmp_path: Path) -> None:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path / 'fresh.db'}") as fresh:
        rig.reconciler.ledger = fresh
        await fresh.checkpoints.record_first_start(now=NOW)
        add_finished(rig.server, "old", NOW - HOUR)
        assert await rig.reconciler.reconcile(await rig.reconciler.next_range()) == 0
        rig.clock.advance(HOUR)
        add_finished(rig.server, "new", NOW + 10 * MINUTE)
        archived = add_finished(rig.server, "archived", NOW - HOUR)
        rig.server.row_updated_at[str(archived)] = NOW + 20 * MINUTE
        assert await rig.reconciler.reconcile(await rig.reconciler.next_range()) == 1


async def test_an_execution_that_flyteadmin_wrote_late_is_found(rig: Rig) -> None:
    assert await rig.reconcile() == 0
    rig.clock.advance(HOUR)
    late = add_finished(rig.server, "late", NOW - HOUR)  # its cluster was disconnected when it finished
    rig.server.row_updated_at[str(late)] = NOW + 20 * MINUTE
    assert await rig.reconcile() == 1


async def test_an_archived_execution_is_found(rig: Rig) -> None:
    add_finished(rig.server, "archived", NOW - HOUR, stateChangeDetails={"state": "EXECUTION_ARCHIVED"})
    assert await rig.reconcile() == 1


async def test_a_purged_event_is_not_recorded_again(rig: Rig) -> None:
    add_finished(rig.server, "lost", NOW - HOUR, notifications=[])
    assert await rig.reconcile() == 1
    rig.clock.advance(MINUTE)
    assert await rig.ledger.purge(rig.clock.now(), limit=100) == 1
    assert await rig.reconciler.reconcile(await rig.reconciler.range_since(NOW - 12 * HOUR)) == 0


async def test_a_rejected_event_is_not_missing(rig: Rig) -> None:
    execution = add_finished(rig.server, "hidden", NOW - HOUR)
    rig.server.forbidden.add(str(execution))
    assert await rig.reconcile() == 1
    (rejected,) = await rig.ledger.rejected.find(limit=10)
    assert (rejected.position, rejected.event) == (POSITION, f"{execution}/FAILED")
    assert await rig.reconciler.reconcile(await rig.reconciler.range_since(NOW - 12 * HOUR)) == 0


async def test_lists_are_read_page_by_page_and_place_by_place_one_request_at_a_time(rig: Rig) -> None:
    for number in range(250):
        add_finished(rig.server, f"n{number}", NOW - HOUR - number * timedelta(seconds=1))
    for number in range(110):
        execution = an_execution("x", project=f"project-{number}", domain="development")
        add_finished(rig.server, "x", NOW - HOUR, execution=execution)
    rig.server.requests_by_method.clear()
    before = rig.clock.now()
    lists_at_once = 0
    async for _ in rig.reconciler.missing(await rig.reconciler.range_since(NOW - 12 * HOUR)):
        lists_at_once = max(lists_at_once, rig.server.max_concurrent)
    assert lists_at_once == 1
    assert rig.server.requests_by_method == {"ListProjects": 2, "ListExecutions": 113}
    assert rig.clock.now() - before >= timedelta(seconds=50)
    assert await rig.reconcile() == 360


async def test_unfinished_executions_and_forbidden_places_are_skipped(rig: Rig) -> None:
    add_finished(rig.server, "going-on", NOW - HOUR, phase="RUNNING")
    add_finished(rig.server, "aborting", NOW - HOUR, phase="ABORTING")
    add_finished(rig.server, "x", NOW - HOUR, execution=an_execution("x", project="a-hidden-one"))
    add_finished(rig.server, "no-time", NOW - HOUR).model_dump()
    rig.server.executions[str(an_execution("no-time"))].id.name = "a/b"
    add_finished(rig.server, "aborted", NOW - HOUR, phase="ABORTED")
    rig.server.forbidden.add("a-hidden-one/production")
    assert await rig.reconcile() == 1
    assert await rig.ledger.history.event(f"{an_execution('aborted')}/ABORTED") is not None


async def test_after_a_failed_look_up_the_next_run_finds_the_rest(rig: Rig) -> None:
    for project in ("a", "b"):
        add_finished(rig.server, "x", NOW - HOUR, execution=an_execution("x", project=project))
    rig.server.errors_by_name[str(an_execution("x", project="b"))] = grpc.StatusCode.UNAVAILABLE
    with pytest.raises(FlyteAdminUnavailable):
        await rig.reconcile()
    assert await rig.ledger.history.event(f"{an_execution('x', project='a')}/FAILED") is not None
    rig.server.errors_by_name.clear()
    assert await rig.reconcile() == 1


async def test_a_place_that_cannot_be_listed_does_not_stop_the_others_and_is_reconciled_later(
    rig: Rig,
) -> None:
    for project in ("a", "b", "c"):
        add_finished(rig.server, "x", NOW - HOUR, execution=an_execution("x", project=project))
    rig.server.errors_by_name["b/production"] = grpc.StatusCode.INTERNAL
    with pytest.raises(FlyteAdminUnavailable):
        await rig.reconcile()
    found = [f"{an_execution('x', project=project)}/FAILED" for project in ("a", "b", "c")]
    assert await rig.ledger.history.seen(found) == {found[0], found[2]}
    rig.server.errors_by_name.clear()
    assert await rig.reconcile() == 1


async def test_after_three_failed_places_in_a_row_the_rest_is_not_tried(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(9):
        execution = an_execution("x", project=f"p{number}")
        add_finished(rig.server, "x", NOW - HOUR, execution=execution)
        rig.server.errors_by_name[f"p{number}/production"] = grpc.StatusCode.INTERNAL
    with pytest.raises(FlyteAdminUnavailable):
        await rig.reconcile()
    assert capsys.readouterr().out.count("executions of a place could not be listed") == MAX_FAILED_PLACES - 1


@asynccontextmanager
async def dispatching(folder: Path, server: LocalFlyteAdmin, **reconcile: str) -> AsyncIterator[Any]:
    admin = {"endpoint": server.endpoint, "insecure": True, "timeout": "1s"}
    async with serving(folder, {"rules": {"flyte_admin": admin}, "reconcile": reconcile}) as replica:
        yield replica


async def test_the_running_service_records_lost_events(server: LocalFlyteAdmin, tmp_path: Path) -> None:
    add_finished(server, "before", SystemClock().now() - 10 * MINUTE)
    async with dispatching(tmp_path, server, every="300ms", min_age="100ms") as replica:
        add_finished(server, "lost", SystemClock().now())
        async with asyncio.timeout(30):
            while len(await ask(tmp_path / "dispatcher.yaml", "deliveries", "list")) < 4:
                await asyncio.sleep(0.2)
        await server.stop()
        async with asyncio.timeout(30):
            while "executions could not be compared with their events" not in replica.log:
                await asyncio.sleep(0.2)
    assert "recorded executions that finished without an event" in replica.log
    deliveries = await ask(tmp_path / "dispatcher.yaml", "deliveries", "list")
    assert {entry["execution"]["name"] for entry in deliveries} == {"lost"}


async def test_reconciliation_can_be_disabled(server: LocalFlyteAdmin, tmp_path: Path) -> None:
    add_finished(server, "lost", SystemClock().now() - HOUR)
    async with dispatching(tmp_path, server, every="0"):
        pass
    assert server.requests_by_method["ListExecutions"] == 0


async def test_the_command_lists_missing_events_and_records_them(server: LocalFlyteAdmin, tmp_path: Path) -> None:
    file = tmp_path / "dispatcher.yaml"
    admin = {"endpoint": server.endpoint, "insecure": True, "timeout": "1s"}
    file.write_text(yaml.safe_dump({"rules": {"flyte_admin": admin}}))
    now = SystemClock().now()
    add_finished(server, "lost", now - HOUR)
    add_finished(server, "older", now - 30 * HOUR)
    run = ("reconcile", "--config", str(file))
    assert (await command("ledger", "migrate", "--config", str(file)))[0] == 0

    status, out, err = await command(*run)
    assert (status, out) == (0, "0 executions finished without an event\n"), "the ledger is new: nothing is missing"
    assert "checked only from" in err

    async with Ledger(f"sqlite+aiosqlite:///{tmp_path / 'old.db'}") as ledger:
        await ledger.checkpoints.record_first_start(now=now - 48 * HOUR)
    file.write_text(
        yaml.safe_dump({"rules": {"flyte_admin": admin}, "ledger": {"url": "sqlite+aiosqlite:///./old.db"}})
    )
    status, out, err = await command(*run, "--since", "24h", "--dry-run")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "1 execution finished without an event"
    assert f"{an_execution('lost')}/FAILED" in out
    assert await ask(file, "deliveries", "list") == []
    assert [entry["execution"]["name"] for entry in await ask(file, "reconcile", "--since", "40h")] == ["older", "lost"]
    assert len(await ask(file, "deliveries", "list")) == 8
    assert (await command(*run, "--since", "40h"))[1] == "0 executions finished without an event\n"


async def test_without_flyteadmin_the_command_reports_the_missing_setting(tmp_path: Path) -> None:
    file = tmp_path / "dispatcher.yaml"
    for settings in ({}, {"reconcile": {"every": "5m"}}):
        file.write_text(yaml.safe_dump(settings))
        status, _, err = await command("reconcile", "--config", str(file))
        assert (status, "reconcile needs rules.flyte_admin" in err, "Traceback" in err) == (1, True, False)
    file.write_text(
        yaml.safe_dump({"rules": {"flyte_admin": {"endpoint": "flyte:81"}}, "reconcile": {"look_back": "2m"}})
    )
    status, _, err = await command("check", "--config", str(file))
    assert (status, "look_back must be longer than min_age" in err) == (1, True)
