"""The next version for upgrade tests: a copy of this version's code with one more migration."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from dispatcher.ledger.versions import COMPATIBLE, HEAD
from tests.support.service import command

ROOT = Path(__file__).parents[2]
NEXT = f"{int(HEAD[:4]) + 1:04}_00000000"
MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = {next!r}
down_revision = {head!r}


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("priority", sa.String(16), nullable=False, server_default="normal"))
    op.create_index("ix_deliveries_priority", "deliveries", ["priority"], if_not_exists=True)
    op.create_table("priorities", sa.Column("name", sa.String(16), primary_key=True))
"""


class NextVersion:
    """A copy of the code. To run it, start `python -m dispatcher` in `folder` with `environment`."""

    def __init__(self, folder: Path, *, oldest: str = COMPATIBLE) -> None:
        """`oldest`: the oldest version that may work with the next version's tables."""
        self.folder = folder
        for package in ("dispatcher", "channels", "templates"):
            shutil.copytree(ROOT / package, folder / package)  # with the compiled files, which saves seconds
        migrations = folder / "dispatcher" / "ledger" / "migrations" / "versions"
        (migrations / f"{NEXT}_next.py").write_text(MIGRATION.format(next=NEXT, head=HEAD))
        engine = folder / "dispatcher" / "ledger" / "versions.py"
        code, head = re.subn(r'(?m)^HEAD = ".*"$', f'HEAD = "{NEXT}"', engine.read_text())
        code, compatible = re.subn(r"(?m)^COMPATIBLE = .*$", f'COMPATIBLE = "{oldest}"', code)
        assert (head, compatible) == (1, 1)
        engine.write_text(code)

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment variables that put its packages before this version's."""
        return {**os.environ, "PYTHONPATH": str(self.folder)}

    async def migrate(self, config: Path) -> str:
        """Run its `dispatcher ledger migrate`; return the output."""
        arguments = ("ledger", "migrate", "--config", str(config))
        status, out, err = await command(*arguments, env=self.environment, cwd=self.folder)
        assert status == 0, err
        return out
