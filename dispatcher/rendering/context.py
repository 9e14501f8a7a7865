"""The variables that templates can use, built from an event. All values are cleaned of terminal colours and control
characters. A value that the event doesn't contain is empty, never None.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, tzinfo
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from channels.common.text import cut
from dispatcher.model.phase import Phase
from dispatcher.rendering.cause import cause_of
from dispatcher.rendering.links import execution_logs_url, execution_url
from dispatcher.rendering.summary_facts import SummaryFacts
from dispatcher.rendering.text import one_line
from dispatcher.rendering.times import Time, duration_of, time_of
from dispatcher.rendering.traceback import summarize

if TYPE_CHECKING:  # for types only: the process that renders operators' templates does not import pydantic
    from dispatcher.model.delivery import Outage
    from dispatcher.model.event import EntityId, Event

LONGEST_NAME = 255
LABELS = 20
"""Maximum number of labels that a template gets, because an event may have thousands of labels."""
PROPELLER_LABELS = ("execution-id", "project", "domain", "shard-key", "workflow-name")
"""The labels that flytepropeller gives the Kubernetes object of a workflow (`transformers/k8s/workflow.go`). Executions
that the workflow starts inherit them, so there they name the parent."""
DONE = {
    Phase.SUCCEEDED: ("succeeded", "info", "#2eb67d", "✅"),
    Phase.FAILED: ("failed", "error", "#e01e5a", "❌"),
    Phase.ABORTED: ("was aborted", "warning", "#ecb22e", "🛑"),
    Phase.TIMED_OUT: ("timed out", "error", "#e8912d", "⏱️"),
}
"""The phase as a verb, its severity, colour and emoji."""


@dataclass(frozen=True, slots=True)
class Entity:
    """A launch plan or a workflow. If the event names no launch plan or workflow, all fields are empty."""

    project: str = ""
    """The project of the launch plan or workflow."""
    domain: str = ""
    """The domain of the launch plan or workflow."""
    name: str = ""
    """The name of the launch plan or workflow."""
    version: str = ""
    """The version of the launch plan or workflow."""
    kind: str = ""
    """`launch plan`, `workflow`, or `task` if the execution ran a single task, which Flyte names as its launch plan."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The execution's error. If the execution has no error, all fields are empty."""

    summary: str = ""
    """The line with the exception."""
    frames: str = ""
    """The last frames of the user's own code."""
    message: str = ""
    """The whole error message, without terminal colours."""
    code: str = ""
    """Flyte's error code, such as `USER:Unknown`."""
    kind: str = ""
    """Flyte's error kind: `user` or `system`; empty if unknown."""
    node: str = ""
    """The name of the node that failed, if the message names it."""
    cause: str = ""
    """A short name of what went wrong and where, the same for all executions that failed in the same way."""
    fingerprint: str = ""
    """The cause's fingerprint, such as `v1:5f0c2a9d81e4b637`. Lists of executions and deliveries can be filtered by it."""


class Context(NamedTuple):
    """The variables of every template. A NamedTuple, because a frozen dataclass of this size is slower to create."""

    project: str
    """The execution's project."""
    domain: str
    """The execution's domain."""
    name: str
    """The execution's name."""
    what: str
    """The launch plan's name; if the event doesn't give it, the workflow's name, or else the execution's name."""
    phase: str
    """`succeeded`, `failed`, `aborted` or `timed_out`."""
    done: str
    """The phase as a verb: `succeeded`, `failed`, `was aborted`, `timed out`."""
    severity: str
    """critical, error, warning or info: as a route, a contact, PagerDuty's `severities` or the phase says."""
    color: str
    """The phase's colour, `#rrggbb`."""
    symbol: str
    """The phase as one emoji."""
    launch_plan: Entity = Entity()
    """The execution's launch plan."""
    workflow: Entity = Entity()
    """The execution's workflow."""
    principal: str = ""
    """Who started the execution."""
    labels: Mapping[str, str] = MappingProxyType({})
    """The execution's labels, 20 at most, without those in the setting `templates.hide_labels`."""
    url: str = ""
    """The address of the execution's page in Flyte's console."""
    logs_url: str = ""
    """The address of the execution's logs, built from the setting `logs_url`."""
    finished: Time = Time()
    """When the execution finished."""
    started: Time = Time()
    """When the execution started."""
    duration: str = ""
    """How long the execution took, such as `14 minutes and 17 seconds`."""
    error: Failure = Failure()
    """The execution's error. In a digest or summary, `error.summary` and `error.message` name its largest groups."""
    undelivered: str = ""
    """In a message to fallback recipients: who could not be notified, and why. Otherwise empty."""
    failures: str = ""
    """In a resolved notice: how many failures it resolves, such as `3 failures`. Otherwise empty."""
    down_since: Time = Time()
    """In a resolved notice: when the first of these failures finished. Otherwise its parts are empty."""
    down_for: str = ""
    """In a resolved notice: the time from that failure to the success, such as `5 hours`. Otherwise empty."""
    summary: SummaryFacts = SummaryFacts()
    """In a digest or summary: what it tells. Otherwise its parts are empty."""
    test: str = ""
    """Empty, except in a test notification: there it is a sentence that says so, and `what` begins with `TEST: `."""

    @property
    def event_key(self) -> str:
        """The event's key, for the log."""
        return f"{self.project}/{self.domain}/{self.name}/{self.phase.upper()}"

    def variables(self) -> dict[str, Any]:
        return self._asdict()


VARIABLES = Context._fields


def context_of(
    event: Event,
    console_url: str,
    logs_url: str = "",
    *,
    severity: str | None = None,
    hide_labels: Collection[str] = PROPELLER_LABELS,
    zone: tzinfo = UTC,
) -> Context:
    """Build the template variables from a terminal event.

    `severity`: the severity; if None, the event's phase determines it. `hide_labels`: the names of labels that
    templates don't get. `zone`: the time zone of `Time.local`.
    """
    done, default_severity, color, symbol = DONE[event.phase]
    plan = _entity(event.launch_plan, event.launch_plan.noun if event.launch_plan is not None else "")
    workflow = _entity(event.workflow, "workflow")
    labels = ((name, value) for name, value in event.labels.items() if name not in hide_labels)
    execution = event.execution
    finished, started = event.occurred_at, event.started_at
    return Context(
        project=one_line(execution.project),
        domain=one_line(execution.domain),
        name=one_line(execution.name),
        what=plan.name or workflow.name or one_line(execution.name),
        phase=event.phase.lower(),
        done=done,
        severity=severity or default_severity,
        color=color,
        symbol=symbol,
        launch_plan=plan,
        workflow=workflow,
        principal=short(event.principal),
        labels={short(name): short(value) for name, value in islice(labels, LABELS)},
        url=execution_url(execution, event.url, console_url),
        logs_url=execution_logs_url(execution, logs_url),
        finished=time_of(finished, zone),
        started=time_of(started, zone) if started is not None else Time(),
        duration=duration_of(finished - started) if started is not None else "",
        error=_failure(event),
    )


def resolving(context: Context, event: Event, outage: Outage, zone: tzinfo) -> Context:
    """Return the variables of a resolved notice, given the variables of the success that `event` reports."""
    return context._replace(
        failures="1 failure" if outage.failures == 1 else f"{outage.failures} failures",
        down_since=time_of(outage.since, zone),
        down_for=duration_of(event.occurred_at - outage.since),
    )


def _entity(entity: EntityId | None, kind: str) -> Entity:
    if entity is None:
        return Entity()
    start = 4 * LONGEST_NAME  # the cache must not keep long names
    return _shown_entity(entity.project, entity.domain, entity.name[:start], entity.version[:start], kind)


@lru_cache(maxsize=1024)  # cached, because many executions have the same launch plan and workflow
def _shown_entity(project: str, domain: str, name: str, version: str, kind: str) -> Entity:
    return Entity(one_line(project), one_line(domain), short(name), short(version), kind)


def _failure(event: Event) -> Failure:
    if event.error is None:
        return Failure()
    parts = summarize(event.error.message)
    cause = cause_of(event)
    kind = event.error.kind.lower()
    return Failure(
        summary=parts.summary,
        frames=parts.frames,
        message=parts.message,
        code=short(event.error.code),
        kind=kind if kind in {"user", "system"} else "",
        node=parts.node,
        cause=cause.name,
        fingerprint=cause.fingerprint,
    )


def short(text: str) -> str:
    """Return the text as one line that is cut to `LONGEST_NAME` characters, because an event's texts can be longer."""
    return cut(one_line(text[: 4 * LONGEST_NAME]), LONGEST_NAME)
