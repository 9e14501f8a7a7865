"""Executions' ends, what was decided of each, and how its deliveries stand."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from dispatcher.ledger.queries import Page
from dispatcher.web.console.shell import Shell, read_query, url
from dispatcher.web.filters import ExecutionSearch

_QUICK: tuple[tuple[str, dict[str, str]], ...] = (
    ("All", {}),
    ("Failed", {"phase": "FAILED"}),
    ("Nobody told", {"verdict": "no_matching_rule"}),
    ("Silenced", {"verdict": "disabled"}),
    ("Last 24 hours", {"since": "24h"}),
)


async def get(shell: Shell, request: Request) -> Response:
    search, wrong = read_query(ExecutionSearch, request)
    page: Page[Any] = Page([], None)
    try:
        wanted, after = search.wanted(now=shell.clock.now()), search.cursor
    except ValueError as error:
        wrong = wrong or str(error)
    if not wrong:
        page = await shell.ledger.queries.events(wanted, limit=search.limit, after=after)
    asked = search.model_dump(exclude_defaults=True, exclude={"after"}, mode="json")
    return shell.draw(
        request,
        "executions.html.j2",
        status=400 if wrong else 200,
        search=search,
        wrong=wrong,
        page=page,
        asked=asked,
        older=url("executions", **asked, after=page.after) if page.after is not None else None,
        newest=url("executions", **asked) if search.after else None,
        quick=[(name, url("executions", **query), query == asked) for name, query in _QUICK],
    )
