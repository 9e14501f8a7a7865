"""The pages about rules: who would be notified of a launch plan's executions, which routes and contacts there are, and whose
executions have no known owner.
"""

from __future__ import annotations

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from dispatcher.dry_run import LaunchPlanForecast, may_hold, why
from dispatcher.filters import LaunchPlanQuestion, RoutePage, RouteSearch
from dispatcher.parsing.validation_errors import first_problem
from dispatcher.rules.matcher_words import in_words
from dispatcher.web.api.endpoints import OWNERS_AT_MOST
from dispatcher.web.console.base import Console, read_query


async def get(console: Console, request: Request) -> Response:
    """Show the form, and the answer if the query names a launch plan. Raises FlyteAdminUnavailable."""
    forecast: LaunchPlanForecast | None = None
    problem = ""
    given = {name: request.query_params.get(name, "").strip() for name in LaunchPlanQuestion.model_fields}
    if given["launch_plan"]:
        try:
            question = LaunchPlanQuestion.model_validate({name: value or None for name, value in given.items()})
            forecast = await console.dry_run.of_launch_plan(question.plan, question.phases)
        except ValidationError as error:
            problem = first_problem(error)
        except ValueError as error:
            problem = str(error)
    values = {"given": given, "problem": problem, "forecast": forecast, "why": why, "may_hold": may_hold}
    return console.render(request, "rules.html.j2", status=400 if problem else 200, **values)


async def list_(console: Console, request: Request) -> Response:
    """Show the routes in effect, page by page, and the contacts."""
    search, problem = read_query(RouteSearch, request)
    routes, contacts = console.dry_run.rules().routes, console.dry_run.planner.contacts
    page = RoutePage([], None)
    if not problem:
        try:
            page = search.page(routes, contacts)
        except ValueError as error:
            problem = str(error)
    return console.render(
        request,
        "routes.html.j2",
        status=400 if problem else 200,
        problem=problem,
        search=search,
        page=page,
        routes=routes,
        contacts=contacts.as_data(),
        in_words=in_words,
    )


async def owners(console: Console, request: Request) -> Response:
    """Show the owners who are not known or not reached. Raises LedgerUnavailable."""
    return console.render(
        request,
        "owners.html.j2",
        unresolved=await console.ledger.owners.unresolved(limit=OWNERS_AT_MOST),
        at_most=OWNERS_AT_MOST,
        configured=console.dry_run.rules().routes.owners,
    )
