"""Alembic's scripts: how a ledger of any version becomes one of this version."""
