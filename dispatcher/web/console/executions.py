"""The page with the list of executions, each with its verdict and the states of its deliveries."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from dispatcher.filters import CauseSearch, Search, unknown_names
from dispatcher.ledger.records import Page
from dispatcher.web.console.base import Console, channel_choices, read_query

_QUICK: tuple[tuple[str, dict[str, str]], ...] = (
    ("All", {}),
    ("Failed", {"phase": "FAILED"}),
    ("No matching rule", {"verdict": "no_matching_rule"}),
    ("Resolved", {"verdict": "resolved"}),
    ("Disabled", {"verdict": "disabled"}),
    ("Rules unknown", {"verdict": "rules_unknown"}),
    ("Last 24 hours", {"since": "24h"}),
)


async def get(console: Console, request: Request) -> Response:
    search, problem = read_query(Search, request)
    page: Page[Any] = Page([], None)
    hints: list[str] = []
    try:
        wanted, after = search.wanted(now=console.clock.now()), search.cursor
    except ValueError as error:
        problem = problem or str(error)
    if not problem:
        page = await console.ledger.queries.events(wanted, limit=search.limit, after=after)
        if not page.entries:
            hints = await unknown_names(console.ledger, wanted, console.channel_types)
    query = search.model_dump(exclude_defaults=True, exclude={"after"}, mode="json")
    return console.render(
        request,
        "executions.html.j2",
        status=400 if problem else 200,
        search=search,
        problem=problem,
        page=page,
        hints=hints,
        query=query,
        older=console.url("executions", **query, after=page.after) if page.after is not None else None,
        newest=console.url("executions", **query) if search.after else None,
        channels=channel_choices(console, search),
        quick=[(name, console.url("executions", **fields), fields == query) for name, fields in _QUICK],
    )


_QUICK_CAUSES = tuple(
    (f"Last {name}", {"since": since}) for name, since in (("hour", "1h"), ("24 hours", "24h"), ("7 days", "7d"))
)


async def causes(console: Console, request: Request) -> Response:
    """Show the most frequent causes of failed executions, with their numbers."""
    search, problem = read_query(CauseSearch, request)
    page: Page[Any] = Page([], None)
    try:
        wanted = search.wanted(now=console.clock.now())
    except ValueError as error:
        problem = problem or str(error)
    if not problem:
        page = await console.ledger.causes.most_frequent(wanted, limit=search.limit)
    query = search.model_dump(exclude_defaults=True, mode="json")
    return console.render(
        request,
        "causes.html.j2",
        status=400 if problem else 200,
        problem=problem,
        page=page,
        query={name: value for name, value in query.items() if name != "limit"},
        quick=[
            (name, console.url("executions", "causes", **query | fields), fields["since"] == search.since)
            for name, fields in _QUICK_CAUSES
        ],
    )
