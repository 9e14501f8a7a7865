"""One word for anything: an execution, a launch plan, a recipient, a delivery's key, a rejected message's id."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dispatcher.web.console.shell import Shell, url

LONGEST = 800


async def get(shell: Shell, request: Request) -> Response:
    text = request.query_params.get("q", "").replace("\0", "").strip()[:LONGEST]
    meant = await shell.ledger.queries.meant(text) if text else {}
    places = [_place(what, found, text) for what, found in meant.items()]
    if len(places) == 1:
        return RedirectResponse(places[0][1], 303)
    return shell.draw(request, "search.html.j2", text=text, places=places)


def _place(what: str, found: str, text: str) -> tuple[str, str, str]:
    """What it is, where it is shown, and its name."""
    match what:
        case "delivery":
            return "Delivery", url("deliveries", found), found
        case "execution" if text.count("/") == 2:
            return "Execution", url("executions", *text.split("/")), text
        case "execution":
            return "Executions named", url("executions", execution=text), text
        case "launch_plan":
            return "Launch plan", url("executions", launch_plan=text), text
        case "recipient":
            return "Recipient", url("deliveries", recipient=text), text
        case _:
            return "Rejected message", url("rejected", found), found
