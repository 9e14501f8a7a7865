"""What a decision says of routes: the verdict, the reason, and the routes that applied or almost did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dispatcher.model.event import Event, ExecutionId, Options
from dispatcher.model.notification import MAX_RECIPIENTS, MAX_RULES
from dispatcher.model.phase import Phase
from dispatcher.rules import (
    AdminExecution,
    Decision,
    PlanKey,
    PlanRules,
    RouteBook,
    RuleBook,
    UnknownExecution,
    Verdict,
    decide,
    decides_itself,
)
from dispatcher.rules.owners import Owners
from dispatcher.rules.routes import MAX_NEAR_MISSES
from tests.support.builders import a_launch_plan, a_notification, a_route, a_rule, an_event

KEY = PlanKey("flytesnacks", "production", "train.daily")
PLAN = {KEY: PlanRules(KEY, (a_rule("plan@example.com"), a_rule("success@example.com", phases=(Phase.SUCCEEDED,))))}
EVENT = an_event(launch_plan=a_launch_plan(), principal="jo", labels={"team": "ml"})
OWN = Options(notifications=(a_notification("own@example.com"),))


OWNERS = Owners(contacts={"ml-team": 999, "on-call": 1}, map={"jo": "ml-team"}, label="team", fallback="on-call")
TO_OWNER = a_route("owners", "owner", channel="")


def decided(
    *routes: Any, event: Event = EVENT, plans: Any = PLAN, admin: Any = None, owners: Owners | None = None
) -> Decision:
    return decide(event, RuleBook(plans, RouteBook(routes, owners)), admin)


def rows(decision: Decision) -> list[tuple[str, bool, bool, str]]:
    """The routes among the rules that were considered."""
    return [(one.rule.name, one.matched, one.applies, one.reason) for one in decision.considered if one.rule.name]


def test_a_route_adds_its_rules_to_flytes_and_the_decision_names_both() -> None:
    decision = decided(a_route("ml", "ml-team", "ops@example.com", labels={"team": "ml"}))
    assert decision.verdict is Verdict.MATCHED
    assert decision.reason == "1 rule of launch plan flytesnacks/production/train.daily matched; route ml matched"
    assert [rule.notification.recipients for rule in decision.matched] == [
        ("plan@example.com",),
        ("ml-team", "ops@example.com"),
    ]
    assert rows(decision) == [("ml", True, True, "all its conditions hold")]
    assert [one.as_data()["name"] for one in decision.considered] == ["", "", "ml"]


def test_a_route_alone_matches_if_no_rule_of_flytes_does() -> None:
    decision = decided(a_route("all"), a_route("more"), plans={})
    assert (decision.verdict, decision.reason) == (
        Verdict.MATCHED,
        "no rules for launch plan flytesnacks/production/train.daily@v1.4.2; routes all, more matched",
    )


def test_a_route_that_replaces_overrides_flytes_rules_and_the_executions_own_list() -> None:
    route = a_route("night", rules="replace")
    decision = decided(a_route("day"), route, event=EVENT.model_copy(update={"options": OWN}))
    assert (decision.verdict, decision.reason) == (
        Verdict.MATCHED,
        "routes day, night matched; route night replaces Flyte's rules",
    )
    assert [(one.rule.notification.recipients[0], one.matched, one.reason) for one in decision.considered] == [
        ("own@example.com", False, "replaced by route night"),
        ("plan@example.com", False, "replaced by the execution's own list"),
        ("success@example.com", False, "replaced by the execution's own list"),
        ("day@example.com", True, "all its conditions hold"),
        ("night@example.com", True, "all its conditions hold"),
    ]
    assert [rule.name for rule in decision.rules] == ["day", "night"]


@pytest.mark.parametrize(
    ("event", "admin", "switch"),
    [
        (
            EVENT.model_copy(update={"options": Options(disable_notifications=True)}),
            None,
            "options.disable_notifications",
        ),
        (EVENT, AdminExecution(disabled=True), "spec.disable_all"),
    ],
)
def test_disabled_notifications_disable_routes_too_even_those_that_replace(
    event: Event, admin: AdminExecution | None, switch: str
) -> None:
    decision = decided(a_route("ml", rules="replace"), a_route("jo", principal="ann"), event=event, admin=admin)
    assert (decision.verdict, decision.matched, decision.disabled_by) == (Verdict.DISABLED, [], switch)
    assert rows(decision) == [
        ("ml", False, False, f"disabled by {switch}"),
        ("jo", False, False, "principal is jo, not ann"),
    ]


@pytest.mark.parametrize(
    ("event", "plans", "admin", "reason"),
    [
        (EVENT, {}, UnknownExecution("FlyteAdmin doesn't know it"), "FlyteAdmin doesn't know it"),
        (an_event(), PLAN, None, "launch plan unknown: the event does not name it"),
    ],
)
def test_where_flytes_rules_are_unknown_the_routes_decide_alone(
    event: Event, plans: Any, admin: UnknownExecution | None, reason: str
) -> None:
    without = decided(a_route("others", domain="staging"), event=event, plans=plans, admin=admin)
    assert not without.decided
    assert without.full_reason.startswith(reason)
    assert ("write a route" in without.full_reason) == (event.launch_plan is None)

    decision = decided(a_route("all"), event=event, plans=plans, admin=admin)
    assert (decision.verdict, decision.decided) == (Verdict.RULES_UNKNOWN, True)
    assert decision.full_reason == f"{reason}; route all matched"
    assert [rule.name for rule in decision.matched] == ["all"]

    replacing = decided(a_route("all", rules="replace"), event=event, plans=plans, admin=admin)
    assert replacing.verdict is Verdict.MATCHED
    assert replacing.full_reason == f"route all matched; route all replaces Flyte's rules ({reason})"


@pytest.mark.parametrize(
    ("recipients", "verdict"),
    [
        ([["team"], ["team", "a@example.com"]], Verdict.MATCHED),
        ([["team"], ["others"]], Verdict.TOO_MANY_RULES),
        ([["team"], [f"p{number}@example.com" for number in range(400)]], Verdict.MATCHED),
        ([["team"], [f"p{number}@example.com" for number in range(401)]], Verdict.TOO_MANY_RULES),
    ],
)
def test_a_contact_in_flytes_rules_counts_once_with_all_its_recipients(
    recipients: list[list[str]], verdict: Verdict
) -> None:
    options = Options(notifications=tuple(a_notification(*several) for several in recipients))
    book = RuleBook(contacts={"team": 600, "others": 500})
    decision = decide(an_event(options=options), book)
    assert decision.verdict is verdict
    assert decision.decided is (verdict is Verdict.MATCHED)


def test_too_many_rules_of_flytes_stay_rejected_unless_a_route_replaces_them() -> None:
    admin = AdminExecution(excess="the event has 101 rules")
    assert not decided(a_route("all"), admin=admin).decided
    assert decided(a_route("all", rules="replace"), admin=admin).verdict is Verdict.MATCHED


def test_routes_that_almost_match_are_explained_with_what_they_miss() -> None:
    event = EVENT.model_copy(update={"principal": ""})
    decision = decided(
        a_route("staging", domain="staging"),
        a_route("two-misses", domain="staging", project="other*"),
        a_route("first", stop=True),
        a_route("after"),
        a_route("who", principal="jo"),
        event=event,
    )
    explained = {name: reason for name, matched, _, reason in rows(decision) if not matched}
    assert explained.pop("who").startswith("principal isn't known")
    assert explained == {
        "staging": "domain is production, not staging",
        "after": "route first stops before it",
    }
    many = decided(*(a_route(f"r{number}", domain="staging") for number in range(50)))
    assert len(rows(many)) == MAX_NEAR_MISSES


def test_more_routes_than_an_event_may_have_are_left_out_and_counted() -> None:
    decision = decided(*(a_route(f"r{number}") for number in range(MAX_RULES + 7)), plans={})
    assert len(decision.matched) == MAX_RULES
    assert "routes r0, r1, r2, r3, r4 and 95 more matched; 7 more routes matched, and left out" in decision.reason

    half = a_route("half", number=MAX_RECIPIENTS // 2)
    decision = decided(half, half, a_route("one"), half, plans={})
    assert [rule.name for rule in decision.matched] == ["half", "half"]
    assert "2 more routes matched, and left out: an event may have 100 routes with 1,000 recipients" in decision.reason


def test_flyteadmin_is_asked_about_an_event_with_its_own_list_only_for_a_route_that_needs_it() -> None:
    own = an_event(options=OWN)
    conditions: dict[str, Any] = {"not": {"labels": {"team": "ml"}}}
    unless = a_route("not", **conditions)
    for routes, asks in (
        ((), False),
        ((a_route("all"),), False),
        ((a_route("jo", principal="jo"),), True),
        ((a_route("jo", principal="jo", domain="staging"),), False),
        ((a_route("ok", phase="SUCCEEDED", principal="jo"),), False),
        ((a_route("plan", launch_plan="other"),), True),
        ((unless,), True),
    ):
        book = RuleBook({}, RouteBook(routes))
        assert decides_itself(own, book) is not asks, routes
        disabled = Options(notifications=OWN.notifications, disable_notifications=True)
        assert decides_itself(own.model_copy(update={"options": disabled}), book)
        assert not decides_itself(an_event(), book)


def test_a_canary_goes_by_its_own_list_alone() -> None:
    canary = ExecutionId(project="dispatcher", domain="canary", name="20261120T091000Z")
    event = an_event(options=OWN).model_copy(update={"execution": canary})
    decision = decided(a_route("all", rules="replace"), a_route("jo", principal="jo"), event=event)
    assert [rule.notification.recipients for rule in decision.matched] == [("own@example.com",)]
    assert rows(decision) == []
    assert decides_itself(event, RuleBook({}, RouteBook((a_route("jo", principal="jo"),))))


def test_a_route_to_the_owner_has_the_owners_recipients_and_says_how_the_owner_was_found() -> None:
    decision = decided(TO_OWNER, owners=OWNERS, plans={})
    assert decision.reason.endswith("route owners matched")
    (rule,) = decision.matched
    assert (rule.notification.channel, rule.notification.recipients) == ("", ("ml-team",))
    reason = "all its conditions hold; the owner is ml-team: owners.map has principal jo"
    assert rows(decision) == [("owners", True, True, reason)]


def test_a_decision_says_who_is_notified_instead_of_an_unknown_owner() -> None:
    unknown = an_event(launch_plan=a_launch_plan(), looked_up=True)
    decision = decided(TO_OWNER, owners=OWNERS, plans={}, event=unknown)
    assert decision.full_reason.endswith("route owners matched; the owner is not known")
    missed = "the owner is not known: principal is absent; label team is absent; on-call is notified"
    assert rows(decision) == [("owners", True, True, f"all its conditions hold; {missed}")]
    assert [rule.notification.recipients for rule in decision.matched] == [("on-call",)]
    assert decision.owner is not None
    assert not decision.owner.known

    nobody = decided(TO_OWNER, owners=replace(OWNERS, fallback=""), event=unknown)
    assert (nobody.verdict, [rule.notification.recipients for rule in nobody.matched]) == (
        Verdict.MATCHED,
        [("plan@example.com",)],
    )
    ((_, matched, applies, reason),) = rows(nobody)
    assert (matched, applies, reason.rpartition("; ")[2]) == (False, False, "owners.fallback names nobody")
    alone = decided(TO_OWNER, owners=replace(OWNERS, fallback=""), event=unknown, plans={})
    assert (alone.verdict, alone.full_reason.rpartition("; ")[2]) == (
        Verdict.NO_MATCHING_RULE,
        "the owner is not known, and owners.fallback names nobody",
    )
    undecided = decided(
        TO_OWNER, owners=replace(OWNERS, fallback=""), event=unknown, plans={}, admin=UnknownExecution("gone")
    )
    assert (undecided.verdict, undecided.decided) == (Verdict.RULES_UNKNOWN, False)


def test_the_owner_of_an_execution_with_disabled_notifications_is_not_looked_for() -> None:
    disabled = EVENT.model_copy(update={"options": Options(disable_notifications=True)})
    decision = decided(TO_OWNER, owners=OWNERS, event=disabled)
    assert (decision.owner, decision.matched) == (None, [])


def test_an_owner_counts_as_many_recipients_as_the_owners_contact_has() -> None:
    other = a_route("other", "a@example.com", "b@example.com")
    assert decided(TO_OWNER, other, owners=OWNERS, plans={}).reason.endswith("1,000 recipients")
    by_label = an_event(launch_plan=a_launch_plan(), labels={"team": "on-call"})
    assert decided(TO_OWNER, other, owners=OWNERS, plans={}, event=by_label).reason.endswith("owners, other matched")


def test_an_event_that_decides_itself_is_looked_up_for_a_route_to_its_owner() -> None:
    own = an_event(launch_plan=a_launch_plan(), options=OWN)
    for routes, owners, asks in (
        ((TO_OWNER,), OWNERS, True),
        ((TO_OWNER,), Owners(label="team"), True),
        ((a_route("ok", "owner", channel="", phase="SUCCEEDED"),), OWNERS, False),
        ((a_route("any"),), OWNERS, False),
    ):
        assert decides_itself(own, RuleBook({}, RouteBook(routes, owners))) is not asks
    named = own.model_copy(update={"principal": "jo"})
    assert decides_itself(named, RuleBook({}, RouteBook((TO_OWNER,), OWNERS)))
