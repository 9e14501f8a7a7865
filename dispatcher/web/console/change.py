"""The pages that redrive, retry now, cancel or dismiss deliveries: GET shows them and asks, POST does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dispatcher.filters import Criteria
from dispatcher.ledger import Deed, Filter
from dispatcher.model.delivery import State
from dispatcher.web.console.base import Console, PageError, operator
from dispatcher.web.forms import Form, read_form

MAX_KEYS = 500
SHOWN = 10
PAGES: Mapping[Deed, str] = {
    what: what.value.replace("_", "-") for what in (Deed.REDRIVE, Deed.RETRY_NOW, Deed.CANCEL, Deed.DISMISS)
}
"""The last part of the path of each page."""


async def get(what: Deed, console: Console, request: Request) -> Response:
    """Show the confirmation page: the number of deliveries, the newest of them, and why they are dead or wait."""
    keys, criteria = _selection(request.query_params)
    if "selected" in request.query_params and not keys:
        raise PageError(400, "No delivery was selected: tick some of them first.")
    wanted = console.operations.eligible(what, _filter(console, keys, criteria))
    queries = console.ledger.queries
    dead = State.DEAD in wanted.states
    count, reasons = await queries.reasons(wanted, limit=SHOWN)
    return console.render(
        request,
        "change.html.j2",
        what=what.value,
        page_name=PAGES[what],
        keys=keys,
        criteria=criteria.model_dump(exclude_defaults=True),
        count=count,
        reasons=reasons if dead else (),
        waits=() if dead else await console.operations.waits(wanted),
        page=await queries.deliveries(wanted, limit=SHOWN),
        silenced=await console.operations.silenced(what, wanted),
    )


async def post(what: Deed, console: Console, request: Request) -> Response:
    keys, criteria = _selection(await read_form(request))
    number = await console.operations.change(what, _filter(console, keys, criteria), await operator(request))
    if len(keys) == 1:
        return RedirectResponse(console.url("deliveries", keys[0]), 303)
    return RedirectResponse(
        console.url("deliveries", **criteria.model_dump(exclude_defaults=True), done=PAGES[what], changed=str(number)),
        303,
    )


def _selection(fields: QueryParams | Form) -> tuple[Sequence[str], Criteria]:
    keys = fields.getlist("key")
    if len(keys) > MAX_KEYS:
        raise PageError(400, f"More than {MAX_KEYS} deliveries are selected: use a filter instead.")
    given = {name: fields[name] for name in Criteria.model_fields if fields.get(name)}
    try:
        return keys, Criteria.model_validate(given)
    except ValidationError:
        raise PageError(400, "The filter is not valid.") from None


def _filter(console: Console, keys: Sequence[str], criteria: Criteria) -> Filter:
    if keys:
        return Filter(keys=keys)
    try:
        return criteria.wanted(now=console.clock.now())
    except ValueError as error:
        raise PageError(400, str(error)) from None
