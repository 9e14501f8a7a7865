"""A start on a ledger that is up to date does not import Alembic."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OPENING = """
import asyncio, sys
from dispatcher.ledger import Ledger

async def main():
    async with Ledger(sys.argv[1]) as ledger:
        assert await ledger.history.newest() is None

asyncio.run(main())
print("alembic" in sys.modules)
"""


def imports_alembic(url: str, cwd: Path | None = None) -> bool:
    process = subprocess.run(
        [sys.executable, "-c", OPENING, url], capture_output=True, text=True, check=True, timeout=60, cwd=cwd
    )
    return process.stdout == "True\n"


def test_alembic_is_imported_only_if_the_tables_are_missing_or_old(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    assert imports_alembic(url)
    assert not imports_alembic(url)


def test_the_path_of_the_installation_may_contain_a_percent_sign(tmp_path: Path) -> None:
    installation = tmp_path / "50%(off)s"
    for package in ("channels", "dispatcher"):
        shutil.copytree(ROOT / package, installation / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert imports_alembic(f"sqlite+aiosqlite:///{tmp_path}/ledger.db", cwd=installation)
