"""Finds out which routes fire that wait for a streak, and adds their deliveries to those of their event.

That happens in the transaction that records the event, because only the ledger knows a launch plan's streak.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dispatcher.ledger.places import Place, places, without
from dispatcher.ledger.records import RecordedEvent
from dispatcher.ledger.threads import Subjects
from dispatcher.model.delivery import Delivery, Kind
from dispatcher.model.hold import first_to_end
from dispatcher.model.owner import FoundBy
from dispatcher.model.severity import highest
from dispatcher.model.streak import RouteResult
from dispatcher.model.verdict import Verdict

ROUTES_NAMED = 5
"""An event's reason names at most this many routes that fired, and as many that wait."""


def with_fired_routes(known: Subjects, entries: Sequence[RecordedEvent]) -> list[RecordedEvent]:
    """Record new events in their launch plans' streaks, in the order in which they arrived.

    Returns each event with the deliveries of the routes that fire, and with the results of its routes in its verdict,
    its reason and its evaluated rules. An event without such a route is returned as it is.
    """
    completed = []
    for entry in entries:
        results = known.record_streak(entry.streak) if entry.streak is not None else []
        completed.append(_with_results(entry, results) if results else entry)
    return completed


def _with_results(entry: RecordedEvent, results: Sequence[RouteResult]) -> RecordedEvent:
    fired = [result for result in results if result.fires]
    by_name = {result.route.name: result for result in results}
    considered = [
        _with_result(rule, result) if (result := by_name.get(rule.get("name", ""))) is not None else rule
        for rule in entry.considered
    ]
    owners = [entry.unresolved_owner, *(result.route.unresolved_owner for result in fired)]
    parts = [entry.reason, *_in_words(fired, "fired")]
    parts += _in_words([result for result in results if not result.fires], "did not fire")
    return replace(
        entry,
        verdict=Verdict.MATCHED
        if entry.verdict == Verdict.NO_MATCHING_RULE and any(rule["matched"] for rule in considered)
        else entry.verdict,
        reason="; ".join(parts),
        considered=considered,
        deliveries=merged(entry.deliveries, [result.route.deliveries for result in fired])
        if fired
        else entry.deliveries,
        unresolved_owner=next((owner for owner in owners if owner is not None), None),
    )


def _with_result(rule: Mapping[str, Any], result: RouteResult) -> Mapping[str, Any]:
    """Return an evaluated rule with what became of its route. It matches nobody if it is for an owner who is nobody."""
    owner = rule.get("owner")
    matched = result.fires and (owner is None or owner["found_by"] != FoundBy.NOBODY)
    reason = result.reason if owner is None else f"{result.reason}; {owner['reason']}"
    return {**rule, "matched": matched, "reason": reason}


def _in_words(results: Sequence[RouteResult], became: str) -> list[str]:
    """Return, for example, `route third-failure did not fire (streak is 2 of 3)`."""
    if not results:
        return []
    named = ", ".join(f"{result.route.name} ({result.reason})" for result in results[:ROUTES_NAMED])
    more = f" and {len(results) - ROUTES_NAMED} more" if len(results) > ROUTES_NAMED else ""
    return [f"{'route' if len(results) == 1 else 'routes'} {named}{more} {became}"]


def merged(planned: Iterable[Delivery], fired: Iterable[Sequence[Delivery]]) -> list[Delivery]:
    """Return an event's deliveries together with those of the routes that fire. Each address is notified once.

    An address that has a notification already stays in it, and the notification lists the route too. If the route gives
    it a higher severity, the address moves to the route's notification, which was rendered with that severity.
    """
    result = _Merged()
    for delivery in planned:
        result.put(delivery)
    for of_route in fired:
        for delivery in of_route:
            result.add(delivery)
    return list(result.by_key.values())


@dataclass(slots=True)
class _Merged:
    """The deliveries of one event so far."""

    by_key: dict[str, Delivery] = field(default_factory=dict)
    at: dict[Place, str] = field(default_factory=dict)
    """Mapping from each place to the key of its notification."""

    def put(self, delivery: Delivery) -> None:
        self.by_key[delivery.key] = delivery
        if delivery.kind is Kind.NOTIFICATION:
            self.at.update(dict.fromkeys(places(delivery), delivery.key))

    def add(self, added: Delivery) -> None:
        """Add a delivery of a route that fires."""
        same = self.by_key.get(added.key)
        if same is not None and not places(added):  # undeliverable: it has no address by which it could be found
            self.by_key[added.key] = _naming(same, added)
            return
        if added.kind is Kind.NOTIFICATION:
            for key in dict.fromkeys(self.at[place] for place in places(added) if place in self.at):
                earlier = self.by_key.pop(key)
                if highest(earlier.severity, added.severity) == earlier.severity:
                    left = without(added, frozenset(places(earlier)))
                    self.by_key[key] = _naming(earlier, added)
                    if not left:
                        return
                    added = left[0]
                else:
                    for rest in without(earlier, frozenset(places(added))):
                        self.by_key[key] = rest
                    named = _naming(earlier, added)
                    added = added._replace(rules=named.rules, quiet=named.quiet)
        elif same is not None:
            return
        self.put(added)


def _naming(delivery: Delivery, other: Delivery) -> Delivery:
    """Return the delivery with the other's rules too. Quiet hours hold it as long as none of them lets it through."""
    rules = tuple(dict.fromkeys([*delivery.rules, *other.rules]))
    return delivery._replace(rules=rules, quiet=first_to_end(delivery.quiet, other.quiet))
