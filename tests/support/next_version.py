"""The version after this one: this one's own code, copied, with one migration more."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from dispatcher.ledger.engine import COMPATIBLE, HEAD
from tests.support.service import command

ROOT = Path(__file__).parents[2]
NEXT = f"{int(HEAD[:4]) + 1:04}_00000000"
MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = {next!r}
down_revision = {head!r}


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("mood", sa.String(16), nullable=False, server_default="calm"))
    op.create_index("ix_deliveries_mood", "deliveries", ["mood"], if_not_exists=True)
    op.create_table("moods", sa.Column("name", sa.String(16), primary_key=True))
"""


class NextVersion:
    """A tree of its own; `python -m dispatcher` is its, started in its folder with its environment."""

    def __init__(self, folder: Path, *, oldest: str = COMPATIBLE) -> None:
        """`oldest`: what its tables say of older versions."""
        self.folder = folder
        for package in ("dispatcher", "channels", "templates"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        migrations = folder / "dispatcher" / "ledger" / "migrations" / "versions"
        (migrations / f"{NEXT}_next.py").write_text(MIGRATION.format(next=NEXT, head=HEAD))
        database = folder / "dispatcher" / "ledger" / "engine.py"
        text, head = re.subn(r'(?m)^HEAD = ".*"$', f'HEAD = "{NEXT}"', database.read_text())
        text, compatible = re.subn(r"(?m)^COMPATIBLE = .*$", f'COMPATIBLE = "{oldest}"', text)
        assert (head, compatible) == (1, 1)
        database.write_text(text)

    @property
    def environment(self) -> Mapping[str, str]:
        """Its own packages go before this version's."""
        return {**os.environ, "PYTHONPATH": str(self.folder)}

    async def migrate(self, config: Path) -> str:
        """Run its `dispatcher ledger migrate`; what that said."""
        arguments = ("ledger", "migrate", "--config", str(config))
        status, out, err = await command(*arguments, env=self.environment, cwd=self.folder)
        assert status == 0, err
        return out
