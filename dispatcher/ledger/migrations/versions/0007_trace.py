"""A delivery knows the trace of its event, for the spans of its attempts, which may be another process's."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("trace", sa.String(600)))
