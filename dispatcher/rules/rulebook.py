"""The launch plans' rules by launch plan, with `*` for any version or any launch plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dispatcher.model.event import EntityId, Event
from dispatcher.model.notification import Notification

ANY = "*"


class PlanKey(NamedTuple):
    """A launch plan; `*` as its version or its name stands for all of them."""

    project: str
    domain: str
    name: str
    version: str = ANY

    def __str__(self) -> str:
        version = "" if self.version == ANY else f"@{self.version}"
        return f"{self.project}/{self.domain}/{self.name}{version}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One notification and where it stands, in words: `options[0]`, `plans/train.yaml:12`."""

    notification: Notification
    source: str


@dataclass(frozen=True, slots=True)
class PlanRules:
    """One launch plan's rules. An empty list is an answer too: nobody is told."""

    key: PlanKey
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class RuleBook:
    """All launch plans' rules, as they stood when they were last read."""

    plans: Mapping[PlanKey, PlanRules] = field(default_factory=dict)
    _versions: Mapping[tuple[str, str, str], list[str]] = field(init=False, repr=False, compare=False)
    """By launch plan: looking through all of them for each event without rules took 10 ms with 100,000."""

    def __post_init__(self) -> None:
        versions: dict[tuple[str, str, str], list[str]] = {}
        for project, domain, name, version in sorted(self.plans):
            versions.setdefault((project, domain, name), []).append(version)
        object.__setattr__(self, "_versions", versions)

    def entries_for(self, event: Event) -> list[PlanRules]:
        """The entries for the event's launch plan, the closest first: its rules hold, and no others.

        Closest first: this version, any version, any launch plan of the project and domain. An event
        that doesn't say which launch plan it belongs to is served by the last alone.
        """
        return [entry for key in _closest_first(event) if (entry := self.plans.get(key)) is not None]

    def versions_of(self, plan: EntityId) -> list[str]:
        """The versions of this launch plan that have rules, for telling people what they may have meant."""
        return list(self._versions.get((plan.project, plan.domain, plan.name), ()))


def _closest_first(event: Event) -> list[PlanKey]:
    plan = event.launch_plan
    if plan is None:
        return [PlanKey(event.execution.project, event.execution.domain, ANY)]
    return [
        PlanKey(plan.project, plan.domain, plan.name, plan.version),
        PlanKey(plan.project, plan.domain, plan.name),
        PlanKey(plan.project, plan.domain, ANY),
    ]
