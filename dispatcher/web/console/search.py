"""The search page: finds executions, launch plans and recipients by name, deliveries and rejected messages by id."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dispatcher.web.console.base import Console

MAX_LENGTH = 800


async def get(console: Console, request: Request) -> Response:
    text = request.query_params.get("q", "").replace("\0", "").strip()[:MAX_LENGTH]
    found = await console.ledger.queries.identify(text) if text else {}
    links = [_link(console, kind, key, text) for kind, key in found.items()]
    if len(links) == 1:
        return RedirectResponse(links[0][1], 303)
    return console.render(request, "search.html.j2", text=text, links=links)


def _link(console: Console, kind: str, key: str, text: str) -> tuple[str, str, str]:
    """Return the kind of a match, the URL of its page, and the text of the link to the page."""
    match kind:
        case "delivery":
            return "Delivery", console.url("deliveries", key), key
        case "execution" if text.count("/") == 2:
            return "Execution", console.url("executions", *text.split("/")), text
        case "execution":
            return "Executions named", console.url("executions", execution=text), text
        case "launch_plan":
            return "Launch plan", console.url("executions", launch_plan=text), text
        case "cause":
            return "Cause", console.url("executions", cause=text), text
        case "recipient":
            return "Recipient", console.url("deliveries", recipient=text), text
        case _:
            return "Rejected message", console.url("rejected", key), key
