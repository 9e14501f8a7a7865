"""The decision for one event: each rule looked at, whether it matched, and why not. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from dispatcher.model.event import Event
from dispatcher.rules.admin_execution import AdminExecution, UnknownExecution
from dispatcher.rules.rulebook import ANY, Rule, RuleBook


class Verdict(StrEnum):
    """What the rules say of an event."""

    MATCHED = "matched"
    """Somebody is to be told."""
    NO_MATCHING_RULE = "no_matching_rule"
    """Rules were found, or there are none; none wants this phase."""
    DISABLED = "disabled"
    """Notifications are disabled for this execution."""
    UNKNOWN_LAUNCH_PLAN = "unknown_launch_plan"
    """The event doesn't say whose rules hold, and no `*` rules serve its project and domain."""
    RULES_UNKNOWN = "rules_unknown"
    """FlyteAdmin doesn't say whose rules hold, and no file does."""

    @property
    def known(self) -> bool:
        """Whether it is known who is to be told, be it nobody."""
        return self not in {Verdict.UNKNOWN_LAUNCH_PLAN, Verdict.RULES_UNKNOWN}


class Considered(NamedTuple):
    """One rule, looked at."""

    rule: Rule
    matched: bool
    reason: str
    holds: bool = True
    """Whether the execution goes by it at all; else it was replaced or silenced."""

    def as_data(self) -> dict[str, Any]:
        """The look as JSON, as the ledger keeps it and `--json` shows it."""
        notification = self.rule.notification
        return {
            "source": self.rule.source,
            "phases": list(notification.phases),
            "channel": notification.channel,
            "recipients": list(notification.recipients),
            "matched": self.matched,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict, in words, and all that led to it."""

    verdict: Verdict
    reason: str
    considered: tuple[Considered, ...] = ()
    disabled_by: str | None = None

    @property
    def rules(self) -> list[Rule]:
        """The rules that hold for the execution, whatever phases they want."""
        return [look.rule for look in self.considered if look.holds]

    @property
    def matched(self) -> list[Rule]:
        return [look.rule for look in self.considered if look.matched]


def decides_itself(event: Event) -> bool:
    """Whether the Options that the event brings settle who is told, whatever other sources say."""
    return event.options is not None and (event.options.disable_notifications or bool(event.options.notifications))


def decide(event: Event, book: RuleBook, admin: AdminExecution | UnknownExecution | None = None) -> Decision:
    """Say who is to be told of a terminal event, by which rules.

    `admin` is what FlyteAdmin said of the execution; None where it wasn't asked.
    """
    own = _own_rules(event)
    entries = book.entries_for(event)
    plan = entries[0] if entries else None
    if event.options is not None and event.options.disable_notifications:
        disabled_by_of = "options.disable_notifications"
        looks = _set_aside([*own, *(plan.rules if plan else ())], f"silenced by {disabled_by_of}")
        return Decision(Verdict.DISABLED, f"{disabled_by_of} is set", looks, disabled_by_of)
    if own:
        replaced = _set_aside(plan.rules if plan else (), "replaced by the execution's own list")
        return _verdict(event, (*_match(event, own), *replaced), "the execution's own list")
    if isinstance(admin, AdminExecution):
        return _resolved(event, admin, plan.rules if plan else ())
    if plan is None:
        return _no_rules(event, book) if admin is None else Decision(Verdict.RULES_UNKNOWN, admin.reason)
    instead = f" ({admin.reason})" if admin is not None else ""
    whose = f"the rules of {plan.key}"
    farther = _set_aside([rule for entry in entries[1:] for rule in entry.rules], f"{whose} are closer and hold alone")
    return _verdict(event, (*_match(event, plan.rules), *farther), f"{whose}{instead}")


def _resolved(event: Event, admin: AdminExecution, files: tuple[Rule, ...]) -> Decision:
    """The decision by what flyteadmin resolved; what the files say is only mentioned."""
    beside = _set_aside(files, "FlyteAdmin's answer goes before files")
    if admin.disabled:
        disabled_by_of = "spec.disable_all"
        looks = (*_set_aside(admin.replaced, f"silenced by {disabled_by_of}"), *beside)
        return Decision(
            Verdict.DISABLED, f"{disabled_by_of} is set on the execution in FlyteAdmin", looks, disabled_by_of
        )
    replaced = _set_aside(admin.replaced, "replaced by the execution's own list")
    whose = "the execution's own list" if admin.own else f"the rules of {admin.launch_plan or 'its launch plan'}"
    decision = _verdict(event, (*_match(event, admin.rules), *replaced, *beside), f"{whose} in FlyteAdmin")
    if not admin.refused:
        return decision
    return replace(decision, reason=f"{decision.reason}; can't hold: {'; '.join(admin.refused)}")


def disabled_by_of(verdict: str, reason: str) -> str | None:
    """What silenced an event, from the verdict and the reason that the ledger keeps; None where nothing did.

    The reason of a silenced event begins with its silencer.
    """
    return reason.partition(" ")[0] if verdict == Verdict.DISABLED else None


def _own_rules(event: Event) -> list[Rule]:
    if event.options is None:
        return []
    return [Rule(rule, f"options.notifications[{at}]") for at, rule in enumerate(event.options.notifications)]


def _match(event: Event, rules: list[Rule] | tuple[Rule, ...]) -> tuple[Considered, ...]:
    phase, wanted = event.phase, f"{event.phase} is among its phases"
    return tuple(
        [
            Considered(rule, matched=True, reason=wanted)
            if phase in rule.notification.phases
            else Considered(rule, matched=False, reason=f"wants {', '.join(rule.notification.phases)}, not {phase}")
            for rule in rules
        ]
    )


def _set_aside(rules: list[Rule] | tuple[Rule, ...], reason: str) -> tuple[Considered, ...]:
    return tuple(Considered(rule, matched=False, reason=reason, holds=False) for rule in rules)


def _verdict(event: Event, considered: tuple[Considered, ...], whose: str) -> Decision:
    matched = sum([look.matched for look in considered])
    if matched:
        rules = "1 rule" if matched == 1 else f"{matched} rules"
        return Decision(Verdict.MATCHED, f"{rules} of {whose} matched", considered)
    return Decision(Verdict.NO_MATCHING_RULE, f"nothing in {whose} wants {event.phase}", considered)


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
    return Decision(Verdict.NO_MATCHING_RULE, f"no rules for launch plan {event.launch_plan}{known}")
