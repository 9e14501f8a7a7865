"""Counts by address whom an event notifies, so that each address is notified once on a channel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from dispatcher.model.delivery import Delivery, Kind

Place = tuple[str, str, str]
"""An event's key, a channel, and an address in lower case. Each place is notified once."""


def places(delivery: Delivery) -> list[Place]:
    """Return the places of a delivery, in the order of its addresses. An undeliverable one has none."""
    return [(delivery.event, delivery.channel, address.lower()) for address in delivery.addresses]


def by_place(deliveries: Iterable[Delivery]) -> dict[Place, list[Delivery]]:
    """Return the deliveries to each place."""
    found: dict[Place, list[Delivery]] = {}
    for one in deliveries:
        for place in places(one):
            found.setdefault(place, []).append(one)
    return found


def without(delivery: Delivery, notified: AbstractSet[Place]) -> Sequence[Delivery]:
    """Return a notification without the addresses in `notified`, if another is left. Other kinds stay as they are."""
    if not notified or delivery.kind is not Kind.NOTIFICATION or notified.isdisjoint(places(delivery)):
        return [delivery]
    pairs = zip(delivery.recipients, delivery.addresses, places(delivery), strict=True)
    left = [(recipient, address) for recipient, address, place in pairs if place not in notified]
    if not left:
        return []
    recipients, addresses = zip(*left, strict=True)
    return [delivery._replace(recipients=recipients, addresses=addresses)]
