"""Decides about one event: evaluates every rule, and gives a reason for each result. Does no I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dispatcher.model.event import Event
from dispatcher.model.notification import excess
from dispatcher.model.verdict import Verdict
from dispatcher.rules.admin_execution import AdminExecution, UnknownExecution
from dispatcher.rules.rulebook import ANY, Rule, RuleBook


class Considered(NamedTuple):
    """One evaluated rule: whether the rule matched the event, and why."""

    rule: Rule
    matched: bool
    reason: str
    applies: bool = True
    """False if the rule is replaced or disabled, or comes from a place that is not used for this execution."""

    def as_data(self) -> dict[str, Any]:
        """Return the rule and its result as JSON data, for the ledger and for `--json`."""
        notification = self.rule.notification
        return {
            "defined_at": self.rule.defined_at,
            "phases": list(notification.phases),
            "channel": notification.channel,
            "recipients": list(notification.recipients),
            "matched": self.matched,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict about an event, the reason for the verdict, and every evaluated rule."""

    verdict: Verdict
    reason: str
    considered: tuple[Considered, ...] = ()
    disabled_by: str | None = None

    @property
    def rules(self) -> list[Rule]:
        """The rules that apply to the execution, also if they don't name the event's phase."""
        return [evaluated.rule for evaluated in self.considered if evaluated.applies]

    @property
    def matched(self) -> list[Rule]:
        return [evaluated.rule for evaluated in self.considered if evaluated.matched]


def decides_itself(event: Event) -> bool:
    """True if the Options in the event decide alone, so that FlyteAdmin need not be asked."""
    return event.options is not None and (event.options.disable_notifications or bool(event.options.notifications))


def decide(event: Event, book: RuleBook, admin: AdminExecution | UnknownExecution | None = None) -> Decision:
    """Decide which rules match a terminal event.

    `admin` is FlyteAdmin's answer about the execution; None if FlyteAdmin was not asked.
    """
    own = _own_rules(event)
    entries = book.entries_for(event)
    plan = entries[0] if entries else None
    if event.options is not None and event.options.disable_notifications:
        switch = "options.disable_notifications"
        considered = _overridden([*own, *(plan.rules if plan else ())], f"disabled by {switch}")
        return Decision(Verdict.DISABLED, f"{switch} is set", considered, switch)
    if own:
        replaced = _overridden(plan.rules if plan else (), "replaced by the execution's own list")
        return _verdict(event, (*_match(event, own), *replaced), "the execution's own list")
    if isinstance(admin, AdminExecution):
        return _decide_by_admin(event, admin, plan.rules if plan else ())
    if plan is None:
        return _no_rules(event, book) if admin is None else Decision(Verdict.RULES_UNKNOWN, admin.reason)
    unknown = f" ({admin.reason})" if admin is not None else ""
    less_specific = _overridden(
        [rule for entry in entries[1:] for rule in entry.rules],
        f"the rules of launch plan {plan.key} are more specific and apply alone",
    )
    return _verdict(event, (*_match(event, plan.rules), *less_specific), f"launch plan {plan.key}{unknown}")


def _decide_by_admin(event: Event, admin: AdminExecution, from_files: tuple[Rule, ...]) -> Decision:
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
    decision = _verdict(event, considered, f"{rule_list} in FlyteAdmin")
    if not admin.refused:
        return decision
    return replace(decision, reason=f"{decision.reason}; invalid: {'; '.join(admin.refused)}")


def disabled_by_of(verdict: str, reason: str) -> str | None:
    """Return the name of the switch that disabled an event's notifications, or None if they are not disabled.

    The name is read from the stored reason, because the reason of a disabled event begins with the switch's name.
    """
    return reason.partition(" ")[0] if verdict == Verdict.DISABLED else None


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


def _verdict(event: Event, considered: tuple[Considered, ...], rule_list: str) -> Decision:
    """Return the decision for the evaluated rules.

    `rule_list` says where the rules come from, for example `launch plan p/d/name` or `the execution's own list`.
    """
    rules = [evaluated.rule for evaluated in considered if evaluated.applies]
    if too_many := excess(len(rules), sum([len(rule.notification.recipients) for rule in rules])):
        return Decision(Verdict.TOO_MANY_RULES, f"{too_many}, by {rule_list}")
    matched = sum([evaluated.matched for evaluated in considered])
    if matched:
        number = "1 rule" if matched == 1 else f"{matched} rules"
        return Decision(Verdict.MATCHED, f"{number} of {rule_list} matched", considered)
    return Decision(Verdict.NO_MATCHING_RULE, f"no rule of {rule_list} is for {event.phase}", considered)


def _no_rules(event: Event, book: RuleBook) -> Decision:
    if event.launch_plan is None:
        where = f"{event.execution.project}/{event.execution.domain}"
        return Decision(
            Verdict.UNKNOWN_LAUNCH_PLAN,
            "launch plan unknown: the event does not name it. Set rules.flyte_admin, or enrichAllWorkflowEventTypes in "
            f"flyteadmin's cloudEvents (v2), or write rules for launch plan {ANY!r} in {where}, then replay",
        )
    versions = book.versions_of(event.launch_plan)
    known = f" (there are rules for version {', '.join(versions)})" if versions else ""
    return Decision(Verdict.NO_MATCHING_RULE, f"no rules for {event.launch_plan.noun} {event.launch_plan}{known}")
