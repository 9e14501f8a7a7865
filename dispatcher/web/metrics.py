"""GET /metrics: what was counted, and how the ledger, Kafka and the rooms stand at this moment.

What has to be looked up is looked up when somebody asks, side by side, and kept for a while: several scrapers, or an
impatient one, cost no more than one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog
from starlette.requests import Request
from starlette.responses import Response

log = structlog.get_logger(__name__)

PATIENCE = 3.0
"""Seconds for one look; Prometheus waits ten by default."""
KEPT = 5.0
"""Seconds for which figures are kept."""
SHARE = 0.05
"""Of the time at most is spent on looking: a ledger that is slow to count is asked less often."""

Look = Callable[[], Awaitable[None]]
"""Looks something up and sets its gauges. May raise anything."""
Collected = Callable[[str, bool], None]
"""Told of each look whether it went well."""


class MetricsPage:
    """The page for Prometheus. It always answers: of what can't be looked up, it says so."""

    def __init__(
        self, page: Callable[[str], tuple[bytes, str]], looks: Mapping[str, Look], collected: Collected
    ) -> None:
        self._page = page
        self._looks = looks
        self._collected = collected
        self._lock = asyncio.Lock()
        self._fresh_until = 0.0

    async def get(self, request: Request) -> Response:
        async with self._lock:
            await self._look()
        body, kind = self._page(request.headers.get("accept", ""))
        return Response(body, media_type=kind)

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time
        began = now()
        if began < self._fresh_until:
            return
        async with asyncio.TaskGroup() as looking:
            for name, look in self._looks.items():
                looking.create_task(self._look_at(name, look), name=f"metrics {name}")
        self._fresh_until = now() + max(KEPT, (now() - began) / SHARE)

    async def _look_at(self, name: str, look: Look) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await look()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one, the page must come
            log.warning("metrics are incomplete", missing=name, reason=str(error) or type(error).__name__)
            self._collected(name, False)
        else:
            self._collected(name, True)
