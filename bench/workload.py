"""Test data for the benchmarks of intake and ledger: failed executions with a mail, a Slack and a PagerDuty delivery."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from channels.contract import ThreadBy
from channels.registry import CHANNEL_TYPES
from dispatcher.clock import SystemClock
from dispatcher.ledger import RecordedEvent
from dispatcher.model.event import EntityId, Event, ExecutionError, ExecutionId
from dispatcher.model.phase import Phase
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rendering.renderer import Renderer
from dispatcher.rules import RuleBook, decide
from dispatcher.rules.files import RuleFiles

DELIVERIES = 3
"""Deliveries per event."""
_PLAN = EntityId(project="flytesnacks", domain="production", name="train.daily", version="v1")
_RULES = """
launch_plan: {project: flytesnacks, domain: production, name: train.daily}
notifications:
  - phases: [FAILED]
    email: {recipients_email: [dev-team@example.com, on-call@example.com]}
  - phases: [FAILED]
    slack: {recipients_email: ["#dev-alerts"]}
  - phases: [FAILED]
    pager_duty: {recipients_email: [service]}
"""
_ERROR = """Traceback (most recent call last):

      File "/usr/local/lib/python3.11/site-packages/flytekit/exceptions/scopes.py", line 219, in user_entry_point
        return wrapped(*args, **kwargs)
      File "/root/workflows/train.py", line 87, in fit
        frame = load_features(day, columns=COLUMNS)
      File "/root/workflows/features.py", line 41, in load_features
        raise ValueError(f"no features for {day}: the upstream table is empty")

Message:

    ValueError: no features for 2026-11-20: the upstream table is empty

User error."""


def _name(number: int) -> str:
    """An execution name as random as Flyte's: names of consecutive executions are not adjacent in an index."""
    return f"a{hashlib.sha256(str(number).encode()).hexdigest()[:19]}"


def failed(number: int) -> Event:
    """The terminal event of a new execution, with an error as flytekit reports it."""
    return Event(
        execution=ExecutionId(project="flytesnacks", domain="production", name=_name(number)),
        phase=Phase.FAILED,
        occurred_at=SystemClock().now(),
        launch_plan=_PLAN,
        error=ExecutionError(code="USER:ValueError", message=_ERROR, kind="USER"),
    )


@cache
def rules() -> Callable[[], RuleBook]:
    """The launch plan's rules, read from a file as a service does."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "plan.yaml"
        file.write_text(_RULES)
        files = RuleFiles([file])
        files.load()
    return lambda: files.book


@cache
def planner() -> Planner:
    """A planner with channels that accept any address, and the default threads."""
    return Planner(
        addresses={"email": str, "slack": str, "pagerduty": str},
        fallbacks={},
        grouped=frozenset({"email"}),
        thread_by={"slack": _by_launch_plan, "pagerduty": _by_launch_plan},
    )


@cache
def contents() -> Contents:
    """The built-in templates, compiled."""
    renderer = Renderer(CHANNEL_TYPES)
    renderer.check()
    return Contents(renderer.render, renderer.template_set, change_event=renderer.change)


def _by_launch_plan(address: str) -> ThreadBy:
    del address
    return "launch_plan"


def recorded(number: int) -> RecordedEvent:
    """The entry that intake records for the event."""
    event = failed(number)
    decision = decide(event, rules()())
    return RecordedEvent(
        event=event,
        position=f"flyte-cloudevents/0@{number}",
        verdict=decision.verdict,
        reason=decision.reason,
        considered=[rule.as_data() for rule in decision.considered],
        deliveries=contents().fill(event, planner().plan(event, decision.matched, now=SystemClock().now())),
    )
