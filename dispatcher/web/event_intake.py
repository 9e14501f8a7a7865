"""POST /events: CloudEvents over HTTP, binary and structured mode.

The answer comes after the ledger's transaction: 202 means recorded, for good. Source: the CloudEvents
HTTP protocol binding 1.0.2.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from dispatcher.errors import LedgerUnavailable, Unavailable
from dispatcher.flyte.decode import Headers
from dispatcher.intake.pipeline import BatchResult
from dispatcher.web.responses import problem

log = structlog.get_logger(__name__)

PATIENCE = "5"
"""Seconds to wait before a publisher tries again, while the ledger or FlyteAdmin is away."""

_KEPT = frozenset({"content-type", "traceparent", "tracestate"})

Take = Callable[[Sequence[tuple[Headers, bytes | None, str]]], Awaitable[BatchResult]]


class EventsPage:
    """The intake over HTTP."""

    def __init__(self, take: Take) -> None:
        self._take = take

    async def post(self, request: Request) -> Response:
        try:
            value = await request.body()
        except ClientDisconnect:
            return Response(status_code=400)
        try:
            heard = await self._take([(_kafka_headers(request), value, "http")])
        except Unavailable as error:
            who = "the ledger" if isinstance(error, LedgerUnavailable) else "FlyteAdmin"
            log.warning("a publisher was asked to come again", reason=str(error))
            return problem(503, f"{who} is away; nothing was recorded", {"Retry-After": PATIENCE})
        return _answer(heard)


def _kafka_headers(request: Request) -> Headers:
    """HTTP's `ce-type` is Kafka's `ce_type`. Of the others the trace's are kept; among the rest is the token."""
    kept = []
    for name, value in request.headers.raw:
        text = name.decode("latin-1").lower()
        if text.startswith("ce-") or text in _KEPT:
            kept.append((text.replace("ce-", "ce_", 1), value))
    return kept


def _answer(heard: BatchResult) -> Response:
    if heard.rejected:
        refused = heard.rejected[0]
        status = 202 if refused.event else 400  # an event without known rules is understood, and kept for a replay
        return JSONResponse({"status": "rejected", "id": refused.id, "reason": refused.reason}, status)
    if not heard.recorded:
        return JSONResponse({"status": "ignored", "reason": "not a terminal phase change of a workflow"}, 202)
    entry = heard.recorded[0]
    known = entry.event.key in heard.new
    return JSONResponse(
        {
            "status": "recorded" if known else "duplicate",
            "event": entry.event.key,
            "verdict": entry.verdict,
            "reason": entry.reason,
            "deliveries": [delivery.key for delivery in entry.deliveries],
        },
        202,
    )
