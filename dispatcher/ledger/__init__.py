"""The ledger, a transactional outbox in SQLite or PostgreSQL: events, deliveries, attempts. All SQL is in this package.

Other packages use only `Ledger` (`ledger.py`) and the values in `records.py`. `schema` and `rows` define the tables and
their rows, `claim` selects due deliveries, `engine` opens the database; `sqlite`, `statements` and `values` make
frequent statements fast.
"""

from dispatcher.ledger.engine import HEAD, Schema
from dispatcher.ledger.ledger import Ledger
from dispatcher.ledger.records import (
    Attempt,
    Backlog,
    Claim,
    ClaimedThread,
    DeliveryFilter,
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
    "ClaimedThread",
    "DeliveryFilter",
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
