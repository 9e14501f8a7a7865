"""The first tables: events, marks, contents, deliveries, matters, versions, destinations, attempts, rejected."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TIME = sa.DateTime(timezone=True)
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_WAITING = sa.text("state = 'waiting'")
_IN_CONVERSATION = sa.text("conversation IS NOT NULL")
_OF_A_MATTER = sa.text("matter IS NOT NULL")


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
        sa.PrimaryKeyConstraint("key", name="pk_events"),
    )
    op.create_index("ix_events_execution", "events", ["project", "domain", "name"])
    op.create_index("ix_events_recorded_at", "events", ["recorded_at"])
    op.create_table(
        "marks",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_marks"),
    )
    op.create_table(
        "contents",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_contents"),
    )
    op.create_table(
        "deliveries",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("event", sa.String(1024), nullable=False),
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("recipients", sa.Text, nullable=False),
        sa.Column("addresses", sa.Text, nullable=False),
        sa.Column("content", sa.String(64), nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("doubtful", sa.Boolean, nullable=False),
        sa.Column("lease", sa.String(64)),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("due_at", _TIME, nullable=False),
        sa.Column("owed_since", _TIME, nullable=False),
        sa.Column("settled_at", _TIME),
        sa.Column("reference", sa.LargeBinary),
        sa.Column("conversation", sa.String(255)),
        sa.Column("turn", _TIME),
        sa.Column("matter", sa.String(1024)),
        sa.Column("recovery", sa.Boolean, nullable=False),
        sa.Column("instead_of", sa.String(64)),
        sa.Column("booked", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_deliveries"),
        sa.ForeignKeyConstraint(["event"], ["events.key"], name="fk_deliveries_event"),
        sa.ForeignKeyConstraint(["content"], ["contents.digest"], name="fk_deliveries_content"),
    )
    op.create_index("ix_deliveries_event", "deliveries", ["event"])
    op.create_index(
        "ix_deliveries_conversation",
        "deliveries",
        ["conversation", "turn"],
        sqlite_where=_IN_CONVERSATION,
        postgresql_where=_IN_CONVERSATION,
    )
    op.create_index(
        "ix_deliveries_matter",
        "deliveries",
        ["matter", "turn"],
        sqlite_where=_OF_A_MATTER,
        postgresql_where=_OF_A_MATTER,
    )
    op.create_index(
        "ix_deliveries_due",
        "deliveries",
        ["channel", "due_at"],
        sqlite_where=_WAITING,
        postgresql_where=_WAITING,
    )
    op.create_index("ix_deliveries_state_created_at", "deliveries", ["state", "created_at"])
    op.create_index("ix_deliveries_content", "deliveries", ["content"])
    op.create_table(
        "matters",
        sa.Column("name", sa.String(1024), nullable=False),
        sa.Column("failed_at", _TIME),
        sa.Column("succeeded_at", _TIME),
        sa.PrimaryKeyConstraint("name", name="pk_matters"),
    )
    op.create_table(
        "versions",
        sa.Column("matter", sa.String(1024), nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("matter", "version", name="pk_versions"),
    )
    op.create_table(
        "destinations",
        sa.Column("channel", sa.String(32), nullable=False),
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("spent_until", _TIME, nullable=False),
        sa.Column("held_until", _TIME),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("channel", "name", name="pk_destinations"),
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
        sa.PrimaryKeyConstraint("id", name="pk_rejected"),
    )
    op.create_index("ix_rejected_received_at", "rejected", ["received_at"])
    op.create_index("ix_rejected_event", "rejected", ["event"])
