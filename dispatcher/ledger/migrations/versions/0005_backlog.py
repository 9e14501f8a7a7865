"""What is waiting and what is dead can be counted by channel; a delivery knows when its event happened."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("occurred_at", sa.DateTime(timezone=True)))
    for name, state, *columns in (
        ("ix_deliveries_backlog", "waiting", "state", "channel", "created_at"),
        ("ix_deliveries_dead", "dead", "state", "channel"),
    ):
        where = sa.text(f"state = '{state}'")
        op.create_index(name, "deliveries", columns, sqlite_where=where, postgresql_where=where)
