"""Messages that could not be understood, or whose rules can't be known: looked at, and tried again."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dispatcher.explain import rejected_whole
from dispatcher.ledger import Rejected
from dispatcher.ledger.queries import Page
from dispatcher.web.auth.access import caller
from dispatcher.web.console.shell import Shell, Sorry, read_query, url
from dispatcher.web.filters import RejectedSearch

_QUICK: tuple[tuple[str, dict[str, str]], ...] = (
    ("All", {}),
    ("Not replayed", {"replayed": "false"}),
    ("Replayed", {"replayed": "true"}),
)


async def list_(shell: Shell, request: Request) -> Response:
    search, wrong = read_query(RejectedSearch, request)
    page: Page[Any] = Page([], None)
    try:
        after = search.cursor
    except ValueError:
        wrong = wrong or "that page is gone: begin with the newest"
    if not wrong:
        page = await shell.ledger.queries.rejected(limit=search.limit, after=after, replayed=search.replayed)
    asked = {"replayed": str(search.replayed).lower()} if search.replayed is not None else {}
    return shell.draw(
        request,
        "rejected_list.html.j2",
        status=400 if wrong else 200,
        wrong=wrong,
        page=page,
        older=url("rejected", **asked, after=page.after) if page.after is not None else None,
        newest=url("rejected", **asked) if search.after else None,
        quick=[(name, url("rejected", **query), query == asked) for name, query in _QUICK],
    )


async def get(shell: Shell, request: Request) -> Response:
    return _page(shell, request, await _entry(shell, request))


async def replay(shell: Shell, request: Request) -> Response:
    entry = await _entry(shell, request)
    if entry.replayed_at is None:
        tried = await shell.operations.replay(entry, by=caller(request))
        if not tried.understood:
            return _page(shell, request, entry, wrong=tried.says)
    return RedirectResponse(url("rejected", entry.id), 303)


def _page(shell: Shell, request: Request, entry: Rejected, *, wrong: str = "") -> Response:
    facts = {**rejected_whole(entry), "body": _readable(entry.body), "kept": len(entry.body)}
    return shell.draw(request, "rejected.html.j2", entry=facts, wrong=wrong)


async def _entry(shell: Shell, request: Request) -> Rejected:
    entry = await shell.operations.rejected(request.path_params["id"])
    if entry is None:
        raise Sorry(404, "There is no such rejected message. It may be older than ledger.retention.")
    return entry


def _readable(body: bytes) -> str:
    """JSON laid out for reading; other bytes as they are."""
    try:
        return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return body.decode(errors="replace")
