"""Accounts: all there is to say of an execution's end, of a delivery and its attempts, as data.

For `dispatcher explain` and `deliveries`, for the console and its API: each shows the same, each in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dispatcher.ledger import Attempt, DeliveryFilter, Ledger, Rejected, StoredDelivery, StoredEvent
from dispatcher.model.delivery import Delivery
from dispatcher.model.event import ExecutionId
from dispatcher.rules import disabled_by_of

REJECTED = "rejected"
"""The verdict on a message from which no event was recorded."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """All there is to say of one event; each part as `--json` shows it."""

    event: Mapping[str, Any]
    """What happened, and beside it: `verdict` and `reason`, and where and when it was heard."""
    rules: Sequence[Mapping[str, Any]] = ()
    deliveries: Sequence[Mapping[str, Any]] = ()
    disabled_by: str | None = None

    def as_data(self) -> dict[str, Any]:
        return {
            "event": self.event,
            "rules": self.rules,
            "deliveries": self.deliveries,
            "disabled_by": self.disabled_by,
        }


async def explanations(
    ledger: Ledger, execution: ExecutionId, refused: Iterable[Rejected], *, deliveries_at_most: int
) -> list[Explanation]:
    """What the ledger has of an execution: events in the order of their record, then `refused`, the newest last."""
    known = await ledger.known(execution)
    filed = await ledger.find(DeliveryFilter(execution=str(execution)), limit=deliveries_at_most) if known else []
    histories = {entry.delivery.key: await ledger.history(entry.delivery.key) for entry in filed}
    return [
        *(
            _account(entry, [one for one in filed if one.delivery.event == entry.event.key], histories)
            for entry in known
        ),
        *(_rejected(entry, execution) for entry in sorted(refused, key=lambda entry: entry.received_at)),
    ]


def _account(
    known: StoredEvent, filed: Sequence[StoredDelivery], histories: Mapping[str, Sequence[Attempt]]
) -> Explanation:
    place = {look["source"]: index for index, look in enumerate(known.considered)}
    in_order = sorted(filed, key=lambda entry: (place.get(entry.delivery.rule, len(place)), entry.delivery.created_at))
    return Explanation(
        event={
            "key": known.event.key,
            **known.event.model_dump(mode="json", exclude_defaults=True),
            "verdict": known.verdict,
            "reason": known.reason,
            "position": known.position,
            "recorded_at": known.recorded_at,
        },
        rules=with_told_once(known.considered, [entry.delivery for entry in filed]),
        deliveries=[_delivered(entry, histories[entry.delivery.key]) for entry in in_order],
        disabled_by=disabled_by_of(known.verdict, known.reason),
    )


def _delivered(filed: StoredDelivery, history: Sequence[Attempt]) -> dict[str, Any]:
    data = delivery_data(filed)
    first = {name: data.pop(name) for name in ("channel", "recipients", "state")}
    return {**first, **data, "attempts": [attempt_data(attempt) for attempt in history]}


def _rejected(entry: Rejected, execution: ExecutionId) -> Explanation:
    key = {"key": entry.event, "phase": entry.event.rpartition("/")[2]} if entry.event is not None else {}
    return Explanation(
        event={
            **key,
            "execution": execution.model_dump(),
            "verdict": REJECTED,
            "reason": entry.reason,
            "position": entry.position,
            "received_at": entry.received_at,
            "rejected_id": entry.id,
            "replayed_at": entry.replayed_at,
        }
    )


def with_told_once(looks: Iterable[Mapping[str, Any]], owed: Iterable[Delivery]) -> list[Mapping[str, Any]]:
    """The rules looked at; where one matched and another one's message tells its recipient, the reason says so."""
    by_rule: dict[str, set[str]] = {}
    for delivery in owed:
        by_rule.setdefault(delivery.rule, set()).update(delivery.recipients)
    told: list[Mapping[str, Any]] = []
    for look in looks:
        spared = [one for one in look["recipients"] if one not in by_rule.get(look["source"], ())]
        if look["matched"] and spared:
            words = f"{look['reason']}; {', '.join(spared)} told once, by another rule's message"
            told.append({**look, "reason": words})
        else:
            told.append(look)
    return told


def delivery_data(filed: StoredDelivery) -> dict[str, Any]:
    """A delivery as `--json` shows it, without its content and its attempts."""
    delivery = filed.delivery
    project, domain, name, phase = delivery.event.split("/")
    return {
        "key": delivery.key,
        "event": delivery.event,
        "execution": {"project": project, "domain": domain, "name": name},
        "phase": phase,
        "channel": delivery.channel,
        "recipients": delivery.recipients,
        "addresses": delivery.addresses,
        "state": delivery.state,
        "attempt": delivery.attempt,
        "in_doubt": delivery.in_doubt,
        "reason": delivery.reason,
        "rule": delivery.rule,
        "created_at": delivery.created_at,
        "due_at": delivery.due_at,
        "settled_at": filed.settled_at,
        "reference": filed.reference,
    }


def attempt_data(attempt: Attempt) -> dict[str, Any]:
    """An attempt as `--json` shows it."""
    return {
        "number": attempt.number,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "latency_ms": round(attempt.latency.total_seconds() * 1000, 1),
        "outcome": attempt.outcome,
        "status": attempt.status,
        "answer": attempt.answer,
        "reason": attempt.reason,
    }


def rejected_data(entry: Rejected) -> dict[str, Any]:
    """A rejected message as `--json` lists it."""
    return {
        "id": entry.id,
        "position": entry.position,
        "received_at": entry.received_at,
        "reason": entry.reason,
        "event": entry.event,
        "size": entry.size,
        "replayed_at": entry.replayed_at,
    }


def rejected_whole(entry: Rejected) -> dict[str, Any]:
    """The same with its headers and what was kept of its bytes, as text."""
    return {
        **rejected_data(entry),
        "headers": [[name, value.decode(errors="replace")] for name, value in entry.headers],
        "body": entry.body.decode(errors="replace"),
        "whole": entry.whole,
    }
