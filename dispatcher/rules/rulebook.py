"""The rules that were read from files: of launch plans, and routes. `*` means any version or any launch plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dispatcher.model.event import EntityId, Event, shortened
from dispatcher.rules.routes import RouteBook
from dispatcher.rules.rule import Rule

ANY = "*"


class PlanKey(NamedTuple):
    """Names a launch plan. Version `*` means any version. Name `*` means any launch plan of the project and domain."""

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
    _versions: Mapping[tuple[str, str, str], list[str]] = field(init=False, repr=False, compare=False)
    """Mapping from project, domain and name to the versions that have rules.

    Without it, each event that has no rules needs a scan of all launch plans (10 ms for 100,000).
    """

    def __post_init__(self) -> None:
        versions: dict[tuple[str, str, str], list[str]] = {}
        for project, domain, name, version in sorted(self.plans):
            versions.setdefault((project, domain, name), []).append(version)
        object.__setattr__(self, "_versions", versions)

    def rules(self) -> Iterator[Rule]:
        """Yield all rules, of launch plans and of routes."""
        for plan in self.plans.values():
            yield from plan.rules
        for route in self.routes.routes:
            yield from route.rules

    def entries_for(self, event: Event) -> list[PlanRules]:
        """Return the entries for the event's launch plan, most specific first. Only the rules of the first entry apply.

        The order is: the event's version, any version, any launch plan of the project and domain. If the event does not
        name its launch plan, or a single task was executed, only the entry for any launch plan is returned.
        """
        return [entry for key in _most_specific_first(event) if (entry := self.plans.get(key)) is not None]

    def versions_of(self, plan: EntityId) -> list[str]:
        """Return the versions of a launch plan that have rules. Shown as a hint if the event's version has no rules."""
        if plan.resource_type:
            return []
        return list(self._versions.get((plan.project, plan.domain, plan.name), ()))


def _most_specific_first(event: Event) -> list[PlanKey]:
    plan = event.launch_plan
    if plan is None:
        return [PlanKey(event.execution.project, event.execution.domain, ANY)]
    if plan.resource_type:
        return [PlanKey(plan.project, plan.domain, ANY)]
    return [
        PlanKey(plan.project, plan.domain, plan.name, plan.version),
        PlanKey(plan.project, plan.domain, plan.name),
        PlanKey(plan.project, plan.domain, ANY),
    ]
