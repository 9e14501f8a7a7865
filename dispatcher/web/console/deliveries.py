"""The page with the list of deliveries and its filters."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from dispatcher.explain import delivery_data
from dispatcher.filters import Search, unknown_names
from dispatcher.ledger.records import Page
from dispatcher.model.delivery import State
from dispatcher.web.console.base import Console, channel_choices, read_query

_QUICK: tuple[tuple[str, dict[str, Any]], ...] = (
    ("All", {}),
    ("Dead", {"state": ["dead"]}),
    ("Waiting", {"state": ["waiting"], "held": False}),
    ("Held", {"held": True}),
    ("Sent", {"state": ["sent"]}),
    ("Dropped", {"state": ["dropped"]}),
    ("Last hour", {"since": "1h"}),
    ("Last 24 hours", {"since": "24h"}),
)


async def get(console: Console, request: Request) -> Response:
    search, problem = read_query(Search, request, ignore=["done", "changed"])
    page: Page[Any] = Page([], None)
    hints: list[str] = []
    try:
        wanted, after = search.wanted(now=console.clock.now()), search.cursor
    except ValueError as error:
        problem = problem or str(error)
    if not problem:
        page = await console.ledger.queries.deliveries(wanted, limit=search.limit, after=after)
        if not page.entries:
            hints = await unknown_names(console.ledger, wanted, console.channel_types)
        entries = await console.ledger.queries.with_waits(page.entries, now=console.clock.now())
        page = Page([delivery_data(entry) for entry in entries], page.after, page.cut)
    query = search.model_dump(exclude_defaults=True, exclude={"after"}, mode="json")
    criteria = {name: value for name, value in query.items() if name not in {"state", "limit"}}
    changed = request.query_params.get("changed", "")
    states = {entry["state"] for entry in page.entries}
    return console.render(
        request,
        "deliveries.html.j2",
        status=400 if problem else 200,
        search=search,
        problem=problem,
        page=page,
        hints=hints,
        query=query,
        older=console.url("deliveries", **query, after=page.after) if page.after is not None else None,
        newest=console.url("deliveries", **query) if search.after else None,
        quick=[(name, console.url("deliveries", **fields), fields == query) for name, fields in _QUICK],
        criteria=criteria,
        dead=State.DEAD in states,
        waiting=State.WAITING in states,
        channels=channel_choices(console, search),
        changed=int(changed) if changed.isdecimal() and len(changed) < 10 else None,
        done=request.query_params.get("done", ""),
    )
