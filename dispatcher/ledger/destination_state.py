"""How destinations stand, read and written within another transaction."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, select

from dispatcher.ledger.schema import destinations
from dispatcher.ledger.statements import among, asking, into
from dispatcher.model.rate_limit import NEW_DESTINATION, DestinationState, Feedback, learn


class DestinationStates:
    """The standings of one channel's destinations, for as long as one transaction lasts."""

    def __init__(self, connection: Connection, channel: str) -> None:
        self._connection = connection
        self._channel = channel
        self._known: dict[str, DestinationState] = {}
        self._changed: set[str] = set()

    def load(self, names: Iterable[str]) -> None:
        """Read those that are not known yet, and keep other writers from them until the transaction ends."""
        missing = sorted(set(names) - self._known.keys())
        if not missing:
            return
        rows = asking(_STANDING, self._connection.dialect).rows(self._connection, of=self._channel, names=missing)
        self._known |= dict.fromkeys(missing, NEW_DESTINATION)
        for row in rows:
            self._known[row.name] = DestinationState(
                theoretical_arrival_at=row.theoretical_arrival_at,
                blocked_until=row.blocked_until,
                failures=row.failures,
            )

    def __getitem__(self, name: str) -> DestinationState:
        return self._known.get(name, NEW_DESTINATION)

    def __setitem__(self, name: str, standing: DestinationState) -> None:
        if standing != self[name]:
            self._known[name] = standing
            self._changed.add(name)

    def learn(self, lessons: Iterable[Feedback]) -> None:
        """Take in what attempts told, and write it."""
        told = sorted(lessons, key=lambda feedback: feedback.at)
        if not told:
            return
        self.load(feedback.destination for feedback in told)
        for feedback in told:
            self[feedback.destination] = learn(self[feedback.destination], feedback)
        self.save()

    def save(self) -> None:
        """Write what has changed."""
        rows = [
            {
                "channel": self._channel,
                "name": name,
                "theoretical_arrival_at": standing.theoretical_arrival_at,
                "blocked_until": standing.blocked_until,
                "failures": standing.failures,
            }
            for name in sorted(self._changed)
            for standing in [self._known[name]]
        ]
        into(destinations, self._connection.dialect, overwriting=True).insert(self._connection, rows)
        self._changed.clear()


_STANDING = (
    select(destinations)
    .where(destinations.c.channel == bindparam("of"), among(destinations.c.name, "names"))
    .order_by(destinations.c.name)  # the same order everywhere, so that no two lock each other out
    .with_for_update()
)
