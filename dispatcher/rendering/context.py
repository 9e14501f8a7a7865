"""What templates see: plain, cleaned values; whatever an event doesn't say is empty, never None."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from string import printable
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

import humanize

from dispatcher.model.event import EntityId, Event
from dispatcher.model.phase import Phase
from dispatcher.rendering.text import clean, cut, one_line
from dispatcher.rendering.traceback import tell

LONGEST_URL = 1500
"""Characters, with each & counted as mark-up writes it."""
LONGEST_NAME = 255
LABELS = 20
"""So many labels are shown; an event may bring thousands."""
_URL = re.compile(r"https?://[^\s<>\"'|\\^`{}\x00-\x20\x7f]+")
_SECOND, _MINUTE, _HOUR, _DAY = (timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days"))
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
    """Its project."""
    domain: str = ""
    """Its domain."""
    name: str = ""
    """Its name."""
    version: str = ""
    """Its version."""


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
    node: str = ""
    """The node that failed, where the message names it."""


class Context(NamedTuple):
    """The variables of every template. One is made for each event: a frozen dataclass of so many fields takes longer."""

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
    labels: Mapping[str, str] = MappingProxyType({})
    """The execution's labels, up to 20."""
    url: str = ""
    """The execution's page in Flyte's console."""
    logs_url: str = ""
    """Where the execution's logs are, by the setting of that name."""
    occurred_at: str = ""
    """When it ended, in UTC: `2026-11-20 09:14:21 UTC`."""
    timestamp: str = ""
    """When it ended, ISO 8601 with zone."""
    started_at: str = ""
    """When it started, in UTC."""
    duration: str = ""
    """How long it took: `14 minutes and 17 seconds`."""
    error: Failure = Failure()
    """Why it failed: summary, frames, message, code, kind, node."""
    undelivered: str = ""
    """For fallback recipients: who could not be told, and why."""
    test: str = ""
    """For a test notification: a sentence that says it is one; `what` then begins with `TEST: `."""

    def variables(self) -> dict[str, Any]:
        return self._asdict()


VARIABLES = Context._fields


def context_of(event: Event, console_url: str, logs_url: str = "", *, severity: str | None = None) -> Context:
    """What templates may say of a terminal event. `severity`: PagerDuty's, where it isn't the phase's own."""
    done, usual_severity, color, symbol = _DONE[event.phase]
    plan, workflow = _entity(event.launch_plan), _entity(event.workflow)
    execution = event.execution
    ended = _in_utc(event.occurred_at)
    started = _in_utc(event.started_at) if event.started_at is not None else None
    return Context(
        project=one_line(execution.project),
        domain=one_line(execution.domain),
        name=one_line(execution.name),
        what=plan.name or workflow.name or one_line(execution.name),
        phase=event.phase.lower(),
        done=done,
        severity=severity or usual_severity,
        color=color,
        symbol=symbol,
        launch_plan=plan,
        workflow=workflow,
        principal=_name(event.principal),
        labels={_name(name): _name(value) for name, value in islice(event.labels.items(), LABELS)},
        url=_url(event, console_url),
        logs_url=_logs_url(event, logs_url),
        occurred_at=_for_people(ended),
        timestamp=ended.isoformat(),
        started_at=_for_people(started) if started is not None else "",
        duration=_spoken(ended - started) if started is not None else "",
        error=_failure(event),
    )


@lru_cache(maxsize=1024)  # many executions are of few launch plans and workflows
def _entity(entity: EntityId | None) -> Entity:
    if entity is None:
        return Entity()
    return Entity(one_line(entity.project), one_line(entity.domain), one_line(entity.name), _name(entity.version))


def _failure(event: Event) -> Failure:
    if event.error is None:
        return Failure()
    story = tell(event.error.message)
    kind = event.error.kind.lower()
    return Failure(
        summary=story.summary,
        frames=story.frames,
        message=story.message,
        code=_name(event.error.code),
        kind=kind if kind in {"user", "system"} else "",
        node=story.node,
    )


def _name(text: str) -> str:
    """What has no limit of its own where it comes from, kept as short as names are."""
    return cut(one_line(text[: 4 * LONGEST_NAME]), LONGEST_NAME)


def _in_utc(time: datetime) -> datetime:
    """The same moment in UTC; at the calendar's very ends, where there is none, as it is written."""
    try:
        return time.astimezone(UTC)
    except OverflowError:
        return time.replace(tzinfo=UTC)


def _for_people(time: datetime) -> str:
    return f"{time.isoformat(' ', 'seconds')[:19]} UTC"


def _spoken(span: timedelta) -> str:
    """A span at a glance: no seconds beside hours, no minutes beside days; empty where it can't be right."""
    if span < _SECOND:
        return "under 1 second" if span > timedelta() else ""
    unit, one = ("hours", _HOUR) if span >= _DAY else ("minutes", _MINUTE) if span >= _HOUR else ("seconds", _SECOND)
    return _in_words(span // one, unit)


@lru_cache(maxsize=4096)  # a quarter of what the context costs, and the same few durations come again and again
def _in_words(number: int, unit: str) -> str:
    try:
        return humanize.precisedelta(timedelta(**{unit: number}), minimum_unit=unit, format="%d")
    except OverflowError:  # longer than the calendar
        return ""


def _url(event: Event, console_url: str) -> str:
    """The page of the execution, at most `LONGEST_URL`; an address that could be anything but a link is none."""
    if event.url.isprintable() and _URL.fullmatch(event.url[: LONGEST_URL + 1]):
        url = event.url if event.url.isascii() else quote(event.url, safe=printable)
        if _fits(url):
            return url
    if not console_url:
        return ""
    execution = event.execution
    path = ("projects", execution.project, "domains", execution.domain, "executions", execution.name)
    url = "/".join([console_url.rstrip("/"), *map(_quoted, path)])
    return url if _fits(url) else ""


def _logs_url(event: Event, pattern: str) -> str:
    """The page of the execution's logs, at most `LONGEST_URL`; empty where the settings name none."""
    if not pattern:
        return ""
    url = pattern
    for name, value in event.execution.model_dump().items():
        url = url.replace(f"{{{name}}}", _quoted(value))
    return url if _fits(url) else ""


def _quoted(text: str) -> str:
    """As one part of a URL's path."""
    return text if text.isascii() and text.isalnum() else quote(clean(text), safe="")


def _fits(url: str) -> bool:
    return len(url) + 4 * url.count("&") <= LONGEST_URL
