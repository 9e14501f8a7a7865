"""What a service does without: each of these would be resident for as long as it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from dispatcher.ledger import Ledger

UNUSED = {
    "alembic",
    "asyncpg",
    "charset_normalizer",
    "grpc",
    "opentelemetry",
    "rich",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.orm",
    "watchfiles",
}
SERVING = """
import asyncio, sys
from pathlib import Path
from dispatcher.cli import serve
from dispatcher.observability import logs
from dispatcher.runtime.service import Service
from dispatcher.config.settings import load

service = Service(load(Path(sys.argv[1])), ready=lambda _: service.stop())
asyncio.run(service.run())
import channels.pagerduty.client  # as at the first page
print(*sys.modules)
"""
SPARING = """
from channels.common.lean_imports import bare, without

with bare("sqlalchemy.ext.asyncio"), without("colorsys"):
    from sqlalchemy.ext.asyncio.engine import AsyncEngine
    try:
        import colorsys
    except ModuleNotFoundError:
        print("hidden")

import colorsys
import sqlalchemy.ext.asyncio as whole
print(colorsys.__name__, whole.AsyncEngine is AsyncEngine, whole.AsyncSession.__name__)
"""


def said_by(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout


async def test_a_service_on_sqlite_imports_nothing_that_it_has_no_use_for(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    async with Ledger(url):  # the tables are there
        pass
    email = {"host": "127.0.0.1", "port": 1, "security": "none", "from": "Flyte <flyte@example.com>"}
    http = {"listen": "127.0.0.1:0"}
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"ledger": {"url": url}, "http": http, "channels": {"email": email}})
    )
    imported = set(said_by(SERVING, str(tmp_path / "config.yaml")).split())
    assert {"sqlalchemy.dialects.sqlite", "uvicorn", "requests", "structlog"} <= imported
    assert not imported & UNUSED


def test_what_was_spared_is_whole_for_whoever_imports_it_later() -> None:
    assert said_by(SPARING) == "hidden\ncolorsys True AsyncSession\n"
