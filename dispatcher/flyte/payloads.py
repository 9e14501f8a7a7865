"""Flyte's own payloads, v1 and v2, as flyteadmin's cloudEvents publisher writes them (protobuf JSON)."""

from __future__ import annotations

from typing import Any

from dispatcher.errors import Unreadable

V1 = "com.flyte.resource.flyteidl.admin.WorkflowExecutionEventRequest"
V2 = "com.flyte.resource.cloudevents.WorkflowExecution"


def v1(data: dict[str, Any]) -> dict[str, Any]:
    """The facts in an `admin.WorkflowExecutionEventRequest`. Raises Unreadable where the event is missing."""
    return _workflow_event(data.get("event"), "event")


def v2(data: dict[str, Any]) -> dict[str, Any]:
    """The facts in an `event.CloudEventWorkflowExecution`; all but the raw event may be missing.

    Flyte adds the launch plan, labels and principal for SUCCEEDED only, unless
    `enrichAllWorkflowEventTypes` is set. Raises Unreadable where the raw event is missing.
    """
    facts = _workflow_event(_field(data, "rawEvent", "raw_event"), "rawEvent")
    facts["launch_plan"] = _field(data, "launchPlanId", "launch_plan_id")
    facts["labels"] = data.get("labels")
    facts["principal"] = data.get("principal") or ""
    return facts


def _workflow_event(event: Any, name: str) -> dict[str, Any]:
    if not isinstance(event, dict):
        raise Unreadable(f"no {name} in the data")
    return {
        "execution": _field(event, "executionId", "execution_id"),
        "phase": event.get("phase", "UNDEFINED"),
        "occurred_at": _field(event, "occurredAt", "occurred_at"),
        "error": event.get("error"),
    }


def _field(message: dict[str, Any], camel: str, snake: str) -> Any:
    return message[camel] if camel in message else message.get(snake)
