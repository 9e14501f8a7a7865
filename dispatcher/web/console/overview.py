"""The console's first page, with status, charts and live activity."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from dispatcher.ledger.records import Activity
from dispatcher.web.activity_stream import event_id
from dispatcher.web.api.endpoints import RANGES
from dispatcher.web.auth.access import still_allowed
from dispatcher.web.config import Scope
from dispatcher.web.console import charts
from dispatcher.web.console.base import Console, PageError

SHOWN = 30
"""Maximum number of activity entries that the page contains when it is loaded. The script adds newer entries."""


async def get(console: Console, request: Request) -> Response:
    queries, now = console.ledger.queries, console.clock.now()
    selected = request.query_params.get("range", "24h")
    span, number = RANGES.get(selected, RANGES["24h"])
    activity = [*reversed(await queries.latest(limit=SHOWN))]
    time_buckets = await queries.time_buckets(now - span, now, number=number)
    return console.render(
        request,
        "overview.html.j2",
        ledger_status=await queries.status(),
        ranges=list(RANGES),
        selected=selected if selected in RANGES else "24h",
        time_buckets=time_buckets,
        outcomes=charts.outcomes(time_buckets),
        lags=charts.lags(time_buckets),
        duration=charts.duration,
        created=sum(sum(one.by_state.values()) for one in time_buckets),
        activity=activity[:SHOWN],
        newest=event_id(activity[0]) if activity else None,
    )


async def stream(console: Console, request: Request) -> Response:
    """Stream activity as server-sent events. Each of these events contains one HTML row for the page."""

    def row(entry: Activity) -> str:
        return console.fragment("activity.html.j2", entry=entry)

    last = request.headers.get("last-event-id") or request.query_params.get("after")
    try:
        allowed = partial(still_allowed, request, Scope.READ)
        response = console.activity_stream.response(row, after=last, allowed=allowed)
    except ValueError:
        raise PageError(400, "That is not an event id of this stream.") from None
    if response is None:
        raise PageError(503, "Too many pages are connected.")
    return response
