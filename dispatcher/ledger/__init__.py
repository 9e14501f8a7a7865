"""The ledger, a transactional outbox in SQLite or PostgreSQL: events, deliveries, attempts. All SQL is in this package.

Other packages use `Ledger` (`ledger.py`), the objects that it carries, and the values in `records.py`. A file a verb does
the work: `record`, `claim`, `settle`, `threads`, `actions`, `retention`. `history`, `queries` and `waiting` read. `schema` and
`column_types` define the tables, `engine` opens the database.
"""

from dispatcher.ledger.held import HoldFigures
from dispatcher.ledger.ledger import Ledger
from dispatcher.ledger.records import (
    Action,
    Attempt,
    Backlog,
    Claim,
    ClaimedThread,
    Deed,
    Filter,
    RecordedEvent,
    RecordResult,
    Rejected,
    Settlement,
    StoredDelivery,
    StoredEvent,
    rejected_id,
)
from dispatcher.ledger.versions import HEAD, Schema

__all__ = [
    "HEAD",
    "Action",
    "Attempt",
    "Backlog",
    "Claim",
    "ClaimedThread",
    "Deed",
    "Filter",
    "HoldFigures",
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
