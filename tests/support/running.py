"""Runs the service in the test's event loop, with settings from a YAML file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from dispatcher.config.settings import load
from dispatcher.runtime.service import Service


@asynccontextmanager
async def running(folder: Path, settings: Mapping[str, Any]) -> AsyncIterator[str]:
    """Run the service during the block; yields its base URL. `http.listen` defaults to a free port."""
    http = {"listen": "127.0.0.1:0", **settings.get("http", {})}
    file = folder / "dispatcher.yaml"
    file.write_text(yaml.safe_dump({**settings, "http": http}))
    ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    service = Service(load(file), on_ready=ready.set_result)
    task = asyncio.create_task(service.run())
    await asyncio.wait([ready, task], return_when=asyncio.FIRST_COMPLETED)
    try:
        if not ready.done():
            await task  # raises the reason why it did not start
        yield ready.result() or ""
    finally:
        service.stop()
        await task
