"""Tries routes on events of the past: whom they would notify, compared with who was notified. Records and sends nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from operator import attrgetter
from typing import Any

from dispatcher.dry_run import SourceOfRules
from dispatcher.ledger import StoredEvent
from dispatcher.model.delivery import Kind
from dispatcher.model.event import Event
from dispatcher.model.streak import Streak, StreakRoute
from dispatcher.planning.planner import Planner
from dispatcher.rules import AdminExecution, Decision, Route, RouteBook, Rule, RuleBook, Verdict, decide, decides_itself
from dispatcher.rules.decide import flytes_matches

MAX_RECIPIENTS = 10_000
"""Recipients are counted one by one up to this number. The others are counted together."""
MAX_CHANGES = 100
"""At most this many events are named whose recipients would change."""
_OTHERS = ("", "others")

Recipient = tuple[str, str]
"""A channel and an address."""


@dataclass(slots=True)
class Counts:
    """How many notifications there were, and how many there would be."""

    was: int = 0
    would_be: int = 0
    held: int = 0
    """How many of these quiet hours would hold."""

    def add(self, *, was: int, would_be: int, held: int) -> None:
        self.was += was
        self.would_be += would_be
        self.held += held


@dataclass(slots=True, kw_only=True)
class RecipientCounts(Counts):
    """The notifications to one address."""

    recipient: Recipient
    days: Counter[date] = field(default_factory=Counter)
    """How many there would be on each day."""


@dataclass(slots=True)
class RouteCounts:
    """For how many events a route would notify somebody."""

    route: Route
    matched: int = 0
    undecided: int = 0
    """For how many events that isn't known, because they lack a fact."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Those facts, as keys of matchers, with the number of events that lack each."""


@dataclass(frozen=True, slots=True)
class Change:
    """An event whose recipients would change."""

    event: str
    new: Sequence[Recipient]
    no_longer: Sequence[Recipient]


@dataclass(slots=True)
class RouteTrial:
    """Routes, and the streaks of launch plans, which begin with the first event."""

    planner: Planner
    routes: RouteBook
    _streaks: dict[str, tuple[Streak, datetime | None]] = field(default_factory=dict)
    """The streak of each launch plan, and the latest start among its successes."""

    def apply(self, event: Event, flytes: Sequence[Rule], at: datetime) -> tuple[list[Rule], list[Route]]:
        """Return the rules that apply to an event, and the routes among them. `flytes`: Flyte's rules that match.

        `at`: when the event arrived. Events come in the order of their arrival.
        """
        matched = self.routes.decide(event).matched
        fired = self._fired(event, matched, at)
        applied = [route for route in matched if not route.streak or route.name in fired]
        replaced = any(route.replaces for route in matched)
        return [*(() if replaced else flytes), *(rule for route in applied for rule in route.rules)], applied

    def records(self, event: Event, flytes: Decision) -> bool:
        """Return False if routes notify nobody of the event: its notifications are disabled, or Flyte's rules are too many
        and no route replaces them. `flytes`: the decision by these.
        """
        if flytes.verdict is Verdict.TOO_MANY_RULES:
            return any(route.replaces for route in self.routes.decide(event).matched)
        return flytes.verdict is not Verdict.DISABLED

    def _fired(self, event: Event, matched: Sequence[Route], at: datetime) -> frozenset[str]:
        """Return the names of the routes whose streak is long enough, as the ledger does when it records the event."""
        if not self.routes.counts_streaks:
            return frozenset()
        waiting = [StreakRoute(name=one.name, streak=one.streak, deliveries=()) for one in matched if one.streak]
        counted = self.planner.streak(event, waiting, now=at)
        if counted is None:
            return frozenset()
        streak, well_since = self._streaks.get(counted.launch_plan, (Streak(), None))
        if counted.well_since is not None:
            well_since = max(well_since or counted.well_since, counted.well_since)
        results = streak.record(counted, well_since)
        self._streaks[counted.launch_plan] = streak, well_since
        return frozenset(result.route.name for result in results if result.fires)


@dataclass(slots=True)
class Trial:
    """Counts whom the routes of a rule book would notify. It may be given any number of events."""

    planner: Planner
    book: RuleBook
    events: int = 0
    new: int = 0
    no_longer: int = 0
    first: datetime | None = None
    last: datetime | None = None
    changed: int = 0
    """The number of events whose recipients would change."""
    changes: list[Change] = field(default_factory=list)
    """The first of them."""
    _by_day: dict[date, Counts] = field(default_factory=dict)
    _by_recipient: dict[Recipient, RecipientCounts] = field(default_factory=dict)
    _routes: dict[str, RouteCounts] = field(init=False)
    _tried: RouteTrial = field(init=False)

    def __post_init__(self) -> None:
        self._tried = RouteTrial(self.planner, self.book.routes)
        self._routes = {route.name: RouteCounts(route) for route in self.book.routes.routes}

    def add_recorded(self, stored: StoredEvent, was: Iterable[Recipient]) -> None:
        """Count an event of the ledger. `was`: who was notified.

        Flyte's rules are those that were evaluated then; only the routes are evaluated anew.
        """
        event, at = stored.event, stored.recorded_at
        if event.is_canary:
            return
        rules: Sequence[Rule] = ()
        if stored.verdict != Verdict.DISABLED:
            rules = self._by_routes(event, flytes_matches(event, stored.considered), at)
        self._add(event, was, self._recipients(event, rules, at), at)

    def add_event(self, event: Event, flytes: Decision, before: RouteTrial) -> None:
        """Count an event that was not recorded. `flytes`: the decision by Flyte's rules alone. `before`: the routes to
        compare with.
        """
        if event.is_canary:
            return
        was: Sequence[Rule] = ()
        rules: Sequence[Rule] = ()
        at = event.occurred_at
        if before.records(event, flytes):
            was, _ = before.apply(event, flytes.matched, at)
        if self._tried.records(event, flytes):
            rules = self._by_routes(event, flytes.matched, at)
        self._add(event, self._recipients(event, was, at), self._recipients(event, rules, at), at)

    def as_data(self, span: timedelta | None = None) -> dict[str, Any]:
        """Return the counts as JSON data. `span`: how much time the events are from; None for that between the first and
        the last of them.
        """
        if span is None:
            span = self.last - self.first if self.first is not None and self.last is not None else timedelta()
        days = max(span / timedelta(days=1), 1.0)
        total = Counts()
        for one in self._by_day.values():
            total.add(was=one.was, would_be=one.would_be, held=one.held)
        return {
            "events": self.events,
            "days": round(days, 2),
            "notifications": {
                "was": total.was,
                "would_be": total.would_be,
                "new": self.new,
                "no_longer": self.no_longer,
                "a_day": round(total.would_be / days, 2),
                "held": total.held,
            },
            "routes": [_route_data(one) for one in self._routes.values()],
            "recipients": [_recipient_data(one, days) for one in self._most_notified()],
            "by_day": [
                {"day": day.isoformat(), "was": one.was, "would_be": one.would_be}
                for day, one in sorted(self._by_day.items())
            ],
            "changes": [_change_data(one) for one in self.changes],
            "changes_left_out": self.changed - len(self.changes),
        }

    def _recipients(self, event: Event, rules: Sequence[Rule], at: datetime) -> dict[Recipient, bool]:
        """Return who would be notified, and whether quiet hours would hold the message, of an event that arrives at `at`."""
        planned = self.planner.plan(event, rules, now=at) if rules else ()
        notifications = [one for one in planned if one.kind is Kind.NOTIFICATION]
        return {(one.channel, to): one.quiet is not None for one in notifications for to in one.addresses}

    def _by_routes(self, event: Event, flytes: Sequence[Rule], at: datetime) -> Sequence[Rule]:
        """Return the rules that apply to an event, and count the routes. `flytes`: Flyte's rules that match."""
        rules, applied = self._tried.apply(event, flytes, at)
        for route in applied:
            self._routes[route.name].matched += 1
        if not event.looked_up:
            for route, lacking in self.book.routes.undecided(event):
                counts = self._routes[route.name]
                counts.undecided += 1
                counts.unknown.update(lacking)
        return rules

    def _add(self, event: Event, was: Iterable[Recipient], would_be: Mapping[Recipient, bool], at: datetime) -> None:
        self.events += 1
        self.first, self.last = min(self.first or at, at), max(self.last or at, at)
        day, before, after = at.date(), _by_key(was), _by_key(would_be)
        self._by_day.setdefault(day, Counts()).add(was=len(before), would_be=len(after), held=sum(would_be.values()))
        for key, recipient in (before | after).items():
            counts = self._counts(key, recipient)
            counts.add(was=key in before, would_be=key in after, held=would_be.get(recipient, False))
            if key in after:
                counts.days[day] += 1
        new = [recipient for key, recipient in after.items() if key not in before]
        no_longer = [recipient for key, recipient in before.items() if key not in after]
        self.new += len(new)
        self.no_longer += len(no_longer)
        if new or no_longer:
            self.changed += 1
            if len(self.changes) < MAX_CHANGES:
                self.changes.append(Change(event.key, new, no_longer))

    def _counts(self, key: Recipient, recipient: Recipient) -> RecipientCounts:
        """Return the counts of a recipient, or those of all others together if there are too many."""
        if key not in self._by_recipient and len(self._by_recipient) >= MAX_RECIPIENTS:
            key = recipient = _OTHERS
        return self._by_recipient.setdefault(key, RecipientCounts(recipient=recipient))

    def _most_notified(self) -> Sequence[RecipientCounts]:
        return sorted(self._by_recipient.values(), key=attrgetter("would_be", "was"), reverse=True)


def _by_key(recipients: Iterable[Recipient]) -> dict[Recipient, Recipient]:
    """Return the recipients by a key that is the same in upper and lower case."""
    return {(channel, address.lower()): (channel, address) for channel, address in sorted(recipients)}


def _recipient_data(counts: RecipientCounts, days: float) -> dict[str, Any]:
    busiest = max(counts.days, key=lambda day: counts.days[day], default=None)
    return {
        "channel": counts.recipient[0],
        "address": counts.recipient[1],
        "was": counts.was,
        "would_be": counts.would_be,
        "held": counts.held,
        "a_day": round(counts.would_be / days, 2),
        "most_in_a_day": max(counts.days.values(), default=0),
        "busiest_day": busiest.isoformat() if busiest is not None else None,
    }


def _route_data(counts: RouteCounts) -> dict[str, Any]:
    return {
        "name": counts.route.name,
        "defined_at": counts.route.defined_at,
        "matched": counts.matched,
        "undecided": counts.undecided,
        "unknown": dict(counts.unknown),
    }


def _change_data(change: Change) -> dict[str, Any]:
    def named(recipients: Iterable[Recipient]) -> list[dict[str, str]]:
        return [{"channel": channel, "address": address} for channel, address in recipients]

    return {"event": change.event, "new": named(change.new), "no_longer": named(change.no_longer)}


async def try_events(trial: Trial, events: Iterable[Event], before: RouteBook, admin: SourceOfRules | None) -> None:
    """Count the terminal events among these. `before`: the routes to compare with. Raises FlyteAdminUnavailable.

    `admin`: FlyteAdmin, which is asked as intake asks it; None if it is not configured.
    """
    compared = RouteTrial(trial.planner, before)
    flytes = replace(trial.book, routes=RouteBook())
    with_before = replace(trial.book, routes=before)
    for given in events:
        event, answer = given, None
        if not event.phase.terminal:
            continue
        if admin is not None and not (decides_itself(event, with_before) and decides_itself(event, trial.book)):
            answer = await admin.look_up(event.execution)
            if isinstance(answer, AdminExecution):
                event = answer.complete(event)
        trial.add_event(event, decide(event, flytes, answer), compared)
