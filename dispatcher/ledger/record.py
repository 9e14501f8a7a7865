"""Records events with their deliveries, and rejected messages, within a transaction of the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, update

from channels.contract import Content
from dispatcher.ledger import owners
from dispatcher.ledger.claim import lease_held
from dispatcher.ledger.column_types import EncodedJson, to_json
from dispatcher.ledger.digests import Digests, options_of, told_of
from dispatcher.ledger.fired import with_fired_routes
from dispatcher.ledger.holds import HeldFailures, subject_of, unless_resolved, with_holds
from dispatcher.ledger.places import Place, by_place, places, without
from dispatcher.ledger.records import RecordedEvent, RecordResult, Rejected
from dispatcher.ledger.rejected import rejected_row
from dispatcher.ledger.rows import delivery_row
from dispatcher.ledger.schema import contents, deliveries, events, rejected
from dispatcher.ledger.silence_lock import require_version
from dispatcher.ledger.statements import Rows, insert, insert_new
from dispatcher.ledger.threads import Subjects
from dispatcher.model.delivery import Delivery, Kind, State, time_prefixed
from dispatcher.model.event import shortened
from dispatcher.model.severity import highest
from dispatcher.model.verdict import Verdict

RECIPIENTS_NAMED = 5
"""An event's reason names at most this many recipients of resolved notices."""


def record(
    connection: Connection,
    entries: Sequence[RecordedEvent],
    rejections: Sequence[Rejected],
    *,
    now: datetime,
    longest: timedelta,
    silences: int | None = None,
) -> RecordResult:
    """Write a batch: events with their deliveries, and rejected messages. See `Ledger.record`.

    `longest`: no delivery is held longer.
    """
    if silences is not None:
        require_version(connection, silences)
    by_key: dict[str, RecordedEvent] = {}
    for entry in entries:
        by_key.setdefault(entry.event.key, entry)
    new = frozenset(insert_new(connection, events, [_event_row(entry, now) for entry in by_key.values()]))
    recorded = [entry for key, entry in by_key.items() if key in new]  # in the order in which they arrived
    known = Subjects(connection)
    known.load(_subjects(recorded))
    completed = with_fired_routes(known, recorded)
    planned = [one for entry in completed for one in with_holds(known, entry, now=now, longest=longest)]
    added = _add_deliveries(connection, known, completed, planned, now)
    insert(connection, rejected, [rejected_row(entry) for entry in rejections])
    completed = _with_resolved_notices(completed, added)
    changed = {entry.event.key: entry for entry, before in zip(completed, recorded, strict=True) if entry is not before}
    if changed:
        connection.execute(_COMPLETE, [_completed(entry) for entry in changed.values()])
    owners.add(connection, [one.unresolved_owner for one in completed if one.unresolved_owner is not None])
    waiting = [one for one in added if one.state is State.WAITING and one.hold is None]
    return RecordResult(new, waiting, changed)


def _subjects(entries: Iterable[RecordedEvent]) -> Iterator[str]:
    """Yield the subjects that recording the events reads or changes."""
    for entry in entries:
        yield from _subjects_of(entry, entry.deliveries)
        if entry.success is not None:
            yield from entry.success.subjects
        if entry.version is not None:
            yield entry.version.launch_plan
        if entry.streak is not None:
            yield entry.streak.launch_plan
            yield from _subjects_of(entry, (one for route in entry.streak.routes for one in route.deliveries))


def _subjects_of(entry: RecordedEvent, planned: Iterable[Delivery]) -> Iterator[str]:
    for one in planned:
        if (subject := subject_of(one, entry)) or one.thread:
            yield subject


def _with_resolved_notices(entries: Iterable[RecordedEvent], added: Sequence[Delivery]) -> list[RecordedEvent]:
    """Return the events with their resolved notices in their reasons. A verdict becomes `resolved` if no rule matched."""
    notices: dict[str, list[Delivery]] = {}
    for delivery in added:
        if delivery.kind is Kind.RESOLVED_NOTICE:
            notices.setdefault(delivery.event, []).append(delivery)
    return [
        replace(
            entry,
            verdict=Verdict.RESOLVED if entry.verdict == Verdict.NO_MATCHING_RULE else entry.verdict,
            reason=f"{entry.reason}; {_in_words(notices[entry.event.key])}",
        )
        if entry.event.key in notices
        else entry
        for entry in entries
    ]


def _in_words(notices: Sequence[Delivery]) -> str:
    """Return, for example, `2 resolved notices to #alerts, ml-platform`."""
    recipients = list(dict.fromkeys(recipient for notice in notices for recipient in notice.recipients))
    more = len(recipients) - RECIPIENTS_NAMED
    named = ", ".join(recipients[:RECIPIENTS_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{'1 resolved notice' if len(notices) == 1 else f'{len(notices)} resolved notices'} to {named}"


def _add_deliveries(
    connection: Connection,
    known: Subjects,
    entries: Sequence[RecordedEvent],
    planned: Sequence[Delivery],
    now: datetime,
) -> Sequence[Delivery]:
    """Insert the deliveries of new events, and return these deliveries.

    `known`: the subjects of the events. `planned`: their deliveries, some of them held.
    """
    successes = sorted((entry.success for entry in entries if entry.success), key=lambda one: one.started_at)
    runs = {
        (entry.version.launch_plan, entry.version.version): entry.version
        for entry in reversed(entries)
        if entry.version
    }
    digests = Digests(connection, now)
    digests.lock(options_of(planned), told_of(connection, known.open_since(successes)))
    members = partial(digests.admitted, unless_resolved=lambda one: unless_resolved(known, one, now))
    failures = members(one for one in planned if one.thread or one.subject)
    # If the batch has a success, failures are inserted first, so that `record_success` finds the failures' threads.
    first = failures if successes else []
    traces = {entry.event.key: entry.span.trace for entry in entries}
    insert_deliveries(connection, first, traces)
    for delivery in failures:
        if delivery.thread and delivery.state is not State.DROPPED:
            known.record_failure(delivery)
    held = HeldFailures(connection, successes)
    notifications = by_place(one for one in planned if one.kind is Kind.NOTIFICATION) if successes else {}
    resolved_notices: list[Delivery] = []
    for success in successes:
        held.supersede(success)
        ended = [_joined(notice, notifications) for notice in known.record_success(success)]
        ended = digests.with_resolved_notices(ended)
        insert_deliveries(connection, ended, traces)  # so that the next success sees the threads as ended
        resolved_notices += ended
    known.save()
    notified = by_place(resolved_notices).keys()
    others = members(left for one in planned if not (one.thread or one.subject) for left in without(one, notified))
    digests.save()
    changes = [one for run in runs.values() if known.record_version(run) for one in run.change_events]
    rest = [*(failures if not first else []), *others, *changes]
    insert_deliveries(connection, rest, traces)
    return [*first, *resolved_notices, *rest]


def _joined(notice: Delivery, notifications: Mapping[Place, Sequence[Delivery]]) -> Delivery:
    """Return the resolved notice with the rules and the severity of the notifications in whose place it is sent."""
    replaced = [one for place in places(notice) for one in notifications.get(place, ())]
    rules = dict.fromkeys([*notice.rules, *(rule for one in replaced for rule in one.rules)])
    severity = highest(notice.severity, *(one.severity for one in replaced))
    return notice._replace(rules=tuple(rules), severity=severity)


def insert_deliveries(connection: Connection, added: Sequence[Delivery], traces: Mapping[str, str]) -> None:
    """Insert the deliveries and their contents. `traces`: mapping from an event's key to its trace."""
    if not added:
        return
    bodies: dict[str, EncodedJson] = {}
    rows = []
    encoded: dict[tuple[int, datetime], str] = {}
    """The hashes of contents, by the object's id: an event's deliveries share their content's object."""
    for delivery in added:
        content_hash = None
        if delivery.content is not None:
            same = (id(delivery.content), delivery.occurred_at)
            if same not in encoded:
                encoded[same], body = _encode(delivery.content, delivery.occurred_at)
                bodies[encoded[same]] = body
            content_hash = encoded[same]
        rows.append(delivery_row(delivery, content_hash, traces.get(delivery.event, "")))
    insert(connection, contents, [{"content_hash": key, "body": body} for key, body in bodies.items()])
    insert_rows(connection, rows)


def insert_rows(connection: Connection, rows: Rows) -> None:
    """Insert rows of deliveries, whose contents are stored, and what finds them by their recipients."""
    insert(connection, deliveries, rows)
    if connection.dialect.name == "sqlite":
        keys = orjson.dumps([row["key"] for row in rows]).decode()
        connection.exec_driver_sql(_INSERT_RECIPIENTS, (keys, keys))


def store_content(connection: Connection, delivery: Delivery, content: Content) -> bool:
    """Store the content of a claimed delivery. See `Ledger.store_content`."""
    content_hash, body = _encode(content, delivery.occurred_at)
    insert(connection, contents, [{"content_hash": content_hash, "body": body}])
    held = update(deliveries).where(*lease_held(delivery)).values(content=content_hash)
    return connection.execute(held).rowcount == 1


def _encode(content: Content, occurred_at: datetime) -> tuple[str, EncodedJson]:
    """Return the content's hash and its JSON."""
    body = to_json(content)
    return time_prefixed(hashlib.sha256(body).hexdigest(), occurred_at), EncodedJson(body)


def _event_row(entry: RecordedEvent, now: datetime) -> dict[str, Any]:
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
        "rules_version": entry.rules_version,
        "cause": entry.cause,
        "cause_name": entry.cause_name,
    }


_COMPLETE = (
    update(events)
    .where(events.c.key == bindparam("event"))
    .values({name: bindparam(name) for name in ("verdict", "reason", "considered")})
)


def _completed(entry: RecordedEvent) -> dict[str, Any]:
    """Return the parameters of `_COMPLETE`."""
    return {
        "event": entry.event.key,
        "verdict": entry.verdict,
        "reason": entry.reason,
        "considered": list(entry.considered),
    }


_INSERT_RECIPIENTS = """
    INSERT OR IGNORE INTO delivery_recipients (recipient, created_at, delivery)
    SELECT substr(lower(name.value), 1, 320), new.created_at, new.key
    FROM json_each(?) AS keys CROSS JOIN deliveries AS new ON new.key = keys.value
    CROSS JOIN json_each(new.recipients) AS name
    UNION ALL
    SELECT substr(lower(name.value), 1, 320), new.created_at, new.key
    FROM json_each(?) AS keys CROSS JOIN deliveries AS new ON new.key = keys.value
    CROSS JOIN json_each(new.addresses) AS name
    WHERE new.addresses <> new.recipients
"""
"""Adds the recipients and addresses of new deliveries to `delivery_recipients`. Both parameters are the same JSON list
of the deliveries' keys.

For SQLite only. On PostgreSQL, a trigger does the same, once for each statement. SQLite runs a trigger once for each
row, which would cost more than twice as much as this statement.
"""
