"""What templates see: plain, cleaned values; whatever an event doesn't say is empty, never None."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from urllib.parse import quote

import humanize

from dispatcher.event import EntityId, Event
from dispatcher.phase import Phase
from dispatcher.rendering.text import clean, one_line
from dispatcher.rendering.traceback import tell

LONGEST_URL = 1500
LABELS = 20
"""So many labels are shown; an event may bring thousands."""
_URL = re.compile(r"https?://[^\s<>\"'|\\^`{}\x00-\x20]{1,1490}")
_DONE = {
    Phase.SUCCEEDED: ("succeeded", "info", "#2eb67d", "✅"),
    Phase.FAILED: ("failed", "error", "#e01e5a", "❌"),
    Phase.ABORTED: ("was aborted", "warning", "#ecb22e", "🛑"),
    Phase.TIMED_OUT: ("timed out", "error", "#e8912d", "⏱️"),
}


@dataclass(frozen=True, slots=True)
class Entity:
    """A launch plan or a workflow; all empty where the event doesn't name it."""

    project: str = ""
    domain: str = ""
    name: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """The execution's error; all empty where there is none."""

    summary: str = ""
    """The exception's line."""
    frames: str = ""
    """The last frames of the user's own code."""
    message: str = ""
    """All of it, without terminal colours."""
    code: str = ""
    """As Flyte has it: `USER:Unknown`."""
    kind: str = ""
    """`user` or `system`: whose fault the engine thinks it is; empty where it doesn't know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The variables of every template."""

    project: str
    """The execution's project."""
    domain: str
    """The execution's domain."""
    name: str
    """The execution's name."""
    what: str
    """What ran, as people call it: the launch plan's name, else the workflow's, else the execution's."""
    phase: str
    """`succeeded`, `failed`, `aborted` or `timed_out`."""
    done: str
    """What happened, as a verb: `succeeded`, `failed`, `was aborted`, `timed out`."""
    severity: str
    """PagerDuty's severity for the phase: critical, error, warning or info."""
    color: str
    """The phase's colour, `#rrggbb`."""
    symbol: str
    """The phase as one emoji."""
    launch_plan: Entity = Entity()
    """The launch plan: project, domain, name, version."""
    workflow: Entity = Entity()
    """The workflow: project, domain, name, version."""
    principal: str = ""
    """Who started it."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The execution's labels, up to 20."""
    url: str = ""
    """The execution's page in Flyte's console."""
    occurred_at: str = ""
    """When it ended, in UTC: `2026-11-20 09:14:21 UTC`."""
    timestamp: str = ""
    """When it ended, ISO 8601 with zone."""
    started_at: str = ""
    """When it started, in UTC."""
    duration: str = ""
    """How long it took: `14 minutes and 17 seconds`."""
    error: Failure = Failure()
    """Why it failed: summary, frames, message, code, kind."""

    def variables(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


def context_of(event: Event, console_url: str) -> Context:
    """What templates may say of a terminal event."""
    done, severity, color, symbol = _DONE[event.phase]
    plan, workflow = _entity(event.launch_plan), _entity(event.workflow)
    execution = event.execution
    took = event.occurred_at - event.started_at if event.started_at is not None else None
    return Context(
        project=one_line(execution.project),
        domain=one_line(execution.domain),
        name=one_line(execution.name),
        what=plan.name or workflow.name or one_line(execution.name),
        phase=event.phase.lower(),
        done=done,
        severity=severity,
        color=color,
        symbol=symbol,
        launch_plan=plan,
        workflow=workflow,
        principal=one_line(event.principal),
        labels={one_line(name): one_line(value) for name, value in islice(event.labels.items(), LABELS)},
        url=_url(event, console_url),
        occurred_at=_for_people(event.occurred_at),
        timestamp=event.occurred_at.isoformat(),
        started_at=_for_people(event.started_at) if event.started_at is not None else "",
        duration=humanize.precisedelta(took, format="%0.0f") if took is not None and took.total_seconds() > 0 else "",
        error=_failure(event),
    )


def _for_people(time: datetime) -> str:
    """The moment in UTC, whatever zone the engine wrote it in; at the calendar's very ends, as it is written."""
    try:
        time = time.astimezone(UTC)
    except OverflowError:
        time = time.replace(tzinfo=UTC)
    return f"{time.isoformat(' ', 'seconds')[:19]} UTC"


def _entity(entity: EntityId | None) -> Entity:
    if entity is None:
        return Entity()
    return Entity(*(one_line(part) for part in (entity.project, entity.domain, entity.name, entity.version)))


def _failure(event: Event) -> Failure:
    if event.error is None:
        return Failure()
    story = tell(event.error.message)
    kind = event.error.kind.lower()
    return Failure(
        story.summary,
        story.frames,
        story.message,
        one_line(event.error.code),
        kind if kind in {"user", "system"} else "",
    )


def _url(event: Event, console_url: str) -> str:
    """The page of the execution; an address that could be anything but a link is none, and so is an endless one."""
    if _URL.fullmatch(event.url):
        return event.url
    if not console_url:
        return ""
    execution = event.execution
    path = ("projects", execution.project, "domains", execution.domain, "executions", execution.name)
    url = "/".join([console_url.rstrip("/"), *(quote(clean(part), safe="") for part in path)])
    return url if len(url) <= LONGEST_URL else ""
