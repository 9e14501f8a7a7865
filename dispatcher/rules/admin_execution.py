"""FlyteAdmin's data about one execution: its details and its effective rules. Does no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from dispatcher.model.event import EntityId, Event, ExecutionError, ExecutionId
from dispatcher.rules.rule import Rule

_COMPLETED = ("launch_plan", "workflow", "principal", "labels", "error", "mode", "parent", "reference_execution")
"""The fields of an event that FlyteAdmin's data fill in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminExecution:
    """FlyteAdmin's data about an execution (flyteidl `admin.Execution`), as far as the dispatcher uses the data."""

    launch_plan: EntityId | None = None
    workflow: EntityId | None = None
    principal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    started_at: datetime | None = None
    duration: timedelta | None = None
    error: ExecutionError | None = None
    """Why the execution failed, or why and by whom it was aborted."""
    rules: tuple[Rule, ...] = ()
    """The effective rules (`closure.notifications`). FlyteAdmin itself uses them when the execution finishes."""
    refused: tuple[str, ...] = ()
    """Why some of FlyteAdmin's rules are invalid. For example, FlyteAdmin accepts a rule without phases, which no event
    can match."""
    excess: str = ""
    """A sentence if FlyteAdmin has more rules or recipients for the execution than one event may have. `rules` is then
    empty."""
    own: bool = False
    """True if `rules` is the execution's own list. False if `rules` is the launch plan's list."""
    mode: str = ""
    """How the execution was started: one of `MODES`."""
    parent: ExecutionId | None = None
    """The execution that started this one."""
    reference_execution: ExecutionId | None = None
    """The execution that this one recovers or relaunches."""
    disabled: bool = False
    """True if the execution was started with `spec.disable_all`."""
    replaced: tuple[Rule, ...] = ()
    """The launch plan's rules, if the execution's own list or `disable_all` overrides them."""

    def complete(self, event: Event) -> Event:
        """Return the event, with its empty fields filled in from FlyteAdmin's data. Fields with a value are kept.

        A field that is still empty is known to be absent.
        """
        added: dict[str, Any] = {"looked_up": True}
        for name in _COMPLETED:
            if not getattr(event, name) and getattr(self, name):
                added[name] = getattr(self, name)
        if event.started_at is None and (started := self._start_time(event.occurred_at)) is not None:
            added["started_at"] = started
        return event.model_copy(update=added)

    def _start_time(self, finished_at: datetime) -> datetime | None:
        """Return when the execution started.

        If clocks differ, `started_at` may be later than `finished_at`. Then return `finished_at` minus the duration.
        """
        if self.started_at is not None and self.started_at <= finished_at:
            return self.started_at
        if self.duration is None:
            return self.started_at
        try:
            return finished_at - self.duration
        except OverflowError:
            return self.started_at


@dataclass(frozen=True, slots=True)
class UnknownExecution:
    """Used if FlyteAdmin does not know the execution, denies access to it, or sent unusable data about it."""

    reason: str
