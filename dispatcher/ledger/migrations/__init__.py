"""Alembic's scripts: they upgrade a ledger from any released version to this one."""
