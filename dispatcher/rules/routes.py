"""Routes: the rules of the platform's operators, which say whom to notify of which events. Does no I/O.

All routes that match an event apply, in the order of their files and lines, until one of them has `stop: true`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from dispatcher.model.event import Event
from dispatcher.model.notification import MAX_RECIPIENTS, MAX_RULES
from dispatcher.rules.key_tests import KeyTest
from dispatcher.rules.matcher import Index, Matcher, all_hold, missed_tests
from dispatcher.rules.rule import Considered, Rule

MAX_NEAR_MISSES = 10
"""At most this many routes are explained that almost matched an event."""
MAX_EXAMINED = 30
"""At most this many routes that do not match are examined for what they miss, because examining costs more than testing."""


@dataclass(frozen=True, slots=True)
class Route:
    """Whom to notify of the events that `match` selects."""

    name: str
    defined_at: str
    match: Matcher
    rules: tuple[Rule, ...]
    """One rule for each channel that the route names, and one with the channel `""` for its contacts."""
    recipients: int
    """The number of its recipients. A contact counts as often as it has recipients."""
    stop: bool = False
    """If true, no later route applies to an event that this one matches."""
    replaces: bool = False
    """If true, Flyte's own rules don't apply to an event that this route matches."""
    evaluated: tuple[Considered, ...] = field(init=False, repr=False, compare=False)
    """The rules, as they are explained if the route applies. Made once, because an event may have a hundred routes."""

    def __post_init__(self) -> None:
        rows = [Considered(rule, matched=True, reason="all its conditions hold") for rule in self.rules]
        object.__setattr__(self, "evaluated", tuple(rows))


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A route that does not apply to an event, and the only reason why not."""

    route: Route
    reason: str


@dataclass(frozen=True, slots=True)
class Routing:
    """The routes that apply to an event."""

    matched: tuple[Route, ...] = ()
    near_misses: tuple[NearMiss, ...] = ()
    """Routes that miss the event by one condition, by a fact that is not known, or because an earlier route stops. At
    most `MAX_NEAR_MISSES`."""
    left_out: int = 0
    """The number of routes that match, but would be more routes or recipients than one event may have."""


NO_ROUTES = Routing()


@dataclass(frozen=True, slots=True)
class RouteBook:
    """All routes, in the order in which they apply."""

    routes: tuple[Route, ...] = ()
    _index: Index[Route] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", Index([(route.match, route) for route in self.routes]))

    def __len__(self) -> int:
        return len(self.routes)

    def decide(self, event: Event) -> Routing:
        """Return the routes that apply to the event."""
        candidates, undecidable = self._index.candidates(event), self._index.undecidable(event)
        if not candidates and not undecidable:
            return NO_ROUTES
        matched: list[Route] = []
        missed = [(route, route.match.tests_beside()) for route in islice(undecidable, MAX_EXAMINED)]
        stopped: list[Route] = []
        recipients = left_out = 0
        stopped_by = ""
        for route, tests in candidates:
            if tests and not all_hold(tests, event):
                missed.append((route, tests))
            elif stopped_by:
                stopped.append(route)
            elif left_out or len(matched) == MAX_RULES or recipients + route.recipients > MAX_RECIPIENTS:
                left_out += 1
            else:
                matched.append(route)
                recipients += route.recipients
                stopped_by = route.name if route.stop else ""
        near = [NearMiss(one, f"route {stopped_by} stops before it") for one in stopped[:MAX_NEAR_MISSES]]
        for route, tests in missed[:MAX_EXAMINED]:
            if len(near) == MAX_NEAR_MISSES:
                break
            if reason := _only_miss(route.match, tests, event):
                near.append(NearMiss(route, reason))
        return Routing(tuple(matched), tuple(near), left_out)

    def needs_flyte_admin(self, event: Event) -> bool:
        """True if it depends on a fact that the event lacks whether a route matches."""
        found, undecidable = self._index.candidates(event), self._index.undecidable(event)
        return any(all_hold(tests, event) is None for _, tests in found) or any(
            route.match.holds(event) is None for route in undecidable
        )


def _only_miss(match: Matcher, tests: Sequence[KeyTest], event: Event) -> str:
    """Return the only reason why an event does not match; an empty text if there are several.

    `tests`: those of the matcher's tests that the event may not pass.
    """
    if all_hold(tests, event) is None:
        return match.test(event).reason
    missed = missed_tests(tests, event)
    return missed[0] if len(missed) == 1 else ""
