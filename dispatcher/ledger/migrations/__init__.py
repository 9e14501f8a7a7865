"""Alembic's scripts, which upgrade a ledger from any released version to this version."""
