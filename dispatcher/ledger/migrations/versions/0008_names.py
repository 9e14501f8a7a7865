"""An execution is found by its name alone: the names are random, and two indexes of them are two pages to write an event."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.drop_index("ix_events_execution", "events")
