"""The first page: how things stand, how they went, and what happens now."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from dispatcher.ledger.queries import Activity
from dispatcher.web.activity_stream import event_id
from dispatcher.web.api.endpoints import RANGES
from dispatcher.web.console import charts
from dispatcher.web.console.shell import Shell, Sorry

SHOWN = 30
"""Happenings, at first."""


async def get(shell: Shell, request: Request) -> Response:
    queries, now = shell.ledger.queries, shell.clock.now()
    chosen = request.query_params.get("range", "24h")
    span, number = RANGES.get(chosen, RANGES["24h"])
    happenings = [*reversed(await queries.latest(limit=SHOWN))]
    time_buckets = await queries.time_buckets(now - span, now, number=number)
    return shell.draw(
        request,
        "overview.html.j2",
        standing=await queries.standing(),
        ranges=list(RANGES),
        chosen=chosen if chosen in RANGES else "24h",
        time_buckets=time_buckets,
        outcomes=charts.outcomes(time_buckets),
        lags=charts.lags(time_buckets),
        span=charts.span,
        made=sum(sum(one.numbers.values()) for one in time_buckets),
        happenings=happenings[:SHOWN],
        newest=event_id(happenings[0]) if happenings else None,
    )


async def stream(shell: Shell, request: Request) -> Response:
    """What happens, drawn as the page shows it."""

    def row(happening: Activity) -> str:
        return shell.part("happening.html.j2", one=happening)

    last = request.headers.get("last-event-id") or request.query_params.get("after")
    try:
        response = shell.feed.response(row, after=last)
    except ValueError:
        raise Sorry(400, "That is no event's id of ours.") from None
    if response is None:
        raise Sorry(503, "Too many pages listen already.")
    return response
