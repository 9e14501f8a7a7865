"""Converts flyteidl messages to events, executions and rules, and a time range to flyteadmin's filters. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from flyteidl.admin import common_pb2
from google.protobuf.json_format import MessageToDict
from pydantic import ValidationError

from dispatcher.flyte.admin.errors import PermanentError
from dispatcher.model.event import MODES, EntityId, Event, ExecutionError, ExecutionId
from dispatcher.model.notification import Notification, excess
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.parsing.validation_errors import first_problem
from dispatcher.rules import AdminExecution, Rule

_ERROR_KINDS = ("UNKNOWN", "USER", "SYSTEM")
"""The names of `flyteidl.core.ExecutionError.ErrorKind`, in the order of their numbers."""


def execution_of(message: Any) -> AdminExecution:
    """Convert a `flyteidl.admin.Execution`. Raises PermanentError if a value in the message is invalid."""
    spec, closure = message.spec, message.closure
    too_many = excess_of(closure.notifications)
    rules, refused = rules_of(() if too_many else closure.notifications, "flyte_admin:closure.notifications")
    try:
        return AdminExecution(
            launch_plan=entity_of(spec.launch_plan),
            workflow=entity_of(closure.workflow_id),
            principal=spec.metadata.principal,
            labels=dict(spec.labels.values),
            started_at=_time(closure, "started_at"),
            duration=_duration(closure),
            error=_error(closure),
            rules=rules,
            refused=refused,
            excess=too_many and f"{too_many}, by FlyteAdmin",
            own=bool(spec.notifications.notifications),
            disabled=spec.disable_all,
            mode=_mode(spec.metadata),
            parent=_execution(spec.metadata.parent_node_execution.execution_id),
            reference_execution=_execution(spec.metadata.reference_execution),
        )
    except (ValidationError, ValueError, OverflowError) as error:
        words = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise PermanentError(f"FlyteAdmin's answer can't be understood: {words}") from None


def terminal_event_of(message: Any) -> Event:
    """Convert a finished execution (`flyteidl.admin.Execution`) to its terminal event, without the error.

    The event's time is `closure.updated_at`, which flyteadmin copies from the terminal event (`occurredAt`). In a list,
    flyteadmin cuts each error to 100 characters (`TrimErrorMessage`), so callers take the error from GetExecution.
    Raises PermanentError if a value in the message is invalid.
    """
    identity, closure = message.id, message.closure
    try:
        return Event(
            execution={"project": identity.project, "domain": identity.domain, "name": identity.name},
            phase=Phase.parse(closure.phase),
            occurred_at=_time(closure, "updated_at"),
            launch_plan=entity_of(message.spec.launch_plan),
            workflow=entity_of(closure.workflow_id),
            principal=message.spec.metadata.principal,
            labels=dict(message.spec.labels.values),
            started_at=_time(closure, "started_at"),
            mode=_mode(message.spec.metadata),
            parent=_execution(message.spec.metadata.parent_node_execution.execution_id),
            reference_execution=_execution(message.spec.metadata.reference_execution),
        )
    except (ValidationError, ValueError, OverflowError) as error:
        words = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise PermanentError(f"an execution that FlyteAdmin lists can't be understood: {words}") from None


def _mode(metadata: Any) -> str:
    """Return how the execution was started (flyteidl `ExecutionMetadata`); empty if a newer Flyte has another mode."""
    return MODES[metadata.mode] if metadata.mode < len(MODES) else ""


def _execution(identity: Any) -> ExecutionId | None:
    """Convert a `flyteidl.core.WorkflowExecutionIdentifier`. Returns None if it is not set."""
    if not identity.name:
        return None
    return ExecutionId(project=identity.project, domain=identity.domain, name=identity.name)


def finished_between(since: datetime, until: datetime) -> str:
    """Return filters that select finished executions whose row was last updated between the two times.

    The filters are written in flyteadmin's syntax (`common/filters.go`). Without the filter for `state`, flyteadmin lists
    active executions only (0), no archived ones (1).
    """
    phases = ";".join(sorted(TERMINAL))
    return f"value_in(phase,{phases})+gte(updated_at,{_rfc3339(since)})+lte(updated_at,{_rfc3339(until)})+value_in(state,0;1)"


def _rfc3339(time: datetime) -> str:
    """Format a time in UTC (RFC 3339), with `Z` and not `+00:00`, because flyteadmin reads `+` as a separator."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def rules_of(notifications: Iterable[Any], defined_in: str) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """Parse `flyteidl.admin.Notification` messages. Returns the valid rules, and a reason for each invalid message."""
    rules, refused = [], []
    for at, message in enumerate(notifications):
        defined_at = f"{defined_in}[{at}]"
        match _notification(message.SerializeToString(deterministic=True)):
            case Notification() as notification:
                rules.append(Rule(notification, defined_at))
            case reason:
                refused.append(f"{defined_at}: {reason}")
    return tuple(rules), tuple(refused)


def excess_of(notifications: Sequence[Any]) -> str:
    """Return a sentence if there are more `flyteidl.admin.Notification` messages, or more recipients in them, than an
    event may have; otherwise an empty text.
    """
    kinds = [(message, message.WhichOneof("type")) for message in notifications]
    recipients = sum([len(getattr(message, kind).recipients_email) for message, kind in kinds if kind is not None])
    return excess(len(kinds), recipients)


@lru_cache(maxsize=4096)
def _notification(content: bytes) -> Notification | str:
    """Parse a serialized `flyteidl.admin.Notification`. Returns the reason as text if the message is invalid.

    The results are cached, because most executions of a launch plan have the same rules.
    """
    try:
        return Notification.model_validate(MessageToDict(common_pb2.Notification.FromString(content)))
    except ValidationError as error:
        return first_problem(error)


def entity_of(identity: Any) -> EntityId | None:
    if not identity.name:
        return None
    return EntityId(
        project=identity.project,
        domain=identity.domain,
        name=identity.name,
        version=identity.version,
        resource_type=identity.resource_type,
    )


def _error(closure: Any) -> ExecutionError | None:
    """Return the error of a failed or aborted execution; None for other executions.

    The error of an aborted execution has the same text as in flyteadmin's events.
    """
    match closure.WhichOneof("output_result"):
        case "error":
            kind = closure.error.kind
            return ExecutionError(
                code=closure.error.code,
                message=closure.error.message,
                kind=_ERROR_KINDS[kind] if kind < len(_ERROR_KINDS) else _ERROR_KINDS[0],
            )
        case "abort_metadata":
            cause, who = closure.abort_metadata.cause, closure.abort_metadata.principal
            by = f" by {who}" if who else ""
            return ExecutionError(code="ABORTED", message=f"Execution aborted{by}: {cause}", kind="USER")
        case "abort_cause":
            return ExecutionError(code="ABORTED", message=f"Execution aborted: {closure.abort_cause}", kind="USER")
        case _:
            return None


def _time(message: Any, field: str) -> datetime | None:
    return getattr(message, field).ToDatetime(tzinfo=UTC) if message.HasField(field) else None


def _duration(closure: Any) -> timedelta | None:
    if not closure.HasField("duration"):
        return None
    duration: timedelta = closure.duration.ToTimedelta()
    return duration if duration > timedelta() else None
