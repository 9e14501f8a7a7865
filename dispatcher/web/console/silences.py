"""The pages about silences: which there are, what one holds, and a form that adds one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dispatcher.filters import Search
from dispatcher.holding.silences import Silence
from dispatcher.ledger import Filter
from dispatcher.model.event import Event
from dispatcher.parsing.duration import parse_timestamp
from dispatcher.parsing.validation_errors import first_problem
from dispatcher.rules.matcher_words import as_pairs, from_pairs
from dispatcher.silences import NewSilence, SilenceEnd, SilenceRefused, SilenceTrial
from dispatcher.web.auth.access import caller, still_allowed
from dispatcher.web.config import Scope
from dispatcher.web.console.base import Console, PageError, operator
from dispatcher.web.forms import read_form

_FIELDS = ("match", "reason", "for", "starts_at", "then")
_LASTS = "2h"
"""How long a silence lasts if the form is left as it is."""
_DELIVERIES_READ = 100
"""So many of a recipient's newest deliveries say for which launch plans a silence for it is."""


async def list_(console: Console, request: Request) -> Response:
    ended = request.query_params.get("ended") == "true"
    return console.render(
        request,
        "silences.html.j2",
        silences=await console.silences.listed(ended=ended),
        quick=[
            ("In force and planned", console.url("silences"), not ended),
            ("With those that have ended", console.url("silences", ended="true"), ended),
        ],
        operates=still_allowed(request, Scope.OPERATE),
    )


async def get(console: Console, request: Request) -> Response:
    return await _page(console, request, await _silence(console, request))


async def end(console: Console, request: Request) -> Response:
    silence = await _silence(console, request)
    try:
        await console.silences.end(silence, await operator(request))
    except SilenceRefused as error:
        return await _page(console, request, silence, error)
    return RedirectResponse(console.url("silences", silence.id), 303)


async def extend(console: Console, request: Request) -> Response:
    silence, form = await _silence(console, request), await read_form(request)
    try:
        until = SilenceEnd.model_validate({"for": form.get("for", "").strip()})
        await console.silences.extend(silence, until, await operator(request))
    except ValidationError as error:
        return await _page(console, request, silence, SilenceRefused(first_problem(error)))
    except SilenceRefused as error:
        return await _page(console, request, silence, error)
    return RedirectResponse(console.url("silences", silence.id), 303)


async def get_form(console: Console, request: Request) -> Response:
    """Show the form. The query may name an execution, a launch plan or a recipient that it is for."""
    given = {"match": "\n".join(await _suggested(console, request.query_params)), "for": _LASTS}
    return _form(console, request, given)


async def post_form(console: Console, request: Request) -> Response:
    """Add the silence of the form, or say what it would have held."""
    form = await read_form(request)
    given = {name: form.get(name, "").strip() for name in _FIELDS}
    try:
        wanted = _wanted(given)
        silence = console.silences.checked(wanted, caller(request))
        if "try" in form:
            trial = await console.silences.trial(silence.matcher)
            warnings = await console.silences.warnings(silence.matcher)
            return _form(console, request, given, trial=trial, warnings=warnings)
        await console.silences.add(silence)
    except ValidationError as error:
        return _form(console, request, given, problem=first_problem(error))
    except (SilenceRefused, ValueError) as error:
        return _form(console, request, given, problem=str(error))
    return RedirectResponse(console.url("silences", silence.id), 303)


def _wanted(given: Mapping[str, str]) -> NewSilence:
    """Return the silence that the form asks for. Raises ValueError, also as ValidationError."""
    pairs = [line for line in given["match"].splitlines() if line.strip()]
    fields: dict[str, Any] = {name: given[name] for name in ("reason", "for", "then") if given[name]}
    if given["starts_at"]:
        fields["starts_at"] = parse_timestamp(given["starts_at"]).astimezone(UTC)
    return NewSilence.model_validate({**fields, "match": from_pairs(pairs)})


async def _suggested(console: Console, query: Mapping[str, str]) -> Sequence[str]:
    """Return the keys and values of a matcher for what the query names."""
    try:
        search = Search.model_validate({name: query[name] for name in ("execution", "recipient") if query.get(name)})
    except ValidationError:
        return []
    plans: list[Event] = []
    if search.execution is not None:
        found = await console.ledger.queries.events(Filter(execution=search.execution), limit=1)
        plans = [event for one in found.entries if (event := await console.ledger.history.event(one.key)) is not None]
    elif search.recipient is not None:
        page = await console.ledger.queries.deliveries(Filter(recipient=search.recipient), limit=_DELIVERIES_READ)
        keys = dict.fromkeys(one.delivery.event for one in page.entries if one.delivery.event)
        plans = [event for key in keys if (event := await console.ledger.history.event(key)) is not None]
    given = {name: query[name] for name in ("project", "domain", "launch_plan") if query.get(name)}
    return [*(f"{name}={value}" for name, value in given.items()), *_of_launch_plans(plans)]


def _of_launch_plans(events: Sequence[Event]) -> Sequence[str]:
    """Return the keys and values of a matcher of these events' launch plans, or of their projects if they name none."""
    pairs: dict[str, None] = {}
    for event in events:
        pairs |= dict.fromkeys((f"project={event.execution.project}", f"domain={event.execution.domain}"))
        if event.launch_plan is not None and not event.launch_plan.resource_type:
            pairs[f"launch_plan={event.launch_plan.name}"] = None
    return sorted(pairs, key=lambda pair: ["project", "domain", "launch_plan"].index(pair.partition("=")[0]))


async def _silence(console: Console, request: Request) -> Silence:
    try:
        return await console.silences.find(request.path_params["id"])
    except SilenceRefused as error:
        raise PageError(error.status, f"{str(error).capitalize()}.") from None


async def _page(
    console: Console, request: Request, silence: Silence, problem: SilenceRefused | None = None
) -> Response:
    details = await console.silences.details(silence)
    over = details["state"] == "ended"
    return console.render(
        request,
        "silence.html.j2",
        status=problem.status if problem is not None else 200,
        silence=details,
        pairs=as_pairs(silence.matcher),
        warnings=[] if over else await console.silences.warnings(silence.matcher),
        operates=still_allowed(request, Scope.OPERATE) and not over,
        problem=str(problem or ""),
    )


def _form(
    console: Console,
    request: Request,
    given: Mapping[str, str],
    *,
    problem: str = "",
    trial: SilenceTrial | None = None,
    warnings: Sequence[str] = (),
) -> Response:
    return console.render(
        request,
        "silence_add.html.j2",
        status=400 if problem else 200,
        given={name: given.get(name, "") for name in _FIELDS},
        problem=problem,
        trial=trial.as_data() if trial is not None else None,
        warnings=warnings,
    )
