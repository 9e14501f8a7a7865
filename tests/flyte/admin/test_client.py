"""The FlyteAdmin client, over gRPC, against a local server with Flyte's services."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from flyteidl.admin.execution_pb2 import ExecutionMetadata
from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier
from google.protobuf.json_format import ParseDict

from channels.registry import CHANNEL_TYPES
from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.errors import FlyteAdminUnavailable
from dispatcher.flyte.admin.client import PARALLEL, FlyteAdmin
from dispatcher.flyte.decode import decode
from dispatcher.flyte.encode import Format, write
from dispatcher.model.event import MODES, EntityId, Event
from dispatcher.model.phase import Phase
from dispatcher.rendering.renderer import Renderer
from dispatcher.rules import AdminExecution, RuleBook, UnknownExecution, Verdict, decide
from tests.support.builders import a_launch_plan, an_event, an_execution
from tests.support.flyte_admin import a_finished_execution, admin_client, recorded
from tests.support.servers import TcpProxy

EXECUTION = an_execution()
RENDERER = Renderer(CHANNEL_TYPES)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
OWN = {"phases": ["FAILED"], "email": {"recipientsEmail": ["own@example.com"]}}


@pytest.fixture
async def server() -> AsyncIterator[LocalFlyteAdmin]:
    async with LocalFlyteAdmin() as opened:
        yield opened


@pytest.fixture
async def admin(server: LocalFlyteAdmin) -> AsyncIterator[FlyteAdmin]:
    async with admin_client(server) as opened:
        yield opened


def decoded(event: Event) -> Event:
    """The event after it was written as Flyte's enriched v2 event and decoded."""
    message = write(event, Format.FLYTE_V2)
    read = decode(message.headers, message.value)
    assert read is not None
    return read


async def look_up(admin: FlyteAdmin) -> AdminExecution:
    answer = await admin.look_up(EXECUTION)
    assert isinstance(answer, AdminExecution)
    return answer


def recipients(answer: AdminExecution, phase: Phase = Phase.FAILED) -> list[str]:
    decision = decide(an_event(phase), RuleBook(), answer)
    return [recipient for rule in decision.matched for recipient in rule.notification.recipients]


async def test_the_rules_are_flyteadmins_effective_rules(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(recorded("execution-using-launch-plan-rules"))
    answer = await look_up(admin)
    assert recipients(answer) == [
        "#dev-alerts",
        "pagerduty-service-key@example.com",
        "dev-team@example.com",
        "on-call@example.com",
    ]
    assert recipients(answer, Phase.SUCCEEDED) == ["manager@example.com"]
    assert answer.rules[3].notification.template is not None
    decision = decide(an_event(), RuleBook(), answer)
    assert decision.reason == "3 rules of launch plan flytesnacks/production/train.daily@v1.4.2 in FlyteAdmin matched"
    assert decision.considered[0].rule.defined_at == "flyte_admin:closure.notifications[0]"


async def test_a_bare_event_is_completed_with_the_details_for_templates(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    server.add(
        a_finished_execution(spec={"labels": {"values": {"team": "data-science"}}}, closure={"duration": "857.5s"})
    )
    event = (await look_up(admin)).complete(an_event())
    assert event.launch_plan == a_launch_plan()
    assert str(event.workflow) == "flytesnacks/production/train.wf@v1.4.2"
    assert (event.principal, event.labels) == ("jane.doe", {"team": "data-science"})
    assert event.started_at == datetime(2026, 11, 20, 9, 0, 3, 511904, UTC)
    assert event.error is not None
    assert (event.error.code, event.error.kind) == ("USER:Unknown", "USER")
    assert "bad learning rate" in event.error.message
    assert (event.mode, event.parent, event.looked_up) == ("manual", None, True)


def test_the_modes_are_flytes() -> None:
    modes = [name.lower().removesuffix("_workflow") for name, _ in ExecutionMetadata.ExecutionMode.items()]
    assert modes[: len(MODES)] == list(MODES)


@pytest.mark.parametrize(("number", "mode"), [(0, "manual"), (1, "scheduled"), (4, "child"), (99, "")])
async def test_the_mode_and_the_parent_are_read(
    server: LocalFlyteAdmin, admin: FlyteAdmin, number: int, mode: str
) -> None:
    parent = {"project": "other", "domain": "staging", "name": "up"}
    execution = server.add(a_finished_execution(closure={"updatedAt": "2026-11-20T09:14:21Z"}))
    execution.spec.metadata.mode = number
    assert (await look_up(admin)).parent is None
    execution.spec.metadata.parent_node_execution.execution_id.MergeFrom(
        ParseDict(parent, WorkflowExecutionIdentifier())
    )
    answer = await look_up(admin)
    assert (answer.mode, str(answer.parent)) == (mode, "other/staging/up")
    (listed,) = (await admin.list_finished("flytesnacks", "production", since=LONG_AGO, until=datetime.now(UTC))).events
    assert (listed.mode, listed.parent) == (mode, answer.parent)
    assert not listed.looked_up
    message = write(answer.complete(listed), Format.NATIVE)
    assert decode(message.headers, message.value) == answer.complete(listed)


async def test_the_events_own_values_are_kept(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(a_finished_execution())
    with_values = an_event(principal="sam", launch_plan=a_launch_plan("other"), labels={"a": "b"})
    event = (await look_up(admin)).complete(with_values)
    assert (event.principal, event.launch_plan, event.labels) == ("sam", a_launch_plan("other"), {"a": "b"})


@pytest.mark.parametrize("name", ["team/nightly", "two\nlines", "п" * 300])
async def test_launch_plan_and_workflow_have_any_name(server: LocalFlyteAdmin, admin: FlyteAdmin, name: str) -> None:
    named = {"project": "flytesnacks", "domain": "production", "name": name, "version": name}
    server.add(a_finished_execution(spec={"launchPlan": named}, closure={"workflowId": named}))
    answer = await look_up(admin)
    assert answer.launch_plan == answer.workflow == EntityId.model_validate(named)
    assert len(recipients(answer)) == 4


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            {"abortMetadata": {"cause": "wrong dataset", "principal": "sam@example.com"}},
            "Execution aborted by sam@example.com: wrong dataset",
        ),
        ({"abortMetadata": {"cause": "wrong dataset"}}, "Execution aborted: wrong dataset"),
        ({"abortCause": "an older Flyte"}, "Execution aborted: an older Flyte"),
    ],
)
async def test_an_aborted_execution_has_its_cause_as_error(
    server: LocalFlyteAdmin, admin: FlyteAdmin, result: dict[str, Any], message: str
) -> None:
    aborted = a_finished_execution()
    del aborted["closure"]["error"]
    server.add({**aborted, "closure": {**aborted["closure"], "phase": "ABORTED", **result}})
    error = (await look_up(admin)).error
    assert error is not None
    assert (error.code, error.message) == ("ABORTED", message)


async def test_the_start_time_comes_from_the_duration_if_clocks_differ(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    server.add(a_finished_execution(closure={"startedAt": "2026-11-20T11:00:00Z", "duration": "60s"}))
    event = an_event()
    assert (await look_up(admin)).complete(event).started_at == event.occurred_at - timedelta(minutes=1)


async def test_disable_all_disables_every_rule_and_lists_them(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(recorded("execution-notifications-disabled"))
    server.add_launch_plan(recorded("train.daily.launch_plan"))
    decision = decide(an_event(), RuleBook(), await look_up(admin))
    assert (decision.verdict, decision.disabled_by, decision.matched) == (Verdict.DISABLED, "spec.disable_all", [])
    assert [one.reason for one in decision.considered] == ["disabled by spec.disable_all"] * 4


async def test_a_single_tasks_execution_has_a_task_and_no_launch_plan_to_ask_for(
    server: LocalFlyteAdmin, admin: FlyteAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {"resourceType": "TASK", "project": "flytesnacks", "domain": "production", "name": "train", "version": "v1"}
    execution = recorded("execution-notifications-disabled")
    server.add({**execution, "spec": {**execution["spec"], "launchPlan": task}})
    answer = await look_up(admin)
    event = answer.complete(an_event())
    assert event.launch_plan is not None
    assert (event.launch_plan.noun, event.launch_plan.name) == ("task", "train")
    assert server.requests_by_method == {"GetExecution": 1}
    assert "launch plan" not in capsys.readouterr().out
    for mail in (RENDERER.render("email", event), RENDERER.render("email", decoded(event))):
        assert "\nTask        train, version v1\n" in mail["text"]
        assert "Launch plan" not in mail["text"] + mail["html"]


async def test_an_executions_own_list_replaces_the_launch_plans_rules_which_are_fetched_once(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    server.add_launch_plan(recorded("train.daily.launch_plan"))
    executions = [an_execution(f"n{number}") for number in range(20)]
    for execution in executions:
        own = {"notifications": [OWN]}
        server.add(a_finished_execution(execution, spec={"notifications": own}, closure=own))
    for execution in executions:
        answer = await admin.look_up(execution)
        assert isinstance(answer, AdminExecution)
        assert recipients(answer) == ["own@example.com"]
        decision = decide(an_event(), RuleBook(), answer)
        assert "the execution's own list in FlyteAdmin" in decision.reason
        assert [one.reason for one in decision.considered[1:]] == ["replaced by the execution's own list"] * 4
    assert server.requests_by_method == {"GetExecution": 20, "GetLaunchPlan": 1}


async def test_without_access_to_the_launch_plan_only_its_replaced_rules_are_missing(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    own = {"notifications": [OWN]}
    server.add(a_finished_execution(spec={"notifications": own}, closure=own))
    answer = await look_up(admin)
    assert (recipients(answer), answer.replaced) == (["own@example.com"], ())


async def test_an_invalid_notification_is_named_in_the_reason(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(
        a_finished_execution(closure={"notifications": [{"email": {"recipientsEmail": ["a@example.com"]}}, OWN]})
    )
    decision = decide(an_event(), RuleBook(), await look_up(admin))
    assert [rule.notification.recipients for rule in decision.matched] == [("own@example.com",)]
    assert "invalid: flyte_admin:closure.notifications[0]: phases: no phases" in decision.reason


@pytest.mark.parametrize(("forbidden", "words"), [(False, "doesn't know"), (True, "doesn't let us see")])
async def test_an_unknown_or_forbidden_execution_has_unknown_rules(
    server: LocalFlyteAdmin, admin: FlyteAdmin, *, forbidden: bool, words: str
) -> None:
    if forbidden:
        server.forbidden.add(str(EXECUTION))
    answer = await admin.look_up(EXECUTION)
    assert isinstance(answer, UnknownExecution)
    assert f"FlyteAdmin {words}" in answer.reason
    assert str(EXECUTION) in answer.reason
    assert server.requests_by_method == {"GetExecution": 1}
    assert decide(an_event(), RuleBook(), answer).verdict is Verdict.RULES_UNKNOWN


async def test_concurrent_look_ups_of_one_execution_share_one_request(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    server.add(a_finished_execution())
    server.delay = 0.2
    answers = await asyncio.gather(*(admin.look_up(EXECUTION) for _ in range(50)))
    assert server.requests_by_method == {"GetExecution": 1}
    assert all(answer is answers[0] for answer in answers)
    await admin.look_up(EXECUTION)
    assert server.requests_by_method == {"GetExecution": 2}


async def test_cancelling_one_caller_does_not_cancel_the_shared_request(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    server.add(a_finished_execution())
    server.delay = 0.3
    first, second = (asyncio.create_task(admin.look_up(EXECUTION)) for _ in range(2))
    await asyncio.sleep(0.1)
    first.cancel()
    assert isinstance(await second, AdminExecution)
    assert server.requests_by_method == {"GetExecution": 1}


async def test_a_request_is_cancelled_with_its_last_caller(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(a_finished_execution())
    server.answering.clear()
    callers = [asyncio.create_task(admin.look_up(EXECUTION)) for _ in range(2)]
    await asyncio.sleep(0.2)
    assert server.concurrent == 1
    for task in callers:
        task.cancel()
    await asyncio.wait(callers)
    async with asyncio.timeout(1):
        while server.concurrent:
            await asyncio.sleep(0.01)
    server.answering.set()
    assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_executions_are_looked_up_concurrently_up_to_the_limit(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    executions = [an_execution(f"n{number}") for number in range(10 * PARALLEL)]
    for execution in executions:
        server.add(a_finished_execution(execution))
    server.delay = 0.05
    await asyncio.gather(*(admin.look_up(execution) for execution in executions))
    assert PARALLEL / 2 < server.max_concurrent <= PARALLEL


async def test_transient_errors_are_retried(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(a_finished_execution())
    server.scripted_errors += [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ]
    assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
    assert server.requests_by_method == {"GetExecution": 4}


async def test_the_client_reconnects_after_a_restart_of_the_server(server: LocalFlyteAdmin) -> None:
    server.add(a_finished_execution())
    async with admin_client(server, timeout="500ms") as admin:
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
        await server.stop()
        with pytest.raises(FlyteAdminUnavailable, match=r"rules\.flyte_admin\.endpoint: .* can't be asked now"):
            await admin.look_up(EXECUTION)
        assert "can't be asked now" in (await admin.unready_reason() or "")
        await server.start()
        async with asyncio.timeout(10):
            while await admin.unready_reason() is not None:
                await asyncio.sleep(0.1)
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_without_its_database_flyteadmin_is_not_ready(server: LocalFlyteAdmin) -> None:
    server.add(a_finished_execution())
    server.database_down = True
    async with admin_client(server, timeout="300ms") as admin:
        with pytest.raises(FlyteAdminUnavailable, match="INTERNAL: failed database operation"):
            await admin.look_up(EXECUTION)
        assert "INTERNAL: failed database operation" in (await admin.unready_reason() or "")
        server.database_down = False
        assert await admin.unready_reason() is None


async def test_a_client_that_may_not_list_projects_is_ready(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.scripted_errors += [grpc.StatusCode.PERMISSION_DENIED]
    assert await admin.unready_reason() is None


async def test_a_request_without_an_answer_ends_at_its_deadline(server: LocalFlyteAdmin) -> None:
    server.add(a_finished_execution())
    server.answering.clear()
    async with admin_client(server, timeout="300ms") as admin:
        began = time.monotonic()
        with pytest.raises(FlyteAdminUnavailable, match=r"no answer .* within 0\.3 s \(rules\.flyte_admin\.timeout\)"):
            await admin.look_up(EXECUTION)
        assert 0.25 < time.monotonic() - began < 1
        server.answering.set()
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_a_dead_connection_is_replaced(server: LocalFlyteAdmin) -> None:
    server.add(a_finished_execution())
    async with (
        TcpProxy(server.port) as line,
        admin_client(server, endpoint=f"127.0.0.1:{line.port}", timeout="500ms") as admin,
    ):
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
        line.cut()
        with pytest.raises(FlyteAdminUnavailable, match="no answer"):
            await asyncio.gather(*(admin.look_up(an_execution(f"n{number}")) for number in range(5)))
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_shutdown_does_not_wait_for_the_full_timeout(server: LocalFlyteAdmin) -> None:
    server.answering.clear()
    async with admin_client(server, timeout="60s") as admin:
        look_up = asyncio.create_task(admin.look_up(EXECUTION))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        admin.shorten_deadlines()
        with pytest.raises(FlyteAdminUnavailable):
            await look_up
        assert time.monotonic() - began < 5


async def test_an_internal_error_for_one_execution_only_makes_its_rules_unknown(server: LocalFlyteAdmin) -> None:
    server.errors_by_name[str(EXECUTION)] = grpc.StatusCode.INTERNAL
    async with admin_client(server, timeout="300ms") as admin:
        answer = await admin.look_up(EXECUTION)
    assert isinstance(answer, UnknownExecution)
    assert "failed at execution" in answer.reason
    assert "INTERNAL" in answer.reason


async def test_internal_errors_for_every_request_make_flyteadmin_unavailable(server: LocalFlyteAdmin) -> None:
    server.scripted_errors += [grpc.StatusCode.INTERNAL] * 1000
    async with admin_client(server, timeout="300ms") as admin:
        with pytest.raises(FlyteAdminUnavailable, match="INTERNAL"):
            await admin.look_up(EXECUTION)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"", b"\x0a\x03\x0a\x01x", b"x" * (33 * 2**20)])
async def test_an_unusable_answer_is_reported_with_the_setting(
    server: LocalFlyteAdmin, admin: FlyteAdmin, garbage: bytes
) -> None:
    server.raw_answer = garbage
    answer = await admin.look_up(EXECUTION)
    assert isinstance(answer, UnknownExecution)
    assert "rules.flyte_admin.endpoint" in answer.reason
    server.raw_answer = None
    server.add(a_finished_execution())
    assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_an_answer_with_an_impossible_time_makes_the_rules_unknown(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    server.add(a_finished_execution()).closure.started_at.seconds = 10**15
    answer = await admin.look_up(EXECUTION)
    assert isinstance(answer, UnknownExecution)
    assert "can't be understood" in answer.reason
