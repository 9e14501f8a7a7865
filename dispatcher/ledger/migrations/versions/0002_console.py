"""What people search by: recipients, launch plans, and an execution's name alone.

`told` is kept by triggers, so that it is whole whichever version of the dispatcher writes and purges. Only on SQLite,
whose triggers fire for each row and which has no replicas to speak of, the ledger itself writes it while it records.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_SQLITE = (
    """
    CREATE TRIGGER told_ends AFTER DELETE ON deliveries BEGIN
      DELETE FROM told WHERE created_at = OLD.created_at AND delivery = OLD.key AND recipient IN (
        SELECT substr(lower(value), 1, 320) FROM json_each(OLD.recipients)
        UNION SELECT substr(lower(value), 1, 320) FROM json_each(OLD.addresses)
      );
    END
    """,
    """
    INSERT OR IGNORE INTO told (recipient, created_at, delivery)
    SELECT substr(lower(name.value), 1, 320), made.created_at, made.key
    FROM deliveries AS made, json_each(made.recipients) AS name
    UNION ALL
    SELECT substr(lower(name.value), 1, 320), made.created_at, made.key
    FROM deliveries AS made, json_each(made.addresses) AS name
    """,
)
# PostgreSQL's text has no NUL: a list with one is left out of the search, and never in the way of its delivery.
# Collation "C": ASCII's lower case alone, as SQLite has it.
_POSTGRES = (
    r"""
    CREATE FUNCTION told_names(recipients text, addresses text) RETURNS SETOF text LANGUAGE sql STABLE AS $$
      SELECT left(lower(name COLLATE "C"), 320) FROM json_array_elements_text(
        CASE WHEN position('\u0000' IN recipients) = 0 THEN recipients::json ELSE '[]'::json END) AS name
      UNION
      SELECT left(lower(name COLLATE "C"), 320) FROM json_array_elements_text(
        CASE WHEN position('\u0000' IN addresses) = 0 THEN addresses::json ELSE '[]'::json END) AS name
    $$
    """,
    """
    CREATE FUNCTION told_begins() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      INSERT INTO told (recipient, created_at, delivery)
      SELECT name, made.created_at, made.key FROM made, told_names(made.recipients, made.addresses) AS name
      ON CONFLICT DO NOTHING;
      RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION told_ends() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      DELETE FROM told USING gone, told_names(gone.recipients, gone.addresses) AS name
      WHERE told.recipient = name AND told.created_at = gone.created_at AND told.delivery = gone.key;
      RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER told_begins AFTER INSERT ON deliveries
    REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION told_begins()
    """,
    """
    CREATE TRIGGER told_ends AFTER DELETE ON deliveries
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION told_ends()
    """,
    """
    INSERT INTO told (recipient, created_at, delivery)
    SELECT name, created_at, key FROM deliveries, told_names(recipients, addresses) AS name
    ON CONFLICT DO NOTHING
    """,
)


def upgrade() -> None:
    op.create_index("ix_events_name", "events", ["name"])
    op.create_index("ix_events_launch_plan", "events", ["launch_plan", "recorded_at"])
    op.create_table(
        "told",
        sa.Column("recipient", sa.String(320), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("delivery", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("recipient", "created_at", "delivery", name="pk_told"),
        sqlite_with_rowid=False,
    )
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRES:
        op.execute(statement)
