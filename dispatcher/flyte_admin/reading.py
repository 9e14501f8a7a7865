"""FlyteAdmin's answers, taken apart: flyteidl's messages become our words. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from flyteidl.admin import common_pb2
from google.protobuf.json_format import MessageToDict
from pydantic import ValidationError

from dispatcher.event import EntityId, ExecutionError
from dispatcher.flyte_admin.trouble import Denied
from dispatcher.notification import Notification
from dispatcher.rules import Resolved, Rule
from dispatcher.wording import first_problem

_KINDS = ("UNKNOWN", "USER", "SYSTEM")
"""`flyteidl.core.ExecutionError.ErrorKind`, in its numbering."""


def execution_of(message: Any) -> Resolved:
    """What a `flyteidl.admin.Execution` says. Raises Denied where it can't be understood."""
    spec, closure = message.spec, message.closure
    rules, refused = rules_of(closure.notifications, "flyte_admin:closure.notifications")
    try:
        return Resolved(
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
