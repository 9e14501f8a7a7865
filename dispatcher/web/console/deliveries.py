"""What is owed, what was sent, what is dead: searched by anything that people know of it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from dispatcher.ledger.queries import Page
from dispatcher.model.delivery import State
from dispatcher.web.console.shell import Shell, read_query, url
from dispatcher.web.filters import DeliverySearch

_QUICK: tuple[tuple[str, dict[str, Any]], ...] = (
    ("All", {}),
    ("Dead", {"state": ["dead"]}),
    ("Waiting", {"state": ["waiting"]}),
    ("Sent", {"state": ["sent"]}),
    ("Last hour", {"since": "1h"}),
    ("Last 24 hours", {"since": "24h"}),
)


async def get(shell: Shell, request: Request) -> Response:
    search, wrong = read_query(DeliverySearch, request, but=["redriven"])
    page: Page[Any] = Page([], None)
    try:
        wanted, after = search.wanted(now=shell.clock.now()), search.cursor
    except ValueError as error:
        wrong = wrong or str(error)
    if not wrong:
        page = await shell.ledger.queries.deliveries(wanted, limit=search.limit, after=after)
    asked = search.model_dump(exclude_defaults=True, exclude={"after"}, mode="json")
    about = {name: value for name, value in asked.items() if name not in {"state", "limit"}}
    redriven = request.query_params.get("redriven", "")
    return shell.draw(
        request,
        "deliveries.html.j2",
        status=400 if wrong else 200,
        search=search,
        wrong=wrong,
        page=page,
        asked=asked,
        older=url("deliveries", **asked, after=page.after) if page.after is not None else None,
        newest=url("deliveries", **asked) if search.after else None,
        quick=[(name, url("deliveries", **query), query == asked) for name, query in _QUICK],
        redrive_all=url("redrive", **about),
        dead=sum(line.state is State.DEAD for line in page.entries),
        channels=[(one, one) for one in sorted({*shell.channels, *([search.channel] if search.channel else [])})],
        redriven=int(redriven) if redriven.isdecimal() and len(redriven) < 10 else None,
    )
