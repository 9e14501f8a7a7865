"""The ledger's tables for SQLAlchemy. Migrations create the tables; a test checks that both definitions agree."""

from __future__ import annotations

import json
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
    """Column type for a time with a time zone. Raises ValueError for a time without a zone.

    Times are stored in UTC, because SQLite does not store the time zone.
    """

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
    """Column type for text from outside the dispatcher.

    Replaces NUL, which PostgreSQL refuses, and unpaired surrogates, which every database refuses.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        del dialect
        if value is None or (value.isascii() and "\0" not in value):
            return value
        return value.replace("\0", "\ufffd").encode(errors="replace").decode()


class EncodedJson(NamedTuple):
    """Data that is already encoded as JSON."""

    text: bytes


def to_json(value: Any) -> bytes:
    """Encode a value as JSON in UTF-8.

    Replaces surrogates in its texts by question marks, as `ForeignText` does, and writes any other type of object as
    its text. So values from other packages' channels can be stored too.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, ensure_ascii=False, default=str).encode(errors="replace")


class CompressedJson(TypeDecorator[Any]):
    """Column type for JSON data, compressed with LZ4 if it has 4 KiB or more.

    A mail has many kilobytes of repetitive text. zlib's result would be a quarter smaller, but zlib would take seven
    times as long for every event.
    """

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        del dialect
        if value is None:
            return None
        plain = value.text if isinstance(value, EncodedJson) else to_json(value)
        return plain if len(plain) < _MIN_COMPRESSED_BYTES else _LZ4 + bytes(cramjam.lz4.compress_block(plain))

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> Any:
        del dialect
        return None if value is None else from_compressed_json(value)


def from_compressed_json(value: bytes) -> Any:
    """Return the data of a stored value of the type `CompressedJson`."""
    return orjson.loads(bytes(cramjam.lz4.decompress_block(value[1:])) if value[:1] == _LZ4 else value)


class StringList(TypeDecorator[tuple[str, ...]]):
    """Column type for a short list of strings, stored as JSON."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:
        del dialect
        return None if value is None else to_json(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...] | None:
        del dialect
        return None if value is None else tuple(orjson.loads(value))


_MIN_COMPRESSED_BYTES = 4096
_LZ4 = b"\x04"
"""The first byte of a compressed value. No JSON document starts with this byte."""

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
    Index("ix_events_name", "name", info={"only": "postgresql"}),  # SQLite does not need it: see `search.has_name`
    Index("ix_events_launch_plan", "launch_plan", "recorded_at"),
    Index("ix_events_recorded_at", "recorded_at"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("at", UtcTime, nullable=False),
)
"""Stored timestamps: since when the ledger has all events (`complete_since`), up to when it was compared with
FlyteAdmin (`reconciled`), and when readiness last checked that it can write (`pinged`)."""

contents = Table(
    "contents",
    metadata,
    Column("content_hash", String(64), primary_key=True),
    Column("body", CompressedJson, nullable=False),
)
"""The content of messages. Deliveries with the same content share one row."""

deliveries = Table(
    "deliveries",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("event", String(1024), ForeignKey("events.key"), nullable=False),
    Column("channel", String(32), nullable=False),
    Column("recipients", StringList, nullable=False),
    Column("addresses", StringList, nullable=False),
    Column("content", String(64), ForeignKey("contents.content_hash")),
    Column("rule", ForeignText, nullable=False),
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
    Column("kind", String(16), nullable=False),
    Column("drop_reason", String(32)),
    Column("thread", String(255)),
    Column("thread_at", UtcTime),
    Column("subject", String(1024)),
    Column("fallback_for", String(64)),
    Column("slot_reserved", Boolean, nullable=False),
    Column("occurred_at", UtcTime, nullable=False),
    Column("trace", String(600)),
    Index("ix_deliveries_event", "event"),
    # The migrations make these indexes partial on PostgreSQL too. `postgresql_where` is not used here, because it would
    # import SQLAlchemy's PostgreSQL dialect.
    Index(
        "ix_deliveries_thread",
        "thread",
        "thread_at",
        sqlite_where=text("thread IS NOT NULL"),
    ),
    Index(
        "ix_deliveries_thread_waiting",
        "thread",
        "state",  # without this column in the index, SQLite would read all earlier messages
        "thread_at",
        sqlite_where=text("state = 'waiting' AND thread IS NOT NULL"),
    ),
    Index(
        "ix_deliveries_subject",
        "subject",
        "thread_at",
        sqlite_where=text("subject IS NOT NULL"),
    ),
    Index(
        "ix_deliveries_due",
        "channel",
        "due_at",
        sqlite_where=text("state = 'waiting'"),
    ),
    Index(
        "ix_deliveries_backlog",
        "state",  # without this column in the index, SQLite would also read each row of the table
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
"""Finds deliveries by recipient or address, with ASCII letters in lower case. On PostgreSQL, triggers on `deliveries`
keep this table up to date. On SQLite, a trigger only deletes rows, and the ledger inserts them
(`search.INSERT_RECIPIENTS`)."""

subjects = Table(
    "subjects",
    metadata,
    Column("name", String(1024), primary_key=True),
    Column("well_since", UtcTime),
    Column("open_since", UtcTime),
)
"""The subjects of threads: launch plans, and executions that others recover or relaunch (`ledger/subjects.py`).

`well_since`: the latest start among the subject's recorded successes. A failure that ended before it is outdated.
`open_since`: no thread about the subject that still needs a resolved notice has a failure before this time; NULL if
there is no such thread."""

launch_plan_versions = Table(
    "launch_plan_versions",
    metadata,
    Column("launch_plan", String(1024), primary_key=True),
    Column("version", ForeignText, primary_key=True),
)
"""The versions in which launch plans have run, for launch plans whose rules ask for change events."""

destinations = Table(
    "destinations",
    metadata,
    Column("channel", String(32), primary_key=True),
    Column("name", String(512), primary_key=True),
    Column("theoretical_arrival_at", UtcTime, nullable=False),
    Column("blocked_until", UtcTime),
    Column("failures", Integer, nullable=False),
)
"""The state of each destination: its rate limit, its pause and its failures (`dispatcher/model/rate_limit.py`)."""

refusals = Table(
    "refusals",
    metadata,
    Column("channel", String(32), primary_key=True),
    Column("since", UtcTime, nullable=False),
    Column("last_at", UtcTime, nullable=False),
)
"""The channels whose provider refuses the dispatcher itself: since when, and when it was seen last."""

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
"""Has one row: the oldest version whose code can work with these tables. `engine` writes this row after each migration.
"""
