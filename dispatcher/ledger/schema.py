"""The ledger's tables for SQLAlchemy. Migrations create the tables; a test checks that both definitions agree."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)
from sqlalchemy.sql import text

from dispatcher.ledger.column_types import (
    CompressedJson,
    ForeignText,
    NullIfEmpty,
    OneOf,
    RuleRefList,
    StringList,
    UtcTime,
)
from dispatcher.ledger.records import Deed
from dispatcher.model.delivery import DropReason, Kind, State
from dispatcher.model.hold import HoldReason, Then

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
    Column("rules_version", NullIfEmpty(16)),
    Column("cause", NullIfEmpty(64)),
    Column("cause_name", NullIfEmpty(200)),
    Index("ix_events_name", "name", info={"only": "postgresql"}),  # SQLite does not need it: see `search.has_name`
    Index("ix_events_launch_plan", "launch_plan", "recorded_at"),
    Index("ix_events_recorded_at", "recorded_at"),
    Index("ix_events_cause", "cause", "recorded_at", sqlite_where=text("cause IS NOT NULL")),
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
    Column("event", NullIfEmpty(1024), ForeignKey("events.key")),
    Column("channel", String(32), nullable=False),
    Column("recipients", StringList, nullable=False),
    Column("addresses", StringList, nullable=False),
    Column("content", String(64), ForeignKey("contents.content_hash")),
    Column("rules", RuleRefList, nullable=False),
    Column("severity", NullIfEmpty(8)),
    Column("state", OneOf(State, 8), nullable=False),
    Column("reason", ForeignText, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("in_doubt", Boolean, nullable=False),
    Column("lease", String(64)),
    Column("created_at", UtcTime, nullable=False),
    Column("due_at", UtcTime, nullable=False),
    Column("retry_window_start", UtcTime, nullable=False),
    Column("settled_at", UtcTime),
    Column("reference", CompressedJson),
    Column("kind", OneOf(Kind, 16), nullable=False),
    Column("drop_reason", OneOf(DropReason, 32)),
    Column("thread", NullIfEmpty(255)),
    Column("thread_at", UtcTime),
    Column("subject", NullIfEmpty(1024)),
    Column("fallback_for", NullIfEmpty(64)),
    Column("slot_reserved", Boolean, nullable=False),
    Column("occurred_at", UtcTime, nullable=False),
    Column("trace", NullIfEmpty(600)),
    Column("hold", OneOf(HoldReason, 8)),
    Column("held_by", NullIfEmpty(255)),
    Column("held_since", UtcTime),
    Column("hold_then", OneOf(Then, 8)),
    Column("note", NullIfEmpty(1000)),
    Column("included_in", NullIfEmpty(64)),
    Column("reply_to", NullIfEmpty(64)),
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
    Index(
        "ix_deliveries_held",
        "due_at",
        sqlite_where=text("hold IS NOT NULL AND state = 'waiting'"),
    ),
    Index(
        "ix_deliveries_included_in",
        "included_in",
        sqlite_where=text("included_in IS NOT NULL"),
    ),
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
(`record.py`)."""

subjects = Table(
    "subjects",
    metadata,
    Column("name", String(1024), primary_key=True),
    Column("well_since", UtcTime),
    Column("open_since", UtcTime),
    Column("failed_at", UtcTime),
    Column("streak", CompressedJson),
)
"""The subjects of threads: launch plans, and executions that others recover or relaunch (`ledger/threads.py`).

`well_since`: the latest start among the subject's recorded successes. A failure that ended before it is outdated.
`open_since`: no thread about the subject that still needs a resolved notice has a failure before this time; NULL if
there is no such thread.
`streak`: the launch plan's streak (`model/streak.py`), and `failed_at` the end of its newest failure; NULL if it has no
failures, or none was counted."""

launch_plan_versions = Table(
    "launch_plan_versions",
    metadata,
    Column("launch_plan", String(1024), primary_key=True),
    Column("version", ForeignText, primary_key=True),
)
"""The versions in which launch plans have run, for launch plans whose rules ask for change events."""

unresolved_owners = Table(
    "unresolved_owners",
    metadata,
    Column("principal", ForeignText, primary_key=True),
    Column("label", ForeignText, primary_key=True),
    Column("reason", ForeignText, nullable=False),
    Column("instead", ForeignText, nullable=False),
    Column("event", String(1024), nullable=False),
    Column("first_at", UtcTime, nullable=False),
    Column("last_at", UtcTime, nullable=False),
    Column("events", BigInteger, nullable=False),
)
"""The executions whose owner was not known, or not reached, by principal and label (`dispatcher/model/owner.py`)."""

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

silences = Table(
    "silences",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("matcher", CompressedJson, nullable=False),
    Column("author", ForeignText, nullable=False),
    Column("reason", ForeignText, nullable=False),
    Column("starts_at", UtcTime, nullable=False),
    Column("ends_at", UtcTime, nullable=False),
    Column("at_end", OneOf(Then, 8), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("begun", Boolean, nullable=False),
    Index("ix_silences_ends_at", "ends_at"),
)
"""The silences. `at_end`: what becomes of what it holds. `begun`: what waited at its start was held."""

silences_version = Table("silences_version", metadata, Column("version", BigInteger, nullable=False))
"""Has one row: how often silences were changed. A transaction that records goes by the silences of one version."""

digests = Table(
    "digests",
    metadata,
    Column("channel", String(32), primary_key=True),
    Column("address", String(512), primary_key=True),
    Column("recent", CompressedJson, nullable=False),
    Column("opened_at", UtcTime),
    Column("closes_at", UtcTime),
    Column("postponed", Boolean, nullable=False),
    Column("options", CompressedJson, nullable=False),
    Column("first_key", NullIfEmpty(64)),
    Index("ix_digests_closes_at", "closes_at", sqlite_where=text("closes_at IS NOT NULL")),
)
"""The addresses whose contact has digests, and what each got lately (`holding/digests.py`). `opened_at`: when the newest
digest opened. `closes_at`: NULL if none is open. `postponed`: quiet hours hold it. `first_key`: the key of the message
with which the burst began."""

refusals = Table(
    "refusals",
    metadata,
    Column("channel", String(32), primary_key=True),
    Column("since", UtcTime, nullable=False),
    Column("last_at", UtcTime, nullable=False),
)
"""The channels whose provider refuses the dispatcher itself: since when, and when it was seen last."""

replicas = Table(
    "replicas",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("version", String(64), nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
    Column("clock_offset", Float, nullable=False),
    Column("channels", CompressedJson, nullable=False),
    Column("components", CompressedJson, nullable=False),
    Column("lag", BigInteger),
)
"""How each replica is, as it wrote itself (`dispatcher/model/replica.py`)."""

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
    Column("dismissed_at", UtcTime),
    Index("ix_rejected_received_at", "received_at"),
    Index("ix_rejected_event", "event"),
)

actions = Table(
    "actions",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("at", UtcTime, nullable=False),
    Column("who", ForeignText, nullable=False),
    Column("what", OneOf(Deed, 16), nullable=False),
    Column("scope", ForeignText, nullable=False),
    Column("why", ForeignText, nullable=False),
    Index("ix_actions_at", "at"),
)
"""What operators did to the ledger. Rows are only added, and purged with the last delivery that they concern."""

action_deliveries = Table(
    "action_deliveries",
    metadata,
    Column("action", _Id, ForeignKey("actions.id"), primary_key=True, autoincrement=False),
    Column("delivery", String(64), ForeignKey("deliveries.key"), primary_key=True),
    Index("ix_action_deliveries_delivery", "delivery"),
    sqlite_with_rowid=False,
)
"""The deliveries that each action concerns."""

compatibility = Table("compatibility", metadata, Column("oldest", String(32), nullable=False))
"""Has one row: the oldest version whose code can work with these tables. `engine` writes this row after each migration.
"""
