"""Threads and resolved notices, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime

from channels.contract import Answer, Receipt
from dispatcher.ledger import Filter, Ledger, RecordedEvent
from dispatcher.model.delivery import Dead, Dropped, DropReason, Kind, Outage, Retry, RuleRef, Sent, State, Success
from dispatcher.model.phase import Phase
from dispatcher.model.rate_limit import AdmissionControl, RateLimit
from tests.support.builders import NOW, SECOND, a_delivery, a_launch_plan, an_event
from tests.support.ledger_steps import MINUTE, SENT, an_action, claim_slack, recorded, settlement, slack


async def test_a_threads_deliveries_are_claimed_one_after_another_and_delay_no_other_thread(ledger: Ledger) -> None:
    incident = [slack("#a", number, thread="incident 1", occurred_at=NOW + number * SECOND) for number in range(3)]
    await ledger.record(
        [recorded(*reversed(incident), slack("#a", 7, thread="incident 2", occurred_at=NOW))], [], now=NOW
    )
    rate_limit = RateLimit(max_in_flight=9)

    first = (await claim_slack(ledger, rate_limit=rate_limit)).deliveries
    assert [delivery.key for delivery in first] == ["#a000", "#a007"]
    assert (await claim_slack(ledger, at=2, rate_limit=rate_limit)).deliveries == []
    await ledger.settle(settlement(first[0], Retry(NOW + 5 * SECOND, "busy")))
    # The first delivery of the thread waits for its retry.
    assert (await claim_slack(ledger, at=4, rate_limit=rate_limit)).deliveries == []
    (again,) = (await claim_slack(ledger, at=5, rate_limit=rate_limit)).deliveries
    await ledger.settle(settlement(again, Dead("no such channel")))
    (second,) = (await claim_slack(ledger, at=6, rate_limit=rate_limit)).deliveries
    assert (second.key, second.occurred_at) == ("#a001", NOW + SECOND)


def failure(
    name: str, at: int, *, to: str = "ml", plan: str = "train.daily", about: str = "", state: State = State.WAITING
) -> RecordedEvent:
    """An execution failed `at` seconds after NOW, and a rule notifies `to`."""
    event = an_event(name=name, launch_plan=a_launch_plan(plan)).model_copy(update={"occurred_at": NOW + at * SECOND})
    delivery = a_delivery(
        event,
        channel="pagerduty",
        to=to,
        state=state,
        thread=f"{plan} {about} {to}",
        occurred_at=event.occurred_at,
        subject=plan,
    )
    return recorded(delivery, event=event)


def success(name: str, at: int, *, plan: str = "train.daily", started: int | None = None) -> RecordedEvent:
    """An execution succeeded `at` seconds after NOW; no rule matches. `started`: when it started, if that is known."""
    event = an_event(Phase.SUCCEEDED, name=name, launch_plan=a_launch_plan(plan))
    event = event.model_copy(update={"occurred_at": NOW + at * SECOND})
    return replace(
        recorded(event=event),
        success=Success(
            event=event.key,
            occurred_at=event.occurred_at,
            started_at=event.occurred_at if started is None else NOW + started * SECOND,
            subjects=(plan,),
            channels=frozenset({"pagerduty"}),
            recorded_at=NOW,
        ),
    )


async def record_and_send(ledger: Ledger, *entries: RecordedEvent, pages: bool = True) -> list[str]:
    """Record the entries one by one and send all deliveries; returns what was sent (see `sent`)."""
    for entry in entries:
        await ledger.record([entry], [], now=NOW)
    return await sent(ledger, pages=pages)


async def sent(ledger: Ledger, *, now: datetime = NOW, pages: bool = True) -> list[str]:
    """Send all waiting deliveries; returns `EXECUTION/PHASE to ADDRESS after N`, N: earlier messages in the thread.

    A superseded message is dropped and listed as `EXECUTION/PHASE to ADDRESS superseded`; a superseded failure is sent
    all the same unless the channel `pages`.
    """
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=now)
    messages = []
    while taken := (
        await ledger.claim("pagerduty", 10, lease="me", until=now + MINUTE, admission=admission)
    ).deliveries:
        for delivery in sorted(taken, key=lambda one: one.thread):
            claimed = await ledger.thread(delivery)
            assert claimed is not None
            name = f"{delivery.event.split('/', 2)[2]} to {delivery.addresses[0]}"
            if claimed.superseded and (pages or claimed.thread.resolves):
                messages.append(f"{name} superseded")
                assert await ledger.settle(settlement(delivery, Dropped(DropReason.SUPERSEDED, "outdated")))
                continue
            messages.append(f"{name} after {len(claimed.thread.earlier)}")
            if delivery.content is None:
                assert await ledger.store_content(delivery, {"subject": "resolved"})
            receipt = Receipt(answer=Answer("202"), reference={"name": name})
            assert await ledger.settle(settlement(delivery, Sent(receipt)))
    return messages


async def test_a_success_resolves_each_open_thread_of_its_launch_plan_once(ledger: Ledger) -> None:
    failures = [failure("a", 1), failure("b", 2), failure("b2", 2, to="ops"), failure("c", 3, plan="other")]
    assert await record_and_send(ledger, *failures) == [
        "c/FAILED to ml after 0",
        "a/FAILED to ml after 0",
        "b2/FAILED to ops after 0",
        "b/FAILED to ml after 1",
    ]
    assert sorted(await record_and_send(ledger, success("d", 4), success("e", 5))) == [
        "d/SUCCEEDED to ml after 2",
        "d/SUCCEEDED to ops after 1",
    ]


async def test_recording_a_success_again_adds_nothing(ledger: Ledger) -> None:
    await ledger.record([failure("a", 1), success("b", 2), success("b", 2)], [], now=NOW)
    await ledger.record([success("b", 2)], [], now=NOW)
    assert await sent(ledger, pages=False) == ["a/FAILED to ml after 0", "b/SUCCEEDED to ml after 1"]


async def test_a_success_without_an_earlier_failure_sends_nothing(ledger: Ledger) -> None:
    assert await record_and_send(ledger, success("a", 1)) == []
    assert await record_and_send(ledger, failure("b", 2, state=State.DEAD), success("c", 3)) == []


async def test_a_failure_older_than_a_recorded_success_is_superseded_and_opens_no_thread(ledger: Ledger) -> None:
    assert await record_and_send(ledger, success("b", 2), failure("a", 1)) == ["a/FAILED to ml superseded"]
    assert await record_and_send(ledger, success("c", 3)) == []
    (found,) = await ledger.history.find(Filter(states=frozenset({State.DROPPED})), limit=9)
    assert (found.delivery.drop_reason, found.delivery.reason) == (DropReason.SUPERSEDED, "outdated")
    assert (found.delivery.attempt, await ledger.history.attempts(found.delivery.key)) == (0, [])
    assert await ledger.change(Filter(), an_action(at=NOW)) == 0


async def test_a_superseded_failure_is_sent_where_nobody_is_paged_and_the_next_success_resolves_it(
    ledger: Ledger,
) -> None:
    messages = await record_and_send(ledger, success("b", 2), failure("a", 1), pages=False)
    assert messages == ["a/FAILED to ml after 0"]
    assert await record_and_send(ledger, success("c", 3), pages=False) == ["c/SUCCEEDED to ml after 1"]


async def test_only_a_run_that_started_after_the_failure_ended_resolves_its_thread(ledger: Ledger) -> None:
    overlapping = success("b", 5, started=1)
    assert await record_and_send(ledger, failure("a", 2), overlapping) == ["a/FAILED to ml after 0"]
    assert await record_and_send(ledger, success("c", 6, started=2)) == []  # at the same moment: not after it
    assert await record_and_send(ledger, success("d", 7, started=3)) == ["d/SUCCEEDED to ml after 1"]


async def test_only_a_run_that_started_after_the_failure_ended_stands_in_its_way(ledger: Ledger) -> None:
    assert await record_and_send(ledger, success("b", 5, started=1), failure("a", 2)) == ["a/FAILED to ml after 0"]
    assert sorted(await record_and_send(ledger, success("c", 6, started=3), failure("d", 2, to="ops"))) == [
        "c/SUCCEEDED to ml after 1",
        "d/FAILED to ops superseded",
    ]


async def test_a_resolved_notice_stands_at_the_start_of_its_run(ledger: Ledger) -> None:
    await record_and_send(ledger, failure("a", 1))
    late = failure("b", 4)  # it ended after the successful run had started
    assert await record_and_send(ledger, success("c", 9, started=3), late) == [
        "c/SUCCEEDED to ml after 1",
        "b/FAILED to ml after 0",
    ]
    assert await record_and_send(ledger, success("d", 9, started=5)) == ["d/SUCCEEDED to ml after 1"]


async def test_a_late_failure_is_superseded_by_the_waiting_resolved_notice(ledger: Ledger) -> None:
    entries = [failure("a", 1), success("c", 3), failure("b", 2)]
    assert await record_and_send(ledger, *entries) == [
        "a/FAILED to ml superseded",
        "b/FAILED to ml superseded",
        "c/SUCCEEDED to ml after 0",
    ]
    others = [failure("a2", 1, to="ops"), success("c2", 4), failure("b2", 2, to="ops")]
    assert await record_and_send(ledger, *others, pages=False) == [
        "a2/FAILED to ops after 0",
        "b2/FAILED to ops after 1",
        "c2/SUCCEEDED to ops after 2",
    ]


async def test_a_success_older_than_a_recorded_failure_resolves_nothing_and_the_next_one_does(ledger: Ledger) -> None:
    assert await record_and_send(ledger, failure("a", 1), failure("c", 3)) == [
        "a/FAILED to ml after 0",
        "c/FAILED to ml after 1",
    ]
    assert await record_and_send(ledger, success("b", 2)) == []
    assert await record_and_send(ledger, success("d", 4)) == ["d/SUCCEEDED to ml after 2"]


async def test_a_failure_that_dies_leaves_the_thread_to_the_next_success(ledger: Ledger) -> None:
    await record_and_send(ledger, failure("a", 1))
    await ledger.record([failure("b", 4)], [], now=NOW)
    await ledger.record([success("c", 3)], [], now=NOW)  # resolves nothing: a newer failure waits
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
    (dying,) = (await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)).deliveries
    await ledger.settle(settlement(dying, Dead("refused")))
    assert await record_and_send(ledger, success("d", 5)) == ["d/SUCCEEDED to ml after 1"]


async def test_a_success_resolves_the_threads_of_all_earlier_executions(ledger: Ledger) -> None:
    entries = [failure("a", 1, about="a"), failure("b", 2, about="b"), failure("d", 4, about="d")]
    await record_and_send(ledger, *entries)
    assert sorted(await record_and_send(ledger, success("c", 3))) == [
        "c/SUCCEEDED to ml after 1",
        "c/SUCCEEDED to ml after 1",
    ]


async def test_after_a_resolved_notice_a_failure_opens_the_thread_again(ledger: Ledger) -> None:
    await record_and_send(ledger, failure("a", 1))
    await record_and_send(ledger, success("b", 2))
    assert await record_and_send(ledger, failure("c", 3), failure("d", 4)) == [
        "c/FAILED to ml after 0",
        "d/FAILED to ml after 1",
    ]


async def test_a_thread_has_the_first_and_the_last_of_its_earlier_messages(ledger: Ledger) -> None:
    await record_and_send(ledger, *(failure(f"n{number}", number) for number in range(5)))
    await ledger.record([success("s", 9)], [], now=NOW)
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
    (delivery,) = (await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)).deliveries

    claimed = await ledger.thread(delivery)

    assert claimed is not None
    thread = claimed.thread
    assert (thread.key, thread.resolves) == (delivery.thread, True)
    assert [one.reference["name"] for one in thread.earlier] == ["n0/FAILED to ml", "n4/FAILED to ml"]
    assert thread.earlier[0].content == {"subject": "failed"}


async def test_a_resolved_notice_knows_how_many_failures_it_resolves_and_since_when(ledger: Ledger) -> None:
    async def outage_at(success_event: RecordedEvent) -> Outage | None:
        await ledger.record([success_event], [], now=NOW)
        admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
        (notice,) = (await ledger.claim("pagerduty", 9, lease="me", until=NOW + MINUTE, admission=admission)).deliveries
        claimed = await ledger.thread(notice)
        assert claimed is not None
        await ledger.store_content(notice, {"subject": "resolved"})
        await ledger.settle(settlement(notice, SENT))
        return claimed.outage

    await record_and_send(ledger, failure("a", 1), failure("b", 2))
    assert await outage_at(success("c", 3)) == Outage(2, NOW + 1 * SECOND)
    await record_and_send(ledger, failure("d", 4), failure("e", 5), failure("f", 6))
    assert await outage_at(success("g", 7)) == Outage(3, NOW + 4 * SECOND)
    await record_and_send(ledger, failure("old", 6), failure("h", 8))  # the first one is superseded
    assert await outage_at(success("i", 9)) == Outage(1, NOW + 8 * SECOND)


async def test_a_dead_message_is_an_earlier_message_only_if_it_is_in_doubt(ledger: Ledger) -> None:
    for outcome, expected in ((Dead("gave up", in_doubt=True), 1), (Dead("refused"), 0)):
        plan = outcome.reason
        await ledger.record([failure(f"a {plan}", 1, plan=plan), failure(f"b {plan}", 2, plan=plan)], [], now=NOW)
        admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
        claim_one = await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)
        await ledger.settle(settlement(claim_one.deliveries[0], outcome))
        claim_two = await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)
        claimed = await ledger.thread(claim_two.deliveries[0])
        assert claimed is not None
        assert len(claimed.thread.earlier) == expected
        await ledger.settle(settlement(claim_two.deliveries[0], SENT))
        await sent(ledger)


async def test_a_dead_resolved_notice_is_superseded_by_a_newer_failure(ledger: Ledger) -> None:
    await record_and_send(ledger, failure("a", 1))
    await ledger.record([success("b", 2)], [], now=NOW)
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
    (notice,) = (await ledger.claim("pagerduty", 10, lease="me", until=NOW + MINUTE, admission=admission)).deliveries
    await ledger.settle(settlement(notice, Dead("gave up")))
    assert await record_and_send(ledger, failure("c", 3)) == ["c/FAILED to ml after 1"]
    await ledger.change(Filter(), an_action(at=NOW))
    assert await sent(ledger) == ["b/SUCCEEDED to ml superseded"]
    assert await record_and_send(ledger, success("d", 4)) == ["d/SUCCEEDED to ml after 2"]


async def test_a_resolved_notice_replaces_a_rules_delivery_for_the_same_success(ledger: Ledger) -> None:
    asked = success("b", 2)
    rules = (RuleRef("", "plan.yaml:1"), RuleRef("route", "routes.yaml:2"))
    alike = a_delivery(asked.event, channel="pagerduty", to="ML", rules=rules)
    alike = alike._replace(severity="critical")
    both = alike._replace(key="both", recipients=("Ml", "ops"), addresses=("Ml", "ops"), rules=rules[1:])
    notice_about_a_dead_delivery = alike._replace(key="dead", kind=Kind.FALLBACK_NOTICE)
    asked = replace(asked, deliveries=[alike, both, notice_about_a_dead_delivery])

    await ledger.record([failure("a", 1), asked], [], now=NOW)

    found = await ledger.history.find(Filter(execution=str(asked.event.execution)), limit=9)
    assert {one.delivery.severity for one in found} == {"critical"}
    assert {(one.delivery.kind, one.delivery.addresses, tuple(map(str, one.delivery.rules))) for one in found} == {
        (Kind.RESOLVED_NOTICE, ("ml",), (f"resolved notice after {failure('a', 1).event.key}", *map(str, rules))),
        (Kind.NOTIFICATION, ("ops",), ("route (routes.yaml:2)",)),
        (Kind.FALLBACK_NOTICE, ("ML",), tuple(map(str, rules))),
    }
    alone = success("d", 4)
    alone = replace(alone, deliveries=[a_delivery(alone.event, channel="pagerduty", to="ml")])
    await ledger.record([alone], [], now=NOW)
    (notice,) = await ledger.history.find(Filter(execution=str(alone.event.execution)), limit=9)
    assert (notice.delivery.kind, notice.delivery.thread) == (Kind.NOTIFICATION, "")


async def test_a_failure_and_a_success_recorded_at_once_by_two_replicas_leave_no_thread_open(
    ledger: Ledger, ledger_url: str
) -> None:
    plans = [f"plan{number}" for number in range(30)]
    async with Ledger(ledger_url) as other:
        await asyncio.gather(
            *(ledger.record([failure(f"f-{plan}", 1, plan=plan)], [], now=NOW) for plan in plans),
            *(other.record([success(f"s-{plan}", 2, plan=plan)], [], now=NOW) for plan in plans),
        )

    lines = await sent(ledger)
    for plan in plans:
        messages = [line for line in lines if line.partition("/")[0] in {f"f-{plan}", f"s-{plan}"}]
        superseded = f"f-{plan}/FAILED to ml superseded"
        assert messages in ([superseded], [superseded, f"s-{plan}/SUCCEEDED to ml after 0"])


async def test_a_purge_deletes_the_status_of_launch_plans(ledger: Ledger, ledger_url: str) -> None:
    await record_and_send(ledger, failure("a", 1), success("b", 2))
    await ledger.purge(NOW + MINUTE, limit=10)
    assert await record_and_send(ledger, failure("older", 0)) == ["older/FAILED to ml after 0"]
