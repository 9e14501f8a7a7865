"""The page that says who would be notified of a launch plan's executions, and why."""

from __future__ import annotations

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from dispatcher.dry_run import LaunchPlanForecast, why
from dispatcher.filters import LaunchPlanQuestion
from dispatcher.parsing.validation_errors import first_problem
from dispatcher.web.console.base import Console


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
    values = {"given": given, "problem": problem, "forecast": forecast, "why": why}
    return console.render(request, "rules.html.j2", status=400 if problem else 200, **values)
