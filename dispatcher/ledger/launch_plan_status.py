"""Reads and writes the status of launch plans within a transaction of the ledger.

A launch plan's status depends on its newest terminal event, even if events arrive in another order. A transaction that
records an event of a launch plan locks the launch plan's row. So if two replicas record a failure and a success at the
same time, the second transaction sees the event that the first transaction recorded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType

from sqlalchemy import Connection, select

from dispatcher.ledger.schema import deliveries, launch_plan_status, launch_plan_versions
from dispatcher.ledger.statements import among, prepare_insert, prepare_select
from dispatcher.model.delivery import Delivery, NewVersion, OpenThread, Resolution, State


@dataclass(slots=True)
class _Status:
    failed_at: datetime | None = None
    succeeded_at: datetime | None = None


class LaunchPlanStatus:
    """Reads and updates the status of a batch's launch plans, in the transaction that records the batch."""

    def __init__(self, connection: Connection, dialect: ModuleType) -> None:
        self._connection = connection
        self._dialect = dialect
        self._loaded: dict[str, _Status] = {}

    def load(self, names: Iterable[str]) -> None:
        """Read the status of the launch plans, and lock their rows until the transaction ends."""
        ordered = sorted(set(names))  # every transaction locks rows in the same order, which prevents deadlocks
        if not ordered:
            return
        empty = [{"name": name, "failed_at": None, "succeeded_at": None} for name in ordered]
        prepare_insert(launch_plan_status, self._connection.dialect).insert(self._connection, empty)
        query = prepare_select(_SELECT, self._connection.dialect)
        for row in query.rows(self._connection, names=ordered):
            self._loaded[row.name] = _Status(row.failed_at, row.succeeded_at)

    def record_failure(self, delivery: Delivery) -> None:
        """Set the launch plan's last failure to the time of this delivery's event, unless a later failure is stored."""
        status = self._loaded[delivery.launch_plan]
        if status.failed_at is None or delivery.occurred_at > status.failed_at:
            status.failed_at = delivery.occurred_at

    def succeeded_since(self, delivery: Delivery) -> bool:
        """True if the launch plan succeeded after the delivery's event."""
        succeeded_at = self._loaded[delivery.launch_plan].succeeded_at
        return succeeded_at is not None and succeeded_at > delivery.occurred_at

    def record_success(self, success: Resolution) -> list[OpenThread]:
        """Set the launch plan's last success to the time of this success, and return the open threads that it ends.

        The list is empty if a later success is recorded already, or if no failure was recorded since the last success.
        """
        status = self._loaded[success.launch_plan]
        since = status.succeeded_at
        if since is not None and success.occurred_at <= since:
            return []
        status.succeeded_at = success.occurred_at
        if status.failed_at is None or (since is not None and status.failed_at < since):
            return []
        query = select(deliveries).where(
            deliveries.c.launch_plan == success.launch_plan, deliveries.c.state != State.DEAD
        )
        if since is not None:
            query = query.where(deliveries.c.occurred_at >= since)
        ordered = query.order_by(deliveries.c.occurred_at, deliveries.c.resolves, deliveries.c.key)
        last_in_thread = {row.thread: row for row in self._connection.execute(ordered)}
        return [
            OpenThread(
                channel=row.channel,
                recipients=row.recipients,
                addresses=row.addresses,
                thread=thread,
                event=row.event,
            )
            for thread, row in sorted(last_in_thread.items())
            if not row.resolves  # a resolved notice has already ended the other threads
            and row.occurred_at <= success.occurred_at  # in the other threads, the launch plan failed again later
        ]

    def record_version(self, run: NewVersion) -> bool:
        """Record a run's version. Returns True if the version is new, but not the launch plan's first version."""
        insert = (
            self._dialect.insert(launch_plan_versions)
            .on_conflict_do_nothing()
            .returning(launch_plan_versions.c.version)
        )
        row = {"launch_plan": run.launch_plan, "version": run.version}
        if (self._connection.scalar(insert, row)) is None:
            return False
        others = select(launch_plan_versions.c.version).where(
            launch_plan_versions.c.launch_plan == run.launch_plan, launch_plan_versions.c.version != run.version
        )
        return (self._connection.scalar(others.limit(1))) is not None

    def save(self) -> None:
        """Write the status of all loaded launch plans."""
        rows = [
            {"name": name, "failed_at": status.failed_at, "succeeded_at": status.succeeded_at}
            for name, status in sorted(self._loaded.items())
        ]
        prepare_insert(launch_plan_status, self._connection.dialect, overwrite=True).insert(self._connection, rows)


_SELECT = (
    select(launch_plan_status)
    .where(among(launch_plan_status.c.name, "names"))
    .order_by(launch_plan_status.c.name)
    .with_for_update()
)
