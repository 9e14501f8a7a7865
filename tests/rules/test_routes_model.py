"""Decisions with routes, compared with a model that tests every route against every event, one after another."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.model.event import Event, Options
from dispatcher.model.phase import TERMINAL
from dispatcher.rules import (
    AdminExecution,
    PlanKey,
    PlanRules,
    RouteBook,
    Rule,
    RuleBook,
    UnknownExecution,
    Verdict,
    decide,
)
from tests.support.builders import a_launch_plan, a_route, a_rule, an_event

ABSENT, UNKNOWN = object(), object()


# -- the model


def fact(event: Event, key: str) -> Any:
    missing = ABSENT if event.looked_up else UNKNOWN
    match key:
        case "project" | "domain":
            return getattr(event.execution, key)
        case "phase":
            return event.phase
        case "launch_plan":
            return event.launch_plan.name if event.launch_plan else missing
        case "principal":
            return event.principal or missing
        case _:
            return event.labels.get(key.removeprefix("label "), ABSENT) if event.labels else missing


def holds(match: dict[str, Any], event: Event) -> bool | None:
    results: set[bool | None] = set()
    for key, patterns in match.items():
        if key == "not":
            inner = holds(patterns, event)
            results.add(None if inner is None else not inner)
        elif key == "labels":
            results |= {holds({f"label {name}": values}, event) for name, values in patterns.items()}
        elif (value := fact(event, key)) is UNKNOWN:
            results.add(None)
        else:
            results.add(value is not ABSENT and any(fnmatchcase(value, pattern) for pattern in patterns))
    return False if False in results else None if None in results else True


def applying(routes: list[dict[str, Any]], event: Event) -> list[dict[str, Any]]:
    found = []
    for route in routes:
        if holds(route["match"], event):
            found.append(route)
            if route["stop"]:
                break
    return found


def expected(
    event: Event, plan: list[Rule] | None, routes: list[dict[str, Any]], admin: Any
) -> tuple[Verdict, list[str]]:
    """The verdict, and the recipients in order. `plan`: the rules of the only launch plan in files, which the event
    names if it names any; None if there is none.
    """
    if event.options and event.options.disable_notifications:
        return Verdict.DISABLED, []
    own = [Rule(one, "") for one in event.options.notifications] if event.options else []
    if not own and isinstance(admin, AdminExecution) and admin.disabled:
        return Verdict.DISABLED, []
    of_files = plan if event.launch_plan else None
    rules = own or (list(admin.rules) if isinstance(admin, AdminExecution) else of_files)
    flytes = [rule for rule in rules or [] if event.phase in rule.notification.phases]
    routed = applying(routes, event)
    if any(route["rules"] == "replace" for route in routed):
        return Verdict.MATCHED, [route["name"] for route in routed]
    could_match = not routes or any(event.phase in rule.notification.phases for rule in plan or [])
    unknown = rules is None and (admin is not None or (event.launch_plan is None and could_match))
    if unknown and not routed and admin is None:
        return Verdict.UNKNOWN_LAUNCH_PLAN, []
    names = [rule.notification.recipients[0] for rule in flytes] + [route["name"] for route in routed]
    verdict = Verdict.RULES_UNKNOWN if unknown else Verdict.MATCHED if names else Verdict.NO_MATCHING_RULE
    return verdict, names


# -- events and routes that are alike enough to match often


def as_written(number: int, drawn: dict[str, Any]) -> dict[str, Any]:
    match = {"phase": drawn["phase"], **drawn["match"], **({"not": drawn["not"]} if drawn["not"] else {})}
    return {"name": f"route-{number}", "match": match, "stop": drawn["stop"], "rules": drawn["rules"]}


phases = st.sampled_from(sorted(TERMINAL))
patterns = st.lists(st.sampled_from(["a", "b", "ab", "a*", "?", "[ab]", "[!a]", "*b*"]), min_size=1, max_size=2)
texts = st.sampled_from(["a", "b", "ab", "c"])
labels = st.dictionaries(st.sampled_from(["team", "tier"]), patterns, min_size=1)
keys: dict[str, Any] = {
    "project": patterns,
    "domain": patterns,
    "launch_plan": patterns,
    "principal": patterns,
    "labels": labels,
}
conditions = st.fixed_dictionaries({}, optional=keys)
routes = st.lists(
    st.fixed_dictionaries(
        {
            "phase": st.lists(phases, min_size=1, max_size=3),
            "match": conditions,
            "not": st.none() | conditions.filter(bool),
            "stop": st.sampled_from([False, False, True]),
            "rules": st.sampled_from(["add", "add", "add", "replace"]),
        }
    ),
    max_size=6,
).map(lambda drawn: [as_written(number, one) for number, one in enumerate(drawn)])
flytes_rules = st.lists(st.builds(lambda name, phase: a_rule(name, phases=(phase,)), texts, phases), max_size=2)
options = st.builds(
    lambda rules, disable: Options(
        notifications=tuple(rule.notification for rule in rules), disable_notifications=disable
    ),
    flytes_rules,
    st.sampled_from([False, False, False, True]),
)
events = st.builds(
    lambda phase, project, domain, plan, **others: an_event(phase).model_copy(
        update={
            "execution": an_event().execution.model_copy(update={"project": project, "domain": domain}),
            "launch_plan": a_launch_plan(plan).model_copy(update={"project": project, "domain": domain})
            if plan
            else None,
            **others,
        }
    ),
    phases,
    texts,
    texts,
    st.none() | texts,
    principal=st.just("") | texts,
    labels=st.dictionaries(st.sampled_from(["team", "tier"]), texts),
    options=st.none() | options,
    looked_up=st.booleans(),
)
answers = (
    st.none()
    | st.just(UnknownExecution("FlyteAdmin doesn't know it"))
    | st.builds(
        lambda rules, disabled: AdminExecution(rules=tuple(rules), disabled=disabled), flytes_rules, st.booleans()
    )
)


def a_route_book(written: list[dict[str, Any]]) -> RouteBook:
    return RouteBook(
        tuple(
            a_route(one["name"], one["name"], stop=one["stop"], rules=one["rules"], **one["match"]) for one in written
        )
    )


@given(events, st.none() | flytes_rules, routes, answers)
@settings(max_examples=400)
def test_a_decision_with_routes_is_that_of_the_model(
    event: Event, plan: list[Rule] | None, routes: list[dict[str, Any]], admin: Any
) -> None:
    plans = {}
    if plan is not None:
        name = event.launch_plan.name if event.launch_plan else "some"
        key = PlanKey(event.execution.project, event.execution.domain, name)
        plans = {key: PlanRules(key, tuple(plan))}

    decision = decide(event, RuleBook(plans, a_route_book(routes)), admin)

    notified = [rule.notification.recipients[0] for rule in decision.matched]
    assert (decision.verdict, notified) == expected(event, plan, routes, admin)
    assert decision.decided is (decision.verdict.decided or bool(notified))
    assert all(one.reason for one in decision.considered)
    explained = [one.rule.name for one in decision.considered if one.rule.name and not one.matched]
    assert not {*explained} & {*notified}


@given(events, routes)
def test_flyteadmin_must_be_asked_exactly_if_a_routes_result_is_not_known(
    event: Event, routes: list[dict[str, Any]]
) -> None:
    unknown = any(holds(route["match"], event) is None for route in routes)
    assert a_route_book(routes).needs_flyte_admin(event) is unknown
