"""How launch plans stand, read and written within another transaction: what a success ends, and what comes too late.

A launch plan stands as its newest end says, whatever order the events arrive in. Its row is locked while an event of
it is recorded, so that of a failure and a success on two replicas one sees the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType

from sqlalchemy import Connection, select

from dispatcher.ledger.schema import deliveries, launch_plan_status, launch_plan_versions
from dispatcher.ledger.statements import among, asking, into
from dispatcher.model.delivery import Delivery, NewVersion, OpenThread, Resolution, State


@dataclass(slots=True)
class _Standing:
    failed_at: datetime | None = None
    succeeded_at: datetime | None = None


class LaunchPlanStatus:
    """The launch plans of one batch, for as long as its transaction lasts."""

    def __init__(self, connection: Connection, dialect: ModuleType) -> None:
        self._connection = connection
        self._dialect = dialect
        self._known: dict[str, _Standing] = {}

    def load(self, names: Iterable[str]) -> None:
        """Read them, and keep other writers from them until the transaction ends."""
        ordered = sorted(set(names))  # the same order everywhere, so that no two lock each other out
        if not ordered:
            return
        unknown = [{"name": name, "failed_at": None, "succeeded_at": None} for name in ordered]
        into(launch_plan_status, self._connection.dialect).insert(self._connection, unknown)
        for row in asking(_STANDING, self._connection.dialect).rows(self._connection, names=ordered):
            self._known[row.name] = _Standing(row.failed_at, row.succeeded_at)

    def failed(self, delivery: Delivery) -> None:
        """Somebody is to be told of a failure."""
        standing = self._known[delivery.launch_plan]
        if standing.failed_at is None or delivery.occurred_at > standing.failed_at:
            standing.failed_at = delivery.occurred_at

    def recovered_since(self, delivery: Delivery) -> bool:
        """Whether the launch plan is known to have succeeded after what the delivery tells of."""
        succeeded_at = self._known[delivery.launch_plan].succeeded_at
        return succeeded_at is not None and succeeded_at > delivery.occurred_at

    def recovered(self, recovery: Resolution) -> list[OpenThread]:
        """The conversations that a success ends; none where it is old news, or nobody was told of a failure since."""
        standing = self._known[recovery.launch_plan]
        since = standing.succeeded_at
        if since is not None and recovery.occurred_at <= since:
            return []
        standing.succeeded_at = recovery.occurred_at
        if standing.failed_at is None or (since is not None and standing.failed_at < since):
            return []
        query = select(deliveries).where(
            deliveries.c.launch_plan == recovery.launch_plan, deliveries.c.state != State.DEAD
        )
        if since is not None:
            query = query.where(deliveries.c.occurred_at >= since)
        ordered = query.order_by(deliveries.c.occurred_at, deliveries.c.resolves, deliveries.c.key)
        last_words = {row.thread: row for row in self._connection.execute(ordered)}
        return [
            OpenThread(
                channel=row.channel,
                recipients=row.recipients,
                addresses=row.addresses,
                thread=thread,
                event=row.event,
            )
            for thread, row in sorted(last_words.items())
            if not row.resolves
            and row.occurred_at <= recovery.occurred_at  # else it has ended, or failed anew since then
        ]

    def is_new(self, run: NewVersion) -> bool:
        """Whether the launch plan ran in other versions before, and never in this one. It is remembered."""
        there = (
            self._dialect.insert(launch_plan_versions)
            .on_conflict_do_nothing()
            .returning(launch_plan_versions.c.version)
        )
        row = {"launch_plan": run.launch_plan, "version": run.version}
        if (self._connection.scalar(there, row)) is None:
            return False
        others = select(launch_plan_versions.c.version).where(
            launch_plan_versions.c.launch_plan == run.launch_plan, launch_plan_versions.c.version != run.version
        )
        return (self._connection.scalar(others.limit(1))) is not None

    def save(self) -> None:
        """Write how they stand now."""
        rows = [
            {"name": name, "failed_at": standing.failed_at, "succeeded_at": standing.succeeded_at}
            for name, standing in sorted(self._known.items())
        ]
        into(launch_plan_status, self._connection.dialect, overwriting=True).insert(self._connection, rows)


_STANDING = (
    select(launch_plan_status)
    .where(among(launch_plan_status.c.name, "names"))
    .order_by(launch_plan_status.c.name)
    .with_for_update()
)
