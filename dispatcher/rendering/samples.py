"""Events, digests and summaries with which templates are previewed and checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256

from dispatcher.flyte.event_files import read_event
from dispatcher.model.event import Event
from dispatcher.model.hold import HoldReason
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.model.summary import MAX_LISTED, Group, Summary
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


def sample_summary(reason: HoldReason) -> Summary:
    """Return a realistic digest, or a summary of what quiet hours or a silence held."""
    until = sample_event(Phase.FAILED).occurred_at.replace(minute=15, second=0)
    since = until - (timedelta(minutes=15) if reason is HoldReason.DIGEST else timedelta(hours=9, minutes=15))
    given = [
        ("train.daily", Phase.FAILED, "ValueError: learning rate ... is too high (train.py, train)", 291),
        ("report.weekly", Phase.FAILED, "ConnectionError: ... refused the connection (report.py, publish)", 6),
        ("features.hourly", Phase.TIMED_OUT, "", 2),
        ("", Phase.ABORTED, "", 1),
    ]
    groups = [_sample_group(*one, since, until) for one in given]
    by = {HoldReason.SILENCE: "7f3a2c01 (maintenance of the cluster)", HoldReason.WINDOW: "contact ml-team"}
    return Summary(
        key="4f1d2a9c" * 4,
        reason=reason,
        by=by.get(reason, ""),
        since=since,
        until=until,
        number=sum(group.number for group in groups) + 7 + 1,
        groups=groups,
        more=7,
        resolved=0 if reason is HoldReason.DIGEST else 280,
        notices=1,
    )


def _sample_group(plan: str, phase: Phase, cause_name: str, number: int, since: datetime, until: datetime) -> Group:
    names = [sha256(f"{plan} {at}".encode()).hexdigest()[:19] for at in range(min(number, MAX_LISTED))]
    return Group(
        launch_plan=f"flytesnacks/production/{plan}" if plan else "",
        phase=phase.value,
        cause=f"v1:{sha256(cause_name.encode()).hexdigest()[:16]}" if cause_name else "",
        cause_name=cause_name,
        number=number,
        first_at=since + timedelta(seconds=11),
        last_at=until - timedelta(seconds=7),
        executions=[f"flytesnacks/production/a{name}" for name in names],
    )


def sample_summaries() -> Iterator[tuple[str, Summary]]:
    """Yield a digest and a summary of each kind, and one with the fewest facts, each with a label."""
    yield "a digest", sample_summary(HoldReason.DIGEST)
    yield "a summary of quiet hours", sample_summary(HoldReason.WINDOW)
    silenced = sample_summary(HoldReason.SILENCE)
    yield "a summary of a silence", silenced
    yield "a summary of notices alone", replace(silenced, groups=(), number=1, more=0, resolved=0)
