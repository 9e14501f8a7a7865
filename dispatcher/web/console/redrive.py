"""Dead deliveries put back: first what it would mean, then the deed."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError
from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dispatcher.ledger import DeliveryFilter
from dispatcher.model.delivery import State
from dispatcher.web.auth.access import caller
from dispatcher.web.console.shell import Shell, Sorry, url
from dispatcher.web.filters import About

KEYS_AT_MOST = 500
SHOWN = 10
_DEAD = frozenset({State.DEAD})


async def get(shell: Shell, request: Request) -> Response:
    """What would be put back, and why it died; nothing is changed."""
    keys, about = _asked(request.query_params)
    if "selected" in request.query_params and not keys:
        raise Sorry(400, "No delivery was chosen: tick some of them first.")
    wanted = _filter(shell, keys, about)
    queries = shell.ledger.queries
    return shell.draw(
        request,
        "redrive.html.j2",
        keys=keys,
        about=about.model_dump(exclude_defaults=True),
        count=await queries.count(wanted),
        reasons=await queries.reasons(wanted, limit=SHOWN),
        page=await queries.deliveries(wanted, limit=SHOWN),
    )


async def post(shell: Shell, request: Request) -> Response:
    keys, about = _asked(await request.form())
    number = await shell.operations.redrive(_filter(shell, keys, about), by=caller(request))
    if len(keys) == 1:
        return RedirectResponse(url("deliveries", keys[0]), 303)
    return RedirectResponse(url("deliveries", **about.model_dump(exclude_defaults=True), redriven=str(number)), 303)


def _asked(given: QueryParams | FormData) -> tuple[Sequence[str], About]:
    keys = [str(value) for value in given.getlist("key")]
    if len(keys) > KEYS_AT_MOST:
        raise Sorry(400, f"That is more than {KEYS_AT_MOST} at once: choose them by a filter.")
    fields = {name: str(given[name]) for name in About.model_fields if given.get(name)}
    try:
        return keys, About.model_validate(fields)
    except ValidationError:
        raise Sorry(400, "That filter can't be read.") from None


def _filter(shell: Shell, keys: Sequence[str], about: About) -> DeliveryFilter:
    if keys:
        return DeliveryFilter(states=_DEAD, keys=keys)
    try:
        return about.filter(now=shell.clock.now(), states=_DEAD)
    except ValueError as error:
        raise Sorry(400, str(error)) from None
