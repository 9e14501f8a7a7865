"""Routes: the rules of the platform's operators, which say whom to notify of which events. Does no I/O.

All routes that match an event apply, in the order of their files and lines, until one of them has `stop: true`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from dispatcher.holding.windows import QuietHours
from dispatcher.model.event import Event
from dispatcher.model.notification import MAX_RECIPIENTS, MAX_RULES
from dispatcher.rules.facts import UNKNOWN
from dispatcher.rules.key_tests import KeyTest
from dispatcher.rules.matcher import Index, Matcher, all_hold, missed_tests
from dispatcher.rules.matcher_words import as_data, in_words
from dispatcher.rules.owners import Owner, Owners
from dispatcher.rules.rule import Considered, Rule

MAX_NEAR_MISSES = 10
"""At most this many routes are explained that almost matched an event."""
MAX_EXAMINED = 30
"""At most this many routes that do not match are examined for what they miss, because examining costs more than testing."""

NO_STREAK = "the launch plan isn't known, so there is no streak"
"""Why a route with a streak does not apply to an event that does not name its launch plan."""


@dataclass(frozen=True, slots=True)
class Route:
    """Whom to notify of the events that `match` selects."""

    name: str
    defined_at: str
    match: Matcher
    rules: tuple[Rule, ...]
    """One rule for each channel that the route names, and one with the channel `""` for its contacts, and one for the owner."""
    recipients: int
    """The number of its recipients. A contact counts as often as it has recipients."""
    stop: bool = False
    """If true, no later route applies to an event that this one matches."""
    replaces: bool = False
    """If true, Flyte's own rules don't apply to an event that this route matches."""
    streak: int = 0
    """If not 0, the route fires only if the launch plan's streak has this many failures (`model/streak.py`)."""
    at_the_end: bool = False
    """If true, the route fires when a success ends such a streak, and `match` selects successes."""
    evaluated: tuple[Considered, ...] = field(init=False, repr=False, compare=False)
    """The rules, as they are explained if the route applies. Made once, because an event may have a hundred routes."""
    notifies_owner: bool = field(init=False, repr=False, compare=False)
    """True if the route names the owner."""

    def __post_init__(self) -> None:
        reason = "all its conditions hold"
        if self.streak:
            reason = f"its conditions hold; it waits for {self.awaited}"
        rows = [_evaluated(rule, reason, applies=not self.streak) for rule in self.rules]
        object.__setattr__(self, "evaluated", tuple(rows))
        object.__setattr__(self, "notifies_owner", any(one.names_owner or one.owner for one in self.rules))

    @property
    def owner(self) -> Owner | None:
        """Whom the route notifies as the owner; None if it does not name the owner, or if no event is decided."""
        return next((rule.owner for rule in self.rules if rule.owner is not None), None)

    def to(self, owner: Owner) -> Route:
        """Return the route with the recipient of an event's owner."""
        rules = tuple([rule.to(owner) if rule.names_owner else rule for rule in self.rules])
        return replace(self, rules=rules, recipients=self.recipients - 1 + owner.number)

    @property
    def awaited(self) -> str:
        """What a route with a streak waits for."""
        failures = "1 failure" if self.streak == 1 else f"{self.streak} failures"
        return f"{'the end of ' if self.at_the_end else ''}a streak of {failures}"

    def keys_needing_admin(self) -> frozenset[str]:
        """Return the keys whose facts Flyte's own events may lack, and `launch_plan` if the route has a streak."""
        return self.match.keys_needing_admin() | ({"launch_plan"} if self.streak else frozenset())

    @property
    def severity(self) -> str:
        return self.rules[0].severity

    @property
    def quiet(self) -> QuietHours | None:
        return self.rules[0].quiet

    @property
    def contacts(self) -> tuple[str, ...]:
        """The contacts that it names."""
        return tuple(name for one in self.rules if not one.notification.channel for name in one.notification.recipients)

    def as_data(self) -> dict[str, Any]:
        """Return the route as JSON data: its place, and the rest as a file writes it."""
        named = [one.notification for one in self.rules if one.notification.channel]
        match = as_data(self.match)
        if self.at_the_end:
            del match["phase"]
        return {
            "name": self.name,
            "defined_at": self.defined_at,
            "match": match,
            "notify": [*self.contacts, *({one.channel: list(one.recipients)} for one in named)],
            "severity": self.severity,
            "stop": self.stop,
            "rules": "replace" if self.replaces else "add",
            "streak": self.streak or None,
            "on": "resolved" if self.at_the_end else None,
            "quiet": self.quiet.as_data() if self.quiet is not None else [],
        }


def _evaluated(rule: Rule, reason: str, *, applies: bool) -> Considered:
    """Return the rule as it is explained if its route applies. A rule for an owner who is nobody does not apply."""
    if rule.owner is None:
        return Considered(rule, applies, reason, applies)
    applies = applies and bool(rule.owner.recipients)
    return Considered(rule, applies, f"{reason}; {rule.owner.reason}", applies)


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A route that does not apply to an event, and the only reason why not."""

    route: Route
    reason: str


@dataclass(frozen=True, slots=True)
class PossibleRoute:
    """A route that applies to some executions of a launch plan."""

    route: Route
    depends_on: tuple[str, ...]
    """The keys of its matcher whose facts are different from execution to execution, such as `labels.team`. Empty if it
    depends on the launch plan's streak alone."""

    @property
    def condition(self) -> str:
        """When it applies, in words, and what then happens to other rules."""
        parts = []
        if self.depends_on:
            words = in_words(self.route.match, self.depends_on)
            parts.append(words if words.startswith("unless ") else f"only if {words}")
        if self.route.streak:
            parts.append(f"waits for {self.route.awaited}")
        if self.depends_on and self.route.stop:
            parts.append("then no later route applies")
        if self.depends_on and self.route.replaces:
            parts.append("then Flyte's rules don't apply")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Routing:
    """The routes that apply to an event."""

    matched: tuple[Route, ...] = ()
    """Whether those with a streak fire, only the ledger knows."""
    near_misses: tuple[NearMiss, ...] = ()
    """Routes that miss the event by one condition, by a fact that is not known, or because an earlier route stops. At
    most `MAX_NEAR_MISSES`."""
    left_out: int = 0
    """The number of routes that match, but would be more routes or recipients than one event may have."""

    @property
    def owner(self) -> Owner | None:
        """Whom the routes without a streak notify as the owner; None if none of them names the owner."""
        return next((route.owner for route in self.matched if route.notifies_owner and not route.streak), None)


NO_ROUTES = Routing()


@dataclass(frozen=True, slots=True)
class RouteBook:
    """All routes, in the order in which they apply."""

    routes: tuple[Route, ...] = ()
    owners: Owners | None = None
    """Who the owners of executions are; None if the settings don't say it. Then no route names the owner."""
    counts_streaks: bool = field(init=False, compare=False)
    """True if a route has a streak, so that the failures of all launch plans are counted."""
    _index: Index[Route] = field(init=False, repr=False, compare=False)
    _places: Mapping[str, int] = field(init=False, repr=False, compare=False)
    """Mapping from a route's name to its place in `routes`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts_streaks", any(route.streak for route in self.routes))
        object.__setattr__(self, "_index", Index([(route.match, route) for route in self.routes]))
        object.__setattr__(self, "_places", {route.name: place for place, route in enumerate(self.routes)})

    def __len__(self) -> int:
        return len(self.routes)

    def after(self, name: str | None) -> Iterator[Route]:
        """Return the routes after the one of this name, or all. Raises ValueError if there is no such route."""
        if name is not None and name not in self._places:
            raise ValueError(f"route {name!r} is no longer in effect: begin with the first page")
        return islice(self.routes, 0 if name is None else self._places[name] + 1, None)

    def place(self, route: Route) -> int:
        """Return the place of one of the routes in their order, from 1."""
        return self._places[route.name] + 1

    def quiet(self, name: str) -> QuietHours | None:
        """Return the quiet hours of the route of this name; None if it has none, or if there is no such route."""
        place = self._places.get(name)
        return self.routes[place].quiet if place is not None else None

    def decide(self, event: Event) -> Routing:
        """Return the routes that apply to the event."""
        candidates, undecidable = self._index.candidates(event), self._index.undecidable(event)
        if not candidates and not undecidable:
            return NO_ROUTES
        matched: list[Route] = []
        missed = [(route, route.match.tests_beside()) for route in islice(undecidable, MAX_EXAMINED)]
        stopped: list[Route] = []
        without_plan: list[Route] = []
        recipients = left_out = 0
        stopped_by = ""
        for route, tests in candidates:
            if tests and not all_hold(tests, event):
                missed.append((route, tests))
            elif route.streak and event.launch_plan is None:
                without_plan.append(route)
            elif stopped_by:
                stopped.append(route)
            else:
                one = route.to(self.owners.find(event)) if route.notifies_owner and self.owners else route
                if left_out or len(matched) == MAX_RULES or recipients + one.recipients > MAX_RECIPIENTS:
                    left_out += 1
                    continue
                matched.append(one)
                recipients += one.recipients
                stopped_by = route.name if route.stop else ""
        near = [NearMiss(one, f"route {stopped_by} stops before it") for one in stopped[:MAX_NEAR_MISSES]]
        near += [NearMiss(one, NO_STREAK) for one in without_plan[: MAX_NEAR_MISSES - len(near)]]
        for route, tests in missed[:MAX_EXAMINED]:
            if len(near) == MAX_NEAR_MISSES:
                break
            if reason := _only_miss(route.match, tests, event):
                near.append(NearMiss(route, reason))
        return Routing(tuple(matched), tuple(near), left_out)

    def possible(self, event: Event) -> tuple[list[PossibleRoute], int]:
        """Return the routes that may apply, in their order: facts that the event lacks decide it, or a streak.

        At most `MAX_RULES`; the second value is the number of the others.
        """
        places, candidates = self._places, self._index.candidates(event)
        stops = (places[one.name] for one, tests in candidates if one.stop and all_hold(tests, event))
        last = next(stops, len(places))
        found = {one.name: one for one in chain((one for one, _ in candidates), self._index.undecidable(event))}
        first = sorted((one for one in found.values() if places[one.name] <= last), key=lambda one: places[one.name])
        holding = ((one, one.match.holds(event)) for one in first)
        undecided = [(one, holds) for one, holds in holding if holds is None or (holds and one.streak)]
        possible = [
            PossibleRoute(one, () if holds else one.match.unknown(event)) for one, holds in undecided[:MAX_RULES]
        ]
        return possible, len(undecided) - len(possible)

    def undecided(self, event: Event) -> Iterator[tuple[Route, tuple[str, ...]]]:
        """Yield the routes of which a fact that the event lacks decides whether they apply, whom they notify as the owner,
        or to which streak the event belongs, each with the keys of those facts.
        """
        of_streak = ("launch_plan",) if event.launch_plan is None else ()
        for one in self.possible(event)[0]:
            if keys := one.depends_on or of_streak:
                yield one.route, keys
        if self.owners is not None and (keys := self.owners.unknown(event)):
            yield from ((route, keys) for route in self.decide(event).matched if route.notifies_owner)

    def needs_flyte_admin(self, event: Event) -> bool:
        """True if it depends on a fact that the event lacks whether a route matches, whom it notifies as the owner, or
        which streak the event belongs to.
        """
        if self.counts_streaks and event.launch_plan is None and not event.looked_up:
            return True
        lacks_owner = self.owners is not None and bool(self.owners.unknown(event))
        for route, tests in self._index.candidates(event):
            holds = all_hold(tests, event)
            if holds is None or (holds and lacks_owner and route.notifies_owner):
                return True
        return any(route.match.holds(event) is None for route in self._index.undecidable(event))


def _only_miss(match: Matcher, tests: Sequence[KeyTest], event: Event) -> str:
    """Return the only reason why an event does not match; an empty text if there are several.

    `tests`: those of the matcher's tests that the event may not pass; it does not pass all of them.
    """
    if len(tests) == 1 and (value := tests[0].fact(event)) is not UNKNOWN:
        return tests[0].missed(value)
    if all_hold(tests, event) is None:
        return match.test(event).reason
    missed = missed_tests(tests, event)
    return missed[0] if len(missed) == 1 else ""
