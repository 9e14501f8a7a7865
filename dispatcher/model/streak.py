"""Streaks: how often a launch plan has failed since it was last well, and which routes wait for that number.

A launch plan's streak is its recorded FAILED and TIMED_OUT events that ended after `well_since`, the latest start among
its recorded successes. ABORTED neither adds to it nor ends it. Events may arrive in any order: each one is judged by what
was recorded before it, and what arrives later takes nothing back.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Self

from dispatcher.model.delivery import Delivery
from dispatcher.model.owner import UnresolvedOwner

MAX_STREAK = 100
"""The newest ends that are kept, and so the longest streak that is counted."""
MAX_FIRED = 1000
"""Maximum number of routes that are remembered as fired. After that, the route that fired first may fire again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreakRoute:
    """A route that matches an event, and fires only if the launch plan's streak is long enough."""

    name: str
    streak: int
    """The number of failures that the streak must have."""
    deliveries: Sequence[Delivery]
    """The deliveries to all whom the route names, as they are if the route fires."""
    unresolved_owner: UnresolvedOwner | None = None
    """The execution's owner, if the route names the owner, who is not known; else None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreakEvent:
    """What an event means for its launch plan's streak. Only the ledger knows the streak."""

    event: str
    """The event's key."""
    launch_plan: str
    """The launch plan's key (`EntityId.key`)."""
    failed_at: datetime | None = None
    """When the execution ended, if it is FAILED or TIMED_OUT; else None."""
    well_since: datetime | None = None
    """When the execution started, if it is SUCCEEDED; else None. Its routes fire if it ends the streak."""
    routes: Sequence[StreakRoute] = ()
    """The matching routes that wait for a streak, or for its end."""


class RouteResult(NamedTuple):
    """Whether a route fires, and why."""

    route: StreakRoute
    fires: bool
    reason: str


@dataclass(slots=True)
class Streak:
    """One launch plan's streak."""

    ends: list[datetime] = field(default_factory=list)
    """When its newest failures ended, oldest first."""
    longest: int = 0
    """The largest number of failures that the streak has had. A late success may have removed some of them."""
    fired: dict[str, str] = field(default_factory=dict)
    """Mapping from each route that has fired during the streak to the key of the event that it fired with."""

    @classmethod
    def from_data(cls, data: Mapping[str, Any] | None, well_since: datetime | None) -> Self:
        """Return the streak that the ledger stored. Failures that ended up to `well_since` are left out."""
        if data is None:
            return cls()
        streak = cls([datetime.fromisoformat(end) for end in data["ends"]], data["longest"], dict(data["fired"]))
        streak._leave_out(well_since)
        return streak

    def as_data(self) -> dict[str, Any] | None:
        """Return the streak as JSON data; None if it has no failures."""
        if not self.ends:
            return None
        return {"ends": [end.isoformat() for end in self.ends], "longest": self.longest, "fired": self.fired}

    def record(self, event: StreakEvent, well_since: datetime | None) -> list[RouteResult]:
        """Record an event, and return the results of its routes.

        `well_since`: the latest start among the recorded successes, this one included.
        """
        if event.well_since is not None:
            return self._end(event, well_since)
        if event.failed_at is not None and (well_since is None or event.failed_at > well_since):
            insort(self.ends, event.failed_at)
            del self.ends[:-MAX_STREAK]
            self.longest = max(self.longest, len(self.ends))
        return [self._test(route, event.event) for route in event.routes]

    def _test(self, route: StreakRoute, event: str) -> RouteResult:
        number = len(self.ends)
        if route.name in self.fired:
            return RouteResult(route, False, f"has fired in this streak already, with {self.fired[route.name]}")
        if number < route.streak:
            return RouteResult(route, False, f"streak is {number} of {route.streak}")
        self.fired[route.name] = event
        if len(self.fired) > MAX_FIRED:
            del self.fired[next(iter(self.fired))]
        if number > route.streak:
            return RouteResult(route, True, f"streak is {number}, and {_are(route.streak)} enough")
        return RouteResult(route, True, f"streak is {number} of {route.streak}")

    def _end(self, event: StreakEvent, well_since: datetime | None) -> list[RouteResult]:
        """Leave out the failures before a success. Its routes fire if none is left."""
        had, longest = bool(self.ends), self.longest
        self._leave_out(well_since)
        if self.ends:
            failures = "1 failure" if len(self.ends) == 1 else f"{len(self.ends)} failures"
            reason = f"the streak goes on: {failures} ended after the success had started"
        elif not had:
            reason = "the success ended no streak"
        else:
            return [_at_the_end(route, longest) for route in event.routes]
        return [RouteResult(route, False, reason) for route in event.routes]

    def _leave_out(self, well_since: datetime | None) -> None:
        if well_since is not None:
            self.ends = [end for end in self.ends if end > well_since]
        if not self.ends:
            self.longest = 0
            self.fired = {}


def _at_the_end(route: StreakRoute, longest: int) -> RouteResult:
    if longest < route.streak:
        return RouteResult(route, False, f"the success ended a streak of {longest}, and {_are(route.streak)} needed")
    return RouteResult(route, True, f"the success ended a streak of {longest}")


def _are(number: int) -> str:
    return "1 is" if number == 1 else f"{number} are"
