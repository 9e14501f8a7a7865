"""The page that redrives dead deliveries: GET shows the deliveries and asks for confirmation, POST redrives them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dispatcher.filters import Criteria
from dispatcher.ledger import Filter
from dispatcher.model.delivery import State
from dispatcher.web.console.base import Console, PageError, operator
from dispatcher.web.forms import Form, read_form

MAX_KEYS = 500
SHOWN = 10
_DEAD = frozenset({State.DEAD})


async def get(console: Console, request: Request) -> Response:
    """Show the confirmation page: the number of dead deliveries, the newest of them, and why they are dead."""
    keys, criteria = _selection(request.query_params)
    if "selected" in request.query_params and not keys:
        raise PageError(400, "No delivery was selected: tick some of them first.")
    wanted = _filter(console, keys, criteria)
    queries = console.ledger.queries
    count, causes = await queries.causes(wanted, limit=SHOWN)
    return console.render(
        request,
        "redrive.html.j2",
        keys=keys,
        criteria=criteria.model_dump(exclude_defaults=True),
        count=count,
        causes=causes,
        page=await queries.deliveries(wanted, limit=SHOWN),
    )


async def post(console: Console, request: Request) -> Response:
    keys, criteria = _selection(await read_form(request))
    number = await console.operations.redrive(_filter(console, keys, criteria), await operator(request))
    if len(keys) == 1:
        return RedirectResponse(console.url("deliveries", keys[0]), 303)
    return RedirectResponse(
        console.url("deliveries", **criteria.model_dump(exclude_defaults=True), redriven=str(number)), 303
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
        return Filter(states=_DEAD, keys=keys)
    try:
        return criteria.wanted(now=console.clock.now(), states=_DEAD)
    except ValueError as error:
        raise PageError(400, str(error)) from None
