"""The rules that were read from files: of launch plans, and routes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dispatcher.model.event import EntityId, Event, shortened
from dispatcher.model.phase import Phase
from dispatcher.rules.routes import RouteBook
from dispatcher.rules.rule import Rule

ANY = "*"
"""Stands for any version of a launch plan."""


class PlanKey(NamedTuple):
    """Names one version of a launch plan, or any of its versions."""

    project: str
    domain: str
    name: str
    version: str = ANY

    def __str__(self) -> str:
        version = "" if self.version == ANY else f"@{shortened(self.version)}"
        return f"{self.project}/{self.domain}/{shortened(self.name)}{version}"


@dataclass(frozen=True, slots=True)
class PlanRules:
    """The rules of one launch plan. An empty list is valid: the launch plan then sends no notifications."""

    key: PlanKey
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class RuleBook:
    """The rules of all launch plans, and all routes, as the rule files were last loaded."""

    plans: Mapping[PlanKey, PlanRules] = field(default_factory=dict)
    routes: RouteBook = field(default_factory=RouteBook)
    version: str = ""
    """A hash of the contents of all files that are in effect; empty if there are none."""
    contacts: Mapping[str, int] = field(default_factory=dict)
    """Mapping from each contact's name to the number of its recipients."""
    _versions: Mapping[tuple[str, str, str], list[str]] = field(init=False, repr=False, compare=False)
    """Mapping from project, domain and name to the versions that have rules.

    Without it, each event that has no rules needs a scan of all launch plans (10 ms for 100,000).
    """

    _phases: Mapping[tuple[str, str], set[Phase]] = field(init=False, repr=False, compare=False)
    """Mapping from project and domain to the phases that rules of its launch plans name."""

    def __post_init__(self) -> None:
        versions: dict[tuple[str, str, str], list[str]] = {}
        phases: dict[tuple[str, str], set[Phase]] = {}
        for (project, domain, name, version), plan in sorted(self.plans.items()):
            versions.setdefault((project, domain, name), []).append(version)
            phases.setdefault((project, domain), set()).update(*[rule.notification.phases for rule in plan.rules])
        object.__setattr__(self, "_versions", versions)
        object.__setattr__(self, "_phases", phases)

    def rules(self) -> Iterator[Rule]:
        """Yield all rules, of launch plans and of routes."""
        for plan in self.plans.values():
            yield from plan.rules
        for route in self.routes.routes:
            yield from route.rules

    def entries_for(self, event: Event) -> list[PlanRules]:
        """Return the entries for the event's launch plan: the event's version, then any version. Only the rules of the
        first entry apply.

        There are none if the event does not name its launch plan, or a single task was executed.
        """
        plan = event.launch_plan
        if plan is None or plan.resource_type:
            return []
        any_version = PlanKey(plan.project, plan.domain, plan.name)
        keys = (any_version._replace(version=plan.version), any_version)
        return [entry for key in keys if (entry := self.plans.get(key)) is not None]

    def number_of_recipients(self, rules: Sequence[Rule]) -> int:
        """Return how many recipients the rules name. A contact counts once, with all its recipients."""
        named = [recipient for rule in rules for recipient in rule.notification.recipients]
        contacts = self.contacts.keys() & named
        others = [recipient for recipient in named if recipient not in contacts] if contacts else named
        return len(others) + sum([self.contacts[name] for name in contacts])

    def may_match(self, event: Event) -> bool:
        """True if a launch plan of the event's project and domain has a rule for the event's phase."""
        return event.phase in self._phases.get((event.execution.project, event.execution.domain), ())

    def versions_of(self, plan: EntityId) -> list[str]:
        """Return the versions of a launch plan that have rules. Shown as a hint if the event's version has no rules."""
        if plan.resource_type:
            return []
        return list(self._versions.get((plan.project, plan.domain, plan.name), ()))
