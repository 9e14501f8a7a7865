"""What FlyteAdmin says of one execution: its facts, and its rules as the engine resolved them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from dispatcher.model.event import EntityId, Event, ExecutionError
from dispatcher.rules.rulebook import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminExecution:
    """An execution as FlyteAdmin knows it (flyteidl `admin.Execution`)."""

    launch_plan: EntityId | None = None
    workflow: EntityId | None = None
    principal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    started_at: datetime | None = None
    duration: timedelta | None = None
    error: ExecutionError | None = None
    """Why it failed, or why it was aborted and by whom."""
    rules: tuple[Rule, ...] = ()
    """`closure.notifications`: what flyteadmin itself would go by when the execution ends."""
    refused: tuple[str, ...] = ()
    """Why some of the notifications can't hold: flyteadmin lets an empty phase list through, which never fires."""
    own: bool = False
    """The rules are the execution's own list, not the launch plan's."""
    disabled: bool = False
    """Started with notifications disabled (`spec.disable_all`)."""
    replaced: tuple[Rule, ...] = ()
    """The launch plan's rules, where something else holds in their place."""

    def complete(self, event: Event) -> Event:
        """The event, with what it doesn't say itself; what it says is never overruled."""
        added: dict[str, Any] = {}
        for name in ("launch_plan", "workflow", "principal", "labels", "error"):
            if not getattr(event, name) and getattr(self, name):
                added[name] = getattr(self, name)
        if event.started_at is None and (started := self._started(event.occurred_at)) is not None:
            added["started_at"] = started
        return event.model_copy(update=added) if added else event

    def _started(self, ended: datetime) -> datetime | None:
        """When it started; by its duration where two clocks disagree so much that it would have ended before."""
        if self.started_at is not None and self.started_at <= ended:
            return self.started_at
        if self.duration is None:
            return self.started_at
        try:
            return ended - self.duration
        except OverflowError:
            return self.started_at


@dataclass(frozen=True, slots=True)
class UnknownExecution:
    """FlyteAdmin answered, and will not say: the execution is unknown to it, or hidden from us."""

    reason: str
