"""Reads and writes the state of destinations (rate limit, circuit breaker) within a transaction of the ledger."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, select

from dispatcher.ledger.rows import read
from dispatcher.ledger.schema import destinations
from dispatcher.ledger.statements import among, insert
from dispatcher.model.rate_limit import NEW_DESTINATION, DestinationState, Feedback, apply


class DestinationStates:
    """The states of one channel's destinations, by name, in one transaction. `save` writes the states that changed."""

    def __init__(self, connection: Connection, channel: str) -> None:
        self._connection = connection
        self._channel = channel
        self._loaded: dict[str, DestinationState] = {}
        self._changed: set[str] = set()

    def load(self, names: Iterable[str]) -> None:
        """Read the states that are not loaded yet, and lock their rows until the transaction ends."""
        missing = sorted(set(names) - self._loaded.keys())
        if not missing:
            return
        self._loaded |= dict.fromkeys(missing, NEW_DESTINATION)
        for row in self._connection.execute(_SELECT, {"of": self._channel, "names": missing}):
            self._loaded[row.name] = read(DestinationState, row)

    def __getitem__(self, name: str) -> DestinationState:
        return self._loaded.get(name, NEW_DESTINATION)

    def __setitem__(self, name: str, state: DestinationState) -> None:
        if state != self[name]:
            self._loaded[name] = state
            self._changed.add(name)

    def apply(self, feedback: Iterable[Feedback]) -> None:
        """Change the states by the feedback of attempts, earliest first, and write the changed states."""
        in_order = sorted(feedback, key=lambda one: one.at)
        if not in_order:
            return
        self.load(one.destination for one in in_order)
        for one in in_order:
            self[one.destination] = apply(self[one.destination], one)
        self.save()

    def save(self) -> None:
        """Write the changed states."""
        rows = [
            {
                "channel": self._channel,
                "name": name,
                "theoretical_arrival_at": state.theoretical_arrival_at,
                "blocked_until": state.blocked_until,
                "failures": state.failures,
            }
            for name in sorted(self._changed)
            for state in [self._loaded[name]]
        ]
        insert(self._connection, destinations, rows, overwrite=True)
        self._changed.clear()


_SELECT = (
    select(destinations)
    .where(destinations.c.channel == bindparam("of"), among(destinations.c.name, "names"))
    .order_by(destinations.c.name)  # every transaction locks rows in the same order, which prevents deadlocks
    .with_for_update()
)
