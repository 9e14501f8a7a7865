"""An entry of the setting `templates.match`: template folders that apply only to some events or recipients."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from channels.common.comma_list import comma_list
from dispatcher.model.event import Event

Patterns = Annotated[tuple[str, ...], BeforeValidator(comma_list)]
"""Patterns, at least one of which must match. An empty list matches everything. `*` matches any text, `?` matches one
character, and `[ab]` matches the letter a or b."""


class TemplateSet(BaseModel):
    """Template folders, and the conditions under which they apply. All given conditions must match."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: Patterns = ()
    domain: Patterns = ()
    launch_plan: Patterns = ()
    """Patterns for the launch plan's name. If an event has no launch plan, only the pattern `*` matches."""
    labels: Mapping[str, str] = Field(default_factory=dict)
    """Mapping from a label's name to a pattern. The execution must have each of these labels, with a matching value."""
    recipient: Patterns = ()
    """Patterns for the recipient as a rule writes it: a mail address, `#channel`, or the alias of a PagerDuty service.
    Upper and lower case count as equal."""
    path: Annotated[tuple[Path, ...], BeforeValidator(comma_list)] = Field(min_length=1)
    """Template folders, with the layout of the built-in `templates/`."""

    @model_validator(mode="after")
    def _has_a_condition(self) -> Self:
        if not (self.project or self.domain or self.launch_plan or self.labels or self.recipient):
            raise ValueError(
                "has no condition: give project, domain, launch_plan, labels or recipient, or use templates.path"
            )
        return self

    def applies_to(self, event: Event, recipient: str) -> bool:
        """True if all conditions match.

        `recipient`: the recipient as the rule writes it; empty if the message goes to no particular recipient.
        """
        execution = event.execution
        return (
            _matches(self.project, execution.project)
            and _matches(self.domain, execution.domain)
            and _matches(self.launch_plan, event.launch_plan.name if event.launch_plan is not None else "")
            and all(
                name in event.labels and fnmatchcase(event.labels[name], pattern)
                for name, pattern in self.labels.items()
            )
            and _matches(tuple(pattern.casefold() for pattern in self.recipient), recipient.casefold())
        )


def _matches(patterns: tuple[str, ...], text: str) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)
