"""The table of deliveries, in lists and in dry runs of commands that change deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from dispatcher.cli._output import KEY_DIGITS, state_text, waits_text, when_text, write_table

if TYPE_CHECKING:
    from dispatcher.ledger import StoredDelivery


def write_deliveries(found: Sequence[StoredDelivery], *, now: datetime) -> None:
    """Print the deliveries in their order, the waiting ones with what they wait for."""
    from dispatcher.explain import about_text, decided_text, delivery_data

    shown = [(stored, delivery_data(stored)) for stored in found]
    write_table(
        ("KEY", "STATE", "CHANNEL", "TO", "EVENT", "ATTEMPTS", "CREATED", "DUE", "REASON", "WAITS FOR"),
        [
            (
                stored.delivery.key[:KEY_DIGITS],
                state_text(stored.status),
                stored.delivery.channel,
                ", ".join(stored.delivery.recipients),
                stored.delivery.event or about_text(stored.delivery.kind),
                stored.delivery.attempt,
                when_text(stored.delivery.created_at, now=now),
                when_text(stored.delivery.due_at, now=now) if stored.settled_at is None else "",
                decided_text(data, digits=KEY_DIGITS),
                waits_text(data),
            )
            for stored, data in shown
        ],
        head=4,
    )
