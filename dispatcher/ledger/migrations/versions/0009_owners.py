"""SQLite finds an execution's name by its owners, who are few: names are random, and an index of them one more page to write
an event. PostgreSQL, whose order of texts may be any language's, keeps it.
"""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("ix_events_name", "events")
