"""The facts about an event's execution, by the keys of matchers.

A fact has a value, or is absent (None), or isn't known (`UNKNOWN`). Flyte's events lack most facts (see `Event`), so an
empty field only means that the fact is absent if FlyteAdmin was asked about the execution (`Event.looked_up`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import Enum
from operator import attrgetter
from typing import Any, Final

from dispatcher.model.event import Event
from dispatcher.model.phase import Phase


class _Unknown(Enum):
    UNKNOWN = "unknown"


UNKNOWN: Final = _Unknown.UNKNOWN
"""The value of a fact that isn't known."""

Fact = Callable[[Event], Any]
"""A function that returns a fact of an event: its value, None if it is absent, or UNKNOWN."""

ALWAYS_KNOWN = frozenset({"project", "domain", "phase"})
"""The facts that every event has."""
IN_NO_FLYTE_EVENT = frozenset({"workflow", "mode", "parent", "duration"})
"""The facts that none of Flyte's own events has."""
IN_ENRICHED_EVENTS = frozenset({"launch_plan", "version", "labels", "principal"})
"""The facts that Flyte's own events have in format v2, of successes or with `enrichAllWorkflowEventTypes`."""
IN_EVENTS_OF_FAILURES = frozenset({"error"})
"""The facts that Flyte's own events have, unless the execution was aborted."""


def _missing(event: Event) -> Any:
    return None if event.looked_up else UNKNOWN


def _launch_plan(event: Event) -> Any:
    plan = event.launch_plan
    if plan is None:
        return _missing(event)
    return None if plan.resource_type else plan.name  # a single task ran, which has no launch plan


def _version(event: Event) -> Any:
    return (event.launch_plan.version if event.launch_plan is not None else "") or _missing(event)


def _workflow(event: Event) -> Any:
    return event.workflow.name if event.workflow is not None else _missing(event)


def _duration(event: Event) -> timedelta | Any:
    """Return how long the execution ran. 0 if it ended before it started, because clocks differ."""
    if event.started_at is None:
        return _missing(event)
    return max(event.occurred_at - event.started_at, timedelta())


def _error_kind(event: Event) -> Any:
    return _of_error(event, event.error.kind.upper() if event.error is not None else "")


def _error_code(event: Event) -> Any:
    return _of_error(event, event.error.code if event.error is not None else "")


def _error_message(event: Event) -> Any:
    return _of_error(event, event.error.message if event.error is not None else "")


def _of_error(event: Event, value: str) -> Any:
    if event.phase is Phase.SUCCEEDED:  # some of Flyte's events of successes have an empty error
        return None
    return value or _missing(event)


FACTS: Mapping[str, Fact] = {
    "phase": attrgetter("phase"),
    "project": attrgetter("execution.project"),
    "domain": attrgetter("execution.domain"),
    "launch_plan": _launch_plan,
    "workflow": _workflow,
    "version": _version,
    "principal": lambda event: event.principal or _missing(event),
    "mode": lambda event: event.mode or _missing(event),
    "parent": lambda event: event.parent or _missing(event),
    "duration": _duration,
    "error.kind": _error_kind,
    "error.code": _error_code,
    "error.message": _error_message,
}
"""The facts by key. Labels are in `label`."""


def label(name: str) -> Fact:
    """Return the function that returns the value of a label. One label of an event suffices to know all of them."""

    def value(event: Event) -> Any:
        return event.labels.get(name) if event.labels else _missing(event)

    return value
