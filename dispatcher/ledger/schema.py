"""The ledger's tables, as SQLAlchemy sees them. The migrations make them; a test holds the two together."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import cramjam
import orjson
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)
from sqlalchemy.sql import text


class UtcTime(TypeDecorator[datetime]):
    """A moment. Refuses naive ones; SQLite, which drops offsets in silence, gets and gives UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class ForeignText(TypeDecorator[str]):
    """Other people's text. PostgreSQL refuses NUL in text, and no database takes half a surrogate pair."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        del dialect
        if value is None or (value.isascii() and "\0" not in value):
            return value
        return value.replace("\0", "\ufffd").encode(errors="replace").decode()


class EncodedJson(NamedTuple):
    """JSON data, written already."""

    text: bytes


class CompressedJson(TypeDecorator[Any]):
    """JSON data; compressed where that pays: a mail runs to many kilobytes of text that is much alike.

    By LZ4: zlib makes it a quarter smaller, and takes seven times as long on the way of every event.
    """

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        del dialect
        if value is None:
            return None
        plain = value.text if isinstance(value, EncodedJson) else orjson.dumps(value)
        return plain if len(plain) < _WORTH_PACKING else _LZ4 + bytes(cramjam.lz4.compress_block(plain))

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> Any:
        del dialect
        if value is None:
            return None
        if value[:1] == _LZ4:
            return orjson.loads(bytes(cramjam.lz4.decompress_block(value[1:])))
        return orjson.loads(value)


class StringList(TypeDecorator[tuple[str, ...]]):
    """A few strings, in order."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:
        del dialect
        return None if value is None else orjson.dumps(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...] | None:
        del dialect
        return None if value is None else tuple(orjson.loads(value))


_WORTH_PACKING = 4096
_LZ4 = b"\x04"
"""Put before an LZ4 block; no JSON document begins so."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(column_0_label)s",
    }
)
_Id = BigInteger().with_variant(Integer(), "sqlite")

events = Table(
    "events",
    metadata,
    Column("key", String(1024), primary_key=True),
    Column("project", String(255), nullable=False),
    Column("domain", String(255), nullable=False),
    Column("name", String(255), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("launch_plan", String(255), nullable=False),
    Column("occurred_at", UtcTime, nullable=False),
    Column("recorded_at", UtcTime, nullable=False),
    Column("position", ForeignText, nullable=False),
    Column("verdict", String(32), nullable=False),
    Column("reason", ForeignText, nullable=False),
    Column("facts", CompressedJson, nullable=False),
    Column("considered", CompressedJson, nullable=False),
    Index("ix_events_name", "name", info={"only": "postgresql"}),  # SQLite asks the owners (`search.named`)
    Index("ix_events_launch_plan", "launch_plan", "recorded_at"),
    Index("ix_events_recorded_at", "recorded_at"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("at", UtcTime, nullable=False),
)
"""Moments to remember: `since` the ledger knows all that was told, what was `set_reconciled_until` for lost events, and when it was
last `pinged`."""

contents = Table(
    "contents",
    metadata,
    Column("content_hash", String(64), primary_key=True),
    Column("body", CompressedJson, nullable=False),
)
"""What is sent, once, however many deliveries send it."""

deliveries = Table(
    "deliveries",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("event", String(1024), ForeignKey("events.key"), nullable=False),
    Column("channel", String(32), nullable=False),
    Column("recipients", StringList, nullable=False),
    Column("addresses", StringList, nullable=False),
    Column("content", String(64), ForeignKey("contents.content_hash"), nullable=False),
    Column("rule", Text, nullable=False),
    Column("state", String(8), nullable=False),
    Column("reason", ForeignText, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("in_doubt", Boolean, nullable=False),
    Column("lease", String(64)),
    Column("created_at", UtcTime, nullable=False),
    Column("due_at", UtcTime, nullable=False),
    Column("retry_window_start", UtcTime, nullable=False),
    Column("settled_at", UtcTime),
    Column("reference", CompressedJson),
    Column("thread", String(255)),
    Column("launch_plan", String(1024)),
    Column("resolves", Boolean, nullable=False),
    Column("fallback_for", String(64)),
    Column("slot_reserved", Boolean, nullable=False),
    Column("occurred_at", UtcTime, nullable=False),
    Column("trace", String(600)),
    Index("ix_deliveries_event", "event"),
    # On PostgreSQL they are just as partial, by the migrations: said here too, it would load the dialect everywhere.
    Index(
        "ix_deliveries_thread",
        "thread",
        "occurred_at",
        sqlite_where=text("thread IS NOT NULL"),
    ),
    Index(
        "ix_deliveries_thread_waiting",
        "thread",
        "state",  # or SQLite would look through the conversation's history
        "occurred_at",
        sqlite_where=text("state = 'waiting' AND thread IS NOT NULL"),
    ),
    Index(
        "ix_deliveries_launch_plan",
        "launch_plan",
        "occurred_at",
        sqlite_where=text("launch_plan IS NOT NULL"),
    ),
    Index(
        "ix_deliveries_due",
        "channel",
        "due_at",
        sqlite_where=text("state = 'waiting'"),
    ),
    Index(
        "ix_deliveries_backlog",
        "state",  # or SQLite would look at each row after all
        "channel",
        "created_at",
        sqlite_where=text("state = 'waiting'"),
    ),
    Index(
        "ix_deliveries_dead",
        "state",
        "channel",
        sqlite_where=text("state = 'dead'"),
    ),
    Index("ix_deliveries_state_created_at", "state", "created_at"),
    Index("ix_deliveries_content", "content"),
)

delivery_recipients = Table(
    "delivery_recipients",
    metadata,
    Column("recipient", String(320), primary_key=True),
    Column("created_at", UtcTime, primary_key=True),
    Column("delivery", String(64), primary_key=True),
    sqlite_with_rowid=False,
)
"""Deliveries by recipient and address, in ASCII lower case. Triggers on `deliveries` keep it; on SQLite the ledger inserts
the rows itself (`search.TOLD`)."""

launch_plan_status = Table(
    "launch_plan_status",
    metadata,
    Column("name", String(1024), primary_key=True),
    Column("failed_at", UtcTime),
    Column("succeeded_at", UtcTime),
)
"""How launch plans stand that somebody was told about: when they last failed and succeeded (`ledger/matters.py`)."""

launch_plan_versions = Table(
    "launch_plan_versions",
    metadata,
    Column("launch_plan", String(1024), primary_key=True),
    Column("version", ForeignText, primary_key=True),
)
"""In which versions launch plans have run, where somebody wants to know of new ones."""

destinations = Table(
    "destinations",
    metadata,
    Column("channel", String(32), primary_key=True),
    Column("name", String(512), primary_key=True),
    Column("theoretical_arrival_at", UtcTime, nullable=False),
    Column("blocked_until", UtcTime),
    Column("failures", Integer, nullable=False),
)
"""How each destination stands (`dispatcher/model/rate_limit.py`)."""

attempts = Table(
    "attempts",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("delivery", String(64), ForeignKey("deliveries.key"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime, nullable=False),
    Column("outcome", String(8), nullable=False),
    Column("status", ForeignText, nullable=False),
    Column("answer", ForeignText, nullable=False),
    Column("reason", ForeignText, nullable=False),
    Index("ix_attempts_delivery", "delivery", "number"),
)

rejected = Table(
    "rejected",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("position", ForeignText, nullable=False),
    Column("received_at", UtcTime, nullable=False),
    Column("reason", ForeignText, nullable=False),
    Column("event", String(1024)),
    Column("headers", CompressedJson, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("replayed_at", UtcTime),
    Index("ix_rejected_received_at", "received_at"),
    Index("ix_rejected_event", "event"),
)

compatibility = Table("compatibility", metadata, Column("oldest", String(32), nullable=False))
"""One row, written with each migration and by none of them: the oldest version whose code can work with these tables."""
