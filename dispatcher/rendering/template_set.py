"""Templates of an operator's own for some events or recipients alone."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from channels.common.comma_list import listed
from dispatcher.model.event import Event

Patterns = Annotated[tuple[str, ...], BeforeValidator(listed)]
"""Any of them; `*` stands for any characters, `?` for one, `[ab]` for one of these."""


class Override(BaseModel):
    """Folders of templates, and when they hold: where all that is said of an event and a recipient is true."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: Patterns = ()
    domain: Patterns = ()
    launch_plan: Patterns = ()
    """The launch plan's name; an event that names none is matched by no pattern but `*`."""
    labels: Mapping[str, str] = Field(default_factory=dict)
    """Of the execution: each must be there, with a value that its pattern matches."""
    recipient: Patterns = ()
    """As a rule writes it: a mail address, `#channel`, a service's alias. Upper and lower case are one."""
    path: Annotated[tuple[Path, ...], BeforeValidator(listed)] = Field(min_length=1)
    """Folders laid out as the built-in `templates/`."""

    @model_validator(mode="after")
    def _says_when(self) -> Self:
        if not (self.project or self.domain or self.launch_plan or self.labels or self.recipient):
            raise ValueError(
                "says of nothing when it holds: give project, domain, launch_plan, labels or recipient,"
                " or use templates.path"
            )
        return self

    def holds(self, event: Event, recipient: str) -> bool:
        """`recipient`: as the rule writes it; empty where no one recipient is meant."""
        execution = event.execution
        return (
            _any(self.project, execution.project)
            and _any(self.domain, execution.domain)
            and _any(self.launch_plan, event.launch_plan.name if event.launch_plan is not None else "")
            and all(
                name in event.labels and fnmatchcase(event.labels[name], pattern)
                for name, pattern in self.labels.items()
            )
            and _any(tuple(one.casefold() for one in self.recipient), recipient.casefold())
        )


def _any(patterns: tuple[str, ...], text: str) -> bool:
    return not patterns or any(fnmatchcase(text, pattern) for pattern in patterns)
