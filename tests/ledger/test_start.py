"""What a start on a ledger that is up to date does without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

OPENING = """
import asyncio, sys
from dispatcher.ledger import Ledger

async def opened():
    async with Ledger(sys.argv[1]) as ledger:
        assert await ledger.newest() is None

asyncio.run(opened())
print("alembic" in sys.modules)
"""


def alembic_was_needed(url: str) -> bool:
    done = subprocess.run([sys.executable, "-c", OPENING, url], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout == "True\n"


def test_only_a_start_that_finds_old_tables_or_none_takes_alembics_time_and_memory(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    assert alembic_was_needed(url)
    assert not alembic_was_needed(url)
