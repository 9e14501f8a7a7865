"""All tables of the ledger.

Until 0.1.0 is released, changes to the tables go into this file. The revision ends in a hash of the tables. So if an
earlier version of this file created a ledger, the dispatcher refuses it (`engine.Schema`).
"""

import sqlalchemy as sa
from alembic import op

revision = "0001_b1168e4c"
down_revision = None

_TIME = sa.DateTime(timezone=True)
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_WAITING = sa.text("state = 'waiting'")
_DEAD = sa.text("state = 'dead'")
_HAS_THREAD = sa.text("thread IS NOT NULL")
_WAITING_WITH_THREAD = sa.text("state = 'waiting' AND thread IS NOT NULL")
_HAS_SUBJECT = sa.text("subject IS NOT NULL")
_CAUSE = sa.text("cause IS NOT NULL")
_HELD = sa.text("hold IS NOT NULL AND state = 'waiting'")
_INCLUDED = sa.text("included_in IS NOT NULL")
_OPEN = sa.text("closes_at IS NOT NULL")

# Triggers keep `delivery_recipients` up to date. SQLite runs a trigger once for each row, which is slow for inserts, so
# SQLite has a trigger only for deletions. On SQLite, the ledger itself inserts the rows of this table
# (`record.py`).
_SQLITE = (
    """
    CREATE TRIGGER recipients_delete AFTER DELETE ON deliveries BEGIN
      DELETE FROM delivery_recipients WHERE created_at = OLD.created_at AND delivery = OLD.key AND recipient IN (
        SELECT substr(lower(value), 1, 320) FROM json_each(OLD.recipients)
        UNION SELECT substr(lower(value), 1, 320) FROM json_each(OLD.addresses)
      );
    END
    """,
)
# PostgreSQL's text can't contain NUL. Deliveries to recipients with a NUL are stored, but a search for the recipient
# does not find them. With collation "C", `lower` changes only ASCII letters, as on SQLite.
_POSTGRES = (
    r"""
    CREATE FUNCTION recipient_names(recipients text, addresses text) RETURNS SETOF text LANGUAGE sql STABLE AS $$
      SELECT left(lower(name COLLATE "C"), 320) FROM json_array_elements_text(
        CASE WHEN position('\u0000' IN recipients) = 0 THEN recipients::json ELSE '[]'::json END) AS name
      UNION
      SELECT left(lower(name COLLATE "C"), 320) FROM json_array_elements_text(
        CASE WHEN position('\u0000' IN addresses) = 0 THEN addresses::json ELSE '[]'::json END) AS name
    $$
    """,
    """
    CREATE FUNCTION recipients_insert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      INSERT INTO delivery_recipients (recipient, created_at, delivery)
      SELECT name, inserted.created_at, inserted.key
      FROM inserted, recipient_names(inserted.recipients, inserted.addresses) AS name
      ON CONFLICT DO NOTHING;
      RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION recipients_delete() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      DELETE FROM delivery_recipients USING deleted, recipient_names(deleted.recipients, deleted.addresses) AS name
      WHERE delivery_recipients.recipient = name AND delivery_recipients.created_at = deleted.created_at
        AND delivery_recipients.delivery = deleted.key;
      RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER recipients_insert AFTER INSERT ON deliveries
    REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION recipients_insert()
    """,
    """
    CREATE TRIGGER recipients_delete AFTER DELETE ON deliveries
    REFERENCING OLD TABLE AS deleted FOR EACH STATEMENT EXECUTE FUNCTION recipients_delete()
    """,
)


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("key", sa.String(1024), nullable=False),
        sa.Column("project", sa.String(255), nullable=False),
        sa.Column("domain", sa.String(255), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("launch_plan", sa.String(255), nullable=False),
        sa.Column("occurred_at", _TIME, nullable=False),
        sa.Column("recorded_at", _TIME, nullable=False),
        sa.Column("position", sa.Text, nullable=False),
        sa.Column("verdict", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("facts", sa.LargeBinary, nullable=False),
        sa.Column("considered", sa.LargeBinary, nullable=False),
        sa.Column("rules_version", sa.String(16)),
        sa.Column("cause", sa.String(64)),
        sa.Column("cause_name", sa.String(200)),
        sa.PrimaryKeyConstraint("key", name="pk_events"),
    )
    if op.get_context().dialect.name == "postgresql":  # on SQLite, `search.has_name` needs no index
        op.create_index("ix_events_name", "events", ["name"])
    op.create_index("ix_events_launch_plan", "events", ["launch_plan", "recorded_at"])
    op.create_index("ix_events_recorded_at", "events", ["recorded_at"])
    op.create_index("ix_events_cause", "events", ["cause", "recorded_at"], sqlite_where=_CAUSE, postgresql_where=_CAUSE)
    op.create_table(
        "checkpoints",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_checkpoints"),
    )
    op.create_table(
        "contents",
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("content_hash", name="pk_contents"),
    )
    op.create_table(
        "deliveries",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("event", sa.String(1024)),
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("recipients", sa.Text, nullable=False),
        sa.Column("addresses", sa.Text, nullable=False),
        sa.Column("content", sa.String(64)),
        sa.Column("rules", sa.Text, nullable=False),
        sa.Column("severity", sa.String(8)),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("in_doubt", sa.Boolean, nullable=False),
        sa.Column("lease", sa.String(64)),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("due_at", _TIME, nullable=False),
        sa.Column("retry_window_start", _TIME, nullable=False),
        sa.Column("settled_at", _TIME),
        sa.Column("reference", sa.LargeBinary),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("drop_reason", sa.String(32)),
        sa.Column("thread", sa.String(255)),
        sa.Column("thread_at", _TIME),
        sa.Column("subject", sa.String(1024)),
        sa.Column("fallback_for", sa.String(64)),
        sa.Column("slot_reserved", sa.Boolean, nullable=False),
        sa.Column("occurred_at", _TIME, nullable=False),
        sa.Column("trace", sa.String(600)),
        sa.Column("hold", sa.String(8)),
        sa.Column("held_by", sa.String(255)),
        sa.Column("held_since", _TIME),
        sa.Column("hold_then", sa.String(8)),
        sa.Column("note", sa.String(1000)),
        sa.Column("included_in", sa.String(64)),
        sa.Column("reply_to", sa.String(64)),
        sa.PrimaryKeyConstraint("key", name="pk_deliveries"),
        sa.ForeignKeyConstraint(["event"], ["events.key"], name="fk_deliveries_event"),
        sa.ForeignKeyConstraint(["content"], ["contents.content_hash"], name="fk_deliveries_content"),
    )
    op.create_index("ix_deliveries_event", "deliveries", ["event"])
    op.create_index(
        "ix_deliveries_thread",
        "deliveries",
        ["thread", "thread_at"],
        sqlite_where=_HAS_THREAD,
        postgresql_where=_HAS_THREAD,
    )
    op.create_index(
        "ix_deliveries_thread_waiting",
        "deliveries",
        ["thread", "state", "thread_at"],
        sqlite_where=_WAITING_WITH_THREAD,
        postgresql_where=_WAITING_WITH_THREAD,
    )
    op.create_index(
        "ix_deliveries_subject",
        "deliveries",
        ["subject", "thread_at"],
        sqlite_where=_HAS_SUBJECT,
        postgresql_where=_HAS_SUBJECT,
    )
    op.create_index(
        "ix_deliveries_due",
        "deliveries",
        ["channel", "due_at"],
        sqlite_where=_WAITING,
        postgresql_where=_WAITING,
    )
    op.create_index(
        "ix_deliveries_backlog",
        "deliveries",
        ["state", "channel", "created_at"],
        sqlite_where=_WAITING,
        postgresql_where=_WAITING,
    )
    op.create_index(
        "ix_deliveries_dead",
        "deliveries",
        ["state", "channel"],
        sqlite_where=_DEAD,
        postgresql_where=_DEAD,
    )
    op.create_index("ix_deliveries_state_created_at", "deliveries", ["state", "created_at"])
    op.create_index("ix_deliveries_content", "deliveries", ["content"])
    op.create_index("ix_deliveries_held", "deliveries", ["due_at"], sqlite_where=_HELD, postgresql_where=_HELD)
    op.create_index(
        "ix_deliveries_included_in",
        "deliveries",
        ["included_in"],
        sqlite_where=_INCLUDED,
        postgresql_where=_INCLUDED,
    )
    op.create_table(
        "delivery_recipients",
        sa.Column("recipient", sa.String(320), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("delivery", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("recipient", "created_at", "delivery", name="pk_delivery_recipients"),
        sqlite_with_rowid=False,
    )
    for statement in _SQLITE if op.get_context().dialect.name == "sqlite" else _POSTGRES:
        op.execute(statement)
    op.create_table(
        "subjects",
        sa.Column("name", sa.String(1024), nullable=False),
        sa.Column("well_since", _TIME),
        sa.Column("open_since", _TIME),
        sa.Column("failed_at", _TIME),
        sa.Column("streak", sa.LargeBinary),
        sa.PrimaryKeyConstraint("name", name="pk_subjects"),
    )
    op.create_table(
        "launch_plan_versions",
        sa.Column("launch_plan", sa.String(1024), nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("launch_plan", "version", name="pk_launch_plan_versions"),
    )
    op.create_table(
        "unresolved_owners",
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("instead", sa.Text, nullable=False),
        sa.Column("event", sa.String(1024), nullable=False),
        sa.Column("first_at", _TIME, nullable=False),
        sa.Column("last_at", _TIME, nullable=False),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("principal", "label", name="pk_unresolved_owners"),
    )
    op.create_table(
        "destinations",
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("theoretical_arrival_at", _TIME, nullable=False),
        sa.Column("blocked_until", _TIME),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("channel", "name", name="pk_destinations"),
    )
    op.create_table(
        "silences",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("matcher", sa.LargeBinary, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("starts_at", _TIME, nullable=False),
        sa.Column("ends_at", _TIME, nullable=False),
        sa.Column("at_end", sa.String(8), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("begun", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_silences"),
    )
    op.create_index("ix_silences_ends_at", "silences", ["ends_at"])
    op.create_table("silences_version", sa.Column("version", sa.BigInteger, nullable=False))
    op.execute("INSERT INTO silences_version (version) VALUES (0)")
    op.create_table(
        "digests",
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("address", sa.String(512), nullable=False),
        sa.Column("recent", sa.LargeBinary, nullable=False),
        sa.Column("opened_at", _TIME),
        sa.Column("closes_at", _TIME),
        sa.Column("postponed", sa.Boolean, nullable=False),
        sa.Column("options", sa.LargeBinary, nullable=False),
        sa.Column("first_key", sa.String(64)),
        sa.PrimaryKeyConstraint("channel", "address", name="pk_digests"),
    )
    op.create_index("ix_digests_closes_at", "digests", ["closes_at"], sqlite_where=_OPEN, postgresql_where=_OPEN)
    op.create_table(
        "refusals",
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("since", _TIME, nullable=False),
        sa.Column("last_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("channel", name="pk_refusals"),
    )
    op.create_table(
        "replicas",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("seen_at", _TIME, nullable=False),
        sa.Column("clock_offset", sa.Float, nullable=False),
        sa.Column("channels", sa.LargeBinary, nullable=False),
        sa.Column("components", sa.LargeBinary, nullable=False),
        sa.Column("lag", sa.BigInteger),
        sa.PrimaryKeyConstraint("name", name="pk_replicas"),
    )
    op.create_table(
        "attempts",
        sa.Column("id", _ID, nullable=False, autoincrement=True),
        sa.Column("delivery", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME, nullable=False),
        sa.Column("outcome", sa.String(8), nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        sa.ForeignKeyConstraint(["delivery"], ["deliveries.key"], name="fk_attempts_delivery"),
    )
    op.create_index("ix_attempts_delivery", "attempts", ["delivery", "number"])
    op.create_table(
        "rejected",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("position", sa.Text, nullable=False),
        sa.Column("received_at", _TIME, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("event", sa.String(1024)),
        sa.Column("headers", sa.LargeBinary, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("replayed_at", _TIME),
        sa.Column("dismissed_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_rejected"),
    )
    op.create_index("ix_rejected_received_at", "rejected", ["received_at"])
    op.create_index("ix_rejected_event", "rejected", ["event"])
    op.create_table(
        "actions",
        sa.Column("id", _ID, nullable=False, autoincrement=True),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_actions"),
    )
    op.create_index("ix_actions_at", "actions", ["at"])
    op.create_table(
        "action_deliveries",
        sa.Column("action", _ID, nullable=False, autoincrement=False),
        sa.Column("delivery", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("action", "delivery", name="pk_action_deliveries"),
        sa.ForeignKeyConstraint(["action"], ["actions.id"], name="fk_action_deliveries_action"),
        sa.ForeignKeyConstraint(["delivery"], ["deliveries.key"], name="fk_action_deliveries_delivery"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_action_deliveries_delivery", "action_deliveries", ["delivery"])
