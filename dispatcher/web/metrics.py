"""GET /metrics: the page with counters and gauges for Prometheus.

Functions named collectors read the gauges' values from the ledger, Kafka and the components. At a scrape, all
collectors run at the same time. Their results are cached, so several Prometheus servers cost no more than one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog
from starlette.requests import Request
from starlette.responses import Response

log = structlog.get_logger(__name__)

COLLECTOR_TIMEOUT = 3.0
"""Maximum seconds for one collector. It is well below the ten seconds that Prometheus waits for a scrape by default."""
MIN_CACHE = 5.0
"""Minimum seconds for which the results of the collectors are cached."""
MAX_SHARE = 0.05
"""Maximum share of time in which collectors run: 0.05 means 3 of 60 seconds. If collectors are slow, their results are
cached for longer, so that the share is not exceeded."""

Collector = Callable[[], Awaitable[None]]
"""Reads current values and sets the gauges to them. May raise any exception, because the page catches all."""
CollectorFinished = Callable[[str, bool], None]
"""Called after each collector, with the collector's name and True if the collector succeeded."""


class MetricsPage:
    """Serves /metrics. If a collector fails, the failure is logged and shown in a metric; the page is still served."""

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
