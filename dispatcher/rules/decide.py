"""Decides about one event: evaluates every rule, and gives a reason for each result. Does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from dispatcher.model.event import Event
from dispatcher.model.notification import MAX_RECIPIENTS, MAX_RULES, Notification, excess
from dispatcher.model.verdict import Verdict
from dispatcher.rules.admin_execution import AdminExecution, UnknownExecution
from dispatcher.rules.owners import Owner
from dispatcher.rules.routes import NO_ROUTES, Route, Routing
from dispatcher.rules.rule import Considered, Rule
from dispatcher.rules.rulebook import RuleBook

_REPLACED_BY_ROUTE = "replaced by route "
ROUTES_NAMED = 5
"""A decision's reason names at most this many routes."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict about an event, the reason for the verdict, and every evaluated rule."""

    verdict: Verdict
    reason: str
    """The reason, whoever the owner is."""
    considered: tuple[Considered, ...] = ()
    disabled_by: str | None = None
    waiting: tuple[Route, ...] = ()
    """The matching routes that fire only if the launch plan's streak is long enough. Only the ledger knows that."""
    owner: Owner | None = None
    """Whom routes without a streak notify as the execution's owner; None if none of them names the owner."""
    advice: str = ""
    """What to do if the event is rejected: a sentence without a dot."""

    @property
    def decided(self) -> bool:
        """True if the event can be recorded. Otherwise it is rejected."""
        return self.verdict.decided or (self.verdict is Verdict.RULES_UNKNOWN and bool(self.matched or self.waiting))

    @property
    def full_reason(self) -> str:
        """The reason, with what it says of an owner who is not known, and of a rejected event what to do."""
        reason = self.reason
        if self.owner is not None and not self.owner.known:
            nobody = "" if self.owner.recipients else ", and owners.fallback names nobody"
            reason = f"{reason}; the owner is not known{nobody}"
        return f"{reason}. {self.advice}" if self.advice and not self.decided else reason

    @property
    def rules(self) -> list[Rule]:
        """The rules that apply to the execution, also if they don't name the event's phase."""
        return [evaluated.rule for evaluated in self.considered if evaluated.applies]

    @property
    def matched(self) -> list[Rule]:
        return [evaluated.rule for evaluated in self.considered if evaluated.matched]


def decides_itself(event: Event, book: RuleBook) -> bool:
    """True if the event alone says which rules match, so that FlyteAdmin need not be asked.

    That is so if its Options disable notifications, or if they have rules and no route depends on what FlyteAdmin knows.
    """
    if event.options is None:
        return False
    if event.options.disable_notifications:
        return True
    return bool(event.options.notifications) and (event.is_canary or not book.routes.needs_flyte_admin(event))


def decide(event: Event, book: RuleBook, admin: AdminExecution | UnknownExecution | None = None) -> Decision:
    """Decide which rules match a terminal event: Flyte's own rules, and the routes. A canary goes by its own rules alone.

    `admin` is FlyteAdmin's answer about the execution; None if FlyteAdmin was not asked.
    """
    decision = _by_flytes_rules(event, book, admin)
    if not book.routes or event.is_canary:
        return decision
    routing = book.routes.decide(event)
    return _with_routes(decision, routing) if routing is not NO_ROUTES else decision


def _by_flytes_rules(event: Event, book: RuleBook, admin: AdminExecution | UnknownExecution | None) -> Decision:
    own = _own_rules(event)
    entries = book.entries_for(event)
    plan = entries[0] if entries else None
    if event.options is not None and event.options.disable_notifications:
        switch = "options.disable_notifications"
        considered = _overridden([*own, *(plan.rules if plan else ())], f"disabled by {switch}")
        return Decision(Verdict.DISABLED, f"{switch} is set", considered, switch)
    if own:
        replaced = _overridden(plan.rules if plan else (), "replaced by the execution's own list")
        return _verdict(event, book, (*_match(event, own), *replaced), "the execution's own list")
    if isinstance(admin, AdminExecution):
        return _decide_by_admin(event, book, admin, plan.rules if plan else ())
    if plan is None:
        return _no_rules(event, book) if admin is None else Decision(Verdict.RULES_UNKNOWN, admin.reason)
    unknown = f" ({admin.reason})" if admin is not None else ""
    of_any_version = _overridden(
        [rule for entry in entries[1:] for rule in entry.rules],
        f"the rules of launch plan {plan.key} are more specific and apply alone",
    )
    return _verdict(event, book, (*_match(event, plan.rules), *of_any_version), f"launch plan {plan.key}{unknown}")


def _decide_by_admin(event: Event, book: RuleBook, admin: AdminExecution, from_files: tuple[Rule, ...]) -> Decision:
    """Decide with FlyteAdmin's effective rules. Rules from files do not apply; they are listed as overridden."""
    overridden = _overridden(from_files, "FlyteAdmin's rules go before files")
    if admin.excess:
        return Decision(Verdict.TOO_MANY_RULES, admin.excess)
    if admin.disabled:
        switch = "spec.disable_all"
        considered = (*_overridden(admin.replaced, f"disabled by {switch}"), *overridden)
        return Decision(Verdict.DISABLED, f"{switch} is set on the execution in FlyteAdmin", considered, switch)
    replaced = _overridden(admin.replaced, "replaced by the execution's own list")
    plan = f"{admin.launch_plan.noun} {admin.launch_plan}" if admin.launch_plan else "the execution's launch plan"
    rule_list = "the execution's own list" if admin.own else plan
    considered = (*_match(event, admin.rules), *replaced, *overridden)
    decision = _verdict(event, book, considered, f"{rule_list} in FlyteAdmin")
    if not admin.refused:
        return decision
    return replace(decision, reason=f"{decision.reason}; invalid: {'; '.join(admin.refused)}")


def _with_routes(decision: Decision, routing: Routing) -> Decision:
    """Return the decision with the routes added to it."""
    near = tuple(
        Considered(rule, matched=False, reason=miss.reason, applies=False)
        for miss in routing.near_misses
        for rule in miss.route.rules
    )
    if decision.verdict is Verdict.DISABLED:
        rules = [rule for route in routing.matched for rule in route.rules]
        disabled = _overridden(rules, f"disabled by {decision.disabled_by}")
        return replace(decision, considered=(*decision.considered, *disabled, *near))
    routes = (*chain.from_iterable([route.evaluated for route in routing.matched]), *near)
    waiting = tuple([route for route in routing.matched if route.streak])
    matched = any(evaluated.matched for evaluated in routes)
    replacing = next((route for route in routing.matched if route.replaces), None)
    if replacing is not None:
        decision = _replaced(decision, replacing, _in_words(routing), routes)
        verdict = Verdict.MATCHED if matched else Verdict.NO_MATCHING_RULE
        return replace(decision, verdict=verdict, waiting=waiting, owner=routing.owner)
    considered = (*decision.considered, *routes)
    if not routing.matched or decision.verdict is Verdict.TOO_MANY_RULES:
        return replace(decision, considered=considered)
    verdict = decision.verdict
    if not verdict.decided:
        verdict = Verdict.RULES_UNKNOWN
    elif matched:
        verdict = Verdict.MATCHED
    reason = "; ".join([decision.reason, *_in_words(routing)])
    return Decision(verdict, reason, considered, waiting=waiting, owner=routing.owner)


def _replaced(decision: Decision, by: Route, routed: list[str], routes: tuple[Considered, ...]) -> Decision:
    """Return the decision of the routes alone. `routed`: the routes that matched, in words."""
    overridden = _overridden(
        [evaluated.rule for evaluated in decision.considered if evaluated.applies], f"{_REPLACED_BY_ROUTE}{by.name}"
    )
    others = [evaluated for evaluated in decision.considered if not evaluated.applies]
    unknown = "" if decision.verdict.decided else f" ({decision.reason})"
    return replace(
        decision,
        reason="; ".join([*routed, f"route {by.name} replaces Flyte's rules{unknown}"]),
        considered=(*overridden, *others, *routes),
    )


def _in_words(routing: Routing) -> list[str]:
    """Return the routes that matched, for example `routes fraud, night-shift matched`, and how many were left out.

    Whether a route with a streak fires, the ledger adds to the reason.
    """
    names = [route.name for route in routing.matched if not route.streak]
    more = f" and {len(names) - ROUTES_NAMED} more" if len(names) > ROUTES_NAMED else ""
    parts = []
    if names:
        parts.append(f"{'route' if len(names) == 1 else 'routes'} {', '.join(names[:ROUTES_NAMED])}{more} matched")
    if routing.left_out:
        number = "1 more route" if routing.left_out == 1 else f"{routing.left_out:,} more routes"
        parts.append(
            f"{number} matched, and left out: an event may have {MAX_RULES:,} routes with {MAX_RECIPIENTS:,} recipients"
        )
    return parts


def disabled_by_of(verdict: str, reason: str) -> str | None:
    """Return the name of the switch that disabled an event's notifications, or None if they are not disabled.

    The name is read from the stored reason, because the reason of a disabled event begins with the switch's name.
    """
    return reason.partition(" ")[0] if verdict == Verdict.DISABLED else None


def flytes_matches(event: Event, considered: Iterable[Mapping[str, Any]]) -> list[Rule]:
    """Return Flyte's rules that matched a recorded event, or would have matched if no route had replaced them.

    `considered`: the evaluated rules, as the ledger stores them. That a route replaced a rule is read from its reason.
    """
    return [
        Rule(
            Notification(phases=rule["phases"], channel=rule["channel"], recipients=rule["recipients"]),
            rule["defined_at"],
        )
        for rule in considered
        if not rule["name"]
        and (rule["matched"] or (rule["reason"].startswith(_REPLACED_BY_ROUTE) and event.phase in rule["phases"]))
    ]


def _own_rules(event: Event) -> list[Rule]:
    if event.options is None:
        return []
    return [Rule(rule, f"options.notifications[{at}]") for at, rule in enumerate(event.options.notifications)]


def _match(event: Event, rules: list[Rule] | tuple[Rule, ...]) -> tuple[Considered, ...]:
    phase, matches = event.phase, f"{event.phase} is among its phases"
    return tuple(
        [
            Considered(rule, matched=True, reason=matches)
            if phase in rule.notification.phases
            else Considered(rule, matched=False, reason=f"is for {', '.join(rule.notification.phases)}, not {phase}")
            for rule in rules
        ]
    )


def _overridden(rules: list[Rule] | tuple[Rule, ...], reason: str) -> tuple[Considered, ...]:
    return tuple(Considered(rule, matched=False, reason=reason, applies=False) for rule in rules)


def _verdict(event: Event, book: RuleBook, considered: tuple[Considered, ...], rule_list: str) -> Decision:
    """Return the decision for the evaluated rules.

    `rule_list` says where the rules come from, for example `launch plan p/d/name` or `the execution's own list`.
    """
    rules = [evaluated.rule for evaluated in considered if evaluated.applies]
    if too_many := excess(len(rules), book.number_of_recipients(rules)):
        return Decision(Verdict.TOO_MANY_RULES, f"{too_many}, by {rule_list}")
    matched = sum([evaluated.matched for evaluated in considered])
    if matched:
        number = "1 rule" if matched == 1 else f"{matched} rules"
        return Decision(Verdict.MATCHED, f"{number} of {rule_list} matched", considered)
    return Decision(Verdict.NO_MATCHING_RULE, f"no rule of {rule_list} is for {event.phase}", considered)


def _no_rules(event: Event, book: RuleBook) -> Decision:
    """Return the decision if files have no rules for the event's launch plan.

    Where the event does not name its launch plan, that is a decision only if there are routes, and no launch plan that
    it could be has a rule for the event's phase. Without routes, the rules are probably still to be written.
    """
    project, domain = event.execution.project, event.execution.domain
    if event.launch_plan is None and book.routes and not book.may_match(event):
        reason = f"no rule of any launch plan of {project}/{domain} is for {event.phase}"
        return Decision(Verdict.NO_MATCHING_RULE, reason)
    if event.launch_plan is None:
        return Decision(
            Verdict.UNKNOWN_LAUNCH_PLAN,
            "launch plan unknown: the event does not name it",
            advice="Set rules.flyte_admin, or enrichAllWorkflowEventTypes in flyteadmin's cloudEvents (v2), or write a "
            f"route, for example with match: {{project: {project}, domain: {domain}, phase: {event.phase}}}, then replay",
        )
    versions = book.versions_of(event.launch_plan)
    known = f" (there are rules for version {', '.join(versions)})" if versions else ""
    return Decision(Verdict.NO_MATCHING_RULE, f"no rules for {event.launch_plan.noun} {event.launch_plan}{known}")
