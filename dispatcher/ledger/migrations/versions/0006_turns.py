"""Whose turn it is in a conversation is found among those that wait, however long its history."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    where = sa.text("state = 'waiting' AND conversation IS NOT NULL")
    op.create_index(
        "ix_deliveries_turn",
        "deliveries",
        ["conversation", "state", "turn"],
        sqlite_where=where,
        postgresql_where=where,
    )
