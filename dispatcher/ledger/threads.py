"""Reads and writes what the ledger knows of threads and their subjects, within a transaction of the ledger.

A subject is a launch plan, or an execution that others recover or relaunch. Whether it is well depends on the times of
its events, even if they arrive in another order. A transaction that records an event of a subject locks the subject's
row. So if two replicas record a failure and a success at the same time, the second transaction sees the event that the
first transaction recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, or_, select

from channels.contract import EarlierMessage, Thread
from dispatcher.ledger.records import ClaimedThread
from dispatcher.ledger.schema import contents, deliveries, launch_plan_versions, subjects
from dispatcher.ledger.statements import among, insert
from dispatcher.model.delivery import Delivery, Kind, NewVersion, OpenThread, Outage, State, Success
from dispatcher.model.streak import RouteResult, Streak, StreakEvent

MAY_HAVE_ARRIVED: ColumnElement[bool] = or_(
    deliveries.c.state == State.SENT, deliveries.c.in_doubt, deliveries.c.lease.is_not(None)
)
"""SQL condition: the message was sent, an attempt is in doubt, or an attempt is being made now."""
TOLD_OF: ColumnElement[bool] = deliveries.c.included_in.is_not(None)
"""SQL condition: a digest or a summary tells of the delivery, or a page for the newest failure of its launch plan."""


@dataclass(slots=True)
class _Status:
    well_since: datetime | None = None
    open_since: datetime | None = None
    failed_at: datetime | None = None
    streak: Mapping[str, Any] | None = None

    def row(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "well_since": self.well_since,
            "open_since": self.open_since,
            "failed_at": self.failed_at,
            "streak": self.streak,
        }

    def has_been_well(self, since: datetime) -> None:
        if self.well_since is None or since > self.well_since:
            self.well_since = since


class Subjects:
    """Reads and updates the subjects of a batch, in the transaction that records the batch."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loaded: dict[str, _Status] = {}
        self._streaks: dict[str, Streak] = {}
        """The streaks that this batch changes, by launch plan."""

    def load(self, names: Iterable[str]) -> None:
        """Read the subjects, and lock their rows until the transaction ends."""
        ordered = sorted(set(names))  # every transaction locks rows in the same order, which prevents deadlocks
        if not ordered:
            return
        insert(self._connection, subjects, [_Status().row(name) for name in ordered])
        for row in self._connection.execute(_SELECT, {"names": ordered}):
            self._loaded[row.name] = _Status(row.well_since, row.open_since, row.failed_at, row.streak)

    def well_after(self, subject: str, at: datetime) -> bool:
        """True if the loaded subject has been well since a time after this."""
        status = self._loaded.get(subject)
        return status is not None and status.well_since is not None and status.well_since > at

    def open_since(self, successes: Iterable[Success]) -> dict[str, datetime]:
        """Return the subjects of which these successes may end threads, each with a time from which on all are open."""
        names = dict.fromkeys(subject for success in successes for subject in success.subjects)
        since = {name: self._loaded[name].open_since for name in names}
        return {name: at for name, at in since.items() if at is not None}

    def record_failure(self, delivery: Delivery) -> None:
        """Note that the subject has a thread with this failure, which no success has ended."""
        status, at = self._loaded[delivery.subject], delivery.thread_at or delivery.occurred_at
        if status.open_since is None or at < status.open_since:
            status.open_since = at

    def record_success(self, success: Success) -> list[Delivery]:
        """Record a success. Returns the resolved notices for the threads that it ends.

        A success ends a thread if the thread's newest failure ended before the successful execution started. "Newest"
        means: among the failures that were sent, are in doubt or wait, and those that another message told of. A thread
        of which everything is held has told nobody anything, so there is nothing to resolve.
        """
        return [notice for subject in success.subjects for notice in self._end_threads(subject, success)]

    def _end_threads(self, subject: str, success: Success) -> list[Delivery]:
        status = self._loaded[subject]
        status.has_been_well(success.started_at)
        if status.open_since is None:
            return []
        query = (
            select(deliveries)
            .where(
                deliveries.c.subject == subject,
                deliveries.c.thread_at >= status.open_since,
                or_(deliveries.c.state == State.WAITING, MAY_HAVE_ARRIVED, TOLD_OF),
            )
            .order_by(deliveries.c.thread_at, deliveries.c.kind != Kind.RESOLVED_NOTICE, deliveries.c.key)
        )
        rows = self._connection.execute(query).all()
        told = {row.thread for row in rows if row.hold is None or row.included_in}
        newest = {row.thread: row for row in rows}
        open_threads = [row for row in newest.values() if row.kind != Kind.RESOLVED_NOTICE]
        ended = [row for row in open_threads if row.thread in told and row.thread_at < success.started_at]
        if len(ended) == len(open_threads):
            status.open_since = None
        return [
            success.resolved_notice(
                OpenThread(
                    channel=row.channel,
                    recipients=row.recipients,
                    addresses=row.addresses,
                    thread=row.thread,
                    event=row.event,
                    severity=row.severity,
                ),
                subject,
            )
            for row in sorted(ended, key=lambda row: str(row.thread))
            if row.channel in success.channels
        ]

    def record_streak(self, event: StreakEvent) -> list[RouteResult]:
        """Record an event in its launch plan's streak. Returns which of its routes fire, and why."""
        status = self._loaded[event.launch_plan]
        streak = self._streaks.get(event.launch_plan)
        if streak is None:
            streak = self._streaks[event.launch_plan] = Streak.from_data(status.streak, status.well_since)
        if event.well_since is not None:
            status.has_been_well(event.well_since)
        return streak.record(event, status.well_since)

    def record_version(self, run: NewVersion) -> bool:
        """Record a run's version. Returns True if the version is new, but not the launch plan's first version."""
        # Its row in `subjects` is locked, so no other transaction can add the version in the meantime.
        versions = select(launch_plan_versions.c.version).where(launch_plan_versions.c.launch_plan == run.launch_plan)
        recorded = versions.where(launch_plan_versions.c.version == run.version)
        if self._connection.scalar(recorded) is not None:
            return False
        first = self._connection.scalar(versions.limit(1)) is None
        row = {"launch_plan": run.launch_plan, "version": run.version}
        insert(self._connection, launch_plan_versions, [row])
        return not first

    def save(self) -> None:
        """Write all loaded subjects."""
        for name, streak in self._streaks.items():
            self._loaded[name].streak = streak.as_data()
            self._loaded[name].failed_at = streak.ends[-1] if streak.ends else None
        rows = [status.row(name) for name, status in sorted(self._loaded.items())]
        insert(self._connection, subjects, rows, overwrite=True)


_SELECT = select(subjects).where(among(subjects.c.name, "names")).order_by(subjects.c.name).with_for_update()


def claimed_thread(connection: Connection, delivery: Delivery) -> ClaimedThread:
    """Return the thread of a claimed delivery, with its earlier messages. See `Ledger.thread`."""
    resolves = delivery.kind is Kind.RESOLVED_NOTICE
    others = (deliveries.c.thread == delivery.thread, deliveries.c.key != delivery.key)
    # What was held replies in the thread as it is now: also to what ended later and was sent meanwhile.
    released = delivery.held_since is not None and not resolves
    before = others if released else (*others, deliveries.c.thread_at <= delivery.thread_at)
    last_resolved = select(func.max(deliveries.c.thread_at)).where(
        *before, deliveries.c.kind == Kind.RESOLVED_NOTICE, or_(deliveries.c.state == State.SENT, TOLD_OF)
    )
    failed_since = select(deliveries.c.key).where(
        *others,
        deliveries.c.thread_at >= delivery.thread_at,
        deliveries.c.kind != Kind.RESOLVED_NOTICE,
        or_(MAY_HAVE_ARRIVED, TOLD_OF),
    )
    well_since = select(subjects.c.name).where(
        subjects.c.name == delivery.subject, subjects.c.well_since > delivery.thread_at
    )
    since = connection.scalar(last_resolved)
    superseded = connection.scalar((failed_since if resolves else well_since).limit(1)) is not None
    current = (*before, *([deliveries.c.thread_at >= since] if since is not None else []))
    thread = Thread(key=delivery.thread, earlier=_earlier_messages(connection, *current), resolves=resolves)
    if resolves and not thread.earlier and (message := _message_that_told(connection, *current)) is not None:
        # The message tells of other launch plans too, so a success of this one must not change it.
        thread = Thread(key=delivery.thread, earlier=(message,))
    if not resolves:
        return ClaimedThread(thread, superseded=superseded)
    outage, told_at = _outage(connection, *current), _told_at(connection, *current)
    return ClaimedThread(thread, superseded=superseded, outage=outage, told_at=told_at)


def _outage(connection: Connection, *conditions: ColumnElement[bool]) -> Outage | None:
    """Return the number of matching failures and the end of the first one; None if there is no failure.

    Dropped failures do not count, because a success had resolved them before they were sent. Those that another message
    told of do.
    """
    failures = select(func.count(), func.min(deliveries.c.thread_at)).where(
        *conditions, deliveries.c.kind != Kind.RESOLVED_NOTICE, or_(deliveries.c.state != State.DROPPED, TOLD_OF)
    )
    number, since = connection.execute(failures).one()
    return Outage(number, since) if number else None


def _earlier_messages(connection: Connection, *conditions: ColumnElement[bool]) -> tuple[EarlierMessage, ...]:
    """Return the first and the last of the matching failure messages that arrived or may have arrived."""
    query = (
        select(deliveries.c.key, deliveries.c.reference, contents.c.body)
        .join(contents, contents.c.content_hash == deliveries.c.content)
        .where(*conditions, deliveries.c.kind != Kind.RESOLVED_NOTICE, MAY_HAVE_ARRIVED)
        .limit(1)
    )
    first = connection.execute(query.order_by(deliveries.c.thread_at, deliveries.c.key)).first()
    if first is None:
        return ()
    last = connection.execute(query.order_by(deliveries.c.thread_at.desc(), deliveries.c.key.desc())).one()
    rows = [first] if first.key == last.key else [first, last]
    return tuple(EarlierMessage(reference=row.reference or {}, content=row.body) for row in rows)


def _message_that_told(connection: Connection, *conditions: ColumnElement[bool]) -> EarlierMessage | None:
    """Return the digest or summary that told of the newest of the matching failures, or will tell; None if it is dead."""
    told = deliveries.alias("told")
    newest = (
        select(told.c.included_in)
        .where(
            told.c.key.in_(select(deliveries.c.key).where(*conditions, TOLD_OF)), told.c.kind != Kind.RESOLVED_NOTICE
        )
        .order_by(told.c.thread_at.desc(), told.c.key)
        .limit(1)
    )
    is_told = or_(MAY_HAVE_ARRIVED, deliveries.c.state == State.WAITING)
    return _message(connection, deliveries.c.key == newest.scalar_subquery(), deliveries.c.event.is_(None), is_told)


def _told_at(connection: Connection, *conditions: ColumnElement[bool]) -> datetime | None:
    """Return when the next digest or summary is due that tells of matching failures; a past time if it is being sent."""
    told = deliveries.alias("told")
    of_failures = told.c.key.in_(select(deliveries.c.key).where(*conditions, TOLD_OF))
    tellers = select(told.c.included_in).where(of_failures, told.c.kind != Kind.RESOLVED_NOTICE)
    due_at = case((deliveries.c.lease.is_not(None), deliveries.c.created_at), else_=deliveries.c.due_at)
    waiting = (deliveries.c.state == State.WAITING, deliveries.c.event.is_(None))
    told_at: datetime | None = connection.scalar(
        select(func.min(due_at)).where(deliveries.c.key.in_(tellers), *waiting)
    )
    return told_at


def first_message(connection: Connection, delivery: Delivery) -> ClaimedThread | None:
    """Return the message to which a claimed digest replies, as the only one of its thread; None if it was not sent."""
    first = _message(connection, deliveries.c.key == delivery.reply_to, MAY_HAVE_ARRIVED)
    if first is None:
        return None
    return ClaimedThread(Thread(key=delivery.key, earlier=(first,)), superseded=False)


def _message(connection: Connection, *conditions: ColumnElement[bool]) -> EarlierMessage | None:
    """Return the matching message. It has no reference if it was not sent, and no content if it is not rendered."""
    query = select(deliveries.c.reference, contents.c.body)
    query = query.outerjoin(contents, contents.c.content_hash == deliveries.c.content).where(*conditions)
    row = connection.execute(query).first()
    return EarlierMessage(reference=row.reference or {}, content=row.body or {}) if row is not None else None
