"""Converts values to rows of the tables, and rows back to values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from channels.contract import Answer
from dispatcher.ledger.records import (
    BODY_KEPT,
    Attempt,
    RecordedEvent,
    Rejected,
    Settlement,
    StoredDelivery,
    StoredEvent,
)
from dispatcher.ledger.schema import EncodedJson
from dispatcher.model.delivery import Dead, Delivery, Dropped, DropReason, Kind, Retry, Sent, State
from dispatcher.model.event import Event, shortened

LEASE_LOST = "the lease had run out, so this outcome was ignored"
"""The reason that is stored with an attempt that ended after its lease."""


def event_row(entry: RecordedEvent, now: datetime) -> dict[str, Any]:
    event = entry.event
    return {
        "key": event.key,
        "project": event.execution.project,
        "domain": event.execution.domain,
        "name": event.execution.name,
        "phase": event.phase,
        "launch_plan": shortened(event.launch_plan.name) if event.launch_plan else "",
        "occurred_at": event.occurred_at,
        "recorded_at": now,
        "position": entry.position,
        "verdict": entry.verdict,
        "reason": entry.reason,
        "facts": EncodedJson(event.model_dump_json(exclude_defaults=True).encode()),
        "considered": list(entry.considered),
    }


def read_event(row: Row[Any]) -> StoredEvent:
    return StoredEvent(
        event=Event.model_validate(row.facts),
        position=row.position,
        recorded_at=row.recorded_at,
        verdict=row.verdict,
        reason=row.reason,
        considered=row.considered,
    )


def rejected_row(entry: Rejected) -> dict[str, Any]:
    return {
        "id": entry.id,
        "position": entry.position,
        "received_at": entry.received_at,
        "reason": entry.reason,
        "event": entry.event,
        "headers": [[name, value.decode("latin-1")] for name, value in entry.headers],
        "body": entry.body[:BODY_KEPT],
        "size": entry.size,
        "replayed_at": entry.replayed_at,
    }


def read_rejected(row: Row[Any]) -> Rejected:
    return Rejected(
        id=row.id,
        position=row.position,
        received_at=row.received_at,
        reason=row.reason,
        event=row.event,
        headers=[(name, value.encode("latin-1")) for name, value in row.headers],
        body=row.body,
        size=row.size,
        replayed_at=row.replayed_at,
    )


def delivery_row(delivery: Delivery, content_hash: str | None, trace: str) -> dict[str, Any]:
    """Return the row of a new delivery. `trace`: the trace of its event.

    `content_hash`: the key of its content; None if the content is not rendered yet.
    """
    return {
        "key": delivery.key,
        "event": delivery.event,
        "channel": delivery.channel,
        "recipients": delivery.recipients,
        "addresses": delivery.addresses,
        "content": content_hash,
        "rule": delivery.rule,
        "state": delivery.state,
        "reason": delivery.reason,
        "attempt": delivery.attempt,
        "in_doubt": delivery.in_doubt,
        "lease": delivery.lease,
        "created_at": delivery.created_at,
        "due_at": delivery.due_at,
        "retry_window_start": delivery.retry_window_start,
        "settled_at": None if delivery.state is State.WAITING else delivery.due_at,
        "reference": None,
        "thread": delivery.thread or None,
        "thread_at": delivery.thread_at,
        "subject": delivery.subject or None,
        "kind": delivery.kind,
        "drop_reason": delivery.drop_reason,
        "fallback_for": delivery.fallback_for or None,
        "slot_reserved": delivery.slot_reserved,
        "occurred_at": delivery.occurred_at,
        "trace": trace or None,
    }


def delivery_fields(row: Any, content: Any) -> dict[str, Any]:
    """Return the fields of the delivery in a row. The row may come from SQLAlchemy or from a prepared query."""
    return {
        "key": row.key,
        "event": row.event,
        "channel": row.channel,
        "recipients": row.recipients,
        "addresses": row.addresses,
        "content": content,
        "rule": row.rule,
        "state": State(row.state),
        "reason": row.reason,
        "attempt": row.attempt,
        "in_doubt": row.in_doubt,
        "lease": row.lease,
        "created_at": row.created_at,
        "due_at": row.due_at,
        "retry_window_start": row.retry_window_start,
        "thread": row.thread or "",
        "thread_at": row.thread_at,
        "subject": row.subject or "",
        "kind": Kind(row.kind),
        "drop_reason": DropReason(row.drop_reason) if row.drop_reason else None,
        "fallback_for": row.fallback_for or "",
        "slot_reserved": row.slot_reserved,
        "occurred_at": row.occurred_at,
        "trace": row.trace or "",
    }


def read_delivery(row: Row[Any], bodies: Mapping[str | None, Any]) -> Delivery:
    """Return the delivery in a row. `bodies`: mapping from a content hash to the content."""
    return Delivery(**delivery_fields(row, bodies[row.content]))


def read_stored_delivery(row: Row[Any], bodies: Mapping[str | None, Any]) -> StoredDelivery:
    return StoredDelivery(delivery=read_delivery(row, bodies), settled_at=row.settled_at, reference=row.reference or {})


def attempt_row(entry: Settlement, *, lease_held: bool) -> dict[str, Any]:
    answer: Answer | None
    match entry.outcome:
        case Sent(receipt):
            outcome, answer, reason = "sent", receipt.answer, ""
        case Retry(answer=given, reason=why, in_doubt=in_doubt):
            outcome, answer, reason = "in_doubt" if in_doubt else "retry", given, why
        case Dead(answer=given, reason=why):
            outcome, answer, reason = "dead", given, why
        case Dropped():
            raise AssertionError("no attempt was made")
    return {
        "delivery": entry.delivery.key,
        "number": entry.delivery.attempt,
        "started_at": entry.started_at,
        "ended_at": entry.ended_at,
        "outcome": outcome,
        "status": answer.status if answer is not None else "",
        "answer": answer.text if answer is not None else "",
        "reason": reason if lease_held else f"{LEASE_LOST}{reason and f': {reason}'}",
    }


def read_attempt(row: Row[Any]) -> Attempt:
    return Attempt(
        number=row.number,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=row.outcome,
        status=row.status,
        answer=row.answer,
        reason=row.reason,
    )
