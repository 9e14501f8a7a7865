"""What lists show of a delivery: its state, where what is held and what another message tells of have words of their own.

Nothing was sent of a delivery whose status is not `sent`.
"""

from __future__ import annotations

from enum import StrEnum

from dispatcher.model.delivery import Delivery, State
from dispatcher.model.hold import HoldReason


class DeliveryStatus(StrEnum):
    """The status of a delivery."""

    SENT = "sent"
    WAITING = "waiting"
    """It waits, and nothing holds it."""
    HELD = "held"
    """It waits, and a silence, quiet hours or a digest hold it."""
    DEAD = "dead"
    INCLUDED = "included"
    """It was dropped, and another message tells of it (`Delivery.included_in`), which was not necessarily sent."""
    DROPPED = "dropped"
    """It was dropped, and no message tells of it."""


def status_of(delivery: Delivery) -> DeliveryStatus:
    """Return the delivery's status."""
    return status(delivery.state, delivery.hold, delivery.included_in)


def status(state: State, hold: HoldReason | None, included_in: str) -> DeliveryStatus:
    """Return the status of a delivery with these fields."""
    if state is State.WAITING and hold is not None:
        return DeliveryStatus.HELD
    if state is State.DROPPED and included_in:
        return DeliveryStatus.INCLUDED
    return DeliveryStatus(state)
