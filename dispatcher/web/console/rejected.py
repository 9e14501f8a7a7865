"""Pages for rejected messages, which could not be decoded or whose rules are unknown. Operators replay them here."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dispatcher.explain import rejected_details
from dispatcher.filters import RejectedSearch
from dispatcher.ledger import Rejected
from dispatcher.ledger.records import Page
from dispatcher.web.console.base import Console, PageError, operator, read_query

_QUICK: tuple[tuple[str, dict[str, str]], ...] = (
    ("All", {}),
    ("Open", {"replayed": "false"}),
    ("Replayed", {"replayed": "true"}),
)


async def list_(console: Console, request: Request) -> Response:
    search, problem = read_query(RejectedSearch, request)
    page: Page[Any] = Page([], None)
    try:
        after = search.cursor
    except ValueError:
        problem = problem or "this page of the list is not available: begin with the newest"
    if not problem:
        page = await console.ledger.queries.rejected(limit=search.limit, after=after, replayed=search.replayed)
    query = {"replayed": str(search.replayed).lower()} if search.replayed is not None else {}
    return console.render(
        request,
        "rejected_list.html.j2",
        status=400 if problem else 200,
        problem=problem,
        page=page,
        older=console.url("rejected", **query, after=page.after) if page.after is not None else None,
        newest=console.url("rejected", **query) if search.after else None,
        quick=[(name, console.url("rejected", **fields), fields == query) for name, fields in _QUICK],
    )


async def get(console: Console, request: Request) -> Response:
    return _page(console, request, await _entry(console, request))


async def replay(console: Console, request: Request) -> Response:
    entry = await _entry(console, request)
    if entry.replayed_at is None:
        result = await console.operations.replay(entry, await operator(request))
        if not result.accepted:
            return _page(console, request, entry, problem=result.message)
    return RedirectResponse(console.url("rejected", entry.id), 303)


async def dismiss(console: Console, request: Request) -> Response:
    entry = await _entry(console, request)
    await console.operations.dismiss_rejected([entry.id], await operator(request))
    return RedirectResponse(console.url("rejected", entry.id), 303)


def _page(console: Console, request: Request, entry: Rejected, *, problem: str = "") -> Response:
    details = {**rejected_details(entry), "body": _readable(entry.body), "kept": len(entry.body)}
    return console.render(request, "rejected.html.j2", entry=details, problem=problem)


async def _entry(console: Console, request: Request) -> Rejected:
    entry = await console.operations.rejected(request.path_params["id"])
    if entry is None:
        raise PageError(404, "There is no such rejected message. It may be older than ledger.retention.")
    return entry


def _readable(body: bytes) -> str:
    """Return JSON with indentation, and bytes that are not JSON as plain text."""
    try:
        return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return body.decode(errors="replace")
