"""Finds names that a filter mentions and that the ledger does not know, and the names that it knows instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Select, select

from dispatcher.ledger.engine import Database
from dispatcher.ledger.records import Filter
from dispatcher.ledger.schema import deliveries, delivery_recipients, events
from dispatcher.ledger.search import lower, of_launch_plan

MAX_EVENTS = 10_000
"""Known names are read from this many of the newest events, because no index lists all names."""


class Names:
    """Every method raises LedgerUnavailable while the database can't be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def unknown(self, wanted: Filter) -> Mapping[str, frozenset[str]]:
        """Return the known names of each kind whose name in the filter is unknown.

        Kinds: `channel`, `recipient`, `launch_plan`, `project`, `domain` and `cause`. Names are compared without regard to case
        only where the filter does.
        """
        newest = select(events).order_by(events.c.recorded_at.desc()).limit(MAX_EVENTS).subquery("newest")
        of_newest = deliveries.c.event.in_(select(newest.c.key))
        every: dict[str, Select[Any]] = {
            "channel": select(deliveries.c.channel).distinct().where(of_newest),
            "recipient": select(deliveries.c.recipients).distinct().where(of_newest),
            "launch_plan": select(newest.c.launch_plan).distinct(),
            "project": select(newest.c.project).distinct(),
            "domain": select(newest.c.domain).distinct(),
            "cause": select(newest.c.cause).distinct(),
        }
        found: dict[str, frozenset[str]] = {}
        async with self._database.reading() as connection:
            for kind, query in every.items():
                if (name := getattr(wanted, kind)) is None:
                    continue
                if kind in _EXACT and await connection.scalar(_EXACT[kind](name).limit(1)) is not None:
                    continue
                values: Iterable[Any] = await connection.scalars(query)
                names = {one for value in values for one in ([value] if isinstance(value, str) else value)}
                if name not in names:
                    found[kind] = frozenset(names - {""})
        return found


_EXACT = {
    "cause": lambda name: select(events.c.key).where(events.c.cause == name),
    "launch_plan": lambda name: select(events.c.key).where(of_launch_plan(events.c.launch_plan, name)),
    "recipient": lambda name: select(delivery_recipients.c.delivery).where(
        delivery_recipients.c.recipient == lower(name)
    ),
}
"""Selects the entries of a name through an index, for the kinds of names that have one."""
