"""Which rules match an event: the order in which Flyte replaces and disables them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model.event import Options
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.rules import (
    ANY,
    AdminExecution,
    PlanKey,
    PlanRules,
    RouteBook,
    Rule,
    RuleBook,
    UnknownExecution,
    Verdict,
    decide,
    decides_itself,
)
from tests.support.builders import a_launch_plan, a_notification, a_route, a_rule, an_event


def a_book(*plans: tuple[str, str, Rule]) -> RuleBook:
    """Rules by launch plan name and version."""
    entries = {}
    for name, version, rule in plans:
        key = PlanKey("flytesnacks", "production", name, version)
        entries[key] = PlanRules(key, (rule,))
    return RuleBook(entries)


def notified(event: Any, book: RuleBook) -> list[str]:
    return [recipient for rule in decide(event, book).matched for recipient in rule.notification.recipients]


PLAN = ("train.daily", ANY, a_rule("plan@example.com"))


def options(*recipients: str, disable: bool = False, phases: tuple[Phase, ...] = (Phase.FAILED,)) -> Options:
    rules = [a_notification(*recipients, phases=phases)] if recipients else []
    return Options(notifications=tuple(rules), disable_notifications=disable)


@pytest.mark.parametrize(
    ("given_options", "expected"),
    [
        (None, ["plan@example.com"]),
        (options(), ["plan@example.com"]),
        (options("own@example.com"), ["own@example.com"]),
        (options(disable=True), []),
        (options("own@example.com", disable=True), []),
        (options("own@example.com", phases=(Phase.SUCCEEDED,)), []),
    ],
    ids=[
        "no options",
        "an empty list",
        "a list replaces",
        "disabled",
        "disabled beats a list",
        "a list replaces, even if none of its rules matches",
    ],
)
def test_options_go_before_the_launch_plan(given_options: Options | None, expected: list[str]) -> None:
    assert notified(an_event(launch_plan=a_launch_plan(), options=given_options), a_book(PLAN)) == expected


@pytest.mark.parametrize("phase", sorted(TERMINAL))
def test_a_rule_matches_only_its_phases(phase: Phase) -> None:
    expected = ["plan@example.com"] if phase is Phase.FAILED else []
    assert notified(an_event(phase, launch_plan=a_launch_plan()), a_book(PLAN)) == expected


@pytest.mark.parametrize(
    ("plans", "expected"),
    [
        ([("train.daily", "v1.4.2"), ("train.daily", ANY)], "train.daily@v1.4.2"),
        ([("train.daily", "v1.4.1"), ("train.daily", ANY), ("other", ANY)], "train.daily@*"),
    ],
)
def test_only_the_most_specific_launch_plan_entry_applies(plans: list[tuple[str, str]], expected: str) -> None:
    book = a_book(*((name, version, a_rule(f"{name}@{version}")) for name, version in plans))
    assert notified(an_event(launch_plan=a_launch_plan()), book) == [expected]


def test_a_tasks_event_matches_no_rules_of_a_launch_plan() -> None:
    task = a_launch_plan().model_copy(update={"resource_type": "TASK"})
    decision = decide(an_event(launch_plan=task), a_book(PLAN))
    assert decision.reason == "no rules for task flytesnacks/production/train.daily@v1.4.2"


@pytest.mark.parametrize("phase", sorted(TERMINAL))
def test_an_event_without_a_launch_plan_is_undecided(phase: Phase) -> None:
    decision = decide(an_event(phase), a_book(PLAN))
    assert decision.verdict is Verdict.UNKNOWN_LAUNCH_PLAN
    assert "enrichAllWorkflowEventTypes" in decision.full_reason
    assert f"match: {{project: flytesnacks, domain: production, phase: {phase}}}" in decision.full_reason


@pytest.mark.parametrize(
    ("phase", "book", "verdict"),
    [
        (Phase.FAILED, a_book(PLAN), Verdict.UNKNOWN_LAUNCH_PLAN),
        (Phase.FAILED, a_book(), Verdict.NO_MATCHING_RULE),
        (Phase.SUCCEEDED, a_book(PLAN), Verdict.NO_MATCHING_RULE),
    ],
)
def test_an_event_without_a_launch_plan_is_decided_if_there_are_routes_and_no_launch_plan_has_a_rule_for_its_phase(
    phase: Phase, book: RuleBook, verdict: Verdict
) -> None:
    with_routes = replace(book, routes=RouteBook((a_route("elsewhere", project="other"),)))
    decision = decide(an_event(phase), with_routes)
    assert decision.verdict is verdict
    if decision.decided:
        assert decision.reason == f"no rule of any launch plan of flytesnacks/production is for {phase}"


def test_an_events_own_options_decide_even_if_its_launch_plan_is_unknown() -> None:
    assert notified(an_event(options=options("own@example.com")), RuleBook()) == ["own@example.com"]
    assert decide(an_event(options=options(disable=True)), RuleBook()).verdict is Verdict.DISABLED


def test_the_reason_names_the_versions_that_have_rules_if_this_version_has_none() -> None:
    decision = decide(an_event(launch_plan=a_launch_plan()), a_book(("train.daily", "v9", a_rule())))
    assert decision.verdict is Verdict.NO_MATCHING_RULE
    assert "rules for version v9" in decision.reason


def test_every_evaluated_rule_has_a_reason() -> None:
    event = an_event(launch_plan=a_launch_plan(), options=options("own@example.com", phases=(Phase.ABORTED,)))
    considered = [rule.as_data() for rule in decide(event, a_book(PLAN)).considered]

    assert [(rule["defined_at"], rule["matched"], rule["reason"]) for rule in considered] == [
        ("options.notifications[0]", False, "is for ABORTED, not FAILED"),
        ("test", False, "replaced by the execution's own list"),
    ]


def test_flyteadmin_goes_before_files_and_options_go_before_both() -> None:
    book = a_book(("train.daily", ANY, a_rule("file@example.com")))
    event = an_event(launch_plan=a_launch_plan())
    admin = AdminExecution(rules=(a_rule("admin@example.com"),), launch_plan=a_launch_plan())

    decision = decide(event, book, admin)
    assert [(one.rule.notification.recipients[0], one.matched, one.reason) for one in decision.considered] == [
        ("admin@example.com", True, "FAILED is among its phases"),
        ("file@example.com", False, "FlyteAdmin's rules go before files"),
    ]
    own = an_event(options=options("own@example.com"))
    assert decides_itself(own, book)
    assert [rule.notification.recipients for rule in decide(own, book, admin).matched] == [("own@example.com",)]
    assert not decides_itself(an_event(options=options()), book)


def test_an_empty_rule_list_from_flyteadmin_goes_before_files() -> None:
    event = an_event(launch_plan=a_launch_plan())
    decision = decide(event, a_book(PLAN), AdminExecution(launch_plan=a_launch_plan()))
    assert (decision.verdict, decision.matched) == (Verdict.NO_MATCHING_RULE, [])
    reason = "no rule of launch plan flytesnacks/production/train.daily@v1.4.2 in FlyteAdmin is for FAILED"
    assert decision.reason == reason


def test_files_decide_if_flyteadmin_does_not_know_the_execution_and_without_files_the_rules_are_unknown() -> None:
    unknown = UnknownExecution("FlyteAdmin doesn't know it")
    event, plan = an_event(launch_plan=a_launch_plan()), "flytesnacks/production/train.daily"
    decision = decide(event, a_book(PLAN), unknown)
    assert (decision.verdict, len(decision.matched)) == (Verdict.MATCHED, 1)
    assert decision.reason == f"1 rule of launch plan {plan} (FlyteAdmin doesn't know it) matched"
    decision = decide(event, RuleBook(), unknown)
    assert (decision.verdict, decision.reason, decision.verdict.decided) == (
        Verdict.RULES_UNKNOWN,
        unknown.reason,
        False,
    )


def test_the_rules_for_any_version_have_a_reason_too_if_those_of_the_version_apply() -> None:
    book = a_book(("train.daily", "v1.4.2", a_rule("v@example.com")), PLAN)
    considered = decide(an_event(launch_plan=a_launch_plan()), book).considered
    overridden = "the rules of launch plan flytesnacks/production/train.daily@v1.4.2 are more specific and apply alone"
    assert [(one.rule.notification.recipients[0], one.matched, one.reason) for one in considered] == [
        ("v@example.com", True, "FAILED is among its phases"),
        ("plan@example.com", False, overridden),
    ]


phases = st.sampled_from(sorted(TERMINAL))
rules = st.builds(lambda wanted: a_rule(phases=tuple(wanted)), st.sets(phases, min_size=1))


@given(phases, st.lists(rules, max_size=4), st.lists(rules, max_size=4), st.booleans())
def test_exactly_the_rules_for_the_phase_match_and_none_if_notifications_are_disabled(
    phase: Phase, own: list[Rule], plan: list[Rule], disable: bool
) -> None:
    given_options = Options(notifications=tuple(rule.notification for rule in own), disable_notifications=disable)
    key = PlanKey("flytesnacks", "production", "train.daily")
    event = an_event(phase, launch_plan=a_launch_plan(), options=given_options)

    decision = decide(event, RuleBook({key: PlanRules(key, tuple(plan))}))

    applying = own or plan
    expected = [] if disable else [rule.notification for rule in applying if phase in rule.notification.phases]
    assert [rule.notification for rule in decision.matched] == expected
    assert len(decision.considered) == len(own) + len(plan)
    assert all(one.reason for one in decision.considered)
    assert (decision.disabled_by is not None) is disable
