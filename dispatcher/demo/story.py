"""The demo's simulated day: the executions, and the messages that must arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dispatcher.flyte.encode import Format
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase

Expected = tuple[str, tuple[str, ...]]
"""One message that must arrive: its channel, and its recipients in alphabetical order."""

LAUNCH_PLANS = """\
# Rules in Flyte's own form.
launch_plan: {project: flytesnacks, domain: production, name: train.daily}
notifications:
  - phases: [SUCCEEDED]
    email: {recipients_email: [manager@example.com]}
  - phases: [FAILED, ABORTED]
    slack: {recipients_email: ["#dev-alerts"]}
  - phases: [FAILED, TIMED_OUT]
    pager_duty: {recipients_email: [pagerduty-service-key@example.com]}
  - phases: [FAILED]
    email: {recipients_email: [dev-team@example.com, on-call@example.com]}
---
launch_plan: {project: flytesnacks, domain: production, name: report.weekly}
notifications:
  - phases: [ABORTED]
    slack: {recipients_email: [jane.doe@example.com]}
  - phases: [TIMED_OUT, FAILED]
    email: {recipients_email: [reports@example.com]}
"""
ROUTES = """\
# Rules of the platform's own. data-eng is a contact in the settings, on Slack and Teams.
routes:
  - name: etl-failures
    match: {project: etl, domain: production, phase: FAILED}
    notify: [data-eng, {webhook: [audit]}]
"""

_TRACEBACK = """\
Traceback (most recent call last):

      File "/usr/local/lib/python3.11/site-packages/flytekit/exceptions/scopes.py", line 198, in user_entry_point
        return wrapped(*args, **kwargs)
      File "/root/train.py", line 88, in train
        model.fit(batches, learning_rate=rate)
      File "/root/model.py", line 214, in fit
        raise ValueError(f"bad learning rate: <{rate}> & 'momentum' must be > 0")

Message:

    ValueError: bad learning rate: <0.0> & 'momentum' must be > 0

User error."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One execution of the day: its terminal event, the event's format, and the messages that must arrive."""

    title: str
    event: Event
    form: Format
    expected: Sequence[Expected] = ()
    lifecycle: bool = True
    """True to send the execution's earlier events (phases, nodes and tasks) before the terminal event."""


def day(now: datetime) -> list[Scene]:
    """Return the scenes of the day, in order. All executions finish at `now`, but for the aborted one."""
    failed = _event("a7failed", Phase.FAILED, now, plan="train.daily", error=_TRACEBACK, took=857)
    return [
        Scene(
            "the nightly training succeeds",
            _event("a7trained", Phase.SUCCEEDED, now, plan="train.daily", took=859),
            Format.FLYTE_V2,
            [("email", ("manager@example.com",))],
        ),
        Scene(
            "the next one fails with a long traceback",
            failed,
            Format.FLYTE_V2,
            [
                ("slack", ("#dev-alerts",)),
                ("pagerduty", ("ML platform",)),
                ("email", ("dev-team@example.com", "on-call@example.com")),
            ],
        ),
        Scene("Kafka delivers that failure a second time", failed, Format.FLYTE_V2, lifecycle=False),
        Scene(
            "a job fails, and Flyte's v1 event does not name its launch plan: a route for its project and domain matches",
            _event("a7loader", Phase.FAILED, now, project="etl", error="OOMKilled: memory limit of 4Gi exceeded"),
            Format.FLYTE_V1,
            [("slack", ("#data-eng",)), ("teams", ("data-eng",)), ("webhook", ("audit",))],
        ),
        Scene(
            "the weekly report is aborted: the person who wants it gets a direct message on Slack",
            _event(
                "a7report",
                Phase.ABORTED,
                now - timedelta(minutes=10),  # before the report's third run starts
                plan="report.weekly",
                error="Execution aborted: stopped by sam@example.com, wrong dataset",
            ),
            Format.NATIVE,
            [("slack", ("@jane.doe@example.com",))],
        ),
        Scene(
            "the report's second run takes too long",
            _event(
                "a7report2",
                Phase.TIMED_OUT,
                now,
                plan="report.weekly",
                error="exceeded its deadline of 3h0m0s",
                took=10800,
            ),
            Format.FLYTE_V2,
            [("email", ("reports@example.com",))],
        ),
        Scene(
            "an execution's own Options replace the launch plan's rules",
            _event(
                "a7experiment",
                Phase.FAILED,
                now,
                plan="train.daily",
                error="KeyError: 'epoch'",
                options={
                    "notifications": [{"phases": ["FAILED"], "email": {"recipients_email": ["jane.doe@example.com"]}}]
                },
            ),
            Format.NATIVE,
            [("email", ("jane.doe@example.com",))],
        ),
        Scene(
            "an execution that was started with disable_notifications",
            _event("a7quiet", Phase.FAILED, now, plan="train.daily", options={"disable_notifications": True}),
            Format.NATIVE,
        ),
        Scene(
            "the report's third run succeeds: everyone notified of the failure gets a resolved notice",
            _event("a7report3", Phase.SUCCEEDED, now, plan="report.weekly", took=95),
            Format.FLYTE_V2,
            [("slack", ("@jane.doe@example.com",))],
        ),
        Scene(
            "an event whose launch plan is unknown: rejected, and kept for a replay",
            _event("a7stray", Phase.FAILED, now, error="RuntimeError: boom"),
            Format.FLYTE_V1,
        ),
    ]


def _event(
    name: str,
    phase: Phase,
    now: datetime,
    *,
    project: str = "flytesnacks",
    plan: str | None = None,
    error: str | None = None,
    took: int = 60,
    options: dict[str, Any] | None = None,
) -> Event:
    execution = {"project": project, "domain": "production", "name": f"{name}{now:%H%M%S}"}
    facts: dict[str, Any] = {
        "execution": execution,
        "phase": phase,
        "occurred_at": now,
        "started_at": now - timedelta(seconds=took),
        "principal": "jane.doe",
        "labels": {"team": "data-science"},
    }
    if plan is not None:
        facts["launch_plan"] = {"project": project, "domain": "production", "name": plan, "version": "v1.4.2"}
    if error is not None:
        facts["error"] = {"code": "USER:Unknown", "message": error, "kind": "USER"}
    if options is not None:
        facts["options"] = options
    return Event.model_validate(facts)
