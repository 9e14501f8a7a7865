"""The durable truth, and the only SQL: what was heard, what is owed, and how it ended.

Intake ends here and couriers begin here. `Ledger` is all that other rooms use; `entries` is what goes in
and out, `tables` and `rows` how it lies, `claiming` who gets what is due, `database` how it is opened, and
`writer`, `statements` and `values` what makes it quick.
"""

from dispatcher.ledger.engine import HEAD, Schema
from dispatcher.ledger.ledger import Ledger
from dispatcher.ledger.records import (
    Attempt,
    Backlog,
    Claim,
    DeliveryFilter,
    DirectDispatch,
    EventFilter,
    RecordedEvent,
    RecordResult,
    Rejected,
    Settlement,
    StoredDelivery,
    StoredEvent,
    rejected_id,
)

__all__ = [
    "HEAD",
    "Attempt",
    "Backlog",
    "Claim",
    "DeliveryFilter",
    "DirectDispatch",
    "EventFilter",
    "Ledger",
    "RecordResult",
    "RecordedEvent",
    "Rejected",
    "Schema",
    "Settlement",
    "StoredDelivery",
    "StoredEvent",
    "rejected_id",
]
