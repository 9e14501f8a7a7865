"""Says who would be notified, and why: of an event, or of a launch plan's executions. Records and sends nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from dispatcher.clock import Clock
from dispatcher.explain import Explanation, refers_to
from dispatcher.holding.covering import HELD_KINDS
from dispatcher.holding.windows import QuietHours
from dispatcher.model.delivery import Delivery, RuleRef, State
from dispatcher.model.event import EntityId, Event, ExecutionId
from dispatcher.model.phase import Phase
from dispatcher.parsing.nearest import nearest
from dispatcher.planning.planner import Planner
from dispatcher.rendering.cause import cause_of
from dispatcher.rules import AdminExecution, Decision, Rule, RuleBook, UnknownExecution, decide, decides_itself
from dispatcher.rules.key_tests import joined
from dispatcher.rules.owners import OWNER

PLANNED = "planned"
"""The state of a delivery that would be sent. It is not in the ledger."""
NOT_TERMINAL = "not_terminal"
"""The verdict about an event whose phase is not terminal."""


class SourceOfRules(Protocol):
    """FlyteAdmin, as far as a dry run asks it. Both methods raise FlyteAdminUnavailable."""

    async def look_up(self, execution: ExecutionId) -> AdminExecution | UnknownExecution: ...

    async def launch_plan(self, plan: EntityId) -> AdminExecution | UnknownExecution: ...


@dataclass(frozen=True, slots=True)
class PhaseForecast:
    """Who would be notified of an execution that enters a phase."""

    explanation: Explanation
    """With the deliveries of every execution: those by the rules and routes that match whatever its other facts are."""
    possible: Sequence[Mapping[str, Any]] = ()
    """The routes that match some executions, or notify the owner: the route's name and place, the facts it depends on,
    and its deliveries."""
    left_out: int = 0
    """The number of such routes that are not listed, because there are too many."""

    @property
    def notified(self) -> bool:
        """True if somebody may be notified."""
        return bool(self.explanation.deliveries or self.possible)

    def as_data(self) -> dict[str, Any]:
        return {**self.explanation.as_data(), "possible": self.possible, "possible_left_out": self.left_out}


@dataclass(frozen=True, slots=True)
class LaunchPlanForecast:
    """Who would be notified of a launch plan's executions."""

    plan: EntityId
    """With the version whose rules are shown, if FlyteAdmin gave one."""
    known: bool
    """True if FlyteAdmin or a file has rules for the launch plan, or an empty list of rules."""
    hint: str
    """Similar launch plans that have rules, or else all; empty if this one is known, or if none has rules."""
    phases: dict[Phase, PhaseForecast]

    @property
    def notified(self) -> bool:
        """True if somebody may be notified. Routes also apply to launch plans that nobody knows."""
        return any(forecast.notified for forecast in self.phases.values())

    def as_data(self) -> dict[str, Any]:
        """Return the forecast in the form that `--json` and the API print."""
        return {
            "launch_plan": {name: getattr(self.plan, name) for name in ("project", "domain", "name", "version")},
            "known": self.known,
            "hint": self.hint,
            "phases": [forecast.as_data() for forecast in self.phases.values()],
        }


@dataclass(frozen=True, slots=True)
class DryRun:
    """Decides and plans like intake, with today's rules."""

    rules: Callable[[], RuleBook]
    planner: Planner
    clock: Clock
    admin: SourceOfRules | None
    """FlyteAdmin; None if it is not configured."""

    async def of_event(self, event: Event) -> Explanation:
        """Explain what the event would lead to. Raises FlyteAdminUnavailable."""
        answer, book = None, self.rules()
        if self.admin is not None and not decides_itself(event, book):
            answer = await self.admin.look_up(event.execution)
            if isinstance(answer, AdminExecution):
                event = answer.complete(event)
        shown = {"key": event.key, **event.model_dump(mode="json", exclude_defaults=True)}
        return self._explain(event, book, decide(event, book, answer), shown)

    async def of_launch_plan(self, plan: EntityId, phases: Iterable[Phase]) -> LaunchPlanForecast:
        """Explain who would be notified of an execution that starts now and enters each of these phases.

        The execution has no rules of its own. Raises FlyteAdminUnavailable.
        """
        answer = await self.admin.launch_plan(plan) if self.admin is not None else None
        workflow = None
        if isinstance(answer, AdminExecution) and answer.launch_plan is not None:
            plan, workflow = answer.launch_plan, answer.workflow
        execution = ExecutionId(project=plan.project, domain=plan.domain, name="any")
        explained, book = {}, self.rules()
        known = isinstance(answer, AdminExecution)
        for phase in phases:
            event = Event(
                execution=execution, phase=phase, occurred_at=self.clock.now(), launch_plan=plan, workflow=workflow
            )
            explained[phase] = self._forecast(event, book, answer)
            known = known or bool(book.entries_for(event))
        plans = {str(key) for key in book.plans}
        hint = nearest(str(plan), plans) if plans and not known else ""
        return LaunchPlanForecast(plan, known, hint, explained)

    def _forecast(
        self, event: Event, book: RuleBook, answer: AdminExecution | UnknownExecution | None
    ) -> PhaseForecast:
        decision, owners = decide(event, book, answer), book.routes.owners
        to_owner: list[Rule] = []
        if owners is not None and owners.unknown(event):
            to_owner = [one.rule for one in decision.considered if one.rule.owner is not None]
            others = tuple([one for one in decision.considered if one.rule.owner is None])
            decision = replace(decision, considered=others, owner=None)
        explanation = self._explain(event, book, decision, {"phase": event.phase})
        if event.is_canary:
            return PhaseForecast(explanation)
        routes, left_out = book.routes.possible(event)
        possible = [self._possible_data(event, book, one.route.rules, one.depends_on, one.condition) for one in routes]
        if owners is not None and to_owner:
            listed = {one.route.name for one in routes}
            keys = tuple(sorted(owners.keys_needing_admin()))
            condition = f"{joined(keys, 'and')} say who the owner is"
            possible += [
                self._possible_data(event, book, [rule], keys, condition)
                for rule in to_owner
                if rule.name not in listed
            ]
        return PhaseForecast(explanation, possible, left_out)

    def _possible_data(
        self, event: Event, book: RuleBook, rules: Sequence[Rule], depends_on: Sequence[str], condition: str
    ) -> dict[str, Any]:
        """Return a route that applies to some executions, or to a different owner for each. `rules`: the route's."""
        to_owner = [rule for rule in rules if rule.names_owner or rule.owner is not None]
        planned = self.planner.plan(event, [rule for rule in rules if rule not in to_owner], now=self.clock.now())
        return {
            "name": rules[0].name,
            "defined_at": rules[0].defined_at,
            "depends_on": depends_on,
            "condition": condition,
            "deliveries": [*self._planned_data(planned, book), *map(_to_owner_data, to_owner)],
        }

    def _explain(self, event: Event, book: RuleBook, decision: Decision, shown: dict[str, Any]) -> Explanation:
        verdict, reason = str(decision.verdict), decision.full_reason
        if not event.phase.terminal:
            verdict, reason = NOT_TERMINAL, "only terminal events cause notifications"
        planned = self.planner.plan(event, decision.matched, now=self.clock.now())
        cause = cause_of(event)
        return Explanation(
            event={
                **shown,
                "verdict": verdict,
                "reason": reason,
                "rules_version": book.version,
                "cause": cause.fingerprint,
                "cause_name": cause.name,
            },
            rules=[rule.as_data() for rule in decision.considered],
            deliveries=[*self._planned_data(planned, book)],
            disabled_by=decision.disabled_by,
        )

    def _planned_data(self, planned: Iterable[Delivery], book: RuleBook) -> Iterator[dict[str, Any]]:
        for delivery in planned:
            quiet_hours: Sequence[Sequence[QuietHours]] = ()
            if delivery.kind in HELD_KINDS and delivery.addresses:
                quiet_hours = self.planner.quiet_hours_of(delivery, book.routes)
            yield {
                "channel": delivery.channel,
                "recipients": delivery.recipients,
                "state": PLANNED if delivery.state is State.WAITING else delivery.state,
                "reason": delivery.reason,
                "rules": [rule._asdict() for rule in delivery.rules],
                "addresses": delivery.addresses,
                "severity": delivery.severity,
                "held_until": delivery.quiet.until if delivery.quiet is not None else None,
                "may_hold": [
                    *(f"quiet hours of {one.by}: {one}" for group in quiet_hours for one in group),
                    *([str(delivery.digest)] if delivery.digest is not None else []),
                ],
            }


def why(explanation: Explanation, delivery: Mapping[str, Any]) -> str:
    """Return why a delivery would be sent, or why it would be dead."""
    recipients = {recipient.casefold() for recipient in delivery["recipients"]}
    given: list[str] = []
    for ref in delivery["rules"]:  # all rules of a route have the same place
        rules = [rule for rule in explanation.rules if rule["matched"] and refers_to(rule, ref)]
        naming = [rule for rule in rules if recipients & {name.casefold() for name in rule["recipients"]}]
        given += [rule["reason"] for rule in naming or [rule for rule in rules if not rule["channel"]] or rules]
    return str(delivery["reason"] or "; ".join(dict.fromkeys(given)))


def may_hold(delivery: Mapping[str, Any]) -> str:
    """Return what holds a planned delivery, or may hold it, in words; empty if nothing may, or if it is recorded."""
    until: datetime | None = delivery.get("held_until")
    held = f"held until {until:%Y-%m-%d %H:%M} UTC" if until is not None else ""
    return "; ".join([held, *delivery.get("may_hold", ())] if held else delivery.get("may_hold", ()))


def _to_owner_data(rule: Rule) -> dict[str, Any]:
    """Return the delivery to an owner who is not known before there is an execution."""
    return {
        "channel": "",
        "recipients": [OWNER],
        "state": PLANNED,
        "reason": "",
        "rules": [RuleRef(rule.name, rule.defined_at, owner=True)._asdict()],
        "addresses": [],
        "severity": rule.severity,
        "held_until": None,
        "may_hold": [],
    }
