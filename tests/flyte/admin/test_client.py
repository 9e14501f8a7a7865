"""What FlyteAdmin is asked, and what becomes of its answers; over gRPC, from a server with Flyte's own services."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.errors import FlyteAdminUnavailable
from dispatcher.flyte.admin.client import PARALLEL, FlyteAdmin
from dispatcher.model.phase import Phase
from dispatcher.rules import AdminExecution, RuleBook, UnknownExecution, Verdict, decide
from tests.support.builders import a_launch_plan, an_event, an_execution
from tests.support.flyte_admin import an_ended, asking, recorded
from tests.support.servers import Line

EXECUTION = an_execution()
OWN = {"phases": ["FAILED"], "email": {"recipientsEmail": ["own@example.com"]}}


@pytest.fixture
async def server() -> AsyncIterator[LocalFlyteAdmin]:
    async with LocalFlyteAdmin() as opened:
        yield opened


@pytest.fixture
async def admin(server: LocalFlyteAdmin) -> AsyncIterator[FlyteAdmin]:
    async with asking(server) as opened:
        yield opened


async def resolved(admin: FlyteAdmin) -> AdminExecution:
    answer = await admin.look_up(EXECUTION)
    assert isinstance(answer, AdminExecution)
    return answer


def recipients(answer: AdminExecution, phase: Phase = Phase.FAILED) -> list[str]:
    decision = decide(an_event(phase), RuleBook(), answer)
    return [recipient for rule in decision.matched for recipient in rule.notification.recipients]


async def test_the_rules_are_those_that_flyteadmin_resolved(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(recorded("execution-using-launch-plan-rules"))
    answer = await resolved(admin)
    assert recipients(answer) == [
        "#dev-alerts",
        "pagerduty-service-key@example.com",
        "dev-team@example.com",
        "on-call@example.com",
    ]
    assert recipients(answer, Phase.SUCCEEDED) == ["manager@example.com"]
    assert answer.rules[3].notification.template is not None
    decision = decide(an_event(), RuleBook(), answer)
    assert decision.reason == "3 rules of the rules of flytesnacks/production/train.daily@v1.4.2 in FlyteAdmin matched"
    assert decision.considered[0].rule.source == "flyte_admin:closure.notifications[0]"


async def test_a_bare_event_gets_what_templates_tell(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(an_ended(spec={"labels": {"values": {"team": "data-science"}}}, closure={"duration": "857.5s"}))
    event = (await resolved(admin)).complete(an_event())
    assert event.launch_plan == a_launch_plan()
    assert str(event.workflow) == "flytesnacks/production/train.wf@v1.4.2"
    assert (event.principal, event.labels) == ("jane.doe", {"team": "data-science"})
    assert event.started_at == datetime(2026, 11, 20, 9, 0, 3, 511904, UTC)
    assert event.error is not None
    assert (event.error.code, event.error.kind) == ("USER:Unknown", "USER")
    assert "bad learning rate" in event.error.message


async def test_what_the_event_says_itself_is_not_overruled(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(an_ended())
    said = an_event(principal="sam", launch_plan=a_launch_plan("other"), labels={"a": "b"})
    event = (await resolved(admin)).complete(said)
    assert (event.principal, event.launch_plan, event.labels) == ("sam", a_launch_plan("other"), {"a": "b"})


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
async def test_an_abort_tells_its_cause(
    server: LocalFlyteAdmin, admin: FlyteAdmin, result: dict[str, Any], message: str
) -> None:
    ended = an_ended()
    del ended["closure"]["error"]
    server.add({**ended, "closure": {**ended["closure"], "phase": "ABORTED", **result}})
    error = (await resolved(admin)).error
    assert error is not None
    assert (error.code, error.message) == ("ABORTED", message)


async def test_where_clocks_disagree_the_duration_says_when_it_started(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    server.add(an_ended(closure={"startedAt": "2026-11-20T11:00:00Z", "duration": "60s"}))
    event = an_event()
    assert (await resolved(admin)).complete(event).started_at == event.occurred_at - timedelta(minutes=1)


async def test_disabled_notifications_silence_and_show_whom_they_silenced(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    server.add(recorded("execution-notifications-disabled"))
    server.add_launch_plan(recorded("train.daily.launch_plan"))
    decision = decide(an_event(), RuleBook(), await resolved(admin))
    assert (decision.verdict, decision.disabled_by, decision.matched) == (Verdict.DISABLED, "spec.disable_all", [])
    assert [look.reason for look in decision.considered] == ["silenced by spec.disable_all"] * 4


async def test_an_executions_own_list_replaces_and_the_launch_plan_is_asked_for_once(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    server.add_launch_plan(recorded("train.daily.launch_plan"))
    executions = [an_execution(f"n{number}") for number in range(20)]
    for execution in executions:
        own = {"notifications": [OWN]}
        server.add(an_ended(execution, spec={"notifications": own}, closure=own))
    for execution in executions:
        answer = await admin.look_up(execution)
        assert isinstance(answer, AdminExecution)
        assert recipients(answer) == ["own@example.com"]
        decision = decide(an_event(), RuleBook(), answer)
        assert "the execution's own list in FlyteAdmin" in decision.reason
        assert [look.reason for look in decision.considered[1:]] == ["replaced by the execution's own list"] * 4
    assert server.asked == {"GetExecution": 20, "GetLaunchPlan": 1}


async def test_a_launch_plan_that_is_hidden_leaves_only_the_explanation_short(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    own = {"notifications": [OWN]}
    server.add(an_ended(spec={"notifications": own}, closure=own))
    answer = await resolved(admin)
    assert (recipients(answer), answer.replaced) == (["own@example.com"], ())


async def test_a_notification_that_never_fires_is_mentioned(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(an_ended(closure={"notifications": [{"email": {"recipientsEmail": ["a@example.com"]}}, OWN]}))
    decision = decide(an_event(), RuleBook(), await resolved(admin))
    assert [rule.notification.recipients for rule in decision.matched] == [("own@example.com",)]
    assert "can't hold: flyte_admin:closure.notifications[0]: phases: no phases" in decision.reason


@pytest.mark.parametrize(("forbidden", "words"), [(False, "doesn't know"), (True, "doesn't let us see")])
async def test_a_clear_no_is_an_answer(
    server: LocalFlyteAdmin, admin: FlyteAdmin, *, forbidden: bool, words: str
) -> None:
    if forbidden:
        server.forbidden.add(str(EXECUTION))
    answer = await admin.look_up(EXECUTION)
    assert isinstance(answer, UnknownExecution)
    assert f"FlyteAdmin {words}" in answer.reason
    assert str(EXECUTION) in answer.reason
    assert server.asked == {"GetExecution": 1}
    assert decide(an_event(), RuleBook(), answer).verdict is Verdict.RULES_UNKNOWN


async def test_look_ups_of_one_execution_are_one_question(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(an_ended())
    server.delay = 0.2
    answers = await asyncio.gather(*(admin.look_up(EXECUTION) for _ in range(50)))
    assert server.asked == {"GetExecution": 1}
    assert all(answer is answers[0] for answer in answers)
    await admin.look_up(EXECUTION)
    assert server.asked == {"GetExecution": 2}


async def test_who_gives_up_takes_nobody_else_along(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(an_ended())
    server.delay = 0.3
    first, second = (asyncio.create_task(admin.look_up(EXECUTION)) for _ in range(2))
    await asyncio.sleep(0.1)
    first.cancel()
    assert isinstance(await second, AdminExecution)
    assert server.asked == {"GetExecution": 1}


async def test_a_question_that_nobody_waits_for_ends(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(an_ended())
    server.answering.clear()
    asked = [asyncio.create_task(admin.look_up(EXECUTION)) for _ in range(2)]
    await asyncio.sleep(0.2)
    assert server.open == 1
    for task in asked:
        task.cancel()
    await asyncio.wait(asked)
    async with asyncio.timeout(1):
        while server.open:
            await asyncio.sleep(0.01)
    server.answering.set()
    assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_many_executions_are_looked_up_side_by_side_within_bounds(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    executions = [an_execution(f"n{number}") for number in range(10 * PARALLEL)]
    for execution in executions:
        server.add(an_ended(execution))
    server.delay = 0.05
    await asyncio.gather(*(admin.look_up(execution) for execution in executions))
    assert PARALLEL / 2 < server.at_once <= PARALLEL


async def test_what_passes_is_asked_again(server: LocalFlyteAdmin, admin: FlyteAdmin) -> None:
    server.add(an_ended())
    server.failing += [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
    assert server.asked == {"GetExecution": 4}


async def test_a_server_that_comes_back_is_found_again(server: LocalFlyteAdmin) -> None:
    server.add(an_ended())
    async with asking(server, timeout="500ms") as admin:
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
        await server.stop()
        with pytest.raises(FlyteAdminUnavailable, match=r"rules\.flyte_admin\.endpoint: .* can't be asked now"):
            await admin.look_up(EXECUTION)
        assert "can't be asked now" in (await admin.trouble() or "")
        await server.start()
        async with asyncio.timeout(10):
            while await admin.trouble() is not None:
                await asyncio.sleep(0.1)
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_a_server_that_never_answers_has_a_deadline(server: LocalFlyteAdmin) -> None:
    server.add(an_ended())
    server.answering.clear()
    async with asking(server, timeout="300ms") as admin:
        began = time.monotonic()
        with pytest.raises(FlyteAdminUnavailable, match=r"no answer .* within 0\.3 s \(rules\.flyte_admin\.timeout\)"):
            await admin.look_up(EXECUTION)
        assert 0.25 < time.monotonic() - began < 1
        server.answering.set()
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_a_connection_that_has_died_without_a_word_is_replaced(server: LocalFlyteAdmin) -> None:
    server.add(an_ended())
    async with Line(server.port) as line, asking(server, endpoint=f"127.0.0.1:{line.port}", timeout="500ms") as admin:
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
        line.cut()
        with pytest.raises(FlyteAdminUnavailable, match="no answer"):
            await asyncio.gather(*(admin.look_up(an_execution(f"n{number}")) for number in range(5)))
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_who_stops_does_not_wait_for_an_answer(server: LocalFlyteAdmin) -> None:
    server.answering.clear()
    async with asking(server, timeout="60s") as admin:
        asked = asyncio.create_task(admin.look_up(EXECUTION))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        admin.hurry()
        with pytest.raises(FlyteAdminUnavailable):
            await asked
        assert time.monotonic() - began < 5


async def test_one_execution_at_which_flyteadmin_fails_does_not_hold_up_the_others(server: LocalFlyteAdmin) -> None:
    server.broken[str(EXECUTION)] = grpc.StatusCode.INTERNAL
    async with asking(server, timeout="300ms") as admin:
        answer = await admin.look_up(EXECUTION)
    assert isinstance(answer, UnknownExecution)
    assert "failed at execution" in answer.reason
    assert "INTERNAL" in answer.reason


async def test_a_flyteadmin_that_fails_at_everything_is_away(server: LocalFlyteAdmin) -> None:
    server.failing += [grpc.StatusCode.INTERNAL] * 1000
    async with asking(server, timeout="300ms") as admin:
        with pytest.raises(FlyteAdminUnavailable, match="INTERNAL"):
            await admin.look_up(EXECUTION)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"", b"\x0a\x03\x0a\x01x", b"x" * (33 * 2**20)])
async def test_garbage_is_an_answer_that_names_the_setting(
    server: LocalFlyteAdmin, admin: FlyteAdmin, garbage: bytes
) -> None:
    server.garbage = garbage
    answer = await admin.look_up(EXECUTION)
    assert isinstance(answer, UnknownExecution)
    assert "rules.flyte_admin.endpoint" in answer.reason
    server.garbage = None
    server.add(an_ended())
    assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_a_time_out_of_the_calendar_is_an_answer_that_cannot_be_understood(
    server: LocalFlyteAdmin, admin: FlyteAdmin
) -> None:
    server.add(an_ended()).closure.started_at.seconds = 10**15
    answer = await admin.look_up(EXECUTION)
    assert isinstance(answer, UnknownExecution)
    assert "can't be understood" in answer.reason
