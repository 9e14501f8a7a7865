"""Fills a ledger with as many rows as a year brings. The rows are generated in SQL, which is fast."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from dispatcher.ledger.database_url import checked_url

DELIVERIES_PER_EVENT = 3
"""There is one event a second."""
BEGIN = datetime.fromtimestamp(1763600000, UTC)
"""The time of the first event."""

_MAIL = '{"subject": "failed", "text": "It failed.", "html": "<p>It failed.</p>"}'
_FACTS = """'{"execution": {"project": "p", "domain": "d", "name": "e' || i || '"}, "phase": "FAILED", "occurredAt": 1763600000}'"""
_CAUSE = "CASE WHEN i % 10007 = 0 THEN 'v1:rare' WHEN i % 3 = 0 THEN 'v1:' || (i % 60) END"
_SQLITE = (
    """
    CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < :events - 1)
    SELECT i, strftime('%Y-%m-%d %H:%M:%S', 1763600000 + i, 'unixepoch') || '.000000' AS at FROM n
    """,
    f"INSERT INTO contents VALUES ('c', CAST('{_MAIL}' AS BLOB))",
    f"""
    INSERT INTO events (key, project, domain, name, phase, launch_plan, occurred_at, recorded_at, position, verdict, reason,
      facts, considered, cause, cause_name)
    SELECT 'p/d/e' || i || '/FAILED', 'p', 'd', 'e' || i, 'FAILED',
      CASE WHEN i % 10007 = 0 THEN 'rare' ELSE 'plan-' || (i % 20) END, at, at, 't/0@' || i, 'matched',
      '1 rule matched', CAST({_FACTS} AS BLOB), CAST('[]' AS BLOB),
      {_CAUSE}, 'ValueError: bad' FROM n
    """,
    """
    INSERT INTO deliveries (key, event, channel, recipients, addresses, content, rules, state, reason, attempt, in_doubt,
      created_at, due_at, retry_window_start, settled_at, occurred_at, kind, slot_reserved)
    SELECT printf('%032x', i * 3 + j), 'p/d/e' || i || '/FAILED',
      CASE WHEN i % 5003 = 0 THEN 'teams' WHEN j = 0 THEN 'email' ELSE 'slack' END,
      json_array(CASE WHEN i % 10007 = 0 THEN 'rare' ELSE 'team-' || ((i + j) % 300) END),
      json_array(CASE WHEN i % 10007 = 0 THEN 'rare' ELSE 'team-' || ((i + j) % 300) END),
      'c', '[["", "test"]]', CASE i % 50 WHEN 0 THEN 'dead' WHEN 1 THEN 'waiting' ELSE 'sent' END, '', 1, 0,
      at, at, at, at, at, 'notification', 0
    FROM n, (SELECT 0 AS j UNION ALL SELECT 1 UNION ALL SELECT 2)
    """,
    """
    INSERT OR IGNORE INTO delivery_recipients SELECT name.value, deliveries.created_at, deliveries.key
    FROM deliveries, json_each(deliveries.recipients) AS name
    """,
    """
    INSERT INTO attempts (delivery, number, started_at, ended_at, outcome, status, answer, reason)
    SELECT printf('%032x', i * 3), 1, at, at, 'sent', '250', 'ok', '' FROM n
    """,
    """
    INSERT INTO rejected SELECT printf('%016x', i), 't/0@' || i, at, 'broken JSON', NULL, CAST('[]' AS BLOB),
      CAST('x' AS BLOB), 1, NULL, NULL FROM n
    """,
    "DROP TABLE n",
)
_POSTGRES = (
    """
    CREATE TEMP TABLE n AS
    SELECT i, to_timestamp(1763600000 + i) AS at FROM generate_series(0, CAST(:events AS int) - 1) AS i
    """,
    f"INSERT INTO contents VALUES ('c', convert_to('{_MAIL}', 'UTF8'))",
    f"""
    INSERT INTO events (key, project, domain, name, phase, launch_plan, occurred_at, recorded_at, position, verdict, reason,
      facts, considered, cause, cause_name)
    SELECT 'p/d/e' || i || '/FAILED', 'p', 'd', 'e' || i, 'FAILED',
      CASE WHEN i % 10007 = 0 THEN 'rare' ELSE 'plan-' || (i % 20) END, at, at, 't/0@' || i, 'matched',
      '1 rule matched', convert_to({_FACTS}, 'UTF8'), convert_to('[]', 'UTF8'),
      {_CAUSE}, 'ValueError: bad' FROM n
    """,
    """
    INSERT INTO deliveries (key, event, channel, recipients, addresses, content, rules, state, reason, attempt, in_doubt,
      created_at, due_at, retry_window_start, settled_at, occurred_at, kind, slot_reserved)
    SELECT lpad(to_hex(i * 3 + j), 32, '0'), 'p/d/e' || i || '/FAILED',
      CASE WHEN i % 5003 = 0 THEN 'teams' WHEN j = 0 THEN 'email' ELSE 'slack' END,
      json_build_array(CASE WHEN i % 10007 = 0 THEN 'rare' ELSE 'team-' || ((i + j) % 300) END),
      json_build_array(CASE WHEN i % 10007 = 0 THEN 'rare' ELSE 'team-' || ((i + j) % 300) END),
      'c', '[["", "test"]]', CASE i % 50 WHEN 0 THEN 'dead' WHEN 1 THEN 'waiting' ELSE 'sent' END, '', 1, false,
      at, at, at, at, at, 'notification', false
    FROM n, generate_series(0, 2) AS j
    """,
    """
    INSERT INTO attempts (delivery, number, started_at, ended_at, outcome, status, answer, reason)
    SELECT lpad(to_hex(i * 3), 32, '0'), 1, at, at, 'sent', '250', 'ok', '' FROM n
    """,
    """
    INSERT INTO rejected SELECT lpad(to_hex(i), 16, '0'), 't/0@' || i, at, 'broken JSON', NULL,
      convert_to('[]', 'UTF8'), convert_to('x', 'UTF8'), 1, NULL, NULL FROM n
    """,
    "DROP TABLE n",
)


def end_of(deliveries: int) -> datetime:
    """The time after the last event of a ledger with this number of deliveries."""
    return BEGIN + timedelta(seconds=deliveries // DELIVERIES_PER_EVENT)


async def fill_ledger(url: str, deliveries: int) -> None:
    """Write this number of deliveries with their events, and for each event an attempt and a rejected message."""
    engine = create_async_engine(checked_url(url))
    sqlite = engine.dialect.name == "sqlite"
    async with engine.begin() as connection:
        for statement in _SQLITE if sqlite else _POSTGRES:
            parameters = {"events": deliveries // DELIVERIES_PER_EVENT} if ":events" in statement else {}
            await connection.execute(text(statement), parameters)
    if not sqlite:  # autovacuum would do it soon
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            await connection.execute(text("VACUUM ANALYZE"))
    await engine.dispose()
