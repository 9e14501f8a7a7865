"""Explains an execution's notifications: events, evaluated rules, deliveries and attempts, as data.

`dispatcher explain` and `dispatcher deliveries`, the console and its API all show this data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from dispatcher.ledger import Action, Attempt, Filter, Ledger, Rejected, StoredDelivery, StoredEvent
from dispatcher.ledger.causes import CountedCause
from dispatcher.ledger.records import EventSummary, RejectedSummary
from dispatcher.model.delivery import SUMMARIES, DropReason, Kind, RuleRef
from dispatcher.model.event import ExecutionId
from dispatcher.model.owner import FoundBy
from dispatcher.model.status import DeliveryStatus
from dispatcher.rules import disabled_by_of

REJECTED = "rejected"
"""The verdict that is shown for a rejected message. No event was recorded for it."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One event with its verdict, rules and deliveries, in the form that `--json` prints."""

    event: Mapping[str, Any]
    """The event's fields, with `verdict`, `reason`, the position of its message, and the time at which it was recorded
    or rejected."""
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
    ledger: Ledger, execution: ExecutionId, refused: Iterable[Rejected], *, deliveries_at_most: int, now: datetime
) -> list[Explanation]:
    """Explain an execution's recorded events, oldest first, then the rejected messages in `refused`, oldest first.

    `deliveries_at_most`: maximum number of deliveries to include, over all events. Waiting ones say what they wait for
    at the time `now`.
    """
    known = await ledger.history.events(execution)
    stored = await ledger.history.find(Filter(execution=str(execution)), limit=deliveries_at_most) if known else []
    stored = await ledger.queries.with_waits(stored, now=now)
    keys = [entry.delivery.key for entry in stored]
    actions = await ledger.history.actions_of(keys)
    shown = [
        (entry, _with_history(entry, await ledger.history.attempts(key), actions.get(key, ())))
        for entry, key in zip(stored, keys, strict=True)
    ]
    return [
        *(_explanation(entry, [one for one in shown if one[0].delivery.event == entry.event.key]) for entry in known),
        *(_rejected(entry, execution) for entry in sorted(refused, key=lambda entry: entry.received_at)),
    ]


def _explanation(stored: StoredEvent, shown: Sequence[tuple[StoredDelivery, dict[str, Any]]]) -> Explanation:
    """`shown`: the event's deliveries, each with its data."""
    rank = {rule["defined_at"]: index for index, rule in enumerate(stored.considered)}

    def order(one: tuple[StoredDelivery, dict[str, Any]]) -> tuple[int, datetime]:
        delivery = one[0].delivery
        first = min((rank[rule.defined_at] for rule in delivery.rules if rule.defined_at in rank), default=len(rank))
        return first, delivery.created_at

    return Explanation(
        event={
            "key": stored.event.key,
            **stored.event.model_dump(mode="json", exclude_defaults=True),
            "verdict": stored.verdict,
            "reason": stored.reason,
            "position": stored.position,
            "recorded_at": stored.recorded_at,
            "rules_version": stored.rules_version,
            "cause": stored.cause,
            "cause_name": stored.cause_name,
        },
        rules=stored.considered,
        deliveries=[data for _, data in sorted(shown, key=order)],
        disabled_by=disabled_by_of(stored.verdict, stored.reason),
    )


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


def rules_text(delivery: Mapping[str, Any]) -> str:
    """Return the rules that named a delivery's recipients, or why the delivery was created, in words.

    `delivery`: as `delivery_data` or a dry run returns it.
    """
    return ", ".join(str(RuleRef(**rule)) for rule in delivery["rules"])


def refers_to(rule: Mapping[str, Any], ref: Mapping[str, Any]) -> bool:
    """True if a delivery's rule reference may mean the evaluated rule. Both are JSON data."""
    to_owner = rule["owner"] is not None and FoundBy(rule["owner"]["found_by"]).known
    return bool(rule["defined_at"] == ref["defined_at"] and to_owner == ref["owner"])


def rules_among(delivery: Mapping[str, Any], rules: Sequence[Mapping[str, Any]]) -> list[int | str]:
    """Return the numbers of the evaluated rules that named a delivery's recipients, from 1. What is no evaluated
    rule is given in words.

    All rules of a route have the same place. Of these, the ones count that name a recipient; or else, for a contact's
    recipient, those that name contacts, which have no channel.
    """
    found: list[int | str] = []
    recipients = {recipient.casefold() for recipient in delivery["recipients"]}
    for ref in delivery["rules"]:
        here = [(number, rule) for number, rule in enumerate(rules, start=1) if rule["defined_at"] == ref["defined_at"]]
        places = [one for one in here if refers_to(one[1], ref)] or here  # none: notified instead of the owner
        naming = [number for number, rule in places if recipients & {one.casefold() for one in rule["recipients"]}]
        of_contacts = [number for number, rule in places if not rule["channel"]]
        found += naming or of_contacts or [number for number, _ in places[:1]] or [str(RuleRef(**ref))]
    return list(dict.fromkeys(found))


def about_text(kind: Kind) -> str:
    """Return in words what a delivery of this kind is that belongs to no event."""
    return kind.value if kind in SUMMARIES else "notice about a digest or summary"


_SHOWN = (
    *("channel", "recipients", "state", "key", "event", "addresses", "kind", "drop_reason", "attempt", "in_doubt"),
    *("reason", "severity", "created_at", "due_at", "hold", "held_by", "held_since", "note", "included_in"),
    "fallback_for",
)
"""The fields of a delivery that are shown."""


def delivery_data(stored: StoredDelivery) -> dict[str, Any]:
    """Return a delivery in the form that `--json` prints, without its content, attempts and actions.

    `execution` and `phase` are None for a digest, a summary, and a notice about one of these.
    """
    project, domain, name, phase = (stored.delivery.event or "///").split("/")
    return {
        **{field: getattr(stored.delivery, field) for field in _SHOWN},
        "rules": [rule._asdict() for rule in stored.delivery.rules],
        "execution": {"project": project, "domain": domain, "name": name} if name else None,
        "phase": phase or None,
        "settled_at": stored.settled_at,
        "reference": stored.reference,
        "status": stored.status,
        "holder": stored.holder,
        "told_by": stored.told_by._asdict() if stored.told_by is not None else None,
        "waits_for": [asdict(one) for one in stored.waits_for],
    }


_TOLD_IN = {Kind.DIGEST: "a digest", Kind.SUMMARY: "a summary"}
_WHICH = {
    DeliveryStatus.SENT: "was sent",
    DeliveryStatus.WAITING: "waits to be sent",
    DeliveryStatus.HELD: "is held",
    DeliveryStatus.DEAD: "is dead",
    DeliveryStatus.DROPPED: "was dropped",
    DeliveryStatus.INCLUDED: "another message tells of",
}


def told_in_text(told_by: Mapping[str, Any]) -> str:
    """Return in words what tells of a delivery. `told_by`: as `delivery_data` returns it."""
    return _TOLD_IN.get(told_by["kind"], "the page for a newer failure")


def decided_text(delivery: Mapping[str, Any], *, digits: int | None = None) -> str:
    """Return in words why a delivery is as it is: the first reason that decides. Empty if there is nothing to say.

    What a waiting one waits for is in `waits_for`. `delivery`: as `delivery_data` or a dry run returns it. `digits`: how
    many digits of a key are shown; None for all.
    """
    if (told_by := delivery.get("told_by")) is not None:
        return f"included in {told_in_text(told_by)} ({told_by['key'][:digits]}), which {_WHICH[told_by['status']]}"
    if delivery.get("drop_reason") is DropReason.SUPERSEDED and delivery["holder"]:
        return f"{delivery['reason']}, while {delivery['holder']} held it"
    return str(delivery["reason"])


def event_data(summary: EventSummary) -> dict[str, Any]:
    """Return a terminal event in the form that `--json` prints, with the number of its deliveries with each status."""
    execution = {"project": summary.project, "domain": summary.domain, "name": summary.name}
    data = {field.name: getattr(summary, field.name) for field in fields(summary) if field.name not in execution}
    data["deliveries"] = {str(status): number for status, number in summary.deliveries.items()}
    return {"key": data.pop("key"), "execution": execution, **data}


def cause_data(counted: CountedCause) -> dict[str, Any]:
    """Return a cause with its number of executions in the form that `--json` prints."""
    project, domain, name = counted.newest.split("/")
    return {**asdict(counted), "newest": {"project": project, "domain": domain, "name": name}}


async def delivery_with_history(ledger: Ledger, stored: StoredDelivery, *, now: datetime) -> dict[str, Any]:
    """Return `delivery_data` with the delivery's attempts, operators' actions, and what it waits for at `now`.

    `members`: the number of other deliveries of which the message tells (`Filter.included_in`).
    """
    key = stored.delivery.key
    (stored,) = await ledger.queries.with_waits([stored], now=now)
    data = _with_history(stored, await ledger.history.attempts(key), await ledger.history.actions(key))
    members = await ledger.queries.count(Filter(included_in=stored.delivery.tells_of or key))
    return {**data, "members": asdict(members)}


def _with_history(stored: StoredDelivery, attempts: Iterable[Attempt], actions: Iterable[Action]) -> dict[str, Any]:
    return {
        **delivery_data(stored),
        "attempts": [attempt_data(attempt) for attempt in attempts],
        "actions": [asdict(action) for action in actions],
    }


def attempt_data(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt in the form that `--json` prints."""
    return {**asdict(attempt), "latency_ms": round(attempt.latency.total_seconds() * 1000, 1)}


def rejected_data(entry: RejectedSummary) -> dict[str, Any]:
    """Return a rejected message in the form that `--json` prints, without its headers and body."""
    return {field.name: getattr(entry, field.name) for field in fields(RejectedSummary)}


def rejected_details(entry: Rejected) -> dict[str, Any]:
    """Return a rejected message with its headers and the stored part of its body, both as text."""
    return {
        **rejected_data(entry),
        "headers": [[name, value.decode(errors="replace")] for name, value in entry.headers],
        "body": entry.body.decode(errors="replace"),
        "complete": entry.whole,
    }
