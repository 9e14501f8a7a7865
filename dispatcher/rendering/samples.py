"""Events with which templates are previewed and checked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from dispatcher.flyte.event_files import read_event
from dispatcher.model.event import Event
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.rendering.folders import built_in_folder


def sample_event(phase: Phase, *, finished: datetime | None = None) -> Event:
    """Return a realistic event of a terminal phase. `finished`: when its execution finished; None for a fixed time."""
    event = read_event(built_in_folder() / "samples" / f"{phase.lower()}.json")
    if finished is None or event.started_at is None:
        return event
    started = finished - (event.occurred_at - event.started_at)
    return event.model_copy(update={"occurred_at": finished, "started_at": started})


def sample_events() -> Iterator[tuple[str, Event]]:
    """Yield one event of each terminal phase, and one event that has only the required fields. Each event comes with a
    label for messages about problems.
    """
    for phase in sorted(TERMINAL):
        yield phase, sample_event(phase)
    full = sample_event(Phase.FAILED)
    yield "an event without details", Event(execution=full.execution, phase=full.phase, occurred_at=full.occurred_at)
