"""FlyteAdmin's answers, taken apart: flyteidl's messages become our words, and a question's filters theirs. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from flyteidl.admin import common_pb2
from google.protobuf.json_format import MessageToDict
from pydantic import ValidationError

from dispatcher.flyte.admin.errors import Denied
from dispatcher.model.event import EntityId, Event, ExecutionError
from dispatcher.model.notification import Notification
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.parsing.validation_errors import first_problem
from dispatcher.rules import AdminExecution, Rule

_KINDS = ("UNKNOWN", "USER", "SYSTEM")
"""`flyteidl.core.ExecutionError.ErrorKind`, in its numbering."""


def execution_of(message: Any) -> AdminExecution:
    """What a `flyteidl.admin.Execution` says. Raises Denied where it can't be understood."""
    spec, closure = message.spec, message.closure
    rules, refused = rules_of(closure.notifications, "flyte_admin:closure.notifications")
    try:
        return AdminExecution(
            launch_plan=_entity(spec.launch_plan),
            workflow=_entity(closure.workflow_id),
            principal=spec.metadata.principal,
            labels=dict(spec.labels.values),
            started_at=_time(closure, "started_at"),
            duration=_span(closure),
            error=_error(closure),
            rules=rules,
            refused=refused,
            own=bool(spec.notifications.notifications),
            disabled=spec.disable_all,
        )
    except (ValidationError, ValueError, OverflowError) as error:
        words = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise Denied(f"FlyteAdmin's answer can't be understood: {words}") from None


def ended_of(message: Any) -> Event:
    """The end of an execution that a list brought (`flyteidl.admin.Execution`). Raises Denied where it can't be read.

    When it ended is `closure.updated_at`, which flyteadmin takes from the terminal event itself (`occurredAt`). Lists cut
    errors to 100 characters (`TrimErrorMessage`), so the error is left to whoever asks for the execution alone.
    """
    identity, closure = message.id, message.closure
    try:
        return Event(
            execution={"project": identity.project, "domain": identity.domain, "name": identity.name},
            phase=Phase.parse(closure.phase),
            occurred_at=_time(closure, "updated_at"),
            launch_plan=_entity(message.spec.launch_plan),
            workflow=_entity(closure.workflow_id),
            principal=message.spec.metadata.principal,
            labels=dict(message.spec.labels.values),
            started_at=_time(closure, "started_at"),
        )
    except (ValidationError, ValueError, OverflowError) as error:
        words = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise Denied(f"an execution that FlyteAdmin lists can't be understood: {words}") from None


def ended_between(since: datetime, until: datetime) -> str:
    """Filters, as flyteadmin reads them (`common/filters.go`), for executions that have ended and were last written in that time."""
    phases = ";".join(sorted(TERMINAL))
    return f"value_in(phase,{phases})+gte(updated_at,{_written(since)})+lte(updated_at,{_written(until)})"


def _written(time: datetime) -> str:
    """RFC 3339 in UTC with `Z`: a `+` would end the filter."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def rules_of(notifications: Iterable[Any], source: str) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """Rules of `flyteidl.admin.Notification` messages, and why some can't hold."""
    rules, refused = [], []
    for at, message in enumerate(notifications):
        where = f"{source}[{at}]"
        match _notification(message.SerializeToString(deterministic=True)):
            case Notification() as notification:
                rules.append(Rule(notification, where))
            case why:
                refused.append(f"{where}: {why}")
    return tuple(rules), tuple(refused)


@lru_cache(maxsize=4096)
def _notification(content: bytes) -> Notification | str:
    """One notification, or why it can't hold. A launch plan's come with each of its executions."""
    try:
        return Notification.model_validate(MessageToDict(common_pb2.Notification.FromString(content)))
    except ValidationError as error:
        return first_problem(error)


def _entity(identity: Any) -> EntityId | None:
    if not identity.name:
        return None
    return EntityId(project=identity.project, domain=identity.domain, name=identity.name, version=identity.version)


def _error(closure: Any) -> ExecutionError | None:
    """Why it failed; of one that was aborted, by whom and why, in the words of flyteadmin's own events."""
    match closure.WhichOneof("output_result"):
        case "error":
            kind = closure.error.kind
            return ExecutionError(
                code=closure.error.code,
                message=closure.error.message,
                kind=_KINDS[kind] if kind < len(_KINDS) else _KINDS[0],
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


def _span(closure: Any) -> timedelta | None:
    if not closure.HasField("duration"):
        return None
    span: timedelta = closure.duration.ToTimedelta()
    return span if span > timedelta() else None
