"""A running service must not import modules that it does not use, because they would stay in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from dispatcher.ledger import Ledger

UNUSED = {
    "aiokafka",
    "alembic",
    "asyncpg",
    "grpc",
    "opentelemetry",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.orm",
}
SERVICE_SCRIPT = """
import asyncio, sys
from pathlib import Path
from dispatcher.cli import serve
from dispatcher.observability import logs
from dispatcher.runtime.service import Service
from dispatcher.config.settings import load

service = Service(load(Path(sys.argv[1])), on_ready=lambda _: service.stop())
asyncio.run(service.run())
import channels.pagerduty.client  # imported when the first event is sent
print(*sys.modules)
"""
PARTIAL_IMPORT_SCRIPT = """
from dispatcher.ledger.sqlalchemy_internals import AsyncEngine
import sqlalchemy.ext.asyncio as package
print(package.AsyncEngine is AsyncEngine, package.AsyncSession.__name__)
"""


def output_of(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout


async def test_a_service_on_sqlite_imports_no_unused_module(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    async with Ledger(url):  # creates the tables
        pass
    email = {"host": "127.0.0.1", "port": 1, "security": "none", "from": "Flyte <flyte@example.com>"}
    http = {"listen": "127.0.0.1:0"}
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"ledger": {"url": url}, "http": http, "channels": {"email": email}})
    )
    imported = set(output_of(SERVICE_SCRIPT, str(tmp_path / "config.yaml")).split())
    assert {"sqlalchemy.dialects.sqlite", "uvicorn", "requests", "structlog"} <= imported
    assert not imported & UNUSED


def test_sqlalchemys_asyncio_can_be_imported_whole_later() -> None:
    assert output_of(PARTIAL_IMPORT_SCRIPT) == "True AsyncSession\n"
