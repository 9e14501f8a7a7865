"""Holds deliveries back when they are recorded, and drops held failures that a success has resolved.

All within a transaction that records. Every transaction locks in this order, which prevents deadlocks: subjects, rows of
`digests`, held deliveries by their keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, literal_column, select, update

from dispatcher.holding.covering import at_recording, may_be_held
from dispatcher.ledger.records import RecordedEvent
from dispatcher.ledger.schema import deliveries
from dispatcher.ledger.statements import among
from dispatcher.ledger.threads import Subjects
from dispatcher.model.delivery import Delivery, DropReason, Kind, State, Success, execution_subject
from dispatcher.model.event import Event, possible
from dispatcher.model.phase import Phase

RESOLVED_BEFORE = "resolved before it was sent"
"""The reason of held failures that a success has resolved."""


def may_hold(delivery: Delivery, entry: RecordedEvent) -> bool:
    """True if something may hold this delivery of the event."""
    given = bool(entry.silences) or delivery.quiet is not None or delivery.digest is not None
    return given and may_be_held(delivery)


def subject_of(delivery: Delivery, entry: RecordedEvent) -> str:
    """Return what a success resolves that drops the delivery while it is held; empty if no success does.

    That is the subject of its thread. Without a thread it is the launch plan; the execution, if the event names none.
    """
    if delivery.subject or delivery.kind is not Kind.NOTIFICATION or not may_hold(delivery, entry):
        return delivery.subject
    return held_subject(entry.event)


def held_subject(event: Event) -> str:
    """Return what a success resolves that drops the event's held deliveries without a thread; empty for a success."""
    if event.phase is Phase.SUCCEEDED:
        return ""
    if event.launch_plan is not None:
        return event.launch_plan.key
    return execution_subject(event.origin or event.execution)


def with_holds(known: Subjects, entry: RecordedEvent, *, now: datetime, longest: timedelta) -> Iterator[Delivery]:
    """Yield the event's deliveries: held, where a silence or quiet hours cover them; superseded, where a success that
    is recorded already has resolved what would be held.
    """
    for delivery in entry.deliveries:
        if not may_hold(delivery, entry):
            yield delivery
            continue
        with_subject = delivery._replace(subject=subject_of(delivery, entry))
        for one in at_recording(with_subject, entry.silences, now=now, longest=longest):
            yield one if one.hold is None else unless_resolved(known, one, now)


def unless_resolved(known: Subjects, delivery: Delivery, now: datetime) -> Delivery:
    """Return a held delivery. It is dropped if it is a failure that a recorded success has resolved."""
    return _superseded(delivery) if known.well_after(delivery.subject, ended_at(delivery, now)) else delivery


def ended_at(delivery: Delivery, now: datetime) -> datetime:
    """Return when the failed execution ended, as threads count it."""
    return delivery.thread_at or possible(delivery.occurred_at, now)


def _superseded(delivery: Delivery) -> Delivery:
    """Return the delivery dropped. Its hold and the end of its hold stay: a summary counts it by them."""
    return delivery._replace(state=State.DROPPED, drop_reason=DropReason.SUPERSEDED, reason=RESOLVED_BEFORE)


class HeldFailures:
    """The failures that are held and whose subjects a batch's successes may resolve."""

    def __init__(self, connection: Connection, successes: Iterable[Success]) -> None:
        """Read them, and lock their rows until the transaction ends."""
        self._connection = connection
        subjects = sorted({subject for success in successes for subject in success.subjects})
        self._rows: Sequence[tuple[str, str, datetime]] = [
            (row.key, row.subject, row.thread_at or possible(row.occurred_at, row.held_since))
            for row in (connection.execute(_HELD, {"subjects": subjects}) if subjects else ())
        ]

    def supersede(self, success: Success) -> None:
        """Drop those that ended before the successful execution started: nobody needs them any more."""
        resolved = {
            key for key, subject, ended in self._rows if subject in success.subjects and ended < success.started_at
        }
        if resolved:
            self._connection.execute(_SUPERSEDE, {"keys": [*resolved], "at": success.recorded_at})
            self._rows = [row for row in self._rows if row[0] not in resolved]


IS_HELD = (deliveries.c.state == literal_column(f"'{State.WAITING}'"), deliveries.c.hold.is_not(None))
"""SQL conditions: the delivery is held."""
_HELD = (
    select(
        deliveries.c.key,
        deliveries.c.subject,
        deliveries.c.thread_at,
        deliveries.c.occurred_at,
        deliveries.c.held_since,
    )
    .where(among(deliveries.c.subject, "subjects"), *IS_HELD, deliveries.c.kind != Kind.RESOLVED_NOTICE)
    .order_by(deliveries.c.key)
    .with_for_update()
)
_SUPERSEDE = (
    update(deliveries)
    .where(among(deliveries.c.key, "keys"), *IS_HELD)
    .values(state=State.DROPPED, drop_reason=DropReason.SUPERSEDED, reason=RESOLVED_BEFORE, settled_at=bindparam("at"))
)
