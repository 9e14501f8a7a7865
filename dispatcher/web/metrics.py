"""GET /metrics: counters, and gauges whose values collectors read from the ledger, Kafka and the components.

At a scrape, all collectors run at the same time. Their results are cached, so that several scrapers cost no more than
one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog
from starlette.requests import Request
from starlette.responses import Response

log = structlog.get_logger(__name__)

COLLECTOR_TIMEOUT = 3.0
"""Maximum seconds for one collector. By default, Prometheus waits ten seconds for a scrape."""
MIN_CACHE = 5.0
"""Minimum seconds for which results are cached."""
MAX_SHARE = 0.05
"""Maximum share of the time in which collectors run. To keep it, results of slow collectors are cached for longer."""

Collector = Callable[[], Awaitable[None]]
"""Reads current values and sets its gauges. May raise any exception."""
CollectorFinished = Callable[[str, bool], None]
"""Called after each collector with its name and whether it succeeded."""


class MetricsPage:
    """The page for Prometheus. It always answers; a failed collector is logged and shown in a metric."""

    def __init__(
        self,
        page: Callable[[str], tuple[bytes, str]],
        collectors: Mapping[str, Collector],
        collector_finished: CollectorFinished,
    ) -> None:
        self._page = page
        self._collectors = collectors
        self._collector_finished = collector_finished
        self._lock = asyncio.Lock()
        self._fresh_until = 0.0

    async def get(self, request: Request) -> Response:
        async with self._lock:
            await self._collect()
        body, content_type = self._page(request.headers.get("accept", ""))
        return Response(body, media_type=content_type)

    async def _collect(self) -> None:
        now = asyncio.get_running_loop().time
        started = now()
        if started < self._fresh_until:
            return
        async with asyncio.TaskGroup() as collecting:
            for name, collector in self._collectors.items():
                collecting.create_task(self._run(name, collector), name=f"metrics {name}")
        self._fresh_until = now() + max(MIN_CACHE, (now() - started) / MAX_SHARE)

    async def _run(self, name: str, collector: Collector) -> None:
        try:
            async with asyncio.timeout(COLLECTOR_TIMEOUT):
                await collector()
        except Exception as error:  # noqa: BLE001 - a failed collector must not fail the whole page
            log.warning("metrics are incomplete", missing=name, reason=str(error) or type(error).__name__)
            self._collector_finished(name, False)
        else:
            self._collector_finished(name, True)
