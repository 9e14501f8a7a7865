"""The rules from files, by launch plan, with `*` for any version or any launch plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dispatcher.model.event import EntityId, Event
from dispatcher.model.notification import Notification

ANY = "*"


class PlanKey(NamedTuple):
    """A launch plan. `*` as version means any version; `*` as name means any launch plan of the project and domain."""

    project: str
    domain: str
    name: str
    version: str = ANY

    def __str__(self) -> str:
        version = "" if self.version == ANY else f"@{self.version}"
        return f"{self.project}/{self.domain}/{self.name}{version}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One notification, and where it is defined, such as `options.notifications[0]` or `plans/train.yaml:12`."""

    notification: Notification
    defined_at: str


@dataclass(frozen=True, slots=True)
class PlanRules:
    """One launch plan's rules. An empty list is valid and means: no notifications."""

    key: PlanKey
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class RuleBook:
    """All launch plans' rules, as of the last load."""

    plans: Mapping[PlanKey, PlanRules] = field(default_factory=dict)
    _versions: Mapping[tuple[str, str, str], list[str]] = field(init=False, repr=False, compare=False)
    """Mapping from project, domain and name to the versions that have rules.

    Without it, each event that has no rules needs a scan of all launch plans (10 ms for 100,000).
    """

    def __post_init__(self) -> None:
        versions: dict[tuple[str, str, str], list[str]] = {}
        for project, domain, name, version in sorted(self.plans):
            versions.setdefault((project, domain, name), []).append(version)
        object.__setattr__(self, "_versions", versions)

    def entries_for(self, event: Event) -> list[PlanRules]:
        """The entries that fit the event's launch plan, most specific first. Only the rules of the first entry apply.

        The order is this version, any version, any launch plan of the project and domain. An event that does not name
        its launch plan fits only the entry for any launch plan.
        """
        return [entry for key in _most_specific_first(event) if (entry := self.plans.get(key)) is not None]

    def versions_of(self, plan: EntityId) -> list[str]:
        """The versions of this launch plan that have rules, as a hint if the event's version has none."""
        return list(self._versions.get((plan.project, plan.domain, plan.name), ()))


def _most_specific_first(event: Event) -> list[PlanKey]:
    plan = event.launch_plan
    if plan is None:
        return [PlanKey(event.execution.project, event.execution.domain, ANY)]
    return [
        PlanKey(plan.project, plan.domain, plan.name, plan.version),
        PlanKey(plan.project, plan.domain, plan.name),
        PlanKey(plan.project, plan.domain, ANY),
    ]
