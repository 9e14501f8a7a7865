"""Parses the data of Flyte's v1 and v2 events, which flyteadmin's cloudEvents publisher writes as protobuf JSON."""

from __future__ import annotations

from typing import Any

from dispatcher.errors import Unreadable

V1 = "com.flyte.resource.flyteidl.admin.WorkflowExecutionEventRequest"
V2 = "com.flyte.resource.cloudevents.WorkflowExecution"


def v1(data: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of Event from an `admin.WorkflowExecutionEventRequest`.

    Raises Unreadable if `event` is missing.
    """
    return _workflow_event(data.get("event"), "event")


def v2(data: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of Event from an `event.CloudEventWorkflowExecution`.

    Unless flyteadmin's option `enrichAllWorkflowEventTypes` is set, only SUCCEEDED events contain the launch plan, the
    labels and the principal. Raises Unreadable if `rawEvent` is missing.
    """
    fields = _workflow_event(_field(data, "rawEvent", "raw_event"), "rawEvent")
    fields["launch_plan"] = _field(data, "launchPlanId", "launch_plan_id")
    fields["labels"] = data.get("labels")
    fields["principal"] = data.get("principal") or ""
    fields["reference_execution"] = _field(data, "referenceExecution", "reference_execution") or None
    return fields


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
